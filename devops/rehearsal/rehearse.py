"""Rehearse the pipelines of devops/ on this machine: no account, stand-ins for docker and Azure.

    python devops/rehearsal/rehearse.py --pipeline devops/ci.yml --out outputs/rehearsal

Every job starts in a fresh checkout with only the artifacts that it downloads. The scripts are the
real ones, with the real azureml-sdk; what answers them is devops/loopback.
"""
import argparse
import collections
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / 'devops'))
MARK = 'THIS-IS-A-REHEARSAL'

# What a step gets of this machine's environment; a hosted agent has none of the rest.
KEPT = ('PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'LC_ALL', 'TMPDIR', 'SSL_CERT_FILE',
        'REQUESTS_CA_BUNDLE', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY')
KEPT_BEGINNINGS = ('PIP_', 'UV_', 'GIT_CONFIG_')
# No signing, hooks or templates of whoever rehearses.
NO_GIT_SETTINGS = {'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_NOSYSTEM': '1'}
ROWS = '20000'
GROUP = {'AZURE_RM_SVC_CONNECTION': 'rehearsal', 'RESOURCE_GROUP': 'rehearsal-RG',
         'WORKSPACE_NAME': 'rehearsal-AML-WS', 'LOCATION': 'westeurope', 'BASE_NAME': 'rehearsal'}
# What a task that names the service connection gets of it, by the kind of the connection
# (azureclitask.ts of microsoft/azure-pipelines-tasks).
CONNECTIONS = {
    'secret': ('tenantId', 'servicePrincipalId', 'servicePrincipalKey'),
    'federated': ('tenantId', 'servicePrincipalId', 'AZURESUBSCRIPTION_TENANT_ID',
                  'AZURESUBSCRIPTION_CLIENT_ID', 'AZURESUBSCRIPTION_SERVICE_CONNECTION_ID'),
}


def setting(name, value):
    """A change of devops/variables.yml, for a commit: a function from the old text to the new."""
    return lambda text: re.sub(rf'(- name: {name}\n  value: ).*', rf"\g<1>'{value}'", text)


# Faults that someone pushes: a commit of {path: its text, or a function from the old text}.
COMMITS = {
    'lint': {'training/rehearsal_fault.py': f"x = 1  # {'a line that is too long ' * 5}\n"},
    'test': {'tests/test_rehearsal_fault.py': 'def test_that_fails():\n    assert 1 + 1 == 3\n'},
    'worse': {
        'devops/variables.yml': setting('RUN_EVALUATION', 'true'),
        # Much of what is to be known is in these columns.
        'training/parameters.json': lambda text: re.sub(
            r'("dropped_columns": )\[.*?\]', r'\1["ps_calc_*", "ps_reg_*", "ps_car_*"]', text)},
    'image': {'devops/variables.yml': lambda text: re.sub(
        r'''(CONTAINER_IMAGE\n  value: )['"]?([^\s'"@]+?)(:[\w.-]+)?(@\w+:\w+)?['"]?\n''',
        r'\1\2:no-such-tag\n', text)},
    'vault': {'scripts/workspace.py': lambda text: text.replace("'2026-02-01'", "'2015-06-01'")},
}
# Faults of Azure, as devops/loopback/faults.py knows them. They last until the failure hook begins:
# what a new version suffers from, the version before it does not.
STRIKES = {
    'train': {'fault': 'step-fails', 'step': 'train'},
    'deploy': {'fault': 'crash-loop', 'count': None},
    'smoke': {'fault': 'scoring-500', 'count': None},
    'blob': {'fault': 'blob-mount', 'count': None},
    'production': {'fault': 'live-500', 'count': None},
    'node-killed': {'fault': 'node-killed'},
    'node-absent': {'fault': 'node-absent'},
    'node-slow': {'fault': 'node-slow'},
}
# Faults of the set-up: what the owner of the subscription did or did not do.
SET_UPS = {
    'rights': lambda azure: azure.set_role('Reader', azure.group(GROUP['RESOURCE_GROUP'])),
    # Contributor on the group is enough: this one is green.
    'group-only': lambda azure: azure.set_role(None, azure.subscription),
    'provider': lambda azure: azure.unregistered.add('microsoft.keyvault'),
    'keys': lambda azure: setattr(azure, 'shared_keys', False),
}
# Faults of people: the environment whose approver says no.
REJECTED = {'approval': 'safe-driver-production'}
FAULTS = tuple(COMMITS) + tuple(STRIKES) + tuple(SET_UPS) + tuple(REJECTED)
# They need a model that is registered already to compare with, a service to roll back.
AFTER_A_GOOD_RUN = ('worse', 'deploy', 'smoke', 'production', 'approval')
OF_PRODUCTION = ('production', 'approval')
OF_NODES = ('node-killed', 'node-absent', 'node-slow')
# The watch over a new deployment takes minutes in Azure, here seconds.
PRODUCTION = {'devops/variables.yml': lambda text: setting('PRODUCTION', 'endpoint')(
    setting('ENDPOINT_WATCH_MINUTES', '0')(text))}
STOPS = (signal.SIGINT, signal.SIGTERM)
WITHOUT_AZURE = ('lint', 'test', 'image')
# One run of a pipeline file. label: what its folder and the table call it; times: how many times
# ROWS the table has from now on; without: stages left out by hand at the start.
Run = collections.namedtuple('Run', 'file label without times parameters', defaults=((), 1, None))
TESTED = ('code_quality',)


def plan(name, fault=None, production=False):
    """The runs of a rehearsal of the pipeline file `name`: what it needs to have run first, and it.

    retrain.yml has three nights: nothing new, a larger table, one so small that its model is worse.
    """
    label, workspace = Path(name).stem, Run('workspace.yml', 'workspace')
    if name == 'retrain.yml':
        return [workspace, Run('ci.yml', 'ci', TESTED), Run(name, 'night-1'),
                workspace._replace(label='more-data', times=3), Run(name, 'night-2', times=3),
                workspace._replace(label='less-data', times=0.25), Run(name, 'night-3', times=0.25)]
    if name == 'rollback.yml':
        return [workspace] + [Run('ci.yml', f'ci-{number}', TESTED) for number in (1, 2)] + [
            Run(name, label, parameters={'service': 'endpoint' if production else 'aci'})]
    before = [workspace] if name == 'ci.yml' else []
    if fault in AFTER_A_GOOD_RUN:
        before.append(Run(name, label + '-before', TESTED))
    return before + [Run(name, label)]


class RehearsalError(Exception):
    """Why there can be no rehearsal."""


def git(*args, folder=ROOT):
    """Output of a git command. Raises RehearsalError."""
    name = ['-c', 'user.name=rehearsal', '-c', 'user.email=rehearsal@localhost']
    try:
        done = subprocess.run(['git', '-c', 'safe.directory=*'] + name + list(args),
                              cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)
    except FileNotFoundError:
        raise RehearsalError('git is missing, and a rehearsal makes fresh checkouts with it')
    if done.returncode:
        raise RehearsalError(f"git {' '.join(args)} failed: {done.stderr.strip()}")
    return done.stdout


def snapshot(root, origin, out):
    """Make the repository `origin` with what `root` holds now, but no ignored files.

    The commit before is the project's last one, as that before a pull request's is master's.
    Returns the files that the project has not committed. They are part of the rehearsal, so that it
    answers for what one sees. The project's own repository stays untouched.
    """
    git('init', '--quiet', str(origin))
    git('symbolic-ref', 'HEAD', 'refs/heads/master', folder=origin)
    options = ['--git-dir', str(origin / '.git'), '--work-tree', str(root)]
    if root in out.parents:
        # Not a pathspec: git refuses one that names what .gitignore names too.
        exclude = origin / '.git' / 'info' / 'exclude'
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text(f'/{out.relative_to(root).parts[0]}/\n')
    status = ''
    if (root / '.git').exists():
        status = git('status', '--porcelain', folder=root)
        git('fetch', '--quiet', '--depth=1', str(root), 'HEAD', folder=origin)
        git('update-ref', 'refs/heads/master', 'FETCH_HEAD', folder=origin)
    git(*options, 'add', '--all', '.', folder=root)
    git(*options, 'commit', '--quiet', '--no-verify', '--allow-empty', '-m', 'Rehearsal',
        folder=root)
    git('reset', '--quiet', '--hard', folder=origin)
    return [line[3:] for line in status.splitlines()]


def commit(origin, files, message='Fault'):
    """Commit files, as in COMMITS, to the repository `origin`, as a push to master would."""
    for name, text in files.items():
        path = origin / name
        path.write_text(text if isinstance(text, str) else text(path.read_text()))
    git('add', '--all', folder=origin)
    git('commit', '--quiet', '--no-verify', '-m', message, folder=origin)


def result_of(results):
    """The result of a run from those of its stages."""
    return next((result for result in ('canceled', 'failed') if result in results), 'succeeded')


def condition_holds(stage, done, outputs):
    """Whether the condition of a stage is met, after the stages `done`, {name: result}.

    Azure Pipelines takes an output variable for empty text that no step has set, or none of a stage
    in dependsOn; here that is an error, since a stage would be skipped, and green, for ever.
    """
    import pipeline_yaml

    def output(words):
        _, source, _, name = words
        if source not in stage['needs'] or \
                done[source] == 'succeeded' and name not in outputs[source]:
            raise RehearsalError(f"the condition of stage {stage['name']} reads outputs['{name}'] "
                                 f'of stage {source}, which set no such variable or is not in '
                                 'dependsOn')
        return outputs[source].get(name, '')

    return pipeline_yaml.condition_holds(
        stage['condition'], output, {done[name] for name in stage['needs']})


def is_approved(run, job, outputs):
    """Whether the approver of the job's environment lets it begin; says who approved what.

    A rejected stage is a failed one, without a job (microsoft/azure-pipelines-yaml 344).
    """
    versions = [value for found in outputs.values() for name, value in found.items()
                if name.endswith('.version')]
    versions += [step['env']['MODEL_VERSION'] for _, steps in job['hooks'] for step in steps
                 if 'MODEL_VERSION' in step.get('env', ())]
    what = f' version {versions[-1]}' if versions else ''
    word = 'rejected' if job['environment'] == run.rejected else 'approved'
    run.screen.say(f"  The approver of {job['environment']} (rehearsed) {word}{what}")
    return word == 'approved'


def run_job(run, folder, job):
    """Run a job, or a deployment's hooks in order.

    Returns (result, {'job.step.variable': value}, list of what it produced). The failure hook
    changes no result; faults of Azure end before it.
    """
    import job_runner
    result, outputs, produced = 'succeeded', {}, []
    for hook, steps in job['hooks']:
        if (hook == 'failure') == (result == 'succeeded'):
            continue
        if hook == 'failure':
            run.azure.faults.clear()
        run.screen.say(f"  {job['title']}{': ' + hook if hook else ''}")
        machine = job_runner.Job(run, folder / hook, job['minutes'], steps)
        status = machine.run_steps()
        found = {f"{job['name']}.{name}": value for name, value in machine.outputs.items()}
        outputs.update(found)
        produced += machine.produced + [f"{name.split('.')[-1]}={value}"
                                        for name, value in found.items()]
        if (machine.sources / 'outputs').is_dir():
            (machine.sources / 'outputs').rename(machine.folder / 'outputs')
        shutil.rmtree(str(machine.sources))
        shutil.rmtree(str(machine.temp))
        if hook == 'failure':
            produced.append(f'failure hook {status}')
        else:
            result = status
    return result, outputs, produced


def run_stages(run, stages):
    """Run the stages in order; returns rows (stage, result, seconds, list of what it produced)."""
    rows, done, outputs = [], {}, {}
    for number, stage in enumerate(stages, 1):
        began, name, produced = time.monotonic(), stage['name'], []
        done[name], outputs[name] = 'skipped', {}
        if condition_holds(stage, done, outputs):
            folder = run.folder / f"{number}-{name or stage['job']['name']}"
            environment = stage['job']['environment']
            if environment and not is_approved(run, stage['job'], outputs):
                done[name], produced = 'failed', [f'{environment}: rejected']
            else:
                done[name], outputs[name], produced = run_job(run, folder, stage['job'])
                produced += [f'{environment}: approved'] if environment else []
        rows.append((stage['title'], done[name], time.monotonic() - began, produced))
    return rows


def table(rows):
    """The rows (pipeline, stage, result, seconds, produced) as text."""
    cells = [('pipeline', 'stage', 'result', 'seconds', 'produced')]
    cells += [(pipeline, stage, result, f'{seconds:.1f}', '; '.join(produced) or '-')
              for pipeline, stage, result, seconds, produced in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return '\n'.join(
        f'{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  '
        f'{row[3]:>{widths[3]}}  {row[4]}' for row in cells)


def agent_environ(environ):
    """The environment variables that steps get of this machine's."""
    kept = {name: value for name, value in environ.items()
            if name.upper() in KEPT or name.startswith(KEPT_BEGINNINGS)}
    python = environ.get('PYTHON', '')
    kept.update({'PYTHON': os.path.abspath(python) if '/' in python else python,
                 'CONTAINER': environ.get('CONTAINER'), 'ROWS': environ.get('ROWS') or ROWS})
    return {name: value for name, value in kept.items() if value}


def take_folder(out):
    """Make `out` the empty folder of this rehearsal, saved caches kept; its lock, an open file.

    Raises RehearsalError when it holds something else or another rehearsal is under way in it.
    """
    if os.pathsep in str(out):
        raise RehearsalError(f'no program can be found in {out}: use a path without a colon')
    if out.is_dir() and not (out / MARK).exists() and any(out.iterdir()):
        raise RehearsalError(f'{out} holds something else than a rehearsal and is left alone: '
                             'name another folder')
    out.mkdir(parents=True, exist_ok=True)
    lock = open(str(out / MARK), 'a')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RehearsalError(f'another rehearsal is under way in {out}') from None
    for path in out.iterdir():
        if path.name not in ('cache', MARK):
            (shutil.rmtree if path.is_dir() else os.unlink)(str(path))
    return lock


class Screen:
    """What is shown and kept in a log; a long step shows its seconds on a terminal."""

    def __init__(self, path):
        self.log = open(str(path), 'w', encoding='utf-8', buffering=1)

    def say(self, line):
        print(line, flush=True)
        self.log.write(line + '\n')

    @contextlib.contextmanager
    def show_progress(self, title):
        if not sys.stdout.isatty():
            yield
            return
        done, began = threading.Event(), time.monotonic()

        def tick():
            while not done.wait(1):
                print(f'    {time.monotonic() - began:5.0f} s  ...        {title}\r',
                      end='', flush=True)

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            print('\033[K', end='', flush=True)


def put_docker(folder):
    """Put a `docker` that is the stand-in below the folder; the folder that it is in."""
    docker = folder / 'programs' / 'docker'
    docker.parent.mkdir()
    words = [sys.executable, str(Path(__file__).with_name('docker_stand_in.py'))]
    docker.write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, words))} "$@"\n')
    docker.chmod(0o755)
    return docker.parent


class Rehearsal:
    """What the runs of a rehearsal share, and the rows of their table.

    connection: the kind of the service connection. Of the run that is under way: folder, where its
    logs and results go, variables, {name: value}, those of groups included, and rejected, the
    environment whose approver says no, or None.
    """

    def __init__(self, out, azure, screen, environ, connection):
        self.out, self.azure, self.screen, self.connection = out, azure, screen, connection
        self.origin, self.cache = out / 'origin', out / 'cache'
        self.environ = agent_environ(environ)
        self.environ['PATH'] = f"{put_docker(out)}:{self.environ['PATH']}"
        self.rows, self.builds, self.rejected = [], 0, None
        # What an empty cache begins with.
        own = ROOT / '.venv'
        self.seed = own if Path(sys.prefix).resolve() == own.resolve() else None

    def of_connection(self):
        """The variables of a task that names the service connection."""
        return {name: self.azure.connection[name] for name in CONNECTIONS[self.connection]}

    def run(self, one, fault=None):
        """Carry out a Run with the repository as it is now; its result. fault: as in STRIKES."""
        import page
        import pipeline_yaml
        self.builds += 1
        label, environ = one.label, self.environ
        self.environ = dict(environ, ROWS=str(int(int(environ['ROWS']) * one.times)))
        pipeline = pipeline_yaml.read_pipeline(self.origin / 'devops' / one.file, one.parameters)
        stages = [stage for stage in pipeline_yaml.stages(pipeline)
                  if stage['name'] not in one.without]
        for stage in stages:
            stage['needs'] = [need for need in stage['needs'] if need not in one.without]
        self.folder, self.variables = self.out / label, pipeline_yaml.variables(pipeline)
        if pipeline_yaml.groups(pipeline):
            self.variables.update(GROUP, SUBSCRIPTION_ID=self.azure.env['SUBSCRIPTION_ID'])
        self.variables.update({
            'TF_BUILD': 'True', 'Build.BuildId': self.builds,
            'Build.SourceBranch': 'refs/heads/master', 'Build.Repository.Name': 'rehearsal',
            'Build.SourceVersion': git('rev-parse', 'HEAD', folder=self.origin).strip(),
            'System.CollectionUri': 'https://dev.azure.com/rehearsal/',
            'System.TeamProject': 'rehearsal'})
        if fault:
            self.azure.faults.add(**fault)
        when = ''.join(f", {schedule['displayName'].lower()}: {schedule['cron']} UTC"
                       for schedule in pipeline_yaml.schedules(pipeline))
        self.screen.say(f'\n{label}, build {self.builds}{when}')
        rows = run_stages(self, stages)
        self.azure.faults.clear()
        self.environ = environ
        self.rows += [(label,) + row for row in rows]
        page.write(self.out, self.rows)
        return result_of([row[1] for row in rows])

    def run_all(self, runs, fault):
        """Carry out Runs until one fails, the last with the fault; the result of the last."""
        later = fault in AFTER_A_GOOD_RUN
        for one in runs:
            last = one is runs[-1]
            if fault in COMMITS and one is (runs[-1] if later else runs[0]):
                commit(self.origin, COMMITS[fault])
            self.rejected = REJECTED.get(fault) if last else None
            result = self.run(one, STRIKES.get(fault) if last else None)
            if result != 'succeeded':
                break
        return result


def rehearse(runs, out, environ, fault=None, connection='federated', production=False, nodes=1):
    """Rehearse these Runs; whether the last succeeded. Raises RehearsalError.

    nodes: how many machines train a model together.
    """
    import loopback
    screen = Screen(out / 'rehearsal.log')
    screen.say(f"REHEARSAL of devops/{runs[-1].file}{' with FAULT=' + fault if fault else ''} on "
               'this machine. Docker, Azure ML and Azure DevOps are stand-ins.')
    changed = snapshot(ROOT, out / 'origin', out)
    if changed:
        screen.say(f'note: files that are not committed take part, {len(changed)} of them '
                   f"({', '.join(changed[:3])}{', ...' if changed[3:] else ''}); Azure DevOps "
                   'sees only what is pushed')
    if production:
        commit(out / 'origin', PRODUCTION, 'Production')
    if nodes != 1:
        commit(out / 'origin', {'devops/variables.yml': setting('AML_TRAINING_NODES', nodes)},
               'Nodes')
    with loopback.start(str(out / 'azure')) as azure:
        azure.add_group(GROUP['RESOURCE_GROUP'], GROUP['LOCATION'])
        if fault in SET_UPS:
            SET_UPS[fault](azure)
        rehearsal = Rehearsal(out, azure, screen, environ, connection)
        result = rehearsal.run_all(runs, fault)
        unknown, serving = list(azure.unknown), azure.serving()
    serves = [f'{name} serves {versions}' for name, versions in serving.items()]
    screen.say('\n'.join(
        ['', table(rehearsal.rows), '', *serves]
        + [f'This was a rehearsal: {result}. Logs and results are in {out}']))
    if unknown:
        raise RehearsalError(f"devops/loopback does not know: {'; '.join(unknown[:3])}")
    return result == 'succeeded'


def stop(number, frame):
    """End at the first signal, undisturbed by a second: make passes SIGTERM on."""
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pipeline', default='devops/ci.yml', help='pipeline file of devops/')
    parser.add_argument('--out', type=Path, default=Path('outputs/rehearsal'),
                        help='folder for logs and results; an earlier rehearsal in it is replaced')
    parser.add_argument('--fault', choices=FAULTS, help='what is to go wrong')
    parser.add_argument('--production', choices=('none', 'endpoint'), default='none',
                        help='what PRODUCTION in devops/variables.yml is to be (default: none)')
    parser.add_argument('--training-nodes', type=int, default=1,
                        help='what AML_TRAINING_NODES in it is to be (default: 1)')
    parser.add_argument('--connection', choices=sorted(CONNECTIONS), default='federated',
                        help='kind of the service connection (default: federated)')
    args = parser.parse_args(argv)
    path = (ROOT / args.pipeline).resolve()
    if path.parent != ROOT / 'devops' or not path.is_file():
        parser.error(f'{args.pipeline} is no pipeline file of devops/')
    if args.fault and args.fault not in WITHOUT_AZURE and path.name != 'ci.yml':
        parser.error(f'FAULT={args.fault} is for PIPELINE=devops/ci.yml')
    production = args.production == 'endpoint' or args.fault in OF_PRODUCTION
    nodes = max(2, args.training_nodes) if args.fault in OF_NODES else args.training_nodes
    runs = plan(path.name, args.fault, production)
    for number in STOPS:
        signal.signal(number, stop)
    os.environ.update(NO_GIT_SETTINGS)
    try:
        import pipeline_checks
        found = [problem for name in sorted({one.file for one in runs})
                 for problem in pipeline_checks.find_problems(path.with_name(name))]
        if found:
            print('\n  '.join(['error: nothing is run, the pipelines have problems:'] + found),
                  file=sys.stderr)
            return 2
        out = args.out.resolve()
        with take_folder(out):
            return int(not rehearse(
                runs, out, os.environ, args.fault, args.connection, production, nodes))
    except KeyboardInterrupt:
        print(f'error: stopped; what has ended is in {args.out}', file=sys.stderr)
        return 130
    except (RehearsalError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
