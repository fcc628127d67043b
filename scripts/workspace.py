"""Create or get the Azure ML workspace with what it consists of, its cluster and environments.

    python scripts/workspace.py

Each resource is asked for first and made only where it is missing, under a name that follows from
the settings: interrupted anywhere and run again, it goes on.
"""
import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import arm
import azure_ml
import dependencies
import settings
import sign_in

CREATE_SECONDS = 1800
BUILD_SECONDS = 2400
IDLE_SECONDS = 300
PAUSE_SECONDS = 5
REPORT_SECONDS = 60
LOG_LINES = 40
BUILDING = ('Running', 'GettingOrProvisioningACR', 'Queued')
WORKSPACES = 'Microsoft.MachineLearningServices/workspaces'
WORKSPACE_VERSION = '2025-09-01'


def resources(config, tenant):
    """What a workspace consists of, itself last: [(title, id, api-version, body), ...].

    Made by today's versions and in the group only: the template of azureml-sdk v1 wants rights on
    the subscription, and its version of Microsoft.KeyVault ends on 2027-02-27
    (learn.microsoft.com/azure/key-vault/general/migrate-api-version).
    """
    name, at = config.workspace_name, {'location': config.location}
    # Two of these names are unique in all of Azure.
    whole = f'{config.subscription_id}/{config.resource_group}/{name}'.lower()
    unique = re.sub('[^a-z0-9]', '', name.lower())[:11]
    unique += hashlib.sha256(whole.encode()).hexdigest()[:10]
    providers = (f'/subscriptions/{config.subscription_id}/resourceGroups/{config.resource_group}'
                 '/providers')
    storage = f'{providers}/Microsoft.Storage/storageAccounts/st{unique}'
    vault = f'{providers}/Microsoft.KeyVault/vaults/kv-{unique}'
    # No underscore: the only one of these types that refuses it.
    logs = f"{providers}/Microsoft.OperationalInsights/workspaces/{name.replace('_', '-')}-logs"
    insights = f'{providers}/Microsoft.Insights/components/{name}-insights'
    return [
        ('storage account', storage, '2025-06-01', dict(
            at, kind='StorageV2', sku={'name': 'Standard_LRS'}, properties={
                'minimumTlsVersion': 'TLS1_2', 'supportsHttpsTrafficOnly': True,
                'allowBlobPublicAccess': False,
                # Datastores of SDK v1 know no other way in.
                'allowSharedKeyAccess': True})),
        ('key vault', vault, '2026-02-01', dict(
            at, properties={
                'tenantId': tenant, 'sku': {'family': 'A', 'name': 'standard'},
                # Azure ML gives its identity an access policy; since 2026-02-01 roles are the
                # default instead.
                'enableRbacAuthorization': False, 'accessPolicies': []})),
        ('log workspace', logs, '2025-02-01', dict(
            at, properties={'sku': {'name': 'PerGB2018'}, 'retentionInDays': 30})),
        ('application insights', insights, '2020-02-02', dict(
            at, kind='web', properties={
                'Application_Type': 'web', 'WorkspaceResourceId': logs})),
        ('workspace', f'{providers}/{WORKSPACES}/{name}', WORKSPACE_VERSION, dict(
            at, kind='Default', identity={'type': 'SystemAssigned'},
            sku={'name': 'Basic', 'tier': 'Basic'}, properties={
                'friendlyName': name, 'publicNetworkAccess': 'Enabled',
                'systemDatastoresAuthMode': 'AccessKey', 'v1LegacyMode': False,
                'storageAccount': storage, 'keyVault': vault, 'applicationInsights': insights})),
    ]


def create_resources(manager, config):
    """Create what is missing of the workspace's resources, and print a line for each.

    Raises AzureError. Where the workspace is, nothing else is looked at: it may have been made in
    another way.
    """
    end = time.monotonic() + CREATE_SECONDS
    wanted = resources(config, manager.tenant())
    there = manager.get(*wanted[-1][1:3], f'look for the workspace {config.workspace_name}')
    for title, path, version, body in wanted[-1:] if there else wanted:
        name, began = f"{title} {path.rpartition('/')[2]}", time.monotonic()
        found = manager.get(path, version, f'look for the {name}')
        state = arm.state_of(found)
        if state in arm.READY:
            print(f'{name}: there already', flush=True)
        elif there or found and state not in arm.ENDED:
            print(f'{name}: {state}; waiting', flush=True)
            manager.wait(path, version, f'create the {name}', end)
        else:
            print(f'{name}: creating it', flush=True)
            manager.create(path, version, body, f'create the {name}', end)
            print(f'{name}: created, {time.monotonic() - began:.0f} s', flush=True)


def connect(config):
    """The azureml.core.Workspace that the settings name. Raises AzureError or SettingsError."""
    with azure_ml.asking(f'open the workspace {config.workspace_name}',
                         config.call_timeout_seconds):
        from azureml.core import Workspace
        # The SDK does not repeat what MSAL asks when a service principal signs in.
        return azure_ml.repeat(lambda: Workspace.get(
            config.workspace_name, auth=sign_in.authentication(os.environ),
            subscription_id=config.subscription_id, resource_group=config.resource_group),
            config.call_timeout_seconds / 2)


def compute(workspace, config, required=True):
    """The compute cluster, or None. Raises AzureError when required or when it is no AmlCompute."""
    name = config.aml_compute_cluster_name
    with azure_ml.asking(f'find the compute cluster {name}', config.call_timeout_seconds):
        target = workspace.compute_targets.get(name)
    if target is None and required:
        raise azure_ml.AzureError(
            f'there is no compute cluster {name}: `make workspace` creates it', status=404)
    if target and target.type != 'AmlCompute':
        raise azure_ml.AzureError(
            f'the compute target {name} is of the kind {target.type}, not AmlCompute: choose '
            'another AML_COMPUTE_CLUSTER_NAME', status=409)
    return target


def datastore(workspace, config):
    """The datastore that the settings name, or the workspace's own."""
    with azure_ml.asking(f"find the datastore {config.datastore_name or 'of the workspace'}",
                         config.call_timeout_seconds):
        from azureml.core import Datastore
        if config.datastore_name:
            return Datastore.get(workspace, config.datastore_name)
        return workspace.get_default_datastore()


def check_stored(store, paths):
    """Raise an error for a file that is not in the store: the SDK only logs a failed upload."""
    for path in paths if hasattr(store, 'blob_service') else ():
        try:
            store.blob_service.get_blob_client(store.container_name, path).get_blob_properties()
        except Exception as error:
            if azure_ml.status_of(error) != 404:
                raise
            raise azure_ml.AzureError(
                f'could not upload {path}: it did not arrive; run this again') from None


def environment(workspace, config, tag):
    """The azureml Environment of the lines of conda_dependencies.yml with this tag.

    Its name holds the hash of those lines and of the base image, so one that is registered already
    is what is wanted.
    """
    lines = dependencies.LIST.read_text()
    name = dependencies.name(lines, tag, config.aml_env_name)
    seconds = config.call_timeout_seconds
    with azure_ml.asking(f'register the environment {name}', seconds):
        from azureml.core import Environment
        if not config.aml_rebuild_environment:
            try:
                found = azure_ml.repeat(lambda: Environment.get(workspace, name), seconds / 2)
                if isinstance(found, Environment):
                    return found
                raise azure_ml.AzureError(
                    f'could not read the environment {name}: the answer has none\n{azure_ml.ODD}')
            except Exception as error:
                if azure_ml.status_of(error) != 404:
                    raise
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'conda.yml')
            file.write_text(dependencies.select(lines, tag))
            new = Environment.from_conda_specification(name, str(file))
        new.docker.base_image = dependencies.BASE_IMAGE
        return azure_ml.repeat(lambda: new.register(workspace), seconds / 2)


def create_compute(workspace, config):
    """Create the cluster, or give an existing one the wanted number of nodes; what was done."""
    name = config.aml_compute_cluster_name
    target = compute(workspace, config, required=False)
    with azure_ml.asking(f'create the compute cluster {name}', CREATE_SECONDS):
        from azureml.core.compute import AmlCompute, ComputeTarget
        limits = {'min_nodes': config.aml_cluster_min_nodes,
                  'max_nodes': config.aml_cluster_max_nodes,
                  'idle_seconds_before_scaledown': IDLE_SECONDS}
        if target is None:
            done = 'created'
            target = ComputeTarget.create(workspace, name, AmlCompute.provisioning_configuration(
                vm_size=config.aml_compute_cluster_cpu_sku,
                vm_priority=config.aml_cluster_priority, **limits))
        elif (target.scale_settings.minimum_node_count,
              target.scale_settings.maximum_node_count) != (
                  limits['min_nodes'], limits['max_nodes']):
            done = 'updated'
            target.update(**limits)
        else:
            done = 'there already'
        target.wait_for_completion(show_output=False, timeout_in_minutes=CREATE_SECONDS // 60)
        if target.provisioning_state != 'Succeeded':
            raise azure_ml.AzureError(
                f'the compute cluster {name} is {target.provisioning_state}: '
                f'{azure_ml.sentence(target.provisioning_errors)}')
    if target.vm_size.lower() != config.aml_compute_cluster_cpu_sku.lower():
        done += f', with machines of size {target.vm_size}; to change the size, delete it first'
    return done


def build_image(workspace, environment, config):
    """Have Azure ML build the environment's image, so that the first run need not wait for it.

    Raises AzureError.
    """
    name, seconds = environment.name, config.call_timeout_seconds
    with azure_ml.asking(f'look for the image of {name}', seconds):
        built = environment.get_image_details(workspace).image_exist
    if built:
        print(f'environment {name}: registered, its image is built', flush=True)
        return
    with azure_ml.asking(f'build the image of {name}', seconds):
        build = environment.build(workspace)
    began, shown, spoken = time.monotonic(), None, 0
    while True:
        with azure_ml.asking(f'ask how the image of {name} gets on', seconds):
            status = build.status
        passed = time.monotonic() - began
        if status != shown or passed - spoken > REPORT_SECONDS:
            print(f'environment {name}: image {status}, {passed:.0f} s; the first takes 10 to 20 '
                  'minutes', flush=True)
            shown, spoken = status, passed
        if status not in BUILDING:
            break
        if passed > BUILD_SECONDS:
            raise azure_ml.AzureError(f'the image of {name} is still {status} after '
                                      f'{passed / 60:.0f} minutes; run this again to wait for it')
        time.sleep(PAUSE_SECONDS)
    if status != 'Succeeded':
        with azure_ml.asking('fetch the log of the build', seconds):
            lines = azure_ml.clean(build.get_log() or '').splitlines()[-LOG_LINES:]
        print('\n'.join(f'  {line}' for line in lines), flush=True)
        raise azure_ml.AzureError(f'the build of the image of {name} ended as {status}: see above')


@azure_ml.verb
def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE + ('LOCATION',))
    create_resources(arm.Manager(sign_in.authentication(os.environ), config.call_timeout_seconds),
                     config)
    workspace = connect(config)
    done = create_compute(workspace, config)
    print(f'compute cluster {config.aml_compute_cluster_name}: {done}', flush=True)
    for tag in ('training', 'scoring'):
        build_image(workspace, environment(workspace, config, tag), config)
    return 0


if __name__ == '__main__':
    sys.exit(main())
