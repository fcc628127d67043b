"""What Azure ML keeps as blobs: artifacts of runs and uploads, and snapshots of source folders.

Sources: artifact.json and content.json of Azure/azure-rest-api-specs, in
specification/machinelearningservices/data-plane; the calls of azureml-sdk 1.55 and 1.62. An
artifact is the blob ORIGIN/CONTAINER/PATH, so there is no second list of them, and its name is
taken once it is written.
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


def artifact_path(cloud, workspace, artifact):
    """Where the artifact is, or would be, on this machine."""
    return cloud.blobs.path(account(workspace), STORE, artifact)


def artifacts_below(cloud, workspace, prefix):
    """The artifacts that are `prefix` or lie in the folder `prefix`."""
    return [name for name in cloud.blobs.names(account(workspace), STORE, prefix)
            if name == prefix or name.startswith(prefix + '/')]


def artifact_link(call, artifact):
    return shared_link(call, STORE, artifact)


def _parts(artifact):
    return dict(zip(('origin', 'container', 'path'), artifact.split('/', 2)))


def _entity(artifact):
    return dict(_parts(artifact), artifactId=artifact, etag='e', createdTime=now())


def _content(call, artifact):
    return dict(_parts(artifact), contentUri=artifact_link(call, artifact))


@route('POST', API, ARTIFACTS + '/batch/metadata/{origin}/{container}')
def create_artifacts(call, origin, container):
    wanted = {one['path']: f"{origin}/{container}/{one['path']}" for one in call.json['paths']}
    for artifact in wanted.values():
        if os.path.exists(artifact_path(call.cloud, call.workspace, artifact)):
            raise problem(409, 'UserError',
                          f'Resource Conflict: ArtifactId {artifact} already exists.')
    return {'artifacts': {path: _entity(artifact) for path, artifact in wanted.items()},
            'artifactContentInformation': {
                path: _content(call, artifact) for path, artifact in wanted.items()}, 'errors': {}}


@route('GET', API, ARTIFACTS + '/contentinfo/{artifact*}')
def get_content(call, artifact):
    if not os.path.isfile(artifact_path(call.cloud, call.workspace, artifact)):
        raise problem(404, 'UserError', f'There is no artifact {artifact}.')
    return _content(call, artifact)


@route('GET', API, ARTIFACTS + '/prefix/contentinfo/{prefix*}')
def list_contents(call, prefix):
    return {'value': [_content(call, artifact) for artifact in artifacts_below(
        call.cloud, call.workspace, prefix)]}


@route('GET', API, ARTIFACTS + '/{origin}/{container}')
def list_artifacts(call, origin, container):
    return {'value': [_entity(artifact) for artifact in artifacts_below(
        call.cloud, call.workspace, f'{origin}/{container}')]}


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
