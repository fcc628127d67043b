"""Say which setting, sign-in, permission or resource is missing in Azure; changes nothing.

    python scripts/preflight.py
"""
import argparse
import fnmatch
import math
import os
import sys

import arm
import atomic
import azure_ml
import dataset
import deploy
import endpoint
import publish
import settings
import sign_in
import workspace
from azure_ml import AzureError

LONGEST_SECONDS = 60
PROVIDERS = ('Microsoft.MachineLearningServices', 'Microsoft.ContainerInstance',
             'Microsoft.ContainerRegistry', 'Microsoft.Storage', 'Microsoft.KeyVault',
             'Microsoft.OperationalInsights', 'Microsoft.Insights')
# The first managed endpoint of a subscription (Azure/CloudShell 487 has the refusal).
ENDPOINT_PROVIDERS = ('Microsoft.PolicyInsights', 'Microsoft.Cdn')
WRITES = [f'Microsoft.MachineLearningServices/workspaces/{action}' for action in (
    'write', 'computes/write', 'datasets/registered/write', 'endpoints/pipelines/write',
    'experiments/runs/submit/action', 'models/write', 'services/aci/write')] + [
        'Microsoft.Storage/storageAccounts/write', 'Microsoft.KeyVault/vaults/write',
        'Microsoft.OperationalInsights/workspaces/write', 'Microsoft.Insights/components/write',
        'Microsoft.ContainerInstance/containerGroups/write']
ENDPOINT_WRITES = [f'Microsoft.MachineLearningServices/workspaces/{action}' for action in (
    'codes/versions/write', 'onlineEndpoints/write', 'onlineEndpoints/listKeys/action',
    'onlineEndpoints/deployments/write', 'onlineEndpoints/deployments/delete',
    'onlineEndpoints/deployments/getLogs/action')]
# Roles by which the workspace's own identity may make the container group of a service
# (learn.microsoft.com/azure/role-based-access-control/built-in-roles).
MAKE_CONTAINERS = {'b24988ac-6180-42a0-ab88-20f7382dd24c': 'Contributor',
                   '8e3af657-a8ff-443c-a75c-2fe8c4bcb635': 'Owner'}


class Unseen(Exception):
    """What the sign-in may not look at; only that cannot be said to be missing."""


class Azure:
    """What the settings name, by Azure Resource Manager and the SDK."""

    def __init__(self, config):
        self.config = config
        authentication = sign_in.authentication(os.environ)
        self.sign_in = type(authentication).__name__.replace('Authentication', '')
        self.manager = arm.Manager(authentication, LONGEST_SECONDS)
        self.manager.header()
        self.subscription = f'/subscriptions/{config.subscription_id}'
        self.group = f'{self.subscription}/resourceGroups/{config.resource_group}'
        self.workspace = self.space = None  # by check_workspace

    def get(self, path, version, advice, **query):
        """The JSON answer. Raises AzureError with the advice for 404.

        A sign-in with rights on the resource group only gets 403 outside of it: Unseen.
        """
        try:
            found = self.manager.get(path, version, f"ask for {path.rsplit('/', 1)[-1]}", **query)
        except AzureError as error:
            if error.status == 403 and not path.startswith(self.group):
                raise Unseen('the sign-in may not look at this; for that it needs the role Reader '
                             'on the subscription:\naz role assignment create --role Reader '
                             f'--assignee CLIENT_ID --scope {self.subscription}') from None
            raise
        if found is None:
            raise AzureError(advice)
        return found


def check_subscription(azure):
    found = azure.get(azure.subscription, '2022-12-01', 'there is no subscription '
                      f'{azure.config.subscription_id}, or it is not shared with you: correct '
                      'SUBSCRIPTION_ID')
    if found.get('state') != 'Enabled':
        raise AzureError(f"the subscription is {found['state']}: ask its owner")
    return found.get('displayName')


def check_providers(azure):
    wanted = PROVIDERS + ENDPOINT_PROVIDERS * (azure.config.production == 'endpoint')
    off = [name for name in wanted
           if azure.get(f'{azure.subscription}/providers/{name}', '2021-04-01',
                        'unknown provider').get('registrationState') != 'Registered']
    if off:
        raise AzureError('not registered: run\n' + '\n'.join(
            'az provider register --namespace ' + name for name in off))
    return ', '.join(wanted)


def check_group(azure):
    name, location = azure.config.resource_group, azure.config.location or 'westeurope'
    found = azure.get(azure.group, '2021-04-01',
                      f'there is no resource group {name}: correct RESOURCE_GROUP, or create it: '
                      f'az group create --name {name} --location {location}')
    return f"{found['name']} in {found['location']}"


def allowed(action, permissions):
    """Whether role assignments, as ARM lists them, allow an action: * stands for any text."""
    def named(patterns):
        return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)
    return any(named(one.get('actions', [])) and not named(one.get('notActions', []))
               for one in permissions)


def check_permission(azure):
    # https://learn.microsoft.com/rest/api/authorization/permissions
    found = azure.get(azure.group + '/providers/Microsoft.Authorization/permissions',
                      '2022-04-01', 'the permissions cannot be read').get('value', [])
    wanted = WRITES + ENDPOINT_WRITES * (azure.config.production == 'endpoint')
    refused = [action for action in wanted if not allowed(action, found)]
    if refused:
        raise AzureError(f"not allowed: {', '.join(refused)}\ngive the service principal the role "
                         f'Contributor on the resource group {azure.config.resource_group}')
    return 'may write in the resource group'


def check_workspace(azure):
    name = azure.config.workspace_name
    azure.workspace = found = azure.get(
        f'{azure.group}/providers/{workspace.WORKSPACES}/{name}', workspace.WORKSPACE_VERSION,
        f'there is no workspace {name}: `make workspace` creates it')
    azure.space = workspace.connect(azure.config)
    return f"{found['name']} in {found['location']}"


def check_registry(azure):
    """ACI pulls the image with the registry's admin user."""
    registry = azure.workspace['properties'].get('containerRegistry')
    if not registry:
        return 'Azure ML makes it with the first environment'
    name = registry.rsplit('/', 1)[-1]
    answer = azure.get(registry, '2023-07-01', f'the container registry {name} of the workspace is '
                       'gone: the workspace needs a new one')
    if not answer['properties'].get('adminUserEnabled'):
        raise AzureError('its admin user is off, so ACI cannot fetch the image: az acr update '
                         f'--name {name} --admin-enabled true')
    return name


def check_identity(azure):
    """Azure ML makes the container group of a service; as the workspace's identity, it seems."""
    identity = (azure.workspace.get('identity') or {}).get('principalId')
    assignments = azure.get(
        f'{azure.group}/providers/Microsoft.Authorization/roleAssignments', '2022-04-01',
        'the role assignments cannot be read', **{'$filter': f"principalId eq '{identity}'"})
    ids = {one['properties']['roleDefinitionId'].rsplit('/', 1)[-1]
           for one in assignments.get('value', [])}
    names = [name for role, name in MAKE_CONTAINERS.items() if role in ids]
    if not names:
        raise AzureError('it is neither Contributor nor Owner of the resource group, so a first '
                         'deployment may fail with AuthorizationFailed on containerGroups/write:\n'
                         f'az role assignment create --role Contributor --assignee {identity} '
                         f'--scope {azure.group}')
    return f'{names[0]} of the resource group'


def check_compute(azure):
    found, nodes = workspace.compute(azure.space, azure.config), azure.config.aml_training_nodes
    most = found.scale_settings.maximum_node_count
    if nodes > most:
        raise AzureError(f'{found.name} has at most {most} machines, and AML_TRAINING_NODES is '
                         f'{nodes}: `make workspace` gives it AML_CLUSTER_MAX_NODES, '
                         f'{azure.config.aml_cluster_max_nodes}')
    return f'{found.name}, at most {most} machines'


def check_parameters(azure):
    """What train.py would say later: https://github.com/microsoft/LightGBM/issues/6956."""
    nodes, path = azure.config.aml_training_nodes, f'{publish.SOURCE}/parameters.json'
    stopping = atomic.read_json(publish.ROOT / path)['early_stopping_rounds']
    if nodes > 1 and stopping:
        raise AzureError(f'{path}: early_stopping_rounds is {stopping}; with {nodes} nodes it must '
                         'be 0')
    return f"{path}, for {nodes} node{'s' * (nodes > 1)}"


def check_size(azure):
    size, priority = azure.config.aml_compute_cluster_cpu_sku, azure.config.aml_cluster_priority
    name = offered(azure, size, priority, azure.config.aml_training_nodes,
                   'AML_COMPUTE_CLUSTER_CPU_SKU')
    warning = ('; low priority is Spot since 2026-03-31: its price varies, and Azure takes '
               'machines away, whose steps begin again' if priority == 'lowpriority' else '')
    return f'{name} in {azure.config.location}{warning}'


def offered(azure, size, priority, count, setting):
    """The name of a size of machine of which so many can be had. Raises AzureError.

    Size and quota, by the type and the name of a usage (Azure ML REST, Usages - List).
    """
    region = azure.config.location
    if not region:
        raise AzureError('LOCATION is not set, so size and quota cannot be checked')

    def listed(what):
        return azure.get(
            f'{azure.subscription}/providers/{PROVIDERS[0]}/locations/{region}/{what}',
            workspace.WORKSPACE_VERSION,
            f'Azure ML knows no region {region}: correct LOCATION')['value']

    known = {one['name'].lower(): one for one in listed('vmSizes')}
    if size.lower() not in known:
        small = sorted(one['name'] for one in known.values() if one.get('vCPUs') in (2, 4))
        raise AzureError(f'machines of size {size} are not offered in {region}: set {setting} to '
                         f"another, such as {', '.join(small[:5])}")
    wanted = known[size.lower()]
    kinds = {f'total{priority}cores': '', f'vmfamily/{priority}cores': wanted['family'].lower()}
    for usage in listed('usages'):
        kind = usage['type'].lower().partition('/')[2].rpartition('/usages')[0]
        # A limit of -1 is none, and cores that are in use now come free again: a run waits.
        if usage['name']['value'].lower().endswith(kinds.get(kind, '?')) and (
                0 <= usage['limit'] < count * wanted['vCPUs']):
            what = 'one machine needs' if count == 1 else f'{count} machines need'
            raise AzureError(f"the quota \"{usage['name']['localizedValue']}\" is {usage['limit']} "
                             f"cores, {what} {count * wanted['vCPUs']}: ask for more in the "
                             'portal, or choose another size or region')
    return wanted['name']


def check_endpoint_size(azure):
    """Machines for two deployments, of which Azure ML keeps a fifth more for its upgrades.

    learn: how-to-manage-quotas, Virtual machine quota allocation for deployment.
    """
    wanted = atomic.read_json(deploy.SOURCE / deploy.SETTINGS)['endpoint']
    count = 2 * math.ceil(1.2 * wanted['instances'])
    name = offered(azure, wanted['instance_type'], 'dedicated', count,
                   f'instance_type in scoring/{deploy.SETTINGS}')
    return f"{wanted['instances']} of {name}, twice while a version is replaced"


def check_endpoint(azure):
    """The endpoint is ours, or still to be made; that another's has its name only shows then."""
    name = azure.config.endpoint_name
    path = f'{azure.group}/providers/{workspace.WORKSPACES}/{azure.config.workspace_name}'
    found = azure.manager.get(f'{path}/onlineEndpoints/{name}', endpoint.VERSION,
                              f'look for the endpoint {name}')
    if found is None:
        return (f'{name}: `make deploy SERVICE=endpoint` creates it, if nobody else in the region '
                'has the name')
    state, one = found['properties']['provisioningState'], endpoint.Endpoint(azure.config)
    one.found = found
    one.check_ours()
    if state == 'Failed':
        raise AzureError(f'{name} has failed: see it in Azure ML Studio; `make deploy '
                         'SERVICE=endpoint` tries to mend it')
    return f"{name}, {state}, {found['properties']['authMode']}"


def check_dataset(azure):
    name, version = azure.config.dataset_name, azure.config.dataset_version
    with azure_ml.asking(f'look for the dataset {name}', LONGEST_SECONDS):
        found = dataset.find(azure.space, name, version)
    if found is None:
        raise AzureError(f'there is no dataset {name}, version {version}: '
                         'make dataset DATA=train.csv')
    return f'{found.name}, version {found.version}'


# Title, check, the title of the check that it makes no sense without.
BEFORE_WORKSPACE = (
    ('subscription', check_subscription, None),
    ('providers', check_providers, 'subscription'),
    ('resource group', check_group, 'subscription'),
    ('permission', check_permission, 'resource group'),
    ('machine size', check_size, 'subscription'),
)
CHECKS = BEFORE_WORKSPACE + (
    ('workspace', check_workspace, 'resource group'),
    ('identity', check_identity, 'workspace'),
    ('registry', check_registry, 'workspace'),
    ('compute cluster', check_compute, 'workspace'),
    ('parameters', check_parameters, None),
    ('dataset', check_dataset, 'workspace'),
)
PRODUCTION = (
    ('endpoint size', check_endpoint_size, 'subscription'),
    ('endpoint', check_endpoint, 'workspace'),
)


def print_line(title, state, text):
    indented = text.replace('\n', '\n' + ' ' * 26)
    print(f'{title:16} {state:8} {indented}', flush=True)


def run_checks(azure, checks):
    """Print a line per check; the number of those that found something missing."""
    missing, absent = 0, set()
    for title, check, needed in checks:
        state = 'MISSING'
        try:
            if needed in absent:
                raise Unseen(f'not checked without the {needed}')
            state, text = 'ok', str(check(azure))
        except Unseen as error:
            state, text = 'unknown', str(error)
        except AzureError as error:
            text = str(error)
        except (LookupError, TypeError, AttributeError) as error:
            text = ("Azure's answer is not of the form that is expected "
                    f'({type(error).__name__}: {error})\n{azure_ml.ODD}')
        missing += state == 'MISSING'
        if state == 'MISSING' or needed in absent:
            absent.add(title)
        print_line(title, state, text)
    return missing


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--before-workspace', action='store_true',
                        help='check only what must be there before `make workspace`')
    args = parser.parse_args(argv)
    title = 'settings'
    try:
        with azure_ml.deadline('check everything', LONGEST_SECONDS):
            config = settings.read(os.environ, needs=settings.WORKSPACE)
            print_line(title, 'ok', 'well-formed')
            title = 'sign-in'
            azure = Azure(config)
            print_line(title, 'ok', azure.sign_in)
            checks = BEFORE_WORKSPACE if args.before_workspace else CHECKS + PRODUCTION * (
                config.production == 'endpoint')
            missing = run_checks(azure, checks)
    except (settings.SettingsError, AzureError) as error:
        print_line(title, 'MISSING', str(error))
        raise type(error)(f'nothing else was checked: put the {title} right first') from None
    if missing:
        raise AzureError(f'{missing} of {len(checks) + 2} checks found something missing')
    return 0


if __name__ == '__main__':
    sys.exit(main())
