"""The blob service of the workspace's storage account.

Source: the REST reference of the Blob service (Put Blob, Put Block, Put Block List, Get Blob, Get
Blob Properties, List Blobs). Links with a shared access signature are good for one blob or
one container; of requests signed with the account's key only the form is checked.
"""
import email.utils
import hmac
import os
import re
import urllib.parse
from xml.sax.saxutils import escape

from .routing import BLOB, Answer, route
from .sign_in import LIFETIME
from .workspaces import account, now

XML = '<?xml version="1.0" encoding="utf-8"?>'
VERSION = '2019-02-02'


def shared_link(call, container, name=None):
    """A URL of a blob, or without a name of a container, with a shared access signature."""
    resource = f'{account(call.workspace)}.blob.core.windows.net/{container}'
    resource, kind = (f'{resource}/{name}', 'b&sp=rwc') if name else (resource, 'c&sp=rwlc')
    return (f'https://{urllib.parse.quote(resource)}?sv={VERSION}&sr={kind}&'
            f'se={urllib.parse.quote(now(LIFETIME))}&sig={call.cloud.signature(resource)}')


def _account(call):
    """The account that the request is for, if it is signed."""
    name = call.host.split('.', 1)[0]
    resource = call.host + urllib.parse.unquote(call.path)
    if call.query.get('sr') == 'c':
        resource = '/'.join(resource.split('/')[:2])
    linked = hmac.compare_digest(call.query.get('sig', ''), call.cloud.signature(resource))
    if not linked and not call.headers.get('Authorization', '').startswith(f'SharedKey {name}:'):
        raise _refused(403, 'AuthenticationFailed', 'Server failed to authenticate the request.')
    # The links are signed with the account's key as well.
    if not call.cloud.shared_keys:
        raise _refused(403, 'KeyBasedAuthenticationNotPermitted', 'Key based authentication is not '
                       'permitted on this storage account.')
    return name


def _refused(status, code, message):
    text = f'{XML}<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(text.encode(), status,
                  {'x-ms-error-code': code, 'Content-Type': 'application/xml'})


def _unknown(call):
    call.cloud.report(f'{call}, comp={call.query.get("comp")}')
    return _refused(400, 'InvalidQueryParameterValue', 'Loopback does not know this comp.')


def _facts(path):
    """The headers that describe a blob."""
    facts = os.stat(path)
    return {'ETag': f'"0x{facts.st_mtime_ns ^ facts.st_size:X}"', 'x-ms-version': VERSION,
            'Last-Modified': email.utils.formatdate(facts.st_mtime, usegmt=True)}


def _entry(blob, path):
    """A blob in a list."""
    facts = _facts(path)
    modified, tag = facts['Last-Modified'], facts['ETag'].strip('"')
    return (f'<Blob><Name>{escape(blob)}</Name><Properties><Creation-Time>{modified}'
            f'</Creation-Time><Last-Modified>{modified}</Last-Modified><Etag>{tag}</Etag>'
            f'<Content-Length>{os.path.getsize(path)}</Content-Length>'
            '<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>'
            '</Properties></Blob>')


@route('GET', BLOB, '/{container}', signed_in=False)
def list_blobs(call, container):
    name = _account(call)
    if call.query.get('comp') != 'list':
        raise _unknown(call)
    prefix = call.query.get('prefix', '')
    found = ''.join(_entry(blob, call.cloud.blobs.path(name, container, blob))
                    for blob in call.cloud.blobs.names(name, container, prefix))
    text = (f'{XML}<EnumerationResults ServiceEndpoint="https://{call.host}/" '
            f'ContainerName="{container}"><Prefix>{escape(prefix)}</Prefix>'
            f'<Blobs>{found}</Blobs><NextMarker/></EnumerationResults>')
    return Answer(text.encode(), 200, {'Content-Type': 'application/xml'})


@route('HEAD', BLOB, '/{container}/{name*}', signed_in=False)
@route('GET', BLOB, '/{container}/{name*}', signed_in=False)
def get_blob(call, container, name):
    path = call.cloud.blobs.path(_account(call), container, name)
    if not os.path.isfile(path):
        raise _refused(404, 'BlobNotFound', 'The specified blob does not exist.')
    size = os.path.getsize(path)
    headers = dict(_facts(path), **{
        'x-ms-blob-type': 'BlockBlob', 'x-ms-lease-status': 'unlocked',
        'x-ms-lease-state': 'available', 'x-ms-server-encrypted': 'true', 'Accept-Ranges': 'bytes'})
    headers['x-ms-creation-time'] = headers['Last-Modified']
    wanted = re.match(r'bytes=(\d+)-(\d+)$',
                      call.headers.get('x-ms-range') or call.headers.get('Range') or '')
    first, last = map(int, wanted.groups()) if wanted else (0, size)
    with open(path, 'rb') as file:
        file.seek(first)
        content = file.read(last - first + 1)
    if not wanted:
        return Answer(content, 200, headers)
    if not content:
        raise _refused(416, 'InvalidRange', 'The range is invalid for this blob\'s size.')
    headers['Content-Range'] = f'bytes {first}-{first + len(content) - 1}/{size}'
    return Answer(content, 206, headers)


@route('PUT', BLOB, '/{container}/{name*}', signed_in=False)
def put_blob(call, container, name):
    blobs = call.cloud.blobs
    path = blobs.path(_account(call), container, name)
    part = call.query.get('comp')
    content = call.body
    if part == 'block':
        blobs.blocks[path, call.query['blockid']] = content
        return Answer(status=201)
    if part == 'blocklist':
        names = re.findall('<(?:Latest|Uncommitted)>([^<]+)<', content.decode())
        content = b''.join(blobs.blocks.pop((path, name)) for name in names)
    elif part:
        raise _unknown(call)
    elif call.headers.get('x-ms-blob-type') != 'BlockBlob':
        raise _refused(400, 'MissingRequiredHeader', 'An HTTP header that\'s mandatory for this '
                       'request is not specified: x-ms-blob-type.')
    blobs.write(path, content)
    return Answer(None, 201, dict(_facts(path), **{'x-ms-request-server-encrypted': 'true'}))
