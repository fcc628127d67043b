"""The project's verbs where Azure has faults, by the real SDK, against Azure ML on loopback.

    pytest -s -m end_to_end tests/test_azure_path.py

-s prints tables of what was wrong and what was said. What the verbs do when all is well is in
test_verbs.py; test_rehearse.py runs each as a process of its own, in the pipelines.
"""
import contextlib
import importlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from _pytest.monkeypatch import MonkeyPatch

import azure_ml
from conftest import ROOT, python_of_one_thread

# The SDK reads them once, when it is imported.
os.environ.update(azure_ml.SDK_BACKOFF)
pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
pytest.importorskip('azureml_inference_server_http')
pytest.importorskip('trustme')
pytestmark = pytest.mark.end_to_end
from loopback import resource_manager, sign_in  # noqa: needs trustme

REAL_ROWS = ROOT.parent / 'shared' / 'data' / 'porto_seguro_10000.csv'
# Enough for a model that tells rows apart.
ROWS = 5000
GROUP = 'mlops-RG'
# The JSON Web Tokens of OIDC and of access.
TOKEN = re.compile('eyJ[A-Za-z0-9_-]{20,}')
HEADER = ('fault', 'command', 'exit code', 'seconds', 'made', 'says')
CREATE, GET = 'POST .*/Pipelines/Create', 'GET .*/environments/'


class Result:
    def __init__(self, code, text, seconds):
        self.code, self.text, self.seconds = code, text, seconds

    @property
    def last(self):
        """The sentence that matters: the error, else the last line."""
        lines = [line for line in self.text.splitlines() if line and not line.startswith('##vso')]
        errors = [number for number, line in enumerate(lines) if line.startswith('error: ')]
        return ' / '.join(lines[errors[0]:]) if errors else lines[-1]


class Project:
    """Calls verbs in this process, with an environment that holds nothing of this machine's."""

    def __init__(self, azure, folder, name):
        self.azure, self.folder, self.name, self.out = azure, folder, name, folder / 'outputs'
        self.environ = dict(
            azure.env, PATH=os.environ['PATH'], RESOURCE_GROUP=GROUP, LOCATION='westeurope',
            WORKSPACE_NAME=f'{name}-AML-WS', BUILD_BUILDID='1', CALL_TIMEOUT_SECONDS='60',
            OMP_NUM_THREADS='1')
        self.texts = []

    def __call__(self, verb, *words, **changes):
        words = [str(word) for word in words]
        if verb in ('publish', 'run', 'deploy', 'rollback', 'smoke_test'):
            words += ['--out', str(self.out)]
        before, screen, begin = dict(os.environ), io.StringIO(), time.monotonic()
        try:
            os.environ.clear()
            os.environ.update(self.environ, **changes)
            with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                code = importlib.import_module(verb).main(words)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self.texts.append(screen.getvalue())
        return Result(code, self.texts[-1], time.monotonic() - begin)

    def good(self, verb, *words, **changes):
        result = self(verb, *words, **changes)
        assert result.code == 0, result.text
        return result

    def read(self, name):
        return json.loads((self.out / name).read_text())

    def rows(self, table):
        space, = [row for row in self.azure.journal.table('workspaces').values()
                  if row['name'] == self.environ['WORKSPACE_NAME']]
        return list(self.azure.table(space, table).values())

    def counts(self):
        """How many pipelines, runs, models and deployments the workspace holds."""
        return {'pipelines': sum(row['EntityStatus'] == '0' for row in self.rows('pipelines')),
                'runs': sum(row['dto']['parentRunId'] is None for row in self.rows('runs')),
                'models': len(self.rows('models')), 'deployments': len(self.rows('operations'))}

    def strike(self, rows, title, faults, verb, expected, words=(), said='', **changes):
        """Run a verb under faults; what it made. Adds a row, checks exit code and message."""
        before = self.counts()
        for fault in faults:
            self.azure.faults.add(**fault)
        result = self(verb, *words, **changes)
        self.azure.faults.clear()
        made = {name: number - before[name] for name, number in self.counts().items()}
        rows.append((title, verb, result.code, f'{result.seconds:.1f}', ', '.join(
            f'{number} {name}' for name, number in made.items() if number) or 'nothing',
            result.last[:300]))
        assert result.code == expected, result.text
        assert said in result.text
        return made


def show(title, rows):
    print(f'\n### {title}')
    print('\n'.join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows))


def make_table(folder, seed):
    path = folder / f'table-{seed}.csv'
    if not path.exists():
        subprocess.check_call(
            [sys.executable, str(ROOT / 'training' / 'sample.py'), '--rows', str(ROWS), '--seed',
             str(seed), '--out', str(path)], stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    """The stand-in, with a resource group; at the end, a search of everything for secrets."""
    import loopback
    folder = tmp_path_factory.mktemp('azure')
    patch = MonkeyPatch()
    for name in ('arm.PAUSE_SECONDS', 'workspace.PAUSE_SECONDS', 'deploy.PAUSE_SECONDS',
                 'run.FIRST_PAUSE_SECONDS', 'run.LONGEST_PAUSE_SECONDS'):
        patch.setattr(name, 0.2)
    with loopback.start(str(folder / 'azure'), python=python_of_one_thread(folder)) as azure:
        azure.add_group(GROUP)
        azure.projects, azure.secrets = [], {azure.env['servicePrincipalKey']}
        yield azure
        search_for_secrets(azure, folder)
    patch.undo()
    logging.disable(logging.NOTSET)
    assert azure.unknown == []


def search_for_secrets(azure, folder):
    for project in azure.projects:
        for row in project.rows('services'):
            azure.secrets.update(row['keys'].values())
    assert TOKEN.match(azure.tokens.issue())
    texts = [text for project in azure.projects for text in project.texts]
    paths = [path for root in [folder] + [project.folder for project in azure.projects]
             for path in root.rglob('*') if path.is_file()]
    texts += [path.read_bytes().decode('utf-8', 'replace') for path in paths]
    found = [secret[:4] + '...' for secret in azure.secrets for text in texts if secret in text]
    found += [match.group()[:20] for match in map(TOKEN.search, texts) if match]
    show('Secrets', [
        ('searched for', f'{len(azure.secrets)} secrets and keys; tokens of access and of OIDC'),
        ('in', f'{len(texts) - len(paths)} outputs, {len(paths)} files'), ('found', found)])
    assert found == []


@pytest.fixture(scope='module')
def project(azure, tmp_path_factory):
    """A workspace, with a service that runs the model of build 1."""
    made = Project(azure, tmp_path_factory.mktemp('project'), 'mlops')
    azure.projects.append(made)
    table = REAL_ROWS if REAL_ROWS.exists() else make_table(made.folder, 1)
    rows = [('command', 'seconds', 'says')]
    for words in (['workspace'], ['dataset', '--data', table], ['publish'], ['run'], ['deploy'],
                  ['smoke_test', '--service', 'aci']):
        result = made.good(*words)
        rows.append((words[0], f'{result.seconds:.1f}', result.last))
    show(f'The whole path, {table.name}', rows)
    return made


@pytest.fixture(autouse=True)
def no_faults_are_left(azure):
    yield
    azure.faults.clear()


def test_model_and_service_say_where_they_come_from(project):
    run, service = project.read('run.json'), project.read('service.json')
    model, = [row for row in project.rows('models') if row['version'] == 1]
    assert model['kvTags']['BuildId'] == '1' and model['kvTags']['dataset_version'] == '1'
    assert model['runId'] and float(model['kvTags']['auc']) > 0.5
    assert (service['model'], service['version']) == (run['model'], run['version'])
    live, = project.rows('services')
    assert live['authEnabled'] and live['appInsightsEnabled']


def test_a_workspace_killed_after_each_of_its_resources_is_there_once(azure, tmp_path):
    """Each start goes on where the last was killed, with what that one left half made."""
    killed = Project(azure, tmp_path, 'killed')
    azure.projects.append(killed)
    resources = azure.journal.table('resources')

    def made():
        """The types that there are, in the order in which they came."""
        own = [one['type'] for one in (row['document'] for row in resources.values())
               if 'killed' in one['id'] and not one['type'].endswith('registries')]
        if not own or not own[-1].endswith('MachineLearningServices/workspaces'):
            return own
        return own + ['cluster'] * len(killed.rows('computes')) + ['image'] * len(
            killed.rows('images'))

    rows = [('killed when there was', 'it had said')]
    for number in range(1, 9):
        azure.faults.add('late-resource' if number < 6 else 'late-image', seconds=0.3)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / 'scripts' / 'workspace.py')], env=killed.environ,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while len(made()) < number and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.kill()
        text = process.communicate()[0].decode()
        killed.texts.append(text)
        rows.append((', '.join(made()), text.splitlines()[-1] if text else ''))
        assert process.returncode == -signal.SIGKILL, text
        assert len(made()) == number
    show('make workspace, killed', rows)
    azure.faults.clear()
    assert 'there already' in killed.good('workspace').text
    assert len(made()) == len(set(made())) + 1 == 8 and len(killed.rows('environments')) == 2


def test_preflight(project):
    def missing(result):
        return [line.split('  ')[0] for line in result.text.splitlines() if ' MISSING ' in line]

    azure = project.azure
    space, = [row for row in azure.journal.table('workspaces').values()
              if row['name'] == project.environ['WORKSPACE_NAME']]
    itself = space['identity']['principalId']
    roles = [(sign_in.OBJECT, azure.subscription, 'Reader'),
             (sign_in.OBJECT, azure.group(GROUP), 'Contributor'),
             (itself, azure.group(GROUP), 'Contributor')]

    def assign(changed):
        for number, (principal, scope, role) in enumerate(roles):
            resource_manager.assign(azure, principal, changed.get(number, role), scope)

    rows = [('wrong', 'exit code', 'reported as missing')]
    for title, changes, changed_roles, faults, expected in (
            ('nothing', {}, {}, [], []),
            ('two settings', {'WORKSPACE_NAME': '', 'ACI_DEPLOYMENT_NAME': 'a_b'}, {}, [],
             ['settings']),
            ('the workspace', {'WORKSPACE_NAME': 'other'}, {}, [], ['workspace']),
            ('cluster, size and dataset', {
                'AML_COMPUTE_CLUSTER_NAME': 'other', 'DATASET_VERSION': '9',
                'AML_COMPUTE_CLUSTER_CPU_SKU': 'STANDARD_M1'}, {}, [],
             ['machine size', 'compute cluster', 'dataset']),
            ('no right to write in the group', {}, {1: 'Reader'}, [], ['permission']),
            ('no right outside the group', {}, {0: None}, [], []),
            ('no right for the workspace itself', {}, {2: None}, [], ['identity']),
            ('registry', {}, {}, [{'fault': 'admin-user-off', 'count': None}], ['registry'])):
        for fault in faults:
            azure.faults.add(**fault)
        assign(changed_roles)
        result = project('preflight', **changes)
        azure.faults.clear()
        rows.append((title, result.code, ', '.join(missing(result))))
        assert missing(result) == expected, result.text
        assert result.code == (2 if 'settings' in expected else bool(expected))
    # With Contributor on the group and nothing else, what is there already suffices.
    assign({0: None})
    project.good('workspace')
    assign({})
    show('preflight', rows)


def test_sign_in(project):
    azure, rows = project.azure, [('sign-in', 'exit code', 'says')]
    nothing = {name: '' for name in project.environ
               if name.startswith('AZUREML_SERVICE_') or name in (
                   'tenantId', 'servicePrincipalId', 'servicePrincipalKey')}
    nothing['PATH'] = str(project.folder)
    job = azure.new_job(with_connection=True)
    azure.secrets.add(job['SYSTEM_ACCESSTOKEN'])
    federated = {name: value for name, value in azure.connection.items()
                 if name.startswith('AZURESUBSCRIPTION_')}
    elsewhere = azure.new_job(with_connection=False)
    azure.secrets.add(elsewhere['SYSTEM_ACCESSTOKEN'])
    command = project.folder / 'az'
    command.write_text(f'#!/bin/sh\necho \'{{"accessToken": "{azure.tokens.issue()}"}}\'\n')
    command.chmod(0o755)
    for title, changes, code, said in (
            ('service principal', {}, 0, 'published already'),
            ('az', nothing, 0, 'published already'),
            ('federated', dict(nothing, **dict(federated, **job)), 0, 'published already'),
            ('federated, in a job that does not name it', dict(
                nothing, **dict(federated, **elsewhere)), 1, 'devops/sign_in.yml'),
            ('federated, without the token of the job', dict(nothing, **federated), 2,
             'SYSTEM_ACCESSTOKEN'),
            ('none', dict(nothing, PATH='/nowhere', TF_BUILD='True'), 1, '`az login`')):
        result = project('publish', **changes)
        rows.append((title, result.code, result.last))
        assert (result.code, said in result.text) == (code, True), result.text
    command.unlink()
    show('Sign-in', rows)


def test_faults_of_requests(project):
    rows = [HEADER]
    for number, (first, second) in enumerate((
            ('throttled', 'server-error'), ('unavailable', 'reset'))):
        made = project.strike(rows, f'{first}, {second}', [
            {'fault': first, 'path': CREATE}, {'fault': second, 'path': GET}], 'publish', 0,
            BUILD_BUILDID=f'requests-{number}')
        assert made['pipelines'] == 1
    project.strike(rows, 'unavailable, without end', [
        {'fault': 'unavailable', 'path': CREATE, 'count': None}], 'publish', 1,
        said='run this again later', BUILD_BUILDID='never', CALL_TIMEOUT_SECONDS='13')
    for fault, said in (('expired-token', 'HTTP 401'), ('forbidden', 'the role Contributor')):
        project.strike(rows, fault, [{'fault': fault, 'path': CREATE}], 'publish', 1, said=said,
                       BUILD_BUILDID='never')
    show('Faults of single requests', rows)


def test_faults_of_runs_and_new_data(project):
    """A build whose first run fails, and whose second has trouble on the way, on another table."""
    rows = [HEADER]
    project.good('dataset', '--data', make_table(project.folder, 2))
    made = project.strike(
        rows, 'step-fails', [{'fault': 'step-fails', 'step': 'train'}], 'run', 1,
        said='step train failed', BUILD_BUILDID='runs')
    assert (made['runs'], made['models']) == (1, 0)
    made = project.strike(rows, 'answer to the submission lost; then 429, 503, 500, reset', [
        {'fault': 'reset', 'path': 'PipelineSubmit', 'after': True},
        {'fault': 'throttled', 'path': 'runs:query'},
        {'fault': 'unavailable', 'path': 'Graph/Node/StatusCode', 'skip': 1},
        {'fault': 'server-error', 'path': '/children', 'skip': 1},
        {'fault': 'reset', 'path': 'GET .*/PipelineRuns/', 'skip': 3}], 'run', 0,
        BUILD_BUILDID='runs')
    assert made == {'pipelines': 0, 'runs': 1, 'models': 1, 'deployments': 0}
    model, = [row for row in project.rows('models') if row['kvTags']['BuildId'] == 'runs']
    # By the pipeline that build 1 published.
    assert model['kvTags']['dataset_version'] == '2' and model['version'] > 1
    show('Faults of runs', rows)


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """A copy of the folder that is deployed, to be changed."""
    folder = tmp_path / 'scoring'
    shutil.copytree(str(ROOT / 'scoring'), str(folder),
                    ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr('deploy.SOURCE', folder)
    return folder


def test_faults_of_services(project, scoring):
    rows, create = [HEADER], 'POST .*/services$'

    def deploy(title, faults, code=0, **more):
        return project.strike(rows, title, faults, 'deploy', code, **more)['deployments']

    (scoring / 'change').write_text('1')
    assert deploy('throttled, reset, 503, then late', [
        {'fault': 'throttled', 'path': create}, {'fault': 'reset', 'path': create, 'skip': 1},
        {'fault': 'unavailable', 'path': 'GET .*/operations/'},
        {'fault': 'late', 'seconds': 1}]) == 1
    (scoring / 'change').write_text('2')
    assert deploy('reset after the request was carried out', [
        {'fault': 'reset', 'path': create, 'after': True}]) == 1
    (scoring / 'change').write_text('3')
    deploy('late, beyond the deadline', [{'fault': 'late', 'seconds': 15}], 1,
           said='the deployment goes on', DEPLOY_TIMEOUT_MINUTES='0.02')
    assert deploy('none: the same again', [], said='being deployed already') == 0
    show('Faults of services', rows)


def test_rollback(project, scoring):
    def state(title, result=None):
        smoke = result or project('smoke_test', '--service', 'aci')
        rows.append((title, smoke.code, smoke.last))
        return smoke

    rows = [('when', 'exit code', 'says')]
    score = (scoring / 'score.py').read_text()
    broken = score.replace('def run(request):', 'def run(request):\n    1 / 0\n')
    assert score != broken
    (scoring / 'score.py').write_text(broken)
    deployed = project.counts()['deployments']
    project.good('deploy', BUILD_BUILDID='2')
    assert state('new scoring files, which are broken').code == 1
    # The failure hook of a build that failed before it deployed leaves the other's service alone.
    for build, attempt in (('3', '1'), ('2', '2')):
        other = state(f'make rollback in build {build}, attempt {attempt}', project.good(
            'rollback', BUILD_BUILDID=build, SYSTEM_STAGEATTEMPT=attempt))
        assert other.last.startswith('nothing to roll back') and 'by build 2,' in other.last
    assert project.counts()['deployments'] == deployed + 1
    # When the second attempt gets as far as that, the version is its own to roll back.
    project.good('deploy', BUILD_BUILDID='2', SYSTEM_STAGEATTEMPT='2')
    assert project.counts()['deployments'] == deployed + 2
    back = state('after make rollback', project.good(
        'rollback', BUILD_BUILDID='2', SYSTEM_STAGEATTEMPT='2'))
    assert 'back from version' in back.text and 'answers as' in back.text
    assert project.read('service.json')['previous_version'] is None
    again = state('a second rollback', project('rollback', BUILD_BUILDID='2',
                                               SYSTEM_STAGEATTEMPT='2'))
    assert again.code == 1 and 'names none before it' in again.text
    show('A failed smoke test, then rollback', rows)
