"""Run history: experiments, runs with their tags, properties and states, events, metrics.

Sources: runHistory.json of Azure/azure-rest-api-specs; the SDK's models RunDto, RunDetailsDto
and MetricV2Dto; the filters that azureml/_restclient/_odata writes. A row of the table `runs`
holds the RunDto, the experiment and the error.
"""
import re
import uuid

from .sign_in import CLIENT, TENANT
from .storage import CONTAINER, _content, account
from .routing import API, WORKSPACE, problem, route
from .workspaces import now

HISTORY = '/history/v1.0' + WORKSPACE
PLACES = ('', '/experiments/{experiment}', '/experimentids/{experiment}')
METRICS = '/metric/v2.0' + WORKSPACE + '/runs/{run}'
ENDED = ('Completed', 'Failed', 'Canceled')
EVENTS = {
    'Microsoft.MachineLearning.Run.Start': 'Running',
    'Microsoft.MachineLearning.Run.Completed': 'Completed',
    'Microsoft.MachineLearning.Run.Failed': 'Failed',
    'Microsoft.MachineLearning.Run.Canceled': 'Canceled'
}
LOGS = ('azureml-logs/', 'user_logs/', 'system_logs/', 'logs/azureml/')


def runs_route(method, path):
    """A route that the SDK reaches with the experiment's name, with its id, or without."""
    def register(handler):
        for place in PLACES:
            route(method, API, HISTORY + place + path)(handler)
        return handler
    return register


def new_run(table, experiment, run=None, **facts):
    """Add a run to the table `runs` and return its row. Facts are fields of RunDto."""
    run = run or str(uuid.uuid4())
    dto = {
        'runId': run, 'runUuid': str(uuid.uuid4()), 'rootRunId': run, 'parentRunId': None,
        'runNumber': len(table) + 1, 'experimentId': experiment['experimentId'],
        'dataContainerId': 'dcid.' + run, 'displayName': run, 'name': None, 'status': 'NotStarted',
        'createdUtc': now(), 'startTimeUtc': None, 'endTimeUtc': None, 'tags': {}, 'properties': {},
        'runType': None, 'target': None, 'description': None, 'hidden': False,
        'heartbeatEnabled': False,
        'createdBy': {'userObjectId': CLIENT, 'userTenantId': TENANT, 'userName': 'loopback'}
    }
    dto.update(facts)
    table[run] = {'dto': dto, 'experiment': experiment['name'], 'error': None}
    return table[run]


def set_status(table, run, status, error=None):
    """Move a run on. One that has ended stays as it is, one that is canceled never runs again."""
    with table.change(run) as row:
        old = row['dto']['status']
        if old not in ENDED and (old, status) != ('CancelRequested', 'Running'):
            row['dto']['status'] = status
            row['error'] = error
            if status == 'Running':
                row['dto']['startTimeUtc'] = now()
            if status in ENDED:
                row['dto']['endTimeUtc'] = now()


def get_or_create_experiment(table, name):
    if name not in table:
        if not re.match(r'^[a-zA-Z0-9][\w-]{0,255}$', name):
            raise problem(400, 'UserError', 'The experiment name \'%s\' is invalid.' % name)
        table[name] = {
            'experimentId': str(uuid.uuid4()), 'name': name, 'description': None,
            'createdUtc': now(), 'archivedTime': None, 'tags': {}
        }
    return table[name]


@route('POST', API, HISTORY + '/experiments:query')
def list_experiments(call):
    return {'value': call.table('experiments').values(), 'continuationToken': None}


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
                row['dto'][key].update(
                    {name: text
                     for name, text in (value or {}).items() if text is not None})
            elif value is not None:
                row['dto'][key] = value
    return table[run]['dto']


@runs_route('DELETE', '/runs/{run}/tags')
def delete_tags(call, run, experiment=None):
    with call.table('runs').change(run) as row:
        for key in call.json:
            row['dto']['tags'].pop(key, None)
    return row['dto']


@runs_route('GET', '/runs/{run}/details')
def run_details(call, run, experiment=None):
    row = call.table('runs')[run]
    dto = row['dto']
    container = dto['dataContainerId']
    start = 'ExperimentRun/%s/' % container
    names = call.cloud.blobs.names(account(call.workspace), CONTAINER, start)
    logs = [name[len(start):] for name in names if name[len(start):].startswith(LOGS)]
    return {
        'runId': run, 'target': dto['target'], 'status': dto['status'],
        'startTimeUtc': dto['startTimeUtc'], 'endTimeUtc': dto['endTimeUtc'],
        'properties': dto['properties'], 'error': row['error'], 'warnings': None,
        'inputDatasets': [], 'outputDatasets': [], 'runDefinition': None, 'services': {},
        'logFiles': {
            name: _content(call, 'ExperimentRun', container, name)['contentUri']
            for name in logs
        }
    }


@runs_route('GET', '/runs/{run}/children')
def list_children(call, run, experiment=None):
    return {
        'value': [
            row['dto'] for row in call.table('runs').values() if row['dto']['parentRunId'] == run
        ], 'continuationToken': None
    }


@runs_route('POST', '/runs:query')
@runs_route('POST', '/runs/:query')
def query_runs(call, experiment=None):
    name = _experiment(call, experiment)['name'] if experiment else None
    found = [
        row['dto'] for row in call.table('runs').values() if name in (
            None, row['experiment']) and _matches(row['dto'], (call.json or {}).get('filter') or '')
    ]
    found.reverse()
    return {'value': found[:call.json.get('top') or None], 'continuationToken': None}


def _matches(dto, expression):
    """Whether the run meets a filter such as `(Tags/BuildId eq 5) and (RunType eq a or
    Properties/b eq a)`."""
    for clause in filter(None, re.split(r'\)?\s+and\s+\(?', expression.strip())):
        if not any(_holds(dto, term.strip('() ')) for term in clause.split(' or ')):
            return False
    return True


def _holds(dto, term):
    parsed = re.match(r'(\w+)(?:/(\S+))?\s+(eq|ne|ge|gt)\s+(.*)$', term)
    if not parsed:
        raise problem(501, 'LoopbackUnknownFilter',
                      'Loopback cannot read the filter term %r.' % term)
    field, key, operator, wanted = parsed.groups()
    value = dto.get(field[0].lower() + field[1:])
    if key:
        value = (value or {}).get(key)
    wanted = None if wanted == 'null' else wanted.strip('\'"')
    if operator in ('ge', 'gt'):
        return str(value) >= wanted
    return (value == wanted) == (operator == 'eq')


@runs_route('POST', '/runs/{run}/events')
def post_event(call, run, experiment=None):
    status = EVENTS.get(call.json.get('name'))
    if status:
        set_status(call.table('runs'), run, status)
    return {}


@runs_route('GET', '/runs/{run}/token')
def run_token(call, run, experiment=None):
    return {'token': call.cloud.tokens.issue(), 'expiryTimeUtc': now(3600)}


@runs_route('GET', '/runs/{run}/metricsingest/wait')
def wait_for_metrics(call, run, experiment=None):
    return None


@route('POST', API, METRICS + '/batch')
@runs_route('POST', '/runs/{run}/batch/metrics')
def post_metrics(call, run, experiment=None):
    table = call.table('metrics')
    with call.cloud.journal.lock:
        row = table.get(run) or {'values': []}
        row['values'] += call.json['values']
        table[run] = row
    return {'errors': []}


@route('POST', API, METRICS + '/list')
def list_metrics(call, run):
    names = {
        value['name']: None
        for value in (call.table('metrics').get(run) or {'values': []})['values']
    }
    return {'value': [{'metricKey': {'name': name, 'runId': run}, 'columns': {}} for name in names],
            'continuationToken': None}


@route('POST', API, METRICS + '/full')
def get_metric(call, run):
    rows = (call.table('metrics').get(run) or {'values': []})['values']
    values = [value for value in rows if value['name'] == call.json['metricName']]
    if not values:
        raise problem(404, 'NotFound', 'Run %s has no metric %s.' % (run, call.json['metricName']))
    cells = [cell for value in values for cell in value['value']]
    return dict(
        values[-1], continuationToken=None, value=[
            dict(cell, metricId=cell.get('metricId') or str(uuid.uuid4()),
                 createdUtc=cell.get('createdUtc') or now(), step=step)
            for step, cell in enumerate(cells)
        ])


@runs_route('POST', '/metrics:query')
def query_metrics(call, experiment=None):
    """The first generation of metrics, which the SDK asks for as well: there are none."""
    return {'value': [], 'continuationToken': None}


def _experiment(call, name):
    """The experiment of that name or id."""
    table = call.table('experiments')
    for row in table.values():
        if name in (row['name'], row['experimentId']):
            return row
    return get_or_create_experiment(table, name)
