"""The training benchmark: what it says of its rounds, and a small run of the whole."""
import json
import math
import sys

import pytest

import bench_training


def figures(wall, auc, other_load=0.0):
    return {'wall': wall, 'cpu': wall, 'memory_mb': 100.0, 'boosting': wall / 2, 'rounds': 15,
            'other_load': other_load, 'report': 1.0,
            'test': {'auc': auc, 'curve': [[5, 0.6], [10, 0.63], [15, 0.64]], 'calibration': 1.0}}


def one_round(scale=1.0, other_load=0.0, gain=0.004):
    return {'reference': figures(20 * scale, 0.63, other_load), 'challenge': figures(
        15 * scale, 0.631), 'default': figures(3 * scale, 0.63 + gain)}


def met_limits(rounds):
    """{measure: (found, met)}."""
    summary = bench_training.summarise_rounds(rounds)
    return {name: row for name, _, *row in bench_training.compare_with_limits(summary)}


def test_spoilt_rounds_count_for_quality_only():
    rounds = [one_round(), one_round(gain=0.002), one_round(9, other_load=0.5, gain=0.006)]
    text = bench_training.describe_rounds(bench_training.summarise_rounds(rounds), 6000)
    assert '6,000 rows, 3 rounds (2 undisturbed)' in text and '20.00 [20.00, 20.00]' in text
    found = met_limits(rounds)
    assert found['AUC, default minus reference'] == ['+0.00400', True]
    # 0.004 over 0.002 / sqrt(3).
    assert found['... in standard errors'] == [f'{2 * math.sqrt(3):.1f}', True]


def test_limits_are_ratios_to_the_reference():
    found = met_limits([one_round(), one_round(gain=0.0045)])
    assert found['wall, default'] == ['0.150', True]
    assert found['wall, challenge parameters'] == ['0.750', True]
    assert found['peak memory, default'] == ['1.000', False]
    # 10 of 15 trees in 1.5 s, against 10 s.
    assert found['boosting time to the reference AUC'] == ['0.100', False]
    never = one_round()
    never['default']['test']['curve'] = [[15, 0.62]]
    assert met_limits([never])['boosting time to the reference AUC'] == ['inf', False]


def test_a_command_that_fails_ends_the_benchmark_with_its_words():
    with pytest.raises(RuntimeError, match='no such thing'):
        bench_training.measure_command([sys.executable, '-c', 'raise SystemExit("no such thing")'])


@pytest.mark.end_to_end
def test_small_benchmark(tmp_path, capsys):
    assert bench_training.main(['--out', str(tmp_path), '--rows', '6000', '--rounds', '1']) == 0
    assert 'How to read it' in capsys.readouterr().out
    result = json.loads((tmp_path / 'training.json').read_text())
    for found in result['rounds']:
        assert set(found) == set(bench_training.SUBJECTS)
        assert all(one['wall'] > 0 and one['memory_mb'] > 50 and 0.5 < one['test']['auc'] < 0.7
                   for one in found.values())
    pytest.importorskip('matplotlib')
    assert sorted(file.name for file in tmp_path.iterdir()) == ['training.json', 'training.png']
