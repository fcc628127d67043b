"""The Azure ML path end to end: real scripts and SDK, Azure ML on loopback. -s prints the tables.

    pytest -s -m end_to_end tests/test_azure_path.py
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import dataset
import loopback
from conftest import ROOT

pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
pytest.importorskip('trustme')
pytestmark = pytest.mark.end_to_end

REAL_ROWS = ROOT.parent / 'shared' / 'data' / 'porto_seguro_10000.csv'
PARTS = ('training', 'scoring', 'scripts', 'conda_dependencies.yml')
LONGEST_SECONDS = 600
# Enough for a model that tells rows apart.
ROWS = 5000
# As for a service principal without the role Reader on the subscription.
OUTSIDE_THE_GROUP = {'fault': 'forbidden', 'count': None, 'path':
                     r'management\.azure\.com/subscriptions/[^/]+(\?|$|/providers/)'}


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
    """A copy of the project that talks to loopback; each has its own names in the workspace."""

    def __init__(self, azure, folder, name, **settings):
        self.azure, self.name, self.folder = azure, name, folder / name
        for part in PARTS:
            source, goal = ROOT / part, self.folder / part
            if source.is_dir():
                shutil.copytree(str(source), str(goal),
                                ignore=shutil.ignore_patterns('__pycache__'))
            else:
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(source), str(goal))
        self.out = self.folder / 'outputs'
        self.environ = {
            'PATH': os.environ['PATH'], 'RESOURCE_GROUP': 'mlops-RG', 'LOCATION': 'westeurope',
            'WORKSPACE_NAME': 'mlops-AML-WS', 'MODEL_NAME': name, 'DATASET_NAME': name,
            'EXPERIMENT_NAME': name, 'TRAINING_PIPELINE_NAME': name, 'TF_BUILD': 'True',
            'ACI_DEPLOYMENT_NAME': 'aci-' + name, 'CALL_TIMEOUT_SECONDS': '60',
            'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
        self.environ.update(azure.env, **settings)
        self.texts = []

    def start(self, script, *words, **settings):
        takes_out = script in ('publish', 'run', 'deploy', 'rollback', 'smoke_test')
        command = [sys.executable, str(self.folder / 'scripts' / (script + '.py'))]
        command += ['--out', str(self.out)] * takes_out + [str(word) for word in words]
        return subprocess.Popen(command, env=dict(self.environ, **settings),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def finish(self, process, begin=None):
        text = process.communicate(timeout=LONGEST_SECONDS)[0].decode()
        self.texts.append(text)
        return Result(process.returncode, text, time.monotonic() - (begin or time.monotonic()))

    def __call__(self, script, *words, **settings):
        begin = time.monotonic()
        return self.finish(self.start(script, *words, **settings), begin)

    def good(self, script, *words, **settings):
        result = self(script, *words, **settings)
        assert result.code == 0, result.text
        return result

    def train(self, build, **settings):
        self.good('publish', BUILD_BUILDID=build, **settings)
        self.good('run', BUILD_BUILDID=build, **settings)
        return self.read('run.json')

    def read(self, name):
        return json.loads((self.out / name).read_text())

    def edit(self, path, old, new):
        file = self.folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def rows(self, table):
        (space,) = self.azure.journal.table('workspaces').values()
        return self.azure.table(space, table).values()

    def counts(self):
        """How many pipelines, runs, models and deployments of this project the workspace holds."""
        return {
            'pipelines': sum(row['Name'] == self.name and row['EntityStatus'] == '0'
                             for row in self.rows('pipelines')),
            'runs': sum(row['experiment'] == self.name and row['dto']['parentRunId'] is None
                        for row in self.rows('runs')),
            'models': sum(row['name'] == self.name for row in self.rows('models')),
            'deployments': sum(row['resourceLocation'].endswith('/services/aci-' + self.name)
                               for row in self.rows('operations'))}


def show(title, rows):
    print(f'\n### {title}')
    print('\n'.join(f"| {' | '.join((str(cell) for cell in row))} |" for row in rows))


def make_table(project, rows, seed):
    path = project.folder / (f'table-{seed}.csv')
    subprocess.check_call([sys.executable, str(project.folder / 'training' / 'sample.py'),
                           '--rows', str(rows), '--seed', str(seed), '--out', str(path)],
                          stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    folder = tmp_path_factory.mktemp('azure')
    with loopback.start(str(folder), python=sys.executable) as azure:
        yield azure
    assert azure.unknown == []


@pytest.fixture(scope='module')
def workspace(azure, tmp_path_factory):
    """The projects' folder, with a workspace; at the end, a search of everything for secrets."""
    folder = tmp_path_factory.mktemp('projects')
    Project(azure, folder, 'first').good('workspace')
    projects = []
    yield azure, folder, projects
    secrets = {azure.env['servicePrincipalKey']}
    for project in projects:
        for row in project.rows('services'):
            secrets.update(row['keys'].values())
    token = re.compile('eyJ[A-Za-z0-9_-]{20,}')
    texts = [text for project in projects for text in project.texts]
    files = [path for root in [folder] + list(map(type(folder), [azure.env['HOME']]))
             for path in root.rglob('*') if path.is_file()]
    texts += [path.read_bytes().decode('utf-8', 'replace') for path in files]
    found = [secret[:4] + '...' for secret in secrets for text in texts if secret in text]
    found += [match.group()[:20] for match in map(token.search, texts) if match]
    show('Secrets', [('searched for', '%d keys and the principal\'s secret, tokens (eyJ...)'
                      % (len(secrets) - 1)),
                     ('in', f'{len(texts) - len(files)} outputs, {len(files)} files'),
                     ('found', found)])
    assert found == []


@pytest.fixture
def project(workspace, request):
    azure, folder, projects = workspace
    name = request.node.name.split('[')[0].replace('test_', '').replace('_', '-')[:20].strip('-')
    made = Project(azure, folder, name)
    projects.append(made)
    yield made
    azure.faults.clear()


def test_whole_path(project):
    table = REAL_ROWS if REAL_ROWS.exists() else make_table(project, 10000, 1)
    rows = [('command', 'seconds', 'says')]
    for words in (['preflight'], ['dataset', '--data', table], ['preflight'], ['publish'], ['run'],
                  ['deploy'], ['smoke_test', '--service', 'aci']):
        result = project(*words, BUILD_BUILDID='1', BUILD_URI='https://dev.azure.com/o/p')
        first = len(rows) == 1
        rows.append((words[0], f'{result.seconds:.1f}', result.last))
        assert result.code == (1 if first else 0), result.text
        assert ('MISSING  there is no dataset' in result.text) == first
    show('The whole path, %s, Python %d.%d' % ((table.name,) + sys.version_info[:2]), rows + [
        ('together', f'{sum((float(row[1]) for row in rows[1:])):.1f}', '')])
    assert '##vso[task.setvariable variable=result;isOutput=true]registered' in ''.join(
        project.texts)
    assert project.read('pipeline.json')['build_id'] == '1'
    run, service = project.read('run.json'), project.read('service.json')
    assert (run['result'], run['model'], run['version']) == ('registered', project.name, 1)
    assert (service['version'], service['previous_version']) == (1, None)
    (model,) = [row for row in project.rows('models') if row['name'] == project.name]
    assert model['kvTags']['BuildId'] == '1' and model['kvTags']['dataset_version'] == '1'
    assert model['runId'] and float(model['kvTags']['auc']) > 0.5
    (live,) = [row for row in project.rows('services') if row['name'] == service['name']]
    assert live['authEnabled'] and live['appInsightsEnabled']
    # A table with a fault never leaves this machine.
    bad = project.folder / 'bad.csv'
    bad.write_text(table.read_text().replace('ps_ind_01', 'ps_ind_99', 1))
    refused = project('dataset', '--data', bad)
    assert refused.code == 1 and 'ps_ind_01' in refused.text
    same = project.good('dataset', '--data', table)
    assert 'version 1: holds this table already' in same.text


def test_preflight(project):
    def missing(result):
        return [line.split('  ')[0] for line in result.text.splitlines() if ' MISSING ' in line]

    rows = [('wrong', 'exit code', 'seconds', 'reported as missing')]
    project.good('dataset', '--data', make_table(project, ROWS, 1))
    # The first submission makes the registry.
    project.good('publish', BUILD_BUILDID='1')
    project('run', BUILD_BUILDID='1', RUN_TIMEOUT_MINUTES='0.01')
    project.good('cancel_run', BUILD_BUILDID='1')
    cases = [
        ('nothing', {}, [], []),
        ('two settings', {'WORKSPACE_NAME': '', 'ACI_DEPLOYMENT_NAME': 'a_b'}, [], ['settings']),
        ('the secret', {'servicePrincipalKey': 'x'}, [], ['sign-in']),
        ('the resource group', {'RESOURCE_GROUP': 'other'}, [], ['resource group']),
        ('the workspace', {'WORKSPACE_NAME': 'other'}, [], ['workspace']),
        ('cluster, size and dataset', {
            'AML_COMPUTE_CLUSTER_NAME': 'other', 'DATASET_VERSION': '9',
            'AML_COMPUTE_CLUSTER_CPU_SKU': 'STANDARD_M1'}, [],
            ['machine size', 'compute cluster', 'dataset']),
        ('permission', {}, [{'fault': 'forbidden', 'path': 'permissions'}], ['permission']),
        ('rights on the subscription', {}, [OUTSIDE_THE_GROUP], []),
        ('registry', {}, [{'fault': 'admin-user-off', 'count': None}], ['registry'])]
    for title, changes, faults, expected in cases:
        for fault in faults:
            project.azure.faults.add(**fault)
        result = project('preflight', **changes)
        project.azure.faults.clear()
        rows.append((title, result.code, f'{result.seconds:.1f}', ', '.join(missing(result))))
        assert missing(result) == expected, result.text
        assert result.code == bool(expected)
    # With Contributor on the resource group and nothing else, what is there already suffices.
    project.azure.faults.add(**OUTSIDE_THE_GROUP)
    rows.append(('the same', project.good('workspace').code, '', ''))
    show('preflight', rows)


def test_repeat(project):
    project.good('dataset', '--data', make_table(project, ROWS, 1))
    rows = [('time', 'pipelines', 'runs', 'models', 'deployments', 'says')]
    for time_ in range(3):
        # Each stage may start on a fresh machine; only run.json travels to deploy.
        project.out = project.folder / (f'outputs-{time_}')
        texts = [project.good(verb, BUILD_BUILDID='1').last
                 for verb in ('publish', 'run', 'deploy')]
        counts = project.counts()
        rows.append([time_ + 1] + [counts[name] for name in rows[0][1:5]] + ['; '.join(texts)])
        assert set(counts.values()) == {1}
    show('publish, run, deploy three times with one build id', rows)


def test_worse_challenger(project):
    table = make_table(project, ROWS, 1)
    project.good('dataset', '--data', table)
    project.train('1')
    poor = json.loads((project.folder / 'training' / 'parameters.json').read_text())
    poor.update(rounds=5, dropped_columns=['ps_ind_*', 'ps_reg_*', 'ps_car_*'])
    (project.folder / 'training' / 'parameters.json').write_text(json.dumps(poor))
    run = project.train('2', RUN_EVALUATION='true')
    assert (run['result'], run['version']) == ('kept', 1)
    result = project.good('deploy', RUN_EVALUATION='true')
    show('RUN_EVALUATION=true with a worse challenger', [
        ('run', run['result'], f"version {run['version']}", run['reason']),
        ('deploy', result.last)])
    assert 'nothing to deploy' in result.text and project.counts()['deployments'] == 0
    assert 'variable=result;isOutput=true]kept' in ''.join(project.texts)
    # ALLOW_RUN_CANCEL=false registers it all the same; here from a file instead of the dataset.
    path = f'{project.name}/{dataset.sha256(str(table))[:16]}/{table.name}'
    run = project.train('3', RUN_EVALUATION='true', ALLOW_RUN_CANCEL='false', DATA_FILE_PATH=path)
    assert (run['result'], run['version']) == ('registered', 2)


def test_rollback(project):
    def state(title, result=None):
        row = [title, project.read('service.json')['version']]
        smoke = result or project('smoke_test', '--service', 'aci')
        rows.append(row + [smoke.code, smoke.last])
        return smoke

    rows = [('when', 'version', 'exit code', 'says')]
    project.good('dataset', '--data', make_table(project, ROWS, 1))
    project.train('1')
    project.good('deploy')
    assert project('rollback').code == 1
    smoke = state('before')
    assert smoke.code == 0, smoke.text
    project.train('2')
    project.edit('scoring/score.py', 'def run(request):', 'def run(request):\n    1 / 0\n')
    project.good('deploy', BUILD_BUILDID='2')
    assert state('the new version, whose score.py is broken').code == 1
    # The failure hook of a build that failed before it deployed leaves the other's service alone.
    for build, attempt in (('3', '1'), ('2', '2')):
        other = state(f'make rollback in build {build}, attempt {attempt}', project.good(
            'rollback', BUILD_BUILDID=build, SYSTEM_STAGEATTEMPT=attempt))
        assert other.last.startswith('nothing to roll back') and 'by build 2,' in other.last
    assert project.counts()['deployments'] == 2
    # When the second attempt gets as far as that, the version is its own to roll back.
    project.good('deploy', BUILD_BUILDID='2', SYSTEM_STAGEATTEMPT='2')
    assert project.counts()['deployments'] == 3
    back = project.good('rollback', BUILD_BUILDID='2', SYSTEM_STAGEATTEMPT='2')
    assert 'back from version 2 to version 1' in back.text and 'answers as' in back.text
    assert project.read('service.json')['previous_version'] is None
    state('after make rollback', back)
    again = project('rollback')
    rows.append(('a second rollback', project.read('service.json')['version'], again.code,
                 again.last))
    assert again.code == 1 and 'names none before it' in again.text
    show('A failed smoke test, then rollback', rows)


def test_pins_and_data(project):
    def environments():
        return {row['versions'][0]['name'] for row in project.rows('environments')}

    rows = [('changed pin', 'new environments')]
    project.environ['AML_ENV_NAME'] = 'pins'
    project.good('workspace')
    for tag, package in (('tools', 'pytest=='), ('training', 'pandas=')):
        project.edit('conda_dependencies.yml', '- ' + package, '- ' + package + '1.')
        before = environments()
        project.good('workspace')
        rows.append((tag, ', '.join(sorted(environments() - before)) or 'none'))
    show('Changed pins', rows)
    assert rows[1][1] == 'none' and re.fullmatch('pins-training-[0-9a-f]{12}', rows[2][1])
    project.environ['AML_ENV_NAME'] = 'safe-driver'
    rows = [('data', 'dataset version', 'model version', 'of dataset version')]
    project.good('publish', BUILD_BUILDID='1')
    for number in (1, 2):
        text = project.good('dataset', '--data', make_table(project, ROWS, number)).last
        project.good('run', BUILD_BUILDID=f'retraining-{number}')
        version = project.read('run.json')['version']
        (model,) = [row for row in project.rows('models')
                    if (row['name'], row['version']) == (project.name, version)]
        rows.append((number, text, version, model['kvTags']['dataset_version']))
    show('New data under the same name, one published pipeline', rows)
    assert [row[2:] for row in rows[1:]] == [(1, '1'), (2, '2')]
    assert project.counts()['pipelines'] == 1


def strike(project, rows, title, faults, verb, expected, words=(), said='', **settings):
    """Run a verb under faults; adds a row to the table, checks exit code and message."""
    before = project.counts()
    for fault in faults:
        project.azure.faults.add(**fault)
    result = project(verb, *words, **settings)
    project.azure.faults.clear()
    after = project.counts()
    made = {name: after[name] - before[name] for name in after}
    rows.append((title, verb, result.code, f'{result.seconds:.1f}',
                 ', '.join(f'{number} {name}' for name, number in made.items() if number)
                 or 'nothing', result.last[:300]))
    assert result.code == expected, result.text
    assert said in result.text
    return made, result


HEADER = ('fault', 'command', 'exit code', 'seconds', 'made', 'says')


def test_sign_in(project):
    rows = [('sign-in', 'exit code', 'says')]
    principal = {name: '' for name in project.environ
                 if name.startswith('AZUREML_SERVICE_') or name in (
                     'tenantId', 'servicePrincipalId', 'servicePrincipalKey')}
    command = project.folder / 'az'
    nothing = dict(principal, PATH=str(project.folder / 'empty'))
    token = project.azure.tokens.issue()
    command.write_text('#!/bin/sh\necho \'{"accessToken": "%s"}\'\n' % token)
    command.chmod(0o755)
    by_command = dict(principal, PATH=f"{project.folder}:{os.environ['PATH']}")
    for title, changes, code, said in (
            ('service principal', {}, 0, 'published'),
            ('az is signed in, a federated connection too', dict(by_command, idToken='x'), 0,
             'published already'),
            ('a federated token and no az', dict(nothing, idToken='x'), 1, 'is federated'),
            ('none', nothing, 1, 'addSpnToEnvironment')):
        result = project('publish', BUILD_BUILDID='1', **changes)
        rows.append((title, result.code, result.last))
        assert (result.code, said in result.text) == (code, True), result.text
    command.unlink()
    show('Sign-in', rows)


def test_faults_of_requests(project):
    rows, create = [HEADER], 'POST .*/Pipelines/Create'
    get = 'GET .*/environments/'
    for number, fault in enumerate(('throttled', 'server-error', 'unavailable', 'reset')):
        made, _ = strike(project, rows, fault + ', once', [
            {'fault': fault, 'path': create}, {'fault': fault, 'path': get}], 'publish', 0,
            BUILD_BUILDID=str(number))
        assert made['pipelines'] == 1
    made, _ = strike(project, rows, 'reset after the request was carried out', [
        {'fault': 'reset', 'path': create, 'after': True}], 'publish', 0, BUILD_BUILDID='lost')
    assert made['pipelines'] == 1
    for fault, said in (('unavailable', 'run this again later'), ('reset', 'no connection'),
                        ('throttled', 'throttling')):
        strike(project, rows, fault + ', without end', [
            {'fault': fault, 'path': create, 'count': None}], 'publish', 1, said=said,
            BUILD_BUILDID='never', CALL_TIMEOUT_SECONDS='10')
    strike(project, rows, 'stalled', [{'fault': 'stalled', 'path': get}], 'publish', 1,
           said='no answer within 5 s', BUILD_BUILDID='never', CALL_TIMEOUT_SECONDS='5')
    strike(project, rows, 'expired-token', [{'fault': 'expired-token', 'path': create}], 'publish',
           1, said='HTTP 401', BUILD_BUILDID='never')
    strike(project, rows, 'forbidden', [{'fault': 'forbidden', 'path': create}], 'publish', 1,
           said='the role Contributor', BUILD_BUILDID='never')
    strike(project, rows, 'wrong secret', [], 'publish', 1, said='renew the secret',
           servicePrincipalKey='wrong')
    show('Faults of single requests', rows)
    assert project.counts()['pipelines'] == 5


def test_faults_of_runs(project):
    rows = [HEADER]
    project.good('dataset', '--data', make_table(project, ROWS, 1))
    project.good('publish', BUILD_BUILDID='1')
    made, _ = strike(project, rows, 'answer to the submission lost; then 429, 503, 500, reset', [
        {'fault': 'reset', 'path': 'PipelineSubmit', 'after': True},
        {'fault': 'throttled', 'path': 'runs:query'},
        {'fault': 'unavailable', 'path': 'Graph/Node/StatusCode', 'skip': 1},
        {'fault': 'server-error', 'path': '/children', 'skip': 1},
        {'fault': 'reset', 'path': 'GET .*/PipelineRuns/', 'skip': 3},
        {'fault': 'registration-collides'}], 'run', 0, BUILD_BUILDID='1')
    assert (made['runs'], made['models']) == (1, 1)
    made, result = strike(
        project, rows, 'step-fails', [{'fault': 'step-fails', 'step': 'evaluate'}], 'run', 1,
        said='step evaluate failed', BUILD_BUILDID='2')
    assert made['models'] == 0 and 'loopback' in result.text
    made, _ = strike(project, rows, 'none: the failed build again', [], 'run', 0,
                     BUILD_BUILDID='2')
    assert (made['runs'], made['models']) == (1, 1)
    made, result = strike(
        project, rows, 'step-never-ends', [{'fault': 'step-never-ends', 'step': 'train'}], 'run',
        1, said='BUILD_BUILDID=3 make cancel-run', BUILD_BUILDID='3', RUN_TIMEOUT_MINUTES='0.05')
    made, result = strike(project, rows, 'the same run', [], 'run', 1, said='attached',
                          BUILD_BUILDID='3', RUN_TIMEOUT_MINUTES='0.02')
    assert made['runs'] == 0
    strike(project, rows, 'the same run', [], 'cancel_run', 0, said='cancelled run',
           BUILD_BUILDID='3')
    strike(project, rows, 'no-capacity', [{'fault': 'no-capacity'}], 'run', 1,
           said='; compute cluster train-cluster: ClusterCoreQuotaReached', BUILD_BUILDID='4',
           RUN_TIMEOUT_MINUTES='0.05')
    strike(project, rows, 'the same run', [], 'cancel_run', 0, BUILD_BUILDID='4')
    # An agent that cancels a job sends SIGTERM.
    project.azure.faults.add('step-never-ends', step='train')
    process = project.start('run', BUILD_BUILDID='5')
    seen = b''
    while b'step train: Running' not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGTERM)
    result = project.finish(process)
    rows.append(('SIGTERM', 'run', result.code, '', '1 runs', result.last))
    assert result.code == 1 and 'BUILD_BUILDID=5 make run' in result.text
    project.good('cancel_run', BUILD_BUILDID='5')
    show('Faults of runs', rows)
    assert project.counts() == {'pipelines': 1, 'runs': 6, 'models': 2, 'deployments': 0}


def test_faults_of_services(project):
    rows = [HEADER]
    project.good('dataset', '--data', make_table(project, ROWS, 1))
    project.train('1')
    create = 'POST .*/services$'
    made, _ = strike(project, rows, 'throttled, reset, 503, then late', [
        {'fault': 'throttled', 'path': create}, {'fault': 'reset', 'path': create, 'skip': 1},
        {'fault': 'unavailable', 'path': 'GET .*/operations/'}, {'fault': 'late', 'seconds': 3}],
        'deploy', 0, BUILD_BUILDID='1')
    assert made['deployments'] == 1
    strike(project, rows, 'scoring-500', [{'fault': 'scoring-500', 'count': None}], 'smoke_test', 1,
           words=('--service', 'aci'), said='500')
    project.train('2')
    made, _ = strike(project, rows, 'crash-loop', [{'fault': 'crash-loop', 'count': None}],
                     'deploy', 1, said='crashes on demand', BUILD_BUILDID='2')
    strike(project, rows, 'none: back', [], 'rollback', 0, said='answers as')
    project.edit('scoring/deployment.json', '"memory_gb": 1', '"memory_gb": 2')
    made, _ = strike(project, rows, 'other memory', [], 'deploy', 1, said='ACI_REPLACE=true')
    assert made['deployments'] == 0
    strike(project, rows, 'other memory, ACI_REPLACE=true', [], 'deploy', 0, ACI_REPLACE='true')
    made, _ = strike(project, rows, 'reset after the request was carried out', [
        {'fault': 'reset', 'path': create, 'after': True}], 'deploy', 0, MODEL_VERSION='1')
    assert made['deployments'] == 1
    strike(project, rows, 'late, beyond the deadline', [{'fault': 'late', 'seconds': 20}], 'deploy',
           1, said='the deployment goes on', MODEL_VERSION='2', DEPLOY_TIMEOUT_MINUTES='0.02')
    made, _ = strike(project, rows, 'none: the same again', [], 'deploy', 0, MODEL_VERSION='2',
                     said='being deployed already')
    assert made['deployments'] == 0
    show('Faults of services', rows)
