"""What no client should do, and much of what all do, against the real service.

    SCORING_REQUESTS=200000 python -m pytest tests/test_scoring_fuzz.py -m end_to_end -s
"""
import collections
import contextlib
import itertools
import json
import math
import os
import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench_scoring import http_request, megabytes
from served import COLUMNS, Service, make_rows, register, scores

pytestmark = pytest.mark.end_to_end
REQUESTS = int(os.environ.get('SCORING_REQUESTS', 4000))
CLIENTS = 16
MOST_GROWTH = 0.05
ANSWERS = {200, 400, 404, 405, 408, 411, 413, 414, 415, 431}
STYLES = ({}, {'separators': (',', ':')}, {'indent': ' \t\r'})
ENCODINGS = ('utf-16', 'utf-16-le', 'utf-32', 'utf-8-sig')
# Any byte as a character that 'surrogateescape' writes as that byte.
BYTES = bytes(range(256)).decode('utf-8', 'surrogateescape')
JUNK = [''.join(random.Random(length).choices(BYTES, k=length)) for length in range(200)]
NESTED = [opening * depth + '1' + closing * closed for opening, closing in (
    ('[', ']'), ('{"a":', '}'), ('{"data":', '}'), ('[{"data":[', ']}]'))
    for depth in (1, 2, 60, 900, 1100, 5000, 100000) for closed in (depth, 0)]
NUMBER = r'(?<=[\[\s,:])-?\d[\d.]*(?=[\]\s,}])'
# (what is sought in a good body, what may take its place), by the kind of body that it makes.
CHANGES = {
    'structured': (
        (NUMBER, (
            'NaN', 'Infinity', '-Infinity', '1e999', '-1e999', '1' + '0' * 400, '-' + '9' * 5000,
            'true', 'false', 'null', '"1"', '"NaN"', '""', '[]', '[1]', '{}', '{"a": 1}', '01',
            '1.', '.5', '+1', '0x10', '1e', '--1', '1_000', '1,5', "'1'", '"\\ud800"',
            '"\\u0000"', '\u0661', '1 2', '')),
        (NUMBER, (
            '1e308', '-1.7976931348623157e308', '5e-324', '1e-999', '-0', '-0.0', '1E+2',
            '18446744073709551616', '9007199254740993', '0.1' + '0' * 300, '1' + '0' * 300)),
        (r'("\w+":\s*)?' + NUMBER + r',\s*', ('', '1, 1, ', '"id": 1, ', '"ps_ind_01": 1, ')),
        ('(?="ps_)', ('"ps_ind_01": 1, ', '"target": 1, ', '"": 1, ', f'"{"x" * 5000}": 1, ')),
        ('"ps_', ('"\\u0070s_', '"ps\\u005f', '"PS_', '"ps\u0301_')),
        (r'\[(?=\s*[\[{])', ('[[],', '[{},', '[null,', '[1,', '["row",', '[[1],', '[[[1]],')),
        ('"data"', ('"Data"', '"d\\u0061ta"', '""', 'data', '"data": 1, "data"', '"x": 1, "data"')),
        (r'\A.', [f'{{"explain": {value}, ' for value in (
            1, 57, 0, 58, -1, 3.0, '1e1', 'true', 'null', '"3"', '[3]', '{}', '1' + '0' * 400,
            '3, "explain": 3', '[' * 900)] + ['{"Explain": 3, ', '{"expl\\u0061in": 3, ']),
        (r'\Z', (' \t\r\n', '{}', '\0', ']'))),
    'damaged': (('.', BYTES), ('.', ('',)), ('', '0123-+.eE,:[]{}"\\ \0\udcff'), ('.+', ('',))),
    'junk': ((r'\A.*', JUNK + list(BYTES)),),
    'nested': ((NUMBER, NESTED), (r'\[.*\]', NESTED), (r'\A.*', NESTED)),
}
# What is odd in a request, and how. A length is what is added to that of the body, a chunk what
# stands before its size.
ODD_HTTP = {
    'length': (1, 100, 10 ** 6, 10 ** 9, -1, -20),
    'chunk': (b'', b'00', b'9', b'zz', b'-', b'\r\n'),
    'method': (b'GET', b'HEAD', b'PUT', b'DELETE', b'PATCH', b'OPTIONS', b'BREW', b'', b'\x16\x03',
               b'\0\xff\r\n\r\n', b'a' * 9000),
    'path': (b'/score?a=b', b'/score?\xff', b'/score?%ff', b'/score?' + b'a' * 9000, b'/score/',
             b'/score%00'),
    'type': (b'text/plain', b'', b'application/x-www-form-urlencoded', b'\xff\xfe', b'a' * 9000,
             b'multipart/form-data; boundary=x', b'application/json; charset=utf-8'),
    'header': tuple(b'X-Request-Id: ' + value for value in (
        b'', b'a' * 100, b'a' * 101, b'\xff', b'"{}', b'a' * 70000)) + (
        b'Traceparent: ' + b'x' * 4000, b'Content-Length: 1', b': x', b'X', b'Host: y',
        b'Expect: 100-continue', b'Content-Encoding: gzip'),
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    registry = tmp_path_factory.mktemp('registry')
    known = register(registry, 1, rounds=60)
    known.registry = registry
    return known


def strict(body):
    """The rows (lists of floats) of a body that must be accepted, or None, and of how many columns
    it asks the contributions. Written after the contract, not after score.py."""
    def pairs(found):
        if len({name for name, _ in found}) < len(found):
            raise ValueError('repeated name')
        return dict(found)

    def constant(text):
        raise ValueError(text)

    try:
        payload = json.loads(body.decode('utf-8'), object_pairs_hook=pairs, parse_constant=constant)
        assert isinstance(payload, dict)
        asked = payload.pop('explain', 0) if payload.get('explain', 1) != 0 else 58
        assert list(payload) == ['data'] and type(asked) is int and 0 <= asked <= 57
        rows = payload['data']
        assert isinstance(rows, list) and rows
        if all(isinstance(row, dict) for row in rows):
            assert all(set(row) == set(COLUMNS) for row in rows)
            rows = [[row[name] for name in COLUMNS] for row in rows]
        assert all(isinstance(row, list) and len(row) == len(COLUMNS) for row in rows)
        assert all(type(value) in (int, float) for row in rows for value in row)
        rows = [[float(value) for value in row] for row in rows]
        assert all(math.isfinite(value) for row in rows for value in row)
        return rows, asked
    except (ValueError, AssertionError, OverflowError, RecursionError):
        return None, None


def make_body(rng, kind):
    """Good rows, as lists or objects, with some changes and those of the kind."""
    data = make_rows(rng.choice([1, 1, 2, 5, 70]), rng.random())
    if rng.random() < 0.5:
        data = [dict(rng.sample(list(zip(COLUMNS, row)), len(row))) for row in data]
    text = json.dumps({'data': data}, **rng.choice(STYLES))
    changes = rng.choices(CHANGES['structured'], k=rng.choice([0, 0, 1, 1, 2]))
    if kind in ('damaged', 'junk', 'nested'):
        changes += rng.choices(CHANGES[kind], k=rng.randint(1, 3) if kind == 'damaged' else 1)
    for pattern, replacements in changes:
        wanted = re.compile(pattern, re.S)
        found = wanted.search(text, rng.randint(0, len(text))) or wanted.search(text)
        if found:
            text = text[:found.start()] + rng.choice(replacements) + text[found.end():]
    return text.encode(rng.choice(ENCODINGS) if kind == 'encoded' else 'utf-8', 'surrogateescape')


def post(body, method=b'POST', path=b'/score', type=b'application/json', header=b'X: y', length=0,
         chunk=None):
    framing = b'Content-Length: %d' % (len(body) + length)
    if chunk is not None:
        framing = b'Transfer-Encoding: chunked'
        body = chunk + b'%x\r\n%s\r\n0\r\n\r\n' % (len(body), body)
    return b'%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s\r\n%s\r\n\r\n%s' % (
        method, path, type, header, framing, body)


def make_request(rng):
    """(kind, bytes to send, the body that the server may see)."""
    kind = rng.choice(['structured'] * 6 + ['damaged'] * 3 + ['encoded', 'junk', 'nested', 'http'])
    body = make_body(rng, kind)
    if kind != 'http':
        return kind, post(body), body
    what = rng.choice(sorted(ODD_HTTP))
    value = rng.choice(ODD_HTTP[what])
    return kind, post(body, **{what: value}), body[:value] if value in (-1, -20) else body


def status_and_body(answer):
    """Of the last response; an interim 100 may come before it."""
    while answer.startswith(b'HTTP/1.1 100'):
        answer = answer.partition(b'\r\n\r\n')[2]
    head, _, body = answer.partition(b'\r\n\r\n')
    return (int(head.split(b' ')[1]) if head.startswith(b'HTTP/') else None), body


def test_no_request_is_answered_with_a_fault_or_a_wrong_score(model, tmp_path):
    def outcome(number):
        """((kind, status), what is wrong or None) of a request."""
        kind, data, seen = make_request(random.Random(number))
        status, body = status_and_body(service.raw(data))
        rows, asked = strict(seen)
        if status == 200 and not data.startswith(b'OPTIONS'):
            answer = json.loads(body)
            right = rows and answer['result'] == scores(model, rows) and asked == (
                len(answer['explanations'][-1]['contributions']) if 'explanations' in answer else 0)
        elif kind == 'http':
            right = status is None or status in ANSWERS
        else:
            right = status in ANSWERS and not rows and json.loads(body)['errors'][0]['reason']
        return (kind, status), None if right else f'{kind}: {status} {body[:200]}, {data[:3000]!r}'

    with Service(model.registry, tmp_path / 'log.txt', SCORING_TIMEOUT_MS='5000') as service:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(outcome, range(REQUESTS)))
        assert service.score({'data': make_rows(1, 0)})[0] == 200
    total = collections.Counter(key for key, _ in answers)
    print(*sorted(total.items(), key=str), sep='\n')
    assert [problem for _, problem in answers if problem] == []
    log = service.log.read_text(errors='replace')
    assert log.count('Booting worker') == 1 and 'Traceback' not in log
    assert all(total[kind, 400] for kind in list(CHANGES) + ['encoded'])
    assert total['structured', 200] > REQUESTS / 20


def test_different_rows_from_many_clients_and_a_stop_under_load(model, tmp_path):
    rows = make_rows(REQUESTS, seed=99)
    expected = scores(model, rows)

    def answer(index):
        """'right', or what came of an answer that is not: nothing of one that was lost."""
        came = b''
        with contextlib.suppress(OSError):
            came = service.raw(http_request({'data': [rows[index]]}), end=False)
        return 'right' if came.endswith(b'\r\n\r\n{"result":[%r]}' % expected[index]) else came

    with Service(model.registry, tmp_path / 'log.txt') as service:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(answer, range(REQUESTS // 4)))
            before = megabytes(service.process.pid, 'Rss')
            answers += pool.map(answer, range(REQUESTS // 4, REQUESTS))
            after = megabytes(service.process.pid, 'Rss')
            around = pool.map(answer, range(REQUESTS))
            last = list(itertools.islice(around, 20))
            service.process.send_signal(signal.SIGTERM)
            last += around
        assert service.process.wait(60) == 0
    print(f"{before:.1f} then {after:.1f} MB; {last.count('right')} right answers around SIGTERM")
    assert set(answers) == {'right'}
    # The rest found nobody; no answer broke off.
    assert set(last) == {'right', b''} and last.count('right') >= 20
    assert after < before * (1 + MOST_GROWTH)
    assert 'Traceback' not in service.log.read_text()
