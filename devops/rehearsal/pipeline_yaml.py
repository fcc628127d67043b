"""Reads the Azure Pipelines files of devops/ as the service does before a run.

Templates, parameters and ${{ }} are put in. Only the constructs that these files use are known;
anything else is refused by name. Source of the rules: Microsoft's YAML schema reference and the
page "Expressions" for Azure Pipelines.
"""
import functools
import re
from pathlib import Path

import yaml

# Functions of expressions and how many arguments each takes; those of the status take none.
FUNCTIONS = {'and': 2, 'eq': 2, 'ne': 2, 'succeeded': 0, 'succeededOrFailed': 0, 'canceled': 0}

# The keys that are known, by what has them.
PIPELINE = {'schedules', 'trigger', 'pr', 'parameters', 'variables', 'pool', 'stages', 'jobs'}
SCHEDULE = {'cron', 'displayName', 'branches', 'always', 'batch'}
VARIABLE = {'name', 'value', 'group'}
PARAMETER = {'name', 'displayName', 'type', 'default', 'values'}
STAGE = {'stage', 'displayName', 'dependsOn', 'condition', 'jobs', 'lockBehavior'}
JOBS = {'job': {'job', 'displayName', 'timeoutInMinutes', 'steps'},
        'deployment': {'deployment', 'displayName', 'timeoutInMinutes', 'environment', 'strategy'}}
HOOKS = ('deploy', 'routeTraffic')
STEP = {'displayName', 'name', 'condition', 'env'}
STEPS = {'script': STEP, 'task': STEP | {'inputs'}, 'publish': STEP | {'artifact'},
         'checkout': {'fetchDepth'}, 'download': set()}
TASKS = {
    'Cache@2': {'key', 'path'},
    'AzureCLI@2': {'azureSubscription', 'scriptType', 'scriptLocation', 'inlineScript',
                   'addSpnToEnvironment'},
    'DownloadPipelineArtifact@2': {'artifactName', 'targetPath'},
    'PublishTestResults@2': {'testResultsFormat', 'testResultsFiles', 'testRunTitle',
                             'failTaskOnFailedTests', 'failTaskOnMissingResultsFile'},
    'PublishCodeCoverageResults@2': {'summaryFileLocation', 'pathToSources',
                                     'failIfCoverageEmpty'},
}
# The values that steps of these kinds can have.
STEP_VALUES = {'task': TASKS, 'checkout': ('self',), 'download': ('none',)}

NOT_HERE = {'container': "needs the agent's Node in the image, whose C library is too old for it: "
                         'run docker in a step, as devops/container.py does'}
EXPRESSION = re.compile(r'\$\{\{\s*(.*?)\s*\}\}', re.S)
MACRO = re.compile(r'\$\(([A-Za-z_][\w.]*)\)')
# Words of an expression: a text, a number, a name or path such as a.b['c'], a sign.
WORD = re.compile(r"'(?:[^']|'')*'|[\w-]+(?:\.\w+|\['[^']*'\])*|\S")
PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\['[^']*'\])+")


class PipelineError(ValueError):
    """A file that the service would refuse, or a construct that is not known here."""


class Map(dict):
    """A mapping of a YAML file that knows its location, 'ci.yml:12'."""

    def __init__(self, location, items=()):
        super().__init__(items)
        self.location = location

    def __missing__(self, key):
        raise PipelineError(f'{self.location}: {key} is missing')

    def list_of(self, key):
        if not isinstance(self[key], list) or not self[key]:
            raise PipelineError(f'{self.location}: {key} is a list, not {self[key]!r}')
        return self[key]


class Loader(yaml.SafeLoader):
    """YAML as the service reads it: `on` is a word, keys are unique, there are no anchors."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, 'anchor', None):
            raise PipelineError(f'{self.location_of(event)}: Azure Pipelines knows no anchors '
                                f'({event.anchor})')
        return super().compose_node(parent, index)

    def location_of(self, item):
        return f'{self.name}:{item.start_mark.line + 1}'

    def mapping(self, node):
        result = Map(self.location_of(node))
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in result:
                raise PipelineError(f'{self.location_of(key_node)}: duplicate key {key}')
            result[key] = self.construct_object(value_node, deep=True)
        return result


for tag, pattern, first in (('bool', r'^(?:true|false|True|False)$', 'tTfF'),
                            ('int', r'^-?[0-9]+$', '-0123456789'),
                            ('null', r'^(?:~|null|)$', ['~', 'n', ''])):
    Loader.add_implicit_resolver('tag:yaml.org,2002:' + tag, re.compile(pattern), list(first))
Loader.add_constructor('tag:yaml.org,2002:map', Loader.mapping)


def load_file(path):
    """One YAML file as Map, list and scalars, not to be changed. Raises PipelineError."""
    try:
        return parse_yaml(Path(path).name, Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f'{path} cannot be read: {error}') from None


@functools.lru_cache(maxsize=None)
def parse_yaml(name, text):
    loader = Loader(text)
    loader.name = name
    try:
        document = loader.get_single_data()
    except yaml.YAMLError as error:
        raise PipelineError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, Map):
        raise PipelineError(f'{name} holds no mapping')
    return document


def is_true(value):
    return value not in (False, '', 'false', None)


def evaluate(text, look_up, status):
    """The value of an expression. Raises PipelineError, which says what is wrong with it.

    look_up: function from the words of a path, as in dependencies.train.outputs['a.b.c'], to its
    value; status: function from the name of a status function to its value.
    """
    words = WORD.findall(text)

    def take(expected=None):
        word = words.pop(0) if words else 'the end'
        if expected not in (None, word):
            raise PipelineError(f'expression "{text}": {word} where {expected} is expected')
        return word

    def call(name):
        take('(')
        arguments = []
        for number in range(FUNCTIONS[name]):
            if number:
                take(',')
            arguments.append(term())
        take(')')
        if not arguments:
            return status(name)
        if name == 'and':
            return all(map(is_true, arguments))
        # The service compares without regard to case.
        same = str(arguments[0]).lower() == str(arguments[1]).lower()
        return same if name == 'eq' else not same

    def term():
        word = take()
        if word in FUNCTIONS:
            return call(word)
        if re.fullmatch("'.*'", word, re.S):
            return word[1:-1].replace("''", "'")
        if re.fullmatch(r'-?\d+|true|false', word):
            return word
        if PATH.fullmatch(word):
            return look_up([name or quoted for name, quoted in
                            re.findall(r"(\w+)|'([^']*)'", word)])
        raise PipelineError(f'expression "{text}": {word} is no value and no function that is '
                            f"known here ({', '.join(sorted(FUNCTIONS))})")

    value = term()
    take('the end')
    return value


def condition_holds(condition, look_up, results):
    """Whether a condition, None for the default one, is met after these results."""
    status = {'succeeded': results <= {'succeeded'}, 'canceled': 'canceled' in results,
              'succeededOrFailed': results <= {'succeeded', 'failed'}}
    return is_true(evaluate(condition or 'succeeded()', look_up, status.get))


def fill_in_macros(text, variables):
    """`text` with each $(name) replaced that `variables`, whose names are in lower case, has."""
    return MACRO.sub(lambda match: str(variables.get(match.group(1).lower(), match.group(0))),
                     str(text))


def bind_parameters(document, given, location):
    """The values of a file's parameters: those `given`, checked, else the defaults."""
    values, listed = {}, document.list_of('parameters') if 'parameters' in document else []
    for name in set(given) - {parameter.get('name') for parameter in listed}:
        raise PipelineError(f'{location}: there is no parameter {name}')
    for parameter in listed:
        check_keys(parameter, PARAMETER, 'a parameter', location)
        name, kind = str(parameter['name']), parameter.get('type', 'string')
        value = values[name] = given[name] if name in given else parameter['default']
        problem = None
        if kind not in ('string', 'number'):
            problem = f'is of type {kind}, which is not known here'
        elif 'values' in parameter and value not in parameter.list_of('values'):
            problem = f"is {value}, not one of {', '.join(map(str, parameter['values']))}"
        if problem:
            raise PipelineError(f'{location}: parameter {name} {problem}')
    return values


class Expansion:
    """One file whose ${{ }} may refer to these parameters and variables of the pipeline's files.

    location: of what is being expanded.
    """

    def __init__(self, path, parameters, variables):
        self.path, self.location, self.variables = path, path.name, variables
        self.known = {'parameters': parameters, 'variables': variables}

    def look_up(self, words):
        root, name = words[0], '.'.join(words[1:])
        if name not in self.known.get(root, ()):
            raise PipelineError(f'{root} has no {name} when templates are read')
        return self.known[root][name]

    def refuse_status(self, name):
        raise PipelineError(f'{name}() has no value in ${{{{ }}}}')

    def value(self, expression):
        try:
            return evaluate(expression, self.look_up, self.refuse_status)
        except PipelineError as error:
            raise PipelineError(f'{self.location}: {error}') from None

    def expand(self, value):
        if isinstance(value, Map):
            return self.expand_map(value)
        if isinstance(value, list):
            return self.expand_list(value)
        if not isinstance(value, str):
            return value
        whole = EXPRESSION.fullmatch(value)
        if whole:
            return self.value(whole.group(1))
        return EXPRESSION.sub(lambda match: str(self.value(match.group(1))), value)

    def decide(self, entries):
        """Those of the (location, key, value) that ${{ if }} and ${{ else }} leave.

        As (branch, key, value); branch: whether the key is such an `if` or `else`, so that only
        what it holds counts.
        """
        decision = None
        for self.location, key, value in entries:
            match = EXPRESSION.fullmatch(str(key))
            word, _, condition = match.group(1).partition(' ') if match else ('', '', '')
            if word == 'if':
                decision = is_true(self.value(condition))
            elif word == 'else' and not condition and decision is not None:
                decision = not decision
            elif match:
                raise PipelineError(f'{self.location}: {key}: only if and, after it, else are '
                                    'known here as keys')
            else:
                decision = None
            if decision is not False:
                yield bool(decision), key, value

    def expand_map(self, source):
        result = Map(source.location)
        for branch, key, value in self.decide(
                (source.location, key, value) for key, value in source.items()):
            added = self.expand(value)
            if branch and not isinstance(added, Map):
                raise PipelineError(f'{source.location}: {key} holds no mapping')
            for name, item in (added.items() if branch else [(key, added)]):
                if name in result:
                    raise PipelineError(f'{source.location}: duplicate key {name}')
                result[name] = item
        return result

    def expand_list(self, source):
        result = []
        for branch, key, item in self.decide(
                (item.location, next(iter(item)) if len(item) == 1 else '', item)
                if isinstance(item, Map) else (self.location, '', item) for item in source):
            if branch:
                result += self.expand(item.list_of(key))
            elif isinstance(item, Map) and 'template' in item:
                result += self.template(check_keys(item, {'template', 'parameters'}, 'a template'))
            else:
                result.append(self.expand(item))
        return result

    def template(self, item):
        """The list that a template stands for."""
        path = self.path.parent / str(item['template'])
        if not path.is_file():
            raise PipelineError(f"{item.location}: the template {item['template']} does not exist")
        document = load_file(path)
        lists = [key for key in document if key != 'parameters']
        if len(lists) != 1:
            raise PipelineError(f'{path.name}: a template holds one list, of variables, stages, '
                                f'jobs or steps; not {lists}')
        given = self.expand_map(item.get('parameters', Map(item.location)))
        values = bind_parameters(document, given, f'{item.location}: {path.name}')
        return Expansion(path, values, self.variables).expand(document.list_of(lists[0]))


def read_pipeline(path, parameters=None, changes=None):
    """The pipeline of a file as the service expands it: templates and ${{ }} put in; a Map.

    parameters: {name: value} that a person gives at a manual run; changes: values of variables
    instead of the files'. Raises PipelineError.
    """
    path = Path(path)
    document, expanded = load_file(path), Map(path.name)
    values = bind_parameters(document, parameters or {}, path.name)
    # The variables first: what comes after may ask for them. Those of groups are not known yet.
    for key in sorted(document, key='variables'.__ne__):
        if key != 'parameters':
            expanded[key] = Expansion(path, values, variables(expanded)).expand(document[key])
        if key == 'variables':
            for item in expanded.list_of(key):
                check_keys(item, VARIABLE, 'a variable', path.name)
                if item.get('name') in (changes or {}):
                    item['value'] = changes[item['name']]
    return expanded


def variables(pipeline):
    """{name: value} of the variables in the files; the last of two wins, as in the service."""
    return {str(item['name']): item['value'] for item in pipeline.get('variables', [])
            if 'group' not in item}


def schedules(pipeline):
    """The schedules, Maps with the keys of SCHEDULE. Raises PipelineError."""
    found = pipeline.list_of('schedules') if 'schedules' in pipeline else []
    return [check_keys(item, SCHEDULE, 'a schedule', pipeline.location) for item in found]


def groups(pipeline):
    """The variable groups that the pipeline names."""
    return [str(item['group']) for item in pipeline.get('variables', []) if 'group' in item]


def check_keys(item, known, what, location=None):
    """The item, which has to be a Map with known keys only; location: of what it is in."""
    if not isinstance(item, Map):
        raise PipelineError(f'{location}: {what} is a mapping, not {item!r}')
    for key in item:
        if key not in known:
            reason = NOT_HERE.get(key, 'is not known here')
            raise PipelineError(f'{item.location}: {what}: {key} {reason}')
    return item


def stages(pipeline):
    """The stages in order: dicts of name, title, needs (names), condition, lock, location and job.

    The job has name, title, minutes, environment and hooks: [(hook, steps)]. An ordinary job has
    the one hook '' and no environment, a deployment those of its strategy and 'failure'; each is a
    job of its own, on a fresh machine. Raises PipelineError for a construct that is not known here.
    """
    check_keys(pipeline, PIPELINE, 'the pipeline')
    if ('stages' in pipeline) == ('jobs' in pipeline):
        raise PipelineError(f'{pipeline.location}: a pipeline has either stages or jobs')
    alone = Map(pipeline.location, {'stage': '', 'jobs': pipeline.get('jobs')})
    result, before = [], []
    for stage in pipeline.list_of('stages') if 'stages' in pipeline else [alone]:
        name = str(check_keys(stage, STAGE, 'a stage', pipeline.location)['stage'])
        needs = stage.get('dependsOn', before)
        if len(stage.list_of('jobs')) > 1:
            raise PipelineError(f'{stage.location}: only stages of one job are known here')
        job = read_job(stage['jobs'][0], stage.location)
        result.append({
            'name': name, 'title': stage.get('displayName', name) or job['title'], 'job': job,
            'needs': needs if isinstance(needs, list) else [str(needs)],
            'condition': stage.get('condition'), 'lock': stage.get('lockBehavior'),
            'location': stage.location})
        before = [name]
    return result


def read_job(item, location):
    """A job of stages()."""
    kind = 'deployment' if isinstance(item, Map) and 'deployment' in item else 'job'
    check_keys(item, JOBS[kind], f'a {kind}', location)
    hooks = {'': item.list_of('steps')} if kind == 'job' else read_hooks(item)
    minutes = item.get('timeoutInMinutes', 60)
    if not isinstance(minutes, int):
        raise PipelineError(f'{item.location}: timeoutInMinutes: {minutes} is no number')
    for steps in hooks.values():
        for step in steps:
            check_step(step, item.location)
    return {'name': item[kind], 'title': item.get('displayName', item[kind]), 'minutes': minutes,
            'environment': item.get('environment'), 'hooks': list(hooks.items())}


def read_hooks(item):
    """{hook: its steps} of a deployment, in the order in which they run."""
    if not item['environment']:
        raise PipelineError(f'{item.location}: without environment nobody is asked')
    strategy = check_keys(item['strategy'], {'runOnce'}, 'strategy', item.location)
    hooks = check_keys(strategy['runOnce'], HOOKS + ('on',), 'runOnce', item.location)
    found = {hook: hooks[hook] for hook in HOOKS if hook in hooks}
    if 'on' in hooks:
        found['failure'] = check_keys(hooks['on'], {'failure'}, 'on', item.location)['failure']
    return {hook: check_keys(content, {'steps'}, hook, item.location).list_of('steps')
            for hook, content in found.items()}


def step_kind(step):
    return next((kind for kind in STEPS if kind in step), None)


def check_step(item, location):
    """Raise PipelineError for what is not known here of a step."""
    kind = step_kind(item) if isinstance(item, Map) else None
    if not kind:
        raise PipelineError(f"{location}: a step is one of {', '.join(STEPS)}, not {item!r}")
    check_keys(item, STEPS[kind] | {kind}, kind)
    if str(item[kind]) not in STEP_VALUES.get(kind, [str(item[kind])]):
        raise PipelineError(f'{item.location}: {kind}: {item[kind]} is not known here')
    if kind == 'task':
        check_keys(item['inputs'], TASKS[item[kind]], item[kind], item.location)
