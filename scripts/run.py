"""Run the published training pipeline in Azure ML and wait for its result.

    python scripts/run.py --out outputs
"""
import argparse
import os
import re
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
# One for each process of a step on several nodes, and what MPI says itself.
LOG = re.compile(r'user_logs/(std|mpi)_log.*\.txt|azureml-logs/70_driver_log.*\.txt')
LOG_LINES = 40
# What the steps attach to the run (training/tracking.py): figures for run.json, pages for OUT.
FIGURES = ('metrics.json', 'decision.json')
PAGES = ('report.html', 'comparison.html')
DATASET = 'Dataset'
# The content of submitted.json.
NO_RUN = {'run_id': None, 'link': None, 'failure': None}
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


def runs_of(space, config, tag, value):
    """The runs that carry this tag, newest first, each with its state."""
    with azure_ml.asking(f'look for runs of {tag} {value}', config.call_timeout_seconds):
        from azureml.core import Experiment, Run
        import azureml.pipeline.core  # noqa: makes the SDK return PipelineRun objects
        experiment = Experiment(space, config.experiment_name)
        return [(run, run.get_status()) for run in Run.list(experiment, tags={tag: value})]


def run_to_attach_to(space, config, build_id):
    """The run of this build that is done or under way, done ones first, or None."""
    found = runs_of(space, config, 'BuildId', build_id)
    return next((run for states in (DONE, UNDER_WAY) for run, status in found if status in states),
                None)


def newest_dataset(space, config):
    """The version of the dataset that a run would train on."""
    name = config.dataset_name
    with azure_ml.asking(f'find the dataset {name}', config.call_timeout_seconds):
        from azureml.core import Dataset
        return Dataset.get_by_name(space, name, config.dataset_version).version


def result_without_a_run(space, config, version):
    """The content of run.json if this version of the dataset is not new; else None.

    It is not when the registered model was trained on it, or another model that was not better.
    """
    name = config.model_name
    with azure_ml.asking(f'find the model {name}', config.call_timeout_seconds):
        from azureml.core import Model
        champion = max(Model.list(space, name=name, expand=False),
                       key=lambda model: model.version, default=None)
    tags = champion.tags or {} if champion else {}
    if (tags.get('dataset_name'), tags.get('dataset_version')) == (
            config.dataset_name, str(version)):
        who = f'version {champion.version} of {name} was'
    else:
        done = [run for run, status in runs_of(
            space, config, DATASET, f'{config.dataset_name}/{version}/{name}') if status in DONE]
        if not done:
            return None
        who = f'the run {done[0].id} compared a model that was'
    return {'result': 'unchanged', 'model': name, 'version': champion and champion.version,
            'run_id': None, 'link': None,
            'reason': f'No new data, so nothing was trained: {who} trained on version {version} '
                      f'of the dataset {config.dataset_name}.'}


def submit_pipeline(space, config, published, build_id, tags):
    """Submit the published pipeline once, with these tags among others, and return its run.

    By REST (https://learn.microsoft.com/azure/machine-learning/v1/how-to-deploy-pipelines), so
    that the tags arrive with the submission: when its answer is lost, the run is found by them.
    """
    import requests
    from azureml.pipeline.core import PipelineRun
    given = publish.parameters(config, build_id)
    body = {'ExperimentName': config.experiment_name, 'RunSource': 'SDK',
            'ParameterAssignments': given,
            'tags': dict(tags, BuildId=build_id, BuildUri=given['build_uri'],
                         CodeCommit=given['code_commit'])}

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
        names = sorted(filter(LOG.fullmatch, logs)) or sorted(logs)[-1:]
        for name in names:
            lines = azure_ml.clean(requests.get(logs[name], timeout=seconds).text).splitlines()
            if lines:
                yield f'the end of its log, {name}:'
            for line in lines[-(LOG_LINES // len(names) or 1):]:
                yield '  ' + line


def fetch_results(run, folder):
    """Fetch what the steps of a run left there to tell, each file as FOLDER/NAME."""
    wanted = {f'results/{name}' for name in FIGURES + PAGES} | {'outputs/registration.json'}
    for step in run.get_steps():
        for name in sorted(wanted & set(step.get_file_names())):
            step.download_file(name, str(Path(folder) / name.split('/')[1]))


def result_of(run, link, folder):
    """The content of run.json by the files that were fetched. Raises AzureError."""
    registration, metrics, decision = (
        atomic.read_json(Path(folder) / name) for name in ('registration.json',) + FIGURES)
    if registration is None:
        raise azure_ml.AzureError(f'the run {run.id} has no registration.json of a step register')
    metrics = metrics or {}
    return dict(registration, run_id=run.id, link=link, auc=metrics.get('auc'),
                auc_interval=metrics.get('auc_interval'), nodes=metrics.get('nodes'),
                decision=decision)


def keep_pages(folder, out):
    """Have the pages of the run in OUT, each whole, and none that is of an earlier run."""
    for name in PAGES:
        fetched, kept = Path(folder) / name, Path(out) / name
        if fetched.exists():
            atomic.write_bytes(kept, fetched.read_bytes())
        elif kept.exists():
            kept.unlink()


def how_to_go_on(build_id):
    return (f'the run goes on in Azure; attach to it again: BUILD_BUILDID={build_id} make run\n'
            f'cancel it: BUILD_BUILDID={build_id} make cancel-run')


def run_pipeline(config, out, build_id):
    """Run the pipeline, or attach to this build's run; its result. Raises AzureError.

    OUT/submitted.json then names the run, however it ends, and why it failed.
    """
    space = workspace.connect(config)
    run = run_to_attach_to(space, config, build_id) if config.build_buildid else None
    if run:
        print(f'run {run.id} of build {build_id}: attached', flush=True)
    else:
        tags = {}
        if config.only_new_data and config.data_file_path == 'none':
            version = newest_dataset(space, config)
            unchanged = result_without_a_run(space, config, version)
            if unchanged:
                atomic.write_json(Path(out) / 'submitted.json', NO_RUN)
                return unchanged
            config = config._replace(dataset_version=str(version))
            tags[DATASET] = f'{config.dataset_name}/{version}/{config.model_name}'
        published = pipeline_to_run(space, config, out)
        run = submit_pipeline(space, config, published, build_id, tags)
        print(f'run {run.id}: submitted, pipeline {published.name}, version {published.version}',
              flush=True)
    with azure_ml.asking('link the run', config.call_timeout_seconds):
        link = run.get_portal_url()
        cluster = space.compute_targets.get(config.aml_compute_cluster_name)
    print(link, flush=True)
    submitted = dict(NO_RUN, run_id=run.id, link=link)
    atomic.write_json(Path(out) / 'submitted.json', submitted)
    try:
        return wait_for_result(run, config, build_id, cluster, link, out)
    except azure_ml.AzureError as error:
        atomic.write_json(Path(out) / 'submitted.json', dict(
            submitted, failure=azure_ml.sentence(str(error).splitlines()[0])))
        raise


def wait_for_result(run, config, build_id, cluster, link, out):
    """The result of a run that was submitted, its pages in OUT. Raises AzureError."""
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
    with tempfile.TemporaryDirectory() as folder:
        with azure_ml.asking(f'fetch the results of the run {run.id}', config.call_timeout_seconds):
            fetch_results(run, folder)
        keep_pages(folder, out)
        return result_of(run, link, folder)


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
    print(f"{result['result']} {result['model']} version {result['version'] or 'none'}: "
          f"{result['reason']}")
    if os.environ.get('TF_BUILD'):
        for name in ('result', 'version'):
            azure_ml.set_output(name, result[name])
    return 0


if __name__ == '__main__':
    sys.exit(main())
