"""The rehearsal's agent against small pipelines, each run for real in a repository of its own."""
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import job_runner
import pipeline_yaml
import rehearse
from conftest import ROOT, python_of_one_thread

pytestmark = [pytest.mark.no_cover, pytest.mark.end_to_end]

JOB = {'SYSTEM_OIDCREQUESTURI': 'http://devops/job', 'SYSTEM_ACCESSTOKEN': 'j0b t0ken'}
CONNECTION = {'tenantId': 'tenant', 'servicePrincipalId': 'me', 'servicePrincipalKey': 's3cret'}
CASE = '<testcase classname="a" name="good"/>'
SKIPPED = '<testcase classname="a" name="not here"><skipped/></testcase>'
FAILURE = '<testcase classname="a" name="bad"><failure/></testcase>'
HOLDER = """import fcntl, sys, time
held = open(sys.argv[1], 'w')
fcntl.flock(held, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(60)
open(sys.argv[1] + '.ended', 'w')
"""
# What is in the repository.
FILES = {
    'pins.txt': 'numpy', 'holder.py': HOLDER, 'cut-off.xml': '<testsuite>',
    'passed.xml': f'<testsuite>{CASE}</testsuite>',
    'skipped.xml': f'<testsuite>{CASE}{SKIPPED}</testsuite>',
    'failed.xml': f'<testsuite>{CASE}{FAILURE}</testsuite>',
    'coverage.xml': '<coverage line-rate="0.925"/>', 'empty.xml': '<coverage line-rate="0"/>'}


class Azure:
    """In place of the stand-in for Azure."""
    faults = set()
    new_job = staticmethod(lambda with_connection: JOB)
    proxy_environment = staticmethod(lambda: {'HTTPS_PROXY': 'http://stand-in'})


class Project:
    """In place of a Rehearsal, and of its screen: runs the text of a pipeline."""
    azure, environ, seed, rejected = Azure, {'PATH': os.environ['PATH']}, None, None
    of_connection = staticmethod(lambda: CONNECTION)
    show_progress = contextlib.nullcontext

    def __init__(self, folder, origin):
        self.folder, self.cache, self.origin = folder / 'out', folder / 'cache', origin
        self.screen, self.lines = self, []
        self.say = self.lines.append

    def run(self, text):
        """Run the YAML text; {stage: result}, rows kept."""
        path = self.folder.with_name('pipeline.yml')
        path.write_text(text)
        pipeline = pipeline_yaml.read_pipeline(path)
        self.variables = dict(
            {'AZURE_RM_SVC_CONNECTION': 'rehearsal'}, **pipeline_yaml.variables(pipeline))
        self.rows = rehearse.run_stages(self, pipeline_yaml.stages(pipeline))
        return {stage: result for stage, result, _, _ in self.rows}

    def log(self, pattern):
        return next(self.folder.rglob(pattern)).read_text()

    def logs(self):
        return [path.name for path in sorted(self.folder.rglob('*.log'))]


@pytest.fixture(scope='module')
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp('origin')
    root = folder / 'project'
    root.mkdir()
    for name, content in FILES.items():
        (root / name).write_text(content)
    rehearse.snapshot(root, folder / 'origin', folder / 'out')
    return folder / 'origin'


@pytest.fixture
def project(tmp_path, origin):
    return Project(tmp_path, origin)


def stage(name, *steps, **more):
    """The YAML of a stage with one job; a step is the text below its dash."""
    lines = ['- stage: ' + name] + [f'  {key}: {value}' for key, value in more.items()]
    lines += ['  jobs:', '  - job: ' + name, '    steps:', '    - checkout: self']
    for step in steps:
        lines += ['    - ' + step.strip().replace('\n', '\n      ')]
    return '\n'.join(lines) + '\n'


def pipeline(*stages):
    return 'trigger: none\nstages:\n' + ''.join(stages)


def script(text, **more):
    return 'script: ' + json.dumps(text) + ''.join(
        f'\n{key}: {value}' for key, value in more.items())


def test_stages_run_in_order_and_stop_after_a_failure(project):
    result = project.run(pipeline(
        stage('a', script('exit 3'), script('echo never'),
              script('echo ran', condition='succeededOrFailed()')),
        stage('b', script('echo never'))))
    assert result == {'a': 'failed', 'b': 'skipped'}
    assert project.logs() == [
        '01-checkout-self.log', '02-script-exit-3.log', '04-script-echo-ran.log']
    assert any('exit code 3' in line for line in project.lines)
    assert project.rows[0][3] == ['failed: script exit 3']


def read_output(project, name, word):
    command = f'echo "##vso[task.setvariable variable=result;isOutput=true]{word}"'
    return project.run(pipeline(
        stage('a', script(command, name='run')),
        stage('b', script('true'), dependsOn='a', condition='and(succeeded(), '
              f"eq(dependencies.a.outputs['{name}'], 'registered'))")))


@pytest.mark.parametrize('word, result', [('registered', 'succeeded'), ('kept', 'skipped')])
def test_an_output_variable_decides_about_the_next_stage(project, word, result):
    results = read_output(project, 'a.run.result', word)
    assert results == {'a': 'succeeded', 'b': result}
    assert rehearse.result_of(results.values()) == 'succeeded'
    assert project.rows[0][3] == ['result=' + word]


def test_an_output_that_is_never_there_stops_the_rehearsal(project):
    with pytest.raises(rehearse.RehearsalError, match="outputs\\['a.run.outcome'\\] of stage a"):
        read_output(project, 'a.run.outcome', 'kept')
    with pytest.raises(rehearse.RehearsalError, match='stage b, which set .*not in dependsOn'):
        project.run(pipeline(stage('b', script('true')), stage('c', script('true'), dependsOn='[]',
                    condition="and(succeeded(), eq(dependencies.b.outputs['b.c.d'], 'x'))")))


def test_only_artifacts_pass_from_one_fresh_checkout_to_the_next(project):
    result = project.run(pipeline(
        stage('a', script('mkdir outputs; echo 7 > outputs/id.json; echo x > left'),
              'publish: outputs/id.json\nartifact: id'),
        stage('b', script('test ! -e outputs && test ! -e left && test -e pins.txt'),
              'task: DownloadPipelineArtifact@2\ninputs:\n  artifactName: id\n'
              '  targetPath: $(Build.SourcesDirectory)/outputs',
              script('grep 7 outputs/id.json'))))
    assert result == {'a': 'succeeded', 'b': 'succeeded'}
    assert (project.folder / '1-a/outputs/id.json').read_text() == '7\n'


SIGN_IN = '''task: AzureCLI@2
inputs:
  azureSubscription: $(AZURE_RM_SVC_CONNECTION)
  scriptType: bash
  scriptLocation: inlineScript
  addSpnToEnvironment: true
  inlineScript: |
    echo "##vso[task.setvariable variable=PASSWORD;issecret=true]$servicePrincipalKey"
    echo "key $servicePrincipalKey"'''


def test_a_secret_reaches_only_the_step_that_takes_it_and_no_log(project):
    result = project.run(pipeline(stage(
        'a', script('test -z "${HTTPS_PROXY:-}"'), SIGN_IN,
        script('test -z "${PASSWORD:-}${servicePrincipalKey:-}" && test -n "$HTTPS_PROXY"'),
        script('test "$P" = s3cret && echo "it is $P"', env='{P: $(PASSWORD)}',
               displayName='Use it'))))
    assert result == {'a': 'succeeded'}
    assert 'it is ***' in project.log('05-*.log')
    kept = [path for path in project.folder.rglob('*')
            if path.is_file() and b's3cret' in path.read_bytes()]
    assert kept == [] and 's3cret' not in '\n'.join(project.lines)


def say(command, data):
    return script(f'echo "##vso[{command}]{data}"')


PUBLISH = 'publish: pins.txt\nartifact: id'
RESULTS = '''task: PublishTestResults@2
inputs: {testResultsFormat: JUnit, testResultsFiles: %s, testRunTitle: Unit}'''
COVERAGE = '''task: PublishCodeCoverageResults@2
inputs: {summaryFileLocation: $(System.DefaultWorkingDirectory)/%s}'''
OUTPUT = 'echo "##vso[task.setvariable variable=word;isOutput=true]x"'
TOOL = 'mkdir bin; cp /bin/true bin/tool; echo "##vso[task.prependpath]$PWD/bin"'


@pytest.mark.parametrize('steps, result, said', [
    # A script fails by its last command, as in bash without -e.
    ([script('false\ntrue')], 'succeeded', ''),
    # An output has the name of its step in front, within the job too.
    ([script(OUTPUT, name='run'),
      script('test "$(run.word)$RUN_WORD" = xx && test -z "${WORD:-}"')], 'succeeded', ''),
    # Variables, macros and the path reach a step, and $(date) stays the shell's.
    ([script(TOOL), script('test "$M-$(M)-$AGENT_OS" = "m1-m1-$(Agent.OS)" && tool && $(echo true)')
      ], 'succeeded', ''),
    ([RESULTS % 'passed.xml'], 'succeeded', 'Unit: 1 passed'),
    ([RESULTS % 'skipped.xml'], 'succeeded', 'Unit: 1 passed, 1 skipped'),
    ([RESULTS % 'failed.xml'], 'failed', 'Unit: 1 passed, 1 failed'),
    ([RESULTS % 'none.xml'], 'failed', 'none.xml does not exist'),
    ([RESULTS % 'cut-off.xml'], 'failed', 'is no XML'),
    ([COVERAGE % 'coverage.xml'], 'succeeded', 'coverage 92 %'),
    ([COVERAGE % 'empty.xml'], 'failed', 'the coverage is empty'),
    ([COVERAGE % 'passed.xml'], 'failed', 'no Cobertura file'),
    ([COVERAGE % 'none.xml'], 'failed', 'none.xml does not exist'),
    # An artifact may be a folder.
    ([script('mkdir -p out/a; echo > out/a/b; echo > out/c'), 'publish: out\nartifact: id',
      'task: DownloadPipelineArtifact@2\ninputs:\n  artifactName: id\n'
      '  targetPath: $(Build.SourcesDirectory)/x', script('ls x/c x/a/b')], 'succeeded',
     'artifact id (a/b, c)'),
    # What the service would refuse.
    (['publish: outputs/none.json\nartifact: id'], 'failed',
     'does not exist, so there is no artifact id'),
    ([PUBLISH, PUBLISH], 'failed', 'already exists'),
    (['task: DownloadPipelineArtifact@2\ninputs: {artifactName: id, targetPath: x}'], 'failed',
     'no stage published'),
    (['task: Cache@2\ninputs: {key: none.txt, path: .venv}'], 'failed',
     'none.txt, which does not exist'),
    (['task: AzureCLI@2\ninputs: {azureSubscription: other, inlineScript: ls}'], 'failed',
     'no service connection other'),
    ([say('build.uploadlog', 'pins.txt')], 'failed', 'build.uploadlog'),
    ([say('build.addbuildtag', ' kept-version-3 ')], 'succeeded', 'tag kept-version-3'),
    ([say('build.addbuildtag', 'kept:3')], 'failed', "'kept:3' cannot be a tag"),
    ([say('build.addbuildtag', 'gru\u00fc\u00df')], 'failed', 'cannot be a tag'),
    ([say('build.addbuildtag', ' ')], 'failed', 'cannot be a tag'),
    ([say('Build.UpdateBuildNumber', '7 kept'), script('test "$BUILD_BUILDNUMBER" = "7 kept"')],
     'succeeded', 'number 7 kept'),
    ([say('build.updatebuildnumber', '7/8')], 'failed', 'TF209010'),
    ([say('build.updatebuildnumber', '7.')], 'failed', 'TF209010'),
    ([say('build.updatebuildnumber', 'x' * 256)], 'failed', 'TF209010'),
    ([say('task.uploadsummary', '$PWD/pins.txt')], 'succeeded', ''),
    ([say('task.uploadsummary', 'pins.txt')], 'failed', "there is no file 'pins.txt', as a whole"),
    ([say('task.uploadsummary', '$PWD/none.md')], 'failed', 'there is no file'),
    ([say('task.uploadsummary', '$PWD')], 'failed', 'there is no file'),
    ([say('task.uploadsummary', '')], 'failed', 'there is no file'),
    # The step goes on, and fails all the same.
    ([script('echo "##vso[task.uploadsummary]"; echo "##vso[build.addbuildtag]after"')], 'failed',
     'tag after'),
])
def test_what_comes_of_steps_and_their_files(project, steps, result, said):
    text = 'variables:\n- name: M\n  value: m1\n' + pipeline(stage('a', *steps))
    assert project.run(text) == {'a': result}
    assert said in '\n'.join(project.lines + project.rows[0][3])


DEPLOYMENT = '''trigger: none
stages:
- stage: deploy
  jobs:
  - deployment: service
    environment: e
    strategy:
      runOnce:
        deploy:
          steps:
          - download: none
          - checkout: self
          - script: DEPLOY
        routeTraffic:
          steps:
          - script: SMOKE
        on:
          failure:
            steps:
            - script: echo back
'''


@pytest.mark.parametrize('deploy, smoke, result, hooks', [
    ('exit 0', 'exit 0', 'succeeded', ['deploy', 'routeTraffic']),
    ('exit 1', 'exit 0', 'failed', ['deploy', 'failure']),
    ('exit 0', 'exit 1', 'failed', ['deploy', 'routeTraffic', 'failure']),
])
def test_hooks_of_a_deployment(project, deploy, smoke, result, hooks):
    project.azure.faults.add('crash-loop')
    text = DEPLOYMENT.replace('DEPLOY', deploy).replace('SMOKE', smoke)
    assert project.run(text) == {'deploy': result}
    folders = {path.name for path in (project.folder / '1-deploy').iterdir()}
    assert folders == set(hooks)
    assert bool(project.azure.faults) == ('failure' not in hooks)
    assert ('failure hook succeeded' in project.rows[0][3]) == ('failure' in hooks)


@pytest.mark.parametrize('rejected, result, word', [
    ('e', {'a': 'succeeded', 'deploy': 'failed', 'after': 'skipped'}, 'rejected'),
    ('other', {'a': 'succeeded', 'deploy': 'succeeded', 'after': 'succeeded'}, 'approved')])
def test_what_its_approver_rejects_is_not_run(project, monkeypatch, rejected, result, word):
    monkeypatch.setattr(project, 'rejected', rejected, raising=False)
    command = 'echo "##vso[task.setvariable variable=version;isOutput=true]7"'
    text = DEPLOYMENT.replace('DEPLOY', 'exit 0').replace('SMOKE', 'exit 0')
    text = text.replace('stages:\n', 'stages:\n' + stage('a', script(command, name='run')))
    assert project.run(text + stage('after', script('true'))) == result
    assert f'  The approver of e (rehearsed) {word} version 7' in project.lines
    assert (project.folder / '2-deploy').exists() == (word == 'approved')
    assert f'e: {word}' in project.rows[1][3]


def test_a_job_that_takes_too_long_is_canceled_and_what_is_for_that_runs(project, monkeypatch):
    monkeypatch.setattr(job_runner, 'MINUTE', 1)
    text = pipeline(stage('a', script('exec sleep 60'), script('echo never'),
                          script('echo cleaned up', condition='canceled()')))
    text = text.replace('  - job: a', '  - job: a\n    timeoutInMinutes: 1')
    assert project.run(text) == {'a': 'canceled'}
    assert project.logs() == [
        '01-checkout-self.log', '02-script-exec-sleep-60.log', '04-script-echo-cleaned-up.log']


def test_what_a_step_leaves_running_is_ended(project):
    lock = project.folder.with_name('lock')
    command = f'mkfifo held; "{sys.executable}" holder.py "{lock}" > held & read -r word < held'
    assert project.run(pipeline(stage('a', script(command)))) == {'a': 'succeeded'}
    with open(str(lock)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert not lock.with_name('lock.ended').exists()


# Each job has the paths of the one before, as a cache counts on.
CACHE = ('task: Cache@2\ninputs: {key: \'"$(Build.SourcesDirectory)" | pins.txt\', '
         'path: .venv}')
MAKE = script('ls .venv/lib/big; mkdir -p .venv/lib; echo 1 > .venv/lib/big; echo 1 > .venv/stamp')


def test_a_cache_is_saved_once_by_what_its_key_names_and_stays_as_it_is(project):
    # Not by a job that fails.
    project.run(pipeline(stage('a', CACHE, MAKE, script('false'))))
    assert not project.cache.exists()
    shutil.rmtree(str(project.folder))
    change = script('test -e .venv/lib/big && echo 2 > .venv/stamp')
    result = project.run(pipeline(
        stage('a', CACHE, MAKE), stage('b', CACHE, change), stage('c', CACHE, change)))
    assert set(result.values()) == {'succeeded'}
    saved, = project.cache.iterdir()
    assert (saved / 'stamp').read_text() == '1\n'


@pytest.mark.parametrize('ignored', ['ignored\n', 'ignored\nout/\n'])
def test_a_snapshot_has_what_is_there_and_leaves_the_repository_alone(tmp_path, ignored):
    root = tmp_path / 'project'
    root.mkdir()
    for name, text in (('.gitignore', ignored), ('ignored', ''), ('kept', 'old'), ('gone', '')):
        (root / name).write_text(text)
    rehearse.git('init', '--quiet', folder=root)
    rehearse.git('add', 'kept', 'gone', '.gitignore', folder=root)
    rehearse.git('commit', '--quiet', '-m', 'x', folder=root)
    (root / 'kept').write_text('new')
    (root / 'gone').unlink()
    (root / 'added').write_text('')
    (root / 'out').mkdir()
    (root / 'out' / 'result').write_text('')

    def state():
        return [rehearse.git(*words, folder=root) for words in (
            ['status', '--porcelain'], ['log', '--oneline'], ['count-objects'])]

    before = state()
    changed = rehearse.snapshot(root, tmp_path / 'origin', root / 'out' / 'rehearsal')
    assert sorted(changed) == ['added', 'gone', 'kept'] + ['out/'] * ('out' not in ignored)
    assert before == state()
    origin = tmp_path / 'origin'
    names = rehearse.git('ls-tree', '--name-only', 'master', folder=origin)
    assert names.split() == ['.gitignore', 'added', 'kept']
    # As the base of a pull request.
    assert rehearse.git('show', 'master^1:kept', folder=origin) == 'old'
    rehearse.commit(origin, {'kept': lambda text: text + 'er', 'fault': 'f'})
    assert rehearse.git('show', 'master:kept', folder=origin) == 'newer'
    assert (root / 'kept').read_text() == 'new'


def test_only_an_earlier_rehearsal_is_replaced_but_not_its_cache_nor_one_under_way(tmp_path):
    out = tmp_path / 'rehearsal'
    with rehearse.take_folder(out):
        (out / 'ci').mkdir()
        (out / 'cache').mkdir()
        for folder in (out, tmp_path, tmp_path / 'a:b'):
            with pytest.raises(rehearse.RehearsalError):
                rehearse.take_folder(folder)
        assert (out / 'ci').exists()
    rehearse.take_folder(out).close()
    assert sorted(path.name for path in out.iterdir()) == [rehearse.MARK, 'cache']


def test_steps_get_nothing_of_this_machine_that_an_agent_would_not_have():
    kept = rehearse.agent_environ({
        'PATH': '/bin', 'MAKEFLAGS': ' -- OUT=/tmp', 'OUT': '/tmp', 'servicePrincipalKey': 'x',
        'PYTHONPATH': '/x', 'PIP_INDEX_URL': 'u', 'PYTHON': 'bin/python', 'https_proxy': 'p'})
    assert kept == {'PATH': '/bin', 'PIP_INDEX_URL': 'u', 'https_proxy': 'p', 'ROWS': rehearse.ROWS,
                    'PYTHON': os.path.abspath('bin/python')}


@pytest.mark.parametrize('name, fault, labels', [
    ('pr.yml', 'lint', ['pr']), ('ci.yml', None, ['workspace', 'ci']),
    ('ci.yml', 'approval', ['workspace', 'ci-before', 'ci']),
    ('rollback.yml', None, ['workspace', 'ci-1', 'ci-2', 'rollback']),
    ('retrain.yml', None, [
        'workspace', 'ci', 'night-1', 'more-data', 'night-2', 'less-data', 'night-3'])])
def test_what_a_pipeline_needs_runs_before_it(name, fault, labels):
    runs = rehearse.plan(name, fault, production=True)
    assert [run.label for run in runs] == labels and runs[-1].file == name
    assert runs[-1].parameters == ({'service': 'endpoint'} if name == 'rollback.yml' else None)
    # A night takes the table of the run before it, and the first that of ci.yml: nothing new.
    assert [run.times for run in runs[3:]] == [3, 3, 0.25, 0.25] or name != 'retrain.yml'


def test_settings_of_the_pipelines_are_changed_one_by_one():
    text = (ROOT / 'devops' / 'variables.yml').read_text()
    changed = rehearse.PRODUCTION['devops/variables.yml'](text)
    assert [new for old, new in zip(text.splitlines(), changed.splitlines()) if old != new] == [
        "  value: 'endpoint'", "  value: '0'"]
    assert len(changed.splitlines()) == len(text.splitlines())
    name = "AML_TRAINING_NODES\n  value: '"
    assert rehearse.setting('AML_TRAINING_NODES', 2)(text) == text.replace(name + '1', name + '2')


def test_every_fault_is_known_and_in_the_readme():
    from loopback.faults import NAMES
    assert {strike['fault'] for strike in rehearse.STRIKES.values()} <= set(NAMES)
    rows = re.findall(r'^\| ([a-z, -]+) \|', (ROOT / 'devops' / 'README.md').read_text(), re.M)
    assert set(rehearse.FAULTS) <= {name for row in rows for name in row.split(', ')}


@pytest.mark.parametrize('args', [
    ['--pipeline', 'devops/none.yml'], ['--pipeline', 'README.md'], ['--fault', 'nothing'],
    ['--pipeline', 'devops/pr.yml', '--fault', 'smoke'], ['--production', 'aks'],
    ['--pipeline', 'devops/retrain.yml', '--fault', 'approval']])
def test_wrong_use_is_refused(args, tmp_path):
    with pytest.raises(SystemExit) as end:
        rehearse.main(['--out', str(tmp_path)] + args)
    assert end.value.code == 2 and list(tmp_path.iterdir()) == []


# The JSON Web Tokens of OIDC and of access.
TOKEN = rb'eyJ[A-Za-z0-9_-]{20,}'


class ArgumentLists(threading.Thread):
    """Looks for secrets, a list of bytes, in all processes; `found` has the lists that hold one."""

    def __init__(self, secrets):
        super().__init__(daemon=True)
        self.secrets, self.found, self.looks, self.ended = secrets, [], 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            for path in Path('/proc').glob('[0-9]*/cmdline'):
                with contextlib.suppress(OSError):
                    words = path.read_bytes()
                    self.looks += 1
                    self.found += [words for secret in self.secrets if secret in words]


def note_secrets(azure):
    """A list that gets, as bytes, what the stand-in gives out from now on, and its principal's."""
    secrets = [azure.env['servicePrincipalKey'].encode()]

    def noted(give):
        def given(*args):
            answer = give(*args)
            secret = answer['SYSTEM_ACCESSTOKEN'] if isinstance(answer, dict) else answer
            secrets.append(secret.encode())
            return answer
        return given
    for name in ('new_job', 'issue', 'oidc_token'):
        setattr(azure.tokens, name, noted(getattr(azure.tokens, name)))
    return secrets


def with_secret(folder, secrets=()):
    """The files below the folder that hold a token or one of the secrets."""
    pattern = re.compile(b'|'.join([TOKEN] + list(map(re.escape, secrets))))
    return [path for path in folder.rglob('*')
            if path.is_file() and pattern.search(path.read_bytes())]


@pytest.fixture
def real(tmp_path):
    """A rehearsal of this project's own pipelines, with this interpreter for all steps.

    Afterwards no secret may be in a file or have been in an argument list.
    """
    pytest.importorskip('azureml.core')
    import loopback
    out = tmp_path / 'rehearsal'
    with rehearse.take_folder(out):
        rehearse.snapshot(ROOT, out / 'origin', out)
        with loopback.start(str(out / 'azure'), python=python_of_one_thread(tmp_path)) as azure:
            azure.add_group(rehearse.GROUP['RESOURCE_GROUP'])
            secrets = note_secrets(azure)
            lists = ArgumentLists(secrets)
            lists.start()
            rehearsal = rehearse.Rehearsal(
                out, azure, rehearse.Screen(out / 'rehearsal.log'),
                dict(os.environ, PYTHON=sys.executable, ROWS='12000'), 'secret')
            # With PYTHON nothing uses the environment that a cache restores, job by job.
            rehearsal.secrets, rehearsal.seed = secrets, None
            yield rehearsal
            assert azure.unknown == []
    lists.ended.set()
    lists.join()
    assert lists.found == [] and (lists.looks or not Path('/proc/self/cmdline').exists())
    assert with_secret(out, secrets) == []


def results(rehearsal, label):
    return [row[2] for row in rehearsal.rows if row[0] == label]


def test_a_finding_and_a_failing_test_are_both_seen_in_the_pull_request(real):
    # All unit tests are run by `make rehearse`, below.
    few = {'tests/pytest.ini': lambda text: (
        text + '\npython_files = test_dependencies.py test_rehearsal_fault.py\n')}
    rehearse.commit(real.origin, dict(
        few, **dict(rehearse.COMMITS['lint'], **rehearse.COMMITS['test'])))
    assert real.run(rehearse.Run('pr.yml', 'pr')) == 'failed'
    found = real.out / 'pr/1-code_quality/outputs/test-results'
    assert 'rehearsal_fault.py' in (found / 'lint.xml').read_text()
    assert 'test_that_fails' in (found / 'unit.xml').read_text()
    said = ' '.join(real.rows[0][4])
    assert re.search(r'Lint: \d+ passed, 1 failed', said)
    assert re.search(r'Unit tests: \d+ passed, 1 failed', said)


def test_each_way_a_run_can_end_and_a_rollback_to_the_version_before(real):
    def run(label, fault=None, action='train_and_deploy', **parameters):
        return real.run(rehearse.Run('ci.yml', label, rehearse.TESTED, parameters=dict(
            parameters, action=action)), rehearse.STRIKES.get(fault))

    assert real.run(rehearse.Run('workspace.yml', 'workspace')) == 'succeeded'
    real.connection = 'federated'
    assert run('blob', 'blob', action='train_only') == 'succeeded'
    assert results(real, 'blob') == ['succeeded'] * 2
    assert run('deploy', action='deploy_version', model_version=1) == 'succeeded'
    assert results(real, 'deploy') == ['succeeded']
    assert run('smoke', 'smoke') == 'failed'
    assert results(real, 'smoke') == ['succeeded', 'succeeded', 'failed']
    assert 'failure hook succeeded' in real.rows[-1][4]
    path = real.out / 'smoke/3-deploy/failure/outputs/service.json'
    assert json.loads(path.read_text())['version'] == 1
    rehearse.commit(real.origin, rehearse.COMMITS['worse'])
    assert run('worse') == 'succeeded'
    assert results(real, 'worse') == ['succeeded', 'succeeded', 'skipped']
    assert 'result=kept' in real.rows[-2][4]
    assert real.azure.serving() == {'safe-driver': 'version 1'}
    # Version 2 is registered, and to production a person may take any.
    rehearse.commit(real.origin, rehearse.PRODUCTION)

    def produce(label, version, fault=None):
        result = run(label, fault, 'deploy_version', service='endpoint', model_version=version)
        endpoint, = set(real.azure.serving()) - {'safe-driver'}
        return result, real.azure.serving()[endpoint]

    assert produce('first', 1) == ('succeeded', 'version 1')
    real.rejected = 'safe-driver-production'
    assert produce('rejected', 2) == ('failed', 'version 1')
    assert '(rehearsed) rejected version 2' in (real.out / 'rehearsal.log').read_text()
    real.rejected = None
    assert produce('trial', 2, 'production') == ('failed', 'version 1')
    assert 'failure hook succeeded' in real.rows[-1][4]
    assert produce('second', 2) == ('succeeded', 'version 2')
    back = rehearse.Run('rollback.yml', 'rollback', parameters={'service': 'endpoint'})
    assert real.run(back) == 'succeeded'
    assert 'version 1' in real.azure.serving().values()
    assert 'version 2' not in real.azure.serving().values()
    # An OIDC token and one of access for each step that signs in, and the jobs' own.
    assert len(real.secrets) > 20


@pytest.mark.parametrize('named', [
    'python', 'python:3.11', 'host:5000/a/python:open-hack_1.2', '"python:3.11"',
    'python:3.11@sha256:' + 'a' * 64])
def test_the_fault_image_changes_the_tag_alone(named):
    text = f'variables:\n- name: CONTAINER_IMAGE\n  value: {named}\n\n- name: A\n  value: b\n'
    changed = rehearse.COMMITS['image']['devops/variables.yml'](text)
    kept = 'host:5000/a/python' if 'host' in named else 'python'
    assert changed == text.replace(named, kept + ':no-such-tag')


def test_make_rehearse_is_green_whatever_the_user_has_set(tmp_path):
    pytest.importorskip('azureml.core')
    (tmp_path / '.gitconfig').write_text('[commit]\ngpgSign = true\n[gpg]\nprogram = false\n')
    environ = dict(os.environ, HOME=str(tmp_path), HTTP_PROXY='http://127.0.0.1:9', LC_ALL='POSIX',
                   ALL_PROXY='http://127.0.0.1:9', PYTHONOPTIMIZE='2', PYTHONHOME='/no/such')
    del environ['GIT_CONFIG_GLOBAL']
    done = subprocess.run(
        ['make', '-C', str(ROOT), 'rehearse', 'PYTHON=' + sys.executable, f'OUT={tmp_path}'],
        env=environ, stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'This was a rehearsal: succeeded' in done.stdout
    for name in ('pipeline.json', 'run.json', 'service.json', 'result=registered'):
        assert name in done.stdout
    assert (tmp_path / 'rehearsal/ci/2-publish/outputs/pipeline.json').is_file()
    assert with_secret(tmp_path) == []


@pytest.mark.parametrize('fault, said', [
    ('image', 'no-such-tag cannot be pulled: set CONTAINER_IMAGE in devops/variables.yml'),
    ('rights', 'the role Contributor on the resource group rehearsal-RG'),
    ('provider', 'az provider register --namespace Microsoft.KeyVault'),
    ('keys', 'a policy forbids the keys of the storage account'),
    ('vault', "API version '2015-06-01' for type 'vaults'")])
def test_a_wrong_set_up_ends_before_a_run(tmp_path, capsys, monkeypatch, fault, said):
    monkeypatch.setenv('PYTHON', sys.executable)
    assert rehearse.main(['--out', str(tmp_path / 'out'), '--fault', fault]) == 1
    text = capsys.readouterr().out
    assert said in text and 'This was a rehearsal: failed' in text and '\nci ' not in text
