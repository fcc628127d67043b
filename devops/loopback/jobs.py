"""Execution of submitted pipelines: in order, each step as a real process, until done or canceled.

Steps of one pipeline run one after the other, pipelines side by side. Sources: the pages on run
states and cancelling of Azure ML v1 pipelines; the error texts of real runs.
"""
import threading
import traceback

from . import processes
from .history import set_status
from .steps import Step, StepFailed


class Jobs:
    """The pipelines under way, each in its own thread."""

    def __init__(self, cloud):
        self._cloud = cloud
        self._started = []
        # {run of a step: (its process, its compute)}
        self._processes = {}
        self._changed = threading.Condition()

    def start(self, workspace, run):
        thread = threading.Thread(target=self._guard, args=(workspace, run), daemon=True)
        self._started.append((workspace, run, thread))
        thread.start()

    def cancel(self, workspace, run):
        """Ask the pipeline run to end. The process of its step is killed at once."""
        runs = self._cloud.table(workspace, 'runs')
        with self._changed:
            for step in family(runs, run):
                set_status(runs, step, 'CancelRequested')
                if step in self._processes:
                    processes.kill(self._processes[step][0])
            self._changed.notify_all()

    def nodes(self, compute):
        """How many nodes of the compute are busy."""
        with self._changed:
            return sum(target == compute for _, target in self._processes.values())

    def stop(self):
        """End all pipelines."""
        for workspace, run, _ in self._started:
            self.cancel(workspace, run)
        for _, _, thread in self._started:
            thread.join(10)

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
            if canceled(runs, run) or failed:
                break
            set_status(runs, run, 'Running')
            step = Step(self._cloud, workspace, run, kept['graph'], node, values)
            if not self._run_step(runs, run, step):
                failed.append(step.name)
        if canceled(runs, run):
            for one in family(runs, run):
                set_status(runs, one, 'Canceled')
        elif failed:
            nodes = ', /'.join(failed)
            set_status(runs, run, 'Failed', error(
                'UserError', f'Pipeline has failed child jobs. Failed nodes: /{nodes}. For more '
                'details and logs, please go to the job detail page and check the child jobs.'))
        else:
            set_status(runs, run, 'Completed')

    def _run_step(self, runs, run, step):
        """Whether the step is completed."""
        status, reason = 'Completed', None
        try:
            self._execute(runs, run, step)
        except StepFailed as failure:
            status, reason = 'Failed', error('UserError', str(failure))
        if canceled(runs, run):
            status, reason = 'Canceled', None
        set_status(runs, step.run, status, reason)
        return status == 'Completed'

    def _execute(self, runs, run, step):
        with self._changed:
            # Queued while the fault no-capacity lasts.
            while self._cloud.faults.capacity_errors() and not canceled(runs, run):
                self._changed.wait(0.2)
        command, folder, environ, log = step.prepare()
        with self._changed:
            if canceled(runs, run):
                return
            process = processes.start(command, folder, environ, log)
            self._processes[step.run] = process, step.target
            set_status(runs, step.run, 'Running')
        try:
            step.wait(process)
        finally:
            with self._changed:
                del self._processes[step.run]
            step.upload()


def family(runs, run):
    """The pipeline run and those of its steps."""
    return [row['dto']['runId'] for row in runs.values()
            if run in (row['dto']['runId'], row['dto']['parentRunId'])]


def canceled(runs, run):
    return runs[run]['dto']['status'] in ('Canceled', 'CancelRequested')


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
