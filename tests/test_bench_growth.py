"""The benchmark of more rows and nodes: its limits, picture and table, and a small run of it."""
import collections
import json
import shutil
import subprocess
import sys

import pytest

import bench_growth
import bench_report
import table
from bench_growth import ENGINE, NODES, READING
from conftest import ROOT


def one_round(rows, scale=1.0, auc=0.0):
    """What may be measured of a table of so many rows; auc: by which several nodes differ."""
    million, found = rows / 1e6, {}
    for count, name in enumerate(NODES, 1):
        memory = [100 + 200 * million / count] * count
        found[name] = {
            'seconds': 8 * million * scale, 'reading, s': 5 * million, 'boosting, s': 2 * million,
            'the rest, s': million, 'test AUC': 0.64 + auc * (count > 1), 'model': f'{name} {rows}',
            'node memory, MB': memory, 'peak memory, MB': max(memory),
            'bytes a row': max(memory) * 1e6 / rows}
    found[ENGINE] = {'seconds': 4 * million, 'boosting, s': 3 * million, 'the rest, s': million,
                     'model': found[NODES[0]]['model'], 'peak memory, MB': 100 + 100 * million,
                     'bytes a row': 1e8 / rows + 100}
    found.update({name: {'seconds': million * (i + 0.1)} for i, name in enumerate(READING)})
    return {name: found[name] for name in bench_growth.subjects(rows)}


def sizes():
    return [{'rows': rows, 'rounds': [one_round(rows) for _ in range(bench_growth.repeats(rows))]}
            for rows in (1000000, 5000000, 20000000)]


def checked(found):
    return {label: row for label, _, *row in bench_report.check(bench_growth.limits(found))}


def test_limits_compare_within_a_round_and_hold_the_nodes_to_one():
    found = checked(sizes())
    assert found[f'1,000,000 rows: seconds, 1 node / {ENGINE}'] == ['2 [2, 2]', 'yes']
    assert found[f'1,000,000 rows: peak memory, MB, 1 node / {ENGINE}'][0] == '1.5 [1.5, 1.5]'
    # 100 + 200 / 2 of each node, 300 of one.
    assert found["1,000,000 rows: memory of a node of 2 - one node's / 2, MB"][0] == '50 [50, 50]'
    assert found['5,000,000 rows: bytes for each row more, 1 node'] == ['200 [200, 200]', 'yes']
    assert found['5,000,000 rows: models in 2 repeats of 3 nodes'] == ['1 [1, 1]', 'yes']
    assert not [label for label in found if label.startswith('20,') and 'nodes' in label]

    first, second = rounds = [one_round(5000000), one_round(5000000, auc=-0.004)]
    first['3 nodes']['model'] = 'another'
    second[ENGINE]['model'] = 'of other rows'
    found = checked([{'rows': 5000000, 'rounds': rounds}])
    assert found['5,000,000 rows: test AUC, 2 nodes - 1 node'] == ['0.002 [0, 0.004]', 'NO']
    assert found['5,000,000 rows: models in 2 repeats of 2 nodes'][1] == 'yes'
    assert found['5,000,000 rows: models in 2 repeats of 3 nodes'] == ['2 [2, 2]', 'NO']
    assert found[f'5,000,000 rows: models of 1 node and {ENGINE}'][1] == 'NO'


@pytest.mark.end_to_end
def test_report_has_a_line_for_each_subject_and_a_picture_with_the_limits(tmp_path):
    bench_growth.report(tmp_path / 'growth', sizes())
    text = (tmp_path / 'growth.md').read_text()
    assert text.count('5,000,000 rows, ') == len(NODES) + 1 + len(READING)
    assert '| 20,000,000 rows, 1 node ' in text and '20,000,000 rows, 2 nodes' not in text
    assert json.loads((tmp_path / 'growth.json').read_text()) == sizes()
    pytest.importorskip('matplotlib')
    assert (tmp_path / 'growth.png').read_bytes().startswith(b'\x89PNG')


def test_picture_draws_rows_nodes_limits_and_one_nodes_share():
    pytest.importorskip('matplotlib')
    from matplotlib.figure import Figure
    figure = Figure()
    bench_growth.draw(figure, sizes())
    panels = collections.OrderedDict((axes.get_title('left'), axes) for axes in figure.axes)
    lines = {line.get_label(): list(line.get_ydata())
             for line in panels['seconds by rows'].get_lines()}
    assert lines['train.py, 1 node'] == pytest.approx([8, 40, 160])
    assert lines['read() of the file'] == pytest.approx([0.1, 0.5, 2])
    assert lines[ENGINE] == pytest.approx([4, 20, 80])
    by_nodes = panels['seconds by nodes, 5,000,000 rows']
    assert [line.get_ydata()[0] for line in by_nodes.get_lines()] == pytest.approx([0.5, 5.5])
    memory = panels['memory by nodes, MB, 5,000,000 rows']
    assert list(memory.get_lines()[0].get_ydata()) == pytest.approx([1100, 550, 1100 / 3])
    assert [bar.get_height() for bar in memory.patches] == pytest.approx(
        [1100, 600, 600] + [100 + 1000 / 3] * 3)
    assert 'seconds by nodes, 20,000,000 rows' not in panels


def test_a_size_that_the_disk_has_no_room_for_is_left_out_in_words(tmp_path, capsys, monkeypatch):
    usage = collections.namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10 ** 6))
    assert bench_growth.main(['--out', str(tmp_path), '--rows', '5000']) == 0
    assert '5,000 rows more need 0.0 GB of disk' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.end_to_end
def test_small_benchmark(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_growth, 'TWICE', 6000)
    monkeypatch.setattr(bench_growth, 'ONCE', 12000)
    assert bench_growth.main(['--out', str(tmp_path), '--rows', '12000', '6000']) == 0
    assert 'How to read it' in capsys.readouterr().out
    small, large = json.loads((tmp_path / 'growth.json').read_text())
    assert (small['rows'], large['rows']) == (6000, 12000)
    assert (len(small['rounds']), len(large['rounds'])) == (2, 1)
    for found in small['rounds'] + large['rounds']:
        assert found[NODES[0]]['model'] == found[ENGINE]['model']
        assert all(one['seconds'] > 0 for one in found.values())
    assert all(len(found['3 nodes']['node memory, MB']) == 3 for found in small['rounds'])
    assert '2 nodes' not in large['rounds'][0]
    assert sorted(path.name for path in tmp_path.glob('*.*')) == [
        'growth.json', 'growth.md', 'growth.png']


@pytest.mark.end_to_end
def test_a_table_grows_by_other_rows_with_other_ids(tmp_path):
    path, command = tmp_path / 'table.csv', str(ROOT / 'scripts' / 'bench' / 'grow_table.py')
    for begin, stop in ((0, 700), (700, 2100)):
        subprocess.check_call([sys.executable, command, str(path), str(begin), str(stop)],
                              env={'PYTHONPATH': str(ROOT / 'training')})
    # It refuses a table in which an id or all that follows it comes twice.
    assert len(table.read_table(path)) == 2100
