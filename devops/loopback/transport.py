"""How requests come in: one port that is an HTTP proxy, ends TLS with its own authority, and hands
each request to a route.

Clients reach every Azure host by HTTPS_PROXY and trust the authority by REQUESTS_CA_BUNDLE
(requests, msrest, azure-core, msal) and SSL_CERT_FILE (the Rust part of azureml-dataprep); both
were found by running the SDK. A plain http:// request, as to a scoring URI, comes in absolute
form (RFC 9112, 3.2.2) and takes the same routes.
"""
import collections
import json
import re
import socket
import ssl
import struct
import threading
import time
import traceback
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme

from .state import Missing

SIGN_IN = r'login\.(?:microsoftonline|windows)\.(?:com|net)'
ARM = r'management\.azure\.com'
API = r'[\w.-]+\.api\.azureml\.ms'
BLOB = r'[a-z0-9]+\.blob\.core\.windows\.net'
SCORING = r'[\w.-]+\.azurecontainer\.io'
TELEMETRY = r'(?:dc\.services\.visualstudio\.com|[\w.-]+\.applicationinsights\.azure\.com)'
METADATA = r'169\.254\.169\.254'
GROUP = '/subscriptions/{subscription}/resourceGroups/{group}'
WORKSPACE = GROUP + '/providers/Microsoft.MachineLearningServices/workspaces/{workspace}'

ROUTES = []
Route = collections.namedtuple('Route', 'method pattern handler open')


class Answer(Exception):
    """What goes back: a JSON value or bytes. Raised to answer from deeper down, returned
    otherwise."""

    def __init__(self, body=None, status=200, headers=None):
        super().__init__(status)
        self.body = body
        self.status = status
        self.headers = headers or {}


class Dropped(Exception):
    """The connection is to be cut without an answer."""


def problem(status, code, message, headers=None):
    """An error as ARM and the Azure ML services word it (Azure REST guidelines: error.code,
    error.message)."""
    return Answer({'error': {'code': code, 'message': message}}, status, headers)


def route(method, host, path, signed_in=True):
    """Register a handler. {name} in the path takes one segment, {name*} the rest; upper and
    lower case are alike."""
    expression = re.sub(r'\\\{(\w+)(\\\*)?\\\}', lambda found: '(?P<%s>%s)' % (
        found.group(1), '.+' if found.group(2) else '[^/]+'), re.escape(path))
    pattern = re.compile('(?P<host>%s)%s/?$' % (host, expression), re.IGNORECASE)

    def register(handler):
        ROUTES.append(Route(method, pattern, handler, not signed_in))
        return handler
    return register


class Call:
    """One request: method, host, path, query (first values), headers, body; `cloud` is the
    stand-in."""

    def __init__(self, cloud, method, host, target, headers, body):
        parts = urllib.parse.urlsplit(target)
        self.target = parts.path + ('?' + parts.query if parts.query else '')
        self.cloud = cloud
        self.method = method
        self.host = host
        self.path = re.sub('/+', '/', parts.path)
        self.query = {key: values[0] for key, values in urllib.parse.parse_qs(
            parts.query, keep_blank_values=True).items()}
        self.headers = headers
        self.body = body
        self.workspace = None
        self.token = None

    @property
    def json(self):
        try:
            return json.loads(self.body.decode())
        except ValueError:
            raise problem(400, 'InvalidRequestContent', 'The request content is not JSON.')

    @property
    def form(self):
        return {key: values[0] for key, values in urllib.parse.parse_qs(self.body.decode()).items()}

    def table(self, name):
        """A table of the workspace that the URL names."""
        return self.cloud.table(self.workspace, name)

    @property
    def api(self):
        """The address of the data plane with the workspace's path; %s takes the service's name
        and version."""
        return self.cloud.api_url(self.workspace)


def dispatch(call):
    """Find the route, apply faults, check the sign-in and the workspace, and run the handler."""
    for candidate in ROUTES:
        match = candidate.pattern.match(call.host + call.path)
        if match and candidate.method == call.method:
            break
    else:
        call.cloud.report_unknown(call, 'no such route')
        return problem(
            501, 'LoopbackUnknownRoute',
            'Loopback Azure ML does not know %s https://%s%s' % (call.method, call.host, call.path))
    values = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items()}
    values.pop('host')
    try:
        after = call.cloud.faults.strike(call)
        if not candidate.open:
            call.token = call.cloud.tokens.check(call.headers.get('Authorization'))
        if 'subscription' in values:
            call.cloud.check_subscription(values.pop('subscription'))
        if 'workspace' in values:
            call.workspace = call.cloud.find_workspace(values.pop('group'), values.pop('workspace'))
        result = candidate.handler(call, **values)
        if after:
            raise after
    except Answer as raised:
        return raised
    except Missing as missing:
        return problem(404, 'NotFound', 'There is no %s.' % missing.args[0])
    return result if isinstance(result, Answer) else Answer(result)


class Proxy(ThreadingHTTPServer):
    """The listening socket. `stop` also cuts the connections that are open, so that nothing
    stale ever answers."""
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cloud, port=0):
        self.cloud = cloud
        self.authority = trustme.CA()
        self._contexts = {}
        self._lock = threading.Lock()
        self._connections = set()
        super().__init__(('127.0.0.1', port), _Connection)

    def context(self, host):
        with self._lock:
            if host not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self.authority.issue_cert(host).configure_cert(context)
                self._contexts[host] = context
            return self._contexts[host]

    def opened(self, connection):
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection):
        with self._lock:
            self._connections.discard(connection)

    def handle_error(self, request, client_address):
        pass

    def start(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            cut(connection)


def cut(connection):
    """Close with a reset, whatever waits to be sent."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


class _Connection(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    timeout = 300
    tunnel = None

    def setup(self):
        super().setup()
        self.server.opened(self.connection)

    def finish(self):
        self.server.closed(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        host = self.path.rsplit(':', 1)[0].lower()
        self.send_response_only(200)
        self.end_headers()
        plain = self.connection
        try:
            self.connection = self.server.context(host).wrap_socket(plain, server_side=True)
        except OSError as error:
            self.server.cloud.log('TLS with a client for %s failed: %s' % (host, error))
            self.close_connection = True
            return
        self.server.closed(plain)
        self.server.opened(self.connection)
        self.request = self.connection
        self.rfile = self.connection.makefile('rb', -1)
        self.wfile = self.connection.makefile('wb', 0)
        self.tunnel = host
        self.close_connection = False

    def do_any(self):
        began = time.time()
        parts = urllib.parse.urlsplit(self.path)
        host = self.tunnel or (parts.netloc or self.headers.get('Host', '')).rsplit(':',
                                                                                    1)[0].lower()
        cloud = self.server.cloud
        call = Call(cloud, self.command, host, self.path, self.headers, self.read_body())
        try:
            answer = dispatch(call)
        except Dropped:
            cloud.log('%s https://%s%s cut off' % (call.method, host, call.path))
            self.close_connection = True
            cut(self.connection)
            return
        except Exception:
            cloud.report_unknown(call, traceback.format_exc())
            answer = problem(501, 'LoopbackFailed', traceback.format_exc())
        cloud.log('%s %s https://%s%s %d ms' % (
            answer.status, call.method, host, call.path, 1000 * (time.time() - began)))
        cloud.record(call, answer)
        self.send(answer)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_any

    def read_body(self):
        if 'chunked' not in self.headers.get('Transfer-Encoding', '').lower():
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while True:
            size = int(self.rfile.readline().split(b';')[0], 16)
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if not size:
                return b''.join(parts)

    def send(self, answer):
        if answer.body is None or isinstance(answer.body, bytes):
            body, kind = answer.body or b'', 'application/octet-stream'
        else:
            body, kind = json.dumps(answer.body).encode(), 'application/json; charset=utf-8'
        headers = {
            'Content-Type': kind, 'Content-Length': str(len(body)), 'Date': self.date_time_string(),
            'x-ms-request-id': str(uuid.uuid4())
        }
        headers.update(answer.headers)
        if answer.status == 204:
            del headers['Content-Length'], headers['Content-Type']
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)
