"""Loopback Azure ML: enough of Azure for the unmodified azureml-sdk, on one local port.

In Python: `with loopback.start(folder) as azure: subprocess.run(..., env=dict(os.environ,
**azure.env))`; in the foreground: `python -m loopback --folder DIR`. Everything lives in the
folder, so that a new start on it goes on where the last one ended. A request that no route knows
is answered with 501 and named in `azure.unknown`.
"""
import base64
import hashlib
import hmac
import os
import secrets
import sys
import threading
import time

from . import (  # noqa: F401
    containers, data, faults as fault_list, history, jobs, models, pipelines, services, sign_in,
    state, storage, transport, workspaces)


class Cloud:
    """A running stand-in: `env` is what clients need, `unknown` what was asked for in vain."""

    def __init__(self, folder, python=None, faults=None):
        self.folder = os.path.abspath(folder)
        self.python = os.path.abspath(python or sys.executable)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)
        self.faults = fault_list.Faults(faults)
        self.journal = state.Journal(os.path.join(self.folder, 'state.jsonl'))
        self.blobs = state.Blobs(os.path.join(self.folder, 'blobs'))
        self.tokens = sign_in.Tokens(self.journal)
        self.unknown = []
        self.exchanges = []
        self._log_lock = threading.Lock()
        self._log = open(os.path.join(self.folder, 'requests.log'), 'a', encoding='utf-8')
        settings = self.journal.table('settings')
        if 'stand-in' not in settings:
            settings['stand-in'] = {'seed': secrets.token_hex(16), 'port': 0}
        self.seed = settings['stand-in']['seed']
        try:
            self.proxy = transport.Proxy(self, settings['stand-in']['port'])
        except OSError:
            self.proxy = transport.Proxy(self)
        settings['stand-in'] = {'seed': self.seed, 'port': self.proxy.server_port}
        self.url = 'http://127.0.0.1:%d' % self.proxy.server_port
        self.authority = os.path.join(self.folder, 'ca.pem')
        with state.private_file(self.authority, 'wb') as file:
            file.write(self.proxy.authority.cert_pem.bytes())
        self.env = self._environment()
        self.jobs = jobs.Jobs(self)
        self.containers = containers.Containers(self)
        self.proxy.start()
        self.jobs.resume()
        self.containers.resume()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """End every process and connection. What was under way goes on at the next start on the
        folder."""
        self.faults.stopping.set()
        self.jobs.stop()
        self.containers.stop()
        self.proxy.stop()
        self.journal.close()
        self._log.close()

    def table(self, workspace, name):
        return self.journal.table('%s/%s' % (workspace['properties']['workspaceId'], name))

    def check_subscription(self, subscription):
        if subscription != workspaces.SUBSCRIPTION:
            raise transport.problem(404, 'SubscriptionNotFound',
                                    'The subscription \'%s\' could not be found.' % subscription)

    def find_workspace(self, group, name):
        path = workspaces.arm_id(group, workspaces.PROVIDER + '/workspaces', name)
        document = self.journal.table('workspaces').get(path.lower())
        if document is None:
            if group.lower() not in self.journal.table('groups'):
                raise transport.problem(404, 'ResourceGroupNotFound',
                                        'Resource group \'%s\' could not be found.' % group)
            raise transport.problem(
                404, 'ResourceNotFound',
                'The Resource \'%s/workspaces/%s\' under resource group \'%s\' '
                'was not found.' % (workspaces.PROVIDER, name, group))
        return document

    def api_url(self, workspace):
        """The address of a data plane service; %s takes its name and version."""
        return 'https://%s.api.azureml.ms/%%s%s' % (workspace['location'], workspace['id'])

    def discovery_url(self, location):
        return 'https://%s.api.azureml.ms/discovery' % location

    def storage_key(self, account):
        return base64.b64encode(
            hmac.new(self.seed.encode(), account.encode(), hashlib.sha512).digest()).decode()

    def proxy_environment(self):
        """The variables that lead a process to the stand-in."""
        names = {'HTTPS_PROXY': self.url, 'HTTP_PROXY': self.url, 'NO_PROXY': 'localhost,127.0.0.1'}
        names.update({name.lower(): value for name, value in names.items()})
        names.update({
            name: self.authority
            for name in ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'SSL_CERT_FILE')
        })
        return names

    def _environment(self):
        homes = {'HOME': '', 'AZUREML_AUTH_CONFIG_DIR': 'azureml', 'AZURE_CONFIG_DIR': 'azure'}
        base = os.path.join(self.folder, 'client-%s' % secrets.token_hex(4))
        secret = self.tokens.new_secret()
        environment = self.proxy_environment()
        environment['SSL_CERT_DIR'] = base
        for name, place in homes.items():
            environment[name] = os.path.join(base, place).rstrip('/')
            os.makedirs(environment[name], mode=0o700, exist_ok=True)
        environment.update({
            'AZUREML_SERVICE_PRINCIPAL_TENANT_ID': sign_in.TENANT,
            'AZUREML_SERVICE_PRINCIPAL_ID': sign_in.CLIENT,
            'AZUREML_SERVICE_PRINCIPAL_PASSWORD': secret, 'tenantId': sign_in.TENANT,
            'servicePrincipalId': sign_in.CLIENT, 'servicePrincipalKey': secret,
            'SUBSCRIPTION_ID': workspaces.SUBSCRIPTION
        })
        return environment

    def report_unknown(self, call, reason):
        self.unknown.append('%s https://%s%s: %s' %
                            (call.method, call.host, call.path, reason.strip()))
        self.log('UNKNOWN ' + self.unknown[-1])

    def record(self, call, answer):
        """Keep JSON exchanges of the Azure ML services for the contract check, secrets excepted."""
        if call.workspace and not isinstance(answer.body,
                                             bytes) and 'keys' not in call.path.lower():
            self.exchanges.append(
                (call.method, call.path, answer.status, bytes(call.body), answer.body))

    def log(self, text):
        with self._log_lock:
            if not self._log.closed:
                self._log.write('%s %s\n' % (time.strftime('%H:%M:%S'), text))
                self._log.flush()


def start(folder, python=None, faults=None):
    """Start the stand-in on `folder`. Steps and containers run with the interpreter `python`
    (else this one); `faults` is a list of faults or the path of a JSON file of them (see
    faults.py). Returns a Cloud: stop() it, or use `with`."""
    return Cloud(folder, python, faults)
