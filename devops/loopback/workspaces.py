"""Azure Resource Manager: the subscription, resource groups, workspaces and what belongs to them.

Sources: the calls of azureml-sdk 1.55 and 1.62 (Workspace.create deploys one ARM template, which
holds storage, key vault, insights and workspace); the REST reference of Microsoft.Resources,
Microsoft.Authorization and Microsoft.MachineLearningServices; the error codes of ARM's page
"Troubleshoot common Azure deployment errors". A deployment is done at once.
"""
import re
import time
import uuid

from .routing import API, ARM, GROUP, METADATA, TELEMETRY, WORKSPACE, Answer, problem, route
from .sign_in import TENANT

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
PROVIDER = 'Microsoft.MachineLearningServices'
REGISTRY = 'Microsoft.ContainerRegistry/registries'
LOCATIONS = ('westeurope', 'northeurope', 'uksouth', 'germanywestcentral', 'eastus', 'eastus2',
             'westus2', 'southcentralus')
SERVICES = ('api', 'catalog', 'experimentation', 'gallery', 'history', 'hyperdrive', 'labeling',
            'modelmanagement', 'pipelines', 'inferencing', 'credential')
DEPLOYMENTS = '/providers/Microsoft.Resources/deployments'
PERMISSIONS = '/providers/Microsoft.Authorization/permissions'


def now(seconds=0):
    """UTC time in ISO form, `seconds` from now."""
    moment = time.time() + seconds
    return time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment)) + '.%06d+00:00' % (
        moment % 1 * 1e6)


def arm_id(group, kind, name):
    return f'/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/{kind}/{name}'


def api_root(workspace):
    """The address of the workspace's data plane."""
    return f"https://{workspace['location']}.api.azureml.ms"


def account(workspace):
    """The name of the workspace's storage account."""
    return workspace['properties']['storageAccount'].rsplit('/', 1)[-1].lower()


def check_subscription(subscription):
    if subscription != SUBSCRIPTION:
        raise problem(404, 'SubscriptionNotFound',
                      f'The subscription \'{subscription}\' could not be found.')


def find_group(cloud, name):
    group = cloud.journal.table('groups').get(name.lower())
    if group is None:
        raise problem(404, 'ResourceGroupNotFound',
                      f'Resource group \'{name}\' could not be found.')
    return group


def find_workspace(cloud, group, name):
    """The workspace's document, the ARM resource plus the key `group`."""
    find_group(cloud, group)
    path = arm_id(group, PROVIDER + '/workspaces', name)
    workspace = cloud.journal.table('workspaces').get(path.lower())
    if workspace is None:
        raise not_found(PROVIDER + '/workspaces', name, group)
    return workspace


def not_found(kind, name, group):
    return problem(
        404, 'ResourceNotFound', 'The Resource \'%s/%s\' under resource group \'%s\' was not found.'
        % (kind, name, group))


@route('GET', ARM, '/subscriptions')
def list_subscriptions(call):
    return {'value': [get_subscription(call)]}


@route('GET', ARM, '/subscriptions/{subscription}')
def get_subscription(call):
    return {'id': '/subscriptions/' + SUBSCRIPTION, 'subscriptionId': SUBSCRIPTION,
            'tenantId': TENANT, 'displayName': 'Loopback', 'state': 'Enabled'}


@route('GET', ARM, '/metadata/endpoints', signed_in=False)
def get_endpoints(call):
    """The clouds that there are, asked for when a client signs in with a token."""
    return [{
        'name': 'AzureCloud', 'portal': 'https://portal.azure.com',
        'resourceManager': 'https://management.azure.com', 'graph': 'https://graph.windows.net/',
        'graphAudience': 'https://graph.windows.net/', 'authentication': {
            'loginEndpoint': 'https://login.microsoftonline.com/', 'tenant': 'common',
            'identityProvider': 'AAD', 'audiences': [
                'https://management.core.windows.net/', 'https://management.azure.com/']},
        'suffixes': {'storage': 'core.windows.net', 'keyVaultDns': 'vault.azure.net',
                     'acrLoginServer': 'azurecr.io',
                     'sqlServerHostname': 'database.windows.net'}}]


@route('GET', ARM, '/subscriptions/{subscription}/providers/{provider}')
def get_provider(call, provider):
    kinds = [{'resourceType': kind, 'locations': LOCATIONS, 'apiVersions': ['2021-01-01']}
             for kind in ('workspaces', 'workspaces/computes')]
    return {'id': f'/subscriptions/{SUBSCRIPTION}/providers/{provider}',
            'namespace': provider, 'registrationState': 'Registered', 'resourceTypes': kinds}


@route('GET', ARM, GROUP)
def get_group(call, group):
    return find_group(call.cloud, group)


@route('PUT', ARM, GROUP)
def put_group(call, group):
    document = {
        'id': f'/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}', 'name': group,
        'type': 'Microsoft.Resources/resourceGroups', 'location': call.json['location'],
        'tags': call.json.get('tags'), 'properties': {'provisioningState': 'Succeeded'}}
    call.cloud.journal.table('groups')[group.lower()] = document
    return Answer(document, 201)


@route('GET', ARM, GROUP + '/resources')
def list_resources(call, group):
    found = list_workspaces(call, group)['value']
    return {'value': [{key: one[key] for key in ('id', 'name', 'type', 'location')}
                      for one in found]}


@route('GET', ARM, GROUP + PERMISSIONS)
@route('GET', ARM, WORKSPACE + PERMISSIONS)
def list_permissions(call, group=None):
    """What the caller may do: what a Contributor may."""
    if group:
        find_group(call.cloud, group)
    return {'value': [{
        'actions': ['*'], 'dataActions': [], 'notDataActions': [], 'notActions': [
            'Microsoft.Authorization/*/Delete', 'Microsoft.Authorization/*/Write']}]}


@route('PUT', ARM, GROUP + DEPLOYMENTS + '/{name}')
def deploy_template(call, group, name):
    """Of a template's resources only the workspace is really made."""
    group = find_group(call.cloud, group)
    operations = []
    for resource in call.json['properties']['template']['resources']:
        kind, title = resource['type'], resource['name']
        if kind.lower() == PROVIDER.lower() + '/workspaces':
            _create_workspace(call.cloud, group, resource)
        operations.append({'operationId': str(uuid.uuid4()), 'properties': {
            'provisioningState': 'Succeeded', 'provisioningOperation': 'Create',
            'timestamp': now(), 'duration': 'PT0M0.1S', 'statusCode': 'OK', 'targetResource': {
                'id': arm_id(group['name'], kind, title), 'resourceType': kind,
                'resourceName': title}}})
    call.cloud.journal.table('deployments')[name] = {'operations': operations, 'deployment': {
        'id': arm_id(group['name'], 'Microsoft.Resources/deployments', name), 'name': name,
        'properties': {'provisioningState': 'Succeeded', 'timestamp': now(),
                       'mode': 'Incremental', 'correlationId': str(uuid.uuid4())}}}
    return get_deployment(call, group['name'], name)


@route('GET', ARM, GROUP + DEPLOYMENTS + '/{name}')
def get_deployment(call, group, name):
    return call.cloud.journal.table('deployments')[name]['deployment']


@route('GET', ARM, GROUP + '/deployments/{name}/operations')
def list_deployment_operations(call, group, name):
    return {'value': call.cloud.journal.table('deployments')[name]['operations']}


@route('GET', ARM, '/subscriptions/{subscription}' + DEPLOYMENTS)
def list_subscription_deployments(call):
    return {'value': []}


def _create_workspace(cloud, group, resource):
    name, asked = resource['name'], resource['properties']
    if not re.match(r'[a-zA-Z0-9][\w-]{2,32}$', name):
        raise problem(400, 'ValidationError', f'Workspace name \'{name}\' is invalid.')
    identity = str(uuid.uuid4())
    path = arm_id(group['name'], PROVIDER + '/workspaces', name)
    cloud.journal.table('workspaces')[path.lower()] = {
        'id': path, 'name': name, 'type': PROVIDER + '/workspaces', 'group': group['name'],
        'location': resource['location'], 'tags': resource.get('tags') or {},
        'sku': {'name': 'Basic', 'tier': 'Basic'},
        'identity': {'type': 'SystemAssigned', 'principalId': identity, 'tenantId': TENANT},
        'properties': {
            'workspaceId': identity, 'friendlyName': asked.get('friendlyName') or name,
            'description': '', 'creationTime': now(), 'provisioningState': 'Succeeded',
            'tenantId': TENANT, 'hbiWorkspace': False, 'storageAccount': asked['storageAccount'],
            'keyVault': asked['keyVault'], 'applicationInsights': asked['applicationInsights'],
            'containerRegistry': asked.get('containerRegistry'),
            'discoveryUrl': f"https://{resource['location']}.api.azureml.ms/discovery"}}


def need_registry(cloud, workspace):
    """Make the container registry, as Azure ML does when it needs the first image."""
    with cloud.journal.table('workspaces').change(workspace['id'].lower()) as document:
        if not document['properties']['containerRegistry']:
            name = re.sub('[^a-z0-9]', '', workspace['name'].lower()) + uuid.uuid4().hex[:12]
            document['properties']['containerRegistry'] = arm_id(
                workspace['group'], REGISTRY, name)


@route('GET', ARM, GROUP + '/providers/' + REGISTRY + '/{name}')
def get_registry(call, group, name):
    path = arm_id(group, REGISTRY, name)
    for workspace in call.cloud.journal.table('workspaces').values():
        if (workspace['properties']['containerRegistry'] or '').lower() == path.lower():
            enabled = not call.cloud.faults.take('admin-user-off')
            return {'id': path, 'name': name, 'type': REGISTRY, 'location': workspace['location'],
                    'sku': {'name': 'Standard', 'tier': 'Standard'}, 'properties': {
                        'loginServer': name + '.azurecr.io', 'adminUserEnabled': enabled,
                        'provisioningState': 'Succeeded'}}
    raise not_found(REGISTRY, name, group)


def _public(workspace):
    return {key: value for key, value in workspace.items() if key != 'group'}


@route('GET', ARM, WORKSPACE)
@route('GET', API, '/rp/workspaces' + WORKSPACE)
def get_workspace(call):
    return _public(call.workspace)


@route('GET', ARM, GROUP + '/providers/' + PROVIDER + '/workspaces')
def list_workspaces(call, group):
    find_group(call.cloud, group)
    return {'value': [_public(one) for one in call.cloud.journal.table('workspaces').values()
                      if one['group'].lower() == group.lower()]}


@route('DELETE', ARM, WORKSPACE)
def delete_workspace(call):
    del call.cloud.journal.table('workspaces')[call.workspace['id'].lower()]


@route('POST', ARM, WORKSPACE + '/listKeys')
def list_keys(call):
    properties = call.workspace['properties']
    return {'userStorageKey': call.cloud.storage_key(account(call.workspace)),
            'userStorageResourceId': properties['storageAccount'],
            'appInsightsInstrumentationKey': properties['workspaceId'],
            'containerRegistryCredentials': None, 'notebookAccessKeys': None}


@route('GET', API, '/discovery', signed_in=False)
@route('GET', API, '/discovery/workspaces/{identity}', signed_in=False)
def discover(call, identity=None):
    """Where each service of the workspace lives: all at one address here."""
    return dict({service: 'https://' + call.host for service in SERVICES},
                studio='https://ml.azure.com')


@route('POST', TELEMETRY, '/{path*}', signed_in=False)
def take_telemetry(call, path):
    """Application Insights: taken and dropped."""
    return {'itemsReceived': 1, 'itemsAccepted': 1, 'errors': []}


@route('GET', METADATA, '/{path*}', signed_in=False)
def get_instance_metadata(call, path):
    """What exporters ask to learn whether they run in a virtual machine of Azure: they do not."""
    raise problem(404, 'NotFound', 'This is no virtual machine of Azure.')
