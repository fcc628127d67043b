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

# What the variable group holds, whatever its name. The values are in Azure DevOps.
IN_GROUP = ('AZURE_RM_SVC_CONNECTION', 'SUBSCRIPTION_ID', 'RESOURCE_GROUP', 'WORKSPACE_NAME',
            'LOCATION', 'BASE_NAME')
PREDEFINED = ('Agent.OS', 'Agent.TempDirectory', 'Build.SourcesDirectory', 'Pipeline.Workspace',
              'System.AccessToken', 'System.DefaultWorkingDirectory', 'System.StageAttempt')
# Names of vmImage that Microsoft hosts on 2026-11-27, by actions/runner-images; ubuntu-22.04 goes
# on 2027-04-17. Docker with Linux images is on those of Ubuntu only.
HOSTED = ('ubuntu-latest', 'ubuntu-26.04', 'ubuntu-24.04', 'ubuntu-22.04')
# Variables that ${{ }} asks for, and their values.
SWITCHES = {'PRODUCTION': ('none', 'endpoint')}
NAME = re.compile(r'[A-Za-z_]\w*$')
# The YAML schema reference (jobs.deployment) forbids this word as a name.
RESERVED = ('job', 'deploy')
CONTAINER = 'exec python3 devops/container.py '
PREPARE = CONTAINER + '--prepare'
MAKE = re.compile(
    CONTAINER + r'make [a-z-]+( SERVICE=(aci|endpoint)| STAGE=[a-z_]+| BASE=HEAD\^1)?$')
# Reads files only, so it gets no secret.
SUMMARY = CONTAINER + 'make summary '
# Five fields, each a list of numbers, ranges or *, with steps; names of months and days are not
# known here (learn: pipelines/process/scheduled-triggers).
CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
CRON_PART = re.compile(r'(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?$')
SET_VARIABLE = re.compile(r'##vso\[task\.setvariable variable=(\w+)(;issecret=true)?\]')
AFTER_FAILURE = 'succeededOrFailed()'
TOKEN = 'system.accesstoken'


@functools.lru_cache(maxsize=None)
def schema():
    """Microsoft's schema (from check-jsonschema) for pipelines of the tasks that are known."""
    package = importlib.util.find_spec('check_jsonschema').submodule_search_locations[0]
    path = Path(package) / 'builtin_schemas' / 'vendor' / 'azure-pipelines.json'
    result = json.loads(path.read_text(encoding='utf-8'))
    task = result['definitions']['task']
    branches = {branch['properties'].get('task', {}).get('pattern', '^$')[1:-1]: branch
                for branch in task.pop('anyOf')}
    # One of hundreds, by the name of the task, so that an error is about that one. There is none
    # for PublishCodeCoverageResults@2.
    task['allOf'] = []
    for name in sorted(set(pipeline_yaml.TASKS) & set(branches)):
        # Names of inputs are in pipeline_yaml; the copy of 2023, for Python 3.7, lacks one.
        branches[name]['properties']['inputs'].pop('additionalProperties')
        task['allOf'].append({'if': {'properties': {'task': {'const': name}}},
                              'then': branches[name]})
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
    # The innermost is the one of the alternative that is meant.
    found = [max(leaves(error), key=lambda leaf: len(leaf.absolute_path))
             for error in jsonschema.Draft7Validator(schema()).iter_errors(pipeline)]
    return [f"{pipeline.location}: schema: {'/'.join(map(str, error.absolute_path))}: "
            f'{error.message[:200]}' for error in found]


def leaves(error):
    """The errors below one that are not about alternatives."""
    return [error] if not error.context else [
        leaf for one in error.context for leaf in leaves(one)]


def parts(value, kind):
    """All values of a type inside a value, itself included."""
    found = [value] if isinstance(value, kind) else []
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        found += parts(item, kind)
    return found


class Checks:
    """The checks of one expanded pipeline; `problems` holds what they find."""

    def __init__(self, pipeline):
        self.stages = pipeline_yaml.stages(pipeline)
        names = PREDEFINED + tuple(pipeline_yaml.variables(pipeline))
        names += IN_GROUP if pipeline_yaml.groups(pipeline) else ()
        self.known, self.problems = {name.lower() for name in names}, []
        # {artifact: its stage} and {stage: all stages that it depends on, directly or not}.
        self.published, self.needed = {}, {}
        pool = pipeline.get('pool') or {}
        self.report(
            pipeline.location,
            ('trigger' not in pipeline, 'without trigger every push to every branch starts it'),
            (pipeline.get('pr') != 'none',
             'pr: Azure Repos ignores it; say none, a branch policy starts it'),
            (not {'name', 'vmImage'} & set(pool) or pool.get('vmImage', HOSTED[0]) not in HOSTED,
             f"pool: name and one of your own, or vmImage and one of {', '.join(HOSTED)}, not "
             f'{pool}'))
        for schedule in pipeline_yaml.schedules(pipeline):
            self.check_schedule(schedule)
        # A file with jobs only has one stage, without a name.
        self.check_names('stage', [stage['name'] for stage in self.stages if stage['name']],
                         pipeline.location)
        for stage in self.stages:
            self.check_stage(stage)

    def report(self, location, *rules):
        """Note the texts of the rules, (whether it is broken, text), that are broken."""
        self.problems += [f'{location}: {text}' for broken, text in rules if broken]

    def check_schedule(self, schedule):
        fields = str(schedule['cron']).split()
        good = len(fields) == len(CRON) and all(
            match and all(least <= int(number) <= most for number in match.groups() if number)
            for field, (least, most) in zip(fields, CRON)
            for match in map(CRON_PART.match, field.split(',')))
        branches = schedule.get('branches') or {}
        self.report(
            schedule.location,
            (not good, f"cron: {schedule['cron']} is not five fields within their limits"),
            (not branches.get('include'), 'without branches a schedule is for every branch'),
            (schedule.get('always') is not True,
             'always is not true: without a change of the code the schedule would not start it'))

    def check_names(self, kind, names, location):
        for name in names:
            self.report(location, (
                not NAME.match(name) or (kind, name) == RESERVED or names.count(name) > 1,
                f'{kind} {name}: this name is malformed, reserved or taken'))

    def check_stage(self, stage):
        location, name, needs = stage['location'], stage['name'], stage['needs']
        self.report(location, *(
            (need not in self.needed,
             f'stage {name} depends on {need}, which is no stage before it') for need in needs))
        self.needed[name] = set(needs).union(*(self.needed.get(need, ()) for need in needs))
        self.check_condition(stage['condition'], location, stage)
        self.check_names('job', [str(stage['job']['name'])], location)
        self.report(location, (
            stage['job']['environment'] and stage['lock'] != 'sequential',
            'lockBehavior is not sequential: of two deployments that wait the first is cancelled'))
        for hook, steps in stage['job']['hooks']:
            self.report(location, (
                hook == 'deploy' and 'download' not in steps[0],
                'deploy downloads every artifact unless download: none comes first'))
            self.check_steps(steps, stage)

    def check_condition(self, text, location, stage=None, known=()):
        """A condition of a stage, else of a step."""
        if text is None:
            return
        paths, statuses = [], []
        try:
            pipeline_yaml.evaluate(str(text), paths.append, statuses.append)
        except pipeline_yaml.PipelineError as error:
            raise pipeline_yaml.PipelineError(f'{location}: {error}') from None
        self.report(location, (
            not statuses, f'condition {text} drops the succeeded() that holds without one'))
        for words in paths:
            if stage:
                known_here = [words[0], words[2:3], len(words)] == ['dependencies', ['outputs'], 4]
            else:
                known_here = words[0] == 'variables' and '.'.join(words[1:]).lower() in known
            self.report(location, (
                not known_here, f"condition names {'.'.join(words)}, which is not defined"))

    def check_steps(self, steps, stage):
        """The steps of one hook, in order."""
        known, secrets = set(self.known), {TOKEN}
        scripts = [str(step['script']).strip() for step in steps if 'script' in step]
        self.check_names('step', [str(step['name']) for step in steps if 'name' in step],
                         stage['location'])
        self.report(stage['location'], (
            scripts and scripts[0] != PREPARE, f'the first script is not {PREPARE}'))
        for step in steps:
            self.check_condition(step.get('condition'), step.location, known=known)
            self.check_macros(step, known, secrets)
            if 'script' in step:
                self.check_script(step, secrets)
            if 'publish' in step:
                name = str(step['artifact'])
                self.report(
                    step.location,
                    (step is not steps[-1],
                     'an artifact comes last: a failed job could not be run again'))
                self.published[name] = stage['name']
            if 'task' in step:
                self.check_task(step, self.needed[stage['name']] | {stage['name']})
            for text in parts(step.get('inputs'), str):
                for name, secret in SET_VARIABLE.findall(text):
                    (secrets if secret else known).add(name.lower())
            known |= secrets

    def check_macros(self, step, known, secrets):
        for key, text in ((key, text) for key in step for text in parts(step[key], str)):
            self.report(step.location, ('$[' in text, '$[ ] is not known here'))
            for name in pipeline_yaml.MACRO.findall(text):
                self.report(
                    step.location,
                    (name.lower() not in known | secrets, f'$({name}) is not defined'),
                    (name.lower() in secrets and key != 'env',
                     f'$({name}) is secret: by env only'))

    def check_script(self, step, secrets):
        """A script step; secrets: the names of those that are set before it."""
        text, signed_in = str(step['script']).strip(), secrets - {TOKEN}
        if text.startswith(SUMMARY):
            signed_in = set()
        given = {name.lower() for value in parts(step.get('env'), str)
                 for name in pipeline_yaml.MACRO.findall(value)}
        self.report(
            step.location,
            (text != PREPARE and not MAKE.match(text),
             f'a script is {CONTAINER}make and one target, not: {text}'),
            (signed_in and not (TOKEN in given and signed_in & given),
             'after the sign-in a script needs both secrets, by env'),
            ('env' in step and not signed_in,
             'a summary, and a script before the sign-in, needs nothing by env'))

    def check_task(self, step, needed):
        """A task; needed: the stages whose artifacts are there."""
        inputs, task = step['inputs'], step['task'].split('@')[0]
        self.report(
            step.location,
            (task.startswith('Publish') and step.get('condition') != AFTER_FAILURE,
             f'{task}: a failure is published too: condition: {AFTER_FAILURE}'),
            (task == 'DownloadPipelineArtifact'
             and self.published.get(str(inputs.get('artifactName'))) not in needed,
             f"the artifact {inputs.get('artifactName')} is of no stage in dependsOn"),
            *((inputs.get(name) is not True, f'{name} is not true, so a failure could pass')
              for name in pipeline_yaml.TASKS[step['task']] if name.startswith('fail')))


def find_problems(path):
    """The problems of one pipeline file, by the first values of its parameters that show some.

    Every combination of the values that are listed is tried, and those of SWITCHES. The schema is
    asked where there are no other problems, and check-jsonschema is installed.
    """
    try:
        pipeline_yaml.read_pipeline(path)
        lists = [[(one['name'], value) for value in one['values']] for one in
                 pipeline_yaml.load_file(path).get('parameters', []) if 'values' in one]
        switches = [[(name, value) for value in values] for name, values in SWITCHES.items()]
        checked = []
        for values in itertools.product(*switches + lists):
            pipeline = pipeline_yaml.read_pipeline(
                path, dict(values[len(switches):]), dict(values[:len(switches)]))
            # Many combinations come to the same.
            content = [pipeline.get(key) for key in ('stages', 'jobs')]
            found = [] if content in checked else (
                Checks(pipeline).problems or schema_problems(pipeline))
            if found:
                return found
            checked.append(content)
        named = {', '.join(pipeline_yaml.groups(pipeline_yaml.read_pipeline(file)))
                 for file in Path(path).parent.glob('*.yml')
                 if 'trigger' in pipeline_yaml.load_file(file)} - {''}
    except pipeline_yaml.PipelineError as error:
        return [str(error)]
    return [] if len(named) < 2 else [
        f"the files name different variable groups: {' or '.join(sorted(named))}"]
