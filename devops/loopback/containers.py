"""Scoring containers: Azure ML's own inference server, run as a process with the uploaded script
and the registered model.

Sources: the page "Azure Machine Learning inference HTTP server" for its variables and
`azmlinfsrv`'s entry point; azureml/core/model.py (InferenceConfig) for the assets, which Azure
unpacks in /var/azureml-app; "Where models are located" in the v1 deployment pages:
AZUREML_MODEL_DIR is azureml-models/NAME/VERSION for one model, else azureml-models. A container
that ends is started again, as ACI's restart policy does; the second crash in a deployment fails
it.
"""
import os
import shutil
import socket
import tarfile
import threading
import time
import urllib.request

from . import processes
from .models import unpack
from .storage import artifact_path
from .workspaces import now

OPERATION_ENDED = ('Succeeded', 'Failed', 'Cancelled', 'TimedOut')
START_SECONDS = 60
CRASHES = 2
CRASH = 'raise RuntimeError("loopback: this container crashes on demand")'
CRASHED = ('Your container application crashed. This may be caused by errors in your scoring '
           'file\'s init() function.\n1. Please check the logs for your container instance: %s. '
           'From the AML SDK, you can run print(service.get_logs()) if you have service object to '
           'fetch the logs.')


class Containers:
    """The containers of all services, each in the care of its own thread."""

    def __init__(self, cloud):
        self.cloud = cloud
        self.changed = threading.Condition()
        self.stopping = False
        self._containers = {}

    def resume(self):
        """Start again the containers that ran when the stand-in was stopped."""
        for workspace in self.cloud.journal.table('workspaces').values():
            for document in self.cloud.table(workspace, 'services').values():
                if document['state'] != 'Failed':
                    self.replace(workspace, document['name'], document['operationId'])

    def replace(self, workspace, name, operation):
        with self.changed:
            old = self._containers.get((workspace['id'], name))
            container = _Container(self, workspace, name, operation)
            self._containers[workspace['id'], name] = container
        threading.Thread(target=container.live, args=(old,), daemon=True).start()

    def remove(self, workspace, name):
        with self.changed:
            container = self._containers.pop((workspace['id'], name), None)
        if container:
            container.end()

    def wait(self, condition, seconds):
        """Wait until `condition` holds, `seconds` at most."""
        with self.changed:
            self.changed.wait_for(lambda: condition() or self.stopping, seconds)

    def tell(self):
        with self.changed:
            self.changed.notify_all()

    def behind(self, host):
        """(service, port) of the healthy container that answers at that host name, or None."""
        for container in list(self._containers.values()):
            document = container.document()
            if document and document['host'].lower() == host and container.port:
                return document, container.port
        return None

    def log(self, workspace, name):
        container = self._containers.get((workspace['id'], name))
        path = container.log if container else os.path.join(self.cloud.folder, 'services', name,
                                                            'log.txt')
        if not os.path.exists(path):
            return ''
        with open(path, encoding='utf-8', errors='replace') as file:
            return file.read()

    def stop(self):
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        for container in list(self._containers.values()):
            container.end()


class _Container:
    """One deployment of one service, from its assets to the end of its process."""

    def __init__(self, containers, workspace, name, operation):
        self.containers = containers
        self.cloud = containers.cloud
        self.workspace = workspace
        self.name = name
        self.operation = operation
        self.folder = os.path.join(self.cloud.folder, 'services', name)
        self.log = os.path.join(self.folder, 'log.txt')
        self.port = None
        self._process = None
        self._over = threading.Event()
        self._gone = threading.Event()

    def document(self):
        return self.cloud.table(self.workspace, 'services').get(self.name)

    def end(self):
        """Stop the process and wait until it is gone."""
        self.port = None
        with self.containers.changed:
            self._over.set()
            if self._process:
                processes.kill(self._process)
        self._gone.wait(10)

    def live(self, old):
        """The container's whole life. The old one ends first, so nobody answers in between."""
        try:
            if old:
                old.end()
            command, environment, work = self._prepare()
            late = self.cloud.faults.take('late')
            if late:
                self._over.wait(late.get('seconds', 3))
            crashes = 0
            while not self._over.is_set() and crashes < CRASHES:
                port = _free_port()
                with self.containers.changed:
                    if self._over.is_set():
                        return
                    self._process = processes.start(
                        command + ([] if command[1] == '-c' else ['--port', str(port)]), work,
                        environment, self.log)
                if self._answers(port):
                    self.port = port
                    self._report('Healthy', 'Succeeded')
                    crashes = 0
                self._process.wait()
                self.port = None
                crashes += 1
            if not self._over.is_set():
                self._report('Failed', 'Failed', {
                    'code': 'AciDeploymentFailed', 'statusCode': 400,
                    'message': 'Aci Deployment failed with exception: ' + CRASHED % self.name,
                    'details': [{'code': 'CrashLoopBackOff', 'message': CRASHED % self.name}]})
        finally:
            self._gone.set()

    def _prepare(self):
        """(command, environment, folder), the folder laid out like /var/azureml-app."""
        document = self.document()
        request = document['environmentImageRequest']
        app = os.path.join(self.folder, 'azureml-app')
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(app, mode=0o700)
        for asset in request['assets']:
            origin, container, path = asset['url'][len('aml://artifact/'):].split('/', 2)
            blob = artifact_path(self.cloud, self.workspace, origin, container, path)
            if asset.get('unpack'):
                with tarfile.open(blob) as archive:
                    archive.extractall(app)
            else:
                shutil.copyfile(blob, os.path.join(app, os.path.basename(path)))
        models = os.path.join(app, 'azureml-models')
        for model in document['models']:
            unpack(self.cloud, self.workspace, model,
                   os.path.join(models, model['name'], str(model['version'])))
        only = document['models'][0] if len(document['models']) == 1 else None
        variables = (request.get('environment') or {}).get('environmentVariables') or {}
        environment = processes.surroundings(self.cloud.python, os.path.join(self.folder, 'home'))
        environment.update(self.cloud.proxy_environment())
        environment.update(variables)
        environment.update({
            'AML_APP_ROOT': app,
            'AZUREML_MODEL_DIR': os.path.join(models, only['name'], str(only['version']))
            if only else models, 'AZUREML_ENTRY_SCRIPT': variables.get('AZUREML_ENTRY_SCRIPT')
            or request['driverProgram']
        })
        if document['appInsightsEnabled']:
            environment.update({
                'AML_APP_INSIGHTS_ENABLED': 'true',
                'AML_APP_INSIGHTS_KEY': self.workspace['properties']['workspaceId']
            })
        if self.cloud.faults.take('crash-loop'):
            return [self.cloud.python, '-c', CRASH], environment, app
        return [
            self.cloud.python, '-m', 'azureml_inference_server_http.amlserver', '--entry_script',
            environment['AZUREML_ENTRY_SCRIPT']
        ], environment, app

    def _answers(self, port):
        """Whether the server's liveness probe answers before the process ends or the time is up."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None and not self._over.is_set():
            try:
                opener.open('http://127.0.0.1:%d/' % port, timeout=5).close()
                return True
            except OSError:
                self._over.wait(0.05)
        processes.kill(self._process)
        return False

    def _report(self, state, operation_state, error=None):
        """Write the new state down; only the first of a deployment ends its operation."""
        services = self.cloud.table(self.workspace, 'services')
        with self.cloud.journal.lock:
            document = services.get(self.name)
            if self._over.is_set() or not document or document['operationId'] != self.operation:
                return
            document.update(state=state, error=error, updatedTime=now())
            if state == 'Healthy':
                document.update(scoringUri='http://%s/score' % document['host'],
                                publicIp='127.0.0.1',
                                swaggerUri='http://%s/swagger.json' % document['host'])
            services[self.name] = document
            operations = self.cloud.table(self.workspace, 'operations')
            if operations[self.operation]['state'] not in OPERATION_ENDED:
                with operations.change(self.operation) as operation:
                    operation.update(state=operation_state, error=error, endTime=now())
        self.containers.tell()


def _free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
