"""Runs the jobs of a pipeline on this machine, step by step, as the agent of Azure Pipelines would.

Source of the rules: Microsoft's documentation of Azure Pipelines (conditions, logging commands,
predefined variables, caching) and of the five tasks. Tasks that only publish are checked: their
inputs, their files, what is in them. Logging commands: Command.cs, CommandStringConvertor.cs,
TaskCommandExtension.cs and BuildCommandExtension.cs of microsoft/azure-pipelines-agent.
"""
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import pipeline_yaml

COMMAND = re.compile(r'##vso\[([\w.]+) ?([^\]]*)\](.*)')
ESCAPES = (('%3B', ';'), ('%0D', '\r'), ('%0A', '\n'), ('%5D', ']'))
# What the service is known to take: no colon (azure-devops-docs, scripts/logging-commands), nothing
# outside of ASCII (azure-pipelines-agent #5446, azure-pipelines-tasks #10972), and for older agents
# nothing that a path of an address cannot hold.
TAG = re.compile(r'[A-Za-z0-9 ._-]+')
# TF209010 says so (azure-pipelines-tasks #9761).
BUILD_NUMBER = re.compile(r'[^"/:<>\\|?@*]{0,254}[^"/:<>\\|?@*.]')
CANCEL_MINUTES = 5
MINUTE = 60
# The agent signals the shell of a step, not what it started (ProcessInvoker.cs of
# microsoft/azure-pipelines-agent): SIGINT, SIGTERM after 7.5 s, the end after 2.5 more.
CANCEL_STEPS = ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5))
TAIL_LINES = 12


class StepError(Exception):
    """Why a step fails."""


def link_tree(source, target):
    """Copy a folder by hard links, which takes seconds where copying 700 MB takes a minute.

    Only packages are linked: make and pip rewrite other files in place.
    """
    def link(origin, copy):
        if 'site-packages' in Path(origin).parts:
            with contextlib.suppress(OSError):
                return os.link(origin, copy)
        return shutil.copy2(origin, copy)

    shutil.copytree(str(source), str(target), symlinks=True, copy_function=link)


def copy_files(source, target):
    """Copy a file, or those of a folder, into the folder `target`; their names below it."""
    root = source if source.is_dir() else source.parent
    names = [str(path.relative_to(root)) for path in sorted(source.rglob('*')) or [source]
             if path.is_file()]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(root / name), str(target / name))
    return names


class Job:
    """One job, or one hook of a deployment, on a fresh machine: a folder with only a checkout.

    run: the Rehearsal, of whose run it is.
    """

    def __init__(self, run, folder, minutes, steps):
        self.run, self.folder = run, Path(folder)
        # A hosted agent has the same paths in every job, and what the cache restores counts on it.
        machine = Path(run.cache).parent / 'agent'
        shutil.rmtree(str(machine), ignore_errors=True)
        self.sources, self.temp = machine / 's', machine / 'temp'
        for path in (self.sources, self.temp, self.folder):
            path.mkdir(parents=True)
        self.status, self.outputs, self.produced = 'succeeded', {}, []
        # What came of each step, for the page; summaries by their names.
        self.ended, self.summaries = [], {}
        self.environ, self.path, self.steps = dict(run.environ), [], steps
        self.masked, self.to_save = set(), []
        self.end = time.monotonic() + minutes * MINUTE
        # {name in lower case: value}, and the names of those that are secret.
        self.variables, self.secrets = {}, set()
        for name, value in dict(run.variables, **{
                'Agent.OS': platform.system(), 'Agent.TempDirectory': self.temp,
                'Agent.BuildDirectory': machine,
                'Build.SourcesDirectory': self.sources, 'Pipeline.Workspace': machine,
                'System.DefaultWorkingDirectory': self.sources,
                'System.StageAttempt': 1}).items():
            self.set_variable(name, value)
        # Which connections a job names is known before it runs, by the inputs of its tasks.
        found = run.azure.new_job(
            any('azureSubscription' in step.get('inputs', ()) for step in steps))
        self.set_variable('System.OidcRequestUri', found['SYSTEM_OIDCREQUESTURI'])
        self.set_variable('System.AccessToken', found['SYSTEM_ACCESSTOKEN'], secret=True)

    def set_variable(self, name, value, secret=False):
        self.variables[name.lower()] = str(value)
        if secret:
            self.secrets.add(name.lower())
            self.masked.add(str(value))

    def fill_in_variables(self, text):
        return pipeline_yaml.fill_in_macros(text, self.variables)

    def mask_secrets(self, text):
        for value in self.masked - {''}:
            text = text.replace(value, '***')
        return text

    def run_steps(self):
        """Run the steps; returns 'succeeded', 'failed' or 'canceled'."""
        say = self.run.screen.say
        for number, step in enumerate(self.steps, 1):
            kind = pipeline_yaml.step_kind(step)
            title = step.get('displayName', f'{kind} {step[kind]}')
            title = self.mask_secrets(self.fill_in_variables(title))
            if not pipeline_yaml.condition_holds(
                    step.get('condition'),
                    lambda words: self.variables.get('.'.join(words[1:]).lower(), ''),
                    {self.status}):
                self.ended.append({'title': title, 'result': 'skipped'})
                continue
            began = time.monotonic()
            name = re.sub(r'\W+', '-', title.lower()).strip('-')[:50]
            log = self.folder / f'{number:02}-{name}.log'
            result = 'succeeded'
            with open(str(log), 'w', encoding='utf-8', buffering=1) as stream:
                try:
                    with self.run.screen.show_progress(title):
                        getattr(self, 'step_' + kind)(step, stream)
                except StepError as error:
                    stream.write(f'error: {self.mask_secrets(str(error))}\n')
                    result = 'failed'
            if result == 'failed' and time.monotonic() >= self.end:
                result, self.end = 'canceled', time.monotonic() + CANCEL_MINUTES * MINUTE
            seconds = time.monotonic() - began
            self.ended.append({'title': title, 'result': result, 'seconds': seconds,
                               'log': log.name, 'summaries': self.summaries})
            self.summaries = {}
            say(f'    {seconds:5.1f} s  {result:9}  {title}')
            if result != 'succeeded':
                if self.status == 'succeeded':
                    self.produced.append(f'{result}: {title}')
                if self.status != 'canceled':
                    self.status = result
                for line in log.read_text(encoding='utf-8').splitlines()[-TAIL_LINES:]:
                    say('             | ' + line)
                say(f'             all of it: {log}')
        (self.folder / 'steps.json').write_text(json.dumps(self.ended, indent=2))
        for saved, path in self.to_save if self.status == 'succeeded' else ():
            if path.is_dir():
                saved.parent.mkdir(parents=True, exist_ok=True)
                path.rename(saved)
        return self.status

    def step_environ(self, step):
        """The environment variables of a step: around it, variables but no secrets, its `env:`."""
        result = dict(self.environ)
        for name, value in self.variables.items():
            if name not in self.secrets:
                result[re.sub(r'\W', '_', name).upper()] = value
        result['PATH'] = os.pathsep.join(self.path + [result['PATH']])
        given = step.get('env', {})
        return dict(result, **{name: self.fill_in_variables(given[name]) for name in given})

    def run_shell(self, script, step_environ, step, stream):
        """Run a script as the agent does: bash without -e, so its last command's exit code counts.

        Whatever it leaves running is ended.
        """
        path = self.temp / 'step.sh'
        path.write_text(self.fill_in_variables(script), encoding='utf-8')
        process = subprocess.Popen(
            ['bash', '--noprofile', '--norc', str(path)], cwd=str(self.sources), env=step_environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # A shell that starts the rehearsal by `&` makes it ignore SIGINT; the agent does not.
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

        def end():
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)

        def watch():
            seconds = max(0.0, self.end - time.monotonic())
            for number, more in CANCEL_STEPS + ((signal.SIGKILL, None),):
                try:
                    process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    seconds = more
            end()

        watcher = threading.Thread(target=watch)
        watcher.start()
        refused = []
        try:
            for line in process.stdout:
                line = line.decode('utf-8', 'replace').rstrip('\r\n')
                command = COMMAND.search(line)
                if command:
                    refused += self.run_command(*command.groups(), step=step)
                # What has been carried out is no command any more, wherever this log is shown.
                stream.write(self.mask_secrets(line).replace('##vso[', '# #[') + '\n')
        finally:
            end()
            watcher.join()
            process.stdout.close()
            path.unlink()
        if time.monotonic() >= self.end:
            raise StepError('the job took longer than its timeoutInMinutes')
        if process.returncode:
            raise StepError(f'exit code {process.returncode}')
        if refused:
            raise StepError('; '.join(refused))

    def run_command(self, name, properties, value, step):
        """Carry out a logging command; a list with the reason where it is refused, else empty.

        One that is refused fails its step, whatever else comes of that.
        """
        pairs = (item.partition('=') for item in properties.split(';'))
        given, name = {key.lower(): text for key, _, text in pairs}, name.lower()
        for escaped, char in ESCAPES:
            value = value.replace(escaped, char)
        if name == 'task.uploadsummary':
            # A relative path is one of the agent's own folder.
            path = Path(value)
            if not path.is_absolute() or not path.is_file():
                return [f'task.uploadsummary: there is no file {value!r}, as a whole path']
            self.summaries[path.name] = path.read_text(encoding='utf-8', errors='replace')
        elif name == 'build.addbuildtag':
            if not TAG.fullmatch(value.strip()):
                return [f'build.addbuildtag: {value!r} cannot be a tag']
            self.produced.append('tag ' + value.strip())
        elif name == 'build.updatebuildnumber':
            if not BUILD_NUMBER.fullmatch(value):
                return [f'build.updatebuildnumber: {value!r} cannot be a number (TF209010)']
            self.set_variable('Build.BuildNumber', value)
            self.produced.append('number ' + value)
        elif name == 'task.setvariable':
            variable = given['variable']
            if given.get('isoutput', '').lower() == 'true':
                # An output has the name of its step in front, within the job as well.
                variable = f"{step.get('name', '')}.{variable}"
                self.outputs[variable] = value
            self.set_variable(variable, value, given.get('issecret', '').lower() == 'true')
        elif name == 'task.prependpath':
            self.path.insert(0, value)
        elif name != 'task.logissue':
            return [f'{name}: this logging command is not known here']
        return []

    def step_checkout(self, step, stream):
        if subprocess.call(['git', 'clone', '--quiet', str(self.run.origin), '.'],
                           cwd=str(self.sources), stdout=stream, stderr=subprocess.STDOUT):
            raise StepError('git clone failed')

    def step_script(self, step, stream):
        self.run_shell(step['script'], self.step_environ(step), step, stream)

    def step_download(self, step, stream):
        stream.write('nothing is downloaded by itself\n')

    def step_publish(self, step, stream):
        source = self.sources / self.fill_in_variables(step['publish'])
        name = self.fill_in_variables(step['artifact'])
        target = self.run.folder / 'artifacts' / name
        if not source.exists():
            raise StepError(f"{step['publish']} does not exist, so there is no artifact {name}")
        if target.exists():
            raise StepError(f'the artifact {name} already exists in this run')
        names = copy_files(source, target)
        stream.write(f"artifact {name}: {', '.join(names)}\n")
        shown = ', '.join(one for one in names if not one.startswith('.'))
        self.produced.append(f'artifact {name} ({shown})')

    def step_task(self, step, stream):
        inputs = pipeline_yaml.Map(step.location, {
            name: self.fill_in_variables(value) if isinstance(value, str) else value
            for name, value in step['inputs'].items()})
        name = step['task'].split('@')[0].lower()
        getattr(self, 'task_' + name)(inputs, step, stream)

    def task_azurecli(self, inputs, step, stream):
        if inputs['azureSubscription'] != self.run.variables.get('AZURE_RM_SVC_CONNECTION'):
            raise StepError(f"there is no service connection {inputs['azureSubscription']}")
        self.environ.update(self.run.azure.proxy_environment())
        step_environ = self.step_environ(step)
        if inputs.get('addSpnToEnvironment') is True:
            connection = self.run.of_connection()
            step_environ.update(connection)
            self.masked.add(connection.get('servicePrincipalKey', ''))
        self.run_shell(inputs['inlineScript'], step_environ, step, stream)

    def task_downloadpipelineartifact(self, inputs, step, stream):
        source = self.run.folder / 'artifacts' / inputs['artifactName']
        if not source.is_dir():
            raise StepError(f"no stage published the artifact {inputs['artifactName']}")
        stream.write('\n'.join(copy_files(source, Path(inputs['targetPath']))) + '\n')

    def cache_key(self, key):
        """A cache's name: a segment in quotes counts as it is, a file by its content."""
        parts = []
        for segment in (part.strip() for part in key.split('|')):
            if segment.startswith('"'):
                parts.append(segment)
            elif (self.sources / segment).is_file():
                parts.append(hashlib.sha256((self.sources / segment).read_bytes()).hexdigest())
            else:
                raise StepError(f'the cache key names {segment}, which does not exist')
        return hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]

    def task_cache(self, inputs, step, stream):
        saved = self.run.cache / self.cache_key(inputs['key'])
        path = self.sources / inputs['path']
        if saved.is_dir() or self.run.seed:
            source = saved if saved.is_dir() else self.run.seed
            stream.write(f'restored from {source}\n')
            link_tree(source, path if saved.is_dir() else path / 'venv')
        else:
            stream.write(f'nothing is saved as {saved.name}\n')
            self.to_save.append((saved, path))

    def task_publishtestresults(self, inputs, step, stream):
        """Missing and failed results fail: pipeline_checks wants the inputs that say so."""
        pattern = inputs['testResultsFiles']
        files = sorted(self.sources.glob(pattern))
        if not files:
            raise StepError(f'no test results: {pattern} does not exist')
        cases = [case for path in files for case in self.xml_root(path).iter('testcase')]
        bad = [f"{case.get('classname')}.{case.get('name')}" for case in cases
               if case.find('failure') is not None or case.find('error') is not None]
        skipped = sum(case.find('skipped') is not None for case in cases)
        said = f"{inputs['testRunTitle']}: {len(cases) - skipped - len(bad)} passed"
        said += f', {skipped} skipped' if skipped else ''
        said += f', {len(bad)} failed' if bad else ''
        stream.write('\n'.join([said] + bad) + '\n')
        self.produced.append(said)
        if bad:
            raise StepError(f'{len(bad)} of the results are failures')

    def task_publishcodecoverageresults(self, inputs, step, stream):
        path = Path(inputs['summaryFileLocation'])
        if not path.is_file():
            raise StepError(f'no coverage: {path} does not exist')
        try:
            rate = float(self.xml_root(path).get('line-rate'))
        except (TypeError, ValueError):
            raise StepError(f'{path} is no Cobertura file') from None
        if not rate:
            raise StepError('the coverage is empty')
        self.produced.append(f'coverage {100 * rate:.0f} %')
        stream.write(f'{100 * rate:.1f} % of the lines\n')

    def xml_root(self, path):
        """The root element of a result file."""
        try:
            return xml.etree.ElementTree.parse(str(path)).getroot()
        except xml.etree.ElementTree.ParseError as error:
            raise StepError(f'{path} is no XML: {error}') from None
