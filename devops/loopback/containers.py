"""Scoring containers: Azure ML's own inference server with the uploaded script and the model.

Sources: the page "Azure Machine Learning inference HTTP server" for its variables and options;
azureml/core/model.py (InferenceConfig) for the assets, which Azure unpacks in /var/azureml-app;
the v1 deployment pages for AZUREML_MODEL_DIR: azureml-models/NAME/VERSION for one model, else
azureml-models. The second crash of a container that never answered fails its deployment. One that
answered and ends is not started again here, though ACI does that.
"""
import os
import shutil
import socket
import tarfile
import threading
import time
import traceback
import urllib.request

from . import processes
from .artifacts import artifact_path
from .data import seconds_to_image
from .models import unpack_model
from .workspaces import now

SERVER = 'azureml_inference_server_http.amlserver'
START_SECONDS = 60
CRASHES = 2
CRASH = 'raise RuntimeError("loopback: this container crashes on demand")'


def deployment_error(status, code, message):
    return {'code': 'AciDeploymentFailed', 'statusCode': status,
            'message': f'Aci Deployment failed with exception: {message}',
            'details': [{'code': code, 'message': message}]}


class Containers:
    """The containers of all services, each in the care of its own thread."""

    def __init__(self, cloud):
        self.cloud = cloud
        # {(id of the workspace, name of the service): the container}
        self._containers = {}

    def replace(self, workspace, name, operation):
        """Put a new container in the place of the service's old one, if there is one."""
        old = self._containers.get((workspace['id'], name))
        container = _Container(self.cloud, workspace, name, operation)
        self._containers[workspace['id'], name] = container
        threading.Thread(target=container.live, args=(old,), daemon=True).start()

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


class _Container:
    """One deployment of a service, from its assets to the end of its process."""

    def __init__(self, cloud, workspace, name, operation):
        # Where it answers, while it is healthy.
        self.port = None
        self.operation, self.begun = operation, time.monotonic()
        # Whether the operation has ended.
        self.told = threading.Event()
        self._cloud, self._workspace, self._name = cloud, workspace, name
        self._log = log_path(cloud, workspace, name)
        self._folder = os.path.dirname(self._log)
        self._process, self._lock = None, threading.Lock()
        self._over, self._gone = threading.Event(), threading.Event()

    def document(self):
        return self._cloud.table(self._workspace, 'services').get(self._name)

    def end(self):
        """Stop the process and wait until it is gone."""
        self.port = None
        with self._lock:
            self._over.set()
            if self._process:
                processes.kill(self._process)
        self._gone.wait(10)

    def live(self, old):
        """The container's whole life. The old one ends first, so nobody answers in between."""
        try:
            if old:
                old.end()
            self._run(*self._prepare())
        except Exception:
            self._cloud.report(f'service {self._name}: {traceback.format_exc()}')
            self._report('Failed', deployment_error(500, 'ServiceError', traceback.format_exc()))
        finally:
            self._gone.set()

    def _run(self, command, folder, variables):
        for _ in range(CRASHES):
            port = _free_port()
            with self._lock:
                if self._over.is_set():
                    return
                self._process = processes.start(
                    command + ['--port', str(port)], folder, variables, self._log)
            if self._answers(port):
                self.port = port
                self._report('Healthy')
                self._process.wait()
                self.port = None
                return self._report('Unhealthy')
            processes.kill(self._process)
            self._process.wait()
        self._report('Failed', deployment_error(
            400, 'CrashLoopBackOff', 'Your container application crashed. This may be caused by '
            "errors in your scoring file's init() function.\n1. Please check the logs for your "
            f'container instance: {self._name}. From the AML SDK, you can run '
            'print(service.get_logs()) if you have service object to fetch the logs.'))

    def _prepare(self):
        """(command, folder, variables), the folder laid out like /var/azureml-app."""
        document = self.document()
        request = document['environmentImageRequest']
        app = os.path.join(self._folder, 'azureml-app')
        models = os.path.join(app, 'azureml-models')
        shutil.rmtree(self._folder, ignore_errors=True)
        os.makedirs(models, mode=0o700)
        for asset in request['assets']:
            blob = artifact_path(self._cloud, self._workspace,
                                 asset['url'][len('aml://artifact/'):])
            if asset.get('unpack'):
                with tarfile.open(blob) as archive:
                    archive.extractall(app)
            else:
                shutil.copyfile(blob, os.path.join(app, os.path.basename(blob)))
        for model in document['models']:
            model_folder = os.path.join(models, model['name'], str(model['version']))
            unpack_model(self._cloud, self._workspace, model, model_folder)
        variables = dict(
            processes.clean_environ(self._cloud.python, os.path.join(self._folder, 'home')),
            AZUREML_ENTRY_SCRIPT=request['driverProgram'], **self._cloud.proxy_environment())
        variables.update(request['environment']['environmentVariables'])
        variables.update(AML_APP_ROOT=app, AZUREML_MODEL_DIR=model_folder if len(
            document['models']) == 1 else models)
        if document['appInsightsEnabled']:
            variables.update(AML_APP_INSIGHTS_ENABLED='true', AML_APP_INSIGHTS_KEY=self._workspace[
                'properties']['workspaceId'])
        self._over.wait(seconds_to_image(self._cloud, self._workspace, request['environment']))
        late = self._cloud.faults.take('late')
        if late:
            self._over.wait(late['seconds'])
        arguments = ['-m', SERVER, '--entry_script', variables['AZUREML_ENTRY_SCRIPT']]
        if self._cloud.faults.take('crash-loop'):
            arguments = ['-c', CRASH]
        return [self._cloud.python] + arguments, app, variables

    def _answers(self, port):
        """Whether the liveness probe answers before the process ends or its time is up."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                opener.open(f'http://127.0.0.1:{port}/', timeout=5).close()
                return True
            except OSError:
                self._over.wait(0.05)
        return False

    def _report(self, state, error=None):
        """Write the new state down, and end the operation if it is under way."""
        services = self._cloud.table(self._workspace, 'services')
        operations = self._cloud.table(self._workspace, 'operations')
        with self._cloud.journal.lock:
            document = services.get(self._name)
            if self._over.is_set() or not document or document['operationId'] != self.operation:
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
        self.told.set()


def log_path(cloud, workspace, name):
    """Where the log of a service is, once its container is being made."""
    return os.path.join(cloud.folder, 'services', workspace['name'], name, 'log.txt')


def _free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
