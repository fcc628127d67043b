"""The table: what is read, what is refused and how it is said, what is only warned of."""
import collections
import concurrent.futures
import gzip
import hashlib
import itertools
import json
import logging
import os
import socket
from pathlib import Path

import numpy
import pandas
import pytest

import nodes
import sample
import table

ROWS = 1000
REAL = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'porto_seguro_10000.csv'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp('table') / 'good.csv'
    assert sample.main(['--rows', str(ROWS), '--out', str(path)]) == 0
    return path.read_bytes()


@pytest.fixture
def write(tmp_path):
    def write(content, name='table.csv'):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)
    return write


def cells_of(content):
    return [line.split(b',') for line in content.splitlines()]


def joined(rows):
    return b''.join(b','.join(row) + b'\n' for row in rows)


def set_cells(column, value, lines):
    """Damage: `value` in `column` of these lines, as numbered in the file."""
    def damage(content):
        rows = cells_of(content)
        for line in lines:
            rows[line - 1][table.COLUMNS.index(column)] = value
        return joined(rows)
    return damage


def edit_line(line, edit):
    def damage(content):
        lines = content.splitlines(True)
        lines[line - 1] = edit(lines[line - 1])
        return b''.join(lines)
    return damage


def drop_column(column):
    def damage(content):
        position = table.COLUMNS.index(column)
        return joined(row[:position] + row[position + 1:] for row in cells_of(content))
    return damage


def add_column(name, value):
    def damage(content):
        rows = cells_of(content)
        return joined([rows[0] + [name]] + [row + [value] for row in rows[1:]])
    return damage


def both(*damages):
    def damage(content):
        for one in damages:
            content = one(content)
        return content
    return damage


CALC = [name for name in table.FEATURES if 'calc' in name]


def blank_calc(content):
    """Damage: ps_calc_* are in all rows as in the first."""
    rows = cells_of(content)
    return joined([rows[0]] + [row[:-len(CALC)] + rows[1][-len(CALC):] for row in rows[1:]])


def add_copies(lines, columns=()):
    """Damage: these lines again under new ids, with the cells of the line before in `columns`."""
    def damage(content):
        rows = cells_of(content)
        for line in lines:
            rows.append([b'%d' % (10 ** 7 + line)] + rows[line - 1][1:])
            for position in map(table.COLUMNS.index, columns):
                rows[-1][position] = rows[line - 2][position]
        return joined(rows)
    return damage


DAMAGES = [
    ('missing id', drop_column('id'), ['1 missing column: id']),
    ('missing target', drop_column('target'), ['1 missing column: target']),
    ('renamed column', edit_line(1, lambda line: line.replace(b'ps_car_13', b'ps_car_13_x')),
     ['missing column: ps_car_13', "unknown column: 'ps_car_13_x'"]),
    ('repeated column', add_column(b'ps_ind_03', b'1'), ['1 repeated column: ps_ind_03']),
    ('semicolons', lambda content: content.replace(b',', b';'),
     ['first line must hold', 'commas between them', 'id;target']),
    ('decimal comma', edit_line(5, lambda line: line.replace(b'0.', b'0,', 1)),
     ['1 line with too many cells, first in line 5', '60 cells']),
    ('exponents at which pandas ends the process',
     both(set_cells('ps_car_12', b'3.402e384873397172', [44]),
          set_cells('ps_ind_01', b'-1E+2147483648', [45]),
          set_cells('ps_reg_01', b'1e-99999999999', [46])),
     ["ps_car_12: 1 number too large, first in line 44 ('3.402e384873397172')",
      "ps_ind_01: 1 number too large, first in line 45 ('-1E+2147483648')"]),
    ('copies under new ids', add_copies([5, 3, 4]),
     ['3 rows with all 57 features of an earlier row', 'line 1,002 (the same as line 5)']),
    ('a copy with another target', both(add_copies([5]), set_cells('target', b'1', [1002])),
     ['1 row with all 57 features']),
    ('a copy with -0.0', both(set_cells('ps_reg_02', b'0', [5]), add_copies([5]),
                              set_cells('ps_reg_02', b'-0.0', [1002])),
     ['1 row with all 57 features']),
    ('copies without values in ps_calc_*', both(blank_calc, add_copies(range(3, 30))),
     ['27 rows with all 57 features']),
    ('just too large', set_cells('ps_ind_01', b'9223372036854775808', [46]),
     ['ps_ind_01: 1 number too large', 'line 46']),
    ('target 2 and -1', both(set_cells('target', b'2', [11, 21]), set_cells('target', b'-1', [2])),
     ['target: 3 values other than 0 and 1', 'line 2 (-1)']),
    ('only zeros', set_cells('target', b'0', range(2, ROWS + 2)), ['target: 0 in all 1,000 rows']),
    ('repeated ids', both(set_cells('id', b'9999999', [100, 300]),
                          set_cells('id', b'7777777', [200, 400])),
     ['id: 2 rows with the id of an earlier row', 'line 300', 'id 9999999']),
    ('too few claims', both(set_cells('target', b'0', range(2, ROWS + 2)),
                            set_cells('target', b'1', range(100, 120))),
     ['too few rows to split', 'hold-out has', 'at least 5', 'about 60']),
    ('row names', lambda content: content.replace(b'\n', b'\n1,').rstrip(b'1,'),
     ['1,000 lines with too many cells, first in line 2']),
    ('cut off', lambda content: content[:-40], ['the last line, 1,001,', 'cut off']),
    ('cut off in gzip', lambda content: gzip.compress(content)[:-5000], ['truncated']),
    ('damaged gzip', lambda content: gzip.compress(content)[:-8] + b'12345678',
     ['truncated or damaged']),
    ('empty', lambda content: b'', ['file is empty']),
    ('blank', lambda content: b'\n\n\n', ['first line is empty']),
    ('header only', lambda content: content.split(b'\n')[0] + b'\n', ['no row']),
    ('Latin-1 cell', set_cells('ps_ind_01', b'm\xfcnchen', [13, 14]),
     ['2 lines not in UTF-8', 'line 13']),
    ('Latin-1 header', edit_line(1, lambda line: line.replace(b'ps_ind_01', b'\xfc')),
     ['first line is not CSV in UTF-8']),
    ('NUL after a number', set_cells('ps_ind_01', b'1\0', [15]), ['NUL bytes in 1 line']),
    ('NULs at the end', lambda content: content + b'\0' * 512, ['NUL bytes in 1 line', '1,002']),
    ('zip archive', lambda content: b'PK\x03\x04' + content, ['zip archive', 'unpack']),
    ('old Mac line ends', lambda content: content.replace(b'\n', b'\r'),
     ['first line is not CSV in UTF-8']),
    ('endless line', lambda content: content + b'1' * (5 << 20),
     ['1 line not CSV, first in line 1,002', 'field larger than field limit']),
    ('open quote', set_cells('ps_ind_03', b'"3', [50]), ['1 line with too few cells', 'line 50']),
]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('damage, words', [case[1:] for case in DAMAGES],
                         ids=[case[0] for case in DAMAGES])
def test_damaged_table_is_refused_in_words(good, write, capsys, damage, words):
    path = write(damage(good))
    assert table.main(['--data', path]) == 1
    output = capsys.readouterr()
    assert output.out == ''
    assert output.err.startswith('error: ' + path)
    for word in words:
        assert word in output.err
    assert len(output.err) < 3000


@pytest.mark.filterwarnings('error')
def test_whole_message(good, write):
    """All that is wrong at once: order, plural, first line and first value."""
    damage = both(
        set_cells('ps_car_13', b'large', [17, 400]), set_cells('ps_car_12', b'1e300', [44]),
        set_cells('ps_car_11', b'NaN', [7]), set_cells('ps_ind_01', b'0x10', [46]),
        set_cells('ps_ind_01', b'.5', [9]), set_cells('ps_ind_15', b'-Infinity', [41]),
        set_cells('ps_ind_03', b'99999999999999999999', [45]),
        set_cells('ps_reg_03', b'', [3, 4]), set_cells('target', b'0.5', [8]),
        set_cells('target', b'7', [6]), set_cells('id', b'5', [20, 21]),
        edit_line(60, lambda line: line[:30] + b'\n'),
        edit_line(2, lambda line: line.strip() + b',1\n'),
        add_column(b'extra', b'x'), drop_column('ps_calc_19_bin'))
    path = write(damage(good))
    with pytest.raises(table.TableError) as caught:
        table.read_table(path)
    assert str(caught.value).splitlines() == [
        path + ' cannot be used:',
        '- 1 missing column: ps_calc_19_bin',
        "- 1 unknown column: 'extra'",
        '- 1 line with too many cells, first in line 2 (60 cells, the first line has 59)',
        '- 1 line with too few cells, first in line 60 (16 cells, the first line has 59)',
        "- target: 1 fractional number in a column of whole numbers, first in line 8 ('0.5')",
        "- ps_ind_01: 1 cell with text instead of a number, first in line 46 ('0x10')",
        "- ps_ind_01: 1 fractional number in a column of whole numbers, first in line 9 ('.5')",
        "- ps_ind_03: 1 number too large, first in line 45 ('99999999999999999999')",
        "- ps_ind_15: 1 infinite value, first in line 41 ('-Infinity')",
        "- ps_reg_03: 2 empty or NaN cells (-1 stands for a missing value), first in line 3 ('')",
        "- ps_car_11: 1 empty or NaN cell (-1 stands for a missing value), first in line 7 ('NaN')",
        "- ps_car_12: 1 number too large, first in line 44 ('1e300')",
        "- ps_car_13: 2 cells with text instead of a number, first in line 17 ('large')",
        '- target: 1 value other than 0 and 1, first in line 6 (7)',
        '- id: 1 row with the id of an earlier row, first in line 21 (id 5)']


@pytest.mark.parametrize('make, words', [
    (lambda folder: folder / 'nowhere.csv', 'there is no such file'),
    (lambda folder: folder, 'is a folder without a file; name'),
    (lambda folder: folder.parent, 'is a folder among the parts of a table; name'),
    (lambda folder: folder / ('x' * 300), 'cannot be read')])
def test_what_is_not_a_file_is_refused(tmp_path, capsys, make, words):
    assert table.main(['--data', str(make(tmp_path))]) == 1
    assert words in capsys.readouterr().err


def test_damage_beyond_the_first_block_has_the_right_line(good, write, monkeypatch):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 70000)
    blank_line = edit_line(500, lambda line: line + b'\n')
    damage = both(set_cells('ps_car_13', b'x', [900]), set_cells('target', b'4', [800, 999]),
                  set_cells('id', cells_of(good)[1][0], [950]), blank_line)
    with pytest.raises(table.TableError) as caught:
        table.read_table(write(damage(good)))
    assert 'ps_car_13: 1 cell with text instead of a number, first in line 901' in str(
        caught.value)
    assert 'target: 2 values other than 0 and 1, first in line 801 (4)' in str(caught.value)
    assert 'id: 1 row with the id of an earlier row, first in line 951' in str(caught.value)


def read(path, caplog):
    """The table, after a check that there was nothing to warn of."""
    with caplog.at_level(logging.WARNING):
        frame = table.read_table(path)
    assert caplog.messages == []
    return frame


@pytest.fixture
def parts(good, tmp_path):
    """A folder of the good table in four parts, each written in another way."""
    header, *rows = cells_of(good)
    folder = tmp_path / 'parts'
    folder.mkdir()
    for name, content in (
            ('part-3.csv', b'\r\n'.join(map(b','.join, [header] + rows[700:]))),
            ('part-1.csv', joined(row[::-1] for row in [header] + rows[:300])),
            ('part-2.csv.gz', gzip.compress(joined([header] + rows[300:700]))),
            ('part-0.csv', b','.join(header)),
            ('_SUCCESS', b''), ('.part-1.csv.crc', b'crc')):
        (folder / name).write_bytes(content)
    return folder


def test_a_table_in_parts_is_that_of_one_file(good, write, parts, caplog, monkeypatch):
    expected = read(write(good), caplog)
    files = [str(parts / f'part-{name}') for name in ('0.csv', '1.csv', '2.csv.gz', '3.csv')]
    assert table.part_files(parts) == table.part_files([files[0], *files[1:]]) == files
    assert table.part_files(str(parts / '*t-[0-9]*')) == [str(parts / '*t-[0-9]*')]
    assert table.part_files(str(parts / '*')) == files == table.part_files(str(parts.parent / 'p*'))
    monkeypatch.setattr(table, 'BLOCK_BYTES', 30000)
    pandas.testing.assert_frame_equal(read(str(parts), caplog), expected)
    pandas.testing.assert_frame_equal(read(files[1:], caplog), expected)
    with pytest.raises(table.TableError, match='no file of the table is named'):
        table.read_table([])


def test_what_make_compares_of_a_table(parts, capsys):
    assert table.main(['--parts', '--data', str(parts / '*[1]*')]) == 1
    assert 'there is no such file' in capsys.readouterr().err
    assert table.main(['--parts', '--data', str(parts)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == [[path, os.path.getsize(path), os.stat(path).st_mtime_ns]
                     for path in table.part_files(parts)]


def test_what_is_wrong_with_parts_is_said_with_their_names(good, parts, monkeypatch):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 30000)
    first = cells_of(good)[1]
    for name, damage in (
            ('part-3.csv', both(drop_column('ps_calc_20_bin'), set_cells('ps_ind_01', b'x', [9]),
                                set_cells('id', first[0], [5]))),
            ('part-2b.csv', both(drop_column('ps_calc_20_bin'), lambda content: content[:-40]))):
        (parts / name).write_bytes(damage((parts / 'part-3.csv').read_bytes()))
    with pytest.raises(table.TableError) as caught:
        table.read_table(str(parts))
    assert str(caught.value).splitlines() == [
        f'{parts} cannot be used:',
        '- 1 missing column: ps_calc_20_bin, first in line 1 of part-2b.csv',
        "- ps_ind_01: 2 cells with text instead of a number, first in line 9 of part-2b.csv ('x')",
        '- the last line, 301 of part-2b.csv, has 41 of 58 cells and no end: the file is cut off',
        f'- id: 300 rows with the id of an earlier row, first in line 5 of part-2b.csv (id '
        f'{first[0].decode()}, as in line 2 of part-1.csv)']
    (parts / 'part-2.csv.gz').write_bytes(b'\x1f\x8b not gzip')
    with pytest.raises(table.TableError, match='part-2.csv.gz: the gzip file is truncated'):
        table.read_table(str(parts))


def test_copies_between_parts_are_said_with_both_places(good, write, parts, caplog):
    more = joined([cells_of(good)[0], [b'10000000'] + cells_of(good)[3][1:]])
    copies = write(more, 'more.csv')
    with pytest.raises(table.TableError, match=r'first in line 2 of more.csv \(the same as line 4 '
                                               r'of parts/part-1.csv\)') as caught:
        table.read_table([str(parts), copies])
    assert str(caught.value).startswith(f'{parts}/part-0.csv and 4 more cannot be used')


def test_types_order_and_values(good, write, caplog):
    frame = read(write(good), caplog)
    plain = pandas.read_csv(write(good))
    assert list(frame) == table.COLUMNS == list(plain)
    assert len(table.COLUMNS) == 59 and table.FEATURES == table.COLUMNS[2:]
    for name in frame:
        assert frame[name].dtype == ('int32' if name == 'id' else
                                     'float32' if plain[name].dtype == 'float64' else 'int8')
        assert (frame[name] == plain[name].astype(frame[name].dtype)).all()


def test_other_ways_to_write_the_same_table(good, write, caplog, monkeypatch):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 70000)
    good = set_cells('ps_ind_01', b'1', [2, 3])(good)
    expected = read(write(good), caplog)
    for name, changed in (
            ('gzip and CRLF', gzip.compress(good.replace(b'\n', b'\r\n'))),
            ('no last line end, a byte order mark', b'\xef\xbb\xbf' + good.rstrip(b'\n')),
            ('blanks and blank lines', good.replace(b',', b', ') + b'\n\n \n'),
            ('quotes', b'\n'.join(b'"' + line.replace(b',', b'","') + b'"'
                                  for line in good.splitlines())),
            ('other column order', joined([row[:2] + row[:1:-1] for row in cells_of(good)])),
            ('reversed columns', joined([row[::-1] for row in cells_of(good)])),
            ('whole number written as 1.0', set_cells('ps_ind_01', b'1.0', [2])(good))):
        pandas.testing.assert_frame_equal(read(write(changed), caplog), expected, obj=name)


def test_large_whole_numbers_are_kept(good, write, caplog, monkeypatch):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 70000)
    damage = both(set_cells('ps_ind_01', b'300', [900]), set_cells('ps_calc_10', b'-40000', [6]),
                  set_cells('id', b'9000000000000000001', [1001]))
    with caplog.at_level(logging.WARNING):
        frame = table.read_table(write(damage(good)))
    assert frame.ps_ind_01[:898].max() == 7 and frame.ps_ind_01[898] == 300
    assert frame.ps_calc_10[4] == -40000
    assert frame.id.iloc[-1] == 9000000000000000001
    assert [str(kind) for kind in frame.dtypes[['ps_ind_01', 'ps_calc_10', 'id', 'ps_ind_03']]] == [
        'int64', 'int64', 'int64', 'int8']


WARNINGS = [
    (both(set_cells('ps_car_11_cat', b'105', [5, 6, 7]), set_cells('ps_ind_02_cat', b'0', [8]),
          set_cells('ps_car_13', b'9.5', [9, 10]), set_cells('ps_reg_01', b'-1', [11]),
          set_cells('ps_reg_03', b'-1', [12])),
     ['ps_ind_02_cat: 1 value not in', 'ps_reg_01: 1 value not',
      'ps_car_11_cat: 3 values not in the published table, from 105 to 105', 'ps_car_13: 2']),
    (add_copies(range(3, 30), CALC), ['27 rows equal an earlier one in all of the columns other '
                                      'than ps_calc_*, first line 1,002 as line 3', 'ps_calc_*']),
    (add_copies(range(3, 30), ['ps_car_13', 'target']), ['ps_calc_*', 'whole numbers']),
    (add_copies(range(3, 30), [name for name in table.COLUMNS if table.KNOWN[name]['type'] ==
                               'float32']), ['in all of the columns of whole numbers, first']),
    (both(blank_calc, add_copies([3])), []),
    (both(add_copies([3]), set_cells('ps_car_15', b'1.5', [1002])), []),
    (both(set_cells('ps_calc_20_bin', b'0', [3]), add_copies([3]),
          set_cells('ps_calc_20_bin', b'1', [1002])), []),
    (set_cells('target', b'1', range(100, 200)), ['of the rows are claims, in the published']),
    (set_cells('target', b'1', range(100, 110)), [])]


@pytest.mark.parametrize('damage, warnings', WARNINGS)
def test_what_the_published_table_does_not_have_is_a_warning(good, write, caplog, damage, warnings):
    table.read_table(write(damage(good)))
    assert len(caplog.messages) == len(warnings)
    assert all(words in message for words, message in zip(warnings, caplog.messages))


def on_nodes(paths):
    """[what read_table gives, or the TableError's text, ...] of nodes in threads, each its path."""
    def run(node, path):
        try:
            return table.read_table(path, node)
        except table.TableError as error:
            return str(error)
        finally:
            node.part()

    pairs = [socket.socketpair() for _ in paths[1:]]
    links = [{rank: there for rank, (there, _) in enumerate(pairs, 1)}]
    links += [{0: here} for _, here in pairs]
    together = [nodes.Node(rank, len(paths), link).listen() for rank, link in enumerate(links)]
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(run, together, paths))


def test_nodes_share_the_rows(good, write, monkeypatch):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 30000)
    path = write(set_cells('ps_ind_01', b'300', [900])(good))
    expected = table.read_table(path)
    frames = on_nodes([path] * 3)
    for rank, frame in enumerate(frames):
        mine = table.mixed(expected['id'], 1) % numpy.uint64(3) == rank
        pandas.testing.assert_frame_equal(frame, expected[mine].reset_index(drop=True))
        assert 250 < len(frame) < 420


@pytest.mark.parametrize('damage', [case[1] for case in DAMAGES] + [case[0] for case in WARNINGS])
def test_nodes_find_what_one_finds(good, write, caplog, monkeypatch, damage):
    monkeypatch.setattr(table, 'BLOCK_BYTES', 70000)
    path, found = write(damage(good)), []
    for paths in [path], [path] * 3:
        caplog.clear()
        texts = [result for result in on_nodes(paths) if isinstance(result, str)]
        said = collections.defaultdict(list)
        for record in caplog.records:
            said[record.thread].append(record.getMessage())
        found += [[texts[rank] if texts else None, sorted(said.values())[rank] if said else None]
                  for rank in range(len(paths))]
        assert len(texts) in (0, len(paths)) and len(said) in (0, len(paths))
    assert found == found[:1] * 4


def test_nodes_that_read_different_files_are_told(good, write):
    rows = cells_of(good)
    for changed, words in ((joined(rows[:-1]), 'node 1 999 with'),
                           (set_cells('ps_car_13', b'0.75', [500])(good), 'node 1 1,000 with'),
                           (set_cells('target', b'1', range(9))(good), 'node 1 1,000 with')):
        texts = on_nodes([write(good), write(changed, 'old.csv')])
        assert all('the nodes read different rows (node 0 1,000 with' in text for text in texts)
        assert all(words in text for text in texts)


def test_rows_that_a_node_loses_are_missed(good, write, monkeypatch):
    rows_of = table.Growing.rows
    monkeypatch.setattr(table.Growing, 'rows', lambda own, name: rows_of(own, name)[3:])
    for text in on_nodes([write(good)] * 2):
        assert 'rows were lost between the nodes: they have 994 of 1,000' in text


@pytest.mark.parametrize('end', [b'\x1a', b'\x1a\x1a', b'\r\n\x1a\r\n', b'\n\x1a'])
def test_ctrl_z_at_the_end_is_no_row(good, write, caplog, end):
    expected = read(write(good), caplog)
    pandas.testing.assert_frame_equal(read(write(good.rstrip(b'\n') + end), caplog), expected)


def test_command_line_says_in_one_line_what_is_in_the_table(good, write, capsys):
    path = write(good)
    plain = pandas.read_csv(path)
    assert table.main(['--data', path]) == 0
    output = capsys.readouterr()
    assert output.out == (
        f'{path}: 1,000 rows, {plain.target.sum()} claims ({plain.target.mean():.2%}), '
        f'{(plain == -1).values.sum():,} missing values in {(plain == -1).any().sum()} columns\n')


def test_a_float32_is_on_the_same_side_of_every_threshold_as_its_double(good, write):
    lightgbm = pytest.importorskip('lightgbm')
    path = write(good)
    frame, plain = table.read_table(path), pandas.read_csv(path)
    fractions = [name for name in table.FEATURES if frame[name].dtype == 'float32']
    features = frame[fractions].values
    model = lightgbm.train(
        {'objective': 'binary', 'verbose': -1, 'num_threads': 1, 'min_data_in_leaf': 3,
         'num_leaves': 200, 'max_bin': 5000, 'min_data_in_bin': 1, 'learning_rate': .5,
         'feature_pre_filter': False},
        lightgbm.Dataset(features, frame.target.values), num_boost_round=5)
    as_json = plain[fractions].values
    assert (model.predict(features) == model.predict(as_json)).all()


def test_a_row_keeps_its_part_for_ever():
    ids = [-1, 0, 1, 2, 7, 9, 13, 1488027, 2 ** 40 + 1, 9000000000000000001]
    assert table.split_of(ids).tolist() == [2, 2, 0, 0, 0, 1, 1, 0, 0, 2]
    many = numpy.arange(100000)
    assert hashlib.sha256(table.split_of(many).tobytes()).hexdigest() == (
        'd06f2d32d5146cce0224b9e0521f3b1fcdcd7278921d04375c6b25262e6da05c')
    for kind in ('int32', 'int64'):
        few = many[600:500:-1].astype(kind)
        assert (table.split_of(few) == table.split_of(many)[600:500:-1]).all()
    assert table.split_of(pandas.Series([7, 9])).dtype == numpy.uint8


@pytest.mark.parametrize('ids', [numpy.arange(65536), numpy.arange(65536) << 33])
def test_streams_are_independent(ids):
    """No cell of the table of two streams' values is off by more than 5 of its own deviations."""
    streams = [table.mixed(ids, stream) for stream in (0, 1, 2, 7, 2 ** 31)]
    for shift in (0, 30, 60):
        found = [(stream >> numpy.uint64(shift)).astype(int) % 16 for stream in streams]
        for first, second in itertools.combinations(found, 2):
            counts = numpy.bincount(first * 16 + second, minlength=256)
            assert abs(counts - 256).max() < 5 * 16
            assert ((counts - 256) ** 2 / 256).sum() < 255 + 5 * (2 * 255) ** .5


def test_parts_have_their_shares_whatever_the_ids_and_their_order():
    rows = numpy.arange(100000)
    for ids in (rows, rows * 2 ** 33, 10 * rows[::-1] + 3):
        shares = numpy.bincount(table.split_of(ids), minlength=3) / len(ids)
        assert abs(shares - [.64, .16, .20]).max() < .004
        assert (table.split_of(ids[::-1]) == table.split_of(ids)[::-1]).all()


@pytest.mark.skipif(not REAL.exists(), reason='the real rows are not on this machine')
def test_real_rows(caplog):
    frame = read(str(REAL), caplog)
    assert frame.shape == (10000, 59) and frame.target.sum() == 379
    assert frame.memory_usage(index=False).sum() == 10000 * (4 + 48 + 40)
