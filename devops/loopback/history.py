"""Run history: experiments, runs with their tags, properties and states, events, metrics.

Sources: runHistory.json of Azure/azure-rest-api-specs; the SDK's models RunDto, RunDetailsDto and
MetricV2Dto; the filters that azureml/_restclient/_odata writes. A row of the table `runs` holds
the RunDto, the experiment's name and the error, and for a step its outputs.
"""
import re
import uuid

from .artifacts import artifact_link, artifact_names
from .routing import API, WORKSPACE, problem, route
from .sign_in import CLIENT, LIFETIME, TENANT
from .workspaces import now

HISTORY = '/history/v1.0' + WORKSPACE
PREFIXES = ('', '/experiments/{experiment}', '/experimentids/{experiment}')
METRICS = '/metric/v2.0' + WORKSPACE + '/runs/{run}'
ENDED = ('Completed', 'Failed', 'Canceled')
ORIGIN = 'ExperimentRun'
LOGS = ('user_logs/', 'azureml-logs/', 'system_logs/', 'logs/azureml/')


def runs_route(method, path):
    """A route that the SDK reaches with the experiment's name, with its id, or without."""
    def register(handler):
        for prefix in PREFIXES:
            route(method, API, HISTORY + prefix + path)(handler)
        return handler
    return register


def new_run(table, experiment, run=None, **facts):
    """Add a run to the table `runs` and return its row. The facts are fields of RunDto."""
    run = run or str(uuid.uuid4())
    dto = dict({
        'runId': run, 'runUuid': str(uuid.uuid4()), 'rootRunId': run, 'parentRunId': None,
        'runNumber': len(table) + 1, 'experimentId': experiment['experimentId'],
        'dataContainerId': 'dcid.' + run, 'displayName': run, 'name': None,
        'status': 'NotStarted', 'createdUtc': now(), 'startTimeUtc': None, 'endTimeUtc': None,
        'tags': {}, 'properties': {}, 'runType': None, 'target': None, 'description': None,
        'hidden': False, 'heartbeatEnabled': False, 'createdBy': {
            'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'}}, **facts)
    table[run] = {'dto': dto, 'experiment': experiment['name'], 'error': None}
    return table[run]


def set_status(table, run, status, error=None):
    """Move a run on. One that has ended stays as it is, one that is canceled never runs again."""
    with table.change(run) as row:
        dto = row['dto']
        if dto['status'] in ENDED or (dto['status'], status) == ('CancelRequested', 'Running'):
            return
        dto['status'] = status
        row['error'] = error
        if status == 'Running':
            dto['startTimeUtc'] = now()
        if status in ENDED:
            dto['endTimeUtc'] = now()


def get_or_create_experiment(table, name):
    if name not in table:
        if not re.match(r'[a-zA-Z0-9][\w-]{0,254}$', name):
            raise problem(400, 'UserError', f'The experiment name \'{name}\' is invalid.')
        table[name] = {'experimentId': str(uuid.uuid4()), 'name': name, 'description': None,
                       'createdUtc': now(), 'archivedTime': None, 'tags': {}}
    return table[name]


def _experiment(call, name):
    """The experiment of that name or id, made if there is none."""
    for row in call.table('experiments').values():
        if name in (row['name'], row['experimentId']):
            return row
    return get_or_create_experiment(call.table('experiments'), name)


@route('GET', API, HISTORY + '/experiments/{name}')
def get_experiment(call, name):
    return call.table('experiments')[name]


@route('POST', API, HISTORY + '/experiments/{name}')
def create_experiment(call, name):
    return get_or_create_experiment(call.table('experiments'), name)


@runs_route('GET', '/runs/{run}')
def get_run(call, run, experiment=None):
    return call.table('runs')[run]['dto']


@runs_route('PATCH', '/runs/{run}')
def patch_run(call, run, experiment=None):
    """Tags and properties are added, other fields replaced; a run that does not exist is made."""
    table = call.table('runs')
    if run not in table:
        new_run(table, _experiment(call, experiment), run)
    with table.change(run) as row:
        for key, value in call.json.items():
            if key in ('tags', 'properties'):
                row['dto'][key].update({
                    name: text for name, text in (value or {}).items() if text is not None})
            elif key in ('inputDatasets', 'outputDatasets'):
                row[key] = value
            elif value is not None:
                row['dto'][key] = value
    return row['dto']


@runs_route('GET', '/runs/{run}/details')
def get_details(call, run, experiment=None):
    row = call.table('runs')[run]
    dto = row['dto']
    names = artifact_names(call.cloud, call.workspace, ORIGIN, dto['dataContainerId'])
    logs = {name: artifact_link(call, ORIGIN, dto['dataContainerId'], name)
            for name in names if name.startswith(LOGS)}
    return dict({key: dto[key] for key in (
        'runId', 'target', 'status', 'startTimeUtc', 'endTimeUtc', 'properties')},
        error=row['error'], warnings=None, inputDatasets=row.get('inputDatasets') or [],
        outputDatasets=row.get('outputDatasets') or [], runDefinition=None, services={},
        logFiles=logs)


@runs_route('GET', '/runs/{run}/children')
def list_children(call, run, experiment=None):
    return {'continuationToken': None, 'value': [
        row['dto'] for row in call.table('runs').values() if row['dto']['parentRunId'] == run]}


@runs_route('POST', '/runs:query')
def query_runs(call, experiment=None):
    """The newest first."""
    wanted = call.json.get('filter') or ''
    names = [_experiment(call, experiment)['name']] if experiment else None
    found = [row['dto'] for row in call.table('runs').values()
             if (names is None or row['experiment'] in names) and _matches(row['dto'], wanted)]
    return {'value': found[::-1][:call.json.get('top')], 'continuationToken': None}


def _matches(dto, expression):
    """Whether a run meets `(Tags/BuildId eq 5) and (RunType eq a or Properties/b eq a)` or so."""
    clauses = filter(None, re.split(r'\)?\s+and\s+\(?', expression.strip()))
    return all(any(_matches_term(dto, term.strip('() ')) for term in clause.split(' or '))
               for clause in clauses)


def _matches_term(dto, term):
    match = re.match(r'(\w+)(?:/(\S+))?\s+(eq|ne)\s+(.*)$', term)
    if not match:
        raise problem(501, 'LoopbackUnknownFilter', f'Loopback cannot read the filter {term!r}.')
    field, key, operator, wanted = match.groups()
    value = dto.get(field[0].lower() + field[1:])
    if key:
        value = (value or {}).get(key)
    wanted = None if wanted == 'null' else wanted.strip('\'"')
    return (value == wanted) == (operator == 'eq')


@runs_route('GET', '/runs/{run}/token')
def get_token(call, run, experiment=None):
    """A fresh token for the process of the run."""
    return {'token': call.cloud.tokens.issue(), 'expiryTimeUtc': now(LIFETIME)}


@runs_route('GET', '/runs/{run}/metricsingest/wait')
def wait_for_metrics(call, run, experiment=None):
    """Metrics are there as soon as they are posted."""


def _metrics(call, run):
    return (call.table('metrics').get(run) or {'values': []})['values']


@route('POST', API, METRICS + '/batch')
def post_metrics(call, run, experiment=None):
    with call.cloud.journal.lock:
        call.table('metrics')[run] = {'values': _metrics(call, run) + call.json['values']}
    return {'errors': []}


@route('POST', API, METRICS + '/list')
def list_metrics(call, run):
    names = sorted({value['name'] for value in _metrics(call, run)})
    return {'continuationToken': None, 'value': [
        {'metricKey': {'name': name, 'namespace': None}, 'columns': {}} for name in names]}


@route('POST', API, METRICS + '/full')
def get_metric(call, run):
    name = call.json['metricName']
    values = [value for value in _metrics(call, run) if value['name'] == name]
    if not values:
        raise problem(404, 'NotFound', f'Run {run} has no metric {name}.')
    cells = [dict(cell, metricId=cell.get('metricId') or str(uuid.uuid4()),
                  createdUtc=cell.get('createdUtc') or now())
             for value in values for cell in value['value']]
    for step, cell in enumerate(cells):
        cell['step'] = step
    return dict(values[-1], continuationToken=None, value=cells)
