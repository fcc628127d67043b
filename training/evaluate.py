"""Compare a new model with the registered one, its table with that one's; write decision.json.

python training/evaluate.py --data outputs/data/safe_driver.csv --model outputs/model \\
  --model-name safe_driver_model --registry outputs/registry --run-evaluation true \\
  --parameters training/parameters.json --out outputs/decision.json
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import console
import nodes
import tracking

DRAWS = 500
PROFILE, COMPARISON = 'profile.json', 'comparison.html'
# Over a damaged model LightGBM may end the process or never end: another one follows the trees.
TRIAL = '''import ctypes, sys
library, handle, number = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p(), ctypes.c_int64()
sys.exit(library.LGBM_BoosterCreateFromModelfile(
    sys.argv[2].encode(), ctypes.byref(number), ctypes.byref(handle)) or
    library.LGBM_BoosterDumpModel(handle, 0, -1, 0, number, ctypes.byref(number), None))'''


def compare(label, champion, challenger, metric, direction, seed=0):
    """How two models' scores of the same rows differ in a metric of metrics.py.

    label, champion, challenger: arrays of shape (rows,), the last two claim probabilities.
    direction: 'maximize' or 'minimize'. Returns ({"champion", "challenger", "difference":
    challenger - champion, "difference_interval": 95 % bootstrap interval [low, high],
    "probability_better": share of the resamples in which the challenger is the better one}, the
    differences in all resamples).
    """
    import metrics
    import numpy
    figure = getattr(metrics, metric)
    before, after = figure(label, champion), figure(label, challenger)
    if metric in ('auc', 'gini'):
        differences = metrics.paired_bootstrap(label, champion, challenger, seed, DRAWS)
        differences *= 2 if metric == 'gini' else 1
    else:
        random, count = numpy.random.RandomState(seed), len(label)
        draws = (random.randint(0, count, count) for _ in range(DRAWS))
        differences = numpy.array([figure(label[rows], challenger[rows]) -
                                   figure(label[rows], champion[rows]) for rows in draws])
    interval = [float(bound) for bound in numpy.percentile(differences, [2.5, 97.5])]
    higher = float((differences > 0).mean() + (differences == 0).mean() / 2)
    return {'champion': before, 'challenger': after, 'difference': after - before,
            'difference_interval': interval,
            'probability_better': higher if direction == 'maximize' else 1 - higher}, differences


def load_champion(tracker, name, columns):
    """(version, Booster, SHA-256, folder) of the newest registered version, or None.

    TrackingError where it cannot score a table with these columns.
    """
    import lightgbm
    champion = tracker.champion(name)
    if champion is None:
        return None
    version, folder, tags = champion
    what = f'version {version} of {name}, the champion,'
    path = Path(folder, 'model.txt')
    if not path.is_file():
        raise tracking.TrackingError(f'{what} has no file model/model.txt')
    digest, report = tracking.sha256(path), path.with_name('metrics.json')
    told = tracking.read_json(report) if report.is_file() else {}
    if not {None, digest} >= {tags.get('model_sha256'), told.get('model_sha256')}:
        raise tracking.TrackingError(f'{what} was changed after it was registered: its model.txt is'
                                     ' not the one its tags or metrics.json name')
    if subprocess.call([sys.executable, '-c', TRIAL, lightgbm.basic._LIB._name, str(path)],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        raise tracking.TrackingError(f'{what} is damaged: LightGBM cannot read it')
    model = lightgbm.Booster(model_file=str(path))
    missing = [column for column in model.feature_name() if column not in columns]
    if missing:
        raise tracking.TrackingError(
            f"{what} needs columns that the table lacks: {', '.join(missing)}")
    return version, model, digest, folder


def fetch_table(tracker, lineage, data):
    """The path of the table that a model was trained on; TrackingError if it is not the same."""
    import table
    version = lineage.get('dataset_version')
    path, _ = tracker.fetch_table(data=data, dataset_name=lineage.get('dataset_name'),
                                  dataset_version=version,
                                  data_file_path=None if version else lineage.get('data'),
                                  datastore_name=lineage.get('datastore_name'))
    if tracking.sha256(*table.part_files(path)) != lineage.get('data_sha256'):
        raise tracking.TrackingError(f"{data or lineage.get('data')} is not the table that the "
                                     'model was trained on, or has changed since: train again')
    return path


def uselessness(report):
    """Why a model tells claims from others no better than chance does, in a sentence, or None."""
    if 'auc_interval' not in report:
        raise tracking.TrackingError('metrics.json of the new model has no auc_interval: train '
                                     'again')
    low, high = report['auc_interval']
    if low > 0.5:
        return None
    why = (f"its AUC, {report['auc']:.4f} [{low:.4f}, {high:.4f}] on the hold-out rows, may be "
           'chance' if low < high else 'it gives every row the same score')
    return (f'The new model is useless: {why}. To register it all the same, set "register_useless" '
            'to true in "evaluation" of the parameters.')


def measure_drift(path, version, frame, scores, node=nodes.ALONE):
    """What drift.compare says of a table and the champion's scores of its hold-out rows.

    path: of the champion's profile.json, of which nobody knows who has written it. `frame` has this
    node's rows; node 0 has the scores of all, the others have nothing to say.
    """
    import drift
    import table
    left = ['target'] + table.FEATURES

    def gather(values):
        left.pop(0)
        return node.gather(values)

    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        now = drift.make_profile(frame, scores, before, gather)
        if node.rank:
            return None
        found = drift.compare(before, now)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        # The other nodes may not have noticed, and send all the same.
        for name in list(left):
            gather(frame[name].to_numpy())
        return unmeasured(f'{path.name} of version {version} is damaged')
    return dict(found, sentence=f"{'Drift' if found['drifted'] else 'No drift'} since version "
                f"{version} ({before['rows']:,} rows): {found['sentence']}.")


def unmeasured(reason):
    return {'columns': {}, 'drifted': [], 'above_chance': None,
            'sentence': f'Drift was not measured: {str(reason).splitlines()[0]}.'}


def decide(args, tracker, node):
    """(the decision, a dict for decision.json; comparison.html as text, None if not compared).

    Of several nodes, which share the rows, only that of node 0 counts.
    """
    import parameters
    wanted = parameters.load_parameters(args.parameters)['evaluation']
    metric, least_gain = wanted['metric'], wanted['least_gain']
    rule = 'register when ' + metric + ' on the hold-out rows is '
    rule += 'higher' if wanted['direction'] == 'maximize' else 'lower'
    rule += f' by at least {least_gain:g}' if least_gain else ''
    report = tracking.read_report(args.model)
    decision = {'register': True, 'metric': metric, 'champion': None, 'champion_version': None,
                'challenger': report.get(metric), 'difference': None, 'difference_interval': None,
                'probability_better': None, 'rule': rule,
                'reason': 'Nothing was compared: the evaluation is switched off '
                          '(RUN_EVALUATION=false).',
                'model': args.model_name, 'model_sha256': report['model_sha256'], 'drift': None}
    compared = against_champion(args, tracker, wanted, report, decision, node)
    if not decision['register'] and args.allow_run_cancel == 'false':
        decision['register'] = True
        decision['reason'] += ' Registered all the same (ALLOW_RUN_CANCEL=false).'
    refusals = [] if wanted.get('register_useless') else [uselessness(report)]
    moved, most = (decision['drift'] or {}).get('above_chance'), wanted.get('largest_drift')
    if None not in (moved, most) and moved > most:
        refusals.append(f'The table drifted too far: PSI is up to {moved:.2f} above chance, more '
                        f'than "largest_drift" in "evaluation" of the parameters, {most:g}.')
    for refusal in filter(None, refusals):
        decision.update(register=False, reason=f"{refusal} {decision['reason']}")
    if compared is None:
        return decision, None
    import comparison
    return decision, comparison.page(decision, *compared)


def against_champion(args, tracker, wanted, report, decision, node):
    """Add to the decision what the registered model and its profile say of the new one.

    Without RUN_EVALUATION nothing that is wrong with them is in the way of the new model, but a
    table that one of several nodes cannot read. With it, returns what comparison.page shows:
    (hold-out rows, scores of both, differences).
    """
    import lightgbm
    import pandas
    import table
    compared = args.run_evaluation == 'true'
    champion = error = None
    try:
        champion = load_champion(tracker, args.model_name, table.FEATURES)
    except tracking.TrackingError as failure:
        error = str(failure)
    found = node.share([champion and champion[2], error])
    errors = [error for _, error in found if error]
    if errors and compared:
        raise tracking.TrackingError(f'{errors[0]}; to register the new model without comparing, '
                                     'set RUN_EVALUATION=false')
    if errors:
        decision['drift'] = unmeasured(errors[0])
        return
    if len({digest for digest, _ in found}) > 1:
        raise tracking.TrackingError(f'a version of {args.model_name} was registered while the '
                                     'nodes looked for it: run this again')
    if champion is None:
        if compared:
            decision['reason'] = f'{args.model_name} has no registered version to compare with.'
        return
    version, model, digest, folder = champion
    profile = Path(folder, PROFILE)
    decision.update(champion_version=version, drift=unmeasured(
        f'version {version} has no {PROFILE} to compare with'))
    if not (compared or profile.is_file()):
        return
    try:
        frame = table.read_table(
            fetch_table(tracker, report.get('lineage') or {}, args.data), node)
    except (tracking.TrackingError, ValueError, OSError) as error:
        if compared or node.size > 1:
            raise
        decision['drift'] = unmeasured(error)
        return
    rows = table.held_out(frame)
    scores = node.gather(model.predict(rows[model.feature_name()]))
    if profile.is_file():
        decision['drift'] = measure_drift(profile, version, frame, scores, node)
    if not compared:
        return None
    challenger = lightgbm.Booster(model_file=str(Path(args.model, 'model.txt')))
    scores = scores, node.gather(challenger.predict(rows[challenger.feature_name()]))
    rows = {name: node.gather(rows[name].to_numpy()) for name in ['target'] + table.SEGMENTS}
    if node.rank:
        return None
    rows = pandas.DataFrame(rows)
    print(f'comparing with version {version} on {len(rows):,} hold-out rows', flush=True)
    figures, differences = compare(
        rows['target'].to_numpy(), *scores, wanted['metric'], wanted['direction'])
    decision.update(figures)
    tracker.log(dict(decision, drift_above_chance=decision['drift']['above_chance']))
    gain = figures['difference'] * (1 if wanted['direction'] == 'maximize' else -1)
    least_gain = wanted['least_gain']
    better = gain > 0 and gain >= least_gain
    verdict = 'better' if better else 'not better'
    if least_gain and not better:
        verdict += f' by {least_gain:g}'
    verdict += f", ahead in {figures['probability_better']:.0%} of {DRAWS} resamples"
    if digest == decision['model_sha256']:
        verdict = 'the same model, byte for byte'
    decision.update(register=better, reason=(
        f"{wanted['metric']} is {figures['challenger']:.5f}, on the same {len(rows):,} rows "
        f"version {version} has {figures['champion']:.5f}: {verdict}."))
    return rows, scores, differences


def show(tracker, path, page):
    """Have the page where people look for it, and none of an earlier comparison."""
    if page is None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    with tracking.replacing(path) as temporary:
        temporary.write_text(page, encoding='utf-8')
    tracker.attach({path.name: path})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parameters', required=True, help='JSON file with metric and least gain')
    parser.add_argument('--model', required=True, help='folder of the new model, by train.py')
    parser.add_argument('--model-name', required=True, help='name of the registered model')
    parser.add_argument('--out', required=True, help='file, or folder, for the decision')
    parser.add_argument('--data', help='table the model was trained on; not inside Azure ML')
    parser.add_argument('--registry', help='folder of registered models; not inside Azure ML')
    switch = {'type': str.lower, 'choices': ['true', 'false'], 'metavar': 'true|false'}
    parser.add_argument('--run-evaluation', default='false', help='false: register without '
                        'comparing (default: false)', **switch)
    parser.add_argument('--allow-run-cancel', default='true', help='false: register whatever the '
                        'comparison says (default: true); nothing is ever cancelled', **switch)
    parser.add_argument('--nodes', **nodes.OPTION)
    args = parser.parse_args(argv)
    try:
        with nodes.together(args.nodes, nodes.command(__file__, argv), os.environ) as node:
            tracker = tracking.connect(args.registry)
            decision, page = decide(args, tracker, node)
            node.part()
        if node.rank:
            return 0
        out = Path(tracking.decision_path(args.out))
        show(tracker, out.with_name(COMPARISON), page)
        tracking.write_json(out, decision)
    except (tracking.TrackingError, nodes.NodesError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(decision['reason'])
    if decision['drift']:
        say = console.log.warning if decision['drift']['drifted'] else print
        say(decision['drift']['sentence'])
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
