"""Training against the challenge's reference script: time, memory, quality; table and picture.

    python scripts/bench_training.py --out outputs/bench

Each round makes a new sample table and trains on it in turn with `reference` (a script as the
challenge leaves it), `challenge` (this project with the challenge's parameters) and `default`. Each
model then scores the same further rows, against the probabilities that the generator drew their
targets from, so that no luck of the draw is in the AUC.
"""
import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import bench_report
from bench_report import ratios, values

PROGRAMS = Path(__file__).resolve().parent / 'bench'
TRAINING = PROGRAMS.parent.parent / 'training'
PARAMETERS = {'default': 'parameters.json', 'challenge': 'parameters_challenge.json',
              'reference': 'parameters_challenge.json'}
TEST_ROWS = 120000
TEST_SEED = 1000
FIGURES = {'wall, s': '.2f', 'CPU, s': '.2f', 'peak memory, MB': '.0f', 'boosting, s': '.2f',
           'trees': '.0f', 'report.html, s': '.2f', 'test AUC': '.5f', 'calibration': '.4f'}
BARS = ('wall, s', 'CPU, s', 'peak memory, MB')
READING = '''
How to read it. wall: from the start of the process to its end, the report left out. test AUC: of
further rows that no model saw, expected over all labels that their true probabilities can give.
calibration: the mean prediction over the mean true probability. Each round has a table of its own,
so ratios and differences are taken within a round. Times are of this machine, and a wide spread
says that others used it too; their ratios are what compares.'''


def run_python(*words):
    """(last line of the output, {figure: number}) of Python with training/ on its path.

    This process stays small, for Linux counts the memory of the one that starts another as that
    one's first peak. Raises RuntimeError where the exit code is not 0.
    """
    environ = {name: value for name, value in os.environ.items()
               if name not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    environ['PYTHONPATH'] = str(TRAINING)
    command = [sys.executable] + [str(word) for word in words]
    code, said, figures = bench_report.run_measured(command, env=environ)
    lines = said.splitlines()
    if code:
        raise RuntimeError('\n'.join([f"{' '.join(command[:2])} failed:"] + lines))
    return lines[-1] if lines else '', figures


def train_subject(subject, data, test_data, folder):
    """Train once: {figure: number}, and as 'curve' the test AUC after so many trees."""
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    parameters, model = TRAINING / PARAMETERS[subject], folder / 'model.txt'
    if subject == 'reference':
        line, found = run_python(PROGRAMS / 'reference_training.py', data, parameters, model)
        result = json.loads(line)
        found.update({'boosting, s': result['boosting'], 'trees': result['rounds']})
    else:
        _, found = run_python(TRAINING / 'train.py', '--data', data, '--parameters', parameters,
                              '--out', folder)
        result = json.loads((folder / 'metrics.json').read_text())
        seconds = result['seconds']
        found['wall, s'] -= seconds['report']
        found.update({'boosting, s': seconds['boosting'], 'trees': result['rounds'],
                      'report.html, s': seconds['report']})
    test = json.loads(run_python(PROGRAMS / 'judge_model.py', test_data, model)[0])
    found.update({'test AUC': test['auc'], 'calibration': test['calibration'],
                  'curve': test['curve']})
    return found


def time_to_reference(found):
    """Boosting time of the default until it has the reference's AUC, over the reference's own."""
    default, reference = found['default'], found['reference']
    trees = next((trees for trees, auc in default['curve'] if auc >= reference['test AUC']),
                 math.inf)
    return default['boosting, s'] * trees / default['trees'] / reference['boosting, s']


def limits(rounds):
    """What training is held to, for bench_report.check()."""
    gains = [found['default']['test AUC'] - found['reference']['test AUC'] for found in rounds]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return [
        ('wall, default / reference', 'at most', 0.28,
         ratios(rounds, 'wall, s', 'default', 'reference')),
        ('wall, challenge / reference', 'at most', 0.95,
         ratios(rounds, 'wall, s', 'challenge', 'reference')),
        ('peak memory, default / reference', 'at most', 0.35,
         ratios(rounds, 'peak memory, MB', 'default', 'reference')),
        ("boosting to the reference's AUC, default / reference", 'at most', 0.08,
         [time_to_reference(found) for found in rounds]),
        ('report.html, s', 'at most', 3, values(rounds, 'default', 'report.html, s')),
        ('test AUC, default - reference', 'at least', 0.0015, gains),
        ('... its mean, in standard errors', 'at least', 2, [statistics.mean(gains) / error])]


def measure_rounds(args):
    rounds = []
    with tempfile.TemporaryDirectory(dir=str(args.out)) as folder:
        folder = Path(folder)
        data, test_data = folder / 'table.csv', folder / 'test.csv'
        sample = TRAINING / 'sample.py'
        run_python(sample, '--rows', TEST_ROWS, '--seed', TEST_SEED, '--out', test_data)
        # Whoever is first would pay for reading the packages from the disk.
        run_python('-c', 'import lightgbm, pandas')
        for number in range(1, args.rounds + 1):
            run_python(sample, '--rows', args.rows, '--seed', number, '--out', data)
            rounds.append(bench_report.run_round(number, list(PARAMETERS), train_subject, data,
                                                 test_data, folder / 'model'))
    return rounds


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--rows', type=int, default=595212, help='rows of the sample tables')
    parser.add_argument('--rounds', type=int, choices=range(1, 100), metavar='1..99', default=5,
                        help='how many tables (default 5)')
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        rounds = measure_rounds(args)
        title = f'Training on {args.rows:,} rows, {args.rounds} rounds, {os.cpu_count()} cores'
        bench_report.write(args.out / 'training', title, rounds, FIGURES, limits(rounds), BARS)
        print(READING)
    except (RuntimeError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
