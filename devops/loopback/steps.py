"""A step on its way from a node of a graph to processes: arguments, folders, variables, results.

Sources: the SDK's azureml/core/run.py for the variables that Run.get_context() reads, and
azureml/pipeline/core/_aeva_provider.py for arguments and parameters; "Save and write files for
training" of Azure ML v1 for outputs/ and logs/; MLOpsPython for the paths of pipeline data. A
container of a datastore is a folder here, so mounting it is naming it, unless the fault blob-mount
strikes. As on Azure, a step makes the folder of its pipeline data itself.

A step on several nodes is a process for each, in a folder of its own, started by MPI: "Distributed
GPU training" of Azure ML v1 for the variables of Open MPI, batch-compute-node-environment-variables
for AZ_BATCH_MASTER_NODE, whose port is Batch's own; azureml-examples, single-step/dask, for the
names of the logs, of which the SDK follows that of rank 0 (azureml/core/script_run.py). MASTER_PORT
is a free one here, where steps share a machine, and 6105 there.
"""
import collections
import json
import os
import shutil
import signal
import subprocess
import time

from . import computes, processes
from .artifacts import artifact_path, snapshot_files
from .data import CONTAINERS, seconds_to_image
from .history import ORIGIN, new_run
from .workspaces import account, api_root

FAILS = 'raise RuntimeError("loopback: this step fails on demand")'
USER_LOG = 'user_logs/std_log.txt'
MPI_LOG = 'user_logs/mpi_log.txt'
LAST_LINES = 3
# The SDK calls Open MPI so too: ScriptRunConfig, for each MpiConfiguration.
MPI = ('IntelMpi', 'OpenMpi')
# mpirun ends the other processes when one has ended badly; so long they may say why they end too.
MPI_SECONDS = 1
PAUSE_SECONDS = 0.05
# What the last node suffers when that of rank 0 has begun to speak; absent: it never starts.
SIGNALS = {'node-killed': signal.SIGKILL, 'node-slow': signal.SIGSTOP, 'node-absent': None}
BLOB_MOUNT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'blob_mount.py')


class StepFailed(Exception):
    """A step could not be started or ended badly; the text says why."""


# What runs on a node: its rank, and what processes.start takes.
Node = collections.namedtuple('Node', 'rank command folder environ log')


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
        self.nodes, self._fault = [], None
        self._by_mpi = self._configuration.get('communicator') in MPI
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
        """Put into self.nodes what is to be started at once, each with a snapshot of its own."""
        cluster = self._cloud.table(self._workspace, 'computes').get(self.target.lower())
        if cluster is None:
            raise StepFailed(f'Compute target {self.target} was not found.')
        # MpiConfiguration's own number counts for nothing (Azure/azure-sdk-for-python 25215).
        size = int(self._parameters.get('NodeCount') or self._configuration.get('nodeCount') or 1)
        refusal = computes.refusal(cluster, size)
        if size > 1 and not self._by_mpi:
            refusal = f"loopback starts several nodes by MPI: communicator is none of {MPI}"
        if self._by_mpi and self._configuration['mpi']['processCountPerNode'] != 1:
            refusal = 'loopback starts one process on a node: processCountPerNode is not 1'
        if refusal:
            raise StepFailed(refusal)
        if size > 1:
            self._fault = (self._cloud.faults.take(*SIGNALS, step=self.name) or {}).get('fault')
        snapshot = snapshot_files(self._cloud, self._workspace, self._module['StorageId'])
        command, port = [self._cloud.python] + self._words(), processes.free_port()
        for rank in range(size):
            home = os.path.join(self._home, str(rank))
            for name in ('outputs', 'logs'):
                os.makedirs(os.path.join(home, 'wd', name), mode=0o700)
            for name, blob in snapshot.items():
                _copy(blob, os.path.join(home, 'wd', name))
            environ, log = self._variables(home), USER_LOG
            if self._by_mpi:
                log = USER_LOG.replace('.', f'_process_{rank:0{len(str(size - 1))}}.')
                environ.update({
                    'OMPI_COMM_WORLD_RANK': str(rank), 'OMPI_COMM_WORLD_SIZE': str(size),
                    'OMPI_COMM_WORLD_LOCAL_RANK': '0', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
                    'AZ_BATCH_MASTER_NODE': '127.0.0.1:6000', 'MASTER_PORT': str(port)})
            if size > 1:
                # There each has a machine of its own; threads that wait for others spin.
                environ['OMP_NUM_THREADS'] = str(max(1, os.cpu_count() // size))
            log = self._artifact(log)
            os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
            self.nodes.append(Node(rank, command, os.path.join(home, 'wd'), environ, log))
        if self._fault == 'node-absent':
            del self.nodes[-1]
        time.sleep(seconds_to_image(
            self._cloud, self._workspace, self._configuration['environment']))

    def _words(self):
        """What follows the interpreter on each command line."""
        if self._cloud.faults.take('step-fails', step=self.name):
            return ['-c', FAILS]
        words = [self._parameters['Script']] + self._arguments()
        if self._cloud.faults.take('blob-mount', step=self.name):
            words = [BLOB_MOUNT, self._cloud.blobs.folder] + words
        return words

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

    def _variables(self, home):
        cloud, workspace = self._cloud, self._workspace
        variables = processes.clean_environ(cloud.python, os.path.join(home, 'home'))
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

    def wait(self, started):
        """Wait for the processes of self.nodes. StepFailed, with the last lines of a log, unless
        all exit codes are 0."""
        limit = self._parameters.get('MaxRunDurationSeconds')
        try:
            codes = self._exit_codes(started, float(limit) if limit else None)
        except subprocess.TimeoutExpired:
            raise StepFailed(f'Job exceeded its maximum run duration of {limit} seconds.')
        finally:
            for process in started:
                processes.kill(process)
                process.wait()
        logs = [node.log for node in self.nodes]
        for rank, code in enumerate(codes) if self._by_mpi else ():
            if code and code < 0:
                logs[rank] = self._artifact(MPI_LOG)
                with open(logs[rank], 'a', encoding='utf-8') as log:
                    log.write(f'mpirun noticed that process rank {rank} with PID '
                              f'{started[rank].pid} on node 127.0.0.1 exited on signal {-code}.\n')
        if any(codes):
            # The one that could say why before one that was killed.
            _, rank = min((code < 0, rank) for rank, code in enumerate(codes) if code)
            with open(logs[rank], encoding='utf-8', errors='replace') as file:
                tail = '\n'.join(file.read().strip().split('\n')[-LAST_LINES:])
            raise StepFailed(
                f"Execution failed. User process 'python' exited with status code {codes[rank]}. "
                f"Please check log file 'user_logs/{os.path.basename(logs[rank])}' for error "
                f'details. Error: {tail}')

    def _exit_codes(self, started, seconds):
        """Those of all processes. When one is not 0, None for what still runs a little later.

        Raises TimeoutExpired.
        """
        if len(started) == 1:
            return [started[0].wait(seconds)]
        end, fault = time.monotonic() + (seconds or float('inf')), SIGNALS.get(self._fault)
        failed = False
        while True:
            codes = [process.poll() for process in started]
            if None not in codes or failed and time.monotonic() > end:
                return codes
            if any(codes) and not failed:
                end, failed = min(end, time.monotonic() + MPI_SECONDS), True
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired('python', seconds)
            if fault and os.path.getsize(self.nodes[0].log):
                os.killpg(started[-1].pid, fault)
                fault = None
            time.sleep(PAUSE_SECONDS)

    def upload(self):
        """Keep outputs/ and logs/ of all nodes as artifacts; a name that is taken stays."""
        for node in self.nodes:
            for name in ('outputs', 'logs'):
                for folder, _, files in os.walk(os.path.join(node.folder, name)):
                    for file in files:
                        path = os.path.join(folder, file)
                        artifact = self._artifact(os.path.relpath(path, node.folder))
                        if not os.path.exists(artifact):
                            _copy(path, artifact)


def _copy(source, goal):
    os.makedirs(os.path.dirname(goal), mode=0o700, exist_ok=True)
    shutil.copyfile(source, goal)
