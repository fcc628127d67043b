"""Train the model on a table; write model.txt, metrics.json, report.html and profile.json.

python training/train.py --data outputs/data/safe_driver.csv --out outputs/model

With --nodes 3, or as several nodes of Azure ML, so many processes share the rows and train one
model by LightGBM's data-parallel learner; node 0 alone prints and writes.
"""
import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import console
import nodes
import table
import tracking
from parameters import LIGHTGBM, NAMES, ParametersError, dropped, load_parameters, matching

FOLDER = Path(__file__).resolve().parent
# Points of the learning curve that the report draws.
CURVE_POINTS = 12
SECONDS_BETWEEN_LINES = 10
BOOTSTRAP_DRAWS = 1000
# Models that are published for this data stay below this AUC.
HIGHEST_AUC = 0.65
KNOWN_CANDIDATES, KNOWN_ROWS = 500, 8
# Streams of table.mixed(): for the rows that bins are found from; from here on for subsamples.
BINNING, SAMPLING = 2, 3
# How LightGBM's text of a model says how many rows came to the root of the first tree.
FIRST_ROOT = re.compile(r'\ninternal_count=(\d+)')
# What differs between nodes: how many rows of its own each had for a tree of one leaf.
OWN_COUNT = re.compile(r'\n(leaf_count|tree_sizes)=\d+(?=\n)')
# How LightGBM refuses a number: Check failed: (num_leaves) > (1) at .../config_auto.cpp, line 344 .
FAILED_CHECK = re.compile(r'Check failed: \((.*)\) (\S+) \((.*)\) at .*')


class TrainingError(RuntimeError):
    """Why no model came of it; the text is for the user."""


def split_data(data_df):
    """A random fifth of the rows set apart: (training Dataset, validation Dataset).

    Takes any DataFrame with `id`, `target` and other columns, the features. The second keeps its
    raw frame for get_model_metrics.
    """
    import lightgbm
    import numpy as np
    order = np.random.RandomState(0).permutation(len(data_df))
    apart = math.ceil(0.2 * len(data_df))
    parts = [data_df.iloc[order[apart:]], data_df.iloc[order[:apart]]]
    train, valid = [(part.drop(columns=['id', 'target']), part['target'].to_numpy())
                    for part in parts]
    train_data = lightgbm.Dataset(*train)
    return train_data, lightgbm.Dataset(*valid, reference=train_data, free_raw_data=False)


def train_model(data, parameters, rounds=500, early_stopping_rounds=20, callbacks=()):
    """A Booster trained on data[0], stopped early on data[1] unless early_stopping_rounds is 0.

    `data` is a pair of lightgbm.Dataset, `parameters` is LightGBM's own. The numbers of rounds are
    the challenge's.
    """
    import lightgbm
    callbacks = list(callbacks)
    if early_stopping_rounds:
        callbacks.append(lightgbm.early_stopping(early_stopping_rounds, verbose=False))
    # Before version 4 LightGBM prints each round unless it is told not to.
    quiet = {'verbose_eval': False} if lightgbm.__version__ < '4' else {}
    return lightgbm.train(dict(parameters), data[0], rounds, callbacks=callbacks,
                          valid_sets=[data[1]] if data[1] is not None else None, **quiet)


def get_model_metrics(model, data):
    """{"auc": area under the ROC curve} of the model on data[1], whose raw frame is kept."""
    import metrics
    return {'auc': metrics.auc(data[1].label, model.predict(data[1].data))}


def progress(rounds):
    """A callback of LightGBM that says how far training is.

    In a terminal that is one line that changes, in a log a line every ten seconds.
    """
    start = spoken = time.monotonic()
    begin, pause, end = ('\r\033[K', 0.2, '') if sys.stderr.isatty() else (
        '', SECONDS_BETWEEN_LINES, '\n')

    def say(env):
        nonlocal spoken
        done, now = env.iteration + 1, time.monotonic()
        if now - spoken >= pause:
            spoken = now
            seconds = (now - start) / done * (rounds - done)
            print(f'{begin}round {done} of {rounds}, at most {seconds:.0f} s left', end=end,
                  file=sys.__stderr__, flush=True)
    return say


def score_in_steps(model, rows, label, step, gather):
    """(raw scores, [[trees, AUC], ...] as `step` trees at a time are added), of all nodes' rows.

    As the trees' scores are summed, that is little more work than to score the rows once. `label`
    is gathered, None and ([], ...) stand for it all where another node has it.
    """
    import metrics
    raw, every, curve, trees = 0, None, [], model.current_iteration()
    for start in range(0, trees, step):
        raw = raw + model.predict(rows, raw_score=True, start_iteration=start, num_iteration=step,
                                  verbosity=-1)
        every = gather(raw)
        if every is not None:
            curve.append([min(start + step, trees), metrics.auc(label, every)])
    return every, curve


def matrix(frame, rows, without):
    """The features of these row numbers, float32 of shape (rows, 57).

    A column to go without is 0 in all rows. LightGBM leaves it out at no cost, and the model still
    takes the 57 numbers of the contract.
    """
    import numpy as np
    # By columns, so that those that stay 0 are never written to and take no memory.
    values = np.zeros((len(rows), len(table.FEATURES)), dtype=np.float32, order='F')
    for position, name in enumerate(table.FEATURES):
        if name not in without:
            values[:, position] = frame[name].to_numpy()[rows]
    return values


def subsample(label, ids, rows, share, seed, node=nodes.ALONE):
    """(row numbers, weights): all claims of `rows`, and a random share of the others.

    An id's hash decides, so on any number of nodes the same rows are chosen. Those that are kept
    stand for all: their weights sum to the number of rows without a claim, so probabilities stay
    calibrated. Weights are None where the share is 1.
    """
    import numpy as np
    if share == 1:
        return rows, None
    others = label[rows] == 0
    kept = ~others | (chance(ids[rows], SAMPLING + seed) < share)
    every, some = total(node.share([int(others.sum()), int((others & kept).sum())]))
    weight = np.ones(len(rows), dtype=np.float32)
    weight[others] = every / max(1, some)
    return rows[kept], weight[kept]


def chance(ids, stream):
    """A number from 0 to 1 for each id, the same on every node: its hash in the stream."""
    import numpy as np
    return (table.mixed(ids, stream) >> np.uint64(11)) * 2. ** -53


def total(shared):
    """The sums over the nodes of numbers that they have shared."""
    return [sum(numbers) for numbers in zip(*shared)]


def lowered(own, rows, claims):
    """LightGBM's parameters as far as so many rows and claims allow.

    No leaf has to hold more than a twentieth of the rows, and lambda_l1, the number of claims by
    which a leaf must differ before it counts, is at most a tenth of the claims. Else a table of a
    thousand rows would give the same score to everyone.
    """
    caps = {'min_data_in_leaf': rows // 20, 'lambda_l1': claims / 10}
    result = dict(own)
    for name, cap in caps.items():
        for given in [name] + LIGHTGBM[name]:
            if result.get(given, 0) > cap:
                result[given] = cap
                console.log.warning('few rows: %s is lowered from %g to %g', given, own[given], cap)
    return result


def fit(frame, parameters, node=nodes.ALONE):
    """Train on a checked table: (Booster, hold-out labels, hold-out probabilities, the rest).

    With early stopping, that part of the rows decides when to stop and nothing else. Without, it is
    trained on as well. The rest: {"rows", "claims", "rounds", "training": the parameters as they
    were used, "curve": (name of a metric, [[round, its value], ...]), "boosting": seconds}.
    `frame` has this node's rows; labels, probabilities and curve are of all nodes' at node 0,
    and nothing elsewhere.
    """
    import lightgbm
    import numpy as np
    label, ids = frame['target'].to_numpy(), frame['id'].to_numpy()
    part = table.split_of(ids)
    stopping = parameters['early_stopping_rounds']
    if not stopping:
        part = np.where(part == table.EARLY_STOPPING, table.TRAINING, part)
    parts = [np.flatnonzero(part == number) for number in (
        table.TRAINING, table.EARLY_STOPPING, table.HOLD_OUT)]
    train_rows, stop_rows, out_rows = parts
    without = dropped(parameters)
    rows, weight = subsample(label, ids, train_rows, parameters['non_claims_kept'],
                             parameters['seed'], node)
    trained, claims = total(node.share([len(rows), int(label[rows].sum())]))
    used = lowered(parameters['training'], trained, claims)
    own = dict(used, seed=parameters['seed'], deterministic=True, force_col_wise=True)
    recorded, callbacks = {}, [] if node.rank else [progress(parameters['rounds'])]
    try:
        with node.network() as connected:
            own.update(connected)
            bins = common_bins(frame, rows, trained, without, own, node)
            # One matrix at a time: LightGBM lets go of it when its own table is made.
            train_data = lightgbm.Dataset(
                matrix(frame, rows, without), label[rows], weight=weight, params=own,
                feature_name=table.FEATURES, reference=bins).construct()
            stop_data = lightgbm.Dataset(
                matrix(frame, stop_rows, without), label[stop_rows], reference=train_data,
                params=own).construct() if stopping else None
            check_bins(train_data, node)
            start = time.monotonic()
            model = train_model((train_data, stop_data), own, parameters['rounds'], stopping,
                                callbacks + [lightgbm.record_evaluation(recorded)])
            boosting = time.monotonic() - start
        if sys.stderr.isatty():
            print('\r\033[K', end='', file=sys.__stderr__, flush=True)
    except lightgbm.basic.LightGBMError as error:
        reason = FAILED_CHECK.sub(r'\1 must be \2 \3', str(error).strip())
        raise TrainingError(f'LightGBM refuses: {reason}')
    if node.size > 1:
        check_agreement(model, node, trained, used)
    del train_data, stop_data
    out, truth = matrix(frame, out_rows, without), node.gather(label[out_rows])
    if stopping:
        probability = model.predict(out)
        (name, values), = recorded['valid_0'].items()
        curve = 'AUC' if name == 'auc' else 'log loss', [list(p) for p in enumerate(values, 1)]
    else:
        raw, points = score_in_steps(
            model, out, truth, parameters['rounds'] // CURVE_POINTS or 1, node.gather)
        probability, curve = None if node.rank else 1 / (1 + np.exp(-raw)), ('AUC', points)
    names = 'training', 'early_stopping', 'hold_out'
    return model, truth, probability, {
        'rows': dict(zip(names, total(node.share(list(map(len, parts)))))),
        'claims': dict(zip(names, total(node.share([int(label[one].sum()) for one in parts])))),
        'rounds': model.best_iteration or model.current_iteration(), 'training': used,
        'curve': curve, 'boosting': boosting}


def common_bins(frame, rows, trained, without, own, node):
    """A Dataset whose bins all nodes are to use, the same as one node would find; None for one.

    Left to itself each node finds the bins of some columns in its own rows (LightGBM's
    src/io/dataset_loader.cpp), so that the model depends on who has which row.
    """
    if node.size == 1:
        return None
    import lightgbm
    limit = max(1000, setting(own, 'bin_construct_sample_cnt', 200000))
    if trained > limit:
        rows = rows[chance(frame['id'].to_numpy()[rows], BINNING) < limit / trained]
    sample = node.gather(matrix(frame, rows, without), to_all=True)
    # As for one node's sample, a column counts that can be split in all rows.
    least = setting(own, 'min_data_in_leaf', 20) * len(sample) // trained
    given = [name for name in own if NAMES.get(name) != 'min_data_in_leaf']
    return lightgbm.Dataset(sample, feature_name=table.FEATURES, params=dict(
        {name: own[name] for name in given}, min_data_in_leaf=max(1, least))).construct()


def setting(parameters, name, default):
    """One of LightGBM's parameters, by whichever of its names it is given."""
    given = [parameters[known] for known in [name] + LIGHTGBM[name] if known in parameters]
    return given[0] if given else default


def check_bins(data, node):
    """TrainingError unless all nodes have the same bins, or LightGBM might wait for ever."""
    found = node.share([data.feature_num_bin(column) for column in range(len(table.FEATURES))]
                       if node.size > 1 else None)
    if any(bins != found[0] for bins in found):
        raise TrainingError('the nodes have found different bins, so nothing is trained')


def check_agreement(model, node, rows, used):
    """TrainingError unless all nodes have the same model, whose first tree saw all their rows."""
    text = OWN_COUNT.sub('', model.model_to_string())
    digests = node.share(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise TrainingError('the nodes have trained different models, so nothing is written: '
                            + ', '.join(digest[:12] for digest in digests))
    root = FIRST_ROOT.search(model.model_to_string(num_iteration=1))
    if root and not setting(used, 'bagging_freq', 0) and int(root.group(1)) != rows:
        raise TrainingError(f'the model was trained on {int(root.group(1)):,} of {rows:,} rows, so '
                            'nothing is written: a node\'s rows were lost')


def known_rows(model, frame):
    """{"rows": texts, "scores"} by which a smoke test knows the model, lowest to highest of many.

    Each value is that of another row of the table, so that no row is a customer's.
    """
    import numpy as np
    random, count = np.random.RandomState(2017), len(frame)
    rows = np.column_stack([frame[name].to_numpy()[random.randint(0, count, KNOWN_CANDIDATES)]
                            for name in table.FEATURES]).astype(float)
    scores = model.predict(rows)
    picked = scores.argsort()[np.linspace(0, KNOWN_CANDIDATES - 1, KNOWN_ROWS).astype(int)]
    return {'rows': [' '.join(map(str, row)) for row in rows[picked].tolist()],
            'scores': scores[picked].tolist()}


def code_commit():
    """The commit of this file's repository, with -dirty where files differ from it, or None."""
    # A repository around an unpacked archive knows none of its files, and is not that of the code.
    command = 'git rev-parse HEAD:./ && git describe --always --dirty --abbrev=40 --match=-'
    try:
        return subprocess.check_output(command, shell=True, cwd=str(FOLDER), timeout=10,
                                       stderr=subprocess.DEVNULL).decode().split()[-1]
    except (OSError, subprocess.SubprocessError):
        return None


def write_set(folder, files):
    """Write {name: text} into the folder, metrics.json last.

    All files are on the disk under temporary names before the first of an earlier set is replaced.
    Beside a model that is not its own metrics.json is refused by its SHA-256. No folder is made or
    renamed: in mounted storage an empty folder may vanish and no renaming is atomic.
    """
    for left in Path(folder).glob('.*.new'):
        with contextlib.suppress(OSError):
            left.unlink()
    last = Path(folder, 'metrics.json')
    # What is entered first ends last.
    with contextlib.ExitStack() as stack:
        for name in sorted(files, key=last.name.__ne__):
            temporary = stack.enter_context(tracking.replacing(Path(folder, name)))
            temporary.write_bytes(files[name].encode())
            tracking.flush(temporary)


def judge_segments(frame, label, probability, parameters):
    """A dict for each level of the columns that "card" names, of the hold-out rows that have it.

    frame: those columns of these rows. The "auc" is None where too few of them had a claim, or
    none, to say anything.
    """
    import metrics
    for name, rows in table.segments(frame, list(frame)):
        claims, score = label[rows], probability[rows]
        few = min(claims.sum(), len(claims) - claims.sum()) < metrics.LEAST_IN_SEGMENT
        yield {'segment': name, 'rows': int(rows.sum()), 'claims': int(claims.sum()),
               'mean_score': float(score.mean()),
               'auc': None if few else metrics.auc(claims, score)}


def run(args, node):
    """Fetch, train, judge, write; raises ParametersError, TableError, TrackingError and OSError."""
    start, warnings = time.monotonic(), []
    # What is warned of from here on is in metrics.json and in the report as well.
    console.log.filters = [
        lambda record: warnings.append(record.getMessage()) is None and not node.rank]
    parameters = load_parameters(args.parameters)
    stopping = parameters['early_stopping_rounds']
    if node.size > 1 and stopping:
        # https://github.com/microsoft/LightGBM/issues/6956: each would stop by its own rows.
        raise ParametersError(f'{args.parameters}: early_stopping_rounds is {stopping}; with '
                              f'{node.size} nodes it must be 0')
    if any(other != parameters for other in node.share(parameters)):
        raise ParametersError(f'{args.parameters} differs between the nodes: give all the same')
    tracker = tracking.connect()
    if not node.rank:
        os.makedirs(args.out, exist_ok=True)
    path, source = tracker.fetch_table(
        args.data, args.dataset_name, args.dataset_version, args.data_file_path,
        args.datastore_name)
    frame = table.read_table(path, node)
    lineage = dict(source, data_sha256=tracking.sha256(*table.part_files(path)))
    seconds = {'reading': time.monotonic() - start}
    rows, claims = total(node.share([len(frame), int(frame['target'].sum())]))
    if not node.rank:
        print(f'{path}: {rows:,} rows, {claims:,} claims', flush=True)
    model, label, probability, rest = fit(frame, parameters, node)
    import drift
    import lightgbm
    import metrics
    import numpy
    import pandas
    import report
    known = known_rows(model, frame)
    profile = drift.make_profile(frame, probability, gather=node.gather)
    held = table.held_out(frame)
    held = {name: node.gather(held[name].to_numpy()) for name in sorted(
        matching(parameters.get('card', {}).get('segments', ())))}
    own = {'rows': len(frame), 'peak_memory_mb': round(peak_memory() / 1e6)}
    del frame
    lineage.update(
        data_rows=rows, code_commit=args.code_commit or code_commit(), build_id=args.build_id,
        build_uri=args.build_uri, caller_run_id=args.caller_run_id,
        packages={'python': platform.python_version(), 'lightgbm': lightgbm.__version__,
                  'numpy': numpy.__version__, 'pandas': pandas.__version__},
        created=datetime.datetime.utcnow().strftime('%Y-%m-%dT%H:%M:%SZ'))
    parameters['training'] = rest.pop('training')
    curve, seconds['boosting'] = rest.pop('curve'), rest.pop('boosting')
    every = node.share(own)
    if node.rank:
        node.part()
        return
    figures = metrics.summary(label, probability)
    interval = metrics.bootstrap_auc_interval(
        label, probability, parameters['seed'], BOOTSTRAP_DRAWS)
    if interval[0] > HIGHEST_AUC:
        console.log.warning(
            'the AUC is above %s, more than this data can give: a column tells the target, or rows '
            'that were held out are copies of those trained on', HIGHEST_AUC)
    segments = list(judge_segments(pandas.DataFrame(held), label, probability, parameters))
    result = dict(figures, auc_interval=interval, **rest, segments=segments,
                  warnings=warnings, parameters=parameters, lineage=lineage, nodes=every)
    features = list(zip(table.FEATURES, model.feature_importance(
        'gain', iteration=result['rounds']).tolist()))
    seconds['total'] = time.monotonic() - start
    page = report.page(result, features, label, probability, curve)
    seconds['report'] = time.monotonic() - start - seconds['total']
    result['seconds'] = {name: round(value, 2) for name, value in seconds.items()}
    text = model.model_to_string(num_iteration=result['rounds'])
    result.update(model_sha256=hashlib.sha256(text.encode()).hexdigest(), known_rows=known)
    node.part()
    write_set(args.out, {'model.txt': text, 'report.html': page,
                         'profile.json': json.dumps(profile) + '\n',
                         'metrics.json': json.dumps(result, indent=2) + '\n'})
    tracker.log(figures)
    low, high = result['auc_interval']
    print(f"{result['rounds']:,} trees, AUC {result['auc']:.4f} [{low:.4f}, {high:.4f}] on "
          f"{result['rows']['hold_out']:,} rows held out; {args.out}")
    for number, one in enumerate(every if node.size > 1 else ()):
        print(f"node {number}: {one['rows']:,} rows, peak memory {one['peak_memory_mb']:,} MB")


def peak_memory():
    """The largest memory of this process so far, in bytes."""
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, text in (('--data', 'the table: a CSV file or a folder of such; not inside Azure ML'),
                       ('--dataset-name', 'Azure ML dataset of the table'),
                       ('--dataset-version', 'its version, a number or latest'),
                       ('--data-file-path', 'path of the datastore instead of a dataset'),
                       ('--datastore-name', "default: the workspace's own"),
                       ('--build-id', 'of the build that trains, for the lineage'),
                       ('--build-uri', 'address of that build'),
                       ('--caller-run-id', 'of the run that called the pipeline'),
                       ('--code-commit', "default: git's")):
        parser.add_argument(name, type=tracking.given, help=text)
    parser.add_argument('--parameters', default=str(FOLDER / 'parameters.json'),
                        help='default: that beside this script')
    parser.add_argument('--out', required=True, help='folder for the model and what goes with it')
    parser.add_argument('--nodes', **nodes.OPTION)
    args = parser.parse_args(argv)
    if not (args.data or os.environ.get('AZUREML_RUN_ID')):
        parser.error('--data is needed outside of Azure ML')
    try:
        with nodes.together(args.nodes, nodes.command(__file__, argv), os.environ) as node:
            run(args, node)
    except (ParametersError, TrainingError, table.TableError, tracking.TrackingError,
            nodes.NodesError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
