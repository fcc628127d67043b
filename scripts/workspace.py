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

import calls
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
            raise settings.SettingsError('%s is set without %s' % (names[2], ', '.join(missing)))
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
                raise calls.AzureError('`az account get-access-token` failed: %s' % calls.clean(
                    answer.stderr.decode(errors='replace').strip()[:300]), status=401)
            value = json.loads(answer.stdout.decode())['accessToken']
            cache[audience] = time.monotonic(), value
        return value

    try:
        return token if az and token('https://management.azure.com/') else None
    except (calls.AzureError, OSError, subprocess.TimeoutExpired, ValueError, KeyError):
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
        raise calls.AzureError(FEDERATED, status=401)
    if sys.stdin.isatty() and not environ.get('TF_BUILD'):
        return authentication.InteractiveLoginAuthentication()
    raise calls.AzureError(SIGNED_OUT, status=401)


def connect(chosen, environ=os.environ):
    """The azureml.core.Workspace that the settings name. Raises AzureError or SettingsError."""
    calls.quieten()
    from azureml.core import Workspace
    with calls.asking('open the workspace %s' % chosen.workspace_name,
                      chosen.call_timeout_seconds):
        return Workspace.get(
            chosen.workspace_name, auth=sign_in(environ), subscription_id=chosen.subscription_id,
            resource_group=chosen.resource_group)


def compute(workspace, chosen):
    """The compute cluster. Raises AzureError when there is none or when it is no AmlCompute."""
    name = chosen.aml_compute_cluster_name
    with calls.asking('find the compute cluster %s' % name, chosen.call_timeout_seconds):
        target = workspace.compute_targets.get(name)
    if target is None:
        raise calls.AzureError('there is no compute cluster %s: `make workspace` creates it' % name,
                               status=404)
    if target.type != 'AmlCompute':
        raise calls.AzureError(
            'the compute target %s is of the kind %s, not AmlCompute: choose another '
            'AML_COMPUTE_CLUSTER_NAME' % (name, target.type), status=409)
    return target


def datastore(workspace, chosen):
    """The datastore that the settings name, or the workspace's own."""
    with calls.asking('find the datastore %s' % (chosen.datastore_name or 'of the workspace'),
                      chosen.call_timeout_seconds):
        from azureml.core import Datastore
        if chosen.datastore_name:
            return Datastore.get(workspace, chosen.datastore_name)
        return workspace.get_default_datastore()


def environment(workspace, chosen, tag):
    """The azureml Environment of the lines of conda_dependencies.yml with this tag.

    Its name holds the hash of those lines, so one that is registered already is what is wanted.
    """
    lines = dependencies.LIST.read_text()
    name = dependencies.name(lines, tag, chosen.aml_env_name)
    seconds = chosen.call_timeout_seconds
    with calls.asking('register the environment %s' % name, seconds):
        from azureml.core import Environment
        if not chosen.aml_rebuild_environment:
            try:
                return calls.repeat(lambda: Environment.get(workspace, name), seconds / 2)
            except Exception as error:
                if calls.status_of(error) != 404:
                    raise
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'conda.yml')
            file.write_text(dependencies.select(lines, tag))
            new = Environment.from_conda_specification(name, str(file))
        return calls.repeat(lambda: new.register(workspace), seconds / 2)


def create_workspace(chosen, environ):
    """The workspace, created with storage, key vault and insights if need be.

    Opened first, since to create one the SDK asks for rights beyond the resource group, even where
    it exists.
    """
    try:
        return connect(chosen, environ)
    except calls.AzureError as error:
        if error.status == 401:
            raise
    with calls.asking('create the workspace %s' % chosen.workspace_name, CREATE_SECONDS):
        from azureml.core import Workspace
        return Workspace.create(
            chosen.workspace_name, auth=sign_in(environ), subscription_id=chosen.subscription_id,
            resource_group=chosen.resource_group, location=chosen.location,
            create_resource_group=True, exist_ok=True, show_output=False)


def create_compute(workspace, chosen):
    """Create the cluster, or give an existing one the wanted number of nodes; what was done."""
    name = chosen.aml_compute_cluster_name
    try:
        target = compute(workspace, chosen)
    except calls.AzureError as error:
        if error.status != 404:
            raise
        target = None
    with calls.asking('create the compute cluster %s' % name, CREATE_SECONDS):
        from azureml.core.compute import AmlCompute, ComputeTarget
        limits = {'min_nodes': chosen.aml_cluster_min_nodes,
                  'max_nodes': chosen.aml_cluster_max_nodes,
                  'idle_seconds_before_scaledown': IDLE_SECONDS}
        done = 'created'
        if target is None:
            target = ComputeTarget.create(workspace, name, AmlCompute.provisioning_configuration(
                vm_size=chosen.aml_compute_cluster_cpu_sku,
                vm_priority=chosen.aml_cluster_priority, **limits))
        else:
            scale = target.scale_settings
            done = 'there already'
            if (scale.minimum_node_count, scale.maximum_node_count) != (
                    limits['min_nodes'], limits['max_nodes']):
                target.update(**limits)
                done = 'updated'
        target.wait_for_completion(show_output=False, timeout_in_minutes=CREATE_SECONDS // 60)
        if target.provisioning_state != 'Succeeded':
            raise calls.AzureError('the compute cluster %s is %s: %s' % (
                name, target.provisioning_state, calls.clean(str(target.provisioning_errors))))
    if target.vm_size.lower() != chosen.aml_compute_cluster_cpu_sku.lower():
        done += ', with machines of size %s; to change the size, delete it first' % target.vm_size
    return done


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    try:
        chosen = settings.read(os.environ, needs=settings.WORKSPACE + ('LOCATION',))
        print('workspace %s: creating or checking it; a new one takes some minutes'
              % chosen.workspace_name, flush=True)
        workspace = create_workspace(chosen, os.environ)
        print('workspace %s in %s: ready' % (workspace.name, workspace.location), flush=True)
        print('compute cluster %s: %s' % (
            chosen.aml_compute_cluster_name, create_compute(workspace, chosen)), flush=True)
        for tag in ('training', 'scoring'):
            print('environment %s: registered' % environment(workspace, chosen, tag).name,
                  flush=True)
    except (settings.SettingsError, calls.AzureError) as error:
        print('error: %s' % error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
