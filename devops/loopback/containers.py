"""Scoring containers: Azure ML's own inference server with the uploaded script and the model.

Sources: the page "Azure Machine Learning inference HTTP server" for its variables and options;
azureml/core/model.py (InferenceConfig) for the assets, which Azure unpacks in /var/azureml-app;
the v1 deployment pages for AZUREML_MODEL_DIR: azureml-models/NAME/VERSION for one model, else
azureml-models. The second crash of a container that never answered fails its deployment. One that
answered and ends is not started again here, though ACI does that.
"""
import os
import shutil
import tarfile
import threading
import time
import traceback
import urllib.request

import urllib3

from . import processes
from .artifacts import artifact_path
from .data import seconds_to_image
from .models import unpack_model
from .routing import Answer
from .workspaces import now

SERVER = 'azureml_inference_server_http.amlserver'
START_SECONDS = 60
CRASHES = 2
HOP_BY_HOP = ('connection', 'keep-alive', 'proxy-connection', 'transfer-encoding',
              'content-length', 'host')
CRASH = 'raise RuntimeError("loopback: this container crashes on demand")'


def deployment_error(status, code, message):
    return {'code': 'AciDeploymentFailed', 'statusCode': status,
            'message': f'Aci Deployment failed with exception: {message}',
            'details': [{'code': code, 'message': message}]}


class Containers:
    """The containers of all ACI services, each in the care of its own thread."""

    def __init__(self, cloud):
        self.cloud = cloud
        # {(id of the workspace, name of the service): the container}
        self._containers = {}

    def replace(self, workspace, name, operation):
        """Put a new container in the place of the service's old one, if there is one."""
        old = self._containers.get((workspace['id'], name))
        container = _ServiceContainer(self.cloud, workspace, name, operation)
        self._containers[workspace['id'], name] = container
        container.start(old)

    def remove(self, workspace, name):
        self._containers.pop((workspace['id'], name)).end()

    def wait(self, operation, seconds):
        """Wait for the end of a deployment, until `seconds` have passed since its start at most."""
        for container in list(self._containers.values()):
            if container.operation == operation:
                container.told.wait(container.begun + seconds - time.monotonic())

    def container_behind(self, host):
        """(service, port) of the healthy container of that host name, or None."""
        for container in list(self._containers.values()):
            document, port = container.document(), container.port
            if port and document and document['publicFqdn'].lower() == host:
                return document, port
        return None

    def stop(self):
        for container in list(self._containers.values()):
            container.end()


class Container:
    """A container, from its assets to the end of its process.

    A kind of containers has the methods `unpack` and `report`, and says what it is in `title`.
    """

    def __init__(self, cloud, workspace, title, log):
        # Where it answers, while it is healthy.
        self.port = None
        self.begun = time.monotonic()
        # Whether it has become healthy or failed.
        self.told = threading.Event()
        self.title, self.log, self.over = title, log, threading.Event()
        self.cloud, self.workspace = cloud, workspace
        self._folder = os.path.dirname(log)
        self._process, self._lock, self._gone = None, threading.Lock(), threading.Event()

    def start(self, old=None):
        threading.Thread(target=self._live, args=(old,), daemon=True).start()

    def end(self):
        """Stop the process and wait until it is gone."""
        self.port = None
        with self._lock:
            self.over.set()
            if self._process:
                processes.kill(self._process)
        self._gone.wait(10)

    def _live(self, old):
        """The container's whole life. The old one ends first, so nobody answers in between."""
        try:
            if old:
                old.end()
            self._run(*self._prepare())
        except Exception:
            self.cloud.report(f'{self.title}: {traceback.format_exc()}')
            self.report('Failed', traceback.format_exc())
        finally:
            self.told.set()
            self._gone.set()

    def _run(self, command, folder, variables):
        for _ in range(CRASHES):
            port = processes.free_port()
            with self._lock:
                if self.over.is_set():
                    return
                self._process = processes.start(
                    command + ['--port', str(port)], folder, variables, self.log)
            if self._answers(port):
                self.port = port
                self.report('Healthy')
                self.told.set()
                self._process.wait()
                self.port = None
                return self.report('Unhealthy')
            processes.kill(self._process)
            self._process.wait()
        self.report('Failed')

    def _prepare(self):
        """(command, folder, variables), the folder laid out like /var/azureml-app."""
        app = os.path.join(self._folder, 'azureml-app')
        folder = os.path.join(app, 'azureml-models')
        shutil.rmtree(self._folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)
        root, script, models, environment, own, insights = self.unpack(app)
        for model in models:
            last = os.path.join(folder, model['name'], str(model['version']))
            unpack_model(self.cloud, self.workspace, model, last)
        variables = dict(
            processes.clean_environ(self.cloud.python, os.path.join(self._folder, 'home')),
            AZUREML_ENTRY_SCRIPT=script, **self.cloud.proxy_environment())
        variables.update(environment['environmentVariables'], **own)
        variables.update(AML_APP_ROOT=root,
                         AZUREML_MODEL_DIR=last if len(models) == 1 else folder)
        if insights:
            variables.update(AML_APP_INSIGHTS_ENABLED='true', AML_APP_INSIGHTS_KEY=self.workspace[
                'properties']['workspaceId'])
        self.over.wait(seconds_to_image(self.cloud, self.workspace, environment))
        late = self.cloud.faults.take('late', path=self.title)
        if late:
            self.over.wait(late['seconds'])
        arguments = ['-m', SERVER, '--entry_script', script]
        if self.cloud.faults.take('crash-loop', path=self.title):
            arguments = ['-c', CRASH]
        return [self.cloud.python] + arguments, root, variables

    def _answers(self, port):
        """Whether the liveness probe answers before the process ends or its time is up."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                opener.open(f'http://127.0.0.1:{port}/', timeout=5).close()
                return True
            except OSError:
                self.over.wait(0.05)
        return False


class _ServiceContainer(Container):
    """One deployment of an ACI service."""

    def __init__(self, cloud, workspace, name, operation):
        super().__init__(cloud, workspace, f'service {name}', log_path(cloud, workspace, name))
        self.operation, self._name = operation, name

    def document(self):
        return self.cloud.table(self.workspace, 'services').get(self._name)

    def unpack(self, app):
        """Lay out the script; what else there is to run: see _prepare."""
        document = self.document()
        request = document['environmentImageRequest']
        for asset in request['assets']:
            blob = artifact_path(self.cloud, self.workspace,
                                 asset['url'][len('aml://artifact/'):])
            if asset.get('unpack'):
                with tarfile.open(blob) as archive:
                    archive.extractall(app)
            else:
                shutil.copyfile(blob, os.path.join(app, os.path.basename(blob)))
        return (app, request['driverProgram'], document['models'], request['environment'], {},
                document['appInsightsEnabled'])

    def report(self, state, why=None):
        """Write the new state down, and end the operation if it is under way."""
        error = None
        if state == 'Failed':
            error = deployment_error(500, 'ServiceError', why) if why else deployment_error(
                400, 'CrashLoopBackOff', 'Your container application crashed. This may be caused '
                "by errors in your scoring file's init() function.\n1. Please check the logs for "
                f'your container instance: {self._name}. From the AML SDK, you can run '
                'print(service.get_logs()) if you have service object to fetch the logs.')
        services = self.cloud.table(self.workspace, 'services')
        operations = self.cloud.table(self.workspace, 'operations')
        with self.cloud.journal.lock:
            document = services.get(self._name)
            if self.over.is_set() or not document or document['operationId'] != self.operation:
                return
            document.update(state=state, error=error, updatedTime=now())
            if state == 'Healthy':
                url = 'http://' + document['publicFqdn']
                document.update(scoringUri=url + '/score', swaggerUri=url + '/swagger.json',
                                publicIp='127.0.0.1')
            services[self._name] = document
            with operations.change(self.operation) as operation:
                if operation['state'] == 'Running':
                    operation.update(state='Failed' if error else 'Succeeded', error=error,
                                     endTime=now())


def forward(call, port, seconds=60):
    """Hand a request on to the container at this port; its Answer. urllib3's HTTPError."""
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request(call.method, f'http://127.0.0.1:{port}{call.target}', body=call.body,
                              timeout=seconds, redirect=False, headers=_end_to_end(call.headers),
                              decode_content=False)
    return Answer(answer.data, answer.status, _end_to_end(answer.headers))


def _end_to_end(headers):
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


def log_path(cloud, workspace, name):
    """Where the log of a service is, once its container is being made."""
    return os.path.join(cloud.folder, 'services', workspace['name'], name, 'log.txt')
