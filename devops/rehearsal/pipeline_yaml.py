"""Reads the Azure Pipelines files of devops/ as the service does before a run.

Templates, parameters and ${{ }} are put in. Only the constructs that these files use are known;
anything else is refused by name. Source of the rules: Microsoft's YAML schema reference and the
page "Expressions" for Azure Pipelines.
"""
import functools
import re
from pathlib import Path

import yaml

# Functions of expressions and how many arguments each takes.
FUNCTIONS = {'and': 2, 'eq': 2, 'ne': 2, 'succeeded': 0, 'succeededOrFailed': 0, 'canceled': 0}
STATUS_FUNCTIONS = ('succeeded', 'succeededOrFailed', 'canceled')

# The keys that are known, by what has them.
PIPELINE = {'trigger', 'pr', 'parameters', 'variables', 'pool', 'stages', 'jobs'}
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
# A text, a number, a name or path such as a.b['c'], or a sign.
TOKEN = re.compile(r"('(?:[^']|'')*'|-?\d+|[A-Za-z_]\w*(?:\.\w+|\['[^']*'\])*|[(),])")


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
    except OSError as error:
        raise PipelineError(f'{path} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError as error:
        raise PipelineError(f'{path} is not UTF-8: {error}') from None


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


def parse_expression(text):
    """An expression as nested tuples.

    They are ('literal', text), ('call', function, arguments) and ('path', words), as in
    dependencies.train.outputs['a.b.c']. Raises PipelineError, which says what is wrong with it.
    """
    between, tokens = TOKEN.split(text)[::2], TOKEN.findall(text)

    def refuse(why):
        raise PipelineError(f'expression "{text}": {why}')

    def take(expected):
        word = tokens.pop(0) if tokens else 'the end'
        if word != expected:
            refuse(f'{word} where {expected} is expected')

    def term():
        word = tokens.pop(0) if tokens else refuse('it ends too early')
        if word[0] == "'":
            return 'literal', word[1:-1].replace("''", "'")
        if word in ('true', 'false') or re.match(r'-?\d', word):
            return 'literal', word
        if tokens[:1] != ['(']:
            words = [name or quoted for name, quoted in re.findall(r"(\w+)|'([^']*)'", word)]
            if len(words) < 2:
                refuse(f'{word} is neither a function call nor a value')
            return 'path', words
        if word not in FUNCTIONS:
            refuse(f"{word}() is no function that is known here ({', '.join(sorted(FUNCTIONS))})")
        take('(')
        arguments = []
        for number in range(FUNCTIONS[word]):
            if number:
                take(',')
            arguments.append(term())
        take(')')
        return 'call', word, arguments

    if ''.join(between).strip():
        refuse(f"{''.join(between).strip()} is not known here")
    tree = term()
    if tokens:
        refuse(f'{tokens[0]} is left over')
    return tree


def find_parts(tree, kind):
    """All ('call', ...) or ('path', ...) of a parsed expression."""
    found = [tree] if tree[0] == kind else []
    for argument in tree[2] if tree[0] == 'call' else ():
        found += find_parts(argument, kind)
    return found


def is_true(value):
    return value not in (False, '', 'false', None)


def evaluate(tree, look_up, status=None):
    """The value of a parsed expression.

    look_up: function from the words of a path to its value; status: function from the name of a
    status function to its value, None where there is no status yet.
    """
    if tree[0] == 'literal':
        return tree[1]
    if tree[0] == 'path':
        return look_up(tree[1])
    name = tree[1]
    if name in STATUS_FUNCTIONS:
        if status is None:
            raise PipelineError(f'{name}() has no value in ${{{{ }}}}')
        return status(name)
    values = [evaluate(argument, look_up, status) for argument in tree[2]]
    if name == 'and':
        return all(map(is_true, values))
    # The service compares without regard to case.
    same = str(values[0]).lower() == str(values[1]).lower()
    return same if name == 'eq' else not same


def condition_holds(condition, look_up, results):
    """Whether a condition, None for the default one, is met after these results."""
    status = {'succeeded': results <= {'succeeded'}, 'canceled': 'canceled' in results,
              'succeededOrFailed': results <= {'succeeded', 'failed'}}
    return is_true(evaluate(parse_expression(condition or 'succeeded()'), look_up, status.get))


def fill_in_macros(text, variables):
    """`text` with each $(name) replaced that `variables`, whose names are in lower case, has."""
    def replace(match):
        return str(variables.get(match.group(1).lower(), match.group(0)))

    return MACRO.sub(replace, str(text))


def bind_parameters(document, given, location):
    """The values of a file's parameters: those `given`, checked, and the defaults."""
    values = {}
    for parameter in document.list_of('parameters') if 'parameters' in document else ():
        check_keys(parameter, PARAMETER, 'a parameter', location)
        name, kind = str(parameter['name']), parameter.get('type', 'string')
        value = values[name] = given.get(name, parameter.get('default'))
        problem = None
        if value is None:
            problem = 'has no default and is not given'
        elif kind not in ('string', 'number'):
            problem = f'is of type {kind}, which is not known here'
        elif 'values' in parameter and value not in parameter.list_of('values'):
            problem = f"is {value}, not one of {', '.join(map(str, parameter['values']))}"
        if problem:
            raise PipelineError(f'{location}: parameter {name} {problem}')
    unknown = sorted(set(given) - set(values))
    if unknown:
        raise PipelineError(f'{location}: parameter {unknown[0]} is not declared (there is '
                            f"{', '.join(values) or 'none'})")
    return values


class Expansion:
    """One file and what its ${{ }} may refer to. location: of what is being expanded."""

    def __init__(self, path, parameters, variables):
        self.path, self.location = path, path.name
        self.known = {'parameters': parameters, 'variables': variables}

    def look_up(self, words):
        root, name = words[0], '.'.join(words[1:])
        if name not in self.known.get(root, ()):
            raise PipelineError(f'{root} has no {name} when templates are read')
        return self.known[root][name]

    def value(self, expression):
        try:
            return evaluate(parse_expression(expression), self.look_up)
        except PipelineError as error:
            raise PipelineError(f'{self.location}: {error}') from None

    def text(self, text):
        whole = EXPRESSION.fullmatch(text)
        if whole:
            return self.value(whole.group(1))
        return EXPRESSION.sub(lambda match: str(self.value(match.group(1))), text)

    def branch(self, key, before):
        """What a key ${{ if ... }} or ${{ else }} decides: None for any other key.

        before: the decision of the branch before it, None when there is none.
        """
        match = EXPRESSION.fullmatch(str(key))
        if not match:
            return None
        word, _, condition = match.group(1).partition(' ')
        if word == 'if':
            return is_true(self.value(condition))
        if word != 'else' or condition or before is None:
            raise PipelineError(f'{self.location}: {key}: only if and, after it, else are known '
                                'here as keys')
        return not before

    def expand(self, value):
        if isinstance(value, Map):
            return self.expand_map(value)
        if isinstance(value, list):
            return self.expand_list(value)
        return self.text(value) if isinstance(value, str) else value

    def expand_map(self, source):
        result, decision = Map(source.location), None
        for key, value in source.items():
            self.location = source.location
            decision = self.branch(key, decision)
            if decision is False:
                continue
            added = self.expand(value)
            if decision and not isinstance(added, Map):
                raise PipelineError(f'{source.location}: {key} holds no mapping')
            for name, item in (added.items() if decision else [(key, added)]):
                if name in result:
                    raise PipelineError(f'{source.location}: duplicate key {name}')
                result[name] = item
        return result

    def expand_list(self, source):
        result, decision = [], None
        for item in source:
            self.location = getattr(item, 'location', self.location)
            key = next(iter(item)) if isinstance(item, Map) and len(item) == 1 else ''
            decision = self.branch(key, decision)
            if decision:
                result += self.expand(item.list_of(key))
            elif decision is None and isinstance(item, Map) and 'template' in item:
                result += self.template(check_keys(item, {'template', 'parameters'}, 'a template'))
            elif decision is None:
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
            raise PipelineError(f'{path.name}: a template holds one list, of variables, jobs or '
                                f'steps, and parameters; not {lists}')
        given = self.expand(item.get('parameters', Map(item.location)))
        values = bind_parameters(document, given, item.location)
        return Expansion(path, values, self.known['variables']).expand(document.list_of(lists[0]))


def read_pipeline(path, parameters=None):
    """The pipeline of a file as the service expands it: templates and ${{ }} put in; a Map.

    parameters: {name: value} that a person gives at a manual run. Raises PipelineError.
    """
    path = Path(path)
    document = load_file(path)
    values = bind_parameters(document, parameters or {}, path.name)
    expansion = Expansion(path, values, {})
    expanded = Map(path.name)
    if 'variables' in document:
        expanded['variables'] = expansion.expand(document['variables'])
        for item in expanded.list_of('variables'):
            check_keys(item, VARIABLE, 'a variable', path.name)
        expansion.known['variables'] = variables(expanded)
    for key, value in document.items():
        if key not in ('variables', 'parameters'):
            expanded[key] = expansion.expand(value)
    return expanded


def variables(pipeline):
    """{name: value} of the variables in the files; the last of two wins, as in the service."""
    return {str(item['name']): item['value'] for item in pipeline.get('variables', [])
            if 'group' not in item}


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
    """The stages in order: dicts of name, title, needs (names), condition, location and job.

    The job has name, title, minutes and hooks: [(hook, steps)]. An ordinary job has the one hook
    '', a deployment those of its strategy and 'failure'; each is a job of its own, on a fresh
    machine. Raises PipelineError for a construct that is not known here.
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
            'condition': stage.get('condition'), 'location': stage.location})
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
            'hooks': list(hooks.items())}


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
    return next(kind for kind in STEPS if kind in step)


def check_step(item, location):
    """Raise PipelineError for what is not known here of a step."""
    check_keys(item, set().union(STEPS, *STEPS.values()), 'a step', location)
    if not set(STEPS) & set(item):
        raise PipelineError(f"{item.location}: a step is one of {', '.join(sorted(STEPS))}")
    kind = step_kind(item)
    check_keys(item, STEPS[kind] | {kind}, kind)
    if str(item[kind]) not in STEP_VALUES.get(kind, [str(item[kind])]):
        raise PipelineError(f'{item.location}: {kind}: {item[kind]} is not known here')
    if kind == 'task':
        check_keys(item['inputs'], TASKS[item[kind]], item[kind], item.location)
