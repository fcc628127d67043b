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

# What the variable groups hold. Their values are in Azure DevOps.
GROUPS = {'devopsforai-aml-vg': ('AZURE_RM_SVC_CONNECTION', 'SUBSCRIPTION_ID', 'RESOURCE_GROUP',
                                 'WORKSPACE_NAME', 'LOCATION', 'BASE_NAME')}
PREDEFINED = ('Agent.OS', 'Agent.TempDirectory', 'Build.SourcesDirectory', 'Pipeline.Workspace',
              'System.AccessToken', 'System.DefaultWorkingDirectory', 'System.StageAttempt')
# Names of vmImage that Microsoft hosts on 2026-11-27, by actions/runner-images; ubuntu-22.04 goes
# on 2027-04-17. Docker with Linux images is on those of Ubuntu only.
HOSTED = ('ubuntu-latest', 'ubuntu-26.04', 'ubuntu-24.04', 'ubuntu-22.04')
NAME = re.compile(r'[A-Za-z_]\w*$')
# The YAML schema reference (jobs.deployment) forbids this word as a name.
RESERVED = ('job', 'deploy')
CONTAINER = 'exec python3 devops/container.py '
PREPARE = CONTAINER + '--prepare'
MAKE = re.compile(CONTAINER + r'make [a-z-]+( SERVICE=aci)?$')
SET_VARIABLE = re.compile(r'##vso\[task\.setvariable variable=(\w+)(;issecret=true)?\]')
AFTER_FAILURE = 'succeededOrFailed()'


@functools.lru_cache(maxsize=None)
def schema(tasks):
    """Microsoft's schema (from check-jsonschema) for pipelines of these tasks, its gaps filled."""
    package = importlib.util.find_spec('check_jsonschema').submodule_search_locations[0]
    path = Path(package) / 'builtin_schemas' / 'vendor' / 'azure-pipelines.json'
    result = json.loads(path.read_text(encoding='utf-8'))
    task = result['definitions']['task']
    branches = {branch['properties'].get('task', {}).get('pattern', '^$')[1:-1]: branch
                for branch in task['anyOf']}
    # A branch for each of hundreds of tasks: without the others an error is about the right one.
    # It has none for PublishCodeCoverageResults@2.
    task['anyOf'] = [branches.get(name, {'properties': {'task': {'const': name}}})
                     for name in sorted(tasks)]
    # Names of inputs are in pipeline_yaml; the copy of 2023, for Python 3.7, lacks one.
    for branch in task['anyOf']:
        branch['properties'].get('inputs', {}).pop('additionalProperties', None)
    # The service turns numbers and booleans into text where it wants text.
    for part in parts(result, dict):
        if part.get('type') == 'string':
            part['type'] = ['string', 'number', 'boolean']
    return result


def schema_problems(pipeline):
    """What Microsoft's schema finds in an expanded pipeline."""
    if not importlib.util.find_spec('check_jsonschema'):
        return []
    import jsonschema
    tasks = frozenset(step['task'] for step in parts(pipeline, dict) if 'task' in step)
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


def parts(value, kind):
    """All values of a type inside a value, itself included."""
    found = [value] if isinstance(value, kind) else []
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        found += parts(item, kind)
    return found


class Checks:
    """The checks of one expanded pipeline; `problems` collects what they find."""

    def __init__(self, pipeline):
        self.pipeline, self.problems = pipeline, []
        self.stages = pipeline_yaml.stages(pipeline)
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
        # A file with jobs only has one stage, without a name.
        self.check_names('stage', [stage['name'] for stage in self.stages if stage['name']],
                         self.pipeline.location)
        # {stage: all stages before it that it depends on, directly or not}
        needed = {}
        for stage in self.stages:
            for need in stage['needs']:
                if need not in needed:
                    self.report(stage['location'], f"stage {stage['name']} depends on {need}, "
                                'which is no stage before it')
            needed[stage['name']] = set(stage['needs']).union(
                *(needed.get(need, ()) for need in stage['needs']))
            self.check_condition(stage['condition'], stage['location'], stage)
            self.check_names('job', [str(stage['job']['name'])], stage['location'])
            for hook, steps in stage['job']['hooks']:
                if hook == 'deploy' and 'download' not in steps[0]:
                    self.report(stage['location'], 'deploy downloads every artifact unless '
                                'download: none comes first')
                self.check_steps(steps, stage, needed[stage['name']])
        return self.problems

    def check_start(self):
        """What starts the pipeline, and where it runs."""
        location, pool = self.pipeline.location, self.pipeline.get('pool')
        if 'trigger' not in self.pipeline:
            self.report(location, 'without trigger every push to every branch starts it')
        if self.pipeline.get('pr') != 'none':
            self.report(location, 'pr: Azure Repos ignores it; say none, a branch policy starts it')
        if pool not in [{'vmImage': image} for image in HOSTED]:
            self.report(location, f"pool: vmImage and one of {', '.join(HOSTED)}, not {pool}")

    def check_names(self, kind, names, location):
        for name in names:
            if not NAME.match(name) or (kind, name) == RESERVED or names.count(name) > 1:
                self.report(location, f'{kind} {name}: this name is malformed, reserved or taken')

    def check_condition(self, text, location, stage=None, known=()):
        """A condition of a stage, else of a step."""
        if text is None:
            return
        paths, statuses = [], []
        try:
            pipeline_yaml.evaluate(str(text), paths.append, statuses.append)
        except pipeline_yaml.PipelineError as error:
            self.report(location, error)
            return
        if not statuses:
            self.report(location, f'condition {text} drops the succeeded() that holds without one')
        for words in paths:
            name = '.'.join(words[1:])
            if stage and [words[0], words[2:3], len(words)] == ['dependencies', ['outputs'], 4]:
                self.check_output(words[1], words[3], stage)
            elif words[0] != 'variables' or stage or name.lower() not in known:
                self.report(location, f"condition names {'.'.join(words)}, which is not defined")

    def check_output(self, source, path, stage):
        """An output variable 'job.step.variable' of stage `source`, read by another stage."""
        if source not in stage['needs']:
            self.report(stage['location'],
                        f'condition reads stage {source}, which is not in dependsOn')
        if path.rpartition('.')[0] not in [
                f"{other['job']['name']}.{step.get('name')}" for other in self.stages
                if other['name'] == source
                for _, steps in other['job']['hooks'] for step in steps]:
            self.report(stage['location'], f"outputs['{path}']: stage {source} has no such job "
                        'and step')

    def check_steps(self, steps, stage, needed):
        """The steps of one hook, in order. needed: names of the stages that come before."""
        known, secrets = set(self.known), {'system.accesstoken'}
        self.check_names('step', [str(step['name']) for step in steps if 'name' in step],
                         stage['location'])
        scripts = [str(step['script']).strip() for step in steps if 'script' in step]
        if scripts and scripts[0] != PREPARE:
            self.report(stage['location'], f'the first script is not {PREPARE}')
        for step in steps:
            self.check_condition(step.get('condition'), step.location, known=known)
            self.check_macros(step, known, secrets)
            if 'script' in step:
                self.check_script(step, secrets)
            if 'publish' in step:
                self.check_publish(step, stage['name'], step is steps[-1])
            if 'task' in step:
                self.check_task(step, needed | {stage['name']})
            for text in parts(step.get('inputs'), str):
                for name, secret in SET_VARIABLE.findall(text):
                    (secrets if secret else known).add(name.lower())
            known |= secrets

    def check_macros(self, step, known, secrets):
        for key, value in step.items():
            for text in parts(value, str):
                for name in pipeline_yaml.MACRO.findall(text):
                    if name.lower() in secrets and key != 'env':
                        self.report(step.location, f'$({name}) is secret: by env only')
                    elif name.lower() not in known:
                        self.report(step.location, f'$({name}) is not defined')
                if '$[' in text:
                    self.report(step.location, '$[ ] is not known here')

    def check_script(self, step, secrets):
        """A script step; secrets: the names of those that are set before it."""
        text, signed_in = str(step['script']).strip(), secrets - {'system.accesstoken'}
        given = {name.lower() for value in parts(step.get('env'), str)
                 for name in pipeline_yaml.MACRO.findall(value)}
        if text != PREPARE and not MAKE.match(text):
            self.report(step.location, f'a script is {CONTAINER}make and one target, not: {text}')
        elif signed_in and not ('system.accesstoken' in given and signed_in & given):
            self.report(step.location, 'after the sign-in a script needs both secrets, by env')
        elif 'env' in step and not signed_in:
            self.report(step.location, 'before the sign-in a script needs nothing by env')

    def check_publish(self, step, stage, last):
        name = str(step['artifact'])
        if name in self.published:
            self.report(step.location, f'the artifact {name} is published twice')
        if not last:
            self.report(step.location,
                        'an artifact comes last: a failed job could not be run again')
        self.published[name] = stage

    def check_task(self, step, needed):
        inputs, task = step['inputs'], step['task'].split('@')[0]
        if task.startswith('Publish') and step.get('condition') != AFTER_FAILURE:
            self.report(step.location, f'{task}: a failure is published too: condition: '
                        f'{AFTER_FAILURE}')
        for name in [name for name in pipeline_yaml.TASKS[step['task']] if name.startswith('fail')]:
            if inputs.get(name) is not True:
                self.report(step.location, f'{name} is not true, so a failure could pass')
        if task == 'DownloadPipelineArtifact' and \
                self.published.get(str(inputs['artifactName'])) not in needed:
            self.report(step.location, f"the artifact {inputs['artifactName']} is of no stage in "
                        'dependsOn')


def find_problems(path):
    """The problems of one pipeline file, by the first values of its parameters that show some.

    Every combination of the values that are listed is tried. The schema is asked where there are
    no other problems, and check-jsonschema is installed.
    """
    try:
        pipeline_yaml.read_pipeline(path)
        lists = [[(one['name'], value) for value in one['values']] for one in
                 pipeline_yaml.load_file(path).get('parameters', []) if 'values' in one]
        for values in itertools.product(*lists):
            pipeline = pipeline_yaml.read_pipeline(path, dict(values))
            found = Checks(pipeline).find_problems() or schema_problems(pipeline)
            if found:
                return found
    except pipeline_yaml.PipelineError as error:
        return [str(error)]
    return []
