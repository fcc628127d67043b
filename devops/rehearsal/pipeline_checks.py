"""Checks of the pipelines of devops/: Microsoft's schema, and what it misses.

A file is checked as the service expands it, for every combination of its parameters' values.
"""
import functools
import importlib.util
import itertools
import json
import re
from pathlib import Path

import pipeline_yaml

ROOT = Path(__file__).resolve().parent.parent.parent

# What the variable groups hold. Their values are in Azure DevOps.
GROUPS = {'devopsforai-aml-vg': ('AZURE_RM_SVC_CONNECTION', 'SUBSCRIPTION_ID', 'RESOURCE_GROUP',
                                 'WORKSPACE_NAME', 'LOCATION', 'BASE_NAME')}
PREDEFINED = ('Agent.OS', 'Agent.TempDirectory', 'Build.SourcesDirectory', 'Pipeline.Workspace',
              'System.AccessToken', 'System.DefaultWorkingDirectory', 'System.StageAttempt')
# Names of vmImage that Microsoft hosts on 2026-11-27, by actions/runner-images; ubuntu-22.04 goes
# on 2027-04-17. Docker with Linux images is on those of Ubuntu only.
HOSTED = ('ubuntu-latest', 'ubuntu-26.04', 'ubuntu-24.04', 'ubuntu-22.04')
# The YAML schema reference (jobs.deployment) forbids this word as a name.
RESERVED = ('deploy',)
NAME = re.compile(r'^[A-Za-z_]\w*$')
CONTAINER = 'exec python3 devops/container.py '
MAKE = re.compile(CONTAINER + r'make ([a-z-]+)((?: [A-Z_]+=[\w./-]+)*)$')
SET_VARIABLE = re.compile(r'##vso\[task\.setvariable variable=(\w+)([^\]]*)\]')
AFTER_FAILURE = 'succeededOrFailed()'

# The schema lacks the branch of the first task, and its copy of 2023 (for Python 3.7) an input of
# the second. Source: the tasks' task.json in microsoft/azure-pipelines-tasks.
OVERLAY = {
    'PublishCodeCoverageResults@2': ({'summaryFileLocation': 'string', 'pathToSources': 'string',
                                      'failIfCoverageEmpty': 'boolean'}, ['summaryFileLocation']),
    'PublishTestResults@2': ({'failTaskOnMissingResultsFile': 'boolean'}, []),
}


@functools.lru_cache(maxsize=None)
def schema(tasks):
    """Microsoft's schema (from check-jsonschema) for pipelines of these tasks, its gaps filled."""
    package = importlib.util.find_spec('check_jsonschema').submodule_search_locations[0]
    path = Path(package) / 'builtin_schemas' / 'vendor' / 'azure-pipelines.json'
    result = json.loads(path.read_text(encoding='utf-8'))
    task = result['definitions']['task']
    # A branch for each of hundreds of tasks: without the others an error is about the right one.
    branches = {}
    for branch in task['anyOf']:
        name = branch['properties'].get('task', {}).get('pattern', '^$')[1:-1]
        if name in tasks:
            branches[name] = branch
    for name, (inputs, required) in OVERLAY.items():
        branch = branches.setdefault(name, {'required': ['task'], 'properties': {
            'task': {'pattern': f'^{name}$'},
            'inputs': {'properties': {}, 'additionalProperties': False, 'required': required}}})
        for key, kind in inputs.items():
            branch['properties']['inputs']['properties'].setdefault(key, {'type': kind})
    task['anyOf'] = [branches[name] for name in sorted(branches)]
    # The service turns numbers and booleans into text where it wants text.
    for part in walk(result):
        if part.get('type') == 'string':
            part['type'] = ['string', 'number', 'boolean']
    return result


def schema_problems(pipeline):
    """What Microsoft's schema finds in an expanded pipeline."""
    import jsonschema
    tasks = frozenset(step['task'] for step in walk(pipeline) if isinstance(step.get('task'), str))
    found = sorted(jsonschema.Draft7Validator(schema(tasks)).iter_errors(pipeline), key=str)
    return [f'{pipeline.location}: schema: {most_telling(error)}' for error in found]


def most_telling(error):
    """The most telling error below one: that of the branch which is meant, as its keys say."""
    while error.context:
        branches = {}
        for one in error.context:
            branches.setdefault(one.relative_schema_path[0], []).append(one)
        here = len(error.absolute_path)
        best = min(branches.values(), key=lambda branch: (
            any(len(one.absolute_path) == here and one.validator == 'required' or
                list(one.absolute_path)[here:] == ['task'] for one in branch), len(branch)))
        error = max(best, key=lambda one: len(one.absolute_path))
    return f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def walk(value):
    """All mappings inside a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            for inner in walk(item):
                yield inner


def texts(value):
    """All texts inside a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def make_targets(makefile):
    """{target: its section} of the targets that `make help` lists."""
    targets, section = {}, ''
    for line in makefile.splitlines():
        match = re.match(r'^([a-z][a-z-]*):.*## ', line)
        if line.startswith('##@'):
            section = line[3:].strip()
        elif match:
            targets[match.group(1)] = section
    return targets


class Checks:
    """The checks of one expanded pipeline; `problems` collects what they find."""

    def __init__(self, pipeline, root):
        self.pipeline, self.problems = pipeline, []
        self.stages = pipeline_yaml.stages(pipeline)
        self.targets = make_targets((root / 'Makefile').read_text(encoding='utf-8'))
        self.known = {name.lower() for name in PREDEFINED}
        self.known |= {name.lower() for name in pipeline_yaml.variables(pipeline)}
        self.published = {}

    def report(self, location, text):
        self.problems.append(f'{location}: {text}')

    def find_problems(self):
        self.check_start()
        for group in pipeline_yaml.groups(self.pipeline):
            if group not in GROUPS:
                self.report(self.pipeline.location, f'the variable group {group} is not known')
            self.known |= {name.lower() for name in GROUPS.get(group, ())}
        self.check_names(self.stages, 'stage')
        for stage in self.stages:
            self.check_needs(stage)
            self.check_condition(stage['condition'], stage['location'], stage)
            self.check_names(stage['jobs'], 'job')
            for job in stage['jobs']:
                self.check_job(job, stage)
        return self.problems

    def check_start(self):
        """What starts the pipeline, and where it runs."""
        location, pool = self.pipeline.location, self.pipeline.get('pool')
        if 'trigger' not in self.pipeline:
            self.report(location, 'without trigger every push to every branch starts it')
        if self.pipeline.get('pr') != 'none':
            self.report(location, 'pr: Azure Repos ignores it; say none, a branch policy starts it')
        if pool == 'server':
            self.report(location, 'pool: server has no machine to run scripts on')
        elif not isinstance(pool, dict) or list(pool) != ['vmImage']:
            self.report(location, 'pool: it needs vmImage, and anything else is not known here')
        elif pool['vmImage'] not in HOSTED:
            self.report(location,
                        f"pool: vmImage {pool['vmImage']} is none of {', '.join(HOSTED)}")

    def check_names(self, items, kind):
        names = [item['name'] for item in items]
        for item in items:
            name = item['name']
            # A file with jobs only has one stage, without a name.
            if not NAME.match(str(name)) and (kind, name) != ('stage', ''):
                self.report(item['location'], f'{kind} {name!r}: a name has letters, digits and _ '
                            'only')
            if item.get('kind') == 'deployment' and name in RESERVED:
                self.report(item['location'], f'deployment {name}: this name is reserved')
            if names.count(name) > 1:
                self.report(item['location'], f'there are two of {kind} {name}')

    def check_needs(self, stage):
        for need in stage['needs']:
            if need not in [other['name'] for other in self.stages]:
                self.report(stage['location'], f"stage {stage['name']} depends on {need}, which "
                            'does not exist')
            elif self.reaches(need, stage['name']):
                self.report(stage['location'], f"stage {stage['name']} depends on itself")

    def reaches(self, start, goal):
        """Whether stage `start` is `goal` or depends on it, directly or not."""
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name == goal:
                return True
            if name not in seen:
                seen.add(name)
                waiting += [need for other in self.stages if other['name'] == name
                            for need in other['needs']]
        return False

    def check_condition(self, text, location, stage=None, known=()):
        """A condition of a stage, else of a step."""
        if text is None:
            return
        try:
            tree = pipeline_yaml.parse_expression(str(text))
        except pipeline_yaml.PipelineError as error:
            self.report(location, error)
            return
        called = [call[1] for call in pipeline_yaml.find_parts(tree, 'call')]
        if not set(called) & set(pipeline_yaml.STATUS_FUNCTIONS):
            self.report(location, f'condition {text} drops the succeeded() that holds without one')
        for _, words in pipeline_yaml.find_parts(tree, 'path'):
            name = '.'.join(words[1:])
            if words[0] == 'dependencies' and stage and words[2:3] == ['outputs'] \
                    and len(words) == 4:
                self.check_output(words[1], words[3], stage)
            elif words[0] != 'variables' or stage:
                self.report(location, f"condition names {'.'.join(words)}, which is not known here")
            elif name.lower() not in known:
                self.report(location, f'condition names the variable {name}, which is not defined')

    def check_output(self, source, path, stage):
        """An output variable 'job.step.variable' of stage `source`, read by another stage."""
        location, words = stage['location'], path.split('.')
        if source not in stage['needs']:
            self.report(location, f'condition reads stage {source}, which is not in dependsOn')
        if len(words) != 3:
            self.report(location, f"outputs['{path}'] is not of the form job.step.variable")
            return
        steps = [step for other in self.stages if other['name'] == source
                 for job in other['jobs'] if job['name'] == words[0]
                 for _, steps in job['hooks'] for step in steps if step.get('name') == words[1]]
        if not steps:
            self.report(location, f"outputs['{path}']: stage {source} has no such job and step")
            return

    def check_job(self, job, stage):
        location, minutes = job['location'], job['minutes']
        if type(minutes) is not int or minutes < 1:
            self.report(location, f'timeoutInMinutes {minutes} is no number of minutes')
        if job['kind'] == 'deployment' and not job['environment']:
            self.report(location, f"deployment {job['name']}: without environment nobody is asked")
        for hook, steps in job['hooks']:
            if not steps:
                self.report(location, f"{job['name']} {hook} has no steps")
            if hook == 'deploy' and 'download' not in (steps or [{}])[0]:
                self.report(
                    location, 'deploy downloads every artifact unless download: none comes first')
            self.check_steps(steps, stage)

    def check_steps(self, steps, stage):
        """The steps of one job or hook, in order."""
        known, names, done = set(self.known), set(), set()
        secrets = {'system.accesstoken'}
        for step in steps:
            location = step.location
            if 'name' in step and (step['name'] in names or not NAME.match(str(step['name']))):
                self.report(location, f"step name {step['name']} is taken or malformed")
            names.add(step.get('name'))
            self.check_condition(step.get('condition'), location, known=known)
            self.check_macros(step, known, secrets)
            if 'script' in step:
                self.check_script(step, done, secrets)
            if 'publish' in step:
                self.check_publish(step, stage, step is steps[-1])
            if 'task' in step:
                self.check_task(step, stage)
                script = str((step.get('inputs') or {}).get('inlineScript', ''))
                for name, properties in SET_VARIABLE.findall(script):
                    known.add(name.lower())
                    if 'issecret=true' in properties:
                        secrets.add(name.lower())
            done.add(next(kind for kind in pipeline_yaml.STEPS if kind in step))

    def check_macros(self, step, known, secrets):
        for key, value in step.items():
            for text in texts(value):
                for name in pipeline_yaml.MACRO.findall(text):
                    if name.lower() not in known:
                        self.report(step.location, f'$({name}) is not defined')
                    elif name.lower() in secrets and key != 'env':
                        self.report(step.location, f'$({name}) is secret: by env only')
                if '$[' in text:
                    self.report(step.location, '$[ ] is not known here')

    def check_script(self, step, done, secrets):
        """A script step, after steps of the kinds `done`."""
        text = str(step['script']).strip()
        if 'checkout' not in done:
            self.report(step.location, 'a script before the checkout')
        match = MAKE.match(text)
        if text == CONTAINER + '--prepare':
            return
        if not match:
            first = text.splitlines()[0] if text else ''
            self.report(step.location,
                        f'a script is {CONTAINER}make and one target, not: {first}')
            return
        if 'script' not in done:
            self.report(step.location, f'make without {CONTAINER}--prepare before it')
        target, settings = match.groups()
        env = step.get('env') or {}
        if 'PYTHON=' in settings or 'PYTHON' in env:
            self.report(step.location, 'PYTHON is never set: make setup finds the interpreter')
        if target not in self.targets:
            self.report(step.location, f'make {target}: there is no such target')
        elif self.targets[target].startswith('Azure ML') or 'SERVICE=aci' in settings:
            given = {name.lower() for text in texts(env)
                     for name in pipeline_yaml.MACRO.findall(text)}
            if 'system.accesstoken' not in given or not secrets - {'system.accesstoken'} & given:
                self.report(step.location,
                            f'make {target} needs both secrets of a sign-in, by env')
        elif env:
            self.report(step.location, f'make {target} needs nothing by env')

    def check_publish(self, step, stage, last):
        name = step.get('artifact')
        if not name or name in self.published:
            self.report(step.location, f'the artifact {name} has no name or is published twice')
        if not last:
            self.report(step.location,
                        'an artifact comes last: a failed job could not be run again')
        self.published[name] = stage['name']

    def check_task(self, step, stage):
        inputs, task = step.get('inputs') or {}, step['task'].split('@')[0]
        if task == 'AzureCLI' and not inputs.get('inlineScript'):
            self.report(step.location, 'AzureCLI: inlineScript is missing')
        if task.startswith('Publish') and step.get('condition') != AFTER_FAILURE:
            self.report(step.location, f'{task}: a failure is published too: condition: '
                        f'{AFTER_FAILURE}')
        if task == 'PublishTestResults':
            for name in ('failTaskOnFailedTests', 'failTaskOnMissingResultsFile'):
                if inputs.get(name) is not True:
                    self.report(step.location, f'{name} is not true, so a failure could pass')
        if task == 'DownloadPipelineArtifact':
            name = inputs.get('artifactName')
            if name not in self.published:
                self.report(step.location, f'no step before publishes the artifact {name}')
            elif not self.reaches(stage['name'], self.published[name]):
                self.report(step.location, f'the artifact {name} is of a stage that is not in '
                            'dependsOn')


def combinations(declared):
    """Every combination of the values that parameters list: [{name: value}, ...]."""
    lists = [[(one['name'], value) for value in one['values']]
             for one in declared if one.get('values')]
    return [dict(values) for values in itertools.product(*lists)]


def find_problems(path, root=ROOT, with_schema=True, parameters=None):
    """All problems of one pipeline file, each once.

    parameters: {name: value} to check with; None: every combination of the listed values.
    """
    found = []
    try:
        pipeline_yaml.read_pipeline(path, parameters)
        declared = pipeline_yaml.load_file(path).get('parameters', [])
        for values in combinations(declared) if parameters is None else [parameters]:
            pipeline = pipeline_yaml.read_pipeline(path, values)
            found += schema_problems(pipeline) if with_schema else []
            found += Checks(pipeline, root).find_problems()
    except pipeline_yaml.PipelineError as error:
        found += str(error).split('\n')
    return sorted(set(found))
