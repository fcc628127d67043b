"""The project's verbs where Azure has faults, by the real SDK, against Azure ML on loopback.

What the verbs do when all is well is in test_verbs.py; test_rehearse.py runs each as a process of
its own, in the pipelines.
"""
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from _pytest.monkeypatch import MonkeyPatch

import azure_ml
import served
from conftest import ROOT, python_of_one_thread, write_parts, write_table
from test_rehearse import with_secret

# The SDK reads them once, when it is imported.
os.environ.update(azure_ml.SDK_BACKOFF)
import test_verbs  # noqa: E402
from loopback import resource_manager, sign_in  # noqa: E402

pytestmark = pytest.mark.end_to_end
requests = pytest.importorskip('requests')

GROUP = 'mlops-RG'
CREATE, GET = 'POST .*/Pipelines/Create', 'GET .*/environments/'


class Project(test_verbs.Verbs):
    """A workspace of the stand-in, and the verbs that work on it."""

    def __init__(self, azure, folder, name):
        super().__init__(azure, folder)
        self.name = name

    def __call__(self, verb, *argv, **changes):
        return super().__call__(verb, *argv, **dict({'WORKSPACE_NAME': self.name}, **changes))

    @property
    def workspace(self):
        workspace, = [row for row in self.azure.journal.table('workspaces').values()
                      if row['name'] == self.name]
        return workspace

    def counts(self):
        """How many pipelines, runs, models and deployments the workspace holds."""
        return {'pipelines': sum(row['EntityStatus'] == '0' for row in self.rows('pipelines')),
                'runs': len(self.pipeline_runs()), 'models': len(self.rows('models')),
                'deployments': len(self.rows('operations'))}

    def strike(self, faults, verb, code=0, said='', **changes):
        """Run a verb under faults, which has to say this; what it made."""
        before = self.counts()
        for fault in faults:
            self.azure.faults.add(**fault)
        assert said in self(verb, code=code, **changes)
        self.azure.faults.clear()
        return {name: number - before[name] for name, number in self.counts().items()}

    def put_table(self, seed):
        path = self.folder / f'table-{seed}.csv'
        write_table(path, 5000, seed)
        self('dataset', '--data', path)


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    """The stand-in, with a resource group, and the environment that leads to it."""
    import loopback
    folder = tmp_path_factory.mktemp('azure')
    with loopback.start(str(folder / 'azure'), python=python_of_one_thread(folder)) as azure, \
            MonkeyPatch().context() as patch:
        azure.add_group(GROUP)
        for name, value in dict(
                azure.env, RESOURCE_GROUP=GROUP, LOCATION='westeurope', BUILD_BUILDID='1',
                CALL_TIMEOUT_SECONDS='60').items():
            patch.setenv(name, value)
        for name in ('arm.PAUSE_SECONDS', 'workspace.PAUSE_SECONDS', 'deploy.PAUSE_SECONDS',
                     'run.FIRST_PAUSE_SECONDS', 'run.LONGEST_PAUSE_SECONDS'):
            patch.setattr(name, 0.2)
        yield azure
    assert azure.unknown == []


@pytest.fixture(scope='module')
def project(azure, tmp_path_factory):
    """A workspace, with a service that runs the model of build 1; at the end no secret is seen.

    That one is trained on two nodes, others are on one.
    """
    made = Project(azure, tmp_path_factory.mktemp('project'), 'mlops-AML-WS')
    made('workspace')
    made.put_table(1)
    made('publish', AML_TRAINING_NODES='2', BUILD_BUILDID='two-nodes')
    for verb in ('run', 'publish', 'deploy'):
        made(verb)
    made.trained_on = made.read('run.json')['nodes']
    yield made
    secrets = [azure.env['servicePrincipalKey']] + [
        key for row in made.rows('services') for key in row['keys'].values()]
    (made.folder / 'said').write_text('\n'.join(made.texts))
    assert with_secret(made.folder, [secret.encode() for secret in secrets]) == []


@pytest.fixture(autouse=True)
def no_faults_are_left(azure):
    yield
    azure.faults.clear()


def test_model_and_service_say_where_they_come_from(project):
    run, service = project.read('run.json'), project.read('service.json')
    model, = [row for row in project.rows('models') if row['version'] == 1]
    assert model['kvTags']['BuildId'] == '1' and model['kvTags']['dataset_version'] == '1'
    assert model['runId'] and float(model['kvTags']['auc']) > 0.5
    assert len(project.trained_on) == 2 and model['kvTags']['data_rows'] == '5000' == str(
        sum(one['rows'] for one in project.trained_on))
    assert (service['model'], service['version']) == (run['model'], run['version'])
    live, = project.rows('services')
    assert live['authEnabled'] and live['appInsightsEnabled']


def test_monitor_finds_what_was_asked_of_the_service(project, azure):
    service, = project.rows('services')
    body = {'data': served.make_rows(3, seed=4)}
    headers = {'Authorization': f"Bearer {service['keys']['primaryKey']}"}
    with requests.Session() as session:
        for asked in [body] * 110 + [{}] * 5:
            session.post(project.read('service.json')['scoring_uri'], json=asked, headers=headers)
    pause, end = threading.Event(), time.monotonic() + 60
    lines = []
    # The container sends what it has every five seconds.
    while len(lines) < 115 and time.monotonic() < end:
        pause.wait(0.2)
        lines = [one for one in azure.traces.between(
            [project.workspace['properties']['workspaceId']], 0, time.time())
            if '"service": "safe-driver"' in one[2]]
    said = project('monitor', '--service', 'aci', '--out', project.out, MONITOR_MAX_PSI='99')
    found = project.read('monitor.json')
    assert [found[name] for name in ('requests', 'refused', 'failed')] == [115, 5, 0]
    assert found['scores']['rows'] == 330 and 'safe-driver is within its limits' in said
    # The rows are made up, and all alike.
    assert 'PSI' in project('monitor', '--service', 'aci', '--out', project.out, code=1)
    assert 'none of its requests' not in said and found['name'] == 'safe-driver'


def test_a_workspace_killed_after_each_of_its_resources_is_there_once(azure, tmp_path):
    """Each start goes on where the last was killed, with what that one left half made."""
    killed = Project(azure, tmp_path, 'killed-AML-WS')
    resources = azure.journal.table('resources')

    def made():
        """The types that there are, in the order in which they came."""
        own = [one['type'] for one in (row['document'] for row in resources.values())
               if 'killed' in one['id'] and not one['type'].endswith('registries')]
        if not own or not own[-1].endswith('MachineLearningServices/workspaces'):
            return own
        return own + ['cluster'] * len(killed.rows('computes')) + ['image'] * len(
            killed.rows('images'))

    for number in range(1, 9):
        azure.faults.add('late-resource' if number < 6 else 'late-image', seconds=0.3)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / 'scripts' / 'workspace.py')],
            env=dict(os.environ, WORKSPACE_NAME=killed.name),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while len(made()) < number and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.kill()
        text = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, text
        assert len(made()) == number
    azure.faults.clear()
    assert 'there already' in killed('workspace')
    assert len(made()) == len(set(made())) + 1 == 8 and len(killed.rows('environments')) == 2


def test_preflight(project):
    azure, itself = project.azure, project.workspace['identity']['principalId']
    roles = [(sign_in.OBJECT, azure.subscription, 'Reader'),
             (sign_in.OBJECT, azure.group(GROUP), 'Contributor'),
             (itself, azure.group(GROUP), 'Contributor')]

    def assign(changed):
        for number, (principal, scope, role) in enumerate(roles):
            resource_manager.assign(azure, principal, changed.get(number, role), scope)

    for changes, changed_roles, missing in (
            ({}, {}, []),
            ({'WORKSPACE_NAME': '', 'ACI_DEPLOYMENT_NAME': 'a_b'}, {}, ['settings']),
            ({'WORKSPACE_NAME': 'other'}, {}, ['workspace']),
            ({'AML_COMPUTE_CLUSTER_NAME': 'other', 'DATASET_VERSION': '9',
              'AML_COMPUTE_CLUSTER_CPU_SKU': 'STANDARD_M1'}, {},
             ['machine size', 'compute cluster', 'dataset']),
            ({}, {1: 'Reader'}, ['permission']),
            # No right outside the group is needed.
            ({}, {0: None}, []),
            ({}, {2: None}, ['identity'])):
        assign(changed_roles)
        code = 2 if 'settings' in missing else int(bool(missing))
        text = project('preflight', code=code, **changes)
        assert re.findall('^(.*?) +MISSING', text, re.M) == missing, text
    assign({})
    azure.faults.add('admin-user-off', count=None)
    assert re.search('^registry +MISSING', project('preflight', code=1), re.M)
    azure.faults.clear()
    # With Contributor on the group and nothing else, what is there already suffices.
    assign({0: None})
    assert 'compute cluster train-cluster: there already' in project('workspace')
    assign({})


def test_faults_of_requests(project):
    for number, (first, second) in enumerate((
            ('throttled', 'server-error'), ('unavailable', 'reset'))):
        made = project.strike([{'fault': first, 'path': CREATE}, {'fault': second, 'path': GET}],
                              'publish', BUILD_BUILDID=f'requests-{number}')
        assert made['pipelines'] == 1
    project.strike([{'fault': 'unavailable', 'path': CREATE, 'count': None}], 'publish', 1,
                   'run this again later', BUILD_BUILDID='never', CALL_TIMEOUT_SECONDS='13')
    for fault, said in (('expired-token', 'HTTP 401'), ('forbidden', 'the role Contributor')):
        project.strike([{'fault': fault, 'path': CREATE}], 'publish', 1, said,
                       BUILD_BUILDID='never')


def test_faults_of_runs_and_new_data(project):
    """A build whose first run fails, and whose second has trouble on the way, on another table."""
    project.put_table(2)
    made = project.strike([{'fault': 'step-fails', 'step': 'train'}], 'run', 1,
                          'step train failed', BUILD_BUILDID='runs')
    assert (made['runs'], made['models']) == (1, 0)
    made = project.strike([
        {'fault': 'reset', 'path': 'PipelineSubmit', 'after': True},
        {'fault': 'throttled', 'path': 'runs:query'},
        {'fault': 'unavailable', 'path': 'Graph/Node/StatusCode', 'skip': 1},
        {'fault': 'server-error', 'path': '/children', 'skip': 1},
        {'fault': 'reset', 'path': 'GET .*/PipelineRuns/', 'skip': 3}], 'run',
        BUILD_BUILDID='runs')
    assert made == {'pipelines': 0, 'runs': 1, 'models': 1, 'deployments': 0}
    assert not any(project.strike([], 'run', said='attached', BUILD_BUILDID='runs').values())
    model, = [row for row in project.rows('models') if row['kvTags']['BuildId'] == 'runs']
    # By the pipeline that build 1 published.
    assert model['kvTags']['dataset_version'] == '2' and model['version'] > 1


def test_a_table_in_parts_is_registered_whole_and_makes_the_model_of_one_file(project, tmp_path):
    """Its third part does not arrive, and once the script is killed while it waits for it."""
    whole, azure = tmp_path / 'whole.csv', project.azure
    write_table(whole, 5000, 4)
    parts = write_parts(tmp_path / 'parts', whole)
    (parts / '_SUCCESS').touch()

    def versions():
        return len(project.rows('datasets')[0]['versions'])

    before = versions()
    azure.faults.add('gone', path='PUT .*/00003-part', count=None)
    assert 'it did not arrive' in project('dataset', '--data', parts, code=1)
    azure.faults.clear()
    azure.faults.add('unavailable', path='PUT .*/00003-part', count=None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'scripts' / 'dataset.py'), '--data', str(parts)],
        env=dict(os.environ, WORKSPACE_NAME=project.name),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while 'unavailable' not in azure.faults.struck and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.kill()
    text = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, text
    azure.faults.clear()
    assert versions() == before
    assert 'registered' in project('dataset', '--data', parts)
    assert versions() == before + 1
    project('run', BUILD_BUILDID='parts')
    model, = [row for row in project.rows('models') if row['kvTags']['BuildId'] == 'parts']
    (parts / '_SUCCESS').unlink()
    digest = hashlib.sha256(b''.join(part.read_bytes() for part in sorted(parts.iterdir())))
    assert [model['kvTags'][name] for name in ('data', 'data_rows', 'data_sha256')] == [
        '3 files', '5000', digest.hexdigest()]
    subprocess.run([sys.executable, str(ROOT / 'training' / 'train.py'), '--data', str(whole),
                    '--out', str(tmp_path / 'model')], check=True, stdout=subprocess.DEVNULL)
    assert model['kvTags']['model_sha256'] == json.loads(
        (tmp_path / 'model' / 'metrics.json').read_text())['model_sha256']


@pytest.mark.parametrize('fault, seconds, said', [
    ('node-killed', {}, 'mpirun noticed that process rank 1 .* exited on signal 9'),
    ('node-absent', {'SECONDS_TO_COME': 2}, 'node 1 of 2 did not come within 2 s'),
    ('node-slow', {'SECONDS_OF_SILENCE': 3, 'SECONDS_TO_EXPLAIN': 0, 'SECONDS_TO_END': 1},
     'node 1 of 2 has not been heard of for 3 s')])
def test_a_run_that_loses_a_node_says_which_and_registers_nothing(
        project, tmp_path, monkeypatch, fault, seconds, said):
    how = {'BUILD_BUILDID': fault, 'TRAINING_PIPELINE_NAME': 'of-two-nodes'}
    shutil.copytree(str(ROOT / 'training'), str(tmp_path / 'training'))
    path = tmp_path / 'training' / 'nodes.py'
    for name, value in seconds.items():
        assert name in path.read_text()
        path.write_text(path.read_text().replace(
            '\nclass ', f'\n{name} = {value}\n\n\nclass ', 1))
    monkeypatch.setattr('publish.ROOT', tmp_path)
    project('publish', '--out', tmp_path, AML_TRAINING_NODES='2', **how)
    before = project.counts()['models']
    project.azure.faults.add(fault)
    text = project('run', '--out', tmp_path, code=1, **how)
    assert re.search('^step train failed: Execution failed.*' + said, text, re.M), text
    assert project.azure.faults.struck.count(fault) == 1 and project.counts()['models'] == before


def test_data_that_a_kept_model_was_trained_on_is_not_new(project, tmp_path):
    """Else a schedule would train and keep the same model every night."""
    def night(build, **changes):
        """(content of run.json, how many runs that took)"""
        before = project.counts()['runs']
        project('run', '--out', tmp_path, BUILD_BUILDID=build, RUN_EVALUATION='true', **changes)
        return (json.loads((tmp_path / 'run.json').read_text()),
                project.counts()['runs'] - before)

    project.put_table(3)
    first, runs = night('night-1', ONLY_NEW_DATA='true')
    assert runs == 1
    if first['result'] == 'registered':
        models = project.azure.table(project.workspace, 'models')
        with models.change(f"{first['model']}:{first['version']}") as model:
            model['kvTags']['dataset_version'] = '0'
    second, runs = night('night-2', ONLY_NEW_DATA='true')
    assert (second['result'], runs) == ('unchanged', 0)
    assert f"the run {first['run_id']} compared a model that was trained on" in second['reason']
    assert night('night-2')[1] == 1


def test_results_are_whole_wherever_fetching_them_ends(project, tmp_path):
    """Of a run that is done: its results cannot be had, then the script is killed, twice."""
    def left(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()
                if path.name[0] != '.'}

    good, out = tmp_path / 'good', tmp_path / 'out'
    project('run', '--out', good)
    project.azure.faults.add('forbidden', path='GET .*/artifact/.*contentinfo', count=None)
    said = project('run', '--out', out, code=1)
    project.azure.faults.clear()
    assert 'could not fetch the results of the run' in said
    assert list(left(out)) == ['submitted.json'] and b'could not fetch' in left(out)[
        'submitted.json']
    (out / 'submitted.json').unlink()
    for name in ('submitted.json', 'report.html'):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / 'scripts' / 'run.py'), '--out', str(out)],
            env=dict(os.environ, WORKSPACE_NAME=project.name),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while not (out / name).exists() and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        process.kill()
        process.communicate()
        assert name in left(out) and left(out).items() <= left(good).items()
    project('run', '--out', out)
    assert left(out) == left(good) and sorted(left(out)) == [
        'report.html', 'run.json', 'submitted.json']


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """A copy of the folder that is deployed, to be changed."""
    folder = tmp_path / 'scoring'
    shutil.copytree(str(ROOT / 'scoring'), str(folder),
                    ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr('deploy.SOURCE', folder)
    return folder


def test_faults_of_services(project, scoring):
    create = 'POST .*/services$'

    def deploy(change, *faults, **more):
        (scoring / 'change').write_text(change)
        return project.strike(faults, 'deploy', **more)['deployments']

    assert deploy('1', {'fault': 'throttled', 'path': create},
                  {'fault': 'reset', 'path': create, 'skip': 1},
                  {'fault': 'unavailable', 'path': 'GET .*/operations/'},
                  {'fault': 'late', 'seconds': 1}) == 1
    # The request was carried out.
    assert deploy('2', {'fault': 'reset', 'path': create, 'after': True}) == 1
    deploy('3', {'fault': 'late', 'seconds': 15}, code=1, said='the deployment goes on',
           DEPLOY_TIMEOUT_MINUTES='0.02')
    assert deploy('3', said='being deployed already') == 0
    run, models = project.read('run.json'), project.azure.table(project.workspace, 'models')
    with models.change(f"{run['model']}:{run['version']}") as model:
        digest, model['kvTags']['model_sha256'] = model['kvTags']['model_sha256'], '0' * 64
    assert deploy('4', code=1, said='was changed or damaged: its SHA-256') == 0
    with models.change(f"{run['model']}:{run['version']}") as model:
        model['kvTags']['model_sha256'] = digest


def test_rollback(project, scoring):
    score = (scoring / 'score.py').read_text()
    broken = score.replace('def run(request):', 'def run(request):\n    1 / 0\n')
    assert score != broken
    (scoring / 'score.py').write_text(broken)
    deployed = project.counts()['deployments']
    project('deploy', BUILD_BUILDID='2')
    project('smoke_test', '--service', 'aci', code=1)
    # The failure hook of a build that failed before it deployed leaves the other's service alone.
    for build, attempt in (('3', '1'), ('2', '2')):
        text = project('rollback', BUILD_BUILDID=build, SYSTEM_STAGEATTEMPT=attempt)
        assert text.startswith('nothing to roll back') and 'by build 2,' in text
    assert project.counts()['deployments'] == deployed + 1
    # When the second attempt gets as far as that, the version is its own to roll back.
    second = {'BUILD_BUILDID': '2', 'SYSTEM_STAGEATTEMPT': '2'}
    project('deploy', **second)
    assert project.counts()['deployments'] == deployed + 2
    back = project('rollback', **second)
    assert 'back from version' in back and 'answers as' in back
    assert project.read('service.json')['previous_version'] is None
    assert 'names none before it' in project('rollback', code=1, **second)
