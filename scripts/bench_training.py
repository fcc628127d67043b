"""Training against the challenge's reference script: time, memory, quality; table and picture.

    python scripts/bench_training.py --out outputs/bench

Each round makes a new sample table and trains on it in turn with `reference` (a script as the
challenge leaves it), `challenge` (this project with the challenge's parameters) and `default`. Each
model then scores the same further rows, against the probabilities that the generator drew their
targets from, so that no luck of the draw is in the AUC.

    python scripts/bench_training.py --out outputs/bench --cross-validate real.csv

compares default and challenge parameters by 5 times repeated 5-fold cross-validation on a table.
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

TRAINING = Path(__file__).resolve().parent.parent / 'training'
SUBJECTS = ('reference', 'challenge', 'default')
PARAMETERS = {'challenge': 'parameters_challenge.json', 'default': 'parameters.json'}
TEST_ROWS = 120000
TEST_SEED = 1000
SMALL_ROWS = 60000
FOLDS = REPEATS = 5
# A round is spoilt where others used more of the processors than this share of one of them.
MOST_OTHER_LOAD = 0.2
COLOURS = {'reference': '#8b97a3', 'challenge': '#7fa8cc', 'default': '#14568c'}

REFERENCE = '''
import json, sys, time
import lightgbm, numpy, pandas

table, parameters, model_file = sys.argv[1:]
data = pandas.read_csv(table)
order = numpy.random.RandomState(0).permutation(len(data))
fifth = len(data) // 5
features, labels = data.drop(['target', 'id'], axis=1), numpy.array(data['target'])
train_data = lightgbm.Dataset(features.iloc[order[fifth:]], label=labels[order[fifth:]])
valid_data = lightgbm.Dataset(features.iloc[order[:fifth]], label=labels[order[:fifth]],
                              free_raw_data=False)
began = []

def clock(env):
    began.append(time.monotonic())

clock.before_iteration = True
model = lightgbm.train(json.load(open(parameters))['training'], train_data, valid_sets=[valid_data],
                       num_boost_round=500,
                       callbacks=[lightgbm.early_stopping(20, verbose=False), clock])
seconds = time.monotonic() - began[0]
score, label = model.predict(valid_data.data), valid_data.label
rank = numpy.empty(len(score))
rank[numpy.argsort(score)] = numpy.arange(len(score))
ones = label.sum()
auc = (rank[label == 1].sum() - ones * (ones - 1) / 2) / ones / (len(label) - ones)
model.save_model(model_file)
print(json.dumps({'boosting': seconds, 'rounds': model.best_iteration, 'auc': auc}))
'''

# Runs with training/ on its path: keeps the features and true probabilities of a table.
TRUTH = '''
import sys
import numpy, sample, table
frame = table.read_table(sys.argv[1])
numpy.savez(sys.argv[2], features=frame[table.FEATURES].to_numpy(numpy.float32),
            probability=sample.claim_probabilities(frame))
'''

# Runs with training/ on its path: AUC to be expected, and the same after every few trees.
JUDGE = '''
import json, sys
import lightgbm, metrics, numpy
with numpy.load(sys.argv[1]) as truth:
    features, probability = truth['features'], truth['probability']
model, raw, curve = lightgbm.Booster(model_file=sys.argv[2]), 0, []
for done in range(0, model.num_trees(), 5):
    trees = min(5, model.num_trees() - done)
    raw = raw + model.predict(features, raw_score=True, start_iteration=done, num_iteration=trees)
    curve.append([done + trees, metrics.expected_auc(probability, raw)])
print(json.dumps({
    'auc': curve[-1][1], 'curve': curve, 'best_possible': metrics.expected_auc(
        probability, probability),
    'calibration': float((1 / (1 + numpy.exp(-raw))).mean() / probability.mean())}))
'''

# Runs with training/ on its path: hold-out AUC of each fold under each file of parameters.
FOLD = '''
import json, sys
import metrics, numpy, table, train, parameters as p
frame = table.read_table(sys.argv[1])
parameters = [p.load_parameters(path) for path in sys.argv[2:4]]
folds, repeats = int(sys.argv[4]), int(sys.argv[5])
for repeat in range(repeats):
    random = numpy.random.RandomState(repeat)
    fold = random.permutation(len(frame)) % folds
    stopping = random.random_sample(len(frame)) < 0.2
    for number in range(folds):
        part = numpy.where(fold == number, table.HOLD_OUT,
                           numpy.where(stopping, table.EARLY_STOPPING, table.TRAINING))
        results = [train.fit(frame, one, part) for one in parameters]
        print(json.dumps([[metrics.auc(label, probability), rest['rounds']]
                          for _, label, probability, rest in results]), flush=True)
'''


def corrected_error(differences, folds):
    """Standard error of the mean difference over repeated cross-validation.

    With the correction for training sets that overlap (Nadeau and Bengio 2003,
    doi 10.1023/A:1024068626366): a test set is 1 / (folds - 1) of its training set.
    """
    return math.sqrt((1 / len(differences) + 1 / (folds - 1)) * statistics.variance(differences))


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


def measure(command, threads=None):
    """Run a command alone: (its output, {"wall", "cpu", "memory_mb", "other_load"}).

    This process stays small, for Linux counts the memory of the one that starts another as that
    one's first peak.
    """
    environ = {name: value for name, value in os.environ.items()
               if name not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    if threads:
        environ['OMP_NUM_THREADS'] = str(threads)
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


def with_training(code, *arguments):
    """Run code with training/ on its path; its output."""
    return subprocess.run(
        [sys.executable, '-c', code] + [str(argument) for argument in arguments], check=True,
        stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(TRAINING))).stdout.decode()


def last_line(text):
    """The JSON in the last line; LightGBM prints to the same stream."""
    return json.loads(text.splitlines()[-1])


def make_table(path, rows, seed):
    subprocess.run([sys.executable, str(TRAINING / 'sample.py'), '--rows', str(rows), '--seed',
                    str(seed), '--out', str(path)], check=True, stdout=subprocess.DEVNULL)


def run_subject(subject, data, folder, threads=None):
    """Train once; the figures, and the model in folder/model.txt."""
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    if subject == 'reference':
        script = folder / 'reference.py'
        script.write_text(REFERENCE)
        text, figures = measure([sys.executable, str(script), str(data), str(
            TRAINING / PARAMETERS['challenge']), str(folder / 'model.txt')], threads)
        return dict(last_line(text), **figures)
    _, figures = measure([sys.executable, str(TRAINING / 'train.py'), '--data', str(data),
                          '--parameters', str(TRAINING / PARAMETERS[subject]), '--out',
                          str(folder)], threads)
    result = json.loads((folder / 'metrics.json').read_text())
    seconds = result['seconds']
    return dict(figures, wall=figures['wall'] - seconds['report'], report=seconds['report'],
                boosting=seconds['boosting'], rounds=result['rounds'], auc=result['auc'])


def run_round(number, data, truth, folder, threads=None):
    """All subjects once on one table, in an order that rotates: {subject: figures}."""
    turn = number % len(SUBJECTS)
    found = {}
    for subject in SUBJECTS[turn:] + SUBJECTS[:turn]:
        found[subject] = run_subject(subject, data, folder / subject, threads)
        found[subject]['test'] = last_line(with_training(
            JUDGE, truth, folder / subject / 'model.txt'))
    return found


def spoilt(found):
    return max(figures['other_load'] for figures in found.values()) > MOST_OTHER_LOAD


def summarise(rounds):
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
        subjects[subject]['test_auc'] = statistics.mean(
            found[subject]['test']['auc'] for found in rounds)
        subjects[subject]['calibration'] = statistics.mean(
            found[subject]['test']['calibration'] for found in rounds)
    gains = {subject: [found[subject]['test']['auc'] - found['reference']['test']['auc']
                       for found in rounds] for subject in SUBJECTS[1:]}
    reached = []
    for found in quiet:
        trees = rounds_to(found['default']['test']['curve'], found['reference']['test']['auc'])
        reached.append(math.inf if trees is None else
                       found['default']['boosting'] * trees / found['default']['rounds'] /
                       found['reference']['boosting'])
    return {
        'subjects': subjects, 'rounds': len(rounds), 'quiet_rounds': sum(
            not spoilt(found) for found in rounds),
        'gains': gains,
        'gain_mean': {name: statistics.mean(values) for name, values in gains.items()},
        'gain_error': {name: statistics.stdev(values) / math.sqrt(len(values))
                       if len(values) > 1 else math.inf for name, values in gains.items()},
        'time_to_reference': statistics.median(reached),
        'report': statistics.median(found['default']['report'] for found in quiet)}


def targets(summary):
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


def describe(summary, rows, scaling):
    """The tables as text."""
    lines = ['', 'Training on {:,} rows, {} rounds ({} undisturbed); median [least, most]'.format(
        rows, summary['rounds'], summary['quiet_rounds']), '']
    form = '{:<10} {:>21} {:>21} {:>20} {:>19} {:>7} {:>9}'
    lines.append(form.format('', 'wall s', 'CPU s', 'peak MB', 'boosting s', 'trees', 'test AUC'))
    for subject, figures in summary['subjects'].items():
        lines.append(form.format(
            subject, *['{:.2f} [{:.2f}, {:.2f}]'.format(*figures[name])
                       if name != 'memory_mb' else '{:.0f} [{:.0f}, {:.0f}]'.format(*figures[name])
                       for name in ('wall', 'cpu', 'memory_mb', 'boosting')],
            f"{figures['rounds'][0]:.0f}", f"{figures['test_auc']:.5f}"))
    lines += ['', 'Mean prediction over mean true probability: ' + ', '.join(
        f"{subject} {figures['calibration']:.4f}"
        for subject, figures in summary['subjects'].items()), '']
    form = '{:<38} {:>17} {:>10}  {}'
    lines.append(form.format('against the reference', 'limit', 'found', 'met'))
    for name, limit, found, met in targets(summary):
        lines.append(form.format(name, limit, found, 'yes' if met else 'NO'))
    lines += ['', 'By rows and threads; all but the last line are one run each']
    lines.append('{:>9} {:>8}   {}'.format('rows', 'threads', '   '.join(
        '{:>11}'.format(subject + ' s') for subject in SUBJECTS)))
    for entry in scaling:
        lines.append('{:>9,} {:>8}   {}'.format(entry['rows'], entry['threads'], '   '.join(
            '{:>11.2f}'.format(entry['wall'][subject]) for subject in SUBJECTS)))
    return '\n'.join(lines + [READING])


READING = '''
How to read it. wall: from the start of the process to its end, the report left out. test AUC: of
further rows that no model saw, expected over all labels that their true probabilities can give.
Each round has a table of its own, so look at differences within a round. Times are of this machine;
their ratios are what compares. A round in which others used the processors counts for the AUC only
and is done again; where there are no others, its times are used and it is said above.'''


def draw(path, rounds, summary, scaling):
    """The picture of all that as a PNG file, if there is matplotlib to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('no picture: matplotlib is not installed for this Python')
        return
    figure = Figure(figsize=(13.5, 8), layout='constrained')
    (wall, memory, gain), (curve, rows, threads) = figure.subplots(2, 3)
    colours = [COLOURS[subject] for subject in SUBJECTS]
    for axes, measure, title, form in ((wall, 'wall', 'Seconds from CSV to model', '{:.1f} s'),
                                       (memory, 'memory_mb', 'Peak memory, MB', '{:.0f} MB')):
        values = [summary['subjects'][subject][measure] for subject in SUBJECTS]
        middle = [value[0] for value in values]
        axes.bar(SUBJECTS, middle, color=colours, yerr=[
            [value[0] - value[1] for value in values], [value[2] - value[0] for value in values]],
            error_kw={'ecolor': '#1d2733', 'capsize': 4})
        for position, value in enumerate(values):
            text = f'{form.format(value[0])}\n{value[0] / middle[0]:.2f} of reference'
            axes.annotate(text, (position, value[2]), xytext=(0, 6), textcoords='offset points',
                          ha='center', fontsize=9)
        axes.set_title(title)
        axes.set_ylim(0, 1.25 * max(value[2] for value in values))
    for position, subject in enumerate(SUBJECTS[1:]):
        values = summary['gains'][subject]
        gain.plot([position] * len(values), values, 'o', color=COLOURS[subject], alpha=0.6)
        gain.errorbar(position + 0.2, summary['gain_mean'][subject],
                      2 * summary['gain_error'][subject] if len(values) > 1 else 0,
                      fmt='s', color='#1d2733', capsize=4)
    gain.axhline(0, color=COLOURS['reference'])
    gain.set(xticks=[0, 1], xlim=(-0.5, 1.6), title='AUC gain by table; mean and 2 SE')
    gain.set_xticklabels(SUBJECTS[1:])
    for subject in SUBJECTS:
        figures = rounds[-1][subject]
        points = figures['test']['curve']
        curve.plot([figures['boosting'] * trees / figures['rounds'] for trees, _ in points],
                   [auc for _, auc in points], color=COLOURS[subject], linewidth=2, label=subject)
    curve.axhline(rounds[-1]['reference']['test']['auc'], color=COLOURS['reference'],
                  linestyle='--', linewidth=1)
    curve.set(xscale='log', xlabel='seconds of boosting', title='Test AUC as trees are added')
    curve.legend(frameon=False, loc='lower right')
    for axes, title, runs, key in (
            (rows, 'Seconds by rows', [one for one in scaling if one['threads'] == 'all'], 'rows'),
            (threads, 'Seconds by threads',
             [one for one in scaling if one['rows'] == scaling[-1]['rows']], 'threads')):
        names = [f'{one[key]:,}' if key == 'rows' else str(one[key]) for one in runs]
        for shift, subject in enumerate(SUBJECTS):
            bars = axes.bar([position + 0.27 * (shift - 1) for position in range(len(runs))],
                            [one['wall'][subject] for one in runs], 0.25, color=COLOURS[subject],
                            label=subject)
            axes.bar_label(bars, fmt='%.1f', fontsize=8, padding=2)
        axes.set(title=title, xticks=range(len(runs)))
        axes.set_xticklabels(names)
        axes.legend(frameon=False)
    for axes in figure.axes:
        axes.spines[['top', 'right']].set_visible(False)
        axes.title.set_fontweight('bold')
    figure.savefig(str(path), dpi=110)


def compare(arguments):
    """All rounds, then fewer rows and a single thread."""
    rounds, scaling = [], []
    with tempfile.TemporaryDirectory(dir=str(arguments.out)) as folder:
        folder = Path(folder)
        data, truth = folder / 'table.csv', folder / 'truth.npz'
        print('making the test rows', flush=True)
        make_table(data, TEST_ROWS, TEST_SEED)
        with_training(TRUTH, data, truth)
        with_training('import lightgbm, pandas')
        while sum(not spoilt(found) for found in rounds) < arguments.rounds and \
                len(rounds) < 2 * arguments.rounds:
            number = len(rounds)
            make_table(data, arguments.rows, number + 1)
            rounds.append(run_round(number, data, truth, folder))
            print('round {}: {}{}'.format(number + 1, ', '.join(
                '{} {:.1f} s, AUC {:.5f}'.format(subject, figures['wall'], figures['test']['auc'])
                for subject, figures in rounds[-1].items()),
                '; spoilt by other load' if spoilt(rounds[-1]) else ''), flush=True)
        single = run_round(0, data, truth, folder, threads=1)
        make_table(data, min(SMALL_ROWS, arguments.rows), 1)
        small = run_round(0, data, truth, folder)
    summary = summarise(rounds)
    many = {name: {'wall': summary['subjects'][name]['wall'][0]} for name in SUBJECTS}
    for rows, threads, found in ((min(SMALL_ROWS, arguments.rows), 'all', small),
                                 (arguments.rows, 1, single), (arguments.rows, 'all', many)):
        scaling.append({'rows': rows, 'threads': threads,
                        'wall': {name: found[name]['wall'] for name in SUBJECTS}})
    print(describe(summary, arguments.rows, scaling))
    draw(arguments.out / 'training.png', rounds, summary, scaling)
    atomic.write_json(arguments.out / 'training.json', {
        'rows': arguments.rows, 'processors': os.cpu_count(), 'summary': summary,
        'targets': targets(summary), 'scaling': scaling, 'rounds': rounds})


def cross_validate(arguments):
    """Default against challenge parameters on the rows of a table."""
    names = ('default', 'challenge')
    process = subprocess.Popen(
        [sys.executable, '-c', FOLD, str(arguments.cross_validate)] +
        [str(TRAINING / PARAMETERS[name]) for name in names] + [str(FOLDS), str(REPEATS)],
        stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(TRAINING)))
    found = []
    try:
        for line in process.stdout:
            # LightGBM has its say on the same stream.
            if line.startswith(b'[['):
                found.append(json.loads(line.decode()))
                print('fold {} of {}: default {:.4f}, challenge {:.4f}'.format(
                    len(found), FOLDS * REPEATS, found[-1][0][0], found[-1][1][0]), flush=True)
        if process.wait():
            raise RuntimeError('the cross-validation failed, see above')
    finally:
        process.kill()
    aucs = {name: [fold[position][0] for fold in found] for position, name in enumerate(names)}
    differences = [default - challenge for default, challenge in zip(*aucs.values())]
    mean, error = statistics.mean(differences), corrected_error(differences, FOLDS)
    for position, name in enumerate(names):
        print('{:<10} mean AUC {:.4f}, {:.0f} trees (median)'.format(
            name, statistics.mean(aucs[name]), statistics.median(fold[position][1] for fold in found)))
    print('default minus challenge: {:+.4f}, corrected standard error {:.4f} ({:.1f} of them), '
          'ahead in {} of {} folds'.format(mean, error, mean / error, sum(
              difference > 0 for difference in differences), len(differences)))
    atomic.write_json(arguments.out / 'cross_validation.json', {
        'data': arguments.cross_validate.name, 'folds': FOLDS, 'repeats': REPEATS, 'auc': aucs,
        'difference': mean, 'corrected_standard_error': error})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--rows', type=int, default=595212, help='rows of the sample tables')
    parser.add_argument('--rounds', type=int, default=5, help='undisturbed rounds wanted')
    parser.add_argument('--cross-validate', type=Path, metavar='CSV',
                        help='compare the parameters on this table instead')
    arguments = parser.parse_args(argv)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (cross_validate if arguments.cross_validate else compare)(arguments)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
