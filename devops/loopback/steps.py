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
from .data import CONTAINERS, seconds_to_image
from .history import ORIGIN, new_run
from .workspaces import account, api_root

FAILS = 'raise RuntimeError("loopback: this step fails on demand")'
USER_LOG = 'user_logs/std_log.txt'
LAST_LINES = 3
BLOB_MOUNT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'blob_mount.py')


class StepFailed(Exception):
    """A step could not be started or ended badly; the text says why."""


class Step:
    """One node of a submitted graph.

    values: those of the pipeline's parameters; before: {node: Step} of the steps that came before.
    """

    def __init__(self, cloud, workspace, parent, node, edges, values, before):
        self._cloud = cloud
        self._workspace = workspace
        self._parent = cloud.table(workspace, 'runs')[parent]
        self._module = cloud.table(workspace, 'modules')[node['ModuleId']]
        self._configuration = json.loads(node['Runconfig'])
        self._parameters = {}
        for given in node['ModuleParameters']:
            # It has a value of its own, or names a parameter of the pipeline.
            value = given.get('Value')
            self._parameters[given['Name']] = {'0': value, '1': values.get(value)}[
                given['ValueType']]
        self.name = self._module['Name']
        self.target = self._parameters['Target']
        self.run = self._new_run(node['Id'])
        self._home = os.path.join(cloud.folder, 'jobs', self.run)
        self._work = os.path.join(self._home, 'wd')
        self._outputs = {given['Name']: given for given in node['ModuleOutputSettings']}
        self._inputs = {}
        for edge in edges:
            source, goal = edge['SourceOutputPort'], edge['DestinationInputPort']
            if goal['NodeId'] == node['Id'] and source.get('NodeId') in before:
                self._inputs[goal['PortName']] = before[source['NodeId']], source['PortName']

    def _new_run(self, node):
        parent = self._parent['dto']
        row = new_run(
            self._cloud.table(self._workspace, 'runs'),
            {'name': self._parent['experiment'], 'experimentId': parent['experimentId']},
            status='Queued', parentRunId=parent['runId'], rootRunId=parent['runId'],
            runType='azureml.StepRun', name=self.name, displayName=self.name, target=self.target,
            tags={'azureml.nodeid': node, 'azureml.pipeline': parent['runId']}, properties={
                'azureml.runsource': 'azureml.StepRun', 'azureml.nodeid': node,
                'azureml.pipelinerunid': parent['runId'], 'azureml.moduleid': self._module['Id'],
                'azureml.moduleName': self.name, 'ComputeTargetType': 'AmlCompute',
                'StepType': self._module['StepType'],
                'ContentSnapshotId': self._module['StorageId']})
        return row['dto']['runId']

    def prepare(self):
        """(command, folder, variables, log file), with the snapshot unpacked in the folder."""
        if self.target.lower() not in self._cloud.table(self._workspace, 'computes'):
            raise StepFailed(f'Compute target {self.target} was not found.')
        for name in ('outputs', 'logs'):
            os.makedirs(os.path.join(self._work, name), mode=0o700)
        snapshot = snapshot_files(self._cloud, self._workspace, self._module['StorageId'])
        for name, blob in snapshot.items():
            _copy(blob, os.path.join(self._work, name))
        time.sleep(seconds_to_image(
            self._cloud, self._workspace, self._configuration['environment']))
        log = self._artifact(USER_LOG)
        os.makedirs(os.path.dirname(log), mode=0o700)
        if self._cloud.faults.take('step-fails', step=self.name):
            arguments = ['-c', FAILS]
        else:
            arguments = [self._parameters['Script']] + self._arguments()
            if self._cloud.faults.take('blob-mount', step=self.name):
                arguments = [BLOB_MOUNT, self._cloud.blobs.folder] + arguments
        return [self._cloud.python] + arguments, self._work, self._variables(), log

    def _artifact(self, path):
        return artifact_path(self._cloud, self._workspace, f'{ORIGIN}/dcid.{self.run}/{path}')

    def _arguments(self):
        find = {'Literal': str, 'Parameter': self._parameters.get, 'Output': self.output,
                'Input': self._input}
        return [str(find[argument['ValueType']](argument['Value']))
                for argument in self._module['StructuredInterface']['Arguments']]

    def output(self, name):
        """The folder of the pipeline data; the step makes it."""
        given = self._outputs[name]
        if given['DataStoreMode'] != 'mount':
            raise StepFailed(f"loopback only mounts outputs; {name} is {given['DataStoreMode']}")
        folder = self._cloud.blobs.path(
            account(self._workspace), CONTAINERS[given['DataStoreName']],
            f'azureml/{self.run}/{name}')
        os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        return folder

    def _input(self, name):
        if name not in self._inputs:
            raise StepFailed(f'loopback only knows inputs that are pipeline data; {name} is not')
        step, output = self._inputs[name]
        folder = step.output(output)
        if not os.path.exists(folder):
            raise StepFailed(f'The input {name} is missing: the step before wrote nothing.')
        return folder

    def _variables(self):
        cloud, workspace = self._cloud, self._workspace
        variables = processes.clean_environ(cloud.python, os.path.join(self._home, 'home'))
        variables.update(cloud.proxy_environment())
        variables.update(self._configuration['environment']['environmentVariables'])
        variables.update(self._configuration['environmentVariables'])
        _, _, subscription, _, group = workspace['id'].split('/')[:5]
        variables.update({
            'AZUREML_RUN_ID': self.run, 'AZUREML_ROOT_RUN_ID': self._parent['dto']['runId'],
            'AZUREML_RUN_TOKEN': cloud.tokens.issue(),
            'AZUREML_RUN_TOKEN_EXPIRY': str(cloud.tokens.expiry()),
            'AZUREML_ARM_SUBSCRIPTION': subscription, 'AZUREML_ARM_RESOURCEGROUP': group,
            'AZUREML_ARM_WORKSPACE_NAME': workspace['name'],
            'AZUREML_ARM_PROJECT_NAME': self._parent['experiment'],
            'AZUREML_EXPERIMENT_ID': self._parent['dto']['experimentId'],
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


def _copy(source, goal):
    os.makedirs(os.path.dirname(goal), mode=0o700, exist_ok=True)
    shutil.copyfile(source, goal)
