"""Register a model as the next version of its name if its decision says so; write the result.

python training/register.py --model outputs/model --decision outputs/decision.json \\
  --model-name safe_driver_model --registry outputs/registry --out outputs/registration.json
"""
import argparse
import sys
from pathlib import Path

import console
import tracking

REPORTS = ('metrics.json', 'report.html')
FIGURES = ('model_sha256', 'auc', 'gini', 'log_loss', 'brier', 'top_decile_lift')
LINEAGE = ('data', 'data_sha256', 'data_rows', 'dataset_name', 'dataset_version', 'code_commit',
           'caller_run_id', 'created')


def make_tags(report, build_id=None):
    """What a registered version says about itself, from metrics.json: {name: text}.

    Figures, lineage, and the names BuildId and BuildUri by which MLOpsPython's users search.
    """
    lineage = report.get('lineage') or {}
    tags = {name: report.get(name) for name in FIGURES}
    tags.update({name: lineage.get(name) for name in LINEAGE})
    tags.update(BuildId=build_id or lineage.get('build_id'), BuildUri=lineage.get('build_uri'),
                packages=', '.join(f'{package} {version}' for package, version in
                                   sorted((lineage.get('packages') or {}).items())))
    return {name: str(value) for name, value in tags.items() if value not in (None, '')}


def register(tracker, args, decision):
    """Registers, or keeps what there is; the dict for registration.json."""
    report = tracking.read_report(args.model)
    for key, found in (('model_sha256', report['model_sha256']), ('model', args.model_name)):
        if decision.get(key) != found:
            raise tracking.TrackingError(
                f'nothing was registered: the decision is about another model ({key} '
                f'{decision.get(key)}, not {found}): evaluate again')
    result = {'result': 'registered', 'reason': decision['reason'], 'model': args.model_name,
              'version': decision['champion_version'], 'run_id': tracker.run_id}
    if not decision['register']:
        return dict(result, result='kept')
    tags = make_tags(report, args.build_id)
    version, known = tracker.register(args.model_name, args.model, tags)
    if known is not None:
        result['reason'] = f'This build is version {version} already.'
        if known.get('model_sha256') != report['model_sha256']:
            result['reason'] += (' Its model is another one than that of this run, which was not '
                                 'registered: a build has one version.')
    return dict(result, version=version)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', required=True, help='folder of the model, by train.py')
    parser.add_argument('--decision', required=True, help='file or folder, by evaluate.py')
    parser.add_argument('--model-name', required=True, help='name to register it under')
    parser.add_argument('--out', required=True, help='file for the result; inside Azure ML the '
                        'name of the artifact of the run')
    parser.add_argument('--registry', help='folder of registered models; not inside Azure ML')
    parser.add_argument('--build-id', type=tracking.given,
                        help='a build is registered once, however often it runs')
    args = parser.parse_args(argv)
    try:
        path = tracking.decision_path(args.decision)
        decision = tracking.read_json(path)
        tracker = tracking.connect(args.registry)
        # What scripts/run.py tells the team of this run.
        tracker.attach(dict({name: Path(args.model, name) for name in REPORTS},
                            **{'decision.json': path}))
        result = register(tracker, args, decision)
        tracker.store(args.out, result)
    except (tracking.TrackingError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    version = f"version {result['version']}" if result['version'] else 'no version'
    print(f"{result['result']} {version} of {args.model_name}. {result['reason']}")
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
