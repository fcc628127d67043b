"""Deploy the registered model: to Azure Container Instances, or to the endpoint of production.

    python scripts/deploy.py --service aci --out outputs
"""
import argparse
import fnmatch
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atomic
import azure_ml
import publish
import serve
import settings
import workspace

SOURCE = Path(__file__).resolve().parent.parent / 'scoring'
SETTINGS = 'deployment.json'
MODEL_FILE = 'model/model.txt'
NOT_UPLOADED = ('__pycache__', '*.pyc', '.*')
LOG_LINES = 60
PAUSE_SECONDS = 5
REPORT_SECONDS = 60
# What a service runs; the tags name it, and with previous_ what it ran before.
PARTS = ('model', 'version', 'environment', 'scoring')


def model_to_deploy(config, out):
    """(name, version) by MODEL_VERSION or run.json; version None when the run kept the old one."""
    if config.model_version:
        return config.model_name, config.model_version
    known = atomic.read_json(Path(out) / 'run.json')
    if known is None:
        raise azure_ml.AzureError(f"no model to deploy: there is no {Path(out) / 'run.json'}; "
                                  '`make run` writes it, or set MODEL_VERSION')
    return known['model'], known['version'] if known['result'] == 'registered' else None


def uploaded(folder):
    """The paths of those of a folder's files that are uploaded, in order."""
    return [path for path in sorted(Path(folder).rglob('*')) if path.is_file() and not any(
        fnmatch.fnmatch(part, pattern) for part in path.relative_to(folder).parts
        for pattern in NOT_UPLOADED)]


def fingerprint(folder):
    """A hash of the names and contents of the files that are uploaded."""
    digest = hashlib.sha256()
    for path in uploaded(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b'\0' + path.read_bytes()
                      + b'\0')
    return digest.hexdigest()[:12]


def find_service(space, config):
    """The service, or None. Raises AzureError when one of that name is not on ACI."""
    name = config.aci_deployment_name
    with azure_ml.asking(f'find the service {name}', config.call_timeout_seconds):
        from azureml.core import Webservice
        from azureml.exceptions import WebserviceException
        try:
            service = Webservice(space, name)
        except WebserviceException as error:
            if 'WebserviceNotFound' not in str(error):
                raise
            return None
    if service.compute_type != 'ACI':
        raise azure_ml.AzureError(f'the service {name} runs on {service.compute_type}, not on ACI: '
                                  'choose another ACI_DEPLOYMENT_NAME')
    return service


def previous_tags(service, parts):
    """The tags that name what to roll back to: what the service runs now, if that is healthy."""
    if service is None:
        return {}
    now = parts_of(service)
    if now == parts or service.state != 'Healthy':
        return {key: value for key, value in (service.tags or {}).items()
                if key.startswith('previous_')}
    return {'previous_' + name: value for name, value in now.items() if value}


def parts_of(service):
    """What the service runs, by its tags."""
    return {name: (service.tags or {}).get(name) for name in PARTS}


def must_replace(service, wanted, config):
    """Whether cores or memory differ, which ACI cannot change."""
    has = service.container_resource_requirements
    differ = (has.cpu, has.memory_in_gb) != (wanted['cpu_cores'], wanted['memory_gb'])
    if differ and not config.aci_replace:
        raise azure_ml.AzureError(
            f'the service {service.name} has cpu_cores {has.cpu:g} and memory_gb '
            f"{has.memory_in_gb:g}, scoring/{SETTINGS} wants {wanted['cpu_cores']:g} and "
            f"{wanted['memory_gb']:g}: an update cannot change them\n"
            'set ACI_REPLACE=true to delete and create it (it does not answer meanwhile, and gets '
            'a new address and new keys), or put the old values back')
    return differ


def fetch_model(space, config, name, version, folder):
    """The Model, its files in the folder. Raises ValueError unless it can be served."""
    what = f'version {version} of the model {name}'
    with azure_ml.asking(f'fetch {what}', config.call_timeout_seconds):
        from azureml.core.model import Model
        model = Model(space, name, version=int(version), expand=False)
        model.download(target_dir=str(folder), exist_ok=True)
    serve.check_model(Path(folder, MODEL_FILE), model.tags or {}, what, 'register a new one with '
                      '`make run`, or deploy another with MODEL_VERSION=n make deploy')
    return model


def create_or_update(space, config, model, source, environment, parts, tags, size):
    """Create or update the service until it answers; the content of service.json. AzureError.

    source: the folder (Path) of score.py; parts: what the service is to run; size: (cores, GB).
    """
    from azureml.core.model import InferenceConfig, Model
    from azureml.core.webservice import AciWebservice
    end = time.monotonic() + 60 * config.deploy_timeout_minutes
    name = config.aci_deployment_name
    # LightGBM counts the cores of the host, not those that the container may use.
    environment.environment_variables = dict(
        atomic.read_json(source / SETTINGS)['environment'],
        OMP_NUM_THREADS=str(math.ceil(size[0])), SERVED_AS=name)
    configuration = AciWebservice.deploy_configuration(
        cpu_cores=size[0], memory_gb=size[1], auth_enabled=True, enable_app_insights=True,
        tags={key: str(value) for key, value in dict(parts, **tags).items()},
        description=f"Claim probabilities by {parts['model']}")
    try:
        while True:
            try:
                with azure_ml.asking(f'deploy the service {name}', config.call_timeout_seconds):
                    service = Model.deploy(
                        space, name, [model], InferenceConfig(
                            entry_script='score.py', source_directory=str(source),
                            environment=environment), configuration, overwrite=True)
                break
            except azure_ml.AzureError as error:
                # Another deployment is under way: it may be this one, whose answer was lost.
                if error.status != 409 or time.monotonic() > end:
                    raise
            service = find_service(space, config)
            if service:
                wait_until_idle(service, config)
                if runs_parts(service, parts):
                    return service_facts(service)
            time.sleep(PAUSE_SECONDS)
        wait_until_healthy(service, config, end)
        return service_facts(service)
    except azure_ml.AzureError:
        show_logs(space, config)
        if tags.get('previous_version'):
            print(f"it ran version {tags['previous_version']} before: `make rollback` puts it back",
                  flush=True)
        raise


def wait_until_healthy(service, config, end):
    """Wait until the deployment under way ends. Raises AzureError unless the service is healthy."""
    start = time.monotonic()
    while True:
        left = end - time.monotonic()
        try:
            with azure_ml.asking(f'deploy the service {service.name}',
                                 config.call_timeout_seconds + REPORT_SECONDS):
                service.wait_for_deployment(timeout_sec=max(1, min(REPORT_SECONDS, left)))
            break
        except azure_ml.AzureError as error:
            if 'exceeded timeout' not in str(error):
                raise
        if left <= 0:
            raise azure_ml.AzureError(
                f'the service {service.name} is not ready after {config.deploy_timeout_minutes:g} '
                'minutes; the deployment goes on in Azure: run this again to wait for it')
        print(f"{time.strftime('%H:%M:%S')} still deploying, {time.monotonic() - start:.0f} s; "
              'a first image takes 10 to 20 minutes', flush=True)
    if service.state != 'Healthy':
        raise azure_ml.AzureError(f'the service {service.name} is {service.state}')


def runs_parts(service, parts):
    return service.state == 'Healthy' and parts_of(service) == parts


def build_tags(config):
    """The tags that say which build, which attempt of its stage and which code deployed."""
    return {'BuildId': config.build_buildid or 'none',
            'Attempt': str(config.system_stageattempt), 'CodeCommit': publish.code_commit(config)}


def attempt_of(tags, config):
    """Which attempt of this build deployed what has these build_tags; None: none of them."""
    return tags.get('Attempt') if tags.get('BuildId') == config.build_buildid else None


def may_roll_back(tags, config):
    """Whether what has these build_tags is this attempt's own, or a person asks for it."""
    return not config.build_buildid or config.rollback_any_build or attempt_of(
        tags, config) == str(config.system_stageattempt)


def wait_until_idle(service, config):
    """Wait until no deployment is under way, for an update would be refused. Raises AzureError."""
    end = time.monotonic() + 60 * config.deploy_timeout_minutes
    if service.state == 'Transitioning':
        print(f'the service {service.name} is being deployed already; waiting', flush=True)
    while service.state == 'Transitioning':
        if time.monotonic() > end:
            raise azure_ml.AzureError(
                f'the service {service.name} is still busy with an earlier deployment after '
                f'{config.deploy_timeout_minutes:g} minutes')
        time.sleep(PAUSE_SECONDS)
        with azure_ml.asking('ask for the state of the service', config.call_timeout_seconds):
            service.update_deployment_state()


def show_logs(space, config):
    """Print the container's last log lines, without secrets."""
    try:
        service = find_service(space, config)
        with azure_ml.asking("fetch the container's log", config.call_timeout_seconds):
            text = service.get_logs(num_lines=LOG_LINES) if service else ''
    except azure_ml.AzureError as error:
        text = str(error)
    lines = azure_ml.clean(text or '').splitlines()[-LOG_LINES:]
    print(f'the log of the container, last {len(lines)} lines:')
    print('\n'.join('  ' + line for line in lines), flush=True)


def deploy_model(config, name, version):
    """Have the service run this model version; the content of service.json. Raises AzureError."""
    space = workspace.connect(config)
    environment = workspace.environment(space, config, 'scoring')
    parts = {'model': name, 'version': str(version), 'environment': environment.name,
             'scoring': fingerprint(SOURCE)}
    wanted, replace = atomic.read_json(SOURCE / SETTINGS), False
    service = find_service(space, config)
    if service:
        wait_until_idle(service, config)
        replace = must_replace(service, wanted, config)
        # A stage that is run again deploys again, so that its failure hook may roll back.
        again = attempt_of(service.tags or {}, config) not in (
            None, str(config.system_stageattempt))
        if runs_parts(service, parts) and not replace and not again:
            print(f'the service {service.name} runs version {version} already')
            return service_facts(service)
    tags = dict(previous_tags(service, parts), **build_tags(config))
    done = 'update to' if service and not replace else 'create with'
    print(f'service {config.aci_deployment_name}: {done} version {version} of {name}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = fetch_model(space, config, name, version, Path(folder, 'fetched'))
        source = Path(folder, SOURCE.name)
        shutil.copytree(str(SOURCE), str(source), ignore=shutil.ignore_patterns(*NOT_UPLOADED))
        store = workspace.datastore(space, config)
        with azure_ml.asking('store the scoring files', config.call_timeout_seconds):
            target = 'scoring/' + parts['scoring']
            store.upload(str(source), target_path=target, overwrite=True, show_progress=False)
            workspace.check_stored(store, [f'{target}/{path.relative_to(source).as_posix()}'
                                           for path in source.rglob('*') if path.is_file()])
        if replace:
            with azure_ml.asking(f'delete the service {service.name}', config.call_timeout_seconds):
                service.delete()
        return create_or_update(space, config, model, source, environment, parts, tags,
                                (wanted['cpu_cores'], wanted['memory_gb']))


def service_facts(service):
    """The content of service.json."""
    previous = service.tags.get('previous_version')
    return {'name': service.name, 'scoring_uri': service.scoring_uri,
            'model': service.tags['model'], 'version': int(service.tags['version']),
            'previous_version': int(previous) if previous else None}


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder of run.json and service.json')
    parser.add_argument('--service', choices=('local', 'aci', 'endpoint'), default='local',
                        help='where to; endpoint: the managed online endpoint, else ACI')
    args = parser.parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    if args.service == 'endpoint':
        import endpoint
        return endpoint.deploy_to(config, args.out)
    name, version = model_to_deploy(config, args.out)
    if version is None:
        print('nothing to deploy: the run kept the registered version')
        return 0
    result = deploy_model(config, name, version)
    atomic.write_json(Path(args.out) / 'service.json', result)
    print(f"service {result['name']} runs version {result['version']} of {result['model']}: "
          f"{result['scoring_uri']}")
    return 0


if __name__ == '__main__':
    sys.exit(main())
