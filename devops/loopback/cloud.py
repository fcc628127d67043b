"""Loopback Azure ML as a whole: its folder, its parts, the variables that lead clients to it."""
import base64
import collections
import hashlib
import hmac
import os
import secrets
import sys
import threading
import time

from . import resource_manager, sign_in, state, transport, workspaces
# These bring their routes along when they are imported; the others are used here as well.
from . import blobs, computes, data, endpoints, insights, pipelines, services, resources  # noqa: F401
from .containers import Containers
from .faults import Faults
from .jobs import Jobs

EXCHANGES = 5000


class Cloud:
    """A running stand-in.

    `env`: the variables that clients need, a service principal's password among them.
    `unknown`: what was asked for and is not known here, and mistakes of the stand-in itself.
    `faults`: what is still to go wrong, see faults.py. `url`: where the proxy listens.
    """

    subscription = f'/subscriptions/{resource_manager.SUBSCRIPTION}'
    group = staticmethod(resource_manager.group_id)

    def __init__(self, folder, python=None):
        self.folder = os.path.abspath(folder)
        self.python = os.path.abspath(python or sys.executable)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)
        # unregistered: resource providers, in lower case.
        self.unknown, self.unregistered = [], set()
        # Whether storage accounts take their keys; a policy may forbid it (allowSharedKeyAccess).
        self.shared_keys = True
        self.exchanges = collections.deque(maxlen=EXCHANGES)
        self.faults = Faults()
        self.journal = state.Journal()
        self.blobs = state.Blobs(os.path.join(self.folder, 'blobs'))
        self.tokens = sign_in.Tokens()
        self.new_job = self.tokens.new_job
        self._seed = secrets.token_bytes(16)
        self._log_lock = threading.Lock()
        self._log = open(os.path.join(self.folder, 'requests.log'), 'a', encoding='utf-8')
        self.set_role('Reader', self.subscription)
        self.jobs = Jobs(self)
        self.containers = Containers(self)
        self.endpoints = endpoints.Endpoints()
        self.traces = insights.Traces()
        self._proxy = transport.Proxy(self)
        self.url = f'http://127.0.0.1:{self._proxy.server_port}'
        self._authority = os.path.join(self.folder, 'ca.pem')
        with state.open_private(self._authority) as file:
            file.write(self._proxy.authority.cert_pem.bytes())
        self.env = self._client_environment()
        self._proxy.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End all processes and connections."""
        self.jobs.stop()
        self.containers.stop()
        self.endpoints.stop()
        self._proxy.stop()
        self._log.close()

    def table(self, workspace, name):
        """A table of that workspace, a document of the table `workspaces`."""
        return self.journal.table(f"{workspace['properties']['workspaceId']}/{name}")

    def serving(self):
        """{name of a service or endpoint: the model versions that it serves, in words}."""
        found = {}
        for space in self.journal.table('workspaces').values():
            for row in self.table(space, 'services').values():
                state = '' if row['state'] == 'Healthy' else f" ({row['state']})"
                found[row['name']] = f"version {row['kvTags'].get('version')}{state}"
            versions = {key: row['document']['properties']['model'].rpartition('/')[2]
                        for key, row in self.table(space, 'deployments').items()}
            for key, row in self.table(space, 'endpoints').items():
                found[row['document']['name']] = ', '.join(
                    f"version {versions[f'{key}/{name}'.lower()]}"
                    + f' to {share} %' * (share < 100)
                    for name, share in row['live'].items() if share) or 'nothing'
        return found

    def signature(self, text):
        """A sum of the text that only this stand-in can make."""
        return hmac.new(self._seed, text.encode(), hashlib.sha256).hexdigest()

    def storage_key(self, account):
        return base64.b64encode(bytes.fromhex(2 * self.signature(account))).decode()

    def proxy_environment(self):
        """The variables that lead a process to the stand-in."""
        proxies = {'HTTPS_PROXY': self.url, 'HTTP_PROXY': self.url,
                   'NO_PROXY': 'localhost,127.0.0.1'}
        authorities = ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'SSL_CERT_FILE')
        return dict(dict.fromkeys(authorities, self._authority), **proxies,
                    **{name.lower(): value for name, value in proxies.items()})

    def _client_environment(self):
        """As above, with a home of its own and the service principal's password."""
        home = os.path.join(self.folder, 'client')
        homes = {'HOME': home, 'AZUREML_AUTH_CONFIG_DIR': os.path.join(home, 'azureml'),
                 'AZURE_CONFIG_DIR': os.path.join(home, 'azure'),
                 'SSL_CERT_DIR': os.path.join(home, 'no-certificates')}
        for folder in homes.values():
            os.makedirs(folder, mode=0o700, exist_ok=True)
        return dict(
            self.proxy_environment(), SUBSCRIPTION_ID=resource_manager.SUBSCRIPTION,
            tenantId=sign_in.TENANT, servicePrincipalId=sign_in.CLIENT,
            servicePrincipalKey=self.tokens.secret, **homes)

    @property
    def connection(self):
        """What a task of Azure Pipelines gets of a service connection, of either kind."""
        return {
            'tenantId': sign_in.TENANT, 'AZURESUBSCRIPTION_TENANT_ID': sign_in.TENANT,
            'servicePrincipalId': sign_in.CLIENT, 'AZURESUBSCRIPTION_CLIENT_ID': sign_in.CLIENT,
            'servicePrincipalKey': self.tokens.secret,
            'AZURESUBSCRIPTION_SERVICE_CONNECTION_ID': sign_in.CONNECTION}

    def add_group(self, name, location='westeurope', role='Contributor'):
        """A resource group, as its owner makes it: with a role on it for the service principal."""
        workspaces.create_group(self, name, location)
        self.set_role(role, self.group(name))

    def set_role(self, role, scope):
        """Give the service principal this role, or with None none, at this scope."""
        resource_manager.assign(self, sign_in.OBJECT, role, scope)

    def report(self, text):
        """Note something that the stand-in does not know or does wrong."""
        self.unknown.append(text)
        self.log('UNKNOWN ' + text)

    def log(self, text):
        with self._log_lock:
            if not self._log.closed:
                self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
                self._log.flush()
