import collections
import contextlib
import gc
import json
import multiprocessing
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from _pytest.monkeypatch import MonkeyPatch

from served import COLUMNS, NAME, make_rows, model_text, register, scores

pytest.importorskip('azureml_inference_server_http')
pytest.importorskip('orjson')
flask = pytest.importorskip('flask')

import booster  # noqa: E402
import rows  # noqa: E402
import score  # noqa: E402
import smoke_test  # noqa: E402

ROWS = make_rows(3, seed=7)
OBJECTS = [dict(reversed(list(zip(COLUMNS, row)))) for row in ROWS]
BODY, OBJECTS_BODY = [json.dumps({'data': data}).encode() for data in (ROWS, OBJECTS)]
APP = flask.Flask('test')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The model that score.py has loaded, as the lightgbm package reads it."""
    registry, patch = tmp_path_factory.mktemp('registry'), MonkeyPatch()
    known = register(registry, 12)
    known.documents = registry / 'documents'
    patch.setenv('AZUREML_MODEL_DIR', str(registry / NAME / '12'))
    patch.setenv('AML_APP_ROOT', str(known.documents))
    score.init()
    patch.undo()
    return known


def run(**request):
    """The response of score.run() to a request, as Werkzeug's EnvironBuilder takes it."""
    with APP.test_request_context('/score', **request):
        flask.g.request_id = 'abc'
        return score.run(flask.request)


def ask(body, content_type='application/json', **request):
    """(status, answer) to a POST; body: bytes, or what to write as JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = run(method='POST', data=body, content_type=content_type, **request)
    return answer.status_code, json.loads(answer.get_data(as_text=True))


def changed(column, text):
    """A body of three rows whose second holds this JSON text in a column."""
    row = list(ROWS[1])
    row[COLUMNS.index(column)] = 'here'
    return json.dumps({'data': [ROWS[0], row, ROWS[2]]}).replace('"here"', text).encode()


def objects(change):
    """A body of three rows as objects of which the second was passed through `change`."""
    return {'data': [OBJECTS[0], change(dict(OBJECTS[1])), OBJECTS[2]]}


def without(name):
    return lambda row: {key: value for key, value in row.items() if key != name}


EXTREME = (1.7976931348623157e308, -1e308, 5e-324, 2 ** 53 + 1, 2 ** 64 + 1, -0.0)


@pytest.mark.parametrize('data', [
    ROWS, OBJECTS, make_rows(1000, seed=8), [[value] * len(COLUMNS) for value in EXTREME]],
    ids=['lists', 'objects in another order', 'many on two threads', 'extreme finite numbers'])
def test_rows_get_the_models_own_scores(model, monkeypatch, data):
    monkeypatch.setattr(score, 'threads', 2)
    right = 200, {'result': scores(model, ROWS if data is OBJECTS else data)}
    assert ask({'data': data}) == right
    # And in a worker that is forked after init() (WORKER_PRELOAD), without LightGBM's threads.
    worker = multiprocessing.get_context('fork').Process(
        target=lambda: os._exit(ask({'data': data}) != right))
    worker.start()
    worker.join(30)
    worker.kill()
    assert worker.exitcode == 0


@pytest.mark.parametrize('data', [ROWS, OBJECTS, make_rows(200, seed=9)],
                         ids=['lists', 'objects', 'many on two threads'])
def test_explanations_are_lightgbms_own_and_add_up_to_the_score(model, monkeypatch, data):
    monkeypatch.setattr(score, 'threads', 2)
    raw = scores(model, ROWS if data is OBJECTS else data, raw_score=True)
    found = scores(model, ROWS if data is OBJECTS else data, pred_contrib=True)
    for asked in (1, 3, 57):
        status, answer = ask({'explain': asked, 'data': data})
        assert status == 200 and answer['result'] == ask({'data': data})[1]['result']
        for row, log_odds, own in zip(answer['explanations'], raw, found):
            told = {one['column']: one['log_odds'] for one in row['contributions']}
            assert row['base'] + sum(told.values()) + row['rest'] == pytest.approx(
                log_odds, abs=1e-9)
            right = dict(zip(COLUMNS, own))
            assert told == {name: right[name] for name in told} and row['base'] == own[-1]
            assert len(told) == asked and [abs(value) for value in told.values()] == sorted(
                map(abs, own[:-1]), reverse=True)[:asked]
        assert len(answer['explanations']) == len(raw)


def test_the_smoke_test_sends_enough_rows_for_several_threads():
    assert smoke_test.ROWS * smoke_test.TIMES >= score.ROWS_FOR_THREADS


@pytest.mark.parametrize('name', ['true', 'is_false'])
def test_a_column_whose_name_holds_a_word_of_json_is_no_trouble(name):
    body = json.dumps({'data': [{'a': 1, name: 2}]}).encode()
    values, count, asked = rows.parse(body, ['a', name], 9)
    assert (len(values), count, asked) == (16, 1, 0)


REFUSED = [
    (changed('ps_ind_03', text), 1, 'ps_ind_03', f'is {kind}, not a number') for kind, text in (
        ('text', '"1"'), ('null', 'null'), ('true or false', 'true'), ('a list', '[1]'),
        ('an object', '{"a": 1}'))
] + [
    (changed('ps_calc_20_bin', text), 1, 'ps_calc_20_bin', 'is not a finite number')
    for text in ('NaN', 'Infinity', '-Infinity', '1e999', '-1' + '0' * 400)
] + [
    (objects(without('ps_car_13')), 1, 'ps_car_13', 'is missing'),
    (objects(lambda row: dict(row, ps_car_99=1)), 1, 'ps_car_99', 'is not a column'),
    (objects(lambda row: dict(without('ps_car_13')(row), x=1)), 1, 'x', 'is not a column'),
    (OBJECTS_BODY.replace(b'"ps_reg_01":', b'"ps_reg_01": 1, "ps_reg_01":', 1), 0, 'ps_reg_01',
     'once'),
    (OBJECTS_BODY.replace(b'"ps_reg_01":', b'"ps_reg_02": 1, "x":', 1), 0, 'ps_reg_02', 'once'),
    ({'data': [ROWS[0], ROWS[1][:-1]]}, 1, None, 'has length 56, not 57'),
    ({'data': [ROWS[0] + [0]]}, 0, None, 'has length 58, not 57'),
    ({'data': [[]]}, 0, None, 'has length 0'),
    ({'data': [{}]}, 0, 'ps_ind_01', 'is missing'),
    ({'data': [ROWS[0], OBJECTS[1]]}, 1, None, 'is an object, row 0 is a list'),
    ({'data': ROWS[0]}, 0, None, 'is a number'),
    ({'data': ['x' * 57]}, 0, None, 'is text'),
    ({'data': [ROWS]}, 0, None, 'has length 3'),
    ({'data': [None]}, 0, None, 'is null'),
    ({'data': []}, None, None, 'holds no row'),
    ({'data': 'x' * 57}, None, None, '"data" is text'),
    ({'data': OBJECTS[0]}, None, None, '"data" is an object'),
    ({'data': None}, None, None, '"data" is null'),
    ({}, None, None, 'expected {"data"'),
    ({'Data': ROWS}, None, None, 'expected {"data"'),
    ({'data': ROWS, 'method': 'predict'}, None, None, 'expected {"data"'),
    (b'{"data": 1, ' + BODY[1:], None, None, '"data", "data"'),
    (b'{"explain": 1, "explain": 2, ' + BODY[1:], None, None, '"explain", "explain"'),
    ({'explain': 3}, None, None, 'expected {"data"'),
    ({'data': [[]], 'explain': 3}, 0, None, 'has length 0'),
    (ROWS, None, None, 'the body is a list'),
    (b'"data"', None, None, 'the body is text'),
] + [
    ({'data': ROWS, 'explain': wrong}, None, None, '"explain" is not a whole number from 1 to 57')
    for wrong in (0, 58, -1, 3.0, 1.5, True, False, None, '3', [3], {}, 10 ** 30)
] + [
    (body, None, None, 'no JSON in UTF-8') for body in (
        b'', b'{"data": [[1, 2', b'{"data": [[1,]]}', b'{"data": "\xff"}', BODY + b'{}',
        b'{"data": %s}' % (b'[' * 1500 + b']' * 1500), b'{"a":' * 3000 + b'1' + b'}' * 3000)
] + [
    (body, None, None, f'the body is {look}: send plain UTF-8') for look, body in [
        ('UTF-8 with a byte order mark', b'\xef\xbb\xbf{}'), ('GZIP', b'\x1f\x8b\b')] + [
        (name, '{}'.encode(name)) for name in ('UTF-16', 'UTF-16-LE', 'UTF-32-BE')]
]


@pytest.mark.parametrize('body, row, column, reason', REFUSED)
def test_what_is_not_of_the_contract_is_refused_by_row_and_column(model, body, row, column, reason):
    status, answer = ask(body)
    assert status == 400
    first = answer['errors'][0]
    assert (first['row'], first['column']) == (row, column)
    assert reason in first['reason'] and first['reason'] in answer['message']


@pytest.mark.parametrize('data', [[[None] * 57] * 50, [dict.fromkeys(map(str, range(50000)), 1)]],
                         ids=['many rows', 'many names, in time'])
def test_at_most_ten_problems_are_listed(model, data):
    status, answer = ask({'data': data})
    assert (status, len(answer['errors'])) == (400, 10)


def test_no_value_of_a_request_is_in_an_answer_or_in_the_log(model, capsys):
    for text in ('"hunter2"', '{"a": "hunter2"}', '["hunter2"]'):
        status, answer = ask(changed('ps_ind_03', text))
        assert status == 400 and 'hunter2' not in json.dumps(answer)
    ask({'data': [[0.123456789] * 57]})
    log = capsys.readouterr().out
    assert 'request_id' in log and 'hunter2' not in log and '123456789' not in log


@pytest.mark.parametrize('limit, body, reason', [
    ('max_rows', {'data': ROWS}, 'than 2 rows'), ('max_rows', {'data': OBJECTS}, 'than 2 rows'),
    ('max_rows', b'[' * 99, 'than 2 rows'), ('max_rows', b'\x1f\x8b' + b'[' * 99, 'GZIP'),
    ('max_rows', b'{"data": [[' + b'1,' * 115 + b'1]]}', 'than 2 rows'),
    ('max_body_bytes', {'data': ROWS}, 'than 2 bytes')])
def test_too_large_a_request_is_413(model, monkeypatch, limit, body, reason):
    monkeypatch.setitem(score.settings, limit, 2)
    status, answer = ask(body)
    assert status == 413 and reason in answer['message']


@pytest.mark.parametrize('environ', [{}, {'CONTENT_LENGTH': ''}], ids=['whole', 'in chunks'])
@pytest.mark.parametrize('body', [BODY, OBJECTS_BODY, BODY[:-1] + b', "explain": 57}'],
                         ids=['lists', 'objects', 'explained'])
def test_a_request_as_large_as_allowed_is_scored(model, monkeypatch, body, environ):
    monkeypatch.setitem(score.settings, 'max_rows', len(ROWS))
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        monkeypatch.setitem(score.settings, 'max_body_bytes', limit)
        assert ask(body, environ_overrides=environ)[0] == status


def test_a_refused_body_is_let_go_at_once():
    body = b'{"data": [["ab", 1]]}' + b' ' * 99
    gc.disable()
    try:
        before = sys.getrefcount(body)
        with contextlib.suppress(rows.Refused):
            rows.parse(body, COLUMNS, 10)
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()


@pytest.mark.parametrize('setting, threads', [
    ('1', 1), ('2,1', 2), ('99999', 4), ('0', 4), ('', 4), ('two', 4)])
def test_threads_are_what_is_set_at_most_the_cores(setting, threads):
    assert score.threads_wanted(setting, 4) == threads


@pytest.mark.parametrize('kind, coding, status', [
    ('application/json', '', 200), ('application/json; charset=utf-8', 'Identity', 200),
    (None, '', 200), ('application/vnd.api+json', '', 200), ('text/csv', '', 415),
    ('x/notjson', '', 415), ('multipart/form-data', '', 415),
    ('application/x-www-form-urlencoded', '', 415), ('application/json', 'gzip', 415),
    ('application/json', 'br', 415), ('application/json', 'identity, gzip', 415)])
def test_only_json_as_it_is_is_read(model, kind, coding, status):
    headers = {'Content-Encoding': coding} if coding else {}
    assert ask({'data': ROWS}, content_type=kind, headers=headers)[0] == status


@pytest.mark.parametrize('method, status', [('GET', 405), ('HEAD', 405), ('OPTIONS', 200)])
def test_other_methods_are_told_which_are_allowed(model, method, status, capsys):
    answer = run(method=method)
    assert answer.status_code == status
    assert set(answer.headers.getlist('Allow')) == {'OPTIONS', 'POST'}
    assert json.loads(capsys.readouterr().out)['status'] == status


def alarm(*_):
    """The server's alarm raises TimeoutError wherever score.py is."""
    raise TimeoutError


def test_a_body_that_does_not_arrive_in_time_is_408(model):
    late = SimpleNamespace(read=alarm)
    status, answer = ask({'data': ROWS}, environ_overrides={'wsgi.input': late})
    assert status == 408 and 'in time' in answer['message']


def test_a_request_that_takes_too_long_is_one_line_of_the_log_too(model, monkeypatch, capsys):
    monkeypatch.setattr(rows, 'parse', alarm)
    with pytest.raises(TimeoutError):
        ask({'data': ROWS})
    line = json.loads(capsys.readouterr().out)
    assert (line['request_id'], line['status']) == ('abc', 500)


def test_the_log_counts_scores_by_bin_and_tells_our_own_tests(
        model, monkeypatch, tmp_path, capsys):
    import numpy
    register(tmp_path, 3)
    folder, many = tmp_path / NAME / '3', make_rows(200, seed=11)
    # Some edges are scores: such a score belongs to the bin below.
    edges = sorted(set(scores(model, many)))[5:100:5]
    expected = collections.Counter(numpy.searchsorted(edges, scores(model, many)).tolist())
    monkeypatch.setenv('AZUREML_MODEL_DIR', str(folder))
    monkeypatch.setenv('AML_APP_ROOT', str(tmp_path / 'documents'))
    monkeypatch.setenv('SERVED_AS', 'a-name')
    for name in ('model', 'served', 'edges'):
        monkeypatch.setattr(score, name, None)

    def line(profile, **headers):
        (folder / 'model' / 'profile.json').write_text(profile)
        score.init()
        capsys.readouterr()
        assert ask({'data': many}, headers=headers)[0] == 200
        return json.loads(capsys.readouterr().out)

    good = json.dumps({'scores': {'edges': edges}})
    found = line(good)
    assert found['bins'] == {str(place): count for place, count in expected.items()}
    assert (found['service'], found['version']) == ('a-name', '3')
    assert 'test' not in found and line(good, **smoke_test.TEST)['test'] is True
    for bad in ('', '[]', '{"scores": {}}', '{"scores": {"edges": ["x"]}}'):
        assert 'bins' not in line(bad)


def test_one_row_is_scored_while_the_call_for_one_row_is_taken(model):
    with score.model.one_row_lock:
        assert ask({'data': ROWS[:1]}) == (200, {'result': scores(model, ROWS[:1])})


def test_the_start_logs_name_version_and_auc(model, monkeypatch, tmp_path, capsys):
    register(tmp_path, 3)
    monkeypatch.setenv('AZUREML_MODEL_DIR', str(tmp_path / NAME / '3') + '/')
    monkeypatch.setattr(score, 'model', None)
    monkeypatch.delenv('AML_APP_ROOT', raising=False)
    before = os.listdir(score.FOLDER)
    score.init()
    line = json.loads(capsys.readouterr().out)
    assert (line['model'], line['version'], line['auc'], line['columns']) == (NAME, '3', 0.64, 57)
    assert os.listdir(score.FOLDER) == before


def test_scores_from_many_threads_are_right(model):
    """Wrappers that shared a buffer between calls gave wrong scores here."""
    many = make_rows(64, seed=10)
    expected = scores(model, many)

    def right(index):
        packed = struct.pack('57d', *many[index % 64])
        return score.model.predict(packed, 1, 1) == [expected[index % 64]]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(64 * 50)))


def test_a_model_of_lightgbms_command_line_is_whole(tmp_path):
    path = tmp_path / 'model.txt'
    path.write_text(model_text(1, 20).partition('pandas_categorical')[0])
    assert booster.Booster(path).columns == COLUMNS


def test_values_of_another_size_are_refused(model):
    with pytest.raises(ValueError):
        score.model.predict(bytes(8 * 56), 1, 1)


@pytest.mark.parametrize('name', ['swagger2.json', 'swagger3.json', 'swagger3.1.json'])
def test_the_openapi_documents_agree_with_table_caps_and_code(model, name):
    document = json.loads((model.documents / name).read_text())
    schemas = document.get('definitions') or document['components']['schemas']
    assert schemas['RowAsObject']['required'] == COLUMNS
    assert list(schemas['RowAsObject']['properties']) == COLUMNS
    assert ', '.join(COLUMNS) in schemas['RowAsList']['description']
    assert schemas['RowAsList']['minItems'] == schemas['RowAsList']['maxItems'] == len(COLUMNS)
    text = json.dumps(document)
    assert f"\"maxItems\": {score.settings['max_rows']}" in text
    assert f"{score.settings['max_body_bytes']} bytes" in text
    post = document['paths']['/score']['post']
    if 'swagger' in document:
        examples = [schemas['Rows']['example'], {'data': [schemas['RowAsObject']['example']]}]
    else:
        media = post['requestBody']['content']['application/json']
        examples = [example['value'] for example in media['examples'].values()]
    answers = [ask(example) for example in examples]
    assert len(answers) == 2 and answers[0] == answers[1] and answers[0][0] == 200
    assert set(ask({})[1]) == set(schemas['Problem']['properties'])
    if document.get('openapi') == '3.1.0':
        errors = schemas['Problem']['properties']['errors']['items']['properties']
        assert [kind['type'] for kind in errors.values()] == [
            ['integer', 'null'], ['string', 'null'], 'string']
        assert 'nullable' not in text
