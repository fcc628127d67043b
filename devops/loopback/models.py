"""The model registry, and the assets that say which artifacts a model consists of.

Sources: ModelDataplane 1.0.0 and modelManagement.json of Azure/azure-rest-api-specs; the SDK's
models Model, Asset and ModelErrorResponse. The service gives out the versions of a name, 1, 2, 3
and so on.
"""
import os
import shutil
import uuid

from .artifacts import artifact_path, artifacts_below
from .routing import API, WORKSPACE, Answer, route
from .sign_in import CLIENT, TENANT
from .workspaces import now

MANAGEMENT = '/modelmanagement/v1.0' + WORKSPACE
MODELS = MANAGEMENT + '/models'
# What the SDK reads of every model, given or not.
DEFAULTS = {'description': None, 'framework': None, 'frameworkVersion': None, 'runId': None,
            'experimentName': None, 'kvTags': {}, 'properties': {}, 'datasets': []}


def refused(status, code, message):
    """An error as model management words it; the SDK reads statusCode out of the body."""
    return Answer({
        'code': code, 'statusCode': status, 'message': message,
        'details': [{'code': code, 'message': message}],
        'correlation': {'RequestId': str(uuid.uuid4())}}, status)


@route('POST', API, MANAGEMENT + '/assets')
def create_asset(call):
    document = dict(call.json, id=str(uuid.uuid4()), createdTime=now())
    call.table('assets')[document['id']] = document
    return document


@route('GET', API, MANAGEMENT + '/assets/{asset}')
def get_asset(call, asset):
    return call.table('assets')[asset]


@route('GET', API, MODELS)
def list_models(call):
    """Those of a name, the newest first."""
    found = [model for model in call.table('models').values()
             if call.query.get('name') in (None, model['name'])]
    found.sort(key=lambda model: (model['createdTime'], model['version']), reverse=True)
    return {'value': found, 'nextLink': None}


@route('POST', API, MODELS)
def register_model(call):
    asked = call.json
    if call.cloud.faults.take('registration-collides'):
        raise refused(409, 'Conflict', f"Model {asked['name']} is being registered already.")
    with call.cloud.journal.lock:
        table = call.table('models')
        version = 1 + max([model['version'] for model in table.values()
                           if model['name'] == asked['name']], default=0)
        document = dict(DEFAULTS, **asked)
        document.update(
            id=f"{asked['name']}:{version}", version=version, createdTime=now(),
            modifiedTime=now(), createdBy={
                'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'})
        table[document['id']] = document
    return document


@route('GET', API, MODELS + '/{model}')
def get_model(call, model):
    document = call.table('models').get(model)
    if document is None:
        raise refused(404, 'NotFound', f'Model with ID {model} cannot be found.')
    return document


@route('DELETE', API, MODELS + '/{model}')
def delete_model(call, model):
    get_model(call, model)
    users = [service['name'] for service in call.table('services').values()
             if model in service['environmentImageRequest']['modelIds']]
    if users:
        raise refused(400, 'BadRequest', f"Model {model} is used by {', '.join(users)}.")
    del call.table('models')[model]


def unpack_model(cloud, workspace, model, folder):
    """Lay a model's files out in `folder`; what was registered, file or folder, keeps its name."""
    asset = cloud.table(workspace, 'assets')[model['url'][len('aml://asset/'):]]
    for artifact in asset['artifacts']:
        prefix = artifact['prefix']
        for name in artifacts_below(cloud, workspace, prefix):
            goal = os.path.join(folder, os.path.relpath(name, os.path.dirname(prefix)))
            os.makedirs(os.path.dirname(goal), exist_ok=True)
            shutil.copyfile(artifact_path(cloud, workspace, name), goal)
