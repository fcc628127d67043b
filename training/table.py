"""Read and check the safe driver table; the one place that knows its columns.

    python training/table.py --data outputs/data/safe_driver.csv
"""
import argparse
import collections
import concurrent.futures
import csv
import gzip
import io
import json
import logging
import os
import sys
import zlib

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'columns.json')) as known:
    published = json.load(known)
KNOWN = published['columns']
CHOICES, CORRELATIONS = published['choices'], published['correlations']
COLUMNS = list(KNOWN)
FEATURES = COLUMNS[2:]
MISSING = -1
TRAINING, EARLY_STOPPING, HOLD_OUT = 0, 1, 2
PART_NAMES = ('training', 'early-stopping', 'hold-out')
# Percent of the ids below which a part ends: 64 % training, 16 % early stopping, 20 % hold-out.
PART_ENDS = (64, 80)
# Fewer claims or non-claims than this in a part, and its AUC says nothing.
LEAST_PER_PART = 5
BLOCK_BYTES = 4 << 20
LONGEST_LINE_BYTES = 1 << 20
LARGEST_FLOAT32 = 3.4e38
EMPTY_WORDS = {'', 'nan', 'na', 'n/a', '#n/a', '<na>', 'null', 'none'}

log = logging.getLogger('table')

Block = collections.namedtuple('Block', 'data line')      # whole lines; number of the first
Parsed = collections.namedtuple('Parsed', 'columns lines problems')


class TableError(ValueError):
    """The table cannot be used; the text lists everything that is wrong with it."""


class Problems(collections.OrderedDict):
    """Kinds of problems, each with its count, its first line and its first value."""

    def add(self, text, count=1, line=None, value=None):
        before = self.get(text)
        self[text] = (before[0] + count,) + before[1:] if before else (count, line, value)

    def merge(self, other):
        for text, (count, line, value) in other.items():
            self.add(text, count, line, value)

    def sentences(self):
        for text, (count, line, value) in self.items():
            where = '' if line is None else ', first in line {}'.format(line)
            what = '' if value is None else ' ({})'.format(value)
            yield text.format(count='{:,}'.format(count), s='' if count == 1 else 's') + where + what


def parts(ids):
    """Part of each row, from its id alone, so that a row keeps its part when the table grows.

    ids: integers, shape (rows,). Returns uint8 of the same shape: TRAINING (64 % of the ids),
    EARLY_STOPPING (16 %) or HOLD_OUT (20 %). The hash is the output function of SplitMix64
    (Steele, Lea, Flood, OOPSLA 2014, doi 10.1145/2660193.2660195), the same on every machine.
    """
    import numpy
    mixed = numpy.array(ids, dtype=numpy.int64).view(numpy.uint64)
    mixed += numpy.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed ^= mixed >> numpy.uint64(shift)
        mixed *= numpy.uint64(factor)
    percent = ((mixed >> numpy.uint64(32)) * numpy.uint64(100)) >> numpy.uint64(32)
    return numpy.digitize(percent.astype(numpy.uint8), PART_ENDS).astype(numpy.uint8)


def read_table(path):
    """The table in the file `path`, CSV or CSV in gzip, checked, columns in standard order.

    Returns a pandas.DataFrame: id int32, target and the other whole-number columns int8 (a column
    with larger values gets the type that holds them), the ten fractional ones float32.
    LightGBM puts its thresholds midway between neighbouring values and rounding to float32 keeps
    their order, so a model scores a number the same whether it comes as float32 or as a double.
    Raises TableError, which lists all problems at once. Values that the published table does not
    have are logged as a warning.
    """
    import pandas
    problems = Problems()
    try:
        with _open(path) as stream:
            header = _read_header(stream, problems)
            results = list(_in_parallel(lambda block: _parse(block, header),
                                        _blocks(stream, problems))) if header else []
    except OSError as error:
        raise TableError('{}: {}'.format(path, _reason(error)))
    for result in results:
        problems.merge(result.problems)
    columns = _join(results)
    if header and columns:
        _check_rows(columns, results, problems)
    elif header:
        problems.add('no rows below the header')
    if problems:
        sentences = list(problems.sentences())
        raise TableError('{} cannot be used, {}:\n- {}'.format(
            path, '1 problem' if len(sentences) == 1 else '{} problems'.format(len(sentences)),
            '\n- '.join(sentences)))
    for sentence in _unusual(columns):
        log.warning('%s: %s', path, sentence)
    return pandas.DataFrame({name: columns[name] for name in COLUMNS}, columns=COLUMNS)


def _reason(error):
    if isinstance(error, FileNotFoundError):
        return 'there is no such file'
    if isinstance(error, IsADirectoryError):
        return 'is a directory; name the CSV file in it'
    return 'cannot be read: {}'.format(error.strerror or error)


def _open(path):
    stream = open(path, 'rb')
    start = stream.read(2)
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if start == b'\x1f\x8b' else stream


def _read_header(stream, problems):
    """Names in the first line, [] where they are of no use."""
    try:
        line = stream.readline(LONGEST_LINE_BYTES)
    except (EOFError, zlib.error) as error:
        problems.add('the gzip file is truncated or damaged: {}'.format(error))
        return []
    if not line.strip():
        problems.add('the file is empty' if not line else 'the first line is empty; '
                     'it must hold the column names')
        return []
    if line.startswith(b'PK\x03\x04'):
        problems.add('this is a zip archive, not a CSV file; unpack it first')
        return []
    try:
        names = next(csv.reader([line.decode('utf-8-sig').replace('\0', '')]))
    except UnicodeDecodeError:
        problems.add('the first line is not UTF-8 text; is this a CSV file?')
        return []
    names = [name.strip() for name in names]
    missing = [name for name in COLUMNS if name not in names]
    if len(missing) == len(COLUMNS):
        problems.add('none of the {} columns is in the first line; it must hold the names {}, '
                     'separated by commas, and begins with {!r}'.format(
                         len(COLUMNS), ', '.join(COLUMNS[:4]) + ' ...', ','.join(names)[:60]))
        return []
    for text, found in (
            ('missing columns: {}', missing),
            ('unknown columns: {}', [repr(name) for name in names if name not in KNOWN]),
            ('repeated columns: {}', [n for n, k in collections.Counter(names).items() if k > 1])):
        if found:
            problems.add(text.format(', '.join(found)).replace('{', '{{').replace('}', '}}'))
    return names


def _blocks(stream, problems):
    """Cuts what follows the header into blocks of whole lines."""
    line, rest = 2, b''
    while True:
        try:
            data = stream.read(BLOCK_BYTES)
        except (EOFError, zlib.error, OSError) as error:
            problems.add('the file is truncated or damaged: {}'.format(error))
            data = b''
        end = data.rfind(b'\n') + 1
        if data and not end:
            rest += data
            if len(rest) > LONGEST_LINE_BYTES + BLOCK_BYTES:
                problems.add('a line is longer than 1 MB', line=line)
                return
            continue
        block, rest = rest + data[:end], data[end:]
        if not data:
            block, rest = block.rstrip(), b''
        if block:
            yield Block(block, line)
            line += block.count(b'\n')
        if not data:
            return


def _in_parallel(function, items):
    """function(item) in order; pandas parses without the interpreter's lock, so threads help."""
    workers = min(os.cpu_count() or 1, 4)
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _parse(block, header):
    return _parse_fast(block, header) or _parse_with_care(block, header)


def _parse_fast(block, header):
    """The block's columns, or None where anything at all is unusual."""
    import pandas
    data, rows = block.data, block.data.rstrip(b'\n').count(b'\n') + 1
    if b'\0' in data or b'"' in data or data.count(b',') != rows * (len(header) - 1):
        return None
    types = [{'float32': 'float64'}.get(KNOWN.get(name, {}).get('type'), 'int64' if name in KNOWN
             else 'object') for name in header]
    try:
        frame = pandas.read_csv(
            io.BytesIO(data), header=None, names=range(len(header)), na_filter=False,
            dtype=dict(enumerate(types)), float_precision='high', index_col=False, engine='c')
    except (ValueError, OverflowError):
        return None
    if len(frame) != rows:
        return None
    columns = {}
    for position, name in enumerate(header):
        if name in KNOWN and name not in columns:
            values = frame[position].values
            low, high = values.min(), values.max()
            if types[position] == 'float64':
                # Written so that NaN fails as well.
                if not (low > -LARGEST_FLOAT32 and high < LARGEST_FLOAT32):
                    return None
            columns[name] = _compact(name, values)
    return Parsed(columns, range(block.line, block.line + rows), Problems())


def _compact(name, values):
    import numpy
    wanted = numpy.dtype(KNOWN[name]['type'])
    if wanted.kind == 'i':
        wanted = numpy.promote_types(wanted, numpy.promote_types(
            numpy.min_scalar_type(min(values.min(), -1)), numpy.min_scalar_type(
                -1 - max(values.max(), 0))))
    return values.astype(wanted)


def _parse_with_care(block, header):
    """The block's columns as float64 with NaN where a cell is of no use, and what is wrong."""
    import numpy
    import pandas
    problems = Problems()
    kept, numbers = [], []
    for number, line in enumerate(block.data.split(b'\n'), block.line):
        if b'\0' in line:
            problems.add('NUL bytes in {count} line{s}', line=number)
        elif line.strip():
            try:
                kept.append(line.decode())
                numbers.append(number)
            except UnicodeDecodeError:
                problems.add('{count} line{s} not in UTF-8', line=number)
    rows, lines = [], []
    reader = csv.reader(kept)
    while True:
        first = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problems.add('{count} line{s} not CSV', line=numbers[first], value=error)
            continue
        if len(cells) == len(header):
            rows.append(cells)
            lines.append(numbers[first])
        else:
            problems.add('{{count}} line{{s}} with another number of cells than {}'.format(
                len(header)), line=numbers[first], value='{} cells'.format(len(cells)))
    columns = {}
    lines = numpy.array(lines, dtype=numpy.int64)
    for name, cells in zip(header, zip(*rows)):
        if name in KNOWN and name not in columns:
            cells = numpy.array(cells, dtype=object)
            values = pandas.to_numeric(pandas.Series(cells), errors='coerce').values
            columns[name] = _check_cells(name, cells, values, lines, problems)
    return Parsed(columns, lines, problems)


def _check_cells(name, cells, values, lines, problems):
    """`values` in the compact type, or as float64 with NaN for every cell of no use."""
    import numpy
    whole = KNOWN[name]['type'] != 'float32'
    limit = 2.0 ** 63 if whole else LARGEST_FLOAT32
    floats = values.astype(numpy.float64)
    no_number = numpy.isnan(floats)
    empty = no_number & numpy.array([cell.strip().lower() in EMPTY_WORDS for cell in cells])
    infinite = numpy.isinf(floats)
    huge = (abs(floats) >= limit) & ~infinite
    fraction = ~no_number & ~infinite & (floats != numpy.rint(floats)) if whole else huge & False
    for text, bad in ((' cell{s} empty or NaN (a missing value is -1)', empty),
                      (' cell{s} with text', no_number & ~empty),
                      (' infinite value{s}', infinite),
                      (' number{s} too large', huge),
                      (' fractional number{s} in a column of whole numbers', fraction)):
        if bad.any():
            first = bad.argmax()
            problems.add(name + ': {count}' + text, int(bad.sum()), int(lines[first]),
                         repr(cells[first][:40]))
    bad = no_number | infinite | huge | fraction
    if bad.any():
        return numpy.where(bad, numpy.nan, floats)
    return _compact(name, values.astype(numpy.int64) if whole else floats)


def _join(results):
    """One array per column; of a column with a wider type in one block, the wider type."""
    import numpy
    results = [result for result in results if len(result.lines)]
    names = results[0].columns if results else ()
    return {name: numpy.concatenate([result.columns.pop(name) for result in results])
            for name in list(names)}


def _check_rows(columns, results, problems):
    """What can be seen only in the whole table: targets, ids, the size of the parts."""
    import numpy

    def line(row):
        for result in results:
            if row < len(result.lines):
                return int(result.lines[row])
            row -= len(result.lines)

    target, ids = columns.get('target'), columns.get('id')
    whole = all(values is not None and values.dtype.kind == 'i' for values in (target, ids))
    if target is not None:
        wrong = (target != 0) & (target != 1) & ~numpy.isnan(target)
        if wrong.any():
            first = int(wrong.argmax())
            problems.add('target: {count} value{s} other than 0 and 1', int(wrong.sum()),
                         line(first), '{:g}'.format(target[first]))
            whole = False
        for value in (0, 1):
            if (target == value).all():
                problems.add('target: {} in every row; a model needs claims (1) and others '
                             '(0)'.format(value))
                whole = False
    if ids is not None:
        ids_there = ids[~numpy.isnan(ids)]
        if len(ids_there) > 1 and not (numpy.diff(ids_there) > 0).all():
            order = numpy.argsort(ids, kind='stable')
            again = numpy.sort(order[1:][ids[order[1:]] == ids[order[:-1]]])
            if len(again):
                problems.add('id: {count} row{s} with an id that an earlier row has',
                             len(again), line(int(again[0])), int(ids[again[0]]))
    if whole and not problems:
        side = parts(ids)
        counts = numpy.bincount(side * 2 + target, minlength=6).reshape(3, 2)
        if counts.min() < LEAST_PER_PART:
            problems.add('too few rows to split: {}; each part needs at least {} of each, or its '
                         'AUC says nothing (a table with about {} claims has them)'.format(
                             ', '.join('{} part {} claims and {} others'.format(name, ones, zeros)
                                       for name, (zeros, ones) in zip(PART_NAMES, counts)),
                             LEAST_PER_PART, LEAST_PER_PART * 12))


def _unusual(columns):
    """A sentence for each column with values that the published table does not have."""
    import numpy
    for name in FEATURES:
        values, known = columns[name], KNOWN[name]
        if values.dtype.kind == 'i':
            seen = numpy.array([int(value) for value in known['counts']])
            if values.min() in seen and values.max() in seen and len(seen) == 1 + max(seen) - min(seen):
                continue
            odd = ~numpy.isin(values, seen)
        else:
            low, high = known['min'] - 1e-4, known['max'] + 1e-4
            odd = (values < low) | (values > high)
            if known['missing']:
                odd &= values != MISSING
        if odd.any():
            found = numpy.unique(values[odd])
            yield '{}: {:,} value{} never seen in the published table, from {:g} to {:g}'.format(
                name, odd.sum(), '' if odd.sum() == 1 else 's', found[0], found[-1])


def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('--data', required=True, help='CSV file, may be in gzip')
    path = arguments.parse_args(argv).data
    logging.basicConfig(level=logging.WARNING, format='warning: %(message)s')
    try:
        table = read_table(path)
    except TableError as error:
        print('error: {}'.format(error), file=sys.stderr)
        return 1
    missing = (table == MISSING).sum()
    print('{}: {:,} rows, {:,} claims ({:.2%}), {:,} missing values in {} columns'.format(
        path, len(table), table.target.sum(), table.target.mean(), missing.sum(),
        (missing > 0).sum()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
