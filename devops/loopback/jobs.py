"""Execution of submitted pipelines: in order, each step as real processes, until done or canceled.

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
        # {run of a step: (its processes, its compute)}
        self._processes = {}
        self._changed = threading.Condition()

    def start(self, workspace, run):
        thread = threading.Thread(target=self._guard, args=(workspace, run), daemon=True)
        self._started.append((workspace, run, thread))
        thread.start()

    def cancel(self, workspace, run):
        """Ask the pipeline run to end. The processes of its step are killed at once."""
        runs = self._cloud.table(workspace, 'runs')
        with self._changed:
            for row in runs.values():
                step = row['dto']['runId']
                if run in (step, row['dto']['parentRunId']):
                    set_status(runs, step, 'CancelRequested')
                    for process in self._processes.get(step, ((), None))[0]:
                        processes.kill(process)
            self._changed.notify_all()

    def nodes(self, compute):
        """How many nodes of the compute are busy."""
        with self._changed:
            return sum(len(started) for started, target in self._processes.values()
                       if target == compute)

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
        except Exception:
            self._cloud.report(f'pipeline run {run}: {traceback.format_exc()}')
            set_status(runs, run, 'Failed', error('ServiceError', traceback.format_exc()))

    def _run_pipeline(self, workspace, runs, run):
        facts = self._cloud.table(workspace, 'pipeline-runs')[run]
        kept = self._cloud.table(workspace, 'graphs')[facts['GraphId']]
        values = {one['Name']: one['DefaultValue'] for one in kept['interface']['Parameters']}
        values.update(facts['ParameterAssignments'])
        edges, steps = kept['graph']['Edges'], {}
        for node in in_order(kept['graph']['ModuleNodes'], edges):
            with self._changed:
                if canceled(runs, run):
                    break
                set_status(runs, run, 'Running')
                step = Step(self._cloud, workspace, run, node, edges, values, steps)
            steps[node['Id']] = step
            if not self._run_step(runs, step):
                set_status(runs, run, 'Failed', error(
                    'UserError', f'Pipeline has failed child jobs. Failed nodes: /{step.name}. For '
                    'more details and logs, please go to the job detail page and check the child '
                    'jobs.'))
                return
        set_status(runs, run, 'Completed')

    def _run_step(self, runs, step):
        """Run it to its end; whether it is completed."""
        try:
            self._execute(runs, step)
        except StepFailed as failure:
            set_status(runs, step.run, 'Failed', error('UserError', str(failure)))
        set_status(runs, step.run, 'Completed')
        return runs[step.run]['dto']['status'] == 'Completed'

    def _execute(self, runs, step):
        with self._changed:
            # Queued while the fault no-capacity lasts.
            while self._cloud.faults.capacity_errors() and not canceled(runs, step.run):
                self._changed.wait(0.2)
        step.prepare()
        with self._changed:
            if canceled(runs, step.run):
                return
            started = [processes.start(*node[1:]) for node in step.nodes]
            self._processes[step.run] = started, step.target
            set_status(runs, step.run, 'Running')
        try:
            step.wait(started)
        finally:
            with self._changed:
                del self._processes[step.run]
            step.upload()


def canceled(runs, run):
    return runs[run]['dto']['status'] == 'CancelRequested'


def in_order(nodes, edges):
    """The nodes of a graph, each after those whose outputs it takes."""
    left, done = {node['Id']: node for node in nodes}, []
    while left:
        waiting = {edge['DestinationInputPort']['NodeId'] for edge in edges
                   if edge['SourceOutputPort'].get('NodeId') in left}
        ready = next(node for node in left if node not in waiting)
        done.append(left.pop(ready))
    return done


def error(code, message):
    """An error as run history carries it (ErrorResponse and RootError in runHistory.json)."""
    return {'error': {'code': code, 'message': message, 'messageParameters': {}, 'details': []},
            'componentName': 'globaljobdispatcher'}
