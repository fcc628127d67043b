import functools
import io
import json
import socket
import threading

import pytest
import requests
from _pytest.monkeypatch import MonkeyPatch

from served import COLUMNS, NAME, free_port, register, scores

import serve as serve_script
import smoke_test


@pytest.fixture(scope='module', autouse=True)
def tried_once():
    """A model is tried in a process of its own once, not once a test: no test changes it."""
    with MonkeyPatch().context() as patch:
        patch.setattr(serve_script, 'newest_version',
                      functools.lru_cache(maxsize=None)(serve_script.newest_version))
        yield


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    return folder, register(folder / 'registry', 1)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """Like out, for a metrics.json that the tests write: (folder, model), path of metrics.json."""
    folder = tmp_path_factory.mktemp('stored')
    model = register(folder / 'registry', 1)
    return (folder, model), folder / 'registry' / NAME / '1' / 'model' / 'metrics.json'


@pytest.fixture
def serve(monkeypatch):
    """serve(answer) has each request answered by answer(rows): a status and a text.

    It returns a list, to which the rows of each request are added. No status: the connection is
    lost, with that text. In tests/test_serve.py the server is real.
    """
    def serve(answer):
        asked = []

        def post(session, uri, json, **_):
            asked.append(json['data'])
            response = requests.Response()
            response.status_code, text = answer(json['data'])
            if not response.status_code:
                raise requests.ConnectionError(text)
            response.raw = io.BytesIO(text.encode())
            return response
        monkeypatch.setattr(requests.Session, 'post', post)
        return asked
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


def test_rows_are_the_same_each_time_differ_and_go_as_lists_and_objects(out, serve):
    asked = serve(good(out[1]))
    assert run(out) == run(out) == 0
    assert asked[:3] == asked[3:] and asked[2] == asked[0] * smoke_test.TIMES
    assert isinstance(asked[0][0], list) and isinstance(asked[1][0], dict)
    assert values(asked[0]) == values(asked[1])
    assert len(set(map(tuple, asked[0]))) == len(asked[0])


def test_the_scores_that_training_stored_are_expected_not_those_of_the_file(stored, serve):
    (_, model), report = stored
    rows = [[number] * len(COLUMNS) for number in range(3)]
    asked = serve(good(model))
    for known, code in ((scores(model, rows), 0), ([0.1, 0.2, 0.3], 1)):
        report.write_text(json.dumps({'known_rows': {
            'rows': [' '.join(map(str, row)) for row in rows], 'scores': known}}))
        assert run(stored[0]) == code
    assert asked[0] == rows


@pytest.mark.parametrize('known', [
    'x', 5, {'rows': []}, {'rows': [], 'scores': []}, {'rows': ['1', '2'], 'scores': [1, None]}])
def test_stored_scores_that_are_damaged_are_said_to_be(stored, serve, known, capsys):
    asked = serve(good(stored[0][1]))
    stored[1].write_text(json.dumps({'known_rows': known}))
    assert run(stored[0]) == 1 and not asked
    assert 'known_rows in metrics.json beside the model are damaged' in capsys.readouterr().err


@pytest.mark.parametrize('change, reason', [
    (lambda found: found[1:], '7 scores for 8 rows'),
    (lambda found: found + [0.5], '9 scores for 8 rows'),
    (lambda found: [0.5] * len(found), 'the same score'),
    (lambda found: found[::-1], 'differ from the registered model by up to'),
    (lambda found: [score + 1e-8 for score in found], 'by up to 1e-08'),
    (lambda found: found[1:] + [10 ** 400], 'by up to inf'),
    (lambda found: found[1:] + [float('nan')], 'the answer is not'),
    (lambda found: [str(score) for score in found], 'the answer is not'),
    (lambda found: found[1:] + [True], 'the answer is not'),
    (lambda found: dict.fromkeys(found, 1), 'the answer is not')])
def test_a_wrong_answer_fails_at_once(out, serve, change, reason, capsys):
    asked = serve(good(out[1], change))
    assert run(out) == 1
    assert len(asked) == 1 and reason in capsys.readouterr().err


NOISE = '##vso[task.complete]\x1b[2J\r\x85##v\xadso[x]' + 'long' * 9999


@pytest.mark.parametrize('status, said', [
    (status, NOISE) for status in (400, 401, 404, 500, 503, None)] + [
    (200, said) for said in ('', '[' * 9999, '{"result":' + '[' * 9999, '1' * 9999, '[1]', NOISE)],
    ids=range(12))
def test_what_else_a_service_says_is_shown_and_harmless_in_a_log(
        out, serve, status, said, short_deadline, capsys):
    asked = serve(lambda rows: (status, said))
    assert run(out) == 1
    assert len(asked) == 1 or status in (503, None)
    printed = capsys.readouterr()
    assert (f'status {status}' if status else 'no answer') in printed.err
    assert said[-9:] in printed.err and '##vso[' not in printed.out + printed.err
    assert not set(printed.out + printed.err) & set('\x1b\r\x85\xad')
    assert len(printed.err) < 2100 and max(map(len, printed.out.splitlines()), default=0) < 300


def test_no_part_of_the_key_is_in_what_a_service_says():
    said = 'x' * (smoke_test.SHOWN - 5)
    shown = smoke_test.harmless(said + 'the-key', {'Authorization': 'Bearer the-key'})
    assert shown == said + '***'


def test_what_passes_by_is_tried_again(out, serve):
    statuses, right = [429, 502, 503, 504, None], good(out[1])
    asked = serve(lambda rows: (statuses.pop(), 'wait') if statuses else right(rows))
    assert run(out) == 0
    assert len(asked) == 8


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
