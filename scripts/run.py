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

import atomic
import azure_ml
import publish
import settings
import sign_in
import workspace

UNDER_WAY = ('NotStarted', 'Starting', 'Provisioning', 'Preparing', 'Queued', 'Running',
             'Finalizing', 'CancelRequested', 'NotResponding', 'Unknown')
DONE = ('Finished', 'Completed')
LOGS = ('user_logs/std_log.txt', 'azureml-logs/70_driver_log.txt')
LOG_LINES = 40
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1, 15


def pipeline_to_run(space, config, out):
    """The PublishedPipeline that pipeline.json names, else the newest of the settings' name."""
    from azureml.pipeline.core import PublishedPipeline
    known = atomic.read_json(Path(out) / 'pipeline.json', 'id', 'name')
    name = known['name'] if known else config.training_pipeline_name
    try:
        with azure_ml.asking(f'find the published pipeline {name}', config.call_timeout_seconds):
            if known:
                return PublishedPipeline.get(space, known['id'])
            # Each description begins with the time of publishing.
            found = max((one for one in PublishedPipeline.list(space) if one.name == name),
                        key=lambda one: one.description or '', default=None)
    except azure_ml.AzureError as error:
        if error.status != 404:
            raise
        found = None
    if found is None:
        hint = (f"\nit is that of {Path(out) / 'pipeline.json'}; without this file it is the "
                'newest published' if known else '')
        raise azure_ml.AzureError(f'the pipeline {name} is not published in the workspace '
                                  f'{config.workspace_name}: `make publish` first{hint}')
    return found


def runs_of(space, config, build_id):
    """The runs that carry this build's id, newest first."""
    with azure_ml.asking(f'look for runs of build {build_id}', config.call_timeout_seconds):
        from azureml.core import Experiment, Run
        import azureml.pipeline.core  # noqa: makes the SDK return PipelineRun objects
        experiment = Experiment(space, config.experiment_name)
        return [(run, run.get_status()) for run in Run.list(experiment, tags={'BuildId': build_id})]


def run_to_attach_to(space, config, build_id):
    """The run of this build that is done or under way, done ones first, or None."""
    found = runs_of(space, config, build_id)
    return next((run for states in (DONE, UNDER_WAY) for run, status in found if status in states),
                None)


def submit_pipeline(space, config, published, build_id):
    """Submit the published pipeline once, and return its run.

    By REST (https://learn.microsoft.com/azure/machine-learning/v1/how-to-deploy-pipelines), so
    that the tags arrive with the submission: when its answer is lost, the run is found by them.
    """
    import requests
    from azureml.pipeline.core import PipelineRun
    given = publish.parameters(config, build_id)
    body = {'ExperimentName': config.experiment_name, 'RunSource': 'SDK',
            'ParameterAssignments': given,
            'tags': {'BuildId': build_id, 'BuildUri': given['build_uri'],
                     'CodeCommit': given['code_commit']}}

    def submit_once():
        made = run_to_attach_to(space, config, build_id)
        if made:
            return made
        answer = requests.post(
            published.endpoint, json=body, timeout=config.call_timeout_seconds / 3,
            headers=sign_in.authentication(os.environ).get_authentication_header())
        answer.raise_for_status()
        identity = azure_ml.json_object(answer).get('Id')
        if not identity:
            raise azure_ml.AzureError(
                f'could not {what}: the answer names no run\n{azure_ml.ODD}')
        return PipelineRun.get(space, identity)

    what = f'submit the pipeline {published.name}'
    with azure_ml.asking(what, config.call_timeout_seconds):
        return azure_ml.repeat(submit_once, config.call_timeout_seconds / 2)


def watch_run(run, config, cluster):
    """Print a line per change until the run ends; its last state. Raises AzureError when late."""
    end = time.monotonic() + 60 * config.run_timeout_minutes
    shown, pause, troubled = {}, FIRST_PAUSE_SECONDS, False
    while True:
        try:
            with azure_ml.asking('ask for the state of the run', config.call_timeout_seconds):
                status = run.get_status()
                states = [('run', status)] + [
                    ('step ' + step.name, step.get_status()) for step in run.get_steps()]
                waiting = any(state in ('Queued', 'NotStarted') for _, state in states)
                errors = cluster.get_status().errors if waiting and cluster else None
            if errors:
                error = errors[0].get('error', errors[0])
                states.append((f'compute cluster {cluster.name}', azure_ml.sentence(
                    f"{error.get('code')}: {error.get('message')}")))
            troubled = False
        except azure_ml.AzureError as error:
            if error.status in (401, 403, 404):
                raise
            if not troubled:
                print(f'{clock()} {str(error).splitlines()[0]}; still waiting', flush=True)
            states, status, troubled = [], None, True
        for name, state in states:
            if shown.get(name) != state:
                print(f'{clock()} {name}: {state}', flush=True)
                shown[name], pause = state, FIRST_PAUSE_SECONDS
        if status and status not in UNDER_WAY:
            return status
        if time.monotonic() > end:
            unfinished = '; '.join(f'{name}: {state}' for name, state in shown.items()
                                   if state not in DONE)
            raise azure_ml.AzureError(f'the run {run.id} took longer than '
                                      f'{config.run_timeout_minutes:g} minutes; {unfinished}')
        time.sleep(min(pause, max(0, end - time.monotonic()) + 0.1))
        pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)


def clock():
    return time.strftime('%H:%M:%S')


def failure_of(run, seconds):
    """Lines about each step that failed: its error, and the end of its log without secrets."""
    import requests
    for step in run.get_steps():
        if step.get_status() != 'Failed':
            continue
        details = step.get_details()
        error = (details.get('error') or {}).get('error') or {}
        yield f"step {step.name} failed: {azure_ml.sentence(error.get('message') or 'no reason')}"
        logs = details.get('logFiles') or {}
        name = next((name for name in LOGS if name in logs), max(logs, default=None))
        if name:
            lines = azure_ml.clean(requests.get(logs[name], timeout=seconds).text).splitlines()
            yield f'the end of its log, {name}:'
            for line in lines[-LOG_LINES:]:
                yield '  ' + line


def result_of(run):
    """The content of the register step's registration.json. Raises AzureError without one."""
    steps = [step for step in run.get_steps() if step.name == 'register']
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'registration.json')
        if not steps:
            raise azure_ml.AzureError(f'the run {run.id} has no step register')
        steps[0].download_file('outputs/registration.json', path)
        return dict(atomic.read_json(path), run_id=run.id)


def how_to_go_on(build_id):
    return (f'the run goes on in Azure; attach to it again: BUILD_BUILDID={build_id} make run\n'
            f'cancel it: BUILD_BUILDID={build_id} make cancel-run')


def run_pipeline(config, out, build_id):
    """Run the pipeline, or attach to this build's run; its result. Raises AzureError."""
    space = workspace.connect(config)
    run = run_to_attach_to(space, config, build_id) if config.build_buildid else None
    if run:
        print(f'run {run.id} of build {build_id}: attached', flush=True)
    else:
        published = pipeline_to_run(space, config, out)
        run = submit_pipeline(space, config, published, build_id)
        print(f'run {run.id}: submitted, pipeline {published.name}, version {published.version}',
              flush=True)
    with azure_ml.asking('link the run', config.call_timeout_seconds):
        link = run.get_portal_url()
        cluster = space.compute_targets.get(config.aml_compute_cluster_name)
    print(link, flush=True)
    try:
        status = watch_run(run, config, cluster)
    except azure_ml.AzureError as error:
        raise azure_ml.AzureError(f'{error}\n{how_to_go_on(build_id)}', error.status)
    if status not in DONE:
        with azure_ml.asking('fetch the log of the failed step', config.call_timeout_seconds):
            lines = list(failure_of(run, config.call_timeout_seconds / 3))
        print('\n'.join(lines), flush=True)
        first = f'; {lines[0]}' if lines else ''
        raise azure_ml.AzureError(f'the run {run.id} ended as {status}{first}\n{link}\n'
                                  'run this again to submit it anew')
    with azure_ml.asking(f'fetch the result of the run {run.id}', config.call_timeout_seconds):
        return result_of(run)


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder of pipeline.json and run.json')
    args = parser.parse_args(argv)
    # As Ctrl-C does; no Exception, so that the SDK does not swallow it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    build_id = config.build_buildid or settings.local_build()
    try:
        result = run_pipeline(config, args.out, build_id)
    except KeyboardInterrupt:
        print(f'error: stopped; if it was submitted, {how_to_go_on(build_id)}',
              file=sys.stderr)
        return 130
    atomic.write_json(Path(args.out) / 'run.json', result)
    print(f"{result['result']} {result['model']} version {result['version']}: {result['reason']}")
    if os.environ.get('TF_BUILD'):
        for name in ('result', 'version'):
            azure_ml.set_output(name, result[name])
    return 0


if __name__ == '__main__':
    sys.exit(main())
