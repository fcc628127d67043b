import contextlib
import gc
import json
import os
import signal
import sys
import threading

import pytest
from _pytest.monkeypatch import MonkeyPatch

from served import COLUMNS, NAME, make_rows, register, scores

pytest.importorskip('azureml_inference_server_http')
pytest.importorskip('orjson')
flask = pytest.importorskip('flask')

import booster  # noqa: E402
import rows  # noqa: E402
import score  # noqa: E402

ROWS = make_rows(3, seed=7)
OBJECTS = [dict(reversed(list(zip(COLUMNS, row)))) for row in ROWS]
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


def ask(body, method='POST', content_type='application/json', **headers):
    """(status, answer) of score.run(); body: bytes, or what to write as JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with APP.test_request_context('/score', method=method, data=body, content_type=content_type,
                                  headers=headers):
        flask.g.request_id = 'abc'
        answer = score.run(flask.request)
    if isinstance(answer, dict):
        return 200, answer
    return answer.status_code, json.loads(answer.get_data(as_text=True) or '{}')


def changed(column, text):
    """A body of three rows whose second holds this JSON text in a column."""
    body = json.dumps({'data': [ROWS[0], [None] * len(COLUMNS), ROWS[2]]})
    values = [json.dumps(value) for value in ROWS[1]]
    values[COLUMNS.index(column)] = text
    return body.replace(json.dumps([None] * len(COLUMNS)), f"[{', '.join(values)}]").encode()


def objects(change):
    """A body of three rows as objects of which the second was passed through `change`."""
    return {'data': [OBJECTS[0], change(dict(OBJECTS[1])), OBJECTS[2]]}


def without(name):
    return lambda row: {key: value for key, value in row.items() if key != name}


def test_rows_as_lists_get_the_models_own_scores(model):
    assert ask({'data': ROWS}) == (200, {'result': scores(model, ROWS)})


def test_rows_as_objects_in_any_order_get_the_same_scores(model):
    assert ask({'data': OBJECTS}) == (200, {'result': scores(model, ROWS)})


def test_many_rows_on_several_threads_get_the_models_own_scores(model, monkeypatch):
    monkeypatch.setattr(score, 'threads', 2)
    many = make_rows(1000, seed=8)
    assert ask({'data': many}) == (200, {'result': scores(model, many)})


def test_extreme_finite_numbers_are_scored(model):
    many = make_rows(6, seed=9)
    for row, value in zip(many, (1.7976931348623157e308, -1e308, 5e-324, 2 ** 53 + 1,
                                 2 ** 64 + 1, -0.0)):
        row[:] = [value] * len(COLUMNS)
    assert ask({'data': many}) == (200, {'result': scores(model, many)})


@pytest.mark.parametrize('name', ['true', 'is_false'])
def test_a_column_whose_name_holds_a_word_of_json_is_no_trouble(name):
    values, count = rows.parse(json.dumps({'data': [{'a': 1, name: 2}]}).encode(), ['a', name], 9)
    assert (len(values), count) == (16, 1)


TEXTS = {'text': '"1"', 'null': 'null', 'true or false': 'true', 'a list': '[1]',
         'an object': '{"a": 1}'}
REFUSED = [
    (changed('ps_ind_03', text), 1, 'ps_ind_03', f'is {kind}, not a number')
    for kind, text in TEXTS.items()
] + [
    (changed('ps_calc_20_bin', text), 1, 'ps_calc_20_bin', 'is not a finite number')
    for text in ('NaN', 'Infinity', '-Infinity', '1e999', '-1' + '0' * 400)
] + [
    (objects(without('ps_car_13')), 1, 'ps_car_13', 'is missing'),
    (objects(lambda row: dict(row, ps_car_99=1)), 1, 'ps_car_99', 'is not a column'),
    (objects(lambda row: dict(without('ps_car_13')(row), x=1)), 1, 'x', 'is not a column'),
    (json.dumps({'data': OBJECTS}).encode().replace(b'"ps_reg_01":', b'"ps_reg_01": 1, '
                                                    b'"ps_reg_01":', 1), 0, 'ps_reg_01', 'once'),
    (json.dumps({'data': OBJECTS}).encode().replace(b'"ps_reg_01":', b'"ps_reg_02": 1, "x":', 1),
     0, 'ps_reg_02', 'once'),
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
    (b'{"data": 1, ' + json.dumps({'data': ROWS}).encode()[1:], None, None, '"data", "data"'),
    (ROWS, None, None, 'the body is a list'),
    (b'"data"', None, None, 'the body is text'),
    (b'', None, None, 'no JSON'),
    (b'{"data": [[1, 2', None, None, 'no JSON'),
    (b'{"data": [[1,]]}', None, None, 'no JSON'),
    (json.dumps({'data': ROWS}).encode() + b'{}', None, None, 'no JSON'),
    (b'\xef\xbb\xbf' + json.dumps({'data': ROWS}).encode(), None, None, 'no JSON in UTF-8'),
    (json.dumps({'data': ROWS}).encode('utf-16'), None, None, 'no JSON in UTF-8'),
    (b'{"data": "\xff"}', None, None, 'no JSON in UTF-8'),
    (b'{"data": %s}' % (b'[' * 1500 + b']' * 1500), None, None, 'no JSON in UTF-8'),
    (b'{"a":' * 3000 + b'1' + b'}' * 3000, None, None, 'no JSON in UTF-8'),
]


@pytest.mark.parametrize('body, row, column, reason', REFUSED)
def test_what_is_not_of_the_contract_is_refused_by_row_and_column(model, body, row, column, reason):
    status, answer = ask(body)
    assert status == 400
    first = answer['errors'][0]
    assert (first['row'], first['column']) == (row, column)
    assert reason in first['reason'] and first['reason'] in answer['message']


def test_at_most_ten_problems_are_listed(model):
    status, answer = ask({'data': [[None] * 57] * 50})
    assert (status, len(answer['errors'])) == (400, 10)


def test_an_object_of_very_many_names_is_refused_in_time(model):
    names = {f'n{number}': number for number in range(50000)}
    assert ask({'data': [names]})[0] == 400


def test_no_value_of_a_request_is_in_an_answer_or_in_the_log(model, capsys):
    for text in ('"hunter2"', '{"a": "hunter2"}', '["hunter2"]'):
        status, answer = ask(changed('ps_ind_03', text))
        assert status == 400 and 'hunter2' not in json.dumps(answer)
    ask({'data': [[0.123456789] * 57]})
    log = capsys.readouterr().out
    assert 'request_id' in log and 'hunter2' not in log and '123456789' not in log


@pytest.mark.parametrize('limit, value, body', [
    ('max_rows', 2, {'data': ROWS}), ('max_rows', 2, {'data': OBJECTS}),
    ('max_rows', 2, b'[' * 99), ('max_rows', 2, b'{"data": [[' + b'1,' * 114 + b'1]]}'),
    ('max_body_bytes', 99, {'data': ROWS})])
def test_too_large_a_request_is_413(model, monkeypatch, limit, value, body):
    monkeypatch.setitem(score.settings, limit, value)
    status, answer = ask(body)
    assert status == 413 and str(value) in answer['message']


@pytest.mark.parametrize('spare, status', [(0, 200), (-1, 413)])
def test_a_body_without_a_length_is_held_to_the_limit(model, monkeypatch, spare, status):
    body = json.dumps({'data': ROWS}).encode()
    monkeypatch.setitem(score.settings, 'max_body_bytes', len(body) + spare)
    with APP.test_request_context('/score', method='POST', data=body,
                                  environ_overrides={'CONTENT_LENGTH': ''}):
        flask.g.request_id = 'abc'
        answer = score.run(flask.request)
    assert getattr(answer, 'status_code', 200) == status


def test_a_refused_body_is_let_go_at_once(model):
    body, collecting = b'{"data": [["ab", 1]]}' + b' ' * 99, gc.isenabled()
    gc.disable()
    try:
        before = sys.getrefcount(body)
        with contextlib.suppress(rows.Refused):
            rows.parse(body, model.feature_name(), 10)
        assert sys.getrefcount(body) == before
    finally:
        if collecting:
            gc.enable()


@pytest.mark.parametrize('setting, threads', [
    ('1', 1), ('2,1', 2), ('99999', 4), ('0', 4), ('', 4), ('two', 4)])
def test_threads_are_what_is_set_at_most_the_cores(setting, threads):
    assert score.threads_wanted(setting, 4) == threads


def test_a_request_as_large_as_allowed_is_scored(model, monkeypatch):
    body = json.dumps({'data': OBJECTS}).encode()
    monkeypatch.setitem(score.settings, 'max_rows', 3)
    monkeypatch.setitem(score.settings, 'max_body_bytes', len(body))
    assert ask(body)[0] == ask({'data': ROWS})[0] == 200


@pytest.mark.parametrize('content_type, status', [
    ('application/json', 200), ('application/json; charset=utf-8', 200), (None, 200),
    ('application/vnd.api+json', 200), ('text/csv', 415), ('x/notjson', 415),
    ('multipart/form-data', 415),
    ('application/x-www-form-urlencoded', 415)])
def test_only_json_is_read(model, content_type, status):
    assert ask({'data': ROWS}, content_type=content_type)[0] == status


@pytest.mark.parametrize('method, status', [('GET', 405), ('HEAD', 405), ('OPTIONS', 200)])
def test_other_methods(model, method, status, capsys):
    with APP.test_request_context('/score', method=method):
        flask.g.request_id = 'abc'
        answer = score.run(flask.request)
    assert answer.status_code == status
    assert set(answer.headers.getlist('Allow')) == {'OPTIONS', 'POST'}
    assert json.loads(capsys.readouterr().out)['status'] == status


def test_a_request_is_one_line_of_json_in_the_log(model, capsys):
    ask({'data': ROWS}, traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')
    ask({'data': ROWS[0]})
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first['request_id'], first['rows'], first['status']) == ('abc', 3, 200)
    assert first['traceparent'].startswith('00-4bf9') and first['milliseconds'] > 0
    assert (second['rows'], second['status']) == (0, 400)


def test_a_request_that_takes_too_long_is_one_line_too(model, capsys):
    """The server's alarm raises TimeoutError wherever score.py is; the answer is then a 500."""
    def alarm(*_):
        raise TimeoutError
    body, before = json.dumps({'data': make_rows(2000, seed=6) * 5}), signal.signal(
        signal.SIGVTALRM, alarm)
    try:
        with APP.test_request_context('/score', method='POST', data=body,
                                      content_type='application/json'):
            flask.g.request_id = 'abc'
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.005)
            with pytest.raises(TimeoutError):
                score.run(flask.request)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    line = json.loads(capsys.readouterr().out)
    assert (line['request_id'], line['status']) == ('abc', 500)


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


def test_scores_from_many_threads_are_right(model, tmp_path):
    """Wrappers that shared a buffer between calls gave wrong scores here."""
    import struct
    many = make_rows(64, seed=10)
    expected, wrong = scores(model, many), []

    def work(start):
        for index in list(range(start, 64)) * 20:
            got = score.model.predict(struct.pack('57d', *many[index]), 1, 1)
            if got != [expected[index]]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize('damage, reason', [
    (lambda text: text[:len(text) // 2], 'not a whole'),
    (lambda text: 'hello', 'not a whole'),
    (lambda text: '', 'not a whole'),
    (lambda text: text.partition('end of parameters')[0], 'not a whole'),
    (lambda text: text.replace('objective=binary', 'objective=regression'), 'binary')])
def test_a_model_file_that_cannot_be_right_is_refused(tmp_path, damage, reason):
    register(tmp_path, 1)
    path = tmp_path / NAME / '1' / 'model' / 'model.txt'
    path.write_text(damage(path.read_text()))
    with pytest.raises(booster.ModelError, match=reason):
        booster.Booster(str(path))


def test_a_model_of_lightgbms_command_line_is_whole(tmp_path):
    register(tmp_path, 1)
    path = tmp_path / NAME / '1' / 'model' / 'model.txt'
    path.write_text(path.read_text().partition('pandas_categorical')[0])
    assert booster.Booster(str(path)).columns == COLUMNS


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


def test_what_may_be_null_is_a_list_of_types_in_openapi_3_1(model):
    text = (model.documents / 'swagger3.1.json').read_text()
    assert json.loads(text)['openapi'] == '3.1.0' and 'nullable' not in text
    problem = json.loads(text)['components']['schemas']['Problem']['properties']['errors']
    assert [kind['type'] for kind in problem['items']['properties'].values()] == [
        ['integer', 'null'], ['string', 'null'], 'string']
