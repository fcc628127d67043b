"""Compare a new model with the registered one on the same hold-out rows and write decision.json.

python training/evaluate.py --data outputs/data/safe_driver.csv --model outputs/model \\
  --model-name safe_driver_model --registry outputs/registry --run-evaluation true \\
  --parameters training/parameters.json --out outputs/decision.json
"""
import argparse
import subprocess
import sys
from pathlib import Path

import console
import tracking

DRAWS = 500
# Over a damaged model LightGBM may end the process or never end: another one follows the trees.
TRIAL = '''import ctypes, sys
library, handle, number = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p(), ctypes.c_int64()
sys.exit(library.LGBM_BoosterCreateFromModelfile(
    sys.argv[2].encode(), ctypes.byref(number), ctypes.byref(handle)) or
    library.LGBM_BoosterDumpModel(handle, 0, -1, 0, number, ctypes.byref(number), None))'''


def compare(label, champion, challenger, metric, direction, seed=0):
    """How two models' scores of the same rows differ in a metric of metrics.py.

    label, champion, challenger: arrays of shape (rows,), the last two claim probabilities.
    direction: 'maximize' or 'minimize'. Returns {"champion", "challenger", "difference":
    challenger - champion, "difference_interval": 95 % bootstrap interval [low, high],
    "probability_better": share of the resamples in which the challenger is the better one}.
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
            'probability_better': higher if direction == 'maximize' else 1 - higher}


def load_champion(tracker, name, columns):
    """(version, Booster, SHA-256) of the newest registered version, None if there is none.

    TrackingError where it cannot score a table with these columns.
    """
    import lightgbm
    champion = tracker.champion(name)
    if champion is None:
        return None
    version, folder, tags = champion
    what = f'version {version} of {name}, the champion,'
    advice = 'to register the new model without comparing, set RUN_EVALUATION=false'
    path = Path(folder, 'model.txt')
    if not path.is_file():
        raise tracking.TrackingError(f'{what} has no file model/model.txt; {advice}')
    digest, report = tracking.sha256(path), path.with_name('metrics.json')
    told = tracking.read_json(report) if report.is_file() else {}
    if not {None, digest} >= {tags.get('model_sha256'), told.get('model_sha256')}:
        raise tracking.TrackingError(f'{what} was changed after it was registered: its model.txt is'
                                     f' not the one its tags or metrics.json name; {advice}')
    if subprocess.call([sys.executable, '-c', TRIAL, lightgbm.basic._LIB._name, str(path)],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        raise tracking.TrackingError(f'{what} is damaged: LightGBM cannot read it; {advice}')
    model = lightgbm.Booster(model_file=str(path))
    missing = [column for column in model.feature_name() if column not in columns]
    if missing:
        raise tracking.TrackingError(
            f"{what} needs columns that the table lacks: {', '.join(missing)}; {advice}")
    return version, model, digest


def fetch_table(tracker, lineage, data):
    """The path of the table that a model was trained on; TrackingError if it is not the same."""
    version = lineage.get('dataset_version')
    path, _ = tracker.fetch_table(data=data, dataset_name=lineage.get('dataset_name'),
                                  dataset_version=version,
                                  data_file_path=None if version else lineage.get('data'))
    if tracking.sha256(path) != lineage.get('data_sha256'):
        raise tracking.TrackingError(f"{data or lineage.get('data')} is not the table that the "
                                     'model was trained on, or has changed since: train again')
    return path


def decide(args):
    """The decision, a dict for decision.json."""
    import lightgbm
    import parameters
    import table
    wanted = parameters.load_parameters(args.parameters)['evaluation']
    metric, least_gain = wanted['metric'], wanted['least_gain']
    maximize = wanted['direction'] == 'maximize'
    rule = f"register when {metric} on the hold-out rows is {'higher' if maximize else 'lower'}"
    rule += f' by at least {least_gain:g}' if least_gain else ''
    report = tracking.read_report(args.model)
    decision = {'register': True, 'metric': metric, 'champion': None, 'champion_version': None,
                'challenger': report.get(metric), 'difference': None, 'difference_interval': None,
                'probability_better': None, 'rule': rule, 'reason': None,
                'model': args.model_name, 'model_sha256': report['model_sha256']}
    if args.run_evaluation == 'false':
        return dict(decision, reason='Nothing was compared: the evaluation is switched off '
                                     '(RUN_EVALUATION=false).')
    tracker = tracking.connect(args.registry)
    champion = load_champion(tracker, args.model_name, table.FEATURES)
    if champion is None:
        return dict(decision, reason=f'{args.model_name} has no registered version to compare '
                                     'with.')
    version, model, digest = champion
    challenger = lightgbm.Booster(model_file=str(Path(args.model, 'model.txt')))
    frame = table.read_table(fetch_table(tracker, report.get('lineage') or {}, args.data))
    rows = frame[table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT]
    print(f'comparing with version {version} on {len(rows):,} hold-out rows', flush=True)
    scores = [booster.predict(rows[booster.feature_name()]) for booster in (model, challenger)]
    decision.update(compare(rows['target'].to_numpy(), scores[0], scores[1], metric,
                            wanted['direction']), champion_version=version)
    tracker.log({key: value for key, value in decision.items() if key != 'register'})
    gain = decision['difference'] if maximize else -decision['difference']
    better = gain > 0 and gain >= least_gain
    decision['register'] = better or args.allow_run_cancel == 'false'
    verdict = 'better' if better else 'not better'
    if least_gain and not better:
        verdict += f' by {least_gain:g}'
    verdict += f", ahead in {decision['probability_better']:.0%} of {DRAWS} resamples"
    if digest == decision['model_sha256']:
        verdict = 'the same model, byte for byte'
    decision['reason'] = (
        f"{metric} is {decision['challenger']:.5f}, on the same {len(rows):,} rows version "
        f"{version} has {decision['champion']:.5f}: {verdict}.")
    if decision['register'] and not better:
        decision['reason'] += ' Registered all the same (ALLOW_RUN_CANCEL=false).'
    return decision


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
    args = parser.parse_args(argv)
    try:
        decision = decide(args)
        tracking.write_json(tracking.decision_path(args.out), decision)
    except (tracking.TrackingError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(decision['reason'])
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
