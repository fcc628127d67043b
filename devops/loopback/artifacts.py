"""What Azure ML keeps as blobs: artifacts of runs and uploads, and snapshots of source folders.

Sources: artifact.json and content.json of Azure/azure-rest-api-specs, in
specification/machinelearningservices/data-plane; the calls of azureml-sdk 1.55 and 1.62. An
artifact is the blob azureml/ORIGIN/CONTAINER/PATH, so there is no second list of them, and its
name is taken once it is written.
"""
import os
import urllib.parse
import uuid

from .blobs import shared_link
from .routing import API, WORKSPACE, problem, route
from .workspaces import account, now

ARTIFACTS = '/artifact/v2.0' + WORKSPACE + '/artifacts'
SNAPSHOTS = '/content/v2.0' + WORKSPACE + '/snapshots'
STORE = 'azureml'


def artifact_path(cloud, workspace, origin, container, path):
    """Where the artifact is, or would be, on this machine."""
    return cloud.blobs.path(account(workspace), STORE, '/'.join((origin, container, path)))


def artifact_names(cloud, workspace, origin, container, prefix=''):
    """The artifacts that are `prefix` or lie in the folder `prefix`."""
    start = f'{origin}/{container}/'
    names = [name[len(start):] for name in cloud.blobs.names(account(workspace), STORE, start)]
    return [name for name in names
            if not prefix or name == prefix or name.startswith(prefix.rstrip('/') + '/')]


def artifact_link(call, origin, container, path):
    return shared_link(call, STORE, '/'.join((origin, container, path)))


def _artifact(origin, container, path):
    return {'artifactId': '/'.join((origin, container, path)), 'origin': origin, 'etag': 'e',
            'container': container, 'path': path, 'createdTime': now()}


def _content(call, origin, container, path):
    return {'contentUri': artifact_link(call, origin, container, path), 'origin': origin,
            'container': container, 'path': path}


@route('POST', API, ARTIFACTS + '/batch/metadata/{origin}/{container}')
def create_artifacts(call, origin, container):
    paths = [one['path'] for one in call.json['paths']]
    for path in paths:
        if os.path.exists(artifact_path(call.cloud, call.workspace, origin, container, path)):
            raise problem(409, 'UserError', 'Resource Conflict: ArtifactId '
                          f'{origin}/{container}/{path} already exists.')
    return {'artifacts': {path: _artifact(origin, container, path) for path in paths},
            'artifactContentInformation': {
                path: _content(call, origin, container, path) for path in paths}, 'errors': {}}


@route('GET', API, ARTIFACTS + '/contentinfo/{origin}/{container}/{path*}')
def get_content(call, origin, container, path):
    if not os.path.isfile(artifact_path(call.cloud, call.workspace, origin, container, path)):
        raise problem(404, 'UserError', f'There is no artifact {origin}/{container}/{path}.')
    return _content(call, origin, container, path)


@route('GET', API, ARTIFACTS + '/prefix/contentinfo/{origin}/{container}/{path*}')
def list_contents(call, origin, container, path):
    names = artifact_names(call.cloud, call.workspace, origin, container, path)
    return {'value': [_content(call, origin, container, name) for name in names]}


@route('GET', API, ARTIFACTS + '/{origin}/{container}')
def list_artifacts(call, origin, container):
    names = artifact_names(call.cloud, call.workspace, origin, container)
    return {'value': [_artifact(origin, container, name) for name in names]}


@route('GET', API, '/content/v1.0' + WORKSPACE + '/snapshots/latest/metadata')
def get_latest_snapshot(call):
    """None is offered, so every snapshot comes whole."""
    return {'id': str(uuid.UUID(int=0)), 'root': {
        'name': '', 'hash': '', 'type': 'Directory', 'timestamp': now(), 'sasUrl': '',
        'absoluteUrl': '', 'sizeBytes': 0, 'sizeSet': False, 'children': {}}}


@route('POST', API, SNAPSHOTS + '/getblob')
def offer_blobs(call):
    """Where the client is to put the files of a snapshot."""
    folder = f'snapshots/{uuid.uuid4()}/'
    return {'fileNodes': [{'fullName': name, 'blobUri': shared_link(call, STORE, folder + name)}
                          for name in call.json['FileNames']]}


@route('POST', API, SNAPSHOTS + '/{snapshot}')
def put_snapshot(call, snapshot):
    """Its tree names its files; the SDK sends those that are not in the parent, which it caches."""
    known = dict(call.table('snapshots').get(call.json['ParentSnapshotId']) or {})
    known.update((node['FullName'], _blob_name(node['BlobUri']))
                 for node in (call.json['FileRevisionList'] or {}).get('FileNodes') or [])
    names = list(_files(call.json['DirTreeNode']))
    missing = [name for name in names if name not in known]
    if missing:
        raise problem(400, 'UserError', f'Neither sent nor in the parent: {missing}')
    call.table('snapshots')[snapshot] = {name: known[name] for name in names}
    return {'id': snapshot}


def _files(node, folder=''):
    """The full names of the files in a tree of nodes."""
    for name, child in node['children'].items():
        if child['type'] == 'File':
            yield folder + name
        else:
            yield from _files(child, f'{folder}{name}/')


def _blob_name(link):
    return urllib.parse.unquote(urllib.parse.urlsplit(link).path).split('/', 2)[2]


def snapshot_files(cloud, workspace, snapshot):
    """{name in the snapshot: its path on this machine}"""
    return {name: cloud.blobs.path(account(workspace), STORE, blob)
            for name, blob in cloud.table(workspace, 'snapshots')[snapshot].items()}
