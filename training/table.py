"""Read and check the safe driver table; only this file knows its columns.

    python training/table.py --data outputs/data/safe_driver.csv
"""
import argparse
import bisect
import collections
import concurrent.futures
import csv
import ctypes
import glob
import gzip
import io
import json
import os
import re
import sys
import zlib
from pathlib import Path

import console
import nodes

PUBLISHED = json.loads(Path(__file__).with_name('columns.json').read_text())
KNOWN = PUBLISHED['columns']
COLUMNS = list(KNOWN)
FEATURES = COLUMNS[2:]
# Those whose values are groups of policies, but for those called noise.
SEGMENTS = [name for name in FEATURES if name.endswith(('_bin', '_cat')) and 'calc' not in name]
MISSING = -1

TRAINING, EARLY_STOPPING, HOLD_OUT = 0, 1, 2
PART_NAMES = ('training', 'early stopping', 'hold-out')
# Of 100 ids, those below 64 train, those below 80 stop training early, the rest are held out.
PART_ENDS = (64, 80)
# With fewer claims than this in a part, an AUC and its interval mean nothing.
LEAST_PER_PART = 5

# pandas needs some milliseconds per call whatever the size, and memory in proportion to it.
BLOCK_BYTES = 6 << 20
LONGEST_HEADER_BYTES = 1 << 20
LARGEST_FLOAT32 = 3.4028235e38
EMPTY_WORDS = {'', 'nan', 'na', 'n/a', '#n/a', '<na>', 'null', 'none'}
LINE = 'number of the line'
# The stream of mixed() that decides which node has a row.
NODE = 1
# An exponent of a number beyond all floats: at some of many digits pandas ends the process.
LONG_EXPONENT = r'([eE][-+]?)0*[1-9]\d{2,}'

# No two of the first 10,000 real rows agree in all columns of one of these groups.
NOT_CALC, CALC, WHOLE = ('the columns other than ps_calc_*', 'the columns ps_calc_*',
                         'the columns of whole numbers')
GROUPS = {NOT_CALC: [name for name in FEATURES if 'calc' not in name],
          CALC: [name for name in FEATURES if 'calc' in name],
          WHOLE: [name for name in FEATURES if KNOWN[name]['type'] != 'float32']}
ALL = 'all features'
# Of the rows, so many that agree with another in a group are more than chance.
COPIED_SHARE = .01


class TableError(ValueError):
    """The table cannot be used; the text lists everything that is wrong with it."""


class Problems(dict):
    """Kind of problem -> [count, first line, first value]."""

    def add(self, kind, count=1, line=None, value=None):
        self.setdefault(kind, [0, line, value])[0] += count

    def merge(self, other):
        for kind, details in other.items():
            self.add(kind, *details)

    def sentences(self, place):
        for kind, (count, line, value) in self.items():
            text = kind if line is None or '{line}' in kind else kind + ', first in line {line}'
            text = text.replace('{count}', format(count, ','))
            text = text.replace('{s}', '' if count == 1 else 's')
            text = text if line is None else text.replace('{line}', place(line))
            yield text if value is None else f'{text} ({value})'


class Growing(dict):
    """Name -> (array with room for more rows, how many it has).

    Room that was never written to takes no memory, and what is copied at once is one column. A list
    of the blocks' arrays would take as much again as the whole, since what malloc gets back in
    small pieces it keeps.
    """

    def add(self, name, values):
        import numpy
        array, rows = self.get(name, (values[:0], 0))
        end, kind = rows + len(values), numpy.result_type(array, values)
        if end > len(array) or kind != array.dtype:
            old, array = array, numpy.empty(2 * end, kind)
            array[:rows] = old[:rows]
        array[rows:end] = values
        self[name] = array, end

    def rows(self, name):
        array, rows = self[name]
        return array[:rows]


def held_out(frame):
    """The rows of the hold-out, in their order."""
    return frame[split_of(frame['id'].to_numpy()) == HOLD_OUT]


def segments(frame, names):
    """(name, mask of its rows) of each level of these columns."""
    for name in names:
        values = frame[name].to_numpy()
        for value in sorted(set(values.tolist())):
            yield f'{name} missing' if value == MISSING else f'{name} = {value}', values == value


def split_of(ids):
    """The part of each row, from its id alone: a row keeps its part when the table grows.

    ids: whole numbers, shape (rows,). Returns uint8, shape (rows,): TRAINING for 64 % of all ids,
    EARLY_STOPPING for 16 %, HOLD_OUT for 20 %.
    """
    import numpy
    percent = mixed(ids)
    percent >>= numpy.uint64(32)
    percent *= numpy.uint64(100)
    percent >>= numpy.uint64(32)
    return sum((percent >= numpy.uint64(end)).view(numpy.uint8) for end in PART_ENDS)


def mixed(ids, stream=0):
    """A hash of each of these whole numbers, uint64, shape (rows,); each stream has its own.

    That is the output number `stream` of SplitMix64 with the id as its seed (Steele, Lea, Flood
    2014, doi 10.1145/2660193.2660195), the same on every machine.
    """
    import numpy
    mixed = numpy.array(ids, dtype=numpy.int64).view(numpy.uint64)
    mixed += numpy.uint64(0x9E3779B97F4A7C15 * (stream + 1) % 2 ** 64)
    mixed ^= mixed >> numpy.uint64(30)
    mixed *= numpy.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> numpy.uint64(27)
    mixed *= numpy.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> numpy.uint64(31)
    return mixed


def part_files(path):
    """The files of the table `path`: that file, the files of that folder, or of a list of such.

    In what is not there "*" stands for any signs, as in a path of a datastore. Files come in the
    order of their names, without those that begin with "." or "_", which are no rows where a
    cluster writes a table. Raises TableError for a folder that has no file, or has a folder in it.
    """
    if isinstance(path, (list, tuple)):
        return [file for one in path for file in part_files(one)]
    if not os.path.isdir(path):
        pattern = re.sub('[?[]', r'[\g<0>]', str(path))
        found = [] if os.path.lexists(path) else [
            file for file in sorted(glob.glob(pattern)) if os.path.basename(file)[0] not in '._']
        return part_files(found) or [str(path)]
    try:
        files = [os.path.join(str(path), name) for name in sorted(os.listdir(path))
                 if name[0] not in '._']
    except OSError as error:
        raise TableError(f'{path}: {_reason(error)}')
    if not files:
        raise TableError(f'{path} is a folder without a file; name the CSV file, or the folder of '
                         'its parts')
    for file in filter(os.path.isdir, files):
        raise TableError(f'{file} is a folder among the parts of a table; name the folder whose '
                         'files are the parts')
    return files


def facts_of_parts(path):
    """[[path, bytes, time of the last change in ns], ...] of the files of a table. TableError."""
    files = part_files(path)
    try:
        facts = list(map(os.stat, files))
    except OSError as error:
        raise TableError(f'{error.filename}: {_reason(error)}')
    return [[file, one.st_size, one.st_mtime_ns] for file, one in zip(files, facts)]


def read_table(path, node=nodes.ALONE):
    """The checked table `path`, a CSV or a CSV in gzip, its columns in any order.

    A table may be in parts: a folder of files, or a list of files and folders, see part_files. Each
    part has a first line with its column names.

    Returns a pandas.DataFrame in the order of COLUMNS: id int32, the other whole numbers int8, the
    ten columns of fractions float32; a column with larger whole numbers than the published ones is
    int64. float32 costs nothing: rounding keeps the order of values, and LightGBM puts its
    thresholds midway between two neighbours, so a double is on the same side.

    Of several nodes each reads the whole table, and returns the rows whose id is its own by
    mixed(ids, 1); all of them come to the same judgement.

    Raises TableError, which lists all that is wrong. Values that the published table does not have
    are logged as warnings.
    """
    import pandas
    files, starts = part_files(path), []
    if not files:
        raise TableError('no file of the table is named')
    name = path if not isinstance(path, (list, tuple)) else files[0] + (
        f' and {len(files) - 1} more' if len(files) > 1 else '')

    def place(line):
        part = bisect.bisect(starts, line) - 1
        text = f'{line - starts[part] + 1:,}'
        return text if len(files) == 1 else f'{text} of {_short(files)[part]}'

    problems, later, facts, own = Problems(), Problems(), [], Growing()
    for rows, fact, found, wrong in _in_parallel(lambda block: _parse(node, *block),
                                                 _blocks(files, starts, problems)):
        problems.merge(found)
        later.merge(wrong)
        facts.append(fact)
        for key, values in rows.items():
            own.add(key, values)
    problems.merge(later)
    _give_back()
    near = _check_rows(own, facts, node, problems, place)
    if problems:
        raise TableError('\n- '.join([f'{name} cannot be used:'] + list(problems.sentences(place))))
    for sentence in _unusual(facts, near):
        console.log.warning('%s: %s', Path(name).name, sentence)
    columns = {name: own.rows(name) for name in COLUMNS}
    own.clear()
    _give_back()
    return pandas.DataFrame(columns, copy=False)


def _give_back():
    """Memory that is free to the system: glibc keeps up to 64 MB of it for each thread."""
    getattr(ctypes.CDLL(None), 'malloc_trim', bool)(0)


def _short(files):
    """The paths without the folder that all of them are in."""
    paths = list(map(os.path.abspath, files))
    return [os.path.relpath(path, os.path.commonpath(map(os.path.dirname, paths)))
            for path in paths]


def _open(path):
    with open(path, 'rb') as stream:
        packed = stream.read(2) == b'\x1f\x8b'
    return gzip.open(path) if packed else open(path, 'rb')


def _reason(error):
    if isinstance(error, FileNotFoundError):
        return 'there is no such file'
    if getattr(error, 'strerror', None):
        return f'cannot be read: {error.strerror}'
    return f'the gzip file is truncated or damaged ({error})'


def _read_header(path, stream, problems, number):
    """The names in the first line; TableError where there is nothing in it to go on with.

    number: that of this line in the whole table, or None where the table is one file.
    """
    line = stream.readline(LONGEST_HEADER_BYTES)
    if line.startswith(b'PK\x03\x04'):
        raise TableError(f'{path} is a zip archive; unpack it first')
    if not line.strip():
        raise TableError(f'{path}: ' + ('the first line is empty, it must hold the column names'
                                        if line else 'the file is empty'))
    try:
        text = line.decode('utf-8-sig')
        names = [name.strip() for name in next(csv.reader([text.rstrip('\r\n')]))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f'{path}: the first line is not CSV in UTF-8 ({error})')
    missing = [name for name in COLUMNS if name not in names]
    if len(missing) == len(COLUMNS):
        raise TableError(f'{path}: the first line must hold the {len(COLUMNS)} column names with '
                         f"commas between them ({', '.join(COLUMNS[:3])}, ...), and has none of "
                         f'them: {text[:60]!r}')
    for kind, found in (
            ('missing', missing),
            ('unknown', [repr(name) for name in names if name not in KNOWN]),
            ('repeated', [n for n, times in collections.Counter(names).items() if times > 1])):
        if found:
            columns = 'column' if len(found) == 1 else 'columns'
            problems.add(f"{len(found)} {kind} {columns}: {', '.join(found)}", line=number)
    return names


def _blocks(files, starts, problems):
    """What follows the headers in blocks of whole lines: (header, number of first line, bytes).

    Lines are numbered on from part to part; `starts` gains the number of each part's first.
    """
    line = 1
    for file in files:
        starts.append(line)
        try:
            with _open(file) as stream:
                header = _read_header(file, stream, problems, line if len(files) > 1 else None)
                line += 1
                for data in iter(lambda: stream.read(BLOCK_BYTES) + stream.readline(), b''):
                    # Some programs of Windows end a file with Ctrl-Z.
                    yield header, line, data.rstrip(b'\x1a')
                    line += data.count(b'\n')
        except (OSError, EOFError, zlib.error) as error:
            raise TableError(f'{file}: {_reason(error)}')
        # The last line may have no end.
        line += 1


def _in_parallel(function, items):
    """function(item) for each item, in order; pandas parses without Python's lock."""
    # As many as LightGBM's threads, where that is set: several nodes may share the cores.
    given = os.environ.get('OMP_NUM_THREADS', '')
    workers = min(int(given) if given.isdecimal() else os.cpu_count() or 1, 4) or 1
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _parse(node, header, line, data):
    """(what the node keeps of a block, facts on all its rows, problems, those to be told last).

    Kept are the node's rows: columns by name, LINE for the numbers of their lines. Of all rows, a
    hash of each group of columns is kept by the node whose it is, so that equal ones meet; of
    several nodes these are not the node's rows, and (LINE, group) has the numbers of their lines.
    """
    import numpy

    def mine(hashes):
        return slice(None) if node.size == 1 else hashes % node.size == node.rank

    with numpy.errstate(all='ignore'):
        columns, problems = _parse_fast(header, line, data) or _parse_with_care(header, line, data)
        lines, target, later = columns[LINE], columns.get('target'), Problems()
        facts = {'rows': len(lines), 'columns': set(columns), 'checksum': 0, 'counts': 0,
                 'targets': 0, 'calc': [], 'odd': {}}
        if not len(lines):
            return {}, facts, problems, later
        if target is not None:
            facts['targets'] = numpy.array([(target == value).sum() for value in (0, 1)])
            wrong = (target != 0) & (target != 1) & (target == target)
            if wrong.any():
                first = wrong.argmax()
                later.add('target: {count} value{s} other than 0 and 1', wrong.sum(), lines[first],
                          f'{target[first]:g}')
        # Without an id, any share of the rows will do: there will be no table.
        mixes = mixed(columns.get('id', lines), NODE)
        rows = mine(mixes)
        kept = {name: values[rows] for name, values in columns.items()}
        if columns.keys() >= set(FEATURES):
            part, calc, whole = [_hashes(columns, names) for names in GROUPS.values()]
            both = part.astype(numpy.uint64) << numpy.uint64(32) | calc
            for group, hashes, by in ((ALL, both, part), (CALC, calc, calc), (WHOLE, whole, whole)):
                kept[group] = hashes[mine(by)]
                if node.size > 1:
                    kept[LINE, group] = lines[mine(by)]
            facts['calc'] = [calc.min(), calc.max()]
            mixes ^= both
            facts['checksum'] = int(mixes.sum()) + 2 * int(mixes[target == 1].sum())
        if len(columns) > len(COLUMNS) and not (problems or later):
            facts.update(counts=_counts(columns['id'], target), odd=dict(_odd(columns)))
    return kept, facts, problems, later


def _counts(ids, target):
    """How many rows each part of the split has with target 0 and 1, shape (6,)."""
    import numpy
    return numpy.bincount(split_of(ids) * 2 + target, minlength=6)


def _odd(columns):
    """(name, [how many values are not in the published table, least, largest]) of columns."""
    import numpy
    for name in FEATURES:
        values, known = columns[name], KNOWN[name]
        if _is_fraction(name):
            # The published ends are rounded.
            odd = (values < known['min'] - 1e-4) | (values > known['max'] + 1e-4)
            if known['missing']:
                odd &= values != MISSING
        else:
            odd = ~numpy.isin(values, [int(value) for value in known['counts']])
        if odd.any():
            yield name, [odd.sum(), values[odd].min(), values[odd].max()]


def _hashes(columns, names):
    """A hash of 32 bits of each row's values in these columns, the same whatever their types."""
    import numpy
    mixed = numpy.zeros(len(columns[LINE]), dtype=numpy.int64)
    for name in names:
        values = columns[name].astype(KNOWN[name]['type'] if _is_fraction(name) else 'int64')
        # By its bits -0.0 would be another number than 0.0.
        mixed += (values + 0).view('int32') if _is_fraction(name) else values
        mixed *= 0x1E3779B97F4A7C15
    return (mixed >> 32).astype(numpy.uint32)


def _parse_fast(header, line, data):
    """The block as it should be, or None where anything is unusual."""
    import numpy
    import pandas
    rows = data.count(b'\n') + (not data.endswith(b'\n'))
    # pandas would take one cell too many in every row for an index, and stop reading at a NUL.
    if data.count(b',') != rows * (len(header) - 1) or b'\0' in data:
        return None
    if (b'e' in data or b'E' in data) and re.search(LONG_EXPONENT.encode(), data):
        return None
    types = {position: ('float32' if _is_fraction(name) else 'int64') if name in KNOWN else 'object'
             for position, name in enumerate(header)}
    try:
        frame = pandas.read_csv(io.BytesIO(data), header=None, names=range(len(header)),
                                dtype=types, na_filter=False, float_precision='high')
    except (ValueError, OverflowError):
        return None
    columns = {LINE: numpy.arange(line, line + rows, dtype=numpy.uint32)}
    for position, name in enumerate(header):
        if name in KNOWN:
            values = frame[position].values
            # Whole numbers beyond int64 come as uint64.
            if values.dtype != types[position] or not numpy.isfinite(values).all():
                return None
            columns[name] = _compact(name, values)
    return columns, Problems()


def _is_fraction(name):
    return KNOWN[name]['type'] == 'float32'


def _compact(name, values):
    """The values in the type of the published column, unless some are too large for it."""
    small = values.astype(KNOWN[name]['type'])
    return small if _is_fraction(name) or (small == values).all() else values


def _parse_with_care(header, line, data):
    """The block with NaN in place of every cell that is of no use, and all that is wrong."""
    import numpy
    import pandas
    problems, rows, lines = Problems(), [], []
    # What follows the last line end is empty, unless the file is cut off.
    last = line + data.count(b'\n')
    for line, text in enumerate(data.split(b'\n'), line):
        if not text.strip(b' \t\r\x1a'):
            continue
        if b'\0' in text:
            problems.add('NUL bytes in {count} line{s}', line=line)
            continue
        try:
            cells = next(csv.reader([text.decode()]))
        except UnicodeDecodeError:
            problems.add('{count} line{s} not in UTF-8', line=line)
            continue
        except csv.Error as error:
            problems.add('{count} line{s} not CSV', line=line, value=error)
            continue
        if len(cells) == len(header):
            rows.append(cells)
            lines.append(line)
        elif line == last:
            problems.add(f'the last line, {{line}}, has {len(cells)} of {len(header)} cells and no '
                         'end: the file is cut off', line=line)
        else:
            few_or_many = 'few' if len(cells) < len(header) else 'many'
            problems.add('{count} line{s} with too ' + few_or_many + ' cells', line=line,
                         value=f'{len(cells)} cells, the first line has {len(header)}')
    columns = {LINE: numpy.array(lines, dtype=numpy.uint32)}
    table = numpy.array(rows, dtype=object).reshape(len(rows), len(header))
    for name, cells in zip(header, table.T):
        if name in KNOWN:
            safe = re.sub(LONG_EXPONENT, r'\g<1>300', '\n'.join(cells)).split('\n')
            values = pandas.to_numeric(numpy.array(safe[:len(cells)], object), errors='coerce')
            columns[name] = _check_cells(name, cells, values, lines, problems)
    return columns, problems


def _check_cells(name, cells, values, lines, problems):
    import numpy
    floats = values.astype(numpy.float64)
    unread = numpy.isnan(floats)
    empty = unread.copy()
    empty[unread] = [cell.strip().lower() in EMPTY_WORDS for cell in cells[unread]]
    infinite = numpy.isinf(floats)
    large = ~infinite & (abs(floats) >= (LARGEST_FLOAT32 if _is_fraction(name) else 2. ** 63))
    fraction = ~unread & ~infinite & (floats != numpy.rint(floats)) & (not _is_fraction(name))
    wrong = numpy.zeros(len(cells), dtype=bool)
    for kind, found in (('{count} empty or NaN cell{s} (-1 stands for a missing value)', empty),
                        ('{count} cell{s} with text instead of a number', unread & ~empty),
                        ('{count} infinite value{s}', infinite),
                        ('{count} number{s} too large', large),
                        ('{count} fractional number{s} in a column of whole numbers', fraction)):
        if found.any():
            first = found.argmax()
            problems.add(f'{name}: {kind}', found.sum(), lines[first], repr(cells[first][:40]))
            wrong |= found
    if wrong.any():
        return numpy.where(wrong, numpy.nan, floats)
    return _compact(name, floats if _is_fraction(name) else values.astype(numpy.int64))


def _check_rows(own, facts, node, problems, place):
    """What shows only in the whole table: targets, repeated ids, copies, the parts' sizes.

    All nodes find the same, and return the same sentences on near copies.
    """
    import numpy
    rows = sum(fact['rows'] for fact in facts)
    if not rows:
        problems.add('no row that can be read below the first line')
        return []
    everywhere = set.intersection(*[fact['columns'] for fact in facts if fact['rows']])
    if 'target' in everywhere:
        for value, count in enumerate(sum(fact['targets'] for fact in facts)):
            if count == rows:
                problems.add(f'target: {value} in all {rows:,} rows, and a model needs both 0 and '
                             '1')
    keys = ['id'] * ('id' in everywhere) + [ALL, *GROUPS] * (everywhere >= set(FEATURES))
    again = {key: _again(_keys(own, key)) for key in keys}
    kept = [] if problems else _counts(own.rows('id'), own.rows('target')).tolist()
    told = node.share({'again': again, 'kept': kept, 'read': [
        rows, sum(fact['checksum'] for fact in facts) % 2 ** 64]})
    if any(other['read'] != told[0]['read'] for other in told):
        found = ', '.join('node {} {:,} with the checksum {:x}'.format(rank, *other['read'])
                          for rank, other in enumerate(told))
        problems.add(f'the nodes read different rows ({found}): give all of them the same files')
        return []
    total = {key: sum(other['again'][key] for other in told) for key in keys}
    calc = [end for fact in facts for end in fact['calc']]
    # Without values in ps_calc_* some rows are alike by chance.
    by_chance = {'id': 0, ALL: 0 if calc and min(calc) < max(calc) else COPIED_SHARE * rows}
    wanted = [key for key in keys if total[key] > by_chance.get(key, rows)] or [
        key for key in keys if COPIED_SHARE * rows < total[key] < rows - 1 and not problems]
    told_lines, near = node.share({key: _first(_keys(own, key), _lines(own, key))
                                   for key in wanted if again[key]}), []
    for key in wanted:
        line, equal, value = min(lines[key] for lines in told_lines if key in lines)
        if key == 'id':
            problems.add('id: {count} row{s} with the id of an earlier row', total[key], line,
                         f'id {value}' + f', as in line {place(equal)}' * (' of ' in place(equal)))
        elif key == ALL:
            problems.add(f'{{count}} row{{s}} with all {len(FEATURES)} features of an earlier row; '
                         'remove these copies: a model is not to be judged by what it learned',
                         total[key], line, f'the same as line {place(equal)}')
        else:
            near.append(f'{total[key]:,} rows equal an earlier one in all of {key}, first line '
                        f'{place(line)} as line {place(equal)}: if they are copies, every figure '
                        'of the model is too good')
    if not problems:
        counts = sum(fact['counts'] for fact in facts)
        left = numpy.sum([other['kept'] for other in told], axis=0)
        if (left != counts).any():
            problems.add(f'rows were lost between the nodes: they have {left.sum():,} of {rows:,}')
        if counts.min() < LEAST_PER_PART:
            found = ', '.join(f'{name} has {ones} with target 1 and {zeros} with 0'
                              for name, (zeros, ones) in zip(PART_NAMES, counts.reshape(3, 2)))
            problems.add(f'too few rows to split: {found}; each part needs at least '
                         f'{LEAST_PER_PART} rows with target 1 and as many with 0 for an AUC, '
                         f'which takes about {LEAST_PER_PART * 12} of each in the table')
    return near


def _keys(own, key):
    """What equal rows have in common; the upper half of the hash of all is that of NOT_CALC."""
    import numpy
    return own.rows(key) if key != NOT_CALC else (
        own.rows(ALL) >> numpy.uint64(32)).astype(numpy.uint32)


def _lines(own, key):
    key = LINE, ALL if key == NOT_CALC else key
    return own.rows(key if key in own else LINE)


def _again(keys):
    """How many keys an earlier row has."""
    import numpy
    ordered = numpy.sort(keys)
    return int((ordered[1:] == ordered[:-1]).sum())


def _first(keys, lines):
    """[line of the first row with the key of an earlier one, line of that one, the key]."""
    import pandas
    again = pandas.Series(keys).duplicated().to_numpy() & (keys == keys)
    first = again.argmax()
    return [int(lines[first]), int(lines[(keys == keys[first]).argmax()]), f'{keys[first]:.0f}']


def _unusual(facts, near):
    """A sentence on all that the published table does not have: claims, near copies, values."""
    counts, published = sum(fact['counts'] for fact in facts), KNOWN['target']['counts']['1']
    rows, published = counts.sum(), published / PUBLISHED['rows']
    claims, expected = counts[1::2].sum(), rows * published
    if abs(claims - expected) > max(expected / 3, 4 * expected ** .5):
        yield (f'target: {claims / rows:.2%} of the rows are claims, in the published table '
               f'{published:.2%}: what the model predicts holds for this share only')
    yield from near
    for name in FEATURES:
        found = [fact['odd'][name] for fact in facts if name in fact['odd']]
        if found:
            counts, least, largest = zip(*found)
            kind = 'value' if sum(counts) == 1 else 'values'
            yield (f'{name}: {sum(counts):,} {kind} not in the published table, '
                   f'from {min(least):g} to {max(largest):g}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True,
                        help='the table: a CSV file, may be in gzip, or a folder of such')
    parser.add_argument('--parts', action='store_true', help='only print what is known of its '
                        'files, as JSON: [[path, bytes, time of the last change in ns], ...]')
    args = parser.parse_args(argv)
    path = args.data
    try:
        if args.parts:
            print(json.dumps(facts_of_parts(path)))
            return 0
        table = read_table(path)
    except TableError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    missing = (table[FEATURES] == MISSING).sum()
    print(f'{path}: {len(table):,} rows, {table.target.sum():,} claims '
          f'({table.target.mean():.2%}), {missing.sum():,} missing values in '
          f'{(missing > 0).sum()} columns')
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
