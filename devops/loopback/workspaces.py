"""Azure Resource Manager: subscription, resource groups, workspaces (made by a template deployment)
and compute.

Sources: the calls of azureml-sdk 1.55 and 1.62 (Workspace.create deploys one ARM template that
holds storage, key vault, insights and workspace), the REST reference of Microsoft.Resources and
Microsoft.MachineLearningServices, and the error codes SubscriptionNotFound,
ResourceGroupNotFound, ResourceNotFound of ARM's "troubleshoot common errors".
"""
import re
import time
import uuid

from .sign_in import TENANT
from .transport import API, ARM, GROUP, METADATA, TELEMETRY, WORKSPACE, Answer, problem, route

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
PROVIDER = 'Microsoft.MachineLearningServices'
LOCATIONS = [
    'westeurope', 'northeurope', 'westus2', 'eastus', 'eastus2', 'southcentralus', 'uksouth',
    'germanywestcentral'
]
VM_SIZES = {
    'Standard_D2_v2': (2, 7), 'Standard_D3_v2': (4, 14), 'Standard_DS2_v2': (2, 7),
    'Standard_DS3_v2': (4, 14), 'Standard_DS11_v2': (2, 14), 'Standard_DS12_v2': (4, 28),
    'Standard_F4s_v2': (4, 8), 'Standard_E4s_v3': (4, 32)
}
QUOTA_CORES = 24
SERVICES = ('api', 'catalog', 'experimentation', 'gallery', 'history', 'hyperdrive', 'labeling',
            'modelmanagement', 'pipelines', 'studio', 'inferencing', 'credential')
DEPLOYMENTS = GROUP + '/providers/Microsoft.Resources/deployments'
OPERATION = '/subscriptions/{subscription}/providers/' + PROVIDER + '/locations/{location}'


def now(seconds=0):
    """UTC time in ISO form, `seconds` from now."""
    moment = time.time() + seconds
    return time.strftime('%Y-%m-%dT%H:%M:%S',
                         time.gmtime(moment)) + '.%06d+00:00' % (moment % 1 * 1e6)


def arm_id(group, kind, name):
    return '/subscriptions/%s/resourceGroups/%s/providers/%s/%s' % (SUBSCRIPTION, group, kind, name)


@route('GET', ARM, '/subscriptions')
def subscriptions(call):
    return {'value': [subscription(call)]}


@route('GET', ARM, '/subscriptions/{subscription}')
def subscription(call):
    return {
        'id': '/subscriptions/' + SUBSCRIPTION, 'subscriptionId': SUBSCRIPTION, 'tenantId': TENANT,
        'displayName': 'Loopback', 'state': 'Enabled'
    }


@route('GET', ARM, '/metadata/endpoints', signed_in=False)
def endpoints(call):
    return [{
        'name': 'AzureCloud', 'portal': 'https://portal.azure.com',
        'resourceManager': 'https://management.azure.com', 'authentication': {
            'loginEndpoint': 'https://login.microsoftonline.com/', 'tenant': 'common',
            'audiences': ['https://management.core.windows.net/',
                          'https://management.azure.com/'], 'identityProvider': 'AAD'
        }, 'graph': 'https://graph.windows.net/', 'graphAudience': 'https://graph.windows.net/',
        'suffixes': {
            'storage': 'core.windows.net', 'keyVaultDns': 'vault.azure.net',
            'acrLoginServer': 'azurecr.io', 'sqlServerHostname': 'database.windows.net'
        }
    }]


@route('GET', ARM, '/subscriptions/{subscription}/providers/{provider}')
def provider(call, provider):
    return {
        'id': '/subscriptions/%s/providers/%s' % (SUBSCRIPTION, provider), 'namespace': provider,
        'registrationState': 'Registered', 'resourceTypes': [{
            'resourceType': kind, 'locations': LOCATIONS, 'apiVersions': ['2020-02-02']
        } for kind in ('workspaces', 'workspaces/computes')]
    }


@route('HEAD', ARM, GROUP)
@route('GET', ARM, GROUP)
def get_group(call, group):
    return find_group(call, group)


@route('PUT', ARM, GROUP)
def put_group(call, group):
    document = {'id': '/subscriptions/%s/resourceGroups/%s' % (SUBSCRIPTION, group), 'name': group,
                'type': 'Microsoft.Resources/resourceGroups', 'location': call.json['location'],
                'tags': call.json.get('tags'), 'properties': {'provisioningState': 'Succeeded'}}
    call.cloud.journal.table('groups')[group.lower()] = document
    return Answer(document, 201)


@route('GET', ARM, GROUP + '/resources')
def list_resources(call, group):
    find_group(call, group)
    return {
        'value': [{key: one[key]
                   for key in ('id', 'name', 'type', 'location')}
                  for one in call.cloud.journal.table('workspaces').values()
                  if one['group'] == group.lower()]
    }


@route('GET', ARM, GROUP + '/providers/Microsoft.Authorization/permissions')
@route('GET', ARM, WORKSPACE + '/providers/Microsoft.Authorization/permissions')
def permissions(call, group=None):
    """What the caller may do (Permissions - List For Resource): a Contributor."""
    if group:
        find_group(call, group)
    return {
        'value': [{
            'actions': ['*'],
            'notActions': ['Microsoft.Authorization/*/Delete', 'Microsoft.Authorization/*/Write'],
            'dataActions': [], 'notDataActions': []
        }]
    }


def find_group(call, group):
    document = call.cloud.journal.table('groups').get(group.lower())
    if document is None:
        raise problem(404, 'ResourceGroupNotFound',
                      'Resource group \'%s\' could not be found.' % group)
    return document


@route('PUT', ARM, DEPLOYMENTS + '/{name}')
def deploy(call, group, name):
    """A template deployment. Only what Workspace.create sends is understood; it is done at once."""
    home = find_group(call, group)
    template = call.json['properties']['template']
    operations = []
    for resource in template['resources']:
        if resource['type'].lower().endswith('machinelearningservices/workspaces'):
            create_workspace(call, home, resource)
        operations.append({
            'operationId': str(uuid.uuid4()), 'properties': {
                'provisioningState': 'Succeeded', 'timestamp': now(), 'duration': 'PT0M0.1S',
                'statusCode': 'OK', 'provisioningOperation': 'Create', 'targetResource': {
                    'id': arm_id(home['name'], resource['type'], resource['name']),
                    'resourceType': resource['type'], 'resourceName': resource['name']
                }
            }
        })
    document = {
        'id': arm_id(home['name'], 'Microsoft.Resources/deployments', name), 'name': name,
        'properties': {
            'provisioningState': 'Succeeded', 'timestamp': now(), 'mode': 'Incremental',
            'correlationId': str(uuid.uuid4())
        }, 'operations': operations
    }
    call.cloud.journal.table('deployments')[name] = document
    return _deployment(document)


@route('GET', ARM, DEPLOYMENTS + '/{name}')
def get_deployment(call, group, name):
    return _deployment(call.cloud.journal.table('deployments')[name])


@route('GET', ARM,
       '/subscriptions/{subscription}/resourcegroups/{group}/deployments/{name}/operations')
def deployment_operations(call, group, name):
    return {'value': call.cloud.journal.table('deployments')[name]['operations']}


@route('GET', ARM, '/subscriptions/{subscription}/providers/Microsoft.Resources/deployments')
def subscription_deployments(call):
    return {'value': []}


def _deployment(document):
    return {key: document[key] for key in ('id', 'name', 'properties')}


def create_workspace(call, group, resource):
    name = resource['name']
    if not re.match(r'^[a-zA-Z0-9][\w-]{2,32}$', name):
        raise problem(
            400, 'ValidationError',
            'Workspace name \'%s\' is invalid: 3 to 33 letters, digits, hyphens or '
            'underscores, the first a letter or digit.' % name)
    asked = resource['properties']
    identity = str(uuid.uuid4())
    path = arm_id(group['name'], PROVIDER + '/workspaces', name)
    call.cloud.journal.table('workspaces')[path.lower()] = {
        'id': path, 'name': name, 'type': PROVIDER + '/workspaces',
        'location': resource['location'], 'tags': resource.get('tags') or {},
        'group': group['name'].lower(), 'sku': {'name': 'Basic', 'tier': 'Basic'},
        'identity': {'type': 'SystemAssigned', 'principalId': identity, 'tenantId': TENANT},
        'properties': {
            'workspaceId': identity, 'friendlyName': asked.get('friendlyName') or name,
            'description': '', 'creationTime': now(), 'provisioningState': 'Succeeded',
            'hbiWorkspace': False, 'tenantId': TENANT, 'storageAccount': asked['storageAccount'],
            'keyVault': asked['keyVault'], 'applicationInsights': asked['applicationInsights'],
            'containerRegistry': asked.get('containerRegistry'),
            'discoveryUrl': call.cloud.discovery_url(resource['location'])
        }
    }


def account(workspace):
    """The name of the workspace's storage account."""
    return workspace['properties']['storageAccount'].rsplit('/', 1)[-1].lower()


@route('GET', ARM, WORKSPACE)
@route('GET', API, '/rp/workspaces' + WORKSPACE)
def get_workspace(call):
    return {key: value for key, value in call.workspace.items() if key != 'group'}


@route('GET', ARM, GROUP + '/providers/Microsoft.MachineLearningServices/workspaces')
def list_workspaces(call, group):
    find_group(call, group)
    return {
        'value': [{key: value
                   for key, value in one.items() if key != 'group'}
                  for one in call.cloud.journal.table('workspaces').values()
                  if one['group'] == group.lower()]
    }


@route('DELETE', ARM, WORKSPACE)
def delete_workspace(call):
    del call.cloud.journal.table('workspaces')[call.workspace['id'].lower()]
    return Answer(status=200)


@route('GET', API, '/discovery', signed_in=False)
@route('GET', API, '/discovery/workspaces/{identity}', signed_in=False)
def discovery(call, identity=None):
    """Where each service of the workspace lives: all at one address here."""
    return {service: 'https://' + call.host for service in SERVICES}


@route('POST', ARM, WORKSPACE + '/listKeys')
def list_keys(call):
    properties = call.workspace['properties']
    return {'userStorageKey': call.cloud.storage_key(account(call.workspace)),
            'userStorageResourceId': properties['storageAccount'],
            'appInsightsInstrumentationKey': properties['workspaceId'],
            'containerRegistryCredentials': None, 'notebookAccessKeys': None}


@route('GET', ARM, WORKSPACE + '/computes')
@route('GET', API, '/rp/workspaces' + WORKSPACE + '/computes')
def list_computes(call):
    return {'value': [_compute(call, one) for one in call.table('computes').values()]}


@route('GET', ARM, WORKSPACE + '/computes/{name}')
@route('GET', API, '/rp/workspaces' + WORKSPACE + '/computes/{name}')
def get_compute(call, name):
    document = call.table('computes').get(name.lower())
    if document is None:
        raise problem(
            404, 'ResourceNotFound',
            'Compute \'%s\' was not found in workspace \'%s\'.' % (name, call.workspace['name']))
    return _compute(call, document)


@route('PUT', ARM, WORKSPACE + '/computes/{name}')
def put_compute(call, name):
    asked = call.json['properties']
    kind = asked['computeType']
    old = call.table('computes').get(name.lower())
    if old and old['properties']['computeType'] != kind:
        raise problem(
            409, 'Conflict',
            'Compute \'%s\' exists and is of type %s.' % (name, old['properties']['computeType']))
    if not re.match(r'^[a-zA-Z][a-zA-Z0-9-]{1,15}$', name) or name.endswith('-'):
        raise problem(
            400, 'InvalidComputeName',
            'Compute name \'%s\' is invalid: 2 to 16 letters, digits or hyphens, the '
            'first a letter, the last not a hyphen.' % name)
    if kind == 'AmlCompute':
        _check_size(asked['properties'].get('vmSize', ''))
    call.table('computes')[name.lower()] = {
        'id': '%s/computes/%s' % (call.workspace['id'], name), 'name': name,
        'location': call.workspace['location'], 'type': PROVIDER + '/workspaces/computes',
        'tags': call.json.get('tags') or {}, 'properties': {
            'computeType': kind, 'computeLocation': asked.get('computeLocation')
            or call.workspace['location'], 'description': asked.get('description'),
            'createdOn': now(), 'modifiedOn': now(), 'provisioningState': 'Succeeded',
            'provisioningErrors': None, 'resourceId': asked.get('resourceId'),
            'isAttachedCompute': 'resourceId' in asked, 'properties': asked.get('properties') or {}
        }
    }
    return Answer(get_compute(call, name), 201, _operation(call))


@route('PATCH', ARM, WORKSPACE + '/computes/{name}')
def patch_compute(call, name):
    with call.table('computes').change(name.lower()) as document:
        document['properties']['properties'].update(call.json['properties'].get('properties') or {})
        document['properties']['modifiedOn'] = now()
    return Answer(get_compute(call, name), 200, _operation(call))


@route('DELETE', ARM, WORKSPACE + '/computes/{name}')
def delete_compute(call, name):
    get_compute(call, name)
    del call.table('computes')[name.lower()]
    return Answer(status=202, headers=_operation(call))


def _check_size(size):
    if size.lower() not in {name.lower() for name in VM_SIZES}:
        raise problem(
            400, 'InvalidPropertyValue',
            'The specified vmSize \'%s\' is not available in this region. The '
            'available sizes are: %s' % (size, ', '.join(sorted(VM_SIZES))))


def _compute(call, document):
    """The compute as it is now: nodes are allocated while a step runs, or cannot be."""
    if document['properties']['computeType'] != 'AmlCompute':
        return document
    properties = document['properties']['properties']
    busy = call.cloud.jobs.nodes(document['name'])
    errors = call.cloud.faults.capacity_errors()
    least = (properties.get('scaleSettings') or {}).get('minNodeCount', 0)
    count = max(busy, least if not errors else 0)
    document['properties']['properties'] = dict(
        {
            'vmPriority': 'Dedicated', 'subnet': None, 'osType': 'Linux',
            'remoteLoginPortPublicAccess': 'NotSpecified', 'enableNodePublicIp': True,
            'isolatedNetwork': False, 'scaleSettings': {
                'minNodeCount': 0, 'maxNodeCount': 1, 'nodeIdleTimeBeforeScaleDown': 'PT120S'
            }, 'allocationState': 'Steady', 'allocationStateTransitionTime': now(),
            'errors': errors, 'currentNodeCount': count, 'targetNodeCount': count,
            'nodeStateCounts': {
                'preparingNodeCount': 0, 'runningNodeCount': busy, 'idleNodeCount': count - busy,
                'unusableNodeCount': 0, 'leavingNodeCount': 0, 'preemptedNodeCount': 0
            }
        }, **properties)
    return document


def _operation(call):
    path = '/subscriptions/%s/providers/%s/locations/%s/computeOperationsStatus/%s' % (
        SUBSCRIPTION, PROVIDER, call.workspace['location'], uuid.uuid4())
    return {'Azure-AsyncOperation': 'https://management.azure.com%s?api-version=2020-02-02' % path}


@route('GET', ARM, OPERATION + '/computeOperationsStatus/{operation}')
def operation_status(call, location, operation):
    return {'status': 'Succeeded'}


@route('GET', ARM, OPERATION + '/vmSizes')
def vm_sizes(call, location):
    """Virtual Machine Sizes - List, of the workspaces' API."""
    sizes = [{
        'name': name, 'family': 'standardFamily', 'vCPUs': cores, 'gpus': 0, 'osVhdSizeMB': 1047552,
        'maxResourceVolumeMB': 51200, 'memoryGB': memory, 'lowPriorityCapable': True,
        'premiumIO': False, 'supportedComputeTypes': ['AmlCompute', 'ComputeInstance']
    } for name, (cores, memory) in VM_SIZES.items()]
    return {'value': sizes, 'amlCompute': sizes}


@route('GET', ARM, OPERATION + '/usages')
def usages(call, location):
    """Usages - List, of the workspaces' API: cores in use and allowed."""
    return {
        'value': [{
            'id': '/subscriptions/%s/providers/%s/locations/%s/usages' %
            (SUBSCRIPTION, PROVIDER, location), 'type': PROVIDER + '/usages', 'unit': 'Count',
            'currentValue': 0, 'limit': QUOTA_CORES,
            'name': {'value': name, 'localizedValue': name}
        } for name in ('Total Cluster Dedicated Regional vCPUs',
                       'Standard D Family Cluster Dedicated vCPUs')]
    }


@route('POST', TELEMETRY, '/{path*}', signed_in=False)
def telemetry(call, path):
    """Application Insights: taken and dropped."""
    return {'itemsReceived': 1, 'itemsAccepted': 1, 'errors': []}


@route('GET', METADATA, '/{path*}', signed_in=False)
def instance_metadata(call, path):
    """What exporters ask to learn whether they run in an Azure VM: they do not."""
    raise problem(404, 'NotFound', 'Not a virtual machine of Azure.')
