"""Deploy the registered model to Azure Container Instances: create the service or update it.

    python scripts/deploy.py --out outputs
"""
import argparse
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import calls
import files
import publish
import settings
import workspace

SOURCE = Path(__file__).resolve().parent.parent / 'scoring'
SETTINGS = 'deployment.json'
NOT_UPLOADED = ('__pycache__', '*.pyc', '.*')
LOG_LINES = 60
PAUSE_SECONDS = 5
REPORT_SECONDS = 60
# What a service runs; the tags name it, and with previous_ what it ran before.
PARTS = ('model', 'version', 'environment', 'scoring')


def model_to_deploy(chosen, out):
    """(name, version) by MODEL_VERSION or run.json; version None when the run kept the old one."""
    if chosen.model_version:
        return chosen.model_name, chosen.model_version
    known = files.read_json(Path(out) / 'run.json')
    if known is None:
        raise calls.AzureError('no model to deploy: there is no %s; `make run` writes it, or set '
                               'MODEL_VERSION' % (Path(out) / 'run.json'))
    return known['model'], known['version'] if known['result'] == 'registered' else None


def fingerprint(folder):
    """A hash of the names and contents of a folder's files, of those that are uploaded."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob('*')):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(
                part.startswith('.') or part == '__pycache__' or part.endswith('.pyc')
                for part in parts):
            digest.update('/'.join(parts).encode() + b'\0' + path.read_bytes() + b'\0')
    return digest.hexdigest()[:12]


def find_service(space, chosen):
    """The service, or None. Raises AzureError when one of that name is not on ACI."""
    name = chosen.aci_deployment_name
    with calls.asking('find the service %s' % name, chosen.call_timeout_seconds):
        from azureml.core import Webservice
        from azureml.exceptions import WebserviceException
        try:
            service = Webservice(space, name)
        except WebserviceException as error:
            if 'WebserviceNotFound' not in str(error):
                raise
            return None
    if service.compute_type != 'ACI':
        raise calls.AzureError('the service %s runs on %s, not on ACI: choose another '
                               'ACI_DEPLOYMENT_NAME' % (name, service.compute_type))
    return service


def previous_tags(service, parts):
    """The tags that name what to roll back to: what the service runs now, if that is healthy."""
    tags = dict(service.tags or {}) if service else {}
    now = {name: tags.get(name) for name in PARTS}
    if now == parts or not service or service.state != 'Healthy':
        return {key: value for key, value in tags.items() if key.startswith('previous_')}
    return {'previous_' + name: value for name, value in now.items() if value}


def resources(service, wanted, chosen):
    """(cpu cores, memory in GB, whether the service must be replaced). Raises AzureError.

    ACI cannot change them on a running service.
    """
    if service is None:
        return wanted['cpu_cores'], wanted['memory_gb'], False
    has = service.container_resource_requirements
    if (float(has.cpu), float(has.memory_in_gb)) == (
            float(wanted['cpu_cores']), float(wanted['memory_gb'])):
        return has.cpu, has.memory_in_gb, False
    if not chosen.aci_replace:
        raise calls.AzureError(
            'the service %s has cpu_cores %g and memory_gb %g, scoring/%s wants %g and %g: an '
            'update cannot change them\nset ACI_REPLACE=true to delete and create it (it does not '
            'answer meanwhile, and gets a new address and new keys), or put the old values back' % (
                service.name, has.cpu, has.memory_in_gb, SETTINGS, wanted['cpu_cores'],
                wanted['memory_gb']))
    return wanted['cpu_cores'], wanted['memory_gb'], True


def put(space, chosen, service, source, environment, parts, tags, size):
    """Create or update the service and wait until it answers. Raises AzureError with the reason.

    source: the folder of score.py; parts: what the service is to run; size: (cores, GB).
    """
    end = time.monotonic() + 60 * chosen.deploy_timeout_minutes
    name = chosen.aci_deployment_name
    wanted = files.read_json(Path(source) / SETTINGS)
    with calls.asking('find version %s of the model %s' % (parts['version'], parts['model']),
                      chosen.call_timeout_seconds):
        from azureml.core.model import InferenceConfig, Model
        from azureml.core.webservice import AciWebservice
        model = Model(space, parts['model'], version=int(parts['version']))
    # LightGBM counts the cores of the host, not those that the container may use.
    environment.environment_variables = dict(
        wanted['environment'], OMP_NUM_THREADS=str(math.ceil(size[0])))
    configuration = AciWebservice.deploy_configuration(
        cpu_cores=size[0], memory_gb=size[1], auth_enabled=True, enable_app_insights=True,
        tags={key: str(value) for key, value in dict(parts, **tags).items()},
        description='Claim probabilities by %s' % parts['model'])
    while True:
        try:
            with calls.asking('deploy the service %s' % name, chosen.call_timeout_seconds):
                service = Model.deploy(
                    space, name, [model], InferenceConfig(
                        entry_script='score.py', source_directory=str(source),
                        environment=environment), configuration, overwrite=True)
            break
        except calls.AzureError as error:
            # Another deployment is under way: it may be this one, whose answer was lost.
            if error.status != 409 or time.monotonic() > end:
                raise
        service = find_service(space, chosen)
        if service:
            settle(service, chosen)
            if runs(service, parts):
                return service
        time.sleep(PAUSE_SECONDS)
    wait(service, chosen, end)
    return service


def wait(service, chosen, end):
    """Wait until the deployment under way ends. Raises AzureError unless the service is healthy."""
    start = time.monotonic()
    while True:
        left = end - time.monotonic()
        try:
            with calls.asking('deploy the service %s' % service.name,
                              chosen.call_timeout_seconds + REPORT_SECONDS):
                service.wait_for_deployment(timeout_sec=max(1, min(REPORT_SECONDS, left)))
            break
        except calls.AzureError as error:
            if 'exceeded timeout' not in str(error):
                raise
        if left <= 0:
            raise calls.AzureError(
                'the service %s is not ready after %g minutes; the deployment goes on in Azure: '
                'run this again to wait for it' % (service.name, chosen.deploy_timeout_minutes))
        print('%s still deploying, %d s; a first image takes 10 to 20 minutes' % (
            time.strftime('%H:%M:%S'), time.monotonic() - start), flush=True)
    if service.state != 'Healthy':
        raise calls.AzureError('the service %s is %s' % (service.name, service.state))


def runs(service, parts):
    """Whether the service runs these parts and is healthy."""
    tags = service.tags or {}
    return service.state == 'Healthy' and {name: tags.get(name) for name in PARTS} == parts


def deployed_by(chosen):
    """The tags that say which build, which attempt of its stage and which code deployed."""
    return {'BuildId': chosen.build_buildid or 'none',
            'Attempt': str(chosen.system_stageattempt), 'CodeCommit': publish.code_commit(chosen)}


def same_attempt(service, chosen):
    """Whether this attempt of this build deployed what the service runs."""
    tags = service.tags or {}
    return (tags.get('BuildId'), tags.get('Attempt')) == (
        chosen.build_buildid, str(chosen.system_stageattempt))


def repeated(service, chosen):
    """Whether another attempt of this build deployed what the service runs."""
    return (service.tags or {}).get('BuildId') == chosen.build_buildid and not same_attempt(
        service, chosen)


def settle(service, chosen):
    """Wait until no deployment is under way, for an update would be refused. Raises AzureError."""
    end = time.monotonic() + 60 * chosen.deploy_timeout_minutes
    if service.state == 'Transitioning':
        print('the service %s is being deployed already; waiting' % service.name, flush=True)
    while service.state == 'Transitioning':
        if time.monotonic() > end:
            raise calls.AzureError(
                'the service %s is still busy with an earlier deployment after %g minutes' % (
                    service.name, chosen.deploy_timeout_minutes))
        time.sleep(PAUSE_SECONDS)
        with calls.asking('ask for the state of the service', chosen.call_timeout_seconds):
            service.update_deployment_state()


def show_logs(space, chosen):
    """Print the container's last log lines, without secrets."""
    try:
        service = find_service(space, chosen)
        with calls.asking("fetch the container's log", chosen.call_timeout_seconds):
            text = service.get_logs(num_lines=LOG_LINES) if service else ''
    except calls.AzureError as error:
        text = str(error)
    lines = calls.clean(text or '').splitlines()[-LOG_LINES:]
    print('the log of the container, last %d lines:' % len(lines))
    print('\n'.join('  ' + line for line in lines), flush=True)


def deploy(chosen, name, version):
    """Have the service run this model version; the content of service.json. Raises AzureError."""
    space = workspace.connect(chosen)
    environment = workspace.environment(space, chosen, 'scoring')
    parts = {'model': name, 'version': str(version), 'environment': environment.name,
             'scoring': fingerprint(SOURCE)}
    service = find_service(space, chosen)
    if service:
        settle(service, chosen)
    cores, memory, replace = resources(service, files.read_json(SOURCE / SETTINGS), chosen)
    # A stage that is run again deploys again, so that its failure hook may roll back.
    if service and runs(service, parts) and not replace and not repeated(service, chosen):
        print('the service %s runs version %s already' % (service.name, version))
        return described(service)
    tags = previous_tags(service, parts)
    tags.update(deployed_by(chosen))
    if replace:
        with calls.asking('delete the service %s' % service.name, chosen.call_timeout_seconds):
            service.delete()
    print('service %s: %s version %s of %s' % (
        chosen.aci_deployment_name, 'update to' if service and not replace else 'create with',
        version, name), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / SOURCE.name
        shutil.copytree(str(SOURCE), str(source), ignore=shutil.ignore_patterns(*NOT_UPLOADED))
        store = workspace.datastore(space, chosen)
        with calls.asking('store the scoring files', chosen.call_timeout_seconds):
            store.upload(str(source), target_path='scoring/' + parts['scoring'], overwrite=True,
                         show_progress=False)
        try:
            return described(put(
                space, chosen, service, source, environment, parts, tags, (cores, memory)))
        except calls.AzureError:
            show_logs(space, chosen)
            if tags.get('previous_version'):
                print('it ran version %s before: `make rollback` puts it back'
                      % tags['previous_version'], flush=True)
            raise


def described(service):
    """The content of service.json."""
    tags = service.tags or {}
    previous = tags.get('previous_version')
    return {'name': service.name, 'scoring_uri': service.scoring_uri, 'model': tags['model'],
            'version': int(tags['version']),
            'previous_version': int(previous) if previous else None}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder of run.json and service.json')
    args = parser.parse_args(argv)
    try:
        chosen = settings.read(os.environ, needs=settings.WORKSPACE)
        name, version = model_to_deploy(chosen, args.out)
        if version is None:
            print('nothing to deploy: the run kept the registered version')
            return 0
        result = deploy(chosen, name, version)
    except (settings.SettingsError, calls.AzureError, ValueError) as error:
        print('error: %s' % error, file=sys.stderr)
        return 1
    files.write_json(Path(args.out) / 'service.json', result)
    print('service %s runs version %s of %s: %s' % (
        result['name'], result['version'], result['model'], result['scoring_uri']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
