"""How requests come in: one port, an HTTP proxy that ends TLS with an authority of its own.

Clients reach every Azure host by HTTPS_PROXY. They trust the authority by REQUESTS_CA_BUNDLE
(requests, msrest, azure-core, msal) and SSL_CERT_FILE (the Rust part of azureml-dataprep); both
were found by running the SDK. A plain http:// request, as to a scoring URI, comes in absolute form
(RFC 9112, 3.2.2) and takes the same routes.
"""
import json
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme

from . import resource_manager
from .faults import raise_fault
from .routing import ROUTES, Answer, Call, Dropped, problem
from .state import Missing
from .workspaces import check_subscription, find_workspace


def dispatch(call):
    """Find the route, apply faults, check the sign-in and the workspace, and run the handler."""
    for candidate in ROUTES:
        match = candidate.pattern.match(call.host + call.path)
        if match and candidate.method == call.method:
            break
    else:
        call.cloud.report(f'{call}: no such route')
        return problem(501, 'LoopbackUnknownRoute', f'Loopback Azure ML does not know {call}')
    values = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items()}
    try:
        fault = call.cloud.faults.take_for_request(call, candidate.signed_in)
        if fault and not fault['after']:
            raise_fault(fault)
        if candidate.signed_in:
            call.cloud.tokens.check(call.headers.get('Authorization'))
        if 'subscription' in values:
            check_subscription(values.pop('subscription'))
        if call.host == 'management.azure.com' and candidate.signed_in:
            resource_manager.check(call)
        if 'workspace' in values:
            call.workspace = find_workspace(
                call.cloud, values.pop('group'), values.pop('workspace'))
        result = candidate.handler(call, **values)
        if fault:
            raise_fault(fault)
    except Answer as raised:
        return raised
    except Missing as missing:
        return problem(404, 'NotFound', f'There is no {missing.args[0]}.')
    return result if isinstance(result, Answer) else Answer(result)


class Proxy(ThreadingHTTPServer):
    """The listening socket."""
    request_queue_size = 128

    def __init__(self, cloud):
        self.cloud = cloud
        self.authority = trustme.CA()
        self._contexts = {}
        self._lock = threading.Lock()
        super().__init__(('127.0.0.1', 0), _Connection)

    def context(self, host):
        with self._lock:
            if host not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self.authority.issue_cert(host).configure_cert(context)
                self._contexts[host] = context
            return self._contexts[host]

    def handle_error(self, request, client_address):
        self.cloud.log(f'a connection failed: {sys.exc_info()[1]!r}')

    def start(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


class _Connection(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    timeout = 300
    tunnel = None

    def finish(self):
        super().finish()
        self.connection.close()

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        host = self.path.rsplit(':', 1)[0].lower()
        self.send_response_only(200)
        self.end_headers()
        self.request = self.server.context(host).wrap_socket(self.request, server_side=True)
        self.setup()
        self.tunnel = host
        self.close_connection = False

    def do_any(self):
        began = time.time()
        address = urllib.parse.urlsplit(self.path).netloc or self.headers.get('Host', '')
        host = self.tunnel or address.rsplit(':', 1)[0].lower()
        cloud = self.server.cloud
        call = Call(cloud, self.command, host, self.path, self.headers, self.read_body())
        try:
            answer = dispatch(call)
        except Dropped:
            cloud.log(f'cut {call}')
            # finish() then closes it with a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.close_connection = True
            return
        except Exception:
            cloud.report(f'{call}: {traceback.format_exc()}')
            answer = problem(501, 'LoopbackFailed', traceback.format_exc())
        cloud.log(f'{answer.status} {call} {int(1000 * (time.time() - began))} ms')
        if call.workspace and not isinstance(answer.body, bytes):
            # In memory only, for the check against the SDK's own models.
            cloud.exchanges.append((call.method, call.path, answer.status, call.body, answer.body))
        self.send(answer)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_any

    def read_body(self):
        # urllib3 uses Nagle's algorithm with proxies: it sends the body when the head is confirmed,
        # which the kernel puts off by 40 ms unless told otherwise.
        if hasattr(socket, 'TCP_QUICKACK'):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if 'Transfer-Encoding' in self.headers:
            raise ValueError('loopback takes no chunks')
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def send(self, answer):
        if answer.body is None or isinstance(answer.body, bytes):
            body, kind = answer.body or b'', 'application/octet-stream'
        else:
            body, kind = json.dumps(answer.body).encode(), 'application/json; charset=utf-8'
        headers = {'Content-Type': kind, 'Content-Length': str(len(body)),
                   'Date': self.date_time_string(), 'x-ms-request-id': str(uuid.uuid4())}
        headers.update(answer.headers)
        if answer.status == 204:
            del headers['Content-Length'], headers['Content-Type']
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        # OpenSSL takes an empty write for an end of the connection.
        if body and self.command != 'HEAD':
            self.wfile.write(body)
