"""Execution of submitted pipelines: in order, each step as a real process, until done or canceled.

Steps of one pipeline run one after the other, pipelines side by side. Sources: the pages on run
states and cancelling of Azure ML v1 pipelines; the error texts of real runs.
"""
import threading
import traceback

from . import processes
from .history import ENDED, set_status
from .steps import Step, StepFailed

CANCELED = ('Canceled', 'CancelRequested')


class Jobs:
    """The pipelines under way, each in its own thread."""

    def __init__(self, cloud):
        self._cloud = cloud
        self._threads = []
        self._processes = {}
        self._busy = {}
        self._changed = threading.Condition()
        self.stopping = False

    def resume(self):
        """Go on with what was under way at the last stop; a step that was broken off starts anew.
        """
        for workspace in self._cloud.journal.table('workspaces').values():
            for row in self._cloud.table(workspace, 'runs').values():
                dto = row['dto']
                if dto['runType'] == 'azureml.PipelineRun' and dto['status'] not in ENDED:
                    self.start(workspace, dto['runId'])

    def start(self, workspace, run):
        thread = threading.Thread(target=self._guard, args=(workspace, run), daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self, workspace, run):
        """Ask the pipeline run to end. The process of its step is killed at once."""
        runs = self._cloud.table(workspace, 'runs')
        with self._changed:
            for dto in self._family(runs, run):
                if dto['status'] not in ENDED:
                    set_status(runs, dto['runId'], 'CancelRequested')
                    if dto['runId'] in self._processes:
                        processes.kill(self._processes[dto['runId']])
            self._changed.notify_all()

    def nodes(self, compute):
        """How many nodes of the compute are busy."""
        return self._busy.get(compute, 0)

    def stop(self):
        """Kill all steps and leave their runs as they are, to be resumed."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
            for process in self._processes.values():
                processes.kill(process)
        for thread in self._threads:
            thread.join(10)

    @staticmethod
    def _family(runs, run):
        return [row['dto'] for row in runs.values()
                if run in (row['dto']['runId'], row['dto']['parentRunId'])]

    def _guard(self, workspace, run):
        """Run the pipeline; a mistake of the stand-in itself fails the run and is named."""
        runs = self._cloud.table(workspace, 'runs')
        try:
            self._run_pipeline(workspace, runs, run)
        except StepFailed as reason:
            set_status(runs, run, 'Failed', error('ServiceError', str(reason)))
        except Exception:
            self._cloud.report(f'pipeline run {run}: {traceback.format_exc()}')
            set_status(runs, run, 'Failed', error('ServiceError', traceback.format_exc()))

    def _run_pipeline(self, workspace, runs, run):
        facts = self._cloud.table(workspace, 'pipeline-runs')[run]
        kept = self._cloud.table(workspace, 'graphs')[facts['GraphId']]
        values = {one['Name']: one.get('DefaultValue')
                  for one in kept['interface'].get('Parameters') or []}
        values.update(facts['ParameterAssignments'] or {})
        failed = []
        for node in in_order(kept['graph']):
            if runs[run]['dto']['status'] in CANCELED or failed and not kept['go_on']:
                break
            set_status(runs, run, 'Running')
            step = Step(self._cloud, workspace, run, kept['graph'], node, values)
            if not self._run_step(runs, step) and not self.stopping:
                failed.append(step.name)
            if self.stopping:
                return
        if runs[run]['dto']['status'] in CANCELED:
            for dto in self._family(runs, run):
                set_status(runs, dto['runId'], 'Canceled')
        elif failed:
            nodes = ', /'.join(failed)
            set_status(runs, run, 'Failed', error(
                'UserError', f'Pipeline has failed child jobs. Failed nodes: /{nodes}. For more '
                'details and logs, please go to the job detail page and check the child jobs.'))
        else:
            set_status(runs, run, 'Completed')

    def _run_step(self, runs, step):
        """Whether the step is completed. When the stand-in stops, its run is left as it is."""
        step.find_run()
        if runs[step.run]['dto']['status'] not in ENDED:
            try:
                self._wait_for_capacity(runs, step.run)
                self._execute(runs, step)
                status, reason = 'Completed', None
            except StepFailed as failure:
                status, reason = 'Failed', error('UserError', str(failure))
            if self.stopping:
                return False
            if runs[step.run]['dto']['status'] in CANCELED:
                status, reason = 'Canceled', None
            set_status(runs, step.run, status, reason)
        return runs[step.run]['dto']['status'] == 'Completed'

    def _execute(self, runs, step):
        command, folder, environ, log = step.prepare()
        with self._changed:
            if self.stopping or runs[step.run]['dto']['status'] in CANCELED:
                raise StepFailed('It was canceled before it started.')
            process = processes.start(command, folder, environ, log)
            self._processes[step.run] = process
            self._busy[step.target] = self._busy.get(step.target, 0) + 1
            set_status(runs, step.run, 'Running')
        try:
            step.wait(process)
        finally:
            with self._changed:
                self._busy[step.target] -= 1
                del self._processes[step.run]
            if not self.stopping:
                step.upload()

    def _wait_for_capacity(self, runs, run):
        """Stay queued while the fault no-capacity lasts."""
        with self._changed:
            while self._cloud.faults.capacity_errors() and not self.stopping \
                    and runs[run]['dto']['status'] not in CANCELED:
                self._changed.wait(0.2)


def in_order(graph):
    """The nodes of the graph, each after those that it depends on."""
    nodes = {node['Id']: node for node in graph.get('ModuleNodes') or []}
    needs = {node: set() for node in nodes}
    for edge in graph.get('Edges') or []:
        source = edge['SourceOutputPort'].get('NodeId')
        goal = edge['DestinationInputPort'].get('NodeId')
        if source in nodes and goal in nodes:
            needs[goal].add(source)
    done = []
    while len(done) < len(nodes):
        ready = [node for node in nodes if node not in done and needs[node] <= set(done)]
        if not ready:
            raise StepFailed('The graph has a cycle.')
        done += ready
    return [nodes[node] for node in done]


def error(code, message):
    """An error as run history carries it (ErrorResponse and RootError in runHistory.json)."""
    return {'error': {'code': code, 'message': message, 'messageParameters': {}, 'details': []},
            'componentName': 'globaljobdispatcher'}
