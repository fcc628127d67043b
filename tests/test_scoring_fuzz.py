"""What no client should do, and much of what all do, against the real service.

    SCORING_REQUESTS=200000 python -m pytest tests/test_scoring_fuzz.py -m end_to_end -s
"""
import collections
import contextlib
import gzip
import json
import math
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench_scoring import exchange, http_request, is_right, megabytes
from served import COLUMNS, Service, make_rows, register, scores

pytestmark = pytest.mark.end_to_end
REQUESTS = int(os.environ.get('SCORING_REQUESTS', 4000))
CLIENTS = 16
MOST_GROWTH = 0.05
ANSWERS = {200, 400, 404, 405, 408, 411, 413, 414, 415, 431}
ODD_VALUES = (
    'NaN', 'Infinity', '-Infinity', '1e999', '-1e999', '1' + '0' * 400, '-' + '9' * 5000, 'true',
    'false', 'null', '"1"', '"NaN"', '""', '[]', '[1]', '{}', '{"a": 1}', '01', '1.', '.5', '+1',
    '0x10', '1e', '--1', '1_000', '1,5', "'1'", '"\\ud800"', '"\\u0000"', '\u0661', '1 2', '')
EXTREME_VALUES = ('1e308', '-1.7976931348623157e308', '5e-324', '1e-999', '-0', '-0.0', '1E+2',
                  '18446744073709551616', '9007199254740993', '0.1' + '0' * 300, '1' + '0' * 300)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    known = register(folder / 'registry', 1, rounds=60)
    known.registry = folder / 'registry'
    return known


def strict(body):
    """The rows (lists of floats) of a body that must be accepted, or None. Written after the
    contract, not after score.py."""
    def pairs(found):
        if len({name for name, _ in found}) < len(found):
            raise ValueError('repeated name')
        return dict(found)

    def constant(text):
        raise ValueError(text)

    try:
        payload = json.loads(body.decode('utf-8'), object_pairs_hook=pairs, parse_constant=constant)
        assert isinstance(payload, dict) and list(payload) == ['data']
        rows = payload['data']
        assert isinstance(rows, list) and rows
        if all(isinstance(row, dict) for row in rows):
            assert all(set(row) == set(COLUMNS) for row in rows)
            rows = [[row[name] for name in COLUMNS] for row in rows]
        assert all(isinstance(row, list) and len(row) == len(COLUMNS) for row in rows)
        assert all(type(value) in (int, float) for row in rows for value in row)
        rows = [[float(value) for value in row] for row in rows]
        assert all(math.isfinite(value) for row in rows for value in row)
        return rows
    except (ValueError, AssertionError, OverflowError, RecursionError):
        return None


def written(rng, rows):
    """Rows of JSON texts as a body, as lists or objects, in one of many ways to write JSON."""
    blank = rng.choice(['', ' ', '\n', ' \t\r\n '])

    def name(text):
        if rng.random() < 0.02:
            return '"' + ''.join(f'\\u{ord(letter):04x}' for letter in text) + '"'
        return f'"{text}"'

    if rng.random() < 0.5:
        texts = ['[' + (',' + blank).join(row) + ']' for row in rows]
    else:
        texts = []
        for row in rows:
            items = list(zip(COLUMNS, row))
            rng.shuffle(items)
            items = [name(key) + ':' + blank + value for key, value in items]
            chance = rng.random()
            if chance < 0.1:
                items.insert(rng.randrange(len(items)), rng.choice(items))
            elif chance < 0.15:
                items.pop()
            elif chance < 0.2:
                items[0] = f"\"{rng.choice(['', 'id', 'target', 'PS_IND_01', 'x' * 5000])}\": 1"
            texts.append('{' + (',' + blank).join(items) + '}')
    if rng.random() < 0.05:
        texts.insert(0, rng.choice(['[]', '{}', 'null', '1', '"row"', '[1]', '[[1]]']))
    key = '"data"' if rng.random() < 0.97 else rng.choice(['"Data"', '"d\\u0061ta"', '""', 'data'])
    body = '{' + blank + key + ':' + blank + '[' + ','.join(texts) + ']' + blank + '}'
    chance = rng.random()
    if chance < 0.01:
        body = body.replace('{', '{"data": 1,', 1)
    elif chance < 0.02:
        body = body[:-1] + ', "extra": {}}'
    elif chance < 0.03:
        body = '[' + body + ']'
    return body.encode('utf-8', 'surrogatepass')


def structured(rng):
    rows = [[json.dumps(value) for value in row]
            for row in make_rows(rng.choice([1, 1, 2, 5, 70]), rng.random())]
    for _ in range(rng.choice([0, 0, 1, 2])):
        row = rng.choice(rows)
        odd = ODD_VALUES if rng.random() < 0.5 else EXTREME_VALUES
        row[rng.randrange(len(row))] = rng.choice(odd)
    if rng.random() < 0.1:
        row = rng.choice(rows)
        row.append('1') if rng.random() < 0.5 else row.pop()
    return written(rng, rows)


def damaged(rng):
    """A good body with some bytes changed, lost or added, or cut off."""
    body = bytearray(structured(rng))
    for _ in range(rng.randint(1, 4)):
        if not body:
            break
        position = rng.randrange(len(body))
        chance = rng.random()
        if chance < 0.3:
            body[position] = rng.randrange(256)
        elif chance < 0.6:
            del body[position]
        elif chance < 0.9:
            body.insert(position, rng.choice(b'0123456789-+.eE,:[]{}"\\ \x00\xff'))
        else:
            del body[position + 1:]
    return bytes(body)


def encoded(rng):
    body = structured(rng)
    text = body.decode()
    return rng.choice([
        text.encode('utf-16'), text.encode('utf-16-le'), text.encode('utf-32'),
        b'\xef\xbb\xbf' + body, gzip.compress(body), body.replace(b'ps_', b'p\xc3\x28s_', 1),
        body.replace(b'ps_', 'ps\u0301_'.encode(), 1)])


def junk(rng):
    return bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 10, 300])))


def nested(rng):
    depth = rng.choice([2, 60, 900, 1100, 5000, 200000])
    opening, closing = rng.choice([('[', ']'), ('{"a":', '}'), ('{"data":', '}'),
                                   ('[{"data":[', ']}]')])
    text = opening * depth + rng.choice(['1', '', '{}']) + closing * rng.choice([depth, depth, 0])
    return rng.choice([text, f'{{"data":{text}}}', f'{{"data":[{text}]}}']).encode()


# What is odd in a request, and how. A length is what is added to that of the body.
ODD_HTTP = {
    'length': (1, 100, 10 ** 6, 10 ** 9, -1, -20),
    'method': (b'GET', b'HEAD', b'PUT', b'DELETE', b'PATCH', b'OPTIONS', b'BREW'),
    'path': (b'/score?a=b', b'/score?\xff', b'/score?%ff', b'/score?' + b'a' * 9000, b'/score/',
             b'/score%00'),
    'type': (b'text/plain', b'', b'application/x-www-form-urlencoded', b'\xff\xfe', b'a' * 9000,
             b'multipart/form-data; boundary=x', b'application/json; charset=utf-8'),
    'header': tuple(b'X-Request-Id: ' + value for value in (
        b'', b'a' * 100, b'a' * 101, b'\xff', b'"{}', b'a' * 70000)) + (
        b'Traceparent: ' + b'x' * 4000, b'Content-Length: 1', b': x', b'X', b'Host: y',
        b'Expect: 100-continue', b'Content-Encoding: gzip'),
}


def odd_http(rng):
    """(bytes to send, the body that the server may see)."""
    body = structured(rng)
    what = rng.choice(sorted(ODD_HTTP) + ['chunks', 'junk'])
    if what == 'chunks':
        size = rng.choice([b'%x' % len(body), b'%x' % (len(body) + 9), b'zz', b'-1', b''])
        return (b'POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n' + size +
                b'\r\n' + body + b'\r\n0\r\n\r\n'), body
    if what == 'junk':
        return junk(rng) + b'\r\n\r\n', b''
    value = rng.choice(ODD_HTTP[what])
    return post(body, **{what: value}), body[:value] if what == 'length' and value < 0 else body


def post(body, method=b'POST', path=b'/score', type=b'application/json', header=b'X: y', length=0):
    return (b'%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s\r\nContent-Length: %d\r\n\r\n'
            % (method, path, type, header, len(body) + length)) + body


def request(rng):
    """(kind, bytes to send, the body that the server may see)."""
    kind = rng.choice([structured] * 6 + [damaged] * 3 + [encoded, junk, nested, odd_http])
    if kind is odd_http:
        return ('http',) + odd_http(rng)
    body = kind(rng)
    return kind.__name__, post(body), body


def status_and_body(answer):
    """Of the last response; an interim 100 may come before it."""
    while answer.startswith(b'HTTP/1.1 100'):
        answer = answer.partition(b'\r\n\r\n')[2]
    head, _, body = answer.partition(b'\r\n\r\n')
    return (int(head.split(b' ')[1]) if head.startswith(b'HTTP/') else None), body


def in_threads(work):
    """What work(number) yields in each of CLIENTS threads, in one list."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(lambda number: list(work(number)), range(CLIENTS)), [])


def test_no_request_is_answered_with_a_fault_or_a_wrong_score(model, tmp_path):
    def client(number):
        """((kind, status), what is wrong or None) of each request."""
        rng = random.Random(number)
        for _ in range(REQUESTS // CLIENTS):
            kind, data, seen = request(rng)
            status, body = status_and_body(service.raw(data))
            problem = wrong(kind, status, body, strict(seen), data.startswith(b'OPTIONS'))
            yield (kind, status), problem and f'{kind}: {problem} for {data[:3000]!r}'

    def wrong(kind, status, body, rows, options):
        if status is None or status not in ANSWERS:
            return None if kind == 'http' and status is None else f'status {status}'
        if status == 200 and not options:
            return None if rows and json.loads(body)['result'] == scores(model, rows) else 'score'
        if kind != 'http' and (rows or not json.loads(body)['errors'][0]['reason']):
            return f'status {status}: {body[:200]}'
        return None

    with Service(model.registry, tmp_path / 'log.txt', SCORING_TIMEOUT_MS='5000') as service:
        answers = in_threads(client)
        assert service.score({'data': make_rows(1, 0)})[0] == 200
    total = collections.Counter(key for key, _ in answers)
    print(f'\n{len(answers)} requests, by kind and status:')
    for (kind, status), count in sorted(total.items(), key=str):
        print(f"  {kind:12} {status or 'none':5} {count:7}")
    assert [problem for _, problem in answers if problem] == []
    log = service.log.read_text(errors='replace')
    assert log.count('Booting worker') == 1 and 'Traceback' not in log
    assert all(total[kind, 400] for kind in ('structured', 'damaged', 'encoded', 'junk', 'nested'))
    assert total['structured', 200] > REQUESTS / 20


def test_different_rows_from_many_clients_and_a_stop_under_load(model, tmp_path):
    rows = make_rows(REQUESTS, seed=99)
    expected = scores(model, rows)
    cut = []

    def client(first, last):
        def work(number):
            for index in range(first + number, last, CLIENTS):
                status, body = exchange(service.port, http_request({'data': [rows[index]]}))
                if not is_right(status, body, [expected[index]]):
                    yield f'row {index}: {status} {body[:200]}'
        return work

    def until_stopped(number):
        """Whole answers until the service is gone; what came of an answer that broke off is cut."""
        answered, came = 0, b''
        for index in range(number, 10 ** 6, CLIENTS):
            with contextlib.suppress(OSError):
                came = service.raw(http_request({'data': [rows[index % REQUESTS]]}), end=False)
            if not came.endswith(b'\r\n\r\n{"result":[%r]}' % expected[index % REQUESTS]):
                break
            came = b''
            answered += 1
            if answered == 20 and number == 0:
                service.process.send_signal(signal.SIGTERM)
        if came:
            cut.append(came)
        return [answered]

    with Service(model.registry, tmp_path / 'log.txt') as service:
        warm = REQUESTS // 4
        problems = in_threads(client(0, warm))
        before = megabytes(service.process.pid, 'Rss')
        problems += in_threads(client(warm, REQUESTS))
        after = megabytes(service.process.pid, 'Rss')
        answered = in_threads(until_stopped)
        assert service.process.wait(60) == 0
    print(f'\n{REQUESTS} different rows from {CLIENTS} clients, {len(problems)} wrong or lost; '
          f'memory {before:.1f} MB after the first quarter, {after:.1f} MB at the end; '
          f'{sum(answered)} whole and {len(cut)} cut answers around SIGTERM')
    assert problems == [] and cut == []
    assert sum(answered) >= 20
    assert after < before * (1 + MOST_GROWTH)
    assert 'Traceback' not in service.log.read_text()
