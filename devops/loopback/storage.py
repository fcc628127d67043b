"""Files: the blob service, and what Azure ML keeps in it (artifacts of runs and uploads, snapshots
of source folders).

Sources: the Blob service REST reference (Put Blob, Put Block, Put Block List, Get Blob, List
Blobs); artifact.json and content.json of Azure/azure-rest-api-specs,
specification/machinelearningservices/data-plane; the SDK's calls. An artifact is the blob
azureml/ORIGIN/CONTAINER/PATH of the workspace's account, so there is no second list of them.
"""
import email.utils
import hmac
import os
import re
import urllib.parse
import uuid
from xml.sax.saxutils import escape

from .sign_in import LIFETIME
from .routing import API, BLOB, WORKSPACE, Answer, problem, route
from .workspaces import account, now

ARTIFACTS = '/artifact/v2.0' + WORKSPACE + '/artifacts'
SNAPSHOTS = '/content/v2.0' + WORKSPACE + '/snapshots'
CONTAINER = 'azureml'
XML = '<?xml version="1.0" encoding="utf-8"?>'


def shared_link(call, name, container=CONTAINER):
    """A URL of a blob with a shared access signature, good for this blob only."""
    place = '%s.blob.core.windows.net/%s/%s' % (account(call.workspace), container, name)
    return 'https://%s?sv=2019-02-02&sr=b&sp=rwc&se=%s&sig=%s' % (
        urllib.parse.quote(place), urllib.parse.quote(now(LIFETIME)), call.cloud.signature(place))


def _check_access(call):
    """The account, if the link is signed for this very blob or the request with the account's key.

    Of the latter only the form is checked.
    """
    name = call.host.split('.', 1)[0]
    signed = call.headers.get('Authorization', '').startswith('SharedKey %s:' % name)
    place = call.host + urllib.parse.unquote(call.path)
    linked = hmac.compare_digest(call.query.get('sig', ''), call.cloud.signature(place))
    if not signed and not linked:
        raise _blob_problem(403, 'AuthenticationFailed',
                            'Server failed to authenticate the request.')
    return name


def _blob_problem(status, code, message):
    text = XML + '<Error><Code>%s</Code><Message>%s</Message></Error>' % (code, message)
    return Answer(text.encode(), status,
                  {'x-ms-error-code': code, 'Content-Type': 'application/xml'})


@route('GET', BLOB, '/{container}', signed_in=False)
def list_blobs(call, container):
    name = _check_access(call)
    if call.query.get('comp') != 'list':
        return Answer(b'', 200,
                      {'ETag': '"0x1"', 'Last-Modified': email.utils.formatdate(usegmt=True)})
    prefix = call.query.get('prefix', '')
    found = []
    for blob in call.cloud.blobs.names(name, container, prefix):
        facts = os.stat(call.cloud.blobs.path(name, container, blob))
        found.append(
            '<Blob><Name>%s</Name><Properties><Creation-Time>%s</Creation-Time>'
            '<Last-Modified>%s</Last-Modified><Etag>%s</Etag><Content-Length>%d</Content-Length>'
            '<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>'
            '</Properties></Blob>' %
            (escape(blob), _date(facts), _date(facts), _etag(facts), facts.st_size))
    return Answer(
        (XML + '<EnumerationResults ServiceEndpoint="https://%s/" ContainerName="%s"><Prefix>%s'
         '</Prefix><Blobs>%s</Blobs><NextMarker/></EnumerationResults>' % (
             call.host, container, escape(prefix), ''.join(found))).encode(), 200,
        {'Content-Type': 'application/xml'})


@route('PUT', BLOB, '/{container}', signed_in=False)
def put_container(call, container):
    _check_access(call)
    return Answer(b'', 201)


@route('HEAD', BLOB, '/{container}/{name*}', signed_in=False)
@route('GET', BLOB, '/{container}/{name*}', signed_in=False)
def get_blob(call, container, name):
    path = call.cloud.blobs.path(_check_access(call), container, name)
    if not os.path.isfile(path):
        raise _blob_problem(404, 'BlobNotFound', 'The specified blob does not exist.')
    facts = os.stat(path)
    headers = {
        'ETag': '"%s"' % _etag(facts), 'Last-Modified': _date(facts),
        'x-ms-creation-time': _date(facts), 'x-ms-blob-type': 'BlockBlob',
        'x-ms-lease-status': 'unlocked', 'x-ms-lease-state': 'available',
        'x-ms-server-encrypted': 'true', 'x-ms-version': '2019-02-02', 'Accept-Ranges': 'bytes',
        'Content-Type': 'application/octet-stream'
    }
    size = facts.st_size
    if call.method == 'HEAD':
        headers['Content-Length'] = str(size)
        return Answer(b'', 200, headers)
    first, last = 0, size - 1
    wanted = re.match(r'bytes=(\d+)-(\d*)$',
                      call.headers.get('x-ms-range') or call.headers.get('Range') or '')
    if wanted:
        first, last = int(wanted.group(1)), min(int(wanted.group(2) or last), last)
        if first >= size:
            raise _blob_problem(
                416, 'InvalidRange',
                'The range specified is invalid for the current size of the resource.')
        headers['Content-Range'] = 'bytes %d-%d/%d' % (first, last, size)
    with open(path, 'rb') as file:
        file.seek(first)
        return Answer(file.read(last - first + 1), 206 if wanted else 200, headers)


@route('PUT', BLOB, '/{container}/{name*}', signed_in=False)
def put_blob(call, container, name):
    blobs = call.cloud.blobs
    path = blobs.path(_check_access(call), container, name)
    part = call.query.get('comp')
    if part == 'block':
        blobs.stage(path, call.query['blockid'], call.body)
        return Answer(b'', 201)
    if part == 'blocklist':
        blobs.join(path,
                   re.findall(r'<(?:Latest|Uncommitted|Committed)>([^<]+)<', call.body.decode()))
    elif part is None:
        blobs.write(path, call.body)
    else:
        raise _blob_problem(400, 'InvalidQueryParameterValue',
                            'Loopback does not know comp=%s.' % part)
    facts = os.stat(path)
    return Answer(b'', 201, {'ETag': '"%s"' % _etag(facts), 'Last-Modified': _date(facts),
                             'x-ms-request-server-encrypted': 'true', 'x-ms-version': '2019-02-02'})


def _etag(facts):
    return '0x%X' % (facts.st_mtime_ns ^ facts.st_size)


def _date(facts):
    return email.utils.formatdate(facts.st_mtime, usegmt=True)


def artifact_path(cloud, workspace, origin, container, path):
    return cloud.blobs.path(account(workspace), CONTAINER, '/'.join((origin, container, path)))


def _artifact(origin, container, path):
    return {
        'artifactId': '/'.join((origin, container, path)), 'origin': origin, 'container': container,
        'path': path, 'etag': 'e', 'createdTime': now()
    }


def _content(call, origin, container, path):
    return {'contentUri': shared_link(call, '/'.join((origin, container, path))), 'origin': origin,
            'container': container, 'path': path}


def _paths(call, origin, container, prefix=''):
    """The paths of the artifacts that are `prefix` or lie in the folder `prefix`."""
    start = '%s/%s/' % (origin, container)
    names = [
        name[len(start):]
        for name in call.cloud.blobs.names(account(call.workspace), CONTAINER, start)
    ]
    return [
        name for name in names
        if not prefix or name == prefix or name.startswith(prefix.rstrip('/') + '/')
    ]


@route('POST', API, ARTIFACTS + '/batch/metadata/{origin}/{container}')
def create_artifacts(call, origin, container):
    paths = [one['path'] for one in call.json['paths']]
    for path in paths:
        if os.path.exists(artifact_path(call.cloud, call.workspace, origin, container, path)):
            raise problem(409, 'UserError', 'Resource Conflict: ArtifactId %s/%s/%s already exists.'
                          % (origin, container, path))
    return {
        'artifacts': {path: _artifact(origin, container, path)
                      for path in paths}, 'artifactContentInformation': {
                          path: _content(call, origin, container, path)
                          for path in paths
                      }, 'errors': {}
    }


@route('GET', API, ARTIFACTS + '/contentinfo/{origin}/{container}/{path*}')
def artifact_content(call, origin, container, path):
    get_artifact(call, origin, container, path)
    return _content(call, origin, container, path)


@route('GET', API, ARTIFACTS + '/prefix/contentinfo/{origin}/{container}/{path*}')
@route('GET', API, ARTIFACTS + '/prefix/contentinfo/{origin}/{container}')
def artifact_contents(call, origin, container, path=''):
    return {
        'value': [
            _content(call, origin, container, name)
            for name in _paths(call, origin, container, path)
        ]
    }


@route('GET', API, ARTIFACTS + '/metadata/{origin}/{container}/{path*}')
def get_artifact(call, origin, container, path):
    if path not in _paths(call, origin, container):
        raise problem(404, 'UserError',
                      'Could not find artifact %s in %s/%s.' % (path, origin, container))
    return _artifact(origin, container, path)


@route('GET', API, ARTIFACTS + '/{origin}/{container}')
def list_artifacts(call, origin, container):
    return {
        'value': [_artifact(origin, container, path) for path in _paths(call, origin, container)]
    }


@route('GET', API, '/content/v1.0' + WORKSPACE + '/snapshots/latest/metadata')
def latest_snapshot(call):
    """None is offered, so every snapshot comes whole."""
    return {
        'id': str(uuid.UUID(int=0)), 'root': {
            'name': '', 'hash': '', 'type': 'Directory', 'timestamp': now(), 'sasUrl': '',
            'absoluteUrl': '', 'sizeBytes': 0, 'sizeSet': False, 'children': {}
        }
    }


@route('POST', API, SNAPSHOTS + '/getblob')
def snapshot_blobs(call):
    folder = 'snapshots/%s/' % uuid.uuid4()
    return {'fileNodes': [{'fullName': name, 'blobUri': shared_link(call, folder + name)}
                          for name in call.json['FileNames']]}


@route('POST', API, SNAPSHOTS + '/{snapshot}')
def put_snapshot(call, snapshot):
    nodes = (call.json.get('FileRevisionList') or {}).get('FileNodes') or []
    call.table('snapshots')[snapshot] = {
        'parent': call.json.get('ParentSnapshotId'),
        'files': {node['FullName']: _blob_name(node['BlobUri']) for node in nodes}}
    return {'id': snapshot}


def _blob_name(link):
    return urllib.parse.unquote(urllib.parse.urlsplit(link).path).split('/', 2)[2]


def snapshot_files(cloud, workspace, snapshot):
    """{name in the snapshot: path of its blob}, those of the parent snapshots included."""
    row = cloud.table(workspace, 'snapshots')[snapshot]
    files = {}
    if row['parent'] and uuid.UUID(row['parent']).int:
        files = snapshot_files(cloud, workspace, row['parent'])
    for name, blob in row['files'].items():
        files[name] = cloud.blobs.path(account(workspace), CONTAINER, blob)
    return files
