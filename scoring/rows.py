"""The rows of a scoring request: read strictly and fast; explained patiently when refused."""
import collections
import json
import operator
import struct
from itertools import chain, islice

import orjson

PROBLEMS_SHOWN = 10
NAME_SHOWN = 80
EXPECTED = 'expected {"data": [row, ...]}, and "explain" if wanted'
KINDS = {str: 'text', bool: 'true or false', type(None): 'null', list: 'a list'}


class Refused(Exception):
    """A request that gets no score: `status` is its HTTP status, `problems` says what is wrong.

    problems: [(row, column, reason), ...], at least one; row and column are None where the
    reason concerns the whole body or the whole row. No reason holds a value of the request.
    """

    def __init__(self, status, problems):
        self.status = status
        self.problems = [(None, None, problems)] if isinstance(problems, str) else problems
        super().__init__(status, self.problems)


class Pairs(list):
    """A JSON object as (name, value) pairs, repeated names included."""


def parse(body, columns, max_rows):
    """(values, rows, asked): the rows as packed native float64, row after row; their number; of how
    many columns the contributions are asked for.

    body: bytes. Raises Refused for everything but {"data": rows} with 1 to `max_rows` rows, each
    a list of one number per column, or each an object with exactly the columns' names; beside it
    there may be "explain", a whole number from 1 to that of the columns. orjson refuses NaN,
    Infinity, numbers beyond a double, deep nesting and what is not UTF-8.
    """
    # Before parsing, since a body of brackets or of small values alone takes twenty times its size
    # in memory.
    if (body.count(b'[') + body.count(b'{') > max_rows + 2
            or body.count(b',') > max_rows * len(columns)):
        raise Refused(413, disguise(body) or
                      f'more lists, objects or values than {max_rows} rows have')
    try:
        payload = orjson.loads(body)
        asked = payload.pop('explain', None)
        (name, rows), = payload.items()
        lengths, names = set(map(len, rows)), 1 if asked is None else 2
        if set(map(type, rows)) == {dict}:
            names += len(columns) * len(rows)
            rows = list(map(operator.itemgetter(*columns), rows))
        packed = struct.pack(f'{len(columns) * len(rows)}d', *chain.from_iterable(rows))
        # struct refuses all but numbers, true and false.
        numbers = b'true' not in body and b'false' not in body or bool not in map(
            type, chain.from_iterable(rows))
        # Of a repeated name orjson keeps the last; the body then has more quotes than its names.
        unique = body.count(b'"') == 2 * names
        known = asked is None or type(asked) is int and 1 <= asked <= len(columns)
        if name == 'data' and lengths == {len(columns)} and numbers and unique and known:
            return packed, len(rows), asked or 0
        fault = 'it is not of the expected form'
    except (ValueError, AttributeError, TypeError, KeyError, struct.error) as error:
        # The error itself would keep this frame, and with it the body, until a collection.
        fault = str(error)
    raise Refused(400, explain(body, columns, fault))


def explain(body, columns, fault):
    """What is wrong with a body that parse() refuses, at most ten problems; see Refused.

    fault: what parse() met. The standard JSON parser also reads NaN, Infinity and numbers beyond
    a double, so that their row and column can be named.
    """
    unreadable = [(None, None, disguise(body) or f'the body is no JSON in UTF-8: {fault}')]
    try:
        payload = json.loads(body.decode(), object_pairs_hook=Pairs, parse_int=float)
    except (ValueError, RecursionError):
        return unreadable
    if not isinstance(payload, Pairs):
        return [(None, None, f'the body is {kind(payload)}; {EXPECTED}')]
    names = [name for name, _ in payload]
    if sorted(names) not in (['data'], ['data', 'explain']):
        shown = json.dumps([name[:NAME_SHOWN] for name in names[:PROBLEMS_SHOWN]])
        return [(None, None, f'the body has the names {shown}; {EXPECTED}')]
    rows = dict(payload)['data']
    if type(rows) is not list:
        return [(None, None, f'"data" is {kind(rows)}; {EXPECTED}')]
    if not rows:
        return [(None, None, '"data" holds no row')]
    found = list(islice(row_problems(rows, columns), PROBLEMS_SHOWN))
    if not found and 'explain' in names:
        return [(None, None, f'"explain" is not a whole number from 1 to {len(columns)}: of so '
                 'many columns each row gets the contributions')]
    return found or unreadable


def disguise(body):
    """What a body seems to be, by its first bytes, and what to do; None for plain UTF-8."""
    encoding = 'gzip' if body.startswith(b'\x1f\x8b') else json.detect_encoding(body)
    encoding = encoding.upper().replace('-SIG', ' with a byte order mark')
    return None if encoding == 'UTF-8' else f'the body is {encoding}: send plain UTF-8'


def row_problems(rows, columns):
    for number, row in enumerate(rows):
        if not isinstance(row, list):
            yield (number, None, f'is {kind(row)}; a row is a list of {len(columns)} numbers or an '
                   'object with a number for each column')
        elif isinstance(row, Pairs) != isinstance(rows[0], Pairs):
            yield number, None, f'is {kind(row)}, row 0 is {kind(rows[0])}'
        elif isinstance(row, Pairs):
            yield from name_problems(number, row, columns)
            yield from value_problems(number, row)
        elif len(row) != len(columns):
            yield number, None, f'has length {len(row)}, not {len(columns)}'
        else:
            yield from value_problems(number, zip(columns, row))


def name_problems(row, pairs, columns):
    known, counts = set(columns), collections.Counter(name for name, _ in pairs)
    for name, count in counts.items():
        if name not in known:
            yield row, name[:NAME_SHOWN], 'is not a column of the model'
        elif count > 1:
            yield row, name, 'is there more than once'
    yield from ((row, name, 'is missing') for name in columns if name not in counts)


def value_problems(row, pairs):
    for name, value in pairs:
        if type(value) is not float:
            yield row, name[:NAME_SHOWN], f'is {kind(value)}, not a number'
        elif value - value != 0:
            yield row, name[:NAME_SHOWN], 'is not a finite number'


def kind(value):
    """What a JSON value is, never the value itself: it is somebody's data."""
    return 'an object' if isinstance(value, Pairs) else KINDS.get(type(value), 'a number')
