"""Execution of submitted pipelines: every step is a real process in a copy of its uploaded
snapshot.

Sources: the SDK's azureml/core/run.py for the variables that Run.get_context() reads; "Track and
log" and "Compute target" pages of Azure ML v1 for outputs/, logs and run states; MLOpsPython for
the paths of pipeline data. A container of a datastore is a folder here, so mounting it is naming
it. As on Azure, a step makes the folder of its pipeline data itself. Steps of one pipeline run
one after the other, pipelines side by side.
"""
import json
import os
import shutil
import threading

from . import processes
from .data import CONTAINERS, DEFAULT
from .history import ENDED, new_run, set_status
from .storage import account, artifact_path, snapshot_files

CANCEL_WORDS = 'Canceled', 'CancelRequested'
FAIL = 'raise RuntimeError("loopback: this step fails on demand")'
NEVER_END = 'import time; print("loopback: this step never ends", flush=True); time.sleep(1e8)'
USER_LOG = 'user_logs/std_log.txt'


class StepFailed(Exception):
    """A step could not be started or ended badly; the text says why."""


class Jobs:
    """The pipelines under way, each in its own thread."""

    def __init__(self, cloud):
        self._cloud = cloud
        self._threads = {}
        self._processes = {}
        self._busy = {}
        self._changed = threading.Condition()
        self.stopping = False

    def resume(self):
        """Go on with the pipelines that were under way when the stand-in was stopped; a
        broken-off step starts anew."""
        for workspace in self._cloud.journal.table('workspaces').values():
            for row in self._cloud.table(workspace, 'runs').values():
                if row['dto']['runType'] == 'azureml.PipelineRun' and row['dto'][
                        'status'] not in ENDED:
                    self.start(workspace, row['dto']['runId'])

    def start(self, workspace, run):
        thread = threading.Thread(target=self._run_pipeline, args=(workspace, run), daemon=True)
        self._threads[run] = thread
        thread.start()

    def cancel(self, workspace, run):
        """Ask the run to end. Its process is killed at once."""
        runs = self._cloud.table(workspace, 'runs')
        for row in runs.values():
            if run in (row['dto']['runId'],
                       row['dto']['parentRunId']) and row['dto']['status'] not in ENDED:
                set_status(runs, row['dto']['runId'], 'CancelRequested')
                if row['dto']['runId'] in self._processes:
                    processes.kill(self._processes[row['dto']['runId']])
        with self._changed:
            self._changed.notify_all()

    def nodes(self, compute):
        """How many nodes of the compute are busy."""
        return self._busy.get(compute, 0)

    def stop(self):
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        for process in list(self._processes.values()):
            processes.kill(process)
        for thread in list(self._threads.values()):
            thread.join(10)

    def _run_pipeline(self, workspace, run):
        runs = self._cloud.table(workspace, 'runs')
        facts = self._cloud.table(workspace, 'pipeline-runs')[run]
        kept = self._cloud.table(workspace, 'graphs')[facts['GraphId']]
        graph, go_on = kept['graph'], kept['go_on']
        values = {
            one['Name']: one.get('DefaultValue')
            for one in kept['interface'].get('Parameters') or []
        }
        values.update(facts['ParameterAssignments'] or {})
        failed = []
        try:
            for node in _in_order(graph):
                if runs[run]['dto']['status'] in CANCEL_WORDS or failed and not go_on:
                    break
                set_status(runs, run, 'Running')
                step = _Step(self._cloud, workspace, run, graph, node, values)
                if not self._run_step(step):
                    failed.append(step.name)
                if self.stopping:
                    return
            if runs[run]['dto']['status'] in CANCEL_WORDS:
                set_status(runs, run, 'Canceled')
            elif failed:
                set_status(
                    runs, run, 'Failed',
                    _error(
                        'UserError', 'Pipeline has failed child jobs. Failed nodes: /%s. For '
                        'more details and logs, please go to the job detail page and check '
                        'the child jobs.' % ', /'.join(failed)))
            else:
                set_status(runs, run, 'Completed')
        except StepFailed as reason:
            set_status(runs, run, 'Failed', _error('ServiceError', str(reason)))

    def _run_step(self, step):
        """Whether the step was completed; the run's row says the rest."""
        runs = self._cloud.table(step.workspace, 'runs')
        if step.find():
            return runs[step.run]['dto']['status'] == 'Completed'
        try:
            self._wait_for_capacity(runs, step.run)
            command, folder, environment, log = step.prepare()
            with self._changed:
                if self.stopping or runs[step.run]['dto']['status'] in CANCEL_WORDS:
                    raise StepFailed('canceled before it started')
                process = processes.start(command, folder, environment, log)
                self._processes[step.run] = process
                self._busy[step.target] = self._busy.get(step.target, 0) + 1
            set_status(runs, step.run, 'Running')
            try:
                step.wait(process)
            finally:
                self._busy[step.target] -= 1
                del self._processes[step.run]
                if not self.stopping:
                    step.upload()
        except StepFailed as reason:
            if not self.stopping:
                canceled = runs[step.run]['dto']['status'] in CANCEL_WORDS
                set_status(runs, step.run, 'Canceled' if canceled else 'Failed',
                           None if canceled else _error('UserError', str(reason)))
            return False
        if not self.stopping:
            set_status(runs, step.run, 'Completed')
        return True

    def _wait_for_capacity(self, runs, run):
        """Stay queued while the fault no-capacity lasts."""
        with self._changed:
            while self._cloud.faults.capacity_errors() and not self.stopping \
                    and runs[run]['dto']['status'] not in CANCEL_WORDS:
                self._changed.wait(0.2)


class _Step:
    """One node of a submitted graph on its way to becoming a process."""

    def __init__(self, cloud, workspace, parent, graph, node, values):
        self.cloud = cloud
        self.workspace = workspace
        self.parent = parent
        self.graph = graph
        self.node = node
        self.values = values
        self.module = cloud.table(workspace, 'modules')[node['ModuleId']]
        self.name = self.module['Name']
        self.parameters = {
            one['Name']: self._value(one)
            for one in (node.get('ModuleParameters') or []) +
            (node.get('ModuleMetadataParameters') or [])
        }
        self.target = self.parameters.get('Target')
        self.run = None

    def _value(self, assignment):
        kind = str(assignment.get('ValueType', '0'))
        if kind in ('0', 'Literal'):
            return assignment.get('Value')
        if kind in ('1', 'GraphParameterName'):
            return self.values.get(assignment['Value'])
        raise StepFailed('loopback does not know parameters of type %s' % kind)

    def find(self):
        """Make the run of this step; True when an earlier life of the stand-in has ended it."""
        runs = self.cloud.table(self.workspace, 'runs')
        for row in runs.values():
            if row['dto']['parentRunId'] == self.parent and row['dto']['properties'][
                    'azureml.nodeid'] == self.node['Id']:
                self.run = row['dto']['runId']
                return row['dto']['status'] in ENDED
        parent = runs[self.parent]
        row = new_run(
            runs,
            self.cloud.table(self.workspace, 'experiments')[parent['experiment']], status='Queued',
            parentRunId=self.parent, rootRunId=self.parent, runType='azureml.StepRun',
            name=self.name, displayName=self.name, target=self.target,
            tags={'azureml.nodeid': self.node['Id'], 'azureml.pipeline': self.parent}, properties={
                'azureml.runsource': 'azureml.StepRun', 'azureml.nodeid': self.node['Id'],
                'azureml.pipelinerunid': self.parent, 'azureml.moduleid': self.module['Id'],
                'azureml.moduleName': self.name, 'StepType': self.module.get('StepType')
                or 'PythonScriptStep', 'ContentSnapshotId': self.module['StorageId'],
                'ComputeTargetType': 'AmlCompute'
            })
        self.run = row['dto']['runId']
        return False

    def prepare(self):
        """(command, folder, environment, log file), with the snapshot unpacked."""
        if not self.target or self.target.lower() not in self.cloud.table(
                self.workspace, 'computes'):
            raise StepFailed('Compute target %s was not found.' % self.target)
        self.folder = os.path.join(self.cloud.folder, 'jobs', self.run)
        work = os.path.join(self.folder, 'wd')
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ('outputs', 'logs'):
            os.makedirs(os.path.join(work, name), mode=0o700)
        for name, blob in snapshot_files(self.cloud, self.workspace,
                                         self.module['StorageId']).items():
            path = os.path.join(work, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copyfile(blob, path)
        log = self._artifact(USER_LOG)
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        fault = self.cloud.faults.step(self.name)
        arguments = ['-c', {'step-fails': FAIL, 'step-never-ends': NEVER_END}[fault]
                     ] if fault else [self.parameters['Script']] + self._arguments()
        return [self.cloud.python] + arguments, work, self._environment(), log

    def _arguments(self):
        places = dict(self._outputs(), **self._inputs())
        given = []
        for argument in self.module['StructuredInterface'].get('Arguments') or []:
            kind, value = str(argument['ValueType']), argument['Value']
            if kind in ('Literal', '0'):
                given.append(value)
            elif kind in ('Parameter', '1'):
                given.append(self.parameters.get(value))
            elif kind in ('Input', 'Output', '2', '3'):
                given.append(places[value])
            else:
                raise StepFailed('loopback does not know arguments of type %s' % kind)
        return [str(one) for one in given if one is not None]

    def _outputs(self):
        """{output name: folder} of the step's pipeline data."""
        found = {}
        rows = {}
        settings = {one['Name']: one for one in self.node.get('ModuleOutputSettings') or []}
        for port in self.module['StructuredInterface'].get('Outputs') or []:
            setting = settings.get(port['Name'], {})
            if port.get('SkipProcessing'):
                continue
            datastore = setting.get('DataStoreName') or port.get('DataStoreName') or DEFAULT
            mode = setting.get('DataStoreMode') or port.get('DataStoreMode') or 'mount'
            if str(mode).lower() not in ('mount', '0') or datastore not in CONTAINERS:
                raise StepFailed(
                    'loopback only knows outputs that are mounted from %s; %s is %s from %s' %
                    (', '.join(CONTAINERS), port['Name'], mode, datastore))
            place = 'azureml/%s/%s' % (self.run, port['Name'])
            rows[port['Name']] = {'datastore': datastore, 'path': place}
            found[port['Name']] = self.cloud.blobs.path(account(self.workspace),
                                                        CONTAINERS[datastore], place)
            os.makedirs(os.path.dirname(found[port['Name']]), mode=0o700, exist_ok=True)
        with self.cloud.table(self.workspace, 'runs').change(self.run) as row:
            row['outputs'] = rows
        return found

    def _inputs(self):
        """{input name: folder} of what earlier steps have left."""
        runs = {
            row['dto']['properties'].get('azureml.nodeid'): row
            for row in self.cloud.table(self.workspace, 'runs').values()
            if row['dto']['parentRunId'] == self.parent
        }
        skipped = {port['Name'] for port in self.module['StructuredInterface'].get('Inputs') or []
                   if port.get('SkipProcessing')}
        found = {}
        for edge in self.graph.get('Edges') or []:
            goal, source = edge['DestinationInputPort'], edge['SourceOutputPort']
            if goal.get('NodeId') != self.node['Id'] or goal['PortName'] in skipped:
                continue
            row = runs.get(source['NodeId'])
            place = (row or {}).get('outputs', {}).get(source['PortName'])
            if place is None:
                raise StepFailed(
                    'loopback does not know the input %s: only pipeline data of earlier steps' %
                    goal['PortName'])
            path = self.cloud.blobs.path(account(self.workspace), CONTAINERS[place['datastore']],
                                         place['path'])
            if not os.path.exists(path):
                raise StepFailed('The input %s is missing: step %s wrote nothing to %s.' % (
                    goal['PortName'], row['dto']['name'], place['path']))
            found[goal['PortName']] = path
        return found

    def _environment(self):
        cloud, workspace = self.cloud, self.workspace
        parent = cloud.table(workspace, 'runs')[self.parent]
        root = 'https://%s.api.azureml.ms' % workspace['location']
        environment = processes.surroundings(cloud.python, os.path.join(self.folder, 'home'))
        environment.update(cloud.proxy_environment())
        configuration = json.loads(self.node.get('Runconfig') or '{}')
        for place in (configuration.get('environment') or {}, configuration):
            environment.update(place.get('environmentVariables') or {})
        environment.update({
            'AZUREML_RUN_ID': self.run, 'AZUREML_ROOT_RUN_ID': self.parent,
            'AZUREML_RUN_TOKEN': cloud.tokens.issue(), 'AZUREML_RUN_TOKEN_EXPIRY': str(
                cloud.tokens.expiry()), 'AZUREML_ARM_SUBSCRIPTION': workspace['id'].split('/')[2],
            'AZUREML_ARM_RESOURCEGROUP': workspace['id'].split('/')[4],
            'AZUREML_ARM_WORKSPACE_NAME': workspace['name'],
            'AZUREML_ARM_PROJECT_NAME': parent['experiment'],
            'AZUREML_EXPERIMENT_ID': parent['dto']['experimentId'],
            'AZUREML_WORKSPACE_ID': workspace['properties']['workspaceId'],
            'AZUREML_WORKSPACE_SCOPE': workspace['id'], 'AZUREML_SERVICE_ENDPOINT': root,
            'AZUREML_DISCOVERY_SERVICE_ENDPOINT': root + '/discovery',
            'AZUREML_CONTEXT_MANAGER_TRACKUSERERROR': 'null'
        })
        return environment

    def wait(self, process):
        """Wait for the end. StepFailed, with the last lines of the log, unless the exit code is
        0."""
        limit = self.parameters.get('MaxRunDurationSeconds')
        try:
            code = process.wait(float(limit) if limit else None)
        except processes.subprocess.TimeoutExpired:
            processes.kill(process)
            process.wait()
            raise StepFailed('Job exceeded its maximum run duration of %s seconds.' % limit)
        if code:
            with open(self._artifact(USER_LOG), encoding='utf-8', errors='replace') as log:
                tail = log.read()[-2000:].strip().split('\n')[-3:]
            raise StepFailed(
                'Execution failed. User process \'python\' exited with status code %d. Please '
                'check log file \'%s\' for error details. Error: %s' % (
                    code, USER_LOG, '\n'.join(tail)))

    def upload(self):
        """Keep outputs/ and logs/ of the working folder as artifacts of the run."""
        work = os.path.join(self.folder, 'wd')
        for name in ('outputs', 'logs'):
            for folder, _, files in os.walk(os.path.join(work, name)):
                for file in files:
                    path = os.path.join(folder, file)
                    goal = self._artifact(os.path.relpath(path, work))
                    os.makedirs(os.path.dirname(goal), mode=0o700, exist_ok=True)
                    shutil.copyfile(path, goal)

    def _artifact(self, path):
        return artifact_path(self.cloud, self.workspace, 'ExperimentRun', 'dcid.' + self.run, path)


def _in_order(graph):
    """The nodes of the graph, each after those that it depends on."""
    nodes = {node['Id']: node for node in graph.get('ModuleNodes') or []}
    needs = {node: set() for node in nodes}
    for edge in graph.get('Edges') or []:
        source, goal = edge['SourceOutputPort'].get('NodeId'), edge['DestinationInputPort'].get(
            'NodeId')
        if source in nodes and goal in nodes:
            needs[goal].add(source)
    done = []
    while len(done) < len(nodes):
        ready = [node for node in nodes if node not in done and needs[node] <= set(done)]
        if not ready:
            raise StepFailed('The graph has a cycle.')
        done += ready
    return [nodes[node] for node in done]


def _error(code, message):
    """An error as run history carries it (RootError in runHistory.json)."""
    return {
        'error': {'code': code, 'message': message, 'messageParameters': {},
                  'details': []}, 'environment': 'westeurope', 'location': 'westeurope',
        'componentName': 'globaljobdispatcher'
    }
