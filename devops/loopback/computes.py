"""Compute of a workspace: clusters, the sizes of their machines, and the quota.

Sources: azureml/core/compute/{compute,amlcompute}.py; the REST reference of
Microsoft.MachineLearningServices (Compute, Virtual Machine Sizes, Usages); MicrosoftLearning/
mslearn-dp100 35 for what is said of a job that the quota is too small for. A cluster is there at
once and has as many nodes as steps want; a size is taken only if the region offers it.
"""
import re
import uuid

from .resource_manager import PROVIDER, SUBSCRIPTION
from .routing import API, ARM, WORKSPACE, Answer, problem, route
from .workspaces import not_found, now

REGION = '/subscriptions/{subscription}/providers/' + PROVIDER + '/locations/{location}'
# Name of a size: (family, cores, memory in GB). Those of DSv2 end on 2028-05-01.
SIZES = {
    'Standard_D2ds_v5': ('DDSv5', 2, 8), 'Standard_D4ds_v5': ('DDSv5', 4, 16),
    'Standard_D2as_v4': ('DASv4', 2, 8), 'Standard_D4as_v4': ('DASv4', 4, 16),
    'Standard_D2ds_v4': ('DDSv4', 2, 8), 'Standard_D4ds_v4': ('DDSv4', 4, 16),
    'Standard_DS2_v2': ('DSv2', 2, 7), 'Standard_DS3_v2': ('DSv2', 4, 14),
    'Standard_F4s_v2': ('FSv2', 4, 8), 'Standard_E4ds_v5': ('EDSv5', 4, 32)}
QUOTA_CORES = 24


def cores_used(cloud, family=None):
    """How many cores the deployments of endpoints have, those of one family or all."""
    return sum(row['cores'] for row in cloud.journal.table('cores').values()
               if family in (None, row['family']))


def refusal(document, nodes):
    """Why a job cannot have so many nodes of a cluster, a document of the table, or None."""
    own = document['properties']['properties']
    most = own['scaleSettings']['maxNodeCount']
    family, cores, _ = {name.lower(): size for name, size in SIZES.items()}[own['vmSize'].lower()]
    if nodes > most:
        return (f"The job asks for {nodes} nodes, and the cluster {document['name']} has at most "
                f'{most}.')
    if nodes * cores > QUOTA_CORES:
        return ('Job submission to AzureML Compute encountered an Exception with status code '
                'JobNodeCountExceedsCoreQuota, The specified subscription has a Standard '
                f'{family} family vCPU quota of {QUOTA_CORES} and is less than the requested job '
                f'node count of {nodes} which maps to {nodes * cores} vCPUs.')
    return None


@route('GET', ARM, WORKSPACE + '/computes')
@route('GET', API, '/rp/workspaces' + WORKSPACE + '/computes')
def list_computes(call):
    return {'value': [_current(call, one) for one in call.table('computes').values()]}


@route('GET', ARM, WORKSPACE + '/computes/{name}')
@route('GET', API, '/rp/workspaces' + WORKSPACE + '/computes/{name}')
def get_compute(call, name):
    document = call.table('computes').get(name.lower())
    if document is None:
        raise not_found(PROVIDER + '/workspaces/computes', name, call.workspace['group'])
    return _current(call, document)


@route('PUT', ARM, WORKSPACE + '/computes/{name}')
def put_compute(call, name):
    asked = call.json['properties']
    if not re.match(r'[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$', name):
        raise problem(
            400, 'BadRequest', f"Compute name '{name}' is invalid: 3 to 24 letters, digits or "
            'hyphens, the first a letter, the last not a hyphen.')
    size = asked['properties'].get('vmSize', '')
    found = {known.lower(): known for known in SIZES}.get(size.lower())
    if found is None:
        raise problem(
            400, 'InvalidPropertyValue', f"The specified vmSize '{size}' is not available in "
            f"this region. The available sizes are: {', '.join(sorted(SIZES))}")
    family, cores, _ = SIZES[found]
    least = (asked['properties'].get('scaleSettings') or {}).get('minNodeCount') or 0
    if least * cores > QUOTA_CORES:
        raise problem(
            400, 'ClusterMinNodesExceedCoreQuota', 'The specified subscription has a '
            f'standard{family}Family family vCPU quota of {QUOTA_CORES} and cannot accomodate '
            f'for at least {least} requested managed compute nodes which maps to '
            f'{least * cores} vCPUs.')
    call.table('computes')[name.lower()] = {
        'id': f"{call.workspace['id']}/computes/{name}", 'name': name,
        'type': PROVIDER + '/workspaces/computes', 'location': call.workspace['location'],
        'tags': call.json.get('tags') or {}, 'properties': {
            'computeType': asked['computeType'], 'description': asked.get('description'),
            'computeLocation': call.workspace['location'], 'createdOn': now(), 'modifiedOn': now(),
            'provisioningState': 'Succeeded', 'provisioningErrors': None, 'resourceId': None,
            'isAttachedCompute': False, 'properties': asked['properties']}}
    return Answer(get_compute(call, name), 201, _operation(call))


@route('PATCH', ARM, WORKSPACE + '/computes/{name}')
def patch_compute(call, name):
    get_compute(call, name)
    with call.table('computes').change(name.lower()) as document:
        document['properties']['properties'].update(call.json['properties'].get('properties') or {})
    return Answer(get_compute(call, name), 200, _operation(call))


def _current(call, document):
    """The compute as it is at this moment."""
    own = document['properties']['properties']
    busy = call.cloud.jobs.nodes(document['name'])
    errors = call.cloud.faults.capacity_errors()
    count = busy if errors else max(busy, own['scaleSettings']['minNodeCount'])
    document['properties']['properties'] = dict({
        'vmPriority': 'Dedicated', 'subnet': None, 'allocationState': 'Steady',
        'allocationStateTransitionTime': now(), 'errors': errors, 'currentNodeCount': count,
        'targetNodeCount': count, 'nodeStateCounts': {
            'preparingNodeCount': 0, 'runningNodeCount': busy, 'idleNodeCount': count - busy,
            'unusableNodeCount': 0, 'leavingNodeCount': 0, 'preemptedNodeCount': 0}}, **own)
    return document


def _operation(call):
    path = (f'/subscriptions/{SUBSCRIPTION}/providers/{PROVIDER}/locations/'
            f"{call.workspace['location']}/computeOperationsStatus/{uuid.uuid4()}")
    return {'Azure-AsyncOperation': f'https://management.azure.com{path}?api-version=2021-01-01'}


@route('GET', ARM, REGION + '/computeOperationsStatus/{operation}')
def get_operation_status(call, location, operation):
    return {'status': 'Succeeded'}


@route('GET', ARM, REGION + '/vmSizes')
def list_sizes(call, location):
    return {'value': [{
        'name': name, 'family': f'standard{family}Family', 'vCPUs': cores, 'memoryGB': memory,
        'lowPriorityCapable': True, 'supportedComputeTypes': ['AmlCompute', 'ComputeInstance']}
        for name, (family, cores, memory) in SIZES.items()]}


@route('GET', ARM, REGION + '/usages')
def list_usages(call, location):
    """Cores in use and allowed, of the region and of each family, by name and type."""
    families = sorted({family for family, _, _ in SIZES.values()})
    rows = [('TotalDedicatedCores', 'totalDedicatedCores', 'Total Cluster Dedicated',
             cores_used(call.cloud)),
            ('TotalLowPriorityCores', 'totalLowPriorityCores', 'Total Cluster LowPriority', 0)]
    rows += [(f'Standard{family}Family', 'vmFamily/dedicatedCores', f'Standard {family} Family '
              'Cluster Dedicated', cores_used(call.cloud, family)) for family in families]
    rows += [(f'Standard{family}Family', 'vmFamily/lowPriorityCores', f'Standard {family} Family',
              0) for family in families]
    return {'value': [{
        'id': f'/subscriptions/{SUBSCRIPTION}/usages/{name}', 'type': f'{PROVIDER}/{kind}/usages',
        'amlWorkspaceLocation': location, 'unit': 'Count', 'currentValue': used,
        'limit': -1 if kind == 'vmFamily/lowPriorityCores' else QUOTA_CORES,
        'name': {'value': name, 'localizedValue': f'{title} vCPUs'}}
        for name, kind, title, used in rows]}
