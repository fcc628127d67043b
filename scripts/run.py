"""Run the published training pipeline in Azure ML and wait for its result.

    python scripts/run.py --out outputs
"""
import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import calls
import files
import publish
import settings
import workspace

UNDER_WAY = ('NotStarted', 'Starting', 'Provisioning', 'Preparing', 'Queued', 'Running',
             'Finalizing', 'CancelRequested', 'NotResponding', 'Unknown')
DONE = ('Finished', 'Completed')
LOGS = ('user_logs/std_log.txt', 'azureml-logs/70_driver_log.txt')
LOG_LINES = 40
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1, 15
SUBMIT_TRIES = 4


class Stopped(BaseException):
    """The process was asked to end; no Exception, so that the SDK does not swallow it."""


def pipeline_to_run(space, chosen, out):
    """The PublishedPipeline that pipeline.json names, else the newest of the settings' name."""
    from azureml.pipeline.core import PublishedPipeline
    known = files.read_json(Path(out) / 'pipeline.json')
    name = known['name'] if known else chosen.training_pipeline_name
    try:
        with calls.asking('find the published pipeline %s' % name, chosen.call_timeout_seconds):
            if known:
                return PublishedPipeline.get(space, known['id'])
            # Each description begins with the time of publishing.
            found = max((one for one in PublishedPipeline.list(space) if one.name == name),
                        key=lambda one: one.description or '', default=None)
    except calls.AzureError as error:
        if error.status != 404:
            raise
        found = None
    if known and not chosen.build_buildid:
        print('the pipeline is that of %s; without this file it is the newest published'
              % (Path(out) / 'pipeline.json'), flush=True)
    if found is None:
        raise calls.AzureError('the pipeline %s is not published in the workspace %s: '
                               '`make publish` first' % (name, chosen.workspace_name))
    return found


def runs_of(space, chosen, build_id):
    """The runs that carry this build's id, newest first."""
    with calls.asking('look for runs of build %s' % build_id, chosen.call_timeout_seconds):
        from azureml.core import Experiment, Run
        import azureml.pipeline.core  # noqa: makes the SDK return PipelineRun objects
        experiment = Experiment(space, chosen.experiment_name)
        return [(run, run.get_status()) for run in Run.list(experiment, tags={'BuildId': build_id})]


def run_to_attach_to(space, chosen, build_id):
    """The run of this build that is done or under way, done ones first, or None."""
    found = runs_of(space, chosen, build_id)
    for states in (DONE, UNDER_WAY):
        for run, status in found:
            if status in states:
                return run
    return None


def submit(space, chosen, published, build_id):
    """Submit the published pipeline once, and return its run.

    By REST (https://learn.microsoft.com/azure/machine-learning/v1/how-to-deploy-pipelines), so
    that the tags arrive with the submission: when its answer is lost, the run is found by them.
    """
    import requests
    from azureml.pipeline.core import PipelineRun
    given = publish.parameters(chosen, build_id)
    body = {'ExperimentName': chosen.experiment_name, 'RunSource': 'SDK',
            'ParameterAssignments': given,
            'tags': {'BuildId': build_id, 'BuildUri': given['build_uri'],
                     'CodeCommit': given['code_commit']}}
    what = 'submit the pipeline %s' % published.name
    for attempt in range(1, SUBMIT_TRIES + 1):
        pause = 2 ** attempt
        try:
            with calls.asking(what, chosen.call_timeout_seconds):
                answer = requests.post(
                    published.endpoint, json=body, timeout=chosen.call_timeout_seconds / 3,
                    headers=workspace.sign_in(os.environ).get_authentication_header())
                pause = int(answer.headers.get('Retry-After') or pause)
                answer.raise_for_status()
                return PipelineRun.get(space, answer.json()['Id'])
        except calls.AzureError as error:
            if attempt == SUBMIT_TRIES or error.status not in (None,) + calls.TRANSIENT:
                raise
        time.sleep(min(pause, chosen.call_timeout_seconds))
        made = run_to_attach_to(space, chosen, build_id)
        if made:
            return made


def states_of(run):
    """[(step, state), ...] of the run's steps that exist so far."""
    return [(step, step.get_status()) for step in run.get_steps()]


def watch(run, chosen, cluster):
    """Print a line per change until the run ends; (its last state, []).

    At the deadline: (None, [what is unfinished, ...]).
    """
    end = time.monotonic() + 60 * chosen.run_timeout_minutes
    shown, pause, troubled = {}, FIRST_PAUSE_SECONDS, False
    while True:
        try:
            with calls.asking('ask for the state of the run', chosen.call_timeout_seconds):
                status = run.get_status()
                states = [('run', status)] + [
                    ('step ' + step.name, state) for step, state in states_of(run)]
                waiting = any(state in ('Queued', 'NotStarted') for _, state in states)
                errors = cluster.get_status().errors if waiting and cluster else None
            if errors:
                states.append(('compute cluster ' + cluster.name, calls.clean(first_error(errors))))
            troubled = False
        except calls.AzureError as error:
            if error.status in (401, 403, 404):
                raise
            if not troubled:
                print('%s %s; still waiting' % (clock(), str(error).splitlines()[0]), flush=True)
            states, status, troubled = [], None, True
        for name, state in states:
            if shown.get(name) != state:
                print('%s %s: %s' % (clock(), name, state), flush=True)
                shown[name], pause = state, FIRST_PAUSE_SECONDS
        if status and status not in UNDER_WAY:
            return status, []
        if time.monotonic() > end:
            return None, ['%s: %s' % item for item in shown.items() if item[1] not in DONE]
        time.sleep(min(pause, max(0, end - time.monotonic()) + 0.1))
        pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)


def clock():
    return time.strftime('%H:%M:%S')


def first_error(errors):
    """The text of the first error that a cluster reports."""
    error = errors[0].get('error', errors[0])
    return '%s: %s' % (error.get('code'), error.get('message'))


def failure_of(run, seconds):
    """Lines about each step that failed: its error, and the end of its log without secrets."""
    import requests
    for step, state in states_of(run):
        if state != 'Failed':
            continue
        details = step.get_details()
        error = (details.get('error') or {}).get('error') or {}
        yield 'step %s failed: %s' % (step.name, calls.clean(error.get('message') or 'no reason'))
        logs = details.get('logFiles') or {}
        name = next((name for name in LOGS if name in logs), max(logs, default=None))
        if name:
            lines = calls.clean(requests.get(logs[name], timeout=seconds).text).splitlines()
            yield 'the end of its log, %s:' % name
            for line in lines[-LOG_LINES:]:
                yield '  ' + line


def result_of(run):
    """The content of the register step's registration.json. Raises AzureError without one."""
    steps = [step for step in run.get_steps() if step.name == 'register']
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'registration.json')
        if not steps:
            raise calls.AzureError('the run %s has no step register' % run.id)
        steps[0].download_file('outputs/registration.json', path)
        return dict(files.read_json(path), run_id=run.id)


def how_to_go_on(build_id):
    return ('the run goes on in Azure; attach to it again: BUILD_BUILDID=%s make run\n'
            'cancel it: BUILD_BUILDID=%s make cancel-run' % (build_id, build_id))


def stop(signum, frame):
    raise Stopped()


def train(chosen, out, build_id):
    """Run the pipeline, or attach to this build's run; its result. Raises AzureError."""
    space = workspace.connect(chosen)
    run = run_to_attach_to(space, chosen, build_id) if chosen.build_buildid else None
    if run:
        print('run %s of build %s: attached' % (run.id, build_id), flush=True)
    else:
        published = pipeline_to_run(space, chosen, out)
        run = submit(space, chosen, published, build_id)
        print('run %s: submitted, pipeline %s, version %s' % (
            run.id, published.name, published.version), flush=True)
    with calls.asking('link the run', chosen.call_timeout_seconds):
        link = run.get_portal_url()
        cluster = space.compute_targets.get(chosen.aml_compute_cluster_name)
    print(link, flush=True)
    try:
        status, unfinished = watch(run, chosen, cluster)
    except calls.AzureError as error:
        raise calls.AzureError('%s\n%s' % (error, how_to_go_on(build_id)), error.status)
    if status is None:
        raise calls.AzureError('the run %s took longer than %g minutes; %s\n%s' % (
            run.id, chosen.run_timeout_minutes, '; '.join(unfinished), how_to_go_on(build_id)))
    if status not in DONE:
        with calls.asking('fetch the log of the failed step', chosen.call_timeout_seconds):
            lines = list(failure_of(run, chosen.call_timeout_seconds / 3))
        print('\n'.join(lines), flush=True)
        raise calls.AzureError('the run %s ended as %s%s\n%s\nrun this again to submit it anew' % (
            run.id, status, '; ' + lines[0] if lines else '', link))
    with calls.asking('fetch the result of the run %s' % run.id, chosen.call_timeout_seconds):
        return result_of(run)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder of pipeline.json and run.json')
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    build_id = None
    try:
        chosen = settings.read(os.environ, needs=settings.WORKSPACE)
        build_id = chosen.build_buildid or files.local_build()
        result = train(chosen, args.out, build_id)
    except (settings.SettingsError, calls.AzureError, ValueError) as error:
        print('error: %s' % error, file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt):
        print('error: stopped; if it was submitted, %s' % how_to_go_on(build_id),
              file=sys.stderr)
        return 1
    files.write_json(Path(args.out) / 'run.json', result)
    print('%s %s version %s: %s' % (
        result['result'], result['model'], result['version'], result['reason']))
    if os.environ.get('TF_BUILD'):
        for name in ('result', 'version'):
            print('##vso[task.setvariable variable=%s;isOutput=true]%s' % (name, result[name]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
