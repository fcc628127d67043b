import json
import socket
import threading

import pytest
import requests

from served import COLUMNS, NAME, free_port, register, scores

import smoke_test


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    return folder, register(folder / 'registry', 1)


@pytest.fixture
def asked():
    """The rows of each request that a service of `serve` was sent."""
    return []


@pytest.fixture
def serve(asked, monkeypatch):
    """A function that has each request answered by answer(rows): a status and a text.

    No status: the connection is lost. tests/test_serve.py has the real server answer.
    """
    def serve(answer):
        def post(session, uri, json, **_):
            asked.append(json['data'])
            response = requests.Response()
            response.status_code, text = answer(json['data'])
            if not response.status_code:
                raise requests.ConnectionError('lost')
            response._content = text.encode()
            return response
        monkeypatch.setattr(requests.Session, 'post', post)
    return serve


def values(rows):
    return [[row[name] for name in COLUMNS] if isinstance(row, dict) else row for row in rows]


def run(out, port=5001):
    return smoke_test.main(['--service', 'local', '--out', str(out[0]), '--model-name', NAME,
                            '--port', str(port)])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(smoke_test, 'PAUSE_SECONDS', 0.01)


@pytest.fixture
def short_deadline(monkeypatch):
    monkeypatch.setitem(smoke_test.DEADLINE_SECONDS, 'local', 0.03)


def good(model, change=lambda found: found):
    return lambda rows: (200, json.dumps({'result': change(scores(model, values(rows)))}))


def test_rows_are_the_same_each_time_differ_and_go_as_lists_and_objects(out, serve, asked):
    serve(good(out[1]))
    assert run(out) == run(out) == 0
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
def test_a_wrong_answer_fails_at_once(out, serve, asked, change, reason, capsys):
    serve(good(out[1], change))
    assert run(out) == 1
    assert len(asked) == 1 and reason in capsys.readouterr().err


@pytest.mark.parametrize('status', [400, 401, 404, 500])
def test_a_refusal_fails_at_once_with_status_and_body(out, serve, asked, status, capsys):
    serve(lambda rows: (status, 'what the service says'))
    assert run(out) == 1
    error = capsys.readouterr().err
    assert len(asked) == 1 and f'status {status}' in error and 'what the service says' in error


def test_what_passes_by_is_tried_again(out, serve, asked):
    statuses, right = [429, 502, 503, 504, None], good(out[1])
    serve(lambda rows: (statuses.pop(), 'wait') if statuses else right(rows))
    assert run(out) == 0
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
