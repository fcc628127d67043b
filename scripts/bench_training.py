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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import atomic

PROGRAMS = Path(__file__).resolve().parent / 'bench'
TRAINING = PROGRAMS.parent.parent / 'training'
SUBJECTS = ('reference', 'challenge', 'default')
PARAMETERS = {'challenge': 'parameters_challenge.json', 'default': 'parameters.json'}
TEST_ROWS = 120000
TEST_SEED = 1000
# A round is spoilt where others used more of the processors than this share of one of them.
MOST_OTHER_LOAD = 0.2
COLOURS = {'reference': '#8b97a3', 'challenge': '#7fa8cc', 'default': '#14568c'}
WIDTHS = (23, 23, 21, 21, 7, 9)


def rounds_to(curve, target):
    """Trees after which the AUC first reaches the target, None if it never does."""
    return next((trees for trees, auc in curve if auc >= target), None)


def busy_seconds():
    """Processor seconds used on this machine so far, by anyone, or None where that is unknown."""
    try:
        with open('/proc/stat') as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')


def measure_command(command):
    """Run a command alone: (its output, {"wall", "cpu", "memory_mb", "other_load"}).

    This process stays small, for Linux counts the memory of the one that starts another as that
    one's first peak.
    """
    environ = {name: value for name, value in os.environ.items()
               if name not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as problems:
        before, start = busy_seconds(), time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=problems, env=environ)
        try:
            _, process.returncode, usage = os.wait4(process.pid, 0)
        finally:
            process.kill()
        wall, after = time.monotonic() - start, busy_seconds()
        for file in (out, problems):
            file.seek(0)
        text = out.read()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:2])} failed: {problems.read()}")
    cpu = usage.ru_utime + usage.ru_stime
    scale = 1 if sys.platform == 'darwin' else 1024
    return text, {'wall': wall, 'cpu': cpu, 'memory_mb': usage.ru_maxrss * scale / 1e6,
                  'other_load': 0 if after is None else max(0, after - before - cpu) / wall}


def run_with_training(*words):
    """The output of Python with these arguments and with training/ on its path."""
    return subprocess.run(
        [sys.executable] + [str(word) for word in words], check=True, stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(TRAINING))).stdout.decode()


def last_line(text):
    """The JSON in the last line; LightGBM prints to the same stream."""
    return json.loads(text.splitlines()[-1])


def make_table(path, rows, seed):
    run_with_training(TRAINING / 'sample.py', '--rows', rows, '--seed', seed, '--out', path)


def train_subject(subject, data, folder):
    """Train once; the figures, and the model in folder/model.txt."""
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    if subject == 'reference':
        text, figures = measure_command([
            sys.executable, str(PROGRAMS / 'reference_training.py'), str(data),
            str(TRAINING / PARAMETERS['challenge']), str(folder / 'model.txt')])
        return dict(last_line(text), **figures)
    _, figures = measure_command([
        sys.executable, str(TRAINING / 'train.py'), '--data', str(data), '--parameters',
        str(TRAINING / PARAMETERS[subject]), '--out', str(folder)])
    result = json.loads((folder / 'metrics.json').read_text())
    seconds = result['seconds']
    return dict(figures, wall=figures['wall'] - seconds['report'], report=seconds['report'],
                boosting=seconds['boosting'], rounds=result['rounds'], auc=result['auc'])


def run_round(number, data, truth, folder):
    """All subjects once on one table, in an order that rotates: {subject: figures}."""
    turn = number % len(SUBJECTS)
    found = {}
    for subject in SUBJECTS[turn:] + SUBJECTS[:turn]:
        found[subject] = train_subject(subject, data, folder / subject)
        found[subject]['test'] = last_line(run_with_training(
            PROGRAMS / 'judge_model.py', truth, folder / subject / 'model.txt'))
    return found


def spoilt(found):
    return max(figures['other_load'] for figures in found.values()) > MOST_OTHER_LOAD


def summarise_rounds(rounds):
    """What the rounds say: {"subjects": {subject: {measure: [median, least, most]}}, ...}.

    Times and memory come from the rounds that other load did not spoil, if there are any; AUCs,
    which no load changes, from all.
    """
    quiet = [found for found in rounds if not spoilt(found)] or rounds
    subjects = {}
    for subject in SUBJECTS:
        subjects[subject] = {}
        for measure in ('wall', 'cpu', 'memory_mb', 'boosting', 'rounds'):
            values = [found[subject][measure] for found in quiet]
            subjects[subject][measure] = [statistics.median(values), min(values), max(values)]
        for name, measure in (('test_auc', 'auc'), ('calibration', 'calibration')):
            subjects[subject][name] = statistics.mean(
                found[subject]['test'][measure] for found in rounds)
    gains = {subject: [found[subject]['test']['auc'] - found['reference']['test']['auc']
                       for found in rounds] for subject in SUBJECTS[1:]}
    reached = []
    for found in quiet:
        default, reference = found['default'], found['reference']
        trees = rounds_to(default['test']['curve'], reference['test']['auc'])
        reached.append(math.inf if trees is None else
                       default['boosting'] * trees / default['rounds'] / reference['boosting'])
    return {
        'subjects': subjects, 'rounds': len(rounds), 'quiet_rounds': sum(
            not spoilt(found) for found in rounds),
        'gains': gains,
        'gain_mean': {name: statistics.mean(values) for name, values in gains.items()},
        'gain_error': {name: statistics.stdev(values) / math.sqrt(len(values))
                       if len(values) > 1 else math.inf for name, values in gains.items()},
        'time_to_reference': statistics.median(reached),
        'report': statistics.median(found['default']['report'] for found in quiet)}


def compare_with_limits(summary):
    """The limits that training is held to: [(measure, limit, found, met)]."""
    def ratio(subject, measure):
        return summary['subjects'][subject][measure][0] / \
            summary['subjects']['reference'][measure][0]

    gain, error = summary['gain_mean']['default'], summary['gain_error']['default']
    rows = [('wall, default', 0.28, ratio('default', 'wall')),
            ('wall, challenge parameters', 0.95, ratio('challenge', 'wall')),
            ('peak memory, default', 0.35, ratio('default', 'memory_mb')),
            ('boosting time to the reference AUC', 0.08, summary['time_to_reference']),
            ('report.html, seconds', 3, summary['report'])]
    rows = [(name, f'at most {limit:g}', f'{found:.3f}', found <= limit)
            for name, limit, found in rows]
    return rows + [('AUC, default minus reference', 'at least +0.0015', f'{gain:+.5f}',
                    gain >= 0.0015),
                   ('... in standard errors', 'at least 2', f'{gain / error:.1f}',
                    gain >= 2 * error)]


def describe_rounds(summary, rows):
    """The tables as text."""
    def line(name, cells):
        return f'{name:<10}' + ''.join(f'{cell:>{width}}' for cell, width in zip(cells, WIDTHS))

    def spread(values, digits):
        median, least, most = [f'{value:.{digits}f}' for value in values]
        return f'{median} [{least}, {most}]'

    lines = ['', f"Training on {rows:,} rows, {summary['rounds']} rounds "
             f"({summary['quiet_rounds']} undisturbed); median [least, most]", '',
             line('', ('wall s', 'CPU s', 'peak MB', 'boosting s', 'trees', 'test AUC'))]
    for subject, figures in summary['subjects'].items():
        lines.append(line(subject, (
            spread(figures['wall'], 2), spread(figures['cpu'], 2), spread(figures['memory_mb'], 0),
            spread(figures['boosting'], 2), f"{figures['rounds'][0]:.0f}",
            f"{figures['test_auc']:.5f}")))
    lines += ['', 'Mean prediction over mean true probability: ' + ', '.join(
        f"{subject} {figures['calibration']:.4f}"
        for subject, figures in summary['subjects'].items()), '',
        f"{'against the reference':<38} {'limit':>17} {'found':>10}  met"]
    lines += [f"{name:<38} {limit:>17} {found:>10}  {'yes' if met else 'NO'}"
              for name, limit, found, met in compare_with_limits(summary)]
    return '\n'.join(lines + [READING])


READING = '''
How to read it. wall: from the start of the process to its end, the report left out. test AUC: of
further rows that no model saw, expected over all labels that their true probabilities can give.
Each round has a table of its own, so look at differences within a round. Times are of this machine;
their ratios are what compares. A round in which others used the processors counts for the AUC only
and is done again; where there are no others, its times are used and it is said above.'''


def draw_bars(axes, title, summary, measure, digits, unit):
    values = [summary['subjects'][subject][measure] for subject in SUBJECTS]
    middle = [value[0] for value in values]
    axes.bar(SUBJECTS, middle, color=[COLOURS[subject] for subject in SUBJECTS], yerr=[
        [median - least for median, least, _ in values],
        [most - median for median, _, most in values]],
        error_kw={'ecolor': '#1d2733', 'capsize': 4})
    for position, (median, _, most) in enumerate(values):
        text = f'{median:.{digits}f} {unit}\n{median / middle[0]:.2f} of reference'
        axes.annotate(text, (position, most), xytext=(0, 6), textcoords='offset points',
                      ha='center', fontsize=9)
    axes.set(title=title, ylim=(0, 1.25 * max(most for _, _, most in values)))


def draw_gain(axes, summary):
    for position, subject in enumerate(SUBJECTS[1:]):
        values = summary['gains'][subject]
        axes.plot([position] * len(values), values, 'o', color=COLOURS[subject], alpha=0.6)
        axes.errorbar(position + 0.2, summary['gain_mean'][subject],
                      2 * summary['gain_error'][subject] if len(values) > 1 else 0,
                      fmt='s', color='#1d2733', capsize=4)
    axes.axhline(0, color=COLOURS['reference'])
    axes.set(xticks=[0, 1], xlim=(-0.5, 1.6), title='AUC gain by table; mean and 2 SE')
    axes.set_xticklabels(SUBJECTS[1:])


def draw_curve(axes, found):
    for subject in SUBJECTS:
        figures = found[subject]
        points = figures['test']['curve']
        axes.plot([figures['boosting'] * trees / figures['rounds'] for trees, _ in points],
                  [auc for _, auc in points], color=COLOURS[subject], linewidth=2, label=subject)
    axes.axhline(found['reference']['test']['auc'], color=COLOURS['reference'], linestyle='--',
                 linewidth=1)
    axes.set(xscale='log', xlabel='seconds of boosting', title='Test AUC as trees are added')
    axes.legend(frameon=False, loc='lower right')


def draw_picture(path, rounds, summary):
    """The picture of all that as a PNG file, if there is matplotlib to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('no picture: matplotlib is not installed for this Python')
        return
    figure = Figure(figsize=(10, 8), layout='constrained')
    (wall, memory), (gain, curve) = figure.subplots(2, 2)
    draw_bars(wall, 'Seconds from CSV to model', summary, 'wall', 1, 's')
    draw_bars(memory, 'Peak memory, MB', summary, 'memory_mb', 0, 'MB')
    draw_gain(gain, summary)
    draw_curve(curve, rounds[-1])
    for axes in figure.axes:
        axes.spines[['top', 'right']].set_visible(False)
        axes.title.set_fontweight('bold')
    figure.savefig(str(path), dpi=110)


def measure_rounds(args):
    """[{subject: figures}, ...] until enough rounds are undisturbed, or twice as many are done."""
    rounds = []
    with tempfile.TemporaryDirectory(dir=str(args.out)) as folder:
        folder = Path(folder)
        data, truth = folder / 'table.csv', folder / 'truth.npz'
        print('making the test rows', flush=True)
        make_table(data, TEST_ROWS, TEST_SEED)
        run_with_training(PROGRAMS / 'true_probabilities.py', data, truth)
        # Whoever is first would pay for reading the packages from the disk.
        run_with_training('-c', 'import lightgbm, pandas')
        while sum(not spoilt(found) for found in rounds) < args.rounds and \
                len(rounds) < 2 * args.rounds:
            number = len(rounds) + 1
            make_table(data, args.rows, number)
            found = run_round(number - 1, data, truth, folder)
            rounds.append(found)
            told = ', '.join(f"{subject} {figures['wall']:.1f} s, AUC {figures['test']['auc']:.5f}"
                             for subject, figures in found.items())
            print(f"round {number}: {told}{'; spoilt by other load' * spoilt(found)}", flush=True)
    return rounds


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--rows', type=int, default=595212, help='rows of the sample tables')
    parser.add_argument('--rounds', type=int, default=5, help='undisturbed rounds wanted')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f'--rounds is {args.rounds}: it takes one at least')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        rounds = measure_rounds(args)
        summary = summarise_rounds(rounds)
        print(describe_rounds(summary, args.rows))
        draw_picture(args.out / 'training.png', rounds, summary)
        atomic.write_json(args.out / 'training.json', {
            'rows': args.rows, 'processors': os.cpu_count(), 'summary': summary,
            'targets': compare_with_limits(summary), 'rounds': rounds})
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
