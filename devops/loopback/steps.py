"""A step on its way from a node of a graph to a process: arguments, folders, variables, results.

Sources: the SDK's azureml/core/run.py for the variables that Run.get_context() reads, and
azureml/pipeline/core/_aeva_provider.py for arguments and parameters; "Save and write files for
training" of Azure ML v1 for outputs/ and logs/; MLOpsPython for the paths of pipeline data. A
container of a datastore is a folder here, so mounting it is naming it, unless the fault blob-mount
strikes. As on Azure, a step makes the folder of its pipeline data itself.
"""
import json
import os
import shutil
import subprocess
import time

from . import processes
from .artifacts import artifact_path, snapshot_files
from .data import CONTAINERS, DEFAULT, seconds_to_image
from .history import ORIGIN, new_run
from .workspaces import account, api_root

FAULTS = {
    'step-fails': 'raise RuntimeError("loopback: this step fails on demand")',
    'step-never-ends':
        'import time; print("loopback: this step never ends", flush=True); time.sleep(1e8)'}
USER_LOG = 'user_logs/std_log.txt'
LAST_LINES = 3
BLOB_MOUNT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'blob_mount.py')


class StepFailed(Exception):
    """A step could not be started or ended badly; the text says why."""


class Step:
    """One node of a submitted graph, with the values of the pipeline's parameters."""

    def __init__(self, cloud, workspace, parent, graph, node, values):
        self._cloud = cloud
        self._workspace = workspace
        self._runs = cloud.table(workspace, 'runs')
        self._parent = parent
        self._graph = graph
        self._node = node
        self._module = cloud.table(workspace, 'modules')[node['ModuleId']]
        self._shape = self._module['StructuredInterface']
        self._parameters = {}
        for given in node.get('ModuleParameters') or []:
            self._parameters[given['Name']] = _value(given, values)
        self.name = self._module['Name']
        self.target = self._parameters.get('Target')
        self.run = self._new_run()

    def _new_run(self):
        experiment = self._cloud.table(self._workspace, 'experiments')[
            self._runs[self._parent]['experiment']]
        row = new_run(
            self._runs, experiment, status='Queued', parentRunId=self._parent,
            rootRunId=self._parent, runType='azureml.StepRun', name=self.name,
            displayName=self.name, target=self.target,
            tags={'azureml.nodeid': self._node['Id'], 'azureml.pipeline': self._parent},
            properties={
                'azureml.runsource': 'azureml.StepRun', 'azureml.nodeid': self._node['Id'],
                'azureml.pipelinerunid': self._parent, 'azureml.moduleid': self._module['Id'],
                'azureml.moduleName': self.name, 'ComputeTargetType': 'AmlCompute',
                'StepType': self._module.get('StepType') or 'PythonScriptStep',
                'ContentSnapshotId': self._module['StorageId']})
        return row['dto']['runId']

    def _siblings(self):
        return [row['dto'] for row in self._runs.values()
                if row['dto']['parentRunId'] == self._parent]

    def prepare(self):
        """(command, folder, variables, log file), with the snapshot unpacked in the folder."""
        computes = self._cloud.table(self._workspace, 'computes')
        if not self.target or self.target.lower() not in computes:
            raise StepFailed(f'Compute target {self.target} was not found.')
        home = os.path.join(self._folder, 'home')
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ('outputs', 'logs'):
            os.makedirs(os.path.join(self._work, name), mode=0o700)
        snapshot = snapshot_files(self._cloud, self._workspace, self._module['StorageId'])
        for name, blob in snapshot.items():
            _copy(blob, os.path.join(self._work, name))
        configuration = json.loads(self._node.get('Runconfig') or '{}')
        time.sleep(seconds_to_image(self._cloud, self._workspace,
                                    configuration.get('environment') or {}))
        log = self._artifact(USER_LOG)
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        fault = self._cloud.faults.take(*FAULTS, step=self.name)
        if fault:
            arguments = ['-c', FAULTS[fault['fault']]]
        else:
            arguments = [self._parameters['Script']] + self._arguments()
            if self._cloud.faults.take('blob-mount', step=self.name):
                arguments = [BLOB_MOUNT, self._cloud.blobs.folder] + arguments
        return [self._cloud.python] + arguments, self._work, self._variables(home), log

    @property
    def _folder(self):
        return os.path.join(self._cloud.folder, 'jobs', self.run)

    @property
    def _work(self):
        return os.path.join(self._folder, 'wd')

    def _artifact(self, path):
        return artifact_path(
            self._cloud, self._workspace, ORIGIN, 'dcid.' + self.run, path)

    def _arguments(self):
        folders = dict(self._outputs(), **self._inputs())
        given = []
        for argument in self._shape.get('Arguments') or []:
            kind, value = argument['ValueType'], argument['Value']
            if kind == 'Literal':
                given.append(value)
            elif kind == 'Parameter':
                given.append(self._parameters.get(value))
            elif kind in ('Input', 'Output'):
                given.append(folders[value])
            else:
                raise StepFailed(f'loopback does not know arguments like {kind} {value}')
        return [str(one) for one in given if one is not None]

    def _outputs(self):
        """{output: folder} of the step's own pipeline data."""
        settings = {one['Name']: one for one in self._node.get('ModuleOutputSettings') or []}
        rows = {}
        for port in self._shape.get('Outputs') or []:
            if port.get('SkipProcessing'):
                continue
            given = dict(port, **settings.get(port['Name'], {}))
            datastore = given.get('DataStoreName') or DEFAULT
            if given.get('DataStoreMode', 'mount') != 'mount' or datastore not in CONTAINERS:
                raise StepFailed(f"loopback only mounts outputs from {' or '.join(CONTAINERS)}; "
                                 f"{port['Name']} is {given.get('DataStoreMode')} from {datastore}")
            rows[port['Name']] = {
                'datastore': datastore, 'path': f"azureml/{self.run}/{port['Name']}"}
        with self._runs.change(self.run) as row:
            row['outputs'] = rows
        folders = {name: self._path_of(row) for name, row in rows.items()}
        for folder in folders.values():
            os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        return folders

    def _path_of(self, row):
        return self._cloud.blobs.path(
            account(self._workspace), CONTAINERS[row['datastore']], row['path'])

    def _sources(self):
        """{input: where an earlier step has left it}."""
        skipped = {port['Name'] for port in self._shape.get('Inputs') or []
                   if port.get('SkipProcessing')}
        runs = {dto['properties']['azureml.nodeid']: self._runs[dto['runId']]
                for dto in self._siblings()}
        found = {}
        for edge in self._graph.get('Edges') or []:
            goal, source = edge['DestinationInputPort'], edge['SourceOutputPort']
            if goal.get('NodeId') == self._node['Id'] and goal['PortName'] not in skipped:
                if source['NodeId'] not in runs:
                    raise StepFailed('loopback only knows inputs that are pipeline data; '
                                     f"{goal['PortName']} is not")
                found[goal['PortName']] = runs[source['NodeId']]['outputs'][source['PortName']]
        return found

    def _inputs(self):
        """{input: folder} of pipeline data of earlier steps."""
        folders = {name: self._path_of(row) for name, row in self._sources().items()}
        for name, folder in folders.items():
            if not os.path.exists(folder):
                raise StepFailed(f'The input {name} is missing: the step before wrote nothing.')
        return folders

    def _variables(self, home):
        cloud, workspace = self._cloud, self._workspace
        parent = self._runs[self._parent]
        variables = processes.clean_environ(cloud.python, home)
        variables.update(cloud.proxy_environment())
        configuration = json.loads(self._node.get('Runconfig') or '{}')
        for source in (configuration.get('environment') or {}, configuration):
            variables.update(source.get('environmentVariables') or {})
        _, _, subscription, _, group = workspace['id'].split('/')[:5]
        variables.update({
            'AZUREML_RUN_ID': self.run, 'AZUREML_ROOT_RUN_ID': self._parent,
            'AZUREML_RUN_TOKEN': cloud.tokens.issue(),
            'AZUREML_RUN_TOKEN_EXPIRY': str(cloud.tokens.expiry()),
            'AZUREML_ARM_SUBSCRIPTION': subscription, 'AZUREML_ARM_RESOURCEGROUP': group,
            'AZUREML_ARM_WORKSPACE_NAME': workspace['name'],
            'AZUREML_ARM_PROJECT_NAME': parent['experiment'],
            'AZUREML_EXPERIMENT_ID': parent['dto']['experimentId'],
            'AZUREML_WORKSPACE_ID': workspace['properties']['workspaceId'],
            'AZUREML_WORKSPACE_SCOPE': workspace['id'],
            'AZUREML_SERVICE_ENDPOINT': api_root(workspace),
            'AZUREML_DISCOVERY_SERVICE_ENDPOINT': workspace['properties']['discoveryUrl']})
        return variables

    def wait(self, process):
        """Wait for the end. StepFailed, with the log's last lines, unless the exit code is 0."""
        limit = self._parameters.get('MaxRunDurationSeconds')
        try:
            code = process.wait(float(limit) if limit else None)
        except subprocess.TimeoutExpired:
            raise StepFailed(f'Job exceeded its maximum run duration of {limit} seconds.')
        finally:
            processes.kill(process)
            process.wait()
        if code:
            with open(self._artifact(USER_LOG), encoding='utf-8', errors='replace') as log:
                tail = '\n'.join(log.read().strip().split('\n')[-LAST_LINES:])
            raise StepFailed(
                f"Execution failed. User process 'python' exited with status code {code}. Please "
                f"check log file '{USER_LOG}' for error details. Error: {tail}")

    def upload(self):
        """Keep outputs/ and logs/ as artifacts of the run; a name that is taken stays."""
        for name in ('outputs', 'logs'):
            for folder, _, files in os.walk(os.path.join(self._work, name)):
                for file in files:
                    path = os.path.join(folder, file)
                    artifact = self._artifact(os.path.relpath(path, self._work))
                    if not os.path.exists(artifact):
                        _copy(path, artifact)


def _value(given, values):
    """The value of a module's parameter: its own, or that of a parameter of the pipeline."""
    kind = str(given.get('ValueType', '0'))
    if kind == '0':
        return given.get('Value')
    if kind == '1':
        return values.get(given['Value'])
    raise StepFailed(f'loopback does not know parameters of type {kind}')


def _copy(source, goal):
    os.makedirs(os.path.dirname(goal), mode=0o700, exist_ok=True)
    shutil.copyfile(source, goal)
