import json
import os
import signal
import socket
import sys

import pytest

from served import NAME, Service, free_port, make_rows, profile, register, scores

import monitor
import serve
import smoke_test
import tracking

ROWS = make_rows(2, seed=3)
BODY = json.dumps({'data': ROWS}).encode()
CHUNKED = b'POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'


@pytest.fixture(scope='module')
def registry(tmp_path_factory):
    return tmp_path_factory.mktemp('out') / 'registry'


@pytest.fixture(scope='module')
def model(registry):
    """Version 10, the newest by number, not by text."""
    register(registry, 9, seed=2)
    newest = register(registry, 10)
    profile(newest, registry / NAME / '10' / 'model', make_rows(200, seed=6))
    return newest


@pytest.fixture(scope='module')
def service(registry, model):
    with Service(registry, registry.parent / 'log.txt') as running:
        yield running


def head(length, extra=b''):
    return (b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n' + extra +
            b'Content-Length: %d\r\n\r\n' % length)


def test_the_newest_version_scores_as_its_file_says(service, registry, model, capsys):
    assert service.score({'data': ROWS}) == (200, {'result': scores(model, ROWS)})
    assert smoke_test.main(['--out', str(registry.parent), '--model-name', NAME,
                            '--port', str(service.port)]) == 0
    assert 'version 10' in capsys.readouterr().out


@pytest.mark.parametrize('method, path, status', [
    ('GET', '/score', 405), ('HEAD', '/score', 405), ('PUT', '/score', 405), ('GET', '/', 200),
    ('DELETE', '/score', 405), ('OPTIONS', '/score', 200), ('GET', '/nothing', 404)])
def test_other_methods_and_paths(service, method, path, status):
    assert service.ask(method, path)[0] == status


def test_the_openapi_documents_are_served(service):
    for query, key, version in (('', 'swagger', '2.0'), ('?version=2', 'swagger', '2.0'),
                                ('?version=3', 'openapi', '3.0.3'),
                                ('?version=3.1', 'openapi', '3.1.0')):
        status, _, text = service.ask('GET', '/swagger.json' + query)
        document = json.loads(text)
        assert (status, document[key], document['info']['title']) == (200, version, 'Safe driver')


def test_a_chunked_body_is_scored(service, model):
    chunks = b''.join(b'%x\r\n%s\r\n' % (len(part), part) for part in (BODY[:50], BODY[50:]))
    answer = service.raw(CHUNKED + chunks + b'0\r\n\r\n')
    assert json.loads(answer.split(b'\r\n\r\n')[1])['result'] == scores(model, ROWS)


@pytest.mark.parametrize('data, statuses', [
    (head(len(BODY) + 1) + BODY, [b'400']), (head(len(BODY) - 1) + BODY, [b'400']),
    (head(len(BODY)) + BODY[:-9], [b'400']), (CHUNKED + b'zz\r\n', [b'400']),
    (CHUNKED + b'9999\r\n' + BODY, [b'400']),
    (head(len(BODY)).replace(b'/score', b'/score?\xff') + BODY, [b'200', b'400'])],
    ids=['cut', 'longer', 'shorter', 'no size', 'cut chunk', 'a query that is not UTF-8'])
def test_a_body_of_another_length_than_said_is_400_and_no_query_a_fault(service, data, statuses):
    assert service.raw(data).split(b' ')[1] in statuses


def test_too_large_a_body_is_answered_though_it_is_still_being_sent(service):
    assert service.score(b' ' * (17 << 20))[0] == 413


def test_a_header_for_proxies_is_no_fault_of_the_server(service):
    headers = {'X-Forwarded-Proto': 'https', 'Expect': '100-continue'}
    if sys.version_info >= (3, 8):  # the gunicorn of Python 3.7 heeds it from anyone
        headers['SCRIPT_NAME'] = '/x'
    for name, value in headers.items():
        assert service.score(BODY, **{name: value})[0] == 200, name


def test_a_request_is_one_line_of_json_in_the_log(service):
    before = service.log.read_text().splitlines()
    # The server warns of the second header in a line of its own unless it is told not to.
    headers = {'x-request-id': 'one-of-a-kind', 'x-ms-request-id': 'another',
               'traceparent': '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'}
    assert service.score(BODY, **headers)[0] == 200
    assert service.score(b'{"data": [["feature value"]]}')[0] == 400
    scored, refused = service.log.read_text().splitlines()[len(before):]
    found = json.loads(scored[scored.index('{'):])
    assert (found['request_id'], found['rows'], found['status']) == ('one-of-a-kind', 2, 200)
    assert found['traceparent'] == headers['traceparent'] and found['milliseconds'] > 0
    assert '"rows": 0' in refused and '"status": 400' in refused and 'feature value' not in refused


def test_what_was_asked_is_what_monitor_finds(registry, service, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)

    def found():
        assert monitor.main(['--out', str(registry.parent), '--model-name', NAME]) == 0
        return json.loads((registry.parent / 'monitor.json').read_text())
    service.score(BODY)
    before = found()
    for body in (BODY, BODY, b'{"data": []}'):
        service.score(body)
    service.score(BODY, **smoke_test.TEST)
    after = found()
    assert [after[name] - before[name] for name in ('requests', 'rows', 'refused')] == [3, 4, 1]
    assert after['scores']['rows'] - before['scores']['rows'] == 4 and after['version'] == '10'
    assert 'too few requests to judge' in capsys.readouterr().out


@pytest.mark.end_to_end
def test_a_body_that_never_comes_blocks_nobody_for_long_and_one_that_comes_is_scored_after_sigterm(
        registry, model, tmp_path):
    many = make_rows(300, seed=5)
    body = json.dumps({'data': many}).encode()
    with Service(registry, tmp_path / 'log.txt', SCORING_TIMEOUT_MS='2000') as running:
        assert running.raw(head(1000) + b'{"data"', end=False).split(b' ')[1] == b'408'
        with socket.create_connection(('127.0.0.1', running.port), 60) as connection:
            connection.sendall(head(len(body), b'Expect: 100-continue\r\n'))
            assert b' 100 ' in connection.recv(100)
            running.process.send_signal(signal.SIGTERM)
            connection.sendall(body)
            answer = b''.join(iter(lambda: connection.recv(1 << 16), b''))
        assert running.process.wait(60) == 0
    assert json.loads(answer.split(b'\r\n\r\n')[1])['result'] == scores(model, many)


def test_what_cannot_be_served_is_said(registry, model, tmp_path, monkeypatch, capsys):
    def said(folder, port):
        assert serve.main(['--registry', str(folder), '--model-name', NAME,
                           '--port', str(port)]) == 1
        return capsys.readouterr().err

    # In case it goes on: the server would take the place of the tests.
    monkeypatch.setattr(os, 'execve', None)
    text = said(tmp_path, free_port())
    assert NAME in text and 'make retrain' in text
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen(1)
        assert 'in use' in said(registry, other.getsockname()[1])
    assert 'between 1 and 65535' in said(registry, 70000)
    monkeypatch.setattr(serve, 'SERVER', 'no_such_package')
    assert 'azureml-inference-server-http' in said(registry, free_port())


def test_what_is_served_is_the_champion_whatever_else_lies_there(tmp_path):
    register(tmp_path, 8)
    (tmp_path / NAME / '10').symlink_to('8')
    (tmp_path / NAME / '11').mkdir()
    (tmp_path / NAME / '12' / 'tags.json').mkdir(parents=True)
    for name in ('9', '0', '014', '²', '٣٣', '１4', '+14', '1_4', '.new-14', '14.old'):
        (tmp_path / NAME / name).mkdir()
        (tmp_path / NAME / name / 'tags.json').write_text('{}')
    champion, _, _ = tracking.Folder(tmp_path).champion(NAME)
    assert serve.newest_version(tmp_path, NAME).name == str(champion) == '10'


def test_the_environment_wins_over_deployment_json(tmp_path):
    wanted = serve.server_environ(tmp_path, {'WORKER_TIMEOUT': '7', 'PATH': 'p'}, tmp_path)
    assert (wanted['WORKER_TIMEOUT'], wanted['PATH']) == ('7', 'p')
    assert wanted['SCORING_TIMEOUT_MS'] == '30000'
