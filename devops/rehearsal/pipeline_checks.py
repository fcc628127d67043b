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
              'System.DefaultWorkingDirectory', 'System.StageAttempt')
# The YAML schema reference (jobs.deployment) forbids this word as a name.
RESERVED = ('deploy',)
NAME = re.compile(r'^[A-Za-z_]\w*$')
MAKE = re.compile(r'^make ([a-z-]+)((?: [A-Z_]+=[\w./-]+)*)$')
BOOTSTRAP = 'make --version'
SET_VARIABLE = re.compile(r'##vso\[task\.setvariable variable=(\w+)([^\]]*)\]')
ON_THE_HOST = ('AzureCLI', 'PublishTestResults', 'PublishCodeCoverageResults')
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
    # steps.task has a target in the YAML schema reference.
    task['properties']['target'] = {'$ref': '#/definitions/stepTarget'}
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
    return [f'{pipeline.location}: schema: {telling(error)}' for error in found]


def telling(error):
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

    def say(self, location, text, *values):
        self.problems.append(f'{location}: {text % values}')

    def all(self):
        self.start()
        for group in pipeline_yaml.groups(self.pipeline):
            if group not in GROUPS:
                self.say(self.pipeline.location, 'the variable group %s is not known', group)
            self.known |= {name.lower() for name in GROUPS.get(group, ())}
        self.names(self.stages, 'stage')
        for stage in self.stages:
            self.needs(stage)
            self.condition(stage['condition'], stage['location'], stage)
            self.names(stage['jobs'], 'job')
            for job in stage['jobs']:
                self.job(job, stage)
        return self.problems

    def start(self):
        """What starts the pipeline, and where it runs."""
        location, pool = self.pipeline.location, self.pipeline.get('pool')
        if 'trigger' not in self.pipeline:
            self.say(location, 'without trigger every push to every branch starts it')
        if self.pipeline.get('pr') != 'none':
            self.say(location, 'pr: Azure Repos ignores it; say none, a branch policy starts it')
        if pool == 'server':
            self.say(location, 'pool: server has no machine to run scripts on')
        elif not isinstance(pool, dict) or list(pool) != ['vmImage']:
            self.say(location, 'pool: it needs vmImage, and anything else is not known here')

    def names(self, items, kind):
        names = [item['name'] for item in items]
        for item in items:
            name = item['name']
            # A file with jobs only has one stage, without a name.
            if not NAME.match(str(name)) and (kind, name) != ('stage', ''):
                self.say(item['location'], '%s %r: a name has letters, digits and _ only',
                         kind, name)
            if item.get('kind') == 'deployment' and name in RESERVED:
                self.say(item['location'], 'deployment %s: this name is reserved', name)
            if names.count(name) > 1:
                self.say(item['location'], 'there are two of %s %s', kind, name)

    def needs(self, stage):
        for need in stage['needs']:
            if need not in [other['name'] for other in self.stages]:
                self.say(stage['location'], 'stage %s depends on %s, which does not exist',
                         stage['name'], need)
            elif self.reaches(need, stage['name']):
                self.say(stage['location'], 'stage %s depends on itself', stage['name'])

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

    def condition(self, text, location, stage=None, known=()):
        """A condition of a stage, else of a step."""
        if text is None:
            return
        try:
            tree = pipeline_yaml.parse(str(text))
        except pipeline_yaml.PipelineError as error:
            self.say(location, '%s', error)
            return
        called = [call[1] for call in pipeline_yaml.parts(tree, 'call')]
        if not set(called) & set(pipeline_yaml.STATUS_FUNCTIONS):
            self.say(location, 'condition %s drops the succeeded() that holds without one', text)
        for _, words in pipeline_yaml.parts(tree, 'path'):
            name = '.'.join(words[1:])
            if words[0] == 'dependencies' and stage and words[2:3] == ['outputs'] \
                    and len(words) == 4:
                self.output(words[1], words[3], stage)
            elif words[0] != 'variables' or stage:
                self.say(location, 'condition names %s, which is not known here', '.'.join(words))
            elif name.lower() not in known:
                self.say(location, 'condition names the variable %s, which is not defined', name)

    def output(self, source, path, stage):
        """An output variable 'job.step.variable' of stage `source`, read by another stage."""
        location, words = stage['location'], path.split('.')
        if source not in stage['needs']:
            self.say(location, 'condition reads stage %s, which is not in dependsOn', source)
        if len(words) != 3:
            self.say(location, "outputs['%s'] is not of the form job.step.variable", path)
            return
        steps = [step for other in self.stages if other['name'] == source
                 for job in other['jobs'] if job['name'] == words[0]
                 for _, steps in job['hooks'] for step in steps if step.get('name') == words[1]]
        if not steps:
            self.say(location, "outputs['%s']: stage %s has no such job and step", path, source)
            return

    def job(self, job, stage):
        location, minutes = job['location'], job['minutes']
        if type(minutes) is not int or minutes < 1:
            self.say(location, 'timeoutInMinutes %s is no number of minutes', minutes)
        if job['kind'] == 'deployment' and not job['environment']:
            self.say(location, 'deployment %s: without environment nobody is asked', job['name'])
        if '/' not in str(job['container']):
            self.say(location, 'container %s is no image, and there is no such container resource',
                     job['container'])
        for hook, steps in job['hooks']:
            if not steps:
                self.say(location, '%s %s has no steps', job['name'], hook)
            if hook == 'deploy' and 'download' not in (steps or [{}])[0]:
                self.say(location,
                         'deploy downloads every artifact unless download: none comes first')
            self.steps(steps, stage)

    def steps(self, steps, stage):
        """The steps of one job or hook, in order."""
        known, secrets, names, done = set(self.known), set(), set(), set()
        for step in steps:
            location = step.location
            if 'name' in step and (step['name'] in names or not NAME.match(str(step['name']))):
                self.say(location, 'step name %s is taken or malformed', step['name'])
            names.add(step.get('name'))
            self.condition(step.get('condition'), location, known=known)
            self.macros(step, known, secrets)
            if 'script' in step:
                self.script(step, done, secrets)
            if 'publish' in step:
                self.publish(step, stage, step is steps[-1])
            if 'task' in step:
                self.task(step, stage)
                script = str((step.get('inputs') or {}).get('inlineScript', ''))
                for name, properties in SET_VARIABLE.findall(script):
                    known.add(name.lower())
                    if 'issecret=true' in properties:
                        secrets.add(name.lower())
            done.add(next(kind for kind in pipeline_yaml.STEPS if kind in step))

    def macros(self, step, known, secrets):
        for key, value in step.items():
            for text in texts(value):
                for name in pipeline_yaml.MACRO.findall(text):
                    if name.lower() not in known:
                        self.say(step.location, '$(%s) is not defined', name)
                    elif name.lower() in secrets and key != 'env':
                        self.say(step.location, '$(%s) is secret: by env only', name)
                if '$[' in text:
                    self.say(step.location, '$[ ] is not known here')

    def script(self, step, done, secrets):
        """A script step, after steps of the kinds `done`."""
        text = str(step['script']).strip()
        if 'checkout' not in done:
            self.say(step.location, 'a script before the checkout')
        match = MAKE.match(text)
        if not match:
            if BOOTSTRAP not in text or 'script' in done:
                self.say(step.location, 'a script is one make target, not: %s', text.split('\n')[0])
            return
        target, settings = match.groups()
        env = step.get('env') or {}
        if 'target' in step:
            self.say(step.location, 'make runs in the container')
        if 'PYTHON=' in settings or 'PYTHON' in env:
            self.say(step.location, 'PYTHON is never set: make setup finds the interpreter')
        if target not in self.targets:
            self.say(step.location, 'make %s: there is no such target', target)
        elif self.targets[target].startswith('Azure ML') or 'SERVICE=aci' in settings:
            given = [name.lower() for text in texts(env)
                     for name in pipeline_yaml.MACRO.findall(text)]
            if not secrets & set(given):
                self.say(step.location, 'make %s needs the secret of a sign-in, by env', target)

    def publish(self, step, stage, last):
        name = step.get('artifact')
        if not name or name in self.published:
            self.say(step.location, 'the artifact %s has no name or is published twice', name)
        if not last:
            self.say(step.location, 'an artifact comes last: a failed job could not be run again')
        self.published[name] = stage['name']

    def task(self, step, stage):
        inputs, task = step.get('inputs') or {}, step['task'].split('@')[0]
        if task in ON_THE_HOST and step.get('target') != 'host':
            self.say(step.location, '%s runs on the host: the image is too old for it', task)
        if task == 'AzureCLI' and not inputs.get('inlineScript'):
            self.say(step.location, 'AzureCLI: inlineScript is missing')
        if task.startswith('Publish') and step.get('condition') != AFTER_FAILURE:
            self.say(step.location, '%s: a failure is published too: condition: %s', task,
                     AFTER_FAILURE)
        if task == 'PublishTestResults':
            for name in ('failTaskOnFailedTests', 'failTaskOnMissingResultsFile'):
                if inputs.get(name) is not True:
                    self.say(step.location, '%s is not true, so a failure could pass', name)
        if task == 'DownloadPipelineArtifact':
            name = inputs.get('artifactName')
            if name not in self.published:
                self.say(step.location, 'no step before publishes the artifact %s', name)
            elif not self.reaches(stage['name'], self.published[name]):
                self.say(step.location, 'the artifact %s is of a stage that is not in dependsOn',
                         name)


def combinations(declared):
    """Every combination of the values that parameters list: [{name: value}, ...]."""
    lists = [[(one['name'], value) for value in one['values']]
             for one in declared if one.get('values')]
    return [dict(values) for values in itertools.product(*lists)]


def problems(path, root=ROOT, with_schema=True, parameters=None):
    """All problems of one pipeline file, each once.

    parameters: {name: value} to check with; else every combination of the listed values.
    """
    found = []
    try:
        pipeline_yaml.read(path, parameters)
        declared = pipeline_yaml.load(path).get('parameters', [])
        for values in [parameters] if parameters else combinations(declared):
            pipeline = pipeline_yaml.read(path, values)
            found += schema_problems(pipeline) if with_schema else []
            found += Checks(pipeline, root).all()
    except pipeline_yaml.PipelineError as error:
        found += str(error).split('\n')
    return sorted(set(found))
