"""The subscription, resource groups, Azure ML workspaces and their registries.

Sources: the calls of azureml-sdk 1.55 and 1.62; the REST reference of Microsoft.Resources and
Microsoft.MachineLearningServices; resource_manager.py for what all resources have in common.
"""
import re
import time
import uuid

from . import resource_manager
from .resource_manager import PROVIDER, SUBSCRIPTION, arm_id
from .routing import API, ARM, GROUP, METADATA, WORKSPACE, problem, route
from .sign_in import TENANT

REGISTRY = 'Microsoft.ContainerRegistry/registries'
WORKSPACES = PROVIDER + '/workspaces'
SERVICES = ('api', 'catalog', 'experimentation', 'gallery', 'history', 'hyperdrive', 'labeling',
            'modelmanagement', 'pipelines', 'inferencing', 'credential')


def now(seconds=0):
    """UTC time in ISO form, `seconds` from now."""
    moment = time.time() + seconds
    second = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))
    return f'{second}.{int(moment % 1 * 1e6):06}+00:00'


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
    workspace = cloud.journal.table('workspaces').get(arm_id(group, WORKSPACES, name).lower())
    if workspace is None:
        raise not_found(WORKSPACES, name, group)
    return workspace


def not_found(kind, name, group):
    return problem(
        404, 'ResourceNotFound', f"The Resource '{kind}/{name}' under resource group '{group}' "
        'was not found.')


@route('GET', ARM, '/subscriptions')
def list_subscriptions(call):
    return {'value': [get_subscription(call)]}


@route('GET', ARM, '/subscriptions/{subscription}')
def get_subscription(call):
    return {'id': '/subscriptions/' + SUBSCRIPTION, 'subscriptionId': SUBSCRIPTION,
            'tenantId': TENANT, 'displayName': 'Loopback', 'state': 'Enabled'}


@route('GET', ARM, GROUP)
def get_group(call, group):
    return find_group(call.cloud, group)


def create_group(cloud, group, location):
    document = {
        'id': resource_manager.group_id(group), 'name': group,
        'type': 'Microsoft.Resources/resourceGroups', 'location': location,
        'properties': {'provisioningState': 'Succeeded'}}
    cloud.journal.table('groups')[group.lower()] = document
    return document


@route('PUT', ARM, GROUP + '/providers/Microsoft.Resources/deployments/{name}')
def deploy_template(call, group, name):
    """The SDK's Workspace.create, whose template never gets through: no resource is made here.

    azureml/_workspace/arm_template_builder.py: build_default_resource_group_deployment deploys to
    the subscription, build_keyvault_account_resource names a version that ends on 2027-02-27.
    """
    resources = call.json['properties']['template']['resources']
    for one in resources:
        scope = (f'/subscriptions/{SUBSCRIPTION}' if 'subscriptionId' in one else
                 resource_manager.group_id(group))
        resource_manager.check_right(call.cloud, f"{one['type']}/write", scope)
    for one in resources:
        if one['type'] == 'Microsoft.KeyVault/vaults':
            resource_manager.check_version(one['type'], one['apiVersion'])
    raise problem(501, 'NotImplemented', 'Loopback makes no resources by a template.')


@route('GET', ARM, '/subscriptions/{subscription}/providers/Microsoft.Resources/deployments')
def list_subscription_deployments(call):
    """What Workspace.create asks for before it deploys."""
    return {'value': []}


def complete_workspace(cloud, group, document):
    """Make a workspace of this resource; its identity gets the role Contributor on the group."""
    table, path = cloud.journal.table('workspaces'), document['id'].lower()
    identity = table[path]['identity']['principalId'] if path in table else str(uuid.uuid4())
    document['identity'].update(principalId=identity, tenantId=TENANT)
    # The SDK's model of a workspace has none.
    document.pop('kind', None)
    document['properties'] = {
        'workspaceId': identity, 'friendlyName': document['name'], 'description': '',
        'creationTime': now(), 'tenantId': TENANT, 'hbiWorkspace': False,
        'containerRegistry': None, 'discoveryUrl': api_root(document) + '/discovery',
        **document['properties']}
    table[path] = dict(document, group=group)
    resource_manager.assign(cloud, identity, 'Contributor', resource_manager.group_id(group))


def need_registry(cloud, workspace):
    """Make the container registry, as Azure ML does when it needs the first image."""
    with cloud.journal.table('workspaces').change(workspace['id'].lower()) as document:
        if not document['properties']['containerRegistry']:
            name = re.sub('[^a-z0-9]', '', workspace['name'].lower()) + uuid.uuid4().hex[:12]
            path = arm_id(workspace['group'], REGISTRY, name)
            document['properties']['containerRegistry'] = path
            resource_manager.keep(cloud, {
                'id': path, 'name': name, 'type': REGISTRY, 'location': workspace['location'],
                'sku': {'name': 'Standard', 'tier': 'Standard'}, 'properties': {
                    'loginServer': name + '.azurecr.io', 'adminUserEnabled': True}})


@route('GET', ARM, WORKSPACE)
def get_workspace(call):
    """The resource, with what Azure ML changed since it was made."""
    found = resource_manager.resource(call.cloud, call.workspace['id'])
    found['properties'].update(call.workspace['properties'])
    return found


@route('GET', API, '/discovery', signed_in=False)
def discover(call):
    """Where each service of the workspace lives: all at one address here."""
    return dict({service: 'https://' + call.host for service in SERVICES},
                studio='https://ml.azure.com')


@route('GET', METADATA, '/{path*}', signed_in=False)
def get_instance_metadata(call, path):
    """What exporters ask to learn whether they run in a virtual machine of Azure: they do not."""
    raise problem(404, 'NotFound', 'This is no virtual machine of Azure.')
