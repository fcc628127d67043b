import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from served import COLUMNS, NAME, free_port, register, scores

import smoke_test


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    return folder, register(folder / 'registry', 1)


@contextlib.contextmanager
def service(answer):
    """A service on loopback; answer(number of the request, rows) gives (status, text or None).

    None: no answer at all. Yields (port, list of the requests' rows).
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers['Content-Length'])).decode())['data']
            asked.append(rows)
            status, text = answer(len(asked), rows)
            if text is not None:
                self.send_response(status)
                self.send_header('Content-Length', str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def values(rows):
    return [[row[name] for name in COLUMNS] if isinstance(row, dict) else row for row in rows]


def run(out, port):
    return smoke_test.main(['--service', 'local', '--out', str(out[0]), '--model-name', NAME,
                            '--port', str(port)])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(smoke_test, 'PAUSE_SECONDS', 0.01)


@pytest.fixture
def short_deadline(monkeypatch):
    monkeypatch.setitem(smoke_test.DEADLINE_SECONDS, 'local', 0.1)


def good(model, change=lambda found: found):
    return lambda number, rows: (200, json.dumps({'result': change(scores(model, values(rows)))}))


def test_rows_are_the_same_each_time_differ_and_go_as_lists_and_objects(out):
    with service(good(out[1])) as (port, asked):
        assert run(out, port) == run(out, port) == 0
    assert asked[:2] == asked[2:]
    assert isinstance(asked[0][0], list) and isinstance(asked[1][0], dict)
    assert values(asked[0]) == values(asked[1])
    found = scores(out[1], asked[0])
    assert len(set(map(tuple, asked[0]))) == len(asked[0]) and len(set(found)) > 1


@pytest.mark.parametrize('change, reason', [
    (lambda found: found[1:], '7 scores for 8 rows'),
    (lambda found: found + [0.5], '9 scores for 8 rows'),
    (lambda found: [1.1] + found[1:], 'not between 0 and 1'),
    (lambda found: [float('nan')] + found[1:], 'not between 0 and 1'),
    (lambda found: [0.5] * len(found), 'the same score'),
    (lambda found: found[::-1], 'differ from the registered model'),
    (lambda found: [score + 1e-8 for score in found], 'differ from the registered model'),
    (lambda found: [str(found)] * 8, 'the answer is not'),
    (lambda found: None, 'the answer is not')])
def test_a_wrong_answer_fails_at_once(out, change, reason, capsys):
    with service(good(out[1], change)) as (port, asked):
        assert run(out, port) == 1
    assert len(asked) == 1 and reason in capsys.readouterr().err


@pytest.mark.parametrize('status', [400, 401, 404, 500])
def test_a_refusal_fails_at_once_with_status_and_body(out, status, capsys):
    with service(lambda number, rows: (status, 'what the service says')) as (port, asked):
        assert run(out, port) == 1
    error = capsys.readouterr().err
    assert len(asked) == 1 and f'status {status}' in error and 'what the service says' in error


def test_what_passes_by_is_tried_again(out):
    # None: the connection is closed without an answer.
    statuses, right = [429, 502, 503, 504, None], good(out[1])

    def answer(number, rows):
        status = statuses.pop(0) if statuses else 200
        return right(number, rows) if status == 200 else (status, status and 'wait')

    with service(answer) as (port, asked):
        assert run(out, port) == 0
    assert len(asked) == 7


def test_the_deadline_ends_it(out, short_deadline, capsys):
    assert run(out, free_port()) == 1
    error = capsys.readouterr().err
    assert 'before the deadline' in error and '/score: [Errno 111] Connection refused' in error


@pytest.mark.parametrize('sent, more', [
    (b'', b''), (b'HTTP/1.1 200 OK\r\nX: ', b'1'), (b'HTTP/1.1 200 OK\r\n\r\n', b'1')])
def test_a_service_that_hangs_or_answers_byte_by_byte_does_not_hang_the_test(
        out, sent, more, short_deadline, capsys):
    over = threading.Event()

    def drip(server):
        connection, _ = server.accept()
        connection.sendall(sent)
        while not over.wait(0.05):
            connection.sendall(more)
        connection.close()

    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen(5)
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        assert run(out, server.getsockname()[1]) == 1
        over.set()
        thread.join()
    assert 'timed out' in capsys.readouterr().err


def test_what_is_missing_is_said(tmp_path, capsys):
    assert smoke_test.main(['--out', str(tmp_path), '--model-name', NAME]) == 1
    assert 'make retrain' in capsys.readouterr().err
    assert smoke_test.main(['--service', 'aci', '--out', str(tmp_path)]) == 1
    assert 'make deploy' in capsys.readouterr().err
