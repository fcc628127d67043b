"""The project's own verbs in this process, by the real SDK, against Azure ML on loopback.

One path from an empty subscription to a rollback is taken once, in fixtures that follow each
other; the tests look at what it did and said. Steps and the scoring container are processes.
"""
import collections
import contextlib
import importlib
import io
import json
import logging
import os
import re
import shutil
import signal

import pytest
from _pytest.monkeypatch import MonkeyPatch

import azure_ml
import deploy
import forked
import publish
import sdk_contract
import settings
import smoke_test
from conftest import write_parts, write_table

pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
pytest.importorskip('azureml_inference_server_http')
pytest.importorskip('trustme')

ROWS = 1500
DEADLINE = azure_ml.deadline
# A value for every setting that is not its default; see test_every_setting_arrives.
GIVEN = {
    'RESOURCE_GROUP': 'absent-group', 'WORKSPACE_NAME': 'verbs-space', 'LOCATION': 'northeurope',
    'BASE_NAME': 'verbs', 'EXPERIMENT_NAME': 'verbs-experiment', 'MODEL_NAME': 'verbs-model',
    'MODEL_VERSION': '1', 'DATASET_NAME': 'verbs-data', 'DATASET_VERSION': '1',
    'DATA_FILE_PATH': 'verbs/table.csv', 'DATASTORE_NAME': 'workspaceartifactstore',
    'TRAINING_PIPELINE_NAME': 'verbs-pipeline', 'AML_COMPUTE_CLUSTER_NAME': 'verbs-cluster',
    'AML_COMPUTE_CLUSTER_CPU_SKU': 'STANDARD_D4DS_V5', 'AML_CLUSTER_MIN_NODES': '1',
    'AML_CLUSTER_MAX_NODES': '3', 'AML_TRAINING_NODES': '2', 'AML_CLUSTER_PRIORITY': 'lowpriority',
    'AML_ENV_NAME': 'verbs',
    'AML_REBUILD_ENVIRONMENT': 'true', 'RUN_EVALUATION': 'false', 'ALLOW_RUN_CANCEL': 'false',
    'ONLY_NEW_DATA': 'true',
    'ACI_DEPLOYMENT_NAME': 'verbs-service', 'ACI_REPLACE': 'true', 'BUILD_BUILDID': '1',
    'PRODUCTION': 'endpoint', 'ENDPOINT_NAME': 'verbs-endpoint',
    'BUILD_URI': 'https://dev.azure.com/o/p', 'SYSTEM_STAGEATTEMPT': '3',
    'BUILD_SOURCEVERSION': 'c' * 40, 'CALLER_RUN_ID': 'verbs-caller', 'ROLLBACK_ANY_BUILD': 'true',
    'CALL_TIMEOUT_SECONDS': '170', 'RUN_TIMEOUT_MINUTES': '0.001', 'DEPLOY_TIMEOUT_MINUTES': '0'}
# The rest is given to single verbs.
ALWAYS = (
    'WORKSPACE_NAME', 'LOCATION', 'BASE_NAME', 'EXPERIMENT_NAME', 'MODEL_NAME', 'DATASET_NAME',
    'TRAINING_PIPELINE_NAME', 'AML_COMPUTE_CLUSTER_NAME', 'AML_COMPUTE_CLUSTER_CPU_SKU',
    'AML_CLUSTER_MIN_NODES', 'AML_CLUSTER_PRIORITY', 'AML_ENV_NAME', 'ACI_DEPLOYMENT_NAME',
    'CALL_TIMEOUT_SECONDS')
# What a run is given anew, whatever the pipeline was published with.
EACH_RUN = ('DATASET_VERSION', 'DATASTORE_NAME', 'RUN_EVALUATION', 'ALLOW_RUN_CANCEL', 'BUILD_URI',
            'BUILD_SOURCEVERSION', 'CALLER_RUN_ID')
PUBLISHED_WITH = {'RUN_EVALUATION': 'true', 'MODEL_NAME': 'another', 'DATASET_NAME': 'another'}


def given(*names):
    return {name: GIVEN[name] for name in names}


class Verbs:
    """Calls verbs against one stand-in and looks at what it holds."""

    def __init__(self, azure, folder):
        self.azure, self.folder, self.out = azure, folder, folder / 'outputs'
        self.texts, self.commands, self.deadlines = [], [], set()

    def __call__(self, verb, *argv, code=0, **changes):
        """What a verb's main says; its exit code must be `code`."""
        argv = [str(word) for word in argv]
        if verb in ('publish', 'run', 'deploy', 'rollback', 'smoke_test') and '--out' not in argv:
            argv += ['--out', str(self.out)]
        before, screen = dict(os.environ), io.StringIO()
        os.environ.update(changes)
        try:
            with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                result = importlib.import_module(verb).main(argv)
        finally:
            os.environ.clear()
            os.environ.update(before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.texts.append(screen.getvalue())
        assert result == code, screen.getvalue()
        return screen.getvalue()

    @property
    def workspace(self):
        workspace, = self.azure.journal.table('workspaces').values()
        return workspace

    def rows(self, table):
        return self.azure.table(self.workspace, table).values()

    def pipeline_runs(self):
        return [row['dto'] for row in self.rows('runs') if not row['dto']['parentRunId']]

    def read(self, name):
        return json.loads((self.out / name).read_text())

    def count(self, method, part):
        """How often Azure was asked by this method for a path that holds the part."""
        return sum(one[0] == method and part in one[1] for one in self.azure.exchanges)

    def start(self, command, *more):
        """Start a step or container in place of the stand-in."""
        self.commands.append(command)
        return forked.Popen(command, *more)

    def deadline(self, what, seconds):
        """Note a deadline, which azure_ml.py then sets."""
        self.deadlines.add(seconds)
        return DEADLINE(what, seconds)

    def check(self, command):
        """Check a table in place of dataset.py's subprocess."""
        return self.start(command, str(self.folder), dict(os.environ),
                          str(self.folder / 'check.log')).wait()

    def option(self, script, name):
        """An argument of the last step of that script."""
        words = [command for command in self.commands if script in command][-1]
        return words[words.index(name) + 1]


@pytest.fixture(scope='module')
def verbs(tmp_path_factory):
    import loopback
    folder = tmp_path_factory.mktemp('verbs')
    forked.prepare()
    terminated = signal.getsignal(signal.SIGTERM)
    with loopback.start(str(folder / 'azure')) as azure, MonkeyPatch().context() as patch:
        azure.exchanges = collections.deque()
        # An agent of Azure Pipelines sets many, and each request looks through all.
        for name in os.environ:
            if not re.match('PATH$|HOME$|TMPDIR$|LD_|OMP_|PYTEST|COV', name):
                patch.delenv(name)
        for name, value in dict(azure.env, RUN_TIMEOUT_MINUTES='2', DEPLOY_TIMEOUT_MINUTES='2',
                                **given(*ALWAYS)).items():
            patch.setenv(name, value)
        patch.setitem(smoke_test.DEADLINE_SECONDS, 'aci', 60)
        # The real Azure is slower.
        for name, seconds in (('arm.PAUSE_SECONDS', 0.1), ('workspace.PAUSE_SECONDS', 0.1),
                              ('azure_ml.FIRST_PAUSE_SECONDS', 0.1),
                              ('deploy.PAUSE_SECONDS', 0.1), ('run.FIRST_PAUSE_SECONDS', 0.1),
                              ('run.LONGEST_PAUSE_SECONDS', 0.1)):
            patch.setattr(name, seconds)
        forked.hasten(patch)
        # What a subscription's owner gives to a team.
        azure.add_group('verbs-RG')
        found = Verbs(azure, folder)
        patch.setattr('loopback.processes.start', found.start)
        patch.setattr('dataset.subprocess.call', found.check)
        patch.setattr('azure_ml.deadline', found.deadline)
        yield found
    signal.signal(signal.SIGTERM, terminated)
    logging.disable(logging.NOTSET)
    assert azure.unknown == []


@pytest.fixture(scope='module')
def empty(verbs):
    return verbs('preflight', code=1, **given('RESOURCE_GROUP'))


@pytest.fixture(scope='module')
def workspace(verbs, empty):
    return verbs('workspace', **given('AML_CLUSTER_MAX_NODES'))


@pytest.fixture(scope='module')
def table(verbs):
    """A folder of three parts."""
    write_table(verbs.folder / 'table.csv', ROWS)
    return write_parts(verbs.folder / 'parts', verbs.folder / 'table.csv')


@pytest.fixture(scope='module')
def dataset(verbs, workspace, table):
    return verbs('dataset', '--data', table, **given('DATASTORE_NAME'))


@pytest.fixture(scope='module')
def published(verbs, dataset):
    verbs.azure.faults.add('reset', path='POST .*/Pipelines/Create', after=True)
    return verbs('publish', **dict(PUBLISHED_WITH, BUILD_BUILDID='1'))


@pytest.fixture(scope='module')
def trained(verbs, published):
    # The answer to the submission is lost, so the run is found by its tag.
    verbs.azure.faults.add('reset', path='PipelineSubmit', after=True)
    return verbs('run', TF_BUILD='True', **given('BUILD_BUILDID', *EACH_RUN))


@pytest.fixture(scope='module')
def unchanged(verbs, trained):
    """(what a run without new data says, how many runs it made)"""
    before, out = len(verbs.pipeline_runs()), verbs.folder / 'unchanged'
    text = verbs('run', '--out', out, TF_BUILD='True', BUILD_BUILDID='5', **given('ONLY_NEW_DATA'))
    return text, len(verbs.pipeline_runs()) - before


@pytest.fixture(scope='module')
def deployed(verbs, trained):
    text = verbs('deploy', **given('BUILD_BUILDID', 'SYSTEM_STAGEATTEMPT', 'BUILD_SOURCEVERSION'))
    return text, verbs.rows('services')[0]


@pytest.fixture(scope='module')
def spoilt(verbs, deployed):
    """Build 2 deploys a container that crashes, with more memory than before."""
    source = verbs.folder / 'scoring'
    shutil.copytree(str(deploy.SOURCE), str(source))
    wanted = json.loads((source / deploy.SETTINGS).read_text())
    (source / deploy.SETTINGS).write_text(json.dumps(dict(wanted, memory_gb=2)))
    verbs.azure.faults.add('crash-loop')
    # Without run.json in OUT, the version is a setting.
    how = dict(given('MODEL_VERSION'), code=1, BUILD_BUILDID='2')
    out = ('--out', verbs.folder / 'elsewhere')
    with MonkeyPatch().context() as patch:
        patch.setattr(deploy, 'SOURCE', source)
        refused = verbs('deploy', *out, **how)
        text = verbs('deploy', *out, **dict(how, **given('ACI_REPLACE')))
    return refused, text, verbs.rows('services')[0]


@pytest.fixture(scope='module')
def rolled_back(verbs, spoilt):
    return verbs('rollback', BUILD_BUILDID='2')


@pytest.fixture(scope='module')
def produced(verbs, spoilt, rolled_back):
    """What the verbs say of production: a first version, another one, and the way back."""
    how = given('PRODUCTION', 'ENDPOINT_NAME', 'MODEL_VERSION')
    with MonkeyPatch().context() as patch:
        for name in ('PAUSE_SECONDS', 'WATCH_PAUSE_SECONDS'):
            patch.setattr('endpoint.' + name, 0.05)
        patch.setattr('endpoint.ROUNDS', 1)
        patch.setenv('ENDPOINT_WATCH_MINUTES', '0')
        first = verbs('deploy', '--service', 'endpoint', **how)
        # The folder of the build before.
        patch.setattr(deploy, 'SOURCE', verbs.folder / 'scoring')
        second = verbs('deploy', '--service', 'endpoint', **how)
        tested = verbs('smoke_test', '--service', 'endpoint', **how)
        facts = verbs.read('endpoint.json')
        back = verbs('rollback', '--service', 'endpoint', **how)
    return first, second, tested, back, facts


@pytest.fixture(scope='module')
def busy(verbs, rolled_back):
    """A deployment while another one is under way."""
    services = verbs.azure.table(verbs.workspace, 'services')
    with services.change('verbs-service') as service:
        service['state'] = 'Transitioning'
    text = verbs('deploy', code=1, **given('DEPLOY_TIMEOUT_MINUTES'))
    with services.change('verbs-service') as service:
        service['state'] = 'Healthy'
    return text


@pytest.fixture(scope='module')
def late(verbs, published):
    """Build 4: its run waits for a node, so it is given up, attached to, and cancelled."""
    verbs.azure.faults.add('no-capacity')
    how = dict(BUILD_BUILDID='4', code=1)
    given_up = verbs('run', **dict(how, **given('RUN_TIMEOUT_MINUTES', 'DATA_FILE_PATH')))
    with MonkeyPatch().context() as patch:
        # Asked before each line about the run.
        patch.setattr('run.clock', lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = verbs('run', **dict(how, code=130))
    cancelled = verbs('cancel_run', BUILD_BUILDID='4')
    verbs.azure.faults.clear()
    return given_up, stopped, cancelled


@pytest.fixture(scope='module')
def failed(verbs, published):
    verbs.azure.faults.add('step-fails', step='train')
    # Without pipeline.json the newest of the name is run.
    return verbs('run', '--out', verbs.folder / 'elsewhere', code=1, BUILD_BUILDID='3')


def test_preflight_names_what_is_missing_with_what_to_do(verbs, empty, workspace):
    lines = {line[:16].strip(): line[17:] for line in empty.splitlines()}
    assert lines['sign-in'].startswith('ok') and lines['machine size'].startswith('ok')
    assert 'az group create --name absent-group --location northeurope' in lines['resource group']
    assert lines['workspace'].startswith('unknown')
    assert 'renew the secret' in verbs('preflight', code=1, servicePrincipalKey='wrong')


@pytest.fixture(scope='module')
def all_there(verbs, dataset):
    return verbs('preflight', **given('PRODUCTION', 'ENDPOINT_NAME'))


def test_preflight_finds_nothing_missing(all_there):
    assert 'verbs-data, version 1' in all_there and 'MISSING' not in all_there
    assert 'training/parameters.json, for 1 node\n' in all_there


def test_a_workspace_that_is_there_is_left_alone_but_for_the_number_of_nodes(verbs, workspace):
    assert 'workspace verbs-space: created' in workspace
    assert 'compute cluster verbs-cluster: created' in workspace
    again = verbs('workspace', AML_CLUSTER_MAX_NODES='4')
    assert 'workspace verbs-space: there already' in again
    assert 'compute cluster verbs-cluster: updated' in again
    assert again.count('registered, its image is built') == 2
    assert len(verbs.rows('environments')) == 2


def test_a_table_is_registered_once_and_a_damaged_one_never(verbs, dataset, table, tmp_path):
    assert dataset == 'dataset verbs-data, version 1: registered\n'
    # DATASTORE_NAME is workspaceartifactstore, whose container is azureml.
    stored = sorted((verbs.folder / 'azure' / 'blobs').glob('*/azureml/verbs-data/*/*'))
    assert [path.name for path in stored] == [
        '00001-part-1.csv', '00002-part-2.csv.gz', '00003-part-3.csv']
    assert [path.read_bytes() for path in stored] == [
        path.read_bytes() for path in sorted(table.iterdir())]
    again = shutil.copytree(str(table), str(tmp_path / 'other name'))
    assert 'version 1: holds this table already' in verbs('dataset', '--data', again)
    (tmp_path / 'bad.csv').write_text('id,target\n')
    assert 'was not uploaded' in verbs('dataset', '--data', tmp_path / 'bad.csv', code=1)


def test_a_build_publishes_one_pipeline_though_the_answer_is_lost(verbs, published):
    known = verbs.read('pipeline.json')
    assert f"pipeline verbs-pipeline, version 1: published, id {known['id']}" in published
    assert known == {'id': known['id'], 'name': 'verbs-pipeline', 'build_id': '1'}
    assert 'published already' in verbs('publish', BUILD_BUILDID='1')
    assert [row['Id'] for row in verbs.rows('pipelines') if row['EntityStatus'] == '0'] == [
        known['id']]


@pytest.fixture(scope='module')
def configurations(published):
    """What is sent of each step when a pipeline for several nodes is published, and of one for one.

    [{name: RunConfiguration as JSON}, ...]
    """
    def sent(**changes):
        config = settings.read(dict(os.environ, **changes))
        space = importlib.import_module('workspace').connect(config)
        return {node.name: json.loads(node._runconfig)
                for node in publish.build_graph(space, config, 'x').graph.module_nodes}
    return sent(**given('AML_TRAINING_NODES', 'AML_CLUSTER_MAX_NODES')), sent()


def test_the_steps_that_read_the_table_are_sent_to_several_nodes(configurations):
    several, one = configurations
    assert {name: {key for key in one[name] if several[name][key] != one[name][key]}
            for name in one} == {
                'train': {'communicator', 'nodeCount', 'mpi'},
                'evaluate': {'communicator', 'nodeCount', 'mpi'}, 'register': set()}
    assert [several['train'][key] for key in ('communicator', 'nodeCount', 'mpi')] == [
        'IntelMpi', 2, {'processCountPerNode': 1, 'nodeCount': 2}]
    assert [one['train'][key] for key in ('framework', 'communicator', 'nodeCount')] == [
        'Python', 'None', 1]


def test_a_run_registers_the_model_and_says_so_to_the_pipeline(verbs, trained):
    result = verbs.read('run.json')
    assert [result[name] for name in ('result', 'model', 'version')] == [
        'registered', 'verbs-model', 1]
    # Not RUN_EVALUATION=true, with which it was published.
    assert 'RUN_EVALUATION=false' in result['reason']
    assert '##vso[task.setvariable variable=result;isOutput=true]registered\n' in trained
    assert '##vso[task.setvariable variable=version;isOutput=true]1\n' in trained
    model, = verbs.rows('models')
    assert float(model['kvTags']['auc']) > 0.3 and model['kvTags']['data_rows'] == str(ROWS)


def test_figures_decision_link_and_report_of_a_run_come_back(verbs, trained):
    result, submitted = verbs.read('run.json'), verbs.read('submitted.json')
    model, = verbs.rows('models')
    assert str(result['auc']) == model['kvTags']['auc']
    assert result['auc_interval'][0] < result['auc'] < result['auc_interval'][1]
    assert result['decision']['reason'] == result['reason']
    assert result['run_id'] in result['link'] and result['link'] in trained
    assert submitted == {'run_id': result['run_id'], 'link': result['link'], 'failure': None}
    assert (verbs.out / 'report.html').read_text().endswith('</html>\n')


def test_without_new_data_there_is_no_run(verbs, unchanged):
    text, runs = unchanged
    assert runs == 0
    assert '##vso[task.setvariable variable=result;isOutput=true]unchanged\n' in text
    assert text.startswith(
        'unchanged verbs-model version 1: No new data, so nothing was trained: version 1 of '
        'verbs-model was trained on version 1 of the dataset verbs-data.\n')
    assert 'could not find the dataset absent: ' in verbs(
        'run', code=1, DATASET_NAME='absent', BUILD_BUILDID='6', **given('ONLY_NEW_DATA'))
    result = json.loads((verbs.folder / 'unchanged' / 'run.json').read_text())
    assert (result['result'], result['version'], result['run_id']) == ('unchanged', 1, None)


def test_figures_are_on_the_pipelines_run(verbs, trained):
    from azureml.pipeline.core import PipelineRun
    space = importlib.import_module('workspace').connect(settings.read(os.environ))
    figures = PipelineRun.get(space, verbs.read('run.json')['run_id']).get_metrics()
    model, = verbs.rows('models')
    assert str(figures['auc']) == model['kvTags']['auc']


def test_a_failed_step_is_shown_with_the_end_of_its_log(verbs, failed):
    assert 'step train failed: Execution failed' in failed
    assert '  RuntimeError: loopback: this step fails on demand' in failed
    assert re.search('^error: the run .* ended as Failed; step train failed', failed, re.M)
    assert 'run this again to submit it anew' in failed
    submitted = json.loads((verbs.folder / 'elsewhere' / 'submitted.json').read_text())
    assert submitted['link'] in failed and 'step train failed: ' in submitted['failure']
    assert 'make publish' in verbs('run', '--out', verbs.folder / 'elsewhere', code=1,
                                   TRAINING_PIPELINE_NAME='absent')


def test_a_run_that_takes_too_long_goes_on_and_can_be_cancelled(verbs, late):
    given_up, stopped, cancelled = late
    identity = re.search('run (.*): submitted', given_up).group(1)
    assert f'run {identity} of build 4: attached' in stopped
    assert '; compute cluster verbs-cluster: ClusterCoreQuotaReached' in given_up
    for text in given_up, stopped:
        assert 'BUILD_BUILDID=4 make run\n' in text and 'BUILD_BUILDID=4 make cancel-run' in text
    assert stopped.splitlines()[-2].startswith('error: stopped; if it was submitted, the run goes')
    assert cancelled == f'build 4: cancelled run {identity}\n'
    state, = [dto['status'] for dto in verbs.pipeline_runs() if dto['runId'] == identity]
    assert state == 'Canceled'
    assert verbs('cancel_run', BUILD_BUILDID='4').endswith('nothing to cancel\n')


def test_a_service_is_deployed_and_answers_as_the_model(verbs, deployed):
    assert 'service verbs-service: create with version 1 of verbs-model' in deployed[0]
    assert 'answers as verbs-model version 1 does' in verbs('smoke_test', '--service', 'aci')
    assert 'runs version 1 already' in verbs('deploy', BUILD_BUILDID='1', SYSTEM_STAGEATTEMPT='3')


def test_a_kept_version_is_not_deployed(verbs, deployed, tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps(dict(verbs.read('run.json'), result='kept')))
    assert verbs('deploy', '--out', tmp_path) == (
        'nothing to deploy: the run kept the registered version\n')
    assert not (tmp_path / 'service.json').exists()


def test_a_container_that_crashes_is_shown_with_the_way_back(verbs, spoilt):
    refused, text, service = spoilt
    assert 'set ACI_REPLACE=true' in refused
    assert 'service verbs-service: create with version 1 of verbs-model' in text
    assert 'RuntimeError: loopback: this container crashes on demand' in text
    assert 'it ran version 1 before: `make rollback` puts it back' in text
    assert service['state'] == 'Failed'


def test_rollback_puts_back_what_ran_and_only_what_its_build_changed(verbs, spoilt, rolled_back):
    assert 'service verbs-service: back from version 1 to version 1' in rolled_back
    assert 'answers as verbs-model version 1 does' in rolled_back
    assert verbs.read('service.json')['previous_version'] is None
    service, = verbs.rows('services')
    was, now = spoilt[2]['kvTags'], service['kvTags']
    assert now['scoring'] == was['previous_scoring'] != was['scoring']
    assert service['state'] == 'Healthy'
    assert verbs.azure.serving() == {'verbs-service': 'version 1'}
    assert 'nothing to roll back: ' in verbs('rollback', BUILD_BUILDID='6')
    assert 'MODEL_VERSION=n make deploy creates it' in verbs(
        'rollback', code=1, ACI_DEPLOYMENT_NAME='absent')


def test_a_deployment_waits_for_the_one_before(busy):
    assert 'the service verbs-service is being deployed already; waiting' in busy
    assert 'is still busy with an earlier deployment after 0 minutes' in busy


def test_production_changes_by_traffic_and_so_does_the_way_back(verbs, produced):
    first, second, tested, back, facts = produced
    old, new = facts['previous_deployment'], facts['deployment']
    assert f'traffic {old} 100 %' in first and '90 %' not in first
    order = [f'{new} answers as it should', f'traffic {old} 90 %, {new} 10 %', '16 requests with',
             f'traffic {new} 100 %', 'runs version 1 of verbs-model']
    assert [second.index(one) for one in order] == sorted(second.index(one) for one in order)
    assert 'answers as verbs-model version 1' in tested and f'traffic {old} 100 %' in back
    assert verbs.read('endpoint.json')['deployment'] == old


def test_every_setting_arrives(
        verbs, empty, all_there, configurations, trained, unchanged, deployed, late, rolled_back,
        busy):
    any_build = verbs('rollback', code=1, BUILD_BUILDID='6', **given('ROLLBACK_ANY_BUILD'))
    before = verbs.count('PUT', '/environments/')
    verbs('workspace', **given('AML_REBUILD_ENVIRONMENT', 'AML_CLUSTER_MAX_NODES'))
    rebuilt = verbs.count('PUT', '/environments/') == before + 2
    runs = {dto['tags'].get('BuildId'): dto for dto in verbs.pipeline_runs()}
    asked = {build: json.loads(dto['properties']['azureml.parameters'])
             for build, dto in runs.items()}
    cluster = verbs.rows('computes')[0]
    size = cluster['properties']['properties']
    model, = verbs.rows('models')
    service, = verbs.rows('services')
    experiment, = {row['experiment'] for row in verbs.rows('runs')}
    environment, = {row['name'].split('-')[0] for row in verbs.rows('environments')}
    arrived = {
        'SUBSCRIPTION_ID': verbs.workspace['id'].split('/')[2],
        'RESOURCE_GROUP': re.search('--name (.*) --location', empty).group(1),
        'WORKSPACE_NAME': verbs.workspace['name'],
        'LOCATION': verbs.workspace['location'],
        'BASE_NAME': verbs.workspace['group'].split('-')[0],
        'EXPERIMENT_NAME': experiment,
        'MODEL_NAME': model['name'],
        'MODEL_VERSION': service['kvTags']['version'],
        'DATASET_NAME': verbs.option('train.py', '--dataset-name'),
        'DATASET_VERSION': verbs.option('train.py', '--dataset-version'),
        'DATA_FILE_PATH': asked['4']['data_file_path'],
        'DATASTORE_NAME': verbs.option('train.py', '--datastore-name'),
        'TRAINING_PIPELINE_NAME': verbs.rows('pipelines')[0]['Name'],
        'AML_COMPUTE_CLUSTER_NAME': cluster['name'],
        'AML_COMPUTE_CLUSTER_CPU_SKU': size['vmSize'],
        'AML_CLUSTER_MIN_NODES': str(size['scaleSettings']['minNodeCount']),
        'AML_CLUSTER_MAX_NODES': str(size['scaleSettings']['maxNodeCount']),
        'AML_TRAINING_NODES': str(configurations[0]['train']['nodeCount']),
        'AML_CLUSTER_PRIORITY': size['vmPriority'].lower(),
        'AML_ENV_NAME': environment,
        'AML_REBUILD_ENVIRONMENT': str(rebuilt).lower(),
        'RUN_EVALUATION': verbs.option('evaluate.py', '--run-evaluation'),
        'ALLOW_RUN_CANCEL': verbs.option('evaluate.py', '--allow-run-cancel'),
        'ONLY_NEW_DATA': str(unchanged[1] == 0).lower(),
        'ACI_DEPLOYMENT_NAME': service['name'],
        'ACI_REPLACE': str(service['containerResourceRequirements']['memoryInGB'] == 2).lower(),
        'PRODUCTION': re.search('^(endpoint) size +ok', all_there, re.M).group(1),
        'ENDPOINT_NAME': re.search('^endpoint +ok +([^:]+): ', all_there, re.M).group(1),
        'BUILD_BUILDID': model['kvTags']['BuildId'],
        'BUILD_URI': model['kvTags']['BuildUri'],
        'SYSTEM_STAGEATTEMPT': deployed[1]['kvTags']['Attempt'],
        'ROLLBACK_ANY_BUILD': str('names none before it' in any_build).lower(),
        'BUILD_SOURCEVERSION': runs['1']['tags']['CodeCommit'],
        'CALLER_RUN_ID': model['kvTags']['caller_run_id'],
        # 180 is the default.
        'CALL_TIMEOUT_SECONDS': ' '.join(str(one) for one in (170, 180) if one in verbs.deadlines),
        'RUN_TIMEOUT_MINUTES': re.search('took longer than (.*) minutes', late[0]).group(1),
        'DEPLOY_TIMEOUT_MINUTES': re.search('after (.*) minutes', busy).group(1)}
    assert arrived == dict(GIVEN, SUBSCRIPTION_ID=verbs.azure.env['SUBSCRIPTION_ID'])
    # The others are those of test_endpoint.py and test_monitor.py.
    assert set(arrived) == {name for name, _, _, _ in settings.SETTINGS if not name.startswith(
        ('ENDPOINT_WATCH', 'MONITOR_'))}


@pytest.mark.no_cover
def test_requests_and_answers_fit_the_models_of_the_sdk(verbs, rolled_back, late, failed):
    problems, used = sdk_contract.violations(list(verbs.azure.exchanges))
    unused = [row for row in sdk_contract.CONTRACT if row not in used]
    assert not problems, '\n'.join(problems)
    assert not unused, '\n'.join(map(str, unused))


def test_no_secret_is_said(verbs, produced):
    (service,), (endpoint,) = verbs.rows('services'), verbs.rows('endpoints')
    secrets = [verbs.azure.env['servicePrincipalKey'], *service['keys'].values(),
               *endpoint['keys'].values()]
    assert not [text for text in verbs.texts for secret in secrets if secret in text]
    assert not re.search('eyJ[A-Za-z0-9_-]{20,}', ''.join(verbs.texts))
