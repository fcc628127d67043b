"""ACI web services: deployments, their operations and keys, and the way to their containers.

Sources: modelManagement.json of Azure/azure-rest-api-specs; the SDK's core/webservice/aci.py and
webservice.py; the errors of failed deployments in public issues (microsoft/MLOpsPython 127,
Azure/ai-toolkit-iot-edge 22, MicrosoftDocs/azure-docs 38067); "Update containers in Azure Container
Instances": an update restarts the containers in place, cpu and memory cannot be updated. Here an
update stops the old container first, so nobody answers for a second or two. The state of an
operation is answered when it has ended, or HOLD_SECONDS after its start, for the SDK sleeps 5 s
after a poll.
"""
import http.client
import os
import re
import secrets
import uuid

from . import resource_manager
from .containers import OPERATION_ENDED, deployment_error
from .models import MANAGEMENT, refused
from .routing import API, SCORING, Answer, Dropped, route
from .sign_in import CLIENT, TENANT
from .workspaces import api_root, need_registry, now

SERVICES = MANAGEMENT + '/services'
HOLD_SECONDS = 4
MOST_CORES, MOST_GB = 4, 16
HOP_BY_HOP = ('connection', 'keep-alive', 'proxy-connection', 'transfer-encoding',
              'content-length', 'host')


def _public(document):
    """The service as the API shows it, without its keys."""
    return {key: value for key, value in document.items() if key != 'keys'}


@route('POST', API, SERVICES + '/validate')
def validate(call):
    """What the SDK asks before it deploys; an answer without `error` lets it go on."""
    return {}


@route('GET', API, SERVICES + '/{name}')
def get_service(call, name):
    return _public(_find(call, name))


def _find(call, name):
    document = call.table('services').get(name)
    if document is None:
        raise refused(404, 'NotFound', f'Service {name} was not found.')
    return document


@route('POST', API, SERVICES)
def create_service(call):
    """Create, or with `overwrite` create or update."""
    asked = call.json
    name = asked['name']
    wanted = asked.get('containerResourceRequirements') or {}
    resources = {'cpu': wanted.get('cpu') or 0.1, 'memoryInGB': wanted.get('memoryInGB') or 0.5}
    if not re.match(r'[a-z]([-a-z0-9]{1,30}[a-z0-9])$', name):
        raise refused(400, 'BadRequest', f'Service name {name} is invalid: 3 to 32 lower case '
                      'letters, digits or hyphens are wanted.')
    if asked.get('computeType') != 'ACI':
        raise refused(501, 'NotImplemented', 'Loopback knows services on ACI only.')
    if resources['cpu'] > MOST_CORES or resources['memoryInGB'] > MOST_GB:
        raise refused(400, 'BadRequest', f'ACI gives {MOST_CORES} cores and {MOST_GB} GB at most, '
                      f"not {resources['cpu']} and {resources['memoryInGB']}.")
    # Azure ML makes the container group; with which identity is inferred, see devops/README.md.
    identity = call.workspace['identity']['principalId']
    make = 'Microsoft.ContainerInstance/containerGroups/write'
    if not resource_manager.may(call.cloud, identity, make,
                                resource_manager.group_id(call.workspace['group'])):
        refusal = (f"The client with object id '{identity}' does not have authorization to perform "
                   f"action '{make}' over the resource group. (Code: AuthorizationFailed)")
        error = deployment_error(403, 'AuthorizationFailed', refusal)
        operation = _operation(call, name, 'Failed', error)
        if name not in call.table('services'):
            call.table('services')[name] = dict(
                _service(call, asked, resources, None), models=[], operationId=operation,
                state='Failed', error=error, updatedTime=now())
        return _accepted(call, operation)
    old = call.table('services').get(name)
    if old and not asked.get('overwrite'):
        raise refused(409, 'Conflict', f'Service {name} with the same name already exists, please '
                      'use a different service name or delete the existing service.')
    if old and old['state'] == 'Transitioning':
        raise refused(409, 'Conflict', f'Service {name} has an operation in progress.')
    if old and old['state'] != 'Failed' and old['containerResourceRequirements'] != resources:
        fixed = (f"The updates on container group '{name}' are invalid. If you are going to update "
                 'the os type, restart policy, network profile, CPU, memory or GPU resources for '
                 'a container group, you must delete it first and then create a new one.')
        return _accepted(call, _operation(call, name, 'Failed', deployment_error(
            400, 'AciDeploymentFailed', fixed)))
    return _accepted(call, _deploy(call, _service(call, asked, resources, old)))


def _service(call, asked, resources, old):
    """The document of a service; `old` is the one that is updated, or None."""
    location = asked.get('location') or call.workspace['location']
    keys = asked.get('keys') or {}
    document = {
        'id': asked['name'], 'name': asked['name'], 'createdTime': now(), 'location': location,
        'description': asked.get('description'), 'kvTags': asked.get('kvTags') or {},
        'properties': asked.get('properties') or {}, 'computeType': 'ACI',
        'createdBy': {'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'},
        'deploymentType': 'HttpRealtimeEndpoint', 'containerResourceRequirements': resources,
        'environmentImageRequest': asked['environmentImageRequest'], 'modelConfigMap': {},
        'authEnabled': bool(asked.get('authEnabled')),
        'appInsightsEnabled': bool(asked.get('appInsightsEnabled')),
        'sslEnabled': False, 'sslCertificate': None, 'sslKey': None, 'cname': None,
        'scoringUri': None, 'swaggerUri': None, 'publicIp': None, 'publicFqdn':
            f"{asked.get('dnsNameLabel') or uuid.uuid4()}.{location}.azurecontainer.io",
        'vnetConfiguration': None, 'encryptionProperties': None, 'keys': {
            key: keys.get(key) or secrets.token_urlsafe(24)
            for key in ('primaryKey', 'secondaryKey')}}
    for key in ('createdTime', 'publicFqdn', 'scoringUri', 'swaggerUri', 'publicIp', 'keys'):
        if old and not (key == 'keys' and any(keys.values())):
            document[key] = old[key]
    return document


def _deploy(call, document):
    """Start to replace the container; the id of the operation that tells how it went."""
    request = document['environmentImageRequest']
    document['models'] = []
    for model in request.setdefault('modelIds', []):
        if model not in call.table('models'):
            raise refused(404, 'ModelNotFound', f'Model {model} was not found.')
        document['models'].append(call.table('models')[model])
    need_registry(call.cloud, call.workspace)
    operation = _operation(call, document['name'], 'Running')
    document.update(operationId=operation, state='Transitioning', error=None, updatedTime=now())
    call.table('services')[document['name']] = document
    call.cloud.containers.replace(call.workspace, document['name'], operation)
    return operation


def _operation(call, name, state, error=None):
    operation = str(uuid.uuid4())
    call.table('operations')[operation] = {
        'id': operation, 'operationType': 'Service', 'state': state, 'createdTime': now(),
        'endTime': now() if state in OPERATION_ENDED else None, 'error': error,
        'resourceLocation': f"{call.workspace['id']}/services/{name}",
        'operationDetails': {'subOperationType': 'DeployService', 'subOperationState': state}}
    return operation


def _accepted(call, operation):
    operation_url = (f"{api_root(call.workspace)}/modelmanagement/v1.0{call.workspace['id']}/"
                     f'operations/{operation}')
    return Answer(None, 202, {'Operation-Location': operation_url})


@route('GET', API, MANAGEMENT + '/operations/{operation}')
def get_operation(call, operation):
    call.cloud.containers.wait(operation, HOLD_SECONDS)
    return call.table('operations')[operation]


@route('DELETE', API, SERVICES + '/{name}')
def delete_service(call, name):
    if name not in call.table('services'):
        return Answer(status=204)
    call.cloud.containers.remove(call.workspace, name)
    del call.table('services')[name]


@route('POST', API, SERVICES + '/{name}/listkeys')
def list_keys(call, name):
    document = _find(call, name)
    if not document['authEnabled']:
        raise refused(400, 'BadRequest', f'Service {name} has no key authentication.')
    return document['keys']


@route('GET', API, SERVICES + '/{name}/logs')
def get_logs(call, name):
    _find(call, name)
    path = call.cloud.containers.log_path(call.workspace, name)
    if not os.path.exists(path):
        return {'content': ''}
    with open(path, encoding='utf-8', errors='replace') as log:
        return {'content': ''.join(log.readlines()[-int(call.query.get('tail', 5000)):])}


@route('GET', SCORING, '/{path*}', signed_in=False)
@route('POST', SCORING, '/{path*}', signed_in=False)
def forward(call, path=''):
    """Hand a request to the container of that host name; while there is none, nobody listens."""
    found = call.cloud.containers.container_behind(call.host)
    if found is None:
        raise Dropped
    document, port = found
    if path and document['authEnabled']:
        given = call.headers.get('Authorization', '').partition(' ')[2]
        if not any(secrets.compare_digest(given, key) for key in document['keys'].values()):
            raise Answer({'message': 'The key is missing or wrong.'}, 401)
    if call.method == 'POST' and call.cloud.faults.take('scoring-500'):
        raise Answer({'message': 'An unexpected error occurred in scoring script.'}, 500)
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    try:
        connection.request(call.method, call.target, call.body, _end_to_end(call.headers.items()))
        answer = connection.getresponse()
        return Answer(answer.read(), answer.status, _end_to_end(answer.getheaders()))
    except (OSError, http.client.HTTPException):
        raise Dropped
    finally:
        connection.close()


def _end_to_end(headers):
    return {name: value for name, value in headers if name.lower() not in HOP_BY_HOP}
