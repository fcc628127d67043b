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
STAGE = {'stage', 'displayName', 'dependsOn', 'condition', 'jobs'}
JOB = {'displayName', 'container', 'timeoutInMinutes'}
HOOKS = ('deploy', 'routeTraffic')
STEP = {'displayName', 'name', 'condition', 'env', 'target'}
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
    """A mapping of a YAML file that knows its place, 'ci.yml:12'."""

    place = '?'


class Loader(yaml.SafeLoader):
    """YAML as the service reads it: `on` is a word, keys are unique, there are no anchors."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, 'anchor', None):
            raise PipelineError('%s: Azure Pipelines knows no anchors (%s)' % (
                self.at(event), event.anchor))
        return super().compose_node(parent, index)

    def at(self, item):
        return '%s:%d' % (self.name, item.start_mark.line + 1)

    def mapping(self, node):
        result = Map()
        result.place = self.at(node)
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in result:
                raise PipelineError('%s: duplicate key %s' % (self.at(key_node), key))
            result[key] = self.construct_object(value_node, deep=True)
        return result


for tag, pattern, first in (('bool', r'^(?:true|false|True|False)$', 'tTfF'),
                            ('int', r'^-?[0-9]+$', '-0123456789'),
                            ('null', r'^(?:~|null|)$', ['~', 'n', ''])):
    Loader.add_implicit_resolver('tag:yaml.org,2002:' + tag, re.compile(pattern), list(first))
Loader.add_constructor('tag:yaml.org,2002:map', Loader.mapping)


def load(path):
    """One YAML file as Map, list and scalars, not to be changed. Raises PipelineError."""
    try:
        return parse_yaml(Path(path).name, Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise PipelineError('%s cannot be read: %s' % (path, error.strerror)) from None
    except UnicodeDecodeError as error:
        raise PipelineError('%s is not UTF-8: %s' % (path, error)) from None


@functools.lru_cache(maxsize=None)
def parse_yaml(name, text):
    loader = Loader(text)
    loader.name = name
    try:
        document = loader.get_single_data()
    except yaml.YAMLError as error:
        raise PipelineError('%s is not YAML: %s' % (name, ' '.join(str(error).split()))) from None
    if not isinstance(document, Map):
        raise PipelineError('%s holds no mapping' % name)
    return document


def parse(text):
    """An expression as nested tuples.

    They are ('literal', text), ('call', function, arguments) and ('path', words), as in
    dependencies.train.outputs['a.b.c']. Raises PipelineError, which says what is wrong with it.
    """
    tokens, position = [], 0

    def refuse(why):
        raise PipelineError('expression "%s": %s' % (text, why))

    while text[position:].strip():
        match = TOKEN.match(text, position)
        if not match:
            refuse('cannot be read from "%s"' % text[position:])
        tokens.append((match.lastindex, match.group(match.lastindex)))
        position = match.end()

    def take(expected=None):
        if not tokens:
            refuse('ends too early' + (', %s is missing' % expected if expected else ''))
        kind, word = tokens.pop(0)
        if expected and word != expected:
            refuse('%s where %s is expected' % (word, expected))
        return kind, word

    def term():
        kind, word = take()
        if kind == STRING:
            return 'literal', word[1:-1].replace("''", "'")
        if kind == NUMBER or word in ('true', 'false'):
            return 'literal', word
        if kind != WORD:
            refuse('%s where a value is expected' % word)
        if tokens and tokens[0][1] == '(':
            return call(word)
        words = [word]
        while tokens and tokens[0][1] in ('.', '['):
            if take()[1] == '.':
                words.append(take()[1])
            else:
                kind, name = take()
                if kind != STRING:
                    refuse("%s where a name in '' is expected" % name)
                words.append(name[1:-1])
                take(']')
        if len(words) == 1:
            refuse('%s is neither a function call nor a value' % word)
        return 'path', words

    def call(name):
        if name not in FUNCTIONS:
            refuse('%s() is no function that is known here (%s)' % (
                name, ', '.join(sorted(FUNCTIONS))))
        arguments = []
        take('(')
        while not tokens or tokens[0][1] != ')':
            if arguments:
                take(',')
            arguments.append(term())
        take(')')
        if len(arguments) != FUNCTIONS[name]:
            refuse('%s() takes %d arguments, not %d' % (name, FUNCTIONS[name], len(arguments)))
        return 'call', name, arguments

    tree = term()
    if tokens:
        refuse('"%s" is left over' % tokens[0][1])
    return tree


def parts(tree, kind):
    """All ('call', ...) or ('path', ...) of a parsed expression."""
    found = [tree] if tree[0] == kind else []
    for argument in tree[2] if tree[0] == 'call' else ():
        found += parts(argument, kind)
    return found


def true(value):
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
            raise PipelineError('%s() has no value in ${{ }}' % name)
        return status(name)
    values = [evaluate(argument, look_up, status) for argument in tree[2]]
    if name == 'and':
        return all(map(true, values))
    # The service compares without regard to case.
    same = str(values[0]).lower() == str(values[1]).lower()
    return same if name == 'eq' else not same


def macros(text, variables):
    """`text` with each $(name) replaced that `variables`, whose names are in lower case, has."""
    def replace(match):
        return str(variables.get(match.group(1).lower(), match.group(0)))

    return MACRO.sub(replace, str(text))


def bind(declared, given, place):
    """The values of a file's parameters: those `given`, checked, and the defaults."""
    if not all(isinstance(parameter, Map) and 'name' in parameter for parameter in declared):
        raise PipelineError('%s: parameters are a list of name, type and default' % place)
    values, known = {}, [parameter['name'] for parameter in declared]
    for name in given:
        if name not in known:
            raise PipelineError('%s: parameter %s is not declared (there is %s)' % (
                place, name, ', '.join(known) or 'none'))
    for parameter in declared:
        name, kind = parameter['name'], parameter.get('type', 'string')
        value = given.get(name, parameter.get('default'))
        if value is None:
            raise PipelineError('%s: parameter %s has no default and is not given' % (place, name))
        if kind not in ('string', 'number'):
            raise PipelineError('%s: parameter %s: the type %s is not known here' % (
                place, name, kind))
        if kind == 'number' and not re.match(r'^-?\d+$', str(value)):
            raise PipelineError('%s: parameter %s is %s, which is no number' % (place, name, value))
        for one in (value, parameter.get('default', value)):
            if one not in parameter.get('values', [one]):
                raise PipelineError('%s: parameter %s is %s, not one of %s' % (
                    place, name, one, ', '.join(map(str, parameter['values']))))
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
            raise PipelineError('%s is not known in ${{ }}' % root)
        if name not in self.known[root]:
            raise PipelineError('%s has no %s when templates are read' % (root, name))
        return self.known[root][name]

    def value(self, expression, place):
        try:
            return evaluate(parse(expression), self.look_up)
        except PipelineError as error:
            raise PipelineError('%s: %s' % (place, error)) from None

    def text(self, text, place):
        whole = EXPRESSION.fullmatch(text)
        if whole:
            return self.value(whole.group(1), place)
        return EXPRESSION.sub(lambda match: str(self.value(match.group(1), place)), text)

    def branch(self, key, before, place):
        """What a key ${{ if ... }} or ${{ else }} decides: None for any other key.

        before: the decision of the branch before it, None when there is none.
        """
        match = EXPRESSION.fullmatch(str(key))
        if not match:
            return None
        word, _, condition = match.group(1).partition(' ')
        if word == 'if':
            return true(self.value(condition, place))
        if word != 'else' or condition:
            raise PipelineError('%s: ${{ %s }} as a key is not known here' % (place, word))
        if before is None:
            raise PipelineError('%s: ${{ else }} without ${{ if }}' % place)
        return not before

    def expand(self, value, place):
        if isinstance(value, Map):
            return self.expand_map(value)
        if isinstance(value, list):
            return self.expand_list(value, place)
        return self.text(value, place) if isinstance(value, str) else value

    def expand_map(self, source):
        result, decision = Map(), None
        result.place = source.place
        for key, value in source.items():
            decision = self.branch(key, decision, source.place)
            if decision is False:
                continue
            added = self.expand(value, source.place)
            for name, item in (added.items() if decision else [(key, added)]):
                if name in result:
                    raise PipelineError('%s: duplicate key %s' % (source.place, name))
                result[name] = item
        return result

    def expand_list(self, source, place):
        result, decision = [], None
        for item in source:
            place = item.place if isinstance(item, Map) else place
            key = next(iter(item)) if isinstance(item, Map) and len(item) == 1 else ''
            decision = self.branch(key, decision, place)
            if decision:
                result += self.expand(item[key], place)
            elif decision is None and isinstance(item, Map) and 'template' in item:
                result += self.template(item)
            elif decision is None:
                result.append(self.expand(item, place))
        return result

    def template(self, item):
        """The list that a template stands for."""
        for key in item:
            if key not in ('template', 'parameters'):
                raise PipelineError('%s: %s beside template' % (item.place, key))
        path = self.path.parent / str(item['template'])
        if not path.is_file():
            raise PipelineError('%s: the template %s does not exist' % (
                item.place, item['template']))
        document = load(path)
        lists = set(document) - {'parameters'}
        if len(lists) != 1 or not lists <= {'variables', 'jobs', 'steps'}:
            raise PipelineError('%s: a template holds one list of variables, jobs or steps, not %s'
                                % (path.name, ', '.join(sorted(map(str, lists)))))
        given = self.expand(item.get('parameters', Map()), item.place)
        values = bind(document.get('parameters', []), given, item.place)
        inner = Expansion(path, values, self.known['variables'])
        return inner.expand(document[lists.pop()], path.name)


def read(path, parameters=None):
    """The pipeline of a file as the service expands it: templates and ${{ }} put in; a Map.

    parameters: {name: value} that a person gives at a manual run. Raises PipelineError.
    """
    path = Path(path)
    document = load(path)
    values = bind(document.get('parameters', []), parameters or {}, path.name)
    expansion = Expansion(path, values, {})
    expanded = Map()
    expanded.place = path.name
    if 'variables' in document:
        expanded['variables'] = expansion.expand(document['variables'], path.name)
        if not all(isinstance(item, Map) for item in expanded['variables']):
            raise PipelineError('%s: variables are a list of name and value' % path.name)
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


def only(item, allowed, what, problems):
    problems += ['%s: %s: %s is not known here' % (item.place, what, key)
                 for key in item if key not in allowed]


def stages(pipeline):
    """The stages in order: dicts of name, title, needs (names), condition, place and jobs.

    A job has name, title, kind, container, environment, minutes, place and hooks, [(hook, steps)].
    An ordinary job has the one hook '', a deployment those of its strategy and 'failure'; each is a
    job of its own, on a fresh machine. Raises PipelineError with every construct not known here.
    """
    problems, result, before = [], [], []
    only(pipeline, ROOT, 'the pipeline', problems)
    if ('stages' in pipeline) == ('jobs' in pipeline):
        problems.append('%s: a pipeline has either stages or jobs' % pipeline.place)
    listed = pipeline.get('stages')
    if listed is None:
        listed = [Map(stage='', jobs=pipeline.get('jobs'))]
        listed[0].place = pipeline.place
    for stage in listed:
        if not isinstance(stage, Map) or 'stage' not in stage:
            problems.append('%s: no stage: %s' % (pipeline.place, stage))
            continue
        name = stage['stage']
        only(stage, STAGE, 'stage %s' % name, problems)
        needs = stage.get('dependsOn', before)
        result.append({
            'name': name, 'title': stage.get('displayName', name), 'place': stage.place,
            'needs': [needs] if isinstance(needs, str) else needs,
            'condition': stage.get('condition'),
            'jobs': [job(item, stage.place, problems) for item in stage.get('jobs') or []]})
        before = [name]
    if problems:
        raise PipelineError('\n'.join(problems))
    return result


def job(item, place, problems):
    """A job of stages(); constructs that are not known are added to `problems`."""
    if not isinstance(item, Map) or 'job' not in item and 'deployment' not in item:
        problems.append('%s: no job: %s' % (place, item))
        return None
    kind = 'deployment' if 'deployment' in item else 'job'
    what = '%s %s' % (kind, item[kind])
    own = {'deployment', 'environment', 'strategy'} if kind == 'deployment' else {'job', 'steps'}
    only(item, JOB | own, what, problems)
    hooks = [('', item)]
    if kind == 'deployment':
        strategy = Map(item.get('strategy') or {})
        hooks = dict(strategy.get('runOnce') or {})
        handlers = Map(hooks.pop('on', {}))
        strategy.place = handlers.place = item.place
        only(strategy, {'runOnce'}, what, problems)
        only(handlers, {'failure'}, what + ': on', problems)
        problems += ['%s: %s: the hook %s is not known here' % (item.place, what, hook)
                     for hook in hooks if hook not in HOOKS]
        hooks.update(handlers)
        hooks = [(hook, hooks[hook]) for hook in HOOKS + ('failure',) if hook in hooks]
    hooks = [(hook, content.get('steps') or []) for hook, content in hooks]
    for _, steps in hooks:
        for one in steps:
            step(one, item.place, problems)
    return {'name': item[kind], 'title': item.get('displayName', item[kind]), 'kind': kind,
            'container': item.get('container'), 'environment': item.get('environment'),
            'minutes': item.get('timeoutInMinutes', 60), 'place': item.place, 'hooks': hooks}


def step(item, place, problems):
    """Add to `problems` what is not known here of a step."""
    if not isinstance(item, Map):
        problems.append('%s: a step is a mapping, not %r' % (place, item))
        return
    kinds = [kind for kind in STEPS if kind in item]
    if len(kinds) != 1:
        problems.append('%s: a step is one of %s, not %s' % (
            item.place, ', '.join(sorted(STEPS)), ' and '.join(kinds or map(str, item))))
        return
    kind, value = kinds[0], item[kinds[0]]
    only(item, STEPS[kind] | {kind}, kind, problems)
    if kind == 'task':
        if value in TASKS:
            inputs = Map(item.get('inputs') or {})
            inputs.place = item.place
            only(inputs, TASKS[value], value, problems)
        else:
            problems.append('%s: the task %s is not known here' % (item.place, value))
    if value != {'checkout': 'self', 'download': 'none'}.get(kind, value):
        problems.append('%s: %s: %s is not known here' % (item.place, kind, value))
    if item.get('target', 'host') != 'host':
        problems.append('%s: the target %s is not known here' % (item.place, item['target']))
