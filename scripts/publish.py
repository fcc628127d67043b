"""Publish the training pipeline (train, evaluate, register) under this build's id.

    python scripts/publish.py --out outputs
"""
import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import atomic
import azure_ml
import settings
import workspace

ROOT = Path(__file__).resolve().parent.parent
SOURCE = 'training'


def code_commit(config):
    """The commit of the build; else git's, with -dirty where files differ from it, or 'none'."""
    if config.build_sourceversion:
        return config.build_sourceversion
    # A repository around an unpacked archive knows none of its files, and is not that of the code.
    command = 'git rev-parse HEAD:./ && git describe --always --dirty --abbrev=40 --match=-'
    try:
        return subprocess.check_output(command, shell=True, cwd=str(ROOT), timeout=10,
                                       stderr=subprocess.DEVNULL).decode().split()[-1]
    except (OSError, subprocess.SubprocessError):
        return 'none'


def parameters(config, build_id):
    """The run-time parameters of the pipeline; `none` stands for what is not given."""
    return {'dataset_name': config.dataset_name, 'dataset_version': config.dataset_version,
            'data_file_path': config.data_file_path,
            'datastore_name': config.datastore_name or 'none', 'model_name': config.model_name,
            'run_evaluation': str(config.run_evaluation).lower(),
            'allow_run_cancel': str(config.allow_run_cancel).lower(), 'build_id': build_id,
            'build_uri': config.build_uri or 'none', 'caller_run_id': config.caller_run_id,
            'code_commit': code_commit(config)}


def run_configuration(environment, nodes=1):
    """The azureml RunConfiguration of a step, which several nodes run at once by MPI.

    As the SDK's ScriptRunConfig makes it of an MpiConfiguration: IntelMpi stands for the MPI that
    the image has, here Open MPI.
    """
    from azureml.core.runconfig import MpiConfiguration, RunConfiguration
    made = RunConfiguration()
    made.environment = environment
    if nodes > 1:
        # Without the first one node runs it and says nothing (Azure/azure-sdk-for-python 25215).
        made.node_count, made.mpi = nodes, MpiConfiguration(node_count=nodes)
        made.communicator = 'IntelMpi'
    return made


def build_graph(space, config, build_id):
    """The azureml Pipeline: data passes from step to step by PipelineData only."""
    from azureml.pipeline.core import Pipeline, PipelineData, PipelineParameter
    from azureml.pipeline.steps import PythonScriptStep
    given = {name: PipelineParameter(name, default)
             for name, default in parameters(config, build_id).items()}

    def step(script, inputs, outputs, *arguments, nodes=1):
        # New data under the same dataset name must retrain, so no earlier result is reused.
        return PythonScriptStep(
            name=script, script_name=script + '.py', source_directory=str(ROOT / SOURCE),
            arguments=list(arguments), inputs=inputs, outputs=outputs, compute_target=target,
            runconfig=run_configuration(environment, nodes), allow_reuse=False)

    def passed(*names):
        return [word for name in names
                for word in ('--' + name.replace('_', '-'), given[name])]

    target = workspace.compute(space, config)
    environment = workspace.environment(space, config, 'training')
    store = workspace.datastore(space, config)
    model = PipelineData('model', datastore=store)
    decision = PipelineData('decision', datastore=store)
    return Pipeline(space, [
        step('train', [], [model], '--parameters', 'parameters.json', '--out', model,
             *passed('dataset_name', 'dataset_version', 'data_file_path', 'datastore_name',
                     'build_id', 'build_uri', 'caller_run_id', 'code_commit'),
             nodes=config.aml_training_nodes),
        step('evaluate', [model], [decision], '--parameters', 'parameters.json', '--model', model,
             '--out', decision, *passed('model_name', 'run_evaluation', 'allow_run_cancel'),
             nodes=config.aml_training_nodes),
        step('register', [model, decision], [], '--model', model, '--decision', decision,
             '--out', 'outputs/registration.json', *passed('model_name', 'build_id'))])


def find_published(space, config, build_id):
    """The published pipeline of this build, or None. Of several, one stays active."""
    from azureml.pipeline.core import PublishedPipeline
    found = sorted((one for one in PublishedPipeline.list(space)
                    if (one.name, one.version) == (config.training_pipeline_name, build_id)),
                   key=lambda one: (one.description or '', one.id))
    # The SDK publishes twice when the answer to its first request is lost.
    for one in found[1:]:
        one.disable()
    return found[0] if found else None


def publish_pipeline(space, config, build_id):
    """(published pipeline of this build, whether it is new)."""
    def publish_once():
        found = find_published(space, config, build_id)
        if found:
            return found
        # run.py tells the newest by this time: the SDK hides the service's own.
        now = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
        published = graph.publish(
            name=name, version=build_id, continue_on_step_failure=False,
            description=f'{now} train, evaluate and register {config.model_name}')
        return find_published(space, config, build_id) or published

    name, seconds = config.training_pipeline_name, config.call_timeout_seconds
    with azure_ml.asking(f'look for the published pipeline {name}', seconds):
        found = find_published(space, config, build_id)
    if found:
        return found, False
    with azure_ml.asking(f'build the pipeline {name}', 2 * seconds):
        graph = build_graph(space, config, build_id)
    with azure_ml.asking(f'publish the pipeline {name}', seconds):
        return azure_ml.repeat(publish_once, seconds / 2), True


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='outputs', help='folder for pipeline.json')
    args = parser.parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    build_id = config.build_buildid or settings.local_build()
    published, new = publish_pipeline(workspace.connect(config), config, build_id)
    atomic.write_json(Path(args.out) / 'pipeline.json', {
        'id': published.id, 'name': published.name, 'build_id': build_id})
    done = 'published' if new else 'published already'
    print(f'pipeline {published.name}, version {build_id}: {done}, id {published.id}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
