"""Say which setting, sign-in, permission or resource is missing in Azure; changes nothing.

    python scripts/preflight.py
"""
import argparse
import fnmatch
import os
import sys

import arm
import azure_ml
import settings
import sign_in
import workspace

LONGEST_SECONDS = 60
PROVIDERS = ('Microsoft.MachineLearningServices', 'Microsoft.ContainerInstance',
             'Microsoft.ContainerRegistry', 'Microsoft.Storage', 'Microsoft.KeyVault',
             'Microsoft.OperationalInsights', 'Microsoft.Insights')
WRITES = [f'Microsoft.MachineLearningServices/workspaces/{action}' for action in (
    'write', 'computes/write', 'datasets/registered/write', 'endpoints/pipelines/write',
    'experiments/runs/submit/action', 'models/write', 'services/aci/write')] + [
        'Microsoft.Storage/storageAccounts/write', 'Microsoft.KeyVault/vaults/write',
        'Microsoft.OperationalInsights/workspaces/write', 'Microsoft.Insights/components/write',
        'Microsoft.ContainerInstance/containerGroups/write']
# Roles by which the workspace's own identity may make the container group of a service
# (learn.microsoft.com/azure/role-based-access-control/built-in-roles).
MAKE_CONTAINERS = {'b24988ac-6180-42a0-ab88-20f7382dd24c': 'Contributor',
                   '8e3af657-a8ff-443c-a75c-2fe8c4bcb635': 'Owner'}


class Missing(Exception):
    """What is missing, and what to do about it."""


class Unseen(Exception):
    """What the sign-in may not look at; only that cannot be said to be missing."""


class Azure:
    """GET requests to Azure Resource Manager for the settings' subscription."""

    def __init__(self, config, environ):
        self.config = config
        self.authentication = sign_in.authentication(environ)
        self.authentication.get_authentication_header()
        self.manager = arm.Manager(self.authentication, LONGEST_SECONDS)
        self.subscription = f'/subscriptions/{config.subscription_id}'
        self.group = f'{self.subscription}/resourceGroups/{config.resource_group}'
        self.workspace = (f'{self.group}/providers/{workspace.WORKSPACES}/'
                          f'{config.workspace_name}')

    def get(self, path, version, advice, **query):
        """The JSON answer. Raises Missing with the advice for 404, AzureError for all else.

        A sign-in with rights on the resource group only gets 403 outside of it: Unseen.
        """
        try:
            found = self.manager.get(path, version, f"ask for {path.rsplit('/', 1)[-1]}", **query)
        except azure_ml.AzureError as error:
            if error.status == 403 and not path.startswith(self.group):
                raise Unseen('the sign-in may not look at this; for that it needs the role Reader '
                             'on the subscription:\naz role assignment create --role Reader '
                             f'--assignee CLIENT_ID --scope {self.subscription}') from None
            raise
        if found is None:
            raise Missing(advice)
        return found


def check_subscription(azure, config):
    found = azure.get(azure.subscription, '2022-12-01', 'there is no subscription %s, or it is '
                      'not shared with you: correct SUBSCRIPTION_ID' % config.subscription_id)
    if found.get('state') != 'Enabled':
        raise Missing(f"the subscription is {found.get('state')}: ask its owner")
    return found.get('displayName')


def check_providers(azure, config):
    off = [name for name in PROVIDERS
           if azure.get(f'{azure.subscription}/providers/{name}', '2021-04-01',
                        'unknown provider').get('registrationState') != 'Registered']
    if off:
        raise Missing('not registered: run\n' + '\n'.join(
            'az provider register --namespace ' + name for name in off))
    return ', '.join(PROVIDERS)


def check_group(azure, config):
    found = azure.get(azure.group, '2021-04-01', 'there is no resource group %s: correct '
                      'RESOURCE_GROUP, or create it: az group create --name %s --location %s' % (
                          config.resource_group, config.resource_group,
                          config.location or 'westeurope'))
    return f"{found['name']} in {found['location']}"


def allowed(action, permissions):
    """Whether role assignments, as ARM lists them, allow an action: * stands for any text."""
    def named(patterns):
        return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)
    return any(named(one.get('actions', [])) and not named(one.get('notActions', []))
               for one in permissions)


def check_permission(azure, config):
    """https://learn.microsoft.com/rest/api/authorization/permissions"""
    found = azure.get(azure.group + '/providers/Microsoft.Authorization/permissions',
                      '2022-04-01', 'the permissions cannot be read').get('value', [])
    refused = [action for action in WRITES if not allowed(action, found)]
    if refused:
        raise Missing('not allowed: %s\ngive the service principal the role Contributor on the '
                      'resource group %s' % (', '.join(refused), config.resource_group))
    return 'may write in the resource group'


def check_workspace(azure, config):
    found = azure.get(azure.workspace, workspace.WORKSPACE_VERSION, 'there is no workspace '
                      f'{config.workspace_name}: `make workspace` creates it')
    return f"{found['name']} in {found['location']}"


def check_registry(azure, config):
    """ACI pulls the image with the registry's admin user."""
    found = azure.get(azure.workspace, workspace.WORKSPACE_VERSION, 'there is no workspace')
    registry = found['properties'].get('containerRegistry')
    if not registry:
        return 'Azure ML makes it with the first environment'
    name = registry.rsplit('/', 1)[-1]
    answer = azure.get(registry, '2023-07-01', 'the container registry %s of the workspace is '
                       'gone: the workspace needs a new one' % name)
    if not answer['properties'].get('adminUserEnabled'):
        raise Missing('its admin user is off, so ACI cannot fetch the image: az acr update '
                      '--name %s --admin-enabled true' % name)
    return name


def check_identity(azure, config):
    """Azure ML makes the container group of a service; as the workspace's identity, it seems."""
    found = azure.get(azure.workspace, workspace.WORKSPACE_VERSION, 'there is no workspace')
    identity = (found.get('identity') or {}).get('principalId')
    assignments = azure.get(
        f'{azure.group}/providers/Microsoft.Authorization/roleAssignments', '2022-04-01',
        'the role assignments cannot be read', **{'$filter': f"principalId eq '{identity}'"})
    ids = {one['properties']['roleDefinitionId'].rsplit('/', 1)[-1]
           for one in assignments.get('value', [])}
    names = [name for role, name in MAKE_CONTAINERS.items() if role in ids]
    if not names:
        raise Missing('it is neither Contributor nor Owner of the resource group, so a first '
                      'deployment may fail with AuthorizationFailed on containerGroups/write:\n'
                      f'az role assignment create --role Contributor --assignee {identity} '
                      f'--scope {azure.group}')
    return f'{names[0]} of the resource group'


def check_compute(azure, config):
    name = config.aml_compute_cluster_name
    found = azure.get(f'{azure.workspace}/computes/{name}', workspace.WORKSPACE_VERSION,
                      f'there is no compute cluster {name}: `make workspace` creates it')
    kind = found['properties']['computeType']
    if kind != 'AmlCompute':
        raise Missing('%s is of the kind %s, not AmlCompute: choose another '
                      'AML_COMPUTE_CLUSTER_NAME' % (name, kind))
    return name


def check_size(azure, config):
    """Size and quota: the names of usages are what `az ml compute list-usage` prints."""
    if not config.location:
        raise Missing('LOCATION is not set, so size and quota cannot be checked')
    location = f'{azure.subscription}/providers/{PROVIDERS[0]}/locations/{config.location}/'
    size = config.aml_compute_cluster_cpu_sku
    advice = f'Azure ML knows no region {config.location}: correct LOCATION'
    answer = azure.get(location + 'vmSizes', workspace.WORKSPACE_VERSION, advice)
    known = {one['name'].lower(): one for one in answer.get('value') or answer.get('amlCompute')}
    if size.lower() not in known:
        raise Missing('machines of size %s are not offered in %s: set AML_COMPUTE_CLUSTER_CPU_SKU '
                      'to another, such as %s' % (size, config.location, ', '.join(
                          sorted(one['name'] for one in known.values()
                                 if one.get('vCPUs') in (2, 4))[:5])))
    wanted = known[size.lower()]
    kind = 'dedicated' if config.aml_cluster_priority == 'dedicated' else 'lowpriority'
    usages = azure.get(location + 'usages', workspace.WORKSPACE_VERSION, advice)
    for usage in usages.get('value', []):
        name = usage['name']['value'].lower().replace(' ', '')
        # Others are of one workspace or one cluster. A limit of -1 is none, and cores that are in
        # use now come free again: a run waits for them.
        if not ('/workspaces/' not in usage['id'] and kind in name and (
                name.startswith('totalcluster') or name.startswith(wanted['family'].lower()))):
            continue
        if 0 <= usage['limit'] < wanted['vCPUs']:
            raise Missing('the quota "%s" is %d cores, one machine needs %d: ask for more in the '
                          'portal, or choose another size or region' % (
                              usage['name']['localizedValue'], usage['limit'], wanted['vCPUs']))
    return f"{wanted['name']} in {config.location}"


def check_dataset(azure, config):
    space = workspace.connect(config)
    with azure_ml.asking(f'look for the dataset {config.dataset_name}', LONGEST_SECONDS):
        from azureml.core import Dataset
        try:
            found = Dataset.get_by_name(space, config.dataset_name, config.dataset_version)
        except Exception as error:
            if azure_ml.status_of(error) not in (400, 404) and 'annot find' not in str(error):
                raise
            found = None
    if found is None:
        raise Missing('there is no dataset %s, version %s: make dataset DATA=train.csv' % (
            config.dataset_name, config.dataset_version))
    return f'{found.name}, version {found.version}'


# Title, check, the titles that it makes no sense without.
CHECKS = (
    ('subscription', check_subscription, ()),
    ('providers', check_providers, ('subscription',)),
    ('resource group', check_group, ('subscription',)),
    ('permission', check_permission, ('resource group',)),
    ('machine size', check_size, ('subscription',)),
    ('workspace', check_workspace, ('resource group',)),
    ('identity', check_identity, ('workspace',)),
    ('registry', check_registry, ('workspace',)),
    ('compute cluster', check_compute, ('workspace',)),
    ('dataset', check_dataset, ('workspace',)),
)


def report(title, state, text):
    print('%-16s %-8s %s' % (title, state, text.replace('\n', '\n' + ' ' * 26)), flush=True)


def examine(config, environ, checks):
    """Print a line per check; the number of those that found something missing."""
    try:
        with azure_ml.asking('sign in', LONGEST_SECONDS):
            azure = Azure(config, environ)
    except (azure_ml.AzureError, settings.SettingsError) as error:
        report('sign-in', 'MISSING', str(error))
        return 1
    report('sign-in', 'ok', type(azure.authentication).__name__.replace('Authentication', ''))
    bad = []
    for title, check, needs in checks:
        lacking = [name for name in needs if name in bad]
        if lacking:
            bad.append(title)
            report(title, 'unknown', f'not checked without the {lacking[0]}')
            continue
        try:
            report(title, 'ok', str(check(azure, config)))
        except Unseen as error:
            report(title, 'unknown', str(error))
        except (Missing, azure_ml.AzureError) as error:
            bad.append(title)
            report(title, 'MISSING', str(error))
    return len(bad)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--before-workspace', action='store_true',
                        help='check only what must be there before `make workspace`')
    args = parser.parse_args(argv)
    try:
        config = settings.read(os.environ, needs=settings.WORKSPACE)
    except settings.SettingsError as error:
        report('settings', 'MISSING', str(error))
        return 2
    report('settings', 'ok', 'well-formed')
    titles = [title for title, _, _ in CHECKS]
    checks = CHECKS[:titles.index('workspace')] if args.before_workspace else CHECKS
    with azure_ml.deadline('check everything', LONGEST_SECONDS):
        bad = examine(config, os.environ, checks)
    if bad:
        print(f'error: {bad} of {len(checks) + 2} checks found something missing',
              file=sys.stderr)
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
