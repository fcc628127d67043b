"""ACI web services: deployments, their operations and keys, and the way to their containers.

Sources: modelManagement.json of Azure/azure-rest-api-specs; the SDK's core/webservice/aci.py and
webservice.py; the errors of failed deployments in public issues (microsoft/MLOpsPython 127,
Azure/ai-toolkit-iot-edge 22, MicrosoftDocs/azure-docs 38067); "Update containers in Azure Container
Instances": an update restarts the containers in place, cpu and memory cannot be updated. Here an
update stops the old container first, so nobody answers for a second or two. The state of an
operation is answered when it has ended, or HOLD_SECONDS after its start, for the SDK sleeps 5 s
after a poll.
"""
import os
import re
import secrets
import uuid

import urllib3

from . import resource_manager
from .containers import deployment_error, forward, log_path
from .models import MANAGEMENT, refused
from .routing import API, SCORING, Answer, Dropped, route
from .workspaces import api_root, need_registry, now

SERVICES = MANAGEMENT + '/services'
HOLD_SECONDS = 4
MOST_CORES, MOST_GB = 4, 16


@route('POST', API, SERVICES + '/validate')
def validate(call):
    """What the SDK asks before it deploys; an answer without `error` lets it go on."""
    return {}


@route('GET', API, SERVICES + '/{name}')
def get_service(call, name):
    document = _find(call, name)
    del document['keys']
    return document


def _find(call, name):
    document = call.table('services').get(name)
    if document is None:
        raise refused(404, 'NotFound', f'Service {name} was not found.')
    return document


@route('POST', API, SERVICES)
def create_service(call):
    """Create, or with `overwrite` create or update."""
    asked = call.json
    name, old = asked['name'], call.table('services').get(asked['name'])
    wanted = asked.get('containerResourceRequirements') or {}
    resources = {'cpu': wanted.get('cpu') or 0.1, 'memoryInGB': wanted.get('memoryInGB') or 0.5}
    if not re.match(r'[a-z]([-a-z0-9]{1,30}[a-z0-9])$', name):
        raise refused(400, 'BadRequest', f'Service name {name} is invalid: 3 to 32 lower case '
                      'letters, digits or hyphens are wanted.')
    if resources['cpu'] > MOST_CORES or resources['memoryInGB'] > MOST_GB:
        raise refused(400, 'BadRequest', f'ACI gives {MOST_CORES} cores and {MOST_GB} GB at most, '
                      f"not {resources['cpu']} and {resources['memoryInGB']}.")
    if old and not asked.get('overwrite'):
        raise refused(409, 'Conflict', f'Service {name} with the same name already exists, please '
                      'use a different service name or delete the existing service.')
    if old and old['state'] == 'Transitioning':
        raise refused(409, 'Conflict', f'Service {name} has an operation in progress.')
    for model in asked['environmentImageRequest']['modelIds']:
        if model not in call.table('models'):
            raise refused(404, 'ModelNotFound', f'Model {model} was not found.')
    operation, error = str(uuid.uuid4()), _failure(call, name, old, resources)
    state = 'Failed' if error else 'Running'
    call.table('operations')[operation] = {
        'id': operation, 'operationType': 'Service', 'state': state, 'createdTime': now(),
        'endTime': now() if error else None, 'error': error,
        'resourceLocation': f"{call.workspace['id']}/services/{name}",
        'operationDetails': {'subOperationType': 'DeployService', 'subOperationState': state}}
    # A first deployment that fails leaves a service that says why.
    if not error or not old:
        _store(call, asked, resources, old, operation, error)
    if not error:
        call.cloud.containers.replace(call.workspace, name, operation)
    return Answer(None, 202, {'Operation-Location': (
        f"{api_root(call.workspace)}/modelmanagement/v1.0{call.workspace['id']}/"
        f'operations/{operation}')})


def _failure(call, name, old, resources):
    """Why a deployment that was accepted fails at once, or None."""
    # Azure ML makes the container group; with which identity is inferred, see devops/README.md.
    identity = call.workspace['identity']['principalId']
    make = 'Microsoft.ContainerInstance/containerGroups/write'
    if not resource_manager.may(call.cloud, identity, make,
                                resource_manager.group_id(call.workspace['group'])):
        return deployment_error(
            403, 'AuthorizationFailed', f"The client with object id '{identity}' does not have "
            f"authorization to perform action '{make}' over the resource group. (Code: "
            'AuthorizationFailed)')
    if old and old['state'] != 'Failed' and old['containerResourceRequirements'] != resources:
        return deployment_error(
            400, 'AciDeploymentFailed', f"The updates on container group '{name}' are invalid. If "
            'you are going to update the os type, restart policy, network profile, CPU, memory or '
            'GPU resources for a container group, you must delete it first and then create a new '
            'one.')
    return None


def _store(call, asked, resources, old, operation, error):
    """Write down the service as it is asked for, `old` or a new one."""
    name, request = asked['name'], asked['environmentImageRequest']
    need_registry(call.cloud, call.workspace)
    lasting = old or {
        'createdTime': now(), 'scoringUri': None, 'swaggerUri': None, 'publicIp': None,
        'publicFqdn': f"{uuid.uuid4()}.{call.workspace['location']}.azurecontainer.io",
        'keys': {key: secrets.token_urlsafe(24) for key in ('primaryKey', 'secondaryKey')}}
    call.table('services')[name] = dict(
        lasting, id=name, name=name, location=call.workspace['location'],
        description=asked.get('description'), kvTags=asked.get('kvTags') or {},
        properties=asked.get('properties') or {}, computeType=asked['computeType'],
        deploymentType='HttpRealtimeEndpoint', containerResourceRequirements=resources,
        environmentImageRequest=request, authEnabled=asked.get('authEnabled', False),
        appInsightsEnabled=asked.get('appInsightsEnabled', False), sslEnabled=False,
        sslCertificate=None, sslKey=None, cname=None, updatedTime=now(), operationId=operation,
        state='Failed' if error else 'Transitioning', error=error,
        models=[call.table('models')[model] for model in request['modelIds']])


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
    path = log_path(call.cloud, call.workspace, name)
    if not os.path.exists(path):
        return {'content': ''}
    with open(path, encoding='utf-8', errors='replace') as log:
        return {'content': ''.join(log.readlines()[-int(call.query.get('tail', 5000)):])}


@route('GET', SCORING, '/{path*}', signed_in=False)
@route('POST', SCORING, '/{path*}', signed_in=False)
def score(call, path=''):
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
    try:
        return forward(call, port)
    except urllib3.exceptions.HTTPError:
        raise Dropped
