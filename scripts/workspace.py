"""Create or get the Azure ML workspace, its compute cluster and the two environments.

    python scripts/workspace.py
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import azure_ml
import dependencies
import settings

CREATE_SECONDS = 1800
IDLE_SECONDS = 300
TOKEN_SECONDS = 240
PRINCIPALS = (
    # What the AzureCLI task exports with addSpnToEnvironment, then the SDK's own names.
    ('tenantId', 'servicePrincipalId', 'servicePrincipalKey'),
    ('AZUREML_SERVICE_PRINCIPAL_TENANT_ID', 'AZUREML_SERVICE_PRINCIPAL_ID',
     'AZUREML_SERVICE_PRINCIPAL_PASSWORD'),
)
FEDERATED = (
    'the service connection is federated: it gives a token (idToken), which the Azure ML SDK v1 '
    'cannot use, and no secret\n'
    'use a service connection with a secret, or run this inside an AzureCLI task, where `az` is '
    'signed in')
SIGNED_OUT = (
    'not signed in to Azure\n'
    'in a pipeline: run this inside an AzureCLI task with addSpnToEnvironment: true; on your '
    'machine: run `az login`, or set ' + ', '.join(PRINCIPALS[1]))


def principal(environ):
    """(tenant, id, secret) of the service principal that the environment names, or None.

    Raises SettingsError when a part of it is missing.
    """
    for names in PRINCIPALS:
        missing = [name for name in names if not environ.get(name)]
        if not missing:
            return tuple(environ[name] for name in names)
        if environ.get(names[2]):
            raise settings.SettingsError(f"{names[2]} is set without {', '.join(missing)}")
    return None


def command_line_tokens():
    """A function from audience to access token that asks the Azure CLI, or None if it cannot.

    It serves federated connections too, and needs no azure-cli package beside the SDK.
    """
    az = shutil.which('az')
    cache = {}

    def token(audience):
        asked, value = cache.get(audience, (0, None))
        if time.monotonic() - asked > TOKEN_SECONDS or not value:
            answer = subprocess.run(
                [az, 'account', 'get-access-token', '--resource', audience, '--output', 'json'],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            if answer.returncode:
                said = azure_ml.clean(answer.stderr.decode(errors='replace').strip()[:300])
                raise azure_ml.AzureError(
                    f'`az account get-access-token` failed: {said}', status=401)
            value = json.loads(answer.stdout.decode())['accessToken']
            cache[audience] = time.monotonic(), value
        return value

    try:
        return token if az and token('https://management.azure.com/') else None
    except (azure_ml.AzureError, OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def sign_in(environ):
    """The SDK's authentication object: service principal, else Azure CLI, else a browser.

    A browser is opened on a terminal only, never in a pipeline. Raises AzureError or
    SettingsError.
    """
    found = principal(environ)
    from azureml.core import authentication
    if found:
        return authentication.ServicePrincipalAuthentication(*found)
    token = command_line_tokens()
    if token:
        return authentication.TokenAuthentication(token, cloud='AzureCloud')
    if environ.get('idToken'):
        raise azure_ml.AzureError(FEDERATED, status=401)
    if sys.stdin.isatty() and not environ.get('TF_BUILD'):
        return authentication.InteractiveLoginAuthentication()
    raise azure_ml.AzureError(SIGNED_OUT, status=401)


def connect(config, environ=os.environ):
    """The azureml.core.Workspace that the settings name. Raises AzureError or SettingsError."""
    azure_ml.quieten()
    from azureml.core import Workspace
    with azure_ml.asking(f'open the workspace {config.workspace_name}',
                         config.call_timeout_seconds):
        return Workspace.get(
            config.workspace_name, auth=sign_in(environ), subscription_id=config.subscription_id,
            resource_group=config.resource_group)


def compute(workspace, config):
    """The compute cluster. Raises AzureError when there is none or when it is no AmlCompute."""
    name = config.aml_compute_cluster_name
    with azure_ml.asking(f'find the compute cluster {name}', config.call_timeout_seconds):
        target = workspace.compute_targets.get(name)
    if target is None:
        raise azure_ml.AzureError(
            f'there is no compute cluster {name}: `make workspace` creates it', status=404)
    if target.type != 'AmlCompute':
        raise azure_ml.AzureError(
            'the compute target %s is of the kind %s, not AmlCompute: choose another '
            'AML_COMPUTE_CLUSTER_NAME' % (name, target.type), status=409)
    return target


def datastore(workspace, config):
    """The datastore that the settings name, or the workspace's own."""
    with azure_ml.asking('find the datastore %s' % (config.datastore_name or 'of the workspace'),
                         config.call_timeout_seconds):
        from azureml.core import Datastore
        if config.datastore_name:
            return Datastore.get(workspace, config.datastore_name)
        return workspace.get_default_datastore()


def environment(workspace, config, tag):
    """The azureml Environment of the lines of conda_dependencies.yml with this tag.

    Its name holds the hash of those lines, so one that is registered already is what is wanted.
    """
    lines = dependencies.LIST.read_text()
    name = dependencies.name(lines, tag, config.aml_env_name)
    seconds = config.call_timeout_seconds
    with azure_ml.asking(f'register the environment {name}', seconds):
        from azureml.core import Environment
        if not config.aml_rebuild_environment:
            try:
                return azure_ml.repeat(lambda: Environment.get(workspace, name), seconds / 2)
            except Exception as error:
                if azure_ml.status_of(error) != 404:
                    raise
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'conda.yml')
            file.write_text(dependencies.select(lines, tag))
            new = Environment.from_conda_specification(name, str(file))
        return azure_ml.repeat(lambda: new.register(workspace), seconds / 2)


def create_workspace(config, environ):
    """The workspace, created with storage, key vault and insights if need be.

    Opened first, since to create one the SDK asks for rights beyond the resource group, even where
    it exists.
    """
    try:
        return connect(config, environ)
    except azure_ml.AzureError as error:
        if error.status == 401:
            raise
    with azure_ml.asking(f'create the workspace {config.workspace_name}', CREATE_SECONDS):
        from azureml.core import Workspace
        return Workspace.create(
            config.workspace_name, auth=sign_in(environ), subscription_id=config.subscription_id,
            resource_group=config.resource_group, location=config.location,
            create_resource_group=True, exist_ok=True, show_output=False)


def create_compute(workspace, config):
    """Create the cluster, or give an existing one the wanted number of nodes; what was done."""
    name = config.aml_compute_cluster_name
    try:
        target = compute(workspace, config)
    except azure_ml.AzureError as error:
        if error.status != 404:
            raise
        target = None
    with azure_ml.asking(f'create the compute cluster {name}', CREATE_SECONDS):
        from azureml.core.compute import AmlCompute, ComputeTarget
        limits = {'min_nodes': config.aml_cluster_min_nodes,
                  'max_nodes': config.aml_cluster_max_nodes,
                  'idle_seconds_before_scaledown': IDLE_SECONDS}
        done = 'created'
        if target is None:
            target = ComputeTarget.create(workspace, name, AmlCompute.provisioning_configuration(
                vm_size=config.aml_compute_cluster_cpu_sku,
                vm_priority=config.aml_cluster_priority, **limits))
        else:
            scale = target.scale_settings
            done = 'there already'
            if (scale.minimum_node_count, scale.maximum_node_count) != (
                    limits['min_nodes'], limits['max_nodes']):
                target.update(**limits)
                done = 'updated'
        target.wait_for_completion(show_output=False, timeout_in_minutes=CREATE_SECONDS // 60)
        if target.provisioning_state != 'Succeeded':
            raise azure_ml.AzureError('the compute cluster %s is %s: %s' % (
                name, target.provisioning_state, azure_ml.clean(str(target.provisioning_errors))))
    if target.vm_size.lower() != config.aml_compute_cluster_cpu_sku.lower():
        done += f', with machines of size {target.vm_size}; to change the size, delete it first'
    return done


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    try:
        config = settings.read(os.environ, needs=settings.WORKSPACE + ('LOCATION',))
        print('workspace %s: creating or checking it; a new one takes some minutes'
              % config.workspace_name, flush=True)
        workspace = create_workspace(config, os.environ)
        print(f'workspace {workspace.name} in {workspace.location}: ready', flush=True)
        print('compute cluster %s: %s' % (
            config.aml_compute_cluster_name, create_compute(workspace, config)), flush=True)
        for tag in ('training', 'scoring'):
            print(f'environment {environment(workspace, config, tag).name}: registered',
                  flush=True)
    except (settings.SettingsError, azure_ml.AzureError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
