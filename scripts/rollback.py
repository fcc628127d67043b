"""Put back what the service ran before: model version, environment and scoring files; then test.

    python scripts/rollback.py --service aci --out outputs

At the endpoint of production, what ran before is still there and gets the traffic back.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

import atomic
import azure_ml
import deploy
import endpoint
import settings
import smoke_test
import workspace


def roll_back(config):
    """Deploy what the service's tags name as previous; the content of service.json.

    None where this is the failure hook of a build, or of one more attempt, that failed before it
    changed the service: what runs then is the good version of an earlier one, which only
    ROLLBACK_ANY_BUILD takes back.
    """
    space = workspace.connect(config)
    service = deploy.find_service(space, config)
    if service is None:
        raise azure_ml.AzureError(f'there is no service {config.aci_deployment_name} to roll back: '
                                  'MODEL_VERSION=n make deploy creates it')
    tags = service.tags or {}
    version = tags.get('version', 'unknown')
    if not deploy.may_roll_back(tags, config):
        print(f'nothing to roll back: the service {service.name} runs version {version}, deployed '
              f"by build {tags.get('BuildId')}, attempt {tags.get('Attempt')}; build "
              f'{config.build_buildid}, attempt {config.system_stageattempt} did not touch it')
        return None
    parts = {name: tags.get('previous_' + name) for name in deploy.PARTS}
    if not all(parts.values()):
        raise azure_ml.AzureError(
            f'the service {service.name} runs version {version} and names none before it; '
            'MODEL_VERSION=n make deploy deploys version n')
    print(f"service {service.name}: back from version {version} to version {parts['version']}",
          flush=True)
    store = workspace.datastore(space, config)
    with tempfile.TemporaryDirectory() as folder:
        model = deploy.fetch_model(space, config, parts['model'], parts['version'],
                                   Path(folder, 'fetched'))
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
        # No previous_ tags: what was just left is not to be put back by another rollback.
        return deploy.create_or_update(
            space, config, model, source, environment, parts, deploy.build_tags(config),
            (size.cpu, size.memory_in_gb))


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder for service.json, endpoint.json')
    parser.add_argument('--service', choices=('local', 'aci', 'endpoint'), default='local',
                        help='which; endpoint: the managed online endpoint, else ACI')
    args = parser.parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    kind, file = (('endpoint', endpoint.FILE) if args.service == 'endpoint'
                  else ('aci', 'service.json'))
    result = endpoint.roll_back(config) if kind == 'endpoint' else roll_back(config)
    if result is None:
        return 0
    atomic.write_json(Path(args.out) / file, dict(result, rolled_back=True))
    print(f"{file[:-5]} {result['name']} runs version {result['version']} of {result['model']} "
          'again; testing it', flush=True)
    return smoke_test.main(['--service', kind, '--out', args.out])


if __name__ == '__main__':
    sys.exit(main())
