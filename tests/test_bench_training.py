"""The training benchmark: its arithmetic, and a small run of the whole."""
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench_training

ROOT = Path(__file__).resolve().parent.parent


def figures(wall, auc, other_load=0.0, curve=((5, 0.6), (10, 0.63), (15, 0.64))):
    return {'wall': wall, 'cpu': wall, 'memory_mb': 100.0, 'boosting': wall / 2, 'rounds': 15,
            'other_load': other_load, 'report': 1.0,
            'test': {'auc': auc, 'curve': [list(point) for point in curve], 'calibration': 1.0}}


def a_round(scale=1.0, other_load=0.0, gain=0.004):
    return {'reference': figures(20 * scale, 0.63, other_load), 'challenge': figures(
        15 * scale, 0.631), 'default': figures(3 * scale, 0.63 + gain)}


def test_corrected_error_is_nadeau_and_bengios():
    differences = [0.01, 0.03, 0.02, 0.00, 0.04]
    plain = 0.015811388 / math.sqrt(5)
    assert bench_training.corrected_error(differences, 5) == pytest.approx(
        plain * math.sqrt(1 + 5 / 4))


def test_spoilt_rounds_count_for_quality_only():
    rounds = [a_round(), a_round(gain=0.002), a_round(scale=9, other_load=0.5, gain=0.006)]
    summary = bench_training.summarise(rounds)
    assert summary['quiet_rounds'] == 2
    assert summary['subjects']['reference']['wall'] == [20, 20, 20]
    assert summary['gain_mean']['default'] == pytest.approx(0.004)
    assert summary['gain_error']['default'] == pytest.approx(0.002 / math.sqrt(3))


def test_limits_are_ratios_to_the_reference():
    found = {name: (text, met) for name, _, text, met in bench_training.targets(
        bench_training.summarise([a_round(), a_round(gain=0.0045)]))}
    assert found['wall, default'] == ('0.150', True)
    assert found['wall, challenge parameters'] == ('0.750', True)
    assert found['peak memory, default'] == ('1.000', False)
    # 10 of 15 trees in 1.5 s, against 10 s.
    assert found['boosting time to the reference AUC'] == ('0.100', False)
    assert found['AUC, default minus reference'] == ('+0.00425', True)
    assert found['... in standard errors'] == ('17.0', True)


def test_a_model_that_never_reaches_the_reference_is_said():
    slow = a_round()
    slow['default']['test']['curve'] = [[15, 0.62]]
    rows = bench_training.targets(bench_training.summarise([slow]))
    assert [row[2:] for row in rows if 'boosting' in row[0]] == [('inf', False)]


def test_measure_sees_the_child_and_what_others_use():
    work = ['-c', 'import sys; x = bytearray(60000000); sum(range(4000000)); print(len(x))']
    text, alone = bench_training.measure([sys.executable] + work)
    assert text == '60000000\n'
    assert alone['memory_mb'] > 60
    assert 0 < alone['cpu'] < 60 and alone['wall'] > 0
    with pytest.raises(RuntimeError, match='no such thing'):
        bench_training.measure([sys.executable, '-c', 'raise SystemExit("no such thing")'])


@pytest.mark.end_to_end
def test_small_benchmark(tmp_path):
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / 'scripts' / 'bench_training.py'), '--out',
                           str(tmp_path), '--rows', '6000', '--rounds', '1'],
                          stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0
    assert 'How to read it' in done.stdout
    result = json.loads((tmp_path / 'training.json').read_text())
    assert set(result['summary']['subjects']) == set(bench_training.SUBJECTS)
    walls = [found[subject]['wall'] for found in result['rounds'] for subject in found]
    assert 0 < sum(walls) < time.monotonic() - start
    assert sorted(file.name for file in tmp_path.iterdir()) in (
        ['training.json', 'training.png'], ['training.json'])


@pytest.mark.end_to_end
def test_small_cross_validation(tmp_path):
    data = tmp_path / 'table.csv'
    bench_training.make_table(data, 2000, 1)
    assert bench_training.main(['--out', str(tmp_path / 'out'), '--cross-validate', str(data)]) == 0
    result = json.loads((tmp_path / 'out' / 'cross_validation.json').read_text())
    assert len(result['auc']['default']) == len(result['auc']['challenge']) == 25
    assert bench_training.main(['--out', str(tmp_path / 'out'), '--cross-validate',
                                str(tmp_path / 'missing.csv')]) == 1
