"""Azure Resource Manager: what it refuses before a provider sees a request, and plain resources.

Sources: the REST reference of Microsoft.Resources and Microsoft.Authorization, ARM's page
"Troubleshoot common Azure deployment errors" (codes and sentences), the built-in roles, and for
names, versions and bodies the specifications in Azure/azure-rest-api-specs of the types below.
Versions are those that a client here may send: current ones, and what azureml-sdk 1.55 and 1.62
send. Microsoft.KeyVault before 2026-02-01 ends on 2027-02-27 and is refused already.
"""
import fnmatch
import re
import time
import uuid

from jsonschema import Draft4Validator
from jsonschema.exceptions import best_match

from .routing import ARM, GROUP, problem, route
from .schemas import SWITCH, TEXT, closed
from .sign_in import CLIENT, OBJECT

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
PROVIDER = 'Microsoft.MachineLearningServices'
LOCATIONS = ('westeurope', 'northeurope', 'uksouth', 'germanywestcentral', 'eastus', 'eastus2',
             'westus2', 'southcentralus')
# Name of a role: its id, what it may do, what not.
ROLES = {
    'Owner': ('8e3af657-a8ff-443c-a75c-2fe8c4bcb635', ['*'], []),
    'Contributor': ('b24988ac-6180-42a0-ab88-20f7382dd24c', ['*'],
                    ['Microsoft.Authorization/*/Delete', 'Microsoft.Authorization/*/Write']),
    'Reader': ('acdd72a7-3385-48ef-bd42-f606fba81ae7', ['*/read'], []),
    'Azure AI Administrator': ('b78c5d69-af96-48a3-bf8d-a8b4d589de94', [
        f'{PROVIDER}/workspaces/*', 'Microsoft.ContainerRegistry/registries/*',
        'Microsoft.KeyVault/*', 'Microsoft.Storage/storageAccounts/*', 'Microsoft.Insights/*',
        'Microsoft.Resources/deployments/*'], []),
}
ML_VERSIONS = tuple('''2019-06-01 2019-11-01 2020-01-01 2020-02-02 2020-04-01 2020-06-01 2021-01-01
    2021-04-01 2022-05-01 2022-10-01 2023-04-01 2023-10-01 2024-04-01 2024-10-01 2025-06-01
    2025-09-01 2026-05-01'''.split())
# Type: its api-versions.
VERSIONS = {
    f'{PROVIDER}/workspaces': ML_VERSIONS, f'{PROVIDER}/workspaces/computes': ML_VERSIONS,
    f'{PROVIDER}/locations/vmSizes': ML_VERSIONS, f'{PROVIDER}/locations/usages': ML_VERSIONS,
    **{f'{PROVIDER}/workspaces/{kind}': tuple(one for one in ML_VERSIONS if one >= '2023-04-01')
       for kind in ('codes/versions', 'onlineEndpoints', 'onlineEndpoints/deployments')},
    'Microsoft.Resources/subscriptions': ('2022-12-01', '2021-04-01', '2021-01-01', '2019-11-01',
                                          '2016-06-01'),
    'Microsoft.Resources/subscriptions/resourceGroups': ('2019-05-01', '2021-04-01', '2022-09-01',
                                                         '2025-04-01'),
    'Microsoft.Authorization/permissions': ('2022-04-01',),
    'Microsoft.Authorization/roleAssignments': ('2022-04-01',),
    'Microsoft.Storage/storageAccounts': ('2025-06-01', '2024-01-01', '2023-05-01'),
    'Microsoft.KeyVault/vaults': ('2026-02-01',),
    'Microsoft.OperationalInsights/workspaces': ('2025-02-01', '2023-09-01'),
    'Microsoft.Insights/components': ('2020-02-02',),
    'Microsoft.Insights/components/query': ('2018-04-20',),
    'Microsoft.ContainerRegistry/registries': ('2025-11-01', '2025-04-01', '2023-07-01'),
}

ID = {'type': 'string', 'pattern': '^/subscriptions/[^/]+/resource[gG]roups/[^/]+/providers/'}
AT = {'location': TEXT, 'tags': {'type': 'object'}}
# Type: rule of its name, body. Of the bodies the part that this project sets; other properties are
# refused, not passed over.
TYPES = {
    'Microsoft.Storage/storageAccounts': ('[a-z0-9]{3,24}', closed(
        ['sku', 'kind', 'location'], kind={'enum': ['StorageV2', 'BlobStorage', 'FileStorage']},
        sku=closed(['name'], name={'enum': ['Standard_LRS', 'Standard_GRS', 'Standard_ZRS',
                                            'Standard_RAGRS', 'Premium_LRS']}),
        properties=closed(
            minimumTlsVersion={'enum': ['TLS1_2', 'TLS1_3']}, supportsHttpsTrafficOnly=SWITCH,
            allowBlobPublicAccess=SWITCH, allowSharedKeyAccess=SWITCH), **AT)),
    'Microsoft.KeyVault/vaults': ('(?=.{3,24}$)[a-zA-Z](-?[a-zA-Z0-9])+', closed(
        ['location', 'properties'], properties=closed(
            ['tenantId', 'sku'], tenantId=TEXT, sku=closed(
                ['family', 'name'], family={'enum': ['A']}, name={'enum': ['standard', 'premium']}),
            accessPolicies={'type': 'array'}, enableRbacAuthorization=SWITCH), **AT)),
    'Microsoft.OperationalInsights/workspaces': (
        '[A-Za-z0-9][A-Za-z0-9-]{2,61}[A-Za-z0-9]', closed(
            ['location'], properties=closed(
                sku=closed(['name'], name={'enum': ['PerGB2018', 'CapacityReservation']}),
                retentionInDays={'type': 'integer', 'minimum': 30, 'maximum': 730}), **AT)),
    'Microsoft.Insights/components': (r'[^%&\\?/]{1,259}[^%&\\?/. ]', closed(
        ['kind', 'location'], kind=TEXT, properties=closed(
            ['Application_Type', 'WorkspaceResourceId'],
            Application_Type={'enum': ['web', 'other']}, WorkspaceResourceId=ID), **AT)),
    PROVIDER + '/workspaces': ('[a-zA-Z0-9][a-zA-Z0-9_-]{2,32}', closed(
        ['location', 'identity', 'properties'],
        identity=closed(['type'], type={'enum': ['SystemAssigned']}),
        sku=closed(name={'enum': ['Basic']}, tier={'enum': ['Basic']}), kind={'enum': ['Default']},
        properties=closed(
            ['storageAccount', 'keyVault', 'applicationInsights'], friendlyName=TEXT,
            storageAccount=ID, keyVault=ID, applicationInsights=ID, v1LegacyMode=SWITCH,
            publicNetworkAccess={'enum': ['Enabled', 'Disabled']},
            systemDatastoresAuthMode={'enum': ['AccessKey', 'Identity']}), **AT)),
}
# Of names that are unique in all of Azure: the code of the refusal.
UNIQUE = {'Microsoft.Storage/storageAccounts': 'StorageAccountAlreadyTaken',
          'Microsoft.KeyVault/vaults': 'VaultAlreadyExists'}
VERBS = {'GET': 'read', 'PUT': 'write', 'PATCH': 'write', 'DELETE': 'delete', 'POST': 'action'}


def arm_id(group, kind, name):
    return f'{group_id(group)}/providers/{kind}/{name}'


def kind_of(path):
    """The type of a resource: Microsoft.X/y/z for .../providers/Microsoft.X/y/1/z/2."""
    above, _, below = path.strip('/').partition('/providers/')
    kind = 'Microsoft.Resources/subscriptions' + '/resourceGroups' * (above.count('/') > 1)
    if below:
        parts = below.split('/')
        kind = '/'.join(parts[:1] + parts[1::2])
    return next((known for known in VERSIONS if known.lower() == kind.lower()), kind)


def group_id(name):
    return f'/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}'


def roles(cloud, principal, path):
    """The assignments that a principal has at `path` or above it."""
    return [row for row in cloud.journal.table('assignments').values()
            if row['principal'] == principal
            and f'{path}/'.lower().startswith(f"{row['scope']}/".lower())]


def may(cloud, principal, action, path):
    """Whether the roles of a principal allow the action on `path`."""
    def fits(patterns):
        return any(fnmatch.fnmatchcase(action.lower(), one.lower()) for one in patterns)

    return any(fits(ROLES[row['role']][1]) and not fits(ROLES[row['role']][2])
               for row in roles(cloud, principal, path))


def check(call):
    """Refuse a request without a version that its type has, a right or a registered provider."""
    kind, version = kind_of(call.path), call.query.get('api-version')
    if not version:
        raise problem(400, 'MissingApiVersionParameter', 'The api-version query parameter '
                      '(?api-version=) is required for all requests.')
    action = call.method == 'POST' and kind not in VERSIONS
    check_version(kind_of(call.path.rsplit('/', 1)[0]) if action else kind, version)
    # Whoever has a right in a subscription sees that it exists, and how far what they began is.
    seen = kind == 'Microsoft.Resources/subscriptions' or kind.lower().endswith(
        ('operationsstatus', 'operationresults'))
    seen = seen and any(row['principal'] == OBJECT
                        for row in call.cloud.journal.table('assignments').values())
    if not seen:
        # To query is to read, though it is a POST.
        verb = VERBS['GET' if call.method == 'POST' and not action else call.method]
        check_right(call.cloud, f'{kind}/{verb}', call.path)
    namespace = kind.split('/')[0]
    if call.method == 'PUT' and not registered(call.cloud, namespace):
        raise problem(409, 'MissingSubscriptionRegistration', 'The subscription is not registered '
                      f"to use namespace '{namespace}'. See https://aka.ms/rps-not-found for how "
                      'to register subscriptions.')


def check_version(kind, version):
    """Refuse an api-version that the type does not have or that it loses."""
    known = VERSIONS.get(kind)
    if known and version not in known:
        raise problem(400, 'NoRegisteredProviderFound', 'No registered resource provider found for '
                      f"location 'westeurope' and API version '{version}' for type "
                      f"'{kind.split('/', 1)[1]}'. The supported api-versions are "
                      f"'{', '.join(known)}'.")


def check_right(cloud, action, scope):
    """Refuse the service principal an action that none of its roles allows at the scope."""
    if not may(cloud, OBJECT, action, scope):
        raise problem(403, 'AuthorizationFailed', f"The client '{CLIENT}' with object id "
                      f"'{OBJECT}' does not have authorization to perform action '{action}' over "
                      f"scope '{scope}' or the scope is invalid. If access was recently granted, "
                      'please refresh your credentials.')


def registered(cloud, namespace):
    return namespace.lower() not in cloud.unregistered


def assign(cloud, principal, role, scope):
    """Give a principal a role at a scope, or take its role there away when `role` is None."""
    table, key = cloud.journal.table('assignments'), f'{principal} {scope.lower()}'
    if role is None:
        del table[key]
    else:
        table[key] = {'principal': principal, 'role': role, 'scope': scope, 'id': str(uuid.uuid4())}


def validated(call, kind, name):
    """The body of a PUT of this type. Raises Answer for a name or a body that the type refuses."""
    rule, schema = TYPES[kind]
    if not re.fullmatch(rule, name):
        raise problem(400, 'InvalidResourceName', f"The name '{name}' of a {kind} is invalid.")
    body = checked(call, schema)
    if body['location'].lower().replace(' ', '') not in LOCATIONS:
        raise problem(400, 'LocationNotAvailableForResourceType', 'The provided location '
                      f"'{body['location']}' is not available for resource type '{kind}'.")
    for part, value in body.get('properties', {}).items():
        if schema['properties']['properties']['properties'][part] is ID:
            found = resource(call.cloud, value)
            if found is None or found['properties']['provisioningState'] != 'Succeeded':
                raise problem(400, 'BadRequest', f'The {part} {value} was not found or is not '
                              'ready.')
    return body


def checked(call, schema):
    """The body of a request. Raises Answer for one that the schema refuses."""
    error = best_match(Draft4Validator(schema).iter_errors(call.json))
    if error:
        where = '.'.join(map(str, error.path)) or 'body'
        raise problem(400, 'InvalidRequestContent', 'The request content was invalid and could not '
                      f'be deserialized: {where}: {error.message}')
    return call.json


def resource(cloud, path):
    """The resource of this id, ready or not, or None."""
    row = cloud.journal.table('resources').get(path.lower())
    return row and dict(row['document'], properties=dict(
        row['document']['properties'],
        provisioningState='Succeeded' if row['ready'] <= time.time() else 'Creating'))


def keep(cloud, document, seconds=0):
    """Keep a resource, which is ready after so many seconds."""
    cloud.journal.table('resources')[document['id'].lower()] = {
        'document': document, 'ready': time.time() + seconds}


@route('GET', ARM, GROUP + '/providers/Microsoft.Authorization/roleAssignments')
def list_role_assignments(call, group):
    """Those at or above the group, of the principal that $filter names."""
    match = re.match(r"principalId eq '([0-9a-f-]+)'$", call.query.get('$filter', ''))
    if not match:
        raise problem(400, 'UnsupportedQuery', 'The filter is not supported.')
    return {'value': [{
        'id': f"{row['scope']}/providers/Microsoft.Authorization/roleAssignments/{row['id']}",
        'name': row['id'], 'type': 'Microsoft.Authorization/roleAssignments', 'properties': {
            'scope': row['scope'], 'principalId': row['principal'],
            'roleDefinitionId': f'/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/'
                                f"roleDefinitions/{ROLES[row['role']][0]}"}}
        for row in roles(call.cloud, match.group(1), group_id(group))]}


@route('GET', ARM, GROUP + '/providers/Microsoft.Authorization/permissions')
def list_permissions(call, group):
    """What the caller may do in the group, role by role."""
    return {'value': [{'actions': ROLES[row['role']][1], 'notActions': ROLES[row['role']][2],
                       'dataActions': [], 'notDataActions': []}
                      for row in roles(call.cloud, OBJECT, group_id(group))]}


@route('GET', ARM, '/subscriptions/{subscription}/providers/{provider}')
def get_provider(call, provider):
    state = 'Registered' if registered(call.cloud, provider) else 'NotRegistered'
    return {'id': f'/subscriptions/{SUBSCRIPTION}/providers/{provider}', 'namespace': provider,
            'registrationState': state}
