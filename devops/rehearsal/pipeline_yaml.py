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

ROOT = {'trigger', 'pr', 'parameters', 'variables', 'pool', 'stages', 'jobs'}
STAGE = {'stage', 'displayName', 'dependsOn', 'condition', 'jobs', 'lockBehavior'}
JOB = {'displayName', 'timeoutInMinutes'}
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

EXPRESSION = re.compile(r'\$\{\{\s*(.*?)\s*\}\}', re.S)
MACRO = re.compile(r'\$\(([A-Za-z_][\w.]*)\)')
TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(-?\d+)|([A-Za-z_]\w*)|([\[\](),.]))")
STRING, NUMBER, WORD = 1, 2, 3


class PipelineError(ValueError):
    """A file that the service would refuse, or a construct that is not known here."""


class Map(dict):
    """A mapping of a YAML file that knows its location, 'ci.yml:12'."""

    location = '?'


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
        result = Map()
        result.location = self.location_of(node)
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
    tokens, position = [], 0

    def refuse(why):
        raise PipelineError(f'expression "{text}": {why}')

    while text[position:].strip():
        match = TOKEN.match(text, position)
        if not match:
            refuse(f'cannot be read from "{text[position:]}"')
        tokens.append((match.lastindex, match.group(match.lastindex)))
        position = match.end()

    def take(expected=None):
        if not tokens:
            refuse('ends too early' + (f', {expected} is missing' if expected else ''))
        kind, word = tokens.pop(0)
        if expected and word != expected:
            refuse(f'{word} where {expected} is expected')
        return kind, word

    def term():
        kind, word = take()
        if kind == STRING:
            return 'literal', word[1:-1].replace("''", "'")
        if kind == NUMBER or word in ('true', 'false'):
            return 'literal', word
        if kind != WORD:
            refuse(f'{word} where a value is expected')
        if tokens and tokens[0][1] == '(':
            return call(word)
        words = [word]
        while tokens and tokens[0][1] in ('.', '['):
            if take()[1] == '.':
                words.append(take()[1])
            else:
                kind, name = take()
                if kind != STRING:
                    refuse(f"{name} where a name in '' is expected")
                words.append(name[1:-1])
                take(']')
        if len(words) == 1:
            refuse(f'{word} is neither a function call nor a value')
        return 'path', words

    def call(name):
        if name not in FUNCTIONS:
            refuse(f"{name}() is no function that is known here ({', '.join(sorted(FUNCTIONS))})")
        arguments = []
        take('(')
        while not tokens or tokens[0][1] != ')':
            if arguments:
                take(',')
            arguments.append(term())
        take(')')
        if len(arguments) != FUNCTIONS[name]:
            refuse(f'{name}() takes {FUNCTIONS[name]} arguments, not {len(arguments)}')
        return 'call', name, arguments

    tree = term()
    if tokens:
        refuse(f'"{tokens[0][1]}" is left over')
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


def fill_in_macros(text, variables):
    """`text` with each $(name) replaced that `variables`, whose names are in lower case, has."""
    def replace(match):
        return str(variables.get(match.group(1).lower(), match.group(0)))

    return MACRO.sub(replace, str(text))


def bind_parameters(declared, given, location):
    """The values of a file's parameters: those `given`, checked, and the defaults."""
    if not all(isinstance(parameter, Map) and 'name' in parameter for parameter in declared):
        raise PipelineError(f'{location}: parameters are a list of name, type and default')
    values, known = {}, [parameter['name'] for parameter in declared]
    for name in given:
        if name not in known:
            raise PipelineError(f'{location}: parameter {name} is not declared (there is '
                                f"{', '.join(known) or 'none'})")
    for parameter in declared:
        name, kind = parameter['name'], parameter.get('type', 'string')
        value = given.get(name, parameter.get('default'))
        if value is None:
            raise PipelineError(f'{location}: parameter {name} has no default and is not given')
        if kind not in ('string', 'number'):
            raise PipelineError(f'{location}: parameter {name}: the type {kind} is not known here')
        if kind == 'number' and not re.match(r'^-?\d+$', str(value)):
            raise PipelineError(f'{location}: parameter {name} is {value}, which is no number')
        for one in (value, parameter.get('default', value)):
            if one not in parameter.get('values', [one]):
                raise PipelineError(f'{location}: parameter {name} is {one}, not one of '
                                    f"{', '.join(map(str, parameter['values']))}")
        values[name] = value
    return values


class Expansion:
    """One file and what its ${{ }} may refer to."""

    def __init__(self, path, parameters, variables):
        self.path = path
        self.known = {'parameters': parameters, 'variables': variables}

    def look_up(self, words):
        root, name = words[0], '.'.join(words[1:])
        if root not in self.known:
            raise PipelineError(f'{root} is not known in ${{{{ }}}}')
        if name not in self.known[root]:
            raise PipelineError(f'{root} has no {name} when templates are read')
        return self.known[root][name]

    def value(self, expression, location):
        try:
            return evaluate(parse_expression(expression), self.look_up)
        except PipelineError as error:
            raise PipelineError(f'{location}: {error}') from None

    def text(self, text, location):
        whole = EXPRESSION.fullmatch(text)
        if whole:
            return self.value(whole.group(1), location)
        return EXPRESSION.sub(lambda match: str(self.value(match.group(1), location)), text)

    def branch(self, key, before, location):
        """What a key ${{ if ... }} or ${{ else }} decides: None for any other key.

        before: the decision of the branch before it, None when there is none.
        """
        match = EXPRESSION.fullmatch(str(key))
        if not match:
            return None
        word, _, condition = match.group(1).partition(' ')
        if word == 'if':
            return is_true(self.value(condition, location))
        if word != 'else' or condition:
            raise PipelineError(f'{location}: ${{{{ {word} }}}} as a key is not known here')
        if before is None:
            raise PipelineError(f'{location}: ${{{{ else }}}} without ${{{{ if }}}}')
        return not before

    def expand(self, value, location):
        if isinstance(value, Map):
            return self.expand_map(value)
        if isinstance(value, list):
            return self.expand_list(value, location)
        return self.text(value, location) if isinstance(value, str) else value

    def expand_map(self, source):
        result, decision = Map(), None
        result.location = source.location
        for key, value in source.items():
            decision = self.branch(key, decision, source.location)
            if decision is False:
                continue
            added = self.expand(value, source.location)
            for name, item in (added.items() if decision else [(key, added)]):
                if name in result:
                    raise PipelineError(f'{source.location}: duplicate key {name}')
                result[name] = item
        return result

    def expand_list(self, source, location):
        result, decision = [], None
        for item in source:
            location = item.location if isinstance(item, Map) else location
            key = next(iter(item)) if isinstance(item, Map) and len(item) == 1 else ''
            decision = self.branch(key, decision, location)
            if decision:
                result += self.expand(item[key], location)
            elif decision is None and isinstance(item, Map) and 'template' in item:
                result += self.template(item)
            elif decision is None:
                result.append(self.expand(item, location))
        return result

    def template(self, item):
        """The list that a template stands for."""
        for key in item:
            if key not in ('template', 'parameters'):
                raise PipelineError(f'{item.location}: {key} beside template')
        path = self.path.parent / str(item['template'])
        if not path.is_file():
            raise PipelineError(f"{item.location}: the template {item['template']} does not exist")
        document = load_file(path)
        lists = set(document) - {'parameters'}
        if len(lists) != 1 or not lists <= {'variables', 'jobs', 'steps'}:
            raise PipelineError(f'{path.name}: a template holds one list of variables, jobs or '
                                f"steps, not {', '.join(sorted(map(str, lists)))}")
        given = self.expand(item.get('parameters', Map()), item.location)
        values = bind_parameters(document.get('parameters', []), given, item.location)
        inner = Expansion(path, values, self.known['variables'])
        return inner.expand(document[lists.pop()], path.name)


def read_pipeline(path, parameters=None):
    """The pipeline of a file as the service expands it: templates and ${{ }} put in; a Map.

    parameters: {name: value} that a person gives at a manual run. Raises PipelineError.
    """
    path = Path(path)
    document = load_file(path)
    values = bind_parameters(document.get('parameters', []), parameters or {}, path.name)
    expansion = Expansion(path, values, {})
    expanded = Map()
    expanded.location = path.name
    if 'variables' in document:
        expanded['variables'] = expansion.expand(document['variables'], path.name)
        if not all(isinstance(item, Map) for item in expanded['variables']):
            raise PipelineError(f'{path.name}: variables are a list of name and value')
        expansion.known['variables'] = variables(expanded)
    for key, value in document.items():
        if key not in ('variables', 'parameters'):
            expanded[key] = expansion.expand(value, path.name)
    return expanded


def variables(pipeline):
    """{name: value} of the variables in the files; the last of two wins, as in the service."""
    return {item['name']: item['value'] for item in pipeline.get('variables', [])
            if 'name' in item}


def groups(pipeline):
    """The variable groups that the pipeline names."""
    return [item['group'] for item in pipeline.get('variables', []) if 'group' in item]


def report_unknown_keys(item, allowed, what, problems):
    problems += [f'{item.location}: {what}: {key} is not known here'
                 for key in item if key not in allowed]


def stages(pipeline):
    """The stages in order: dicts of name, title, needs (names), condition, location and jobs.

    A job has name, title, kind, environment, minutes, location and hooks: [(hook, steps)]. An
    ordinary job has the one hook '', a deployment those of its strategy and 'failure'; each is a
    job of its own, on a fresh machine. Raises PipelineError with every construct not known here.
    """
    problems, result, before = [], [], []
    report_unknown_keys(pipeline, ROOT, 'the pipeline', problems)
    if ('stages' in pipeline) == ('jobs' in pipeline):
        problems.append(f'{pipeline.location}: a pipeline has either stages or jobs')
    listed = pipeline.get('stages')
    if listed is None:
        listed = [Map(stage='', jobs=pipeline.get('jobs'))]
        listed[0].location = pipeline.location
    for stage in listed:
        if not isinstance(stage, Map) or 'stage' not in stage:
            problems.append(f'{pipeline.location}: no stage: {stage}')
            continue
        name = stage['stage']
        report_unknown_keys(stage, STAGE, f'stage {name}', problems)
        needs = stage.get('dependsOn', before)
        result.append({
            'name': name, 'title': stage.get('displayName', name), 'location': stage.location,
            'needs': [needs] if isinstance(needs, str) else needs,
            'condition': stage.get('condition'),
            'jobs': [read_job(item, stage.location, problems) for item in stage.get('jobs') or []]})
        before = [name]
    if problems:
        raise PipelineError('\n'.join(problems))
    return result


def read_job(item, location, problems):
    """A job of stages(); constructs that are not known are added to `problems`."""
    if not isinstance(item, Map) or 'job' not in item and 'deployment' not in item:
        problems.append(f'{location}: no job: {item}')
        return None
    kind = 'deployment' if 'deployment' in item else 'job'
    what = f'{kind} {item[kind]}'
    own = {'deployment', 'environment', 'strategy'} if kind == 'deployment' else {'job', 'steps'}
    report_unknown_keys(item, JOB | own, what, problems)
    hooks = [('', item)]
    if kind == 'deployment':
        strategy = Map(item.get('strategy') or {})
        hooks = dict(strategy.get('runOnce') or {})
        handlers = Map(hooks.pop('on', {}))
        strategy.location = handlers.location = item.location
        report_unknown_keys(strategy, {'runOnce'}, what, problems)
        report_unknown_keys(handlers, {'failure'}, what + ': on', problems)
        problems += [f'{item.location}: {what}: the hook {hook} is not known here'
                     for hook in hooks if hook not in HOOKS]
        hooks.update(handlers)
        hooks = [(hook, hooks[hook]) for hook in HOOKS + ('failure',) if hook in hooks]
    hooks = [(hook, content.get('steps') or []) for hook, content in hooks]
    for _, steps in hooks:
        for one in steps:
            check_step(one, item.location, problems)
    return {'name': item[kind], 'title': item.get('displayName', item[kind]), 'kind': kind,
            'environment': item.get('environment'),
            'minutes': item.get('timeoutInMinutes', 60), 'location': item.location, 'hooks': hooks}


def check_step(item, location, problems):
    """Add to `problems` what is not known here of a step."""
    if not isinstance(item, Map):
        problems.append(f'{location}: a step is a mapping, not {item!r}')
        return
    kinds = [kind for kind in STEPS if kind in item]
    if len(kinds) != 1:
        problems.append(f"{item.location}: a step is one of {', '.join(sorted(STEPS))}, not "
                        f"{' and '.join(kinds or map(str, item))}")
        return
    kind, value = kinds[0], item[kinds[0]]
    report_unknown_keys(item, STEPS[kind] | {kind}, kind, problems)
    if kind == 'task':
        if value in TASKS:
            inputs = Map(item.get('inputs') or {})
            inputs.location = item.location
            report_unknown_keys(inputs, TASKS[value], value, problems)
        else:
            problems.append(f'{item.location}: the task {value} is not known here')
    if value != {'checkout': 'self', 'download': 'none'}.get(kind, value):
        problems.append(f'{item.location}: {kind}: {value} is not known here')
