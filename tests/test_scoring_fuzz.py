"""What no client should do, and much of what all do, against the real service.

    SCORING_REQUESTS=200000 python -m pytest tests/test_scoring_fuzz.py -m end_to_end -s
"""
import collections
import gzip
import json
import math
import os
import random
import signal
import socket
import threading

import pytest

from bench_scoring import exchange, family, megabytes
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
    return rng.choice([
        lambda: body.decode().encode('utf-16'), lambda: body.decode().encode('utf-16-le'),
        lambda: body.decode().encode('utf-32'), lambda: b'\xef\xbb\xbf' + body,
        lambda: gzip.compress(body), lambda: body.replace(b'ps_', b'p\xc3\x28s_', 1),
        lambda: body.replace(b'ps_', 'ps\u0301_'.encode(), 1)])()


def junk(rng):
    return bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 10, 300])))


def nested(rng):
    depth = rng.choice([2, 60, 900, 1100, 5000, 200000])
    opening, closing = rng.choice([('[', ']'), ('{"a":', '}'), ('{"data":', '}'),
                                   ('[{"data":[', ']}]')])
    text = opening * depth + rng.choice(['1', '', '{}']) + closing * rng.choice([depth, depth, 0])
    return rng.choice([text, f'{{"data":{text}}}', f'{{"data":[{text}]}}']).encode()


def request(rng):
    """(kind, bytes to send, the body that the server may see)."""
    kind = rng.choice(['structured'] * 6 + ['damaged'] * 3 + ['encoded', 'junk', 'nested', 'http'])
    body = {'structured': structured, 'damaged': damaged, 'encoded': encoded, 'junk': junk,
            'nested': nested, 'http': structured}[kind](rng)
    method, path, content_type, headers = b'POST', b'/score', b'application/json', b''
    length, seen, odd = len(body), body, rng.randrange(9) if kind == 'http' else None
    if odd == 0:
        length += rng.choice([1, 100, 10 ** 6, 10 ** 9])
    elif odd == 1:
        length = rng.randrange(length)
        seen = body[:length]
    elif odd == 2:
        method = rng.choice([b'GET', b'HEAD', b'PUT', b'DELETE', b'PATCH', b'OPTIONS', b'BREW'])
    elif odd == 3:
        content_type = rng.choice([b'text/plain', b'', b'application/x-www-form-urlencoded',
                                   b'multipart/form-data; boundary=x', b'\xff\xfe', b'a' * 9000,
                                   b'application/json; charset=utf-8'])
    elif odd == 4:
        path += rng.choice([b'?a=b', b'?\xff', b'?%ff', b'?' + b'a' * 9000, b'/', b'%00'])
    elif odd == 5:
        size = rng.choice([b'%x' % len(body), b'%x' % (len(body) + 9), b'zz', b'-1', b''])
        return kind, (b'POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n' +
                      size + b'\r\n' + body + b'\r\n0\r\n\r\n'), body
    elif odd == 6:
        headers = b'X-Request-Id: %s\r\n' % rng.choice([
            b'', b'a' * 100, b'a' * 101, b'\xff', b'"{}', b'a' * 70000])
    elif odd == 7:
        headers = rng.choice([
            b'Traceparent: ' + b'x' * 4000, b'Content-Length: 1', b': x', b'X', b'Host: y',
            b'Expect: 100-continue', b'Content-Encoding: gzip']) + b'\r\n'
    elif odd == 8:
        return kind, junk(rng) + b'\r\n\r\n', b''
    head = (b'%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n'
            % (method, path, content_type, headers, length))
    return kind, head + body, seen


def status_and_body(answer):
    """Of the last response; an interim 100 may come before it."""
    while answer.startswith(b'HTTP/1.1 100'):
        answer = answer.partition(b'\r\n\r\n')[2]
    head, _, body = answer.partition(b'\r\n\r\n')
    return (int(head.split(b' ')[1]) if head.startswith(b'HTTP/') else None), body


def in_threads(work, count):
    """work(number) in `count` threads; the problems that they yielded or raised, in one list."""
    problems = []

    def run(number):
        try:
            problems.extend(work(number))
        except Exception as error:
            problems.append(f'client {number}: {error!r}')

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


def test_no_request_is_answered_with_a_fault_or_a_wrong_score(model, tmp_path):
    counts = [collections.Counter() for _ in range(CLIENTS)]

    def client(number):
        rng = random.Random(number)
        for _ in range(REQUESTS // CLIENTS):
            kind, data, seen = request(rng)
            status, body = status_and_body(service.raw(data))
            counts[number][kind, status] += 1
            problem = wrong(kind, status, body, strict(seen), data.startswith(b'OPTIONS'))
            if problem:
                yield f'{kind}: {problem} for {data[:3000]!r}'

    def wrong(kind, status, body, rows, options):
        if status is None or status not in ANSWERS:
            return None if kind == 'http' and status is None else f'status {status}'
        if status == 200 and not options:
            return None if rows and json.loads(body)['result'] == scores(model, rows) else 'score'
        if kind != 'http' and (rows or not json.loads(body)['errors'][0]['reason']):
            return f'status {status}: {body[:200]}'
        return None

    with Service(model.registry, tmp_path / 'log.txt', SCORING_TIMEOUT_MS='5000') as service:
        problems = in_threads(client, CLIENTS)
        assert service.score({'data': make_rows(1, 0)})[0] == 200
    total = sum(counts, collections.Counter())
    assert sum(total.values()) == REQUESTS // CLIENTS * CLIENTS or problems
    print(f'\n{sum(total.values())} requests, by kind and status:')
    for (kind, status), count in sorted(total.items(), key=str):
        print(f"  {kind:12} {status or 'none':5} {int(count):7}")
    assert problems == []
    log = service.log.read_text(errors='replace')
    assert log.count('Booting worker') == 1 and 'Traceback' not in log
    assert all(total[kind, 400] for kind in ('structured', 'damaged', 'encoded', 'junk', 'nested'))
    assert total['structured', 200] > REQUESTS / 20


def post(row):
    body = json.dumps({'data': [row]}).encode()
    return (b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
            b'Content-Length: %d\r\n\r\n' % len(body)) + body


def test_different_rows_from_many_clients_and_a_stop_under_load(model, tmp_path):
    rows = make_rows(REQUESTS, seed=99)
    expected = scores(model, rows)
    cut = []

    def client(first, last):
        def work(number):
            for index in range(first + number, last, CLIENTS):
                status, body = exchange(service.port, post(rows[index]), 60)
                if status != 200 or json.loads(body)['result'] != [expected[index]]:
                    yield f'row {index}: {status} {body[:200]}'
        return work

    def until_stopped(number):
        """Whole answers until the service is gone; what came of an answer that broke off is cut."""
        answered = 0
        for index in range(number, 10 ** 6, CLIENTS):
            came = b''
            try:
                with socket.create_connection(('127.0.0.1', service.port), 60) as connection:
                    connection.sendall(post(rows[index % REQUESTS]))
                    while True:
                        piece = connection.recv(1 << 16)
                        if not piece:
                            break
                        came += piece
            except OSError:
                piece = None
            right = b'{"result":%s}' % json.dumps([expected[index % REQUESTS]]).encode()
            if came.endswith(b'\r\n\r\n' + right):
                answered += 1
                if answered == 20 and number == 0:
                    service.process.send_signal(signal.SIGTERM)
            else:
                if came:
                    cut.append(came)
                break
        return [answered]

    with Service(model.registry, tmp_path / 'log.txt') as service:
        warm = REQUESTS // 4
        problems = in_threads(client(0, warm), CLIENTS)
        before = megabytes(family(service.process.pid), 'Rss')
        problems += in_threads(client(warm, REQUESTS), CLIENTS)
        after = megabytes(family(service.process.pid), 'Rss')
        answered = in_threads(until_stopped, CLIENTS)
        assert service.process.wait(60) == 0
    print(f'\n{REQUESTS} different rows from {CLIENTS} clients, {len(problems)} wrong or lost; '
          f'memory {before:.1f} MB after the first quarter, {after:.1f} MB at the end; '
          f'{sum(answered)} whole and {len(cut)} cut answers around SIGTERM')
    assert problems == [] and cut == []
    assert sum(answered) >= 20
    assert after < before * (1 + MOST_GROWTH)
    assert 'Traceback' not in service.log.read_text()
