"""Datastores, datasets and environments of a workspace.

Sources: datastore.json and DatasetDataplane 1.5.0 of Azure/azure-rest-api-specs; for
environments, which have no public document, the calls of azureml-sdk 1.55 and 1.62. A dataset's
versions are numbered from 1; version `latest` moves.
"""
import json
import time
import uuid

from .resource_manager import SUBSCRIPTION
from .routing import API, WORKSPACE, Answer, problem, route
from .state import Missing
from .workspaces import account, need_registry, now

DATASTORES = '/datastore/v1.0' + WORKSPACE
DATASETS = '/dataset/v1.0' + WORKSPACE
ENVIRONMENTS = '/environment/v1.0' + WORKSPACE + '/environments'
IMAGES = '/environment/v2.0' + WORKSPACE + '/environments/{name}/versions/{version}/image'
DEFAULT = 'workspaceblobstore'
CONTAINERS = {DEFAULT: 'azureml-blobstore', 'workspaceartifactstore': 'azureml'}


@route('GET', API, DATASTORES + '/default')
@route('GET', API, DATASTORES + '/datastores/{name}')
def get_datastore(call, name=DEFAULT):
    if name not in CONTAINERS:
        raise problem(404, 'UserError', f'Could not find datastore {name} in workspace '
                      f"{call.workspace['name']}.")
    key = call.cloud.storage_key(account(call.workspace))
    return {
        'name': name, 'dataStoreType': 'AzureBlob', 'hasBeenValidated': True, 'tags': {},
        'azureStorageSection': {
            'accountName': account(call.workspace), 'containerName': CONTAINERS[name],
            'endpoint': 'core.windows.net', 'protocol': 'https', 'credentialType': 'AccountKey',
            'credential': key, 'accountKey': key, 'isSas': False, 'sasToken': None,
            'blobCacheTimeout': None, 'clientCredentials': None,
            'areWorkspaceManagedIdentitiesAllowed': False, 'subscriptionId': SUBSCRIPTION,
            'resourceGroup': call.workspace['group']}}


@route('POST', API, DATASETS + '/datasets')
def register_dataset(call):
    asked = call.json
    with call.cloud.journal.lock:
        row = call.table('datasets').get(asked['name']) or {'id': str(uuid.uuid4()), 'versions': []}
        versions = row['versions']
        if versions and call.query.get('ifExistsOk', '').lower() == 'false':
            raise problem(409, 'UserError',
                          f"A dataset with name {asked['name']} already exists.")
        latest = dict(asked['latest'])
        latest['savedDatasetId'] = latest.get('savedDatasetId') or str(uuid.uuid4())
        latest.update(datasetId=row['id'], versionId=str(len(versions) + 1), createdTime=now(),
                      modifiedTime=now(), etag='e')
        document = dict(asked, datasetId=row['id'], latest=latest, createdTime=now(),
                        modifiedTime=now(), etag='e', isVisible=True,
                        datasetState={'state': 'active', 'deprecatedBy': None})
        versions.append(document)
        call.table('datasets')[asked['name']] = row
    return document


@route('GET', API, DATASETS + '/datasets/query/name={name}')
def get_dataset(call, name):
    row = call.table('datasets').get(name)
    version = call.query.get('versionId', 'latest')
    if row is None:
        raise problem(404, 'UserError',
                      f"No dataset with name {name} in workspace {call.workspace['name']}.")
    if version == 'latest':
        return row['versions'][-1]
    if not version.isdigit() or not 1 <= int(version) <= len(row['versions']):
        raise problem(404, 'UserError', f'Dataset {name} has no version {version}.')
    return row['versions'][int(version) - 1]


def _saved_as(call, saved):
    return [document for row in call.table('datasets').values() for document in row['versions']
            if document['latest']['savedDatasetId'] == saved]


@route('GET', API, DATASETS + '/datasets/query/savedDatasetId={saved}')
def list_datasets_by_saved_id(call, saved):
    return {'value': _saved_as(call, saved)}


@route('GET', API, '/data/v1.0' + WORKSPACE + '/dataversion/{name}/versions/{version}')
def get_data_version(call, name, version):
    """What the Rust reader asks for before it reads a dataset that is saved but not registered."""
    for document in _saved_as(call, name[len('unregistered-'):]):
        dataflow = json.loads(document['latest']['dataflow'])['meta']['RsDataflow']
        return {'legacyDataflow': dataflow, 'legacyDataflowType': 'rslex',
                'dataVersion': {'dataType': document['datasetType']}}
    raise Missing(f'dataset {name}')


@route('PUT', API, ENVIRONMENTS + '/{name}')
@route('PUT', API, ENVIRONMENTS + '/{name}/versions/{version}')
def put_environment(call, name, version=None):
    """Another definition is the next version, the same again the same; only the last is kept."""
    with call.cloud.journal.lock:
        known = call.table('environments').get(name, {'version': '0'})
        # The SDK sends "Docker" and reads "docker".
        asked = {key[:1].lower() + key[1:]: value for key, value in call.json.items()}
        document = dict(asked, name=name, version=known['version'])
        if document == known or version == known['version']:
            return known
        document['version'] = str(int(known['version']) + 1)
        call.table('environments')[name] = document
    return document


@route('GET', API, ENVIRONMENTS + '/{name}')
def get_environment(call, name):
    return call.table('environments')[name]


@route('POST', API, IMAGES)
def build_image(call, name, version):
    """Start the build, which takes `seconds` of the fault `late-image`, else none."""
    environment = get_environment(call, name)
    if environment['version'] != version:
        raise Missing(f'version {version} of environment {name}')
    need_registry(call.cloud, call.workspace)
    seconds_to_image(call.cloud, call.workspace, environment)
    url = f'https://{call.host}{call.path}/operations/{uuid.uuid4()}'
    return Answer({'location': url}, 202)


def seconds_to_image(cloud, workspace, environment):
    """How long a run or a deployment waits for its image, which it has built if nobody did."""
    images = cloud.table(workspace, 'images')
    key = f"{environment.get('name')}:{environment.get('version')}"
    if key not in images:
        fault = cloud.faults.take('late-image') or {'seconds': 0}
        images[key] = time.time() + fault['seconds']
    return max(0, images[key] - time.time())


def _is_built(call, name, version):
    return call.table('images').get(f'{name}:{version}', float('inf')) <= time.time()


@route('GET', API, IMAGES + '/operations/{operation}')
def get_image_build(call, name, version, operation):
    return {'status': 'Succeeded' if _is_built(call, name, version) else 'Running', 'logUrl': None}


@route('GET', API, ENVIRONMENTS + '/{name}/versions/{version}/image')
def get_environment_image(call, name, version):
    """Nothing is really built here, it only takes its time."""
    return {'imageExistsInRegistry': _is_built(call, name, version),
            'dockerImage': {'name': 'azureml/' + name, 'registry': None}}
