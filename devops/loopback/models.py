"""The model registry and assets.

Sources: ModelDataplane 1.0.0 and modelManagement.json of Azure/azure-rest-api-specs; the SDK's
Model and ModelErrorResponse. The service gives out the versions of a name, 1, 2, 3 ...; an asset
names the artifacts (by prefix) that a model consists of.
"""
import os
import shutil
import uuid

from .sign_in import CLIENT, TENANT
from .storage import CONTAINER, account
from .routing import API, WORKSPACE, Answer, route
from .workspaces import now

MANAGEMENT = '/modelmanagement/v1.0' + WORKSPACE
PLACES = (MANAGEMENT + '/models', '/modelregistry/v1.0' + WORKSPACE + '/models')
FIELDS = ('description', 'framework', 'frameworkVersion', 'parentModelId', 'runId',
          'experimentName', 'derivedModelIds', 'sampleInputData', 'sampleOutputData',
          'resourceRequirements', 'url')


def refused(status, code, message):
    """An error as model management words it; the SDK reads statusCode out of the body."""
    return Answer(
        {
            'code': code, 'statusCode': status, 'message': message, 'details': [{
                'code': code, 'message': message
            }], 'correlation': {'RequestId': str(uuid.uuid4())}
        }, status)


def models_route(method, path=''):
    def register(handler):
        for place in PLACES:
            route(method, API, place + path)(handler)
        return handler
    return register


@route('POST', API, MANAGEMENT + '/assets')
def create_asset(call):
    document = dict(call.json, id=str(uuid.uuid4()), createdTime=now())
    call.table('assets')[document['id']] = document
    return document


@route('GET', API, MANAGEMENT + '/assets/{asset}')
def get_asset(call, asset):
    return call.table('assets')[asset]


@models_route('POST', '/list')
@models_route('GET')
def list_models(call):
    asked = dict(call.query)
    if call.method == 'POST' and call.body:
        asked.update(call.json)
    found = call.table('models').values()
    for field in ('name', 'runId', 'framework'):
        if asked.get(field):
            found = [model for model in found if model[field] == asked[field]]
    for condition, field in (('tags', 'kvTags'), ('properties', 'properties')):
        for wish in filter(None, (asked.get(condition) or '').split(',')):
            key, equals, value = wish.partition('=')
            found = [
                model for model in found
                if key in model[field] and (not equals or model[field][key] == value)
            ]
    if asked.get('datasetId'):
        found = [
            model for model in found
            if asked['datasetId'] in [one['id'] for one in model['datasets']]
        ]
    found.sort(key=lambda model: (model['createdTime'], model['version']), reverse=True)
    if str(asked.get('latestVersionOnly', '')).lower() == 'true':
        newest = {
            model['name']: model
            for model in sorted(found, key=lambda model: model['version'])
        }
        found = [model for model in found if newest[model['name']] == model]
    return {'value': found[:int(asked['count'])] if asked.get('count') else found, 'nextLink': None}


@models_route('POST')
def register_model(call):
    asked = call.json
    if call.cloud.faults.take('registration-collides'):
        raise refused(409, 'Conflict',
                      'A model with name %s is being registered at this moment.' % asked['name'])
    with call.cloud.journal.lock:
        table = call.table('models')
        version = 1 + max(
            [model['version']
             for model in table.values() if model['name'] == asked['name']], default=0)
        document = {field: asked.get(field) for field in FIELDS}
        document.update(
            id='%s:%d' % (asked['name'], version), name=asked['name'], version=version,
            mimeType=asked.get('mimeType') or 'application/json', unpack=bool(asked.get('unpack')),
            kvTags=asked.get('kvTags') or {}, properties=asked.get('properties') or {},
            datasets=asked.get('datasets') or [], createdTime=now(), modifiedTime=now(),
            createdBy={'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'})
        table[document['id']] = document
    return document


@models_route('GET', '/{model}')
def get_model(call, model):
    document = call.table('models').get(model)
    if document is None:
        raise refused(404, 'NotFound', 'Model with ID %s cannot be found.' % model)
    return document


@models_route('PATCH', '/{model}')
def patch_model(call, model):
    get_model(call, model)
    with call.table('models').change(model) as document:
        patch(document, call.json)
        document['modifiedTime'] = now()
    return get_model(call, model)


@models_route('DELETE', '/{model}')
def delete_model(call, model):
    get_model(call, model)
    users = [
        one['name'] for one in call.table('services').values()
        if model in one['environmentImageRequest']['modelIds']
    ]
    if users:
        raise refused(400, 'BadRequest',
                      'Model %s is used by the services %s.' % (model, ', '.join(users)))
    del call.table('models')[model]


def patch(document, operations):
    """Apply a JSON patch (RFC 6902: add, replace, remove)."""
    for operation in operations:
        *way, last = [
            part.replace('~1', '/').replace('~0', '~')
            for part in operation['path'].strip('/').split('/')
        ]
        place = document
        for part in way:
            place = place[part]
        if operation['op'] == 'remove':
            place.pop(last, None)
        else:
            place[last] = operation['value']


def unpack(cloud, workspace, model, folder):
    """Lay the files of a registered model out in `folder`, with the name that was registered at
    the top."""
    asset = cloud.table(workspace, 'assets')[model['url'][len('aml://asset/'):]]
    for artifact in asset['artifacts']:
        prefix = artifact.get('prefix') or artifact['id']
        parent = os.path.dirname(prefix.rstrip('/'))
        for name in cloud.blobs.names(account(workspace), CONTAINER, prefix):
            if name == prefix or name.startswith(prefix.rstrip('/') + '/'):
                path = os.path.join(folder, os.path.relpath(name, parent))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                shutil.copyfile(cloud.blobs.path(account(workspace), CONTAINER, name), path)
