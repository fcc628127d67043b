"""Put back what the service ran before: model version, environment and scoring files; then test.

    python scripts/rollback.py --out outputs
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atomic
import azure_ml
import deploy
import settings
import workspace

SMOKE_TEST = Path(__file__).resolve().parent / 'smoke_test.py'


def roll_back(config):
    """Deploy what the service's tags name as previous; the content of service.json.

    None where this is the failure hook of a build, or of one more attempt, that failed before it
    changed the service: what runs then is the good version of an earlier one.
    """
    space = workspace.connect(config)
    service = deploy.find_service(space, config)
    if service is None:
        raise azure_ml.AzureError(f'there is no service {config.aci_deployment_name} to roll back: '
                                  'MODEL_VERSION=n make deploy creates it')
    tags = dict(service.tags or {})
    if config.build_buildid and not deploy.same_attempt(service, config):
        print('nothing to roll back: the service %s runs version %s, deployed by build %s, attempt '
              '%s; build %s, attempt %s did not touch it' % (
                  service.name, tags.get('version', 'unknown'), tags.get('BuildId'),
                  tags.get('Attempt'), config.build_buildid, config.system_stageattempt))
        return None
    parts = {name: tags.get('previous_' + name) for name in deploy.PARTS}
    if not all(parts.values()):
        raise azure_ml.AzureError(
            'the service %s runs version %s and names none before it; MODEL_VERSION=n make deploy '
            'deploys version n' % (service.name, tags.get('version', 'unknown')))
    print('service %s: back from version %s to version %s' % (
        service.name, tags.get('version'), parts['version']), flush=True)
    store = workspace.datastore(space, config)
    with tempfile.TemporaryDirectory() as folder:
        with azure_ml.asking(f"fetch the scoring files of version {parts['version']}",
                             config.call_timeout_seconds):
            from azureml.core import Environment
            prefix = 'scoring/' + parts['scoring']
            store.download(folder, prefix=prefix, overwrite=True, show_progress=False)
            environment = Environment.get(space, parts['environment'])
        fetched = Path(folder) / prefix
        if not (fetched / 'score.py').is_file():
            raise azure_ml.AzureError(f'the scoring files {prefix} are no longer in the datastore')
        # The folder's name becomes a part of the entry script's path.
        source = fetched.parent / deploy.SOURCE.name
        fetched.rename(source)
        size = service.container_resource_requirements
        try:
            # No previous_ tags: what was just left is not to be put back by another rollback.
            service = deploy.put(
                space, config, service, source, environment, parts, deploy.deployed_by(config),
                (size.cpu, size.memory_in_gb))
        except azure_ml.AzureError:
            deploy.show_logs(space, config)
            raise
    return deploy.described(service)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder for service.json')
    args = parser.parse_args(argv)
    try:
        config = settings.read(os.environ, needs=settings.WORKSPACE)
        result = roll_back(config)
    except (settings.SettingsError, azure_ml.AzureError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    if result is None:
        return 0
    atomic.write_json(Path(args.out) / 'service.json', result)
    print('service %s runs version %s of %s again; testing it' % (
        result['name'], result['version'], result['model']), flush=True)
    return 1 if subprocess.call([sys.executable, str(SMOKE_TEST), '--service', 'aci', '--out',
                                 args.out, '--model-name', result['model']]) else 0


if __name__ == '__main__':
    sys.exit(main())
