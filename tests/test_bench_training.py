"""The training benchmark: what both benchmarks say of their rounds, and a small run of it."""
import json
import math
import os

import pytest

import bench_report
import bench_training


def figures(wall, auc, memory=100.0):
    return {'wall, s': wall, 'peak memory, MB': memory, 'boosting, s': wall / 2, 'trees': 15,
            'report.html, s': 1.0, 'test AUC': auc, 'curve': [[5, 0.6], [10, 0.63], [15, 0.64]]}


def one_round(scale=1.0, gain=0.004):
    """A round on a machine of this speed."""
    return {'default': figures(3 * scale, 0.63 + gain, 35), 'challenge': figures(
        19.2 * scale, 0.631), 'reference': figures(20 * scale, 0.63)}


def checked(rounds):
    """{what: (found, met)}."""
    return {label: row for label, _, *row in bench_report.check(bench_training.limits(rounds))}


def test_limits_are_held_to_ratios_within_a_round():
    rounds = [one_round(), one_round(3, gain=0.002), one_round(gain=0.006)]
    found = checked(rounds)
    assert found['wall, default / reference'] == ['0.15 [0.15, 0.15]', 'yes']
    assert found['wall, challenge / reference'] == ['0.96 [0.96, 0.96]', 'NO']
    assert found['peak memory, default / reference'] == ['0.35 [0.35, 0.35]', 'yes']
    # 10 of 15 trees in 1.5 s, against 10 s.
    assert found["boosting to the reference's AUC, default / reference"] == [
        '0.1 [0.1, 0.1]', 'NO']
    assert found['test AUC, default - reference'] == ['0.004 [0.002, 0.006]', 'yes']
    # 0.004 over 0.002 / sqrt(3).
    error = f'{2 * math.sqrt(3):.3g}'
    assert found['... its mean, in standard errors'] == [f'{error} [{error}, {error}]', 'yes']
    never = one_round()
    never['default']['curve'] = [[15, 0.62]]
    assert checked([never])["boosting to the reference's AUC, default / reference"] == [
        'inf [inf, inf]', 'NO']


def test_each_round_begins_with_another_subject():
    order = []
    for number in range(3):
        assert list(bench_report.run_round(number, ['a', 'b', 'c'], order.append)) == [
            'a', 'b', 'c']
    assert ''.join(order) == 'abcbcacab'


def test_a_command_that_fails_ends_the_benchmark_with_its_words():
    with pytest.raises(RuntimeError, match='no such thing'):
        bench_training.run_python('-c', 'raise SystemExit("no such thing")')


@pytest.mark.end_to_end
def test_a_failure_leaves_the_results_of_the_benchmark_before(tmp_path, monkeypatch):
    def write(title):
        rounds = [one_round()]
        bench_report.write(tmp_path / 'training', title, rounds, bench_training.FIGURES,
                           bench_training.limits(rounds), ['test AUC'])
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = write('before')
    monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write('after')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.end_to_end
def test_small_benchmark(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_training, 'TEST_ROWS', 20000)
    assert bench_training.main(['--out', str(tmp_path), '--rows', '6000', '--rounds', '1']) == 0
    assert 'How to read it' in capsys.readouterr().out
    found, = json.loads((tmp_path / 'training.json').read_text())
    assert set(found) == set(bench_training.PARAMETERS)
    assert all(one['wall, s'] > 0 and one['peak memory, MB'] > 50 and 0.5 < one['test AUC'] < 0.7
               for one in found.values())
    assert '| test AUC, default - reference ' in (tmp_path / 'training.md').read_text()
    pytest.importorskip('matplotlib')
    assert (tmp_path / 'training.png').exists()
