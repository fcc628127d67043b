"""ACI web services: deployments, their operations and keys, and the way to their containers.

Sources: modelManagement.json of Azure/azure-rest-api-specs;
azureml/core/webservice/{aci,webservice}.py; the error texts of failed deployments in public
issues (microsoft/MLOpsPython 127, Azure/ai-toolkit-iot-edge 22); "Update containers in Azure
Container Instances" (an update restarts the containers in place; cpu and memory cannot be
updated). An update here stops the old container first and so has an outage of seconds. An
operation's state is answered when it changes, or after HOLD seconds, so that clients that sleep
between polls do not make tests slow.
"""
import http.client
import re
import secrets
import uuid

from .containers import OPERATION_ENDED
from .models import MANAGEMENT, patch, refused
from .sign_in import CLIENT, TENANT
from .transport import API, SCORING, Answer, Dropped, route
from .workspaces import now

SERVICES = MANAGEMENT + '/services'
HOLD = 2
FIXED = ('If you are going to update the os type, restart policy, network profile, CPU, memory or '
         'GPU resources for a container group, you must delete it first and then create a new one.')
HOP = ('connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'content-length',
       'host')


def _public(document):
    """The service as the API shows it: without keys and without our own notes."""
    return {key: value for key, value in document.items() if key not in ('keys', 'host', 'number')}


@route('GET', API, SERVICES)
def list_services(call):
    found = call.table('services').values()
    if call.query.get('modelId'):
        found = [
            one for one in found
            if call.query['modelId'] in one['environmentImageRequest']['modelIds']
        ]
    return {'value': [_public(one) for one in found]}


@route('POST', API, SERVICES + '/validate')
@route('POST', API, SERVICES + '/validate/resource')
def validate(call):
    """What the SDK asks before it deploys; an answer without `error` lets it go on."""
    return {}


@route('POST', API, SERVICES + '/validate/name/{name}')
def validate_name(call, name):
    if name in call.table('services'):
        return {
            'error': {
                'code': 'Conflict',
                'message': 'Service %s with the same name already exists, please use a '
                'different service name or delete the existing service.' % name
            }
        }
    return {}


@route('GET', API, SERVICES + '/{name}')
def get_service(call, name):
    return _public(_find(call, name))


def _find(call, name):
    document = call.table('services').get(name)
    if document is None:
        raise refused(404, 'NotFound', 'Service %s was not found.' % name)
    return document


@route('POST', API, SERVICES)
def create_service(call):
    """Create, or with `overwrite` create or update."""
    asked = call.json
    name = asked['name']
    if not re.match(r'^[a-z]([-a-z0-9]*[a-z0-9])?$', name) or not 3 <= len(name) <= 32:
        raise refused(
            400, 'BadRequest',
            'Service name %s is invalid: 3 to 32 lower case letters, digits or hyphens.' % name)
    if asked.get('computeType') != 'ACI':
        raise refused(501, 'NotImplemented',
                      'Loopback knows ACI services only, not %s.' % asked.get('computeType'))
    old = call.table('services').get(name)
    if old and not asked.get('overwrite'):
        raise refused(409, 'Conflict', 'Service %s with the same name already exists.' % name)
    wanted = asked.get('containerResourceRequirements') or {}
    resources = {'cpu': wanted.get('cpu') or 0.1, 'memoryInGB': wanted.get('memoryInGB') or 0.5}
    if resources['cpu'] > 4 or resources['memoryInGB'] > 16:
        raise refused(
            400, 'BadRequest',
            'ACI gives a container 4 cores and 16 GB at most; asked for were %s and %s GB.' %
            (resources['cpu'], resources['memoryInGB']))
    if old and old['containerResourceRequirements'] != resources and old['state'] != 'Failed':
        return _accepted(
            call,
            _operation(
                call, name, 'Failed', {
                    'code': 'AciDeploymentFailed', 'statusCode': 400,
                    'message': 'Aci Deployment failed with exception: The updates '
                    'on container group \'%s\' are invalid. %s' % (name, FIXED),
                    'details': [{'code': 'InvalidContainerGroupUpdate', 'message': FIXED}]
                }))
    keys = {key: value for key, value in (asked.get('keys') or {}).items() if value}
    host = old['host'] if old else '%s.%s.azurecontainer.io' % (
        asked.get('dnsNameLabel') or uuid.uuid4(),
        asked.get('location') or call.workspace['location'])
    document = {
        'id': name, 'name': name, 'description': asked.get('description'),
        'kvTags': asked.get('kvTags') or {}, 'properties': asked.get('properties') or {},
        'createdTime': old['createdTime'] if old else now(), 'computeType': 'ACI',
        'deploymentType': 'HttpRealtimeEndpoint', 'containerResourceRequirements': resources,
        'location': asked.get('location') or call.workspace['location'], 'authEnabled': bool(
            asked.get('authEnabled')), 'sslEnabled': bool(asked.get('sslEnabled')),
        'sslCertificate': None, 'sslKey': None, 'cname': asked.get('cname'),
        'appInsightsEnabled': bool(asked.get('appInsightsEnabled')), 'publicIp': None,
        'publicFqdn': host, 'scoringUri': old['scoringUri'] if old else None, 'swaggerUri': None,
        'modelConfigMap': {}, 'environmentImageRequest': asked['environmentImageRequest'],
        'models': [], 'vnetConfiguration': None, 'encryptionProperties': None, 'error': None,
        'host': host, 'keys': {
            'primaryKey': keys.get('primaryKey') or secrets.token_urlsafe(24),
            'secondaryKey': keys.get('secondaryKey') or secrets.token_urlsafe(24)
        }, 'createdBy': {'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'}
    }
    if old and not keys:
        document['keys'] = old['keys']
    return _accepted(call, _deploy(call, document))


@route('PATCH', API, SERVICES + '/{name}')
def update_service(call, name):
    """Tags alone are changed in place; whatever the container needs, replaces it."""
    document = _find(call, name)
    patch(document, call.json)
    if all(re.match('/(kvTags|properties|description)', one['path']) for one in call.json):
        document['updatedTime'] = now()
        call.table('services')[name] = document
        return _public(document)
    return _accepted(call, _deploy(call, document))


def _deploy(call, document):
    request = document['environmentImageRequest']
    request.setdefault('modelIds', [])
    document['models'] = [call.table('models').get(model) for model in request['modelIds']]
    if None in document['models']:
        missing = request['modelIds'][document['models'].index(None)]
        raise refused(404, 'ModelNotFound', 'Model %s was not found.' % missing)
    operation = _operation(call, document['name'], 'Running')
    document.update(operationId=operation, state='Transitioning', updatedTime=now(), error=None,
                    number=secrets.token_hex(4))
    call.table('services')[document['name']] = document
    call.cloud.containers.replace(call.workspace, document['name'], operation)
    return operation


def _operation(call, name, state, error=None):
    operation = str(uuid.uuid4())
    call.table('operations')[operation] = {
        'id': operation, 'operationType': 'Service', 'state': state, 'createdTime': now(),
        'error': error, 'endTime': now() if state in OPERATION_ENDED else None,
        'resourceLocation': '%s/services/%s' % (call.workspace['id'], name),
        'operationDetails': {'subOperationType': 'DeployService', 'subOperationState': state}
    }
    return operation


def _accepted(call, operation):
    return Answer(
        None, 202,
        {'Operation-Location': '%s/operations/%s' % (call.api % 'modelmanagement/v1.0', operation)})


@route('GET', API, MANAGEMENT + '/operations/{operation}')
def get_operation(call, operation):
    call.cloud.containers.wait(
        lambda: call.table('operations')[operation]['state'] in OPERATION_ENDED, HOLD)
    return call.table('operations')[operation]


@route('DELETE', API, SERVICES + '/{name}')
def delete_service(call, name):
    if name not in call.table('services'):
        return Answer(status=204)
    call.cloud.containers.remove(call.workspace, name)
    del call.table('services')[name]
    return Answer(status=200)


@route('POST', API, SERVICES + '/{name}/listkeys')
def list_keys(call, name):
    document = _find(call, name)
    if not document['authEnabled']:
        raise refused(400, 'BadRequest', 'Key authentication is not enabled for service %s.' % name)
    return document['keys']


@route('POST', API, SERVICES + '/{name}/regenerateKeys')
def regenerate_keys(call, name):
    _find(call, name)
    with call.table('services').change(name) as document:
        key = call.json['keyType'].lower() + 'Key'
        document['keys'][key] = call.json.get('keyValue') or secrets.token_urlsafe(24)
    return _accepted(call, _operation(call, name, 'Succeeded'))


@route('GET', API, SERVICES + '/{name}/logs')
def get_logs(call, name):
    _find(call, name)
    lines = call.cloud.containers.log(call.workspace, name).splitlines(True)
    return {'content': ''.join(lines[-int(call.query.get('tail', 5000)):])}


@route('GET', SCORING, '/', signed_in=False)
@route('GET', SCORING, '/{path*}', signed_in=False)
@route('POST', SCORING, '/{path*}', signed_in=False)
@route('OPTIONS', SCORING, '/{path*}', signed_in=False)
def forward(call, path=''):
    """Hand a request to the container behind the host name. Nobody listens there while it is
    being replaced."""
    found = call.cloud.containers.behind(call.host)
    if found is None:
        raise Dropped
    document, port = found
    if path and document['authEnabled']:
        given = call.headers.get('Authorization', '').partition(' ')[2]
        if not any(secrets.compare_digest(given, key) for key in document['keys'].values()):
            raise Answer({'status': 401, 'message': 'Unauthorized: the key is missing or wrong.'},
                         401)
    if call.method == 'POST' and call.cloud.faults.take('scoring-500'):
        raise Answer({'message': 'An unexpected error occurred in scoring script.'}, 500)
    headers = {name: value for name, value in call.headers.items() if name.lower() not in HOP}
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    try:
        connection.request(call.method, call.target, call.body, headers)
        answer = connection.getresponse()
        return Answer(answer.read(), answer.status, {
            name: value for name, value in answer.getheaders() if name.lower() not in HOP})
    except (OSError, http.client.HTTPException):
        raise Dropped
    finally:
        connection.close()
