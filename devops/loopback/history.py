"""Run history: experiments, runs with their tags, properties and states, events, metrics.

Sources: runHistory.json of Azure/azure-rest-api-specs; the SDK's models RunDto, RunDetailsDto and
MetricV2Dto; the filters that azureml/_restclient/_odata writes. A row of the table `runs` holds
the RunDto, the experiment's name and the error, and for a step its outputs.
"""
import re
import uuid

from .artifacts import artifact_link, artifacts_below
from .routing import API, WORKSPACE, problem, route
from .sign_in import CLIENT, LIFETIME, TENANT
from .workspaces import now

HISTORY = '/history/v1.0' + WORKSPACE
PREFIXES = ('/experiments/{experiment}', '/experimentids/{experiment}')
METRICS = '/metric/v2.0' + WORKSPACE + '/runs/{run}'
ENDED = ('Completed', 'Failed', 'Canceled')
ORIGIN = 'ExperimentRun'


def runs_route(method, path):
    """A route that the SDK reaches with the experiment's name or with its id."""
    def register(handler):
        for prefix in PREFIXES:
            route(method, API, HISTORY + prefix + path)(handler)
        return handler
    return register


def new_run(table, experiment, **facts):
    """Add a run to the table `runs` and return its row. The facts are fields of RunDto."""
    run = str(uuid.uuid4())
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
    """Move a run on. One that has ended stays as it is, one that is being canceled ends so."""
    with table.change(run) as row:
        dto = row['dto']
        canceled = dto['status'] == 'CancelRequested'
        if dto['status'] in ENDED or canceled and status not in ENDED:
            return
        dto['status'] = 'Canceled' if canceled else status
        row['error'] = None if canceled else error
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
    """Replace fields. RunDto has none for the datasets that a run reads and writes."""
    with call.table('runs').change(run) as row:
        for key, value in call.json.items():
            fields = row['dto'] if key in row['dto'] else row
            fields[key] = value
    return row['dto']


@runs_route('GET', '/runs/{run}/details')
def get_details(call, run, experiment=None):
    row = call.table('runs')[run]
    dto = row['dto']
    folder = f"{ORIGIN}/{dto['dataContainerId']}"
    logs = {artifact[len(folder) + 1:]: artifact_link(call, artifact) for artifact in
            artifacts_below(call.cloud, call.workspace, folder + '/user_logs')}
    fields = ('runId', 'target', 'status', 'startTimeUtc', 'endTimeUtc', 'properties')
    return dict({key: dto[key] for key in fields}, error=row['error'], logFiles=logs,
                inputDatasets=row.get('inputDatasets'), outputDatasets=row.get('outputDatasets'))


@runs_route('GET', '/runs/{run}/children')
def list_children(call, run, experiment=None):
    return {'continuationToken': None, 'value': [
        row['dto'] for row in call.table('runs').values() if row['dto']['parentRunId'] == run]}


@route('POST', API, HISTORY + '/experiments/{experiment}/runs:query')
def query_runs(call, experiment):
    """The newest first."""
    found = [row['dto'] for row in call.table('runs').values()
             if row['experiment'] == experiment and _matches(row['dto'], call.json['filter'])]
    return {'value': found[::-1][:call.json['top']], 'continuationToken': None}


def _matches(dto, expression):
    """Whether a run meets a filter like `((Tags/BuildId eq "5") and (ParentRunId eq null))`."""
    for clause in expression.strip('()').split(') and ('):
        match = re.match(r'(\w)(\w+)(?:/(\w+))? eq (?:"(.*)"|null)$', clause)
        if not match:
            raise problem(501, 'LoopbackUnknownFilter', f'Loopback cannot read {expression}.')
        initial, rest, key, wanted = match.groups()
        value = dto[initial.lower() + rest]
        if (value.get(key) if key else value) != wanted:
            return False
    return True


@runs_route('GET', '/runs/{run}/token')
def get_token(call, run, experiment=None):
    """A fresh token for the process of the run."""
    return {'token': call.cloud.tokens.issue(), 'expiryTimeUtc': now(LIFETIME)}


@runs_route('GET', '/runs/{run}/metricsingest/wait')
def wait_for_metrics(call, run, experiment=None):
    """Metrics are there as soon as they are posted."""


def _metrics(call, run):
    return call.table('metrics').get(run, [])


@route('POST', API, METRICS + '/batch')
def post_metrics(call, run):
    with call.cloud.journal.lock:
        call.table('metrics')[run] = _metrics(call, run) + call.json['values']
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
    cells = [cell for value in values for cell in value['value']]
    for step, cell in enumerate(cells):
        cell['step'] = step
    return dict(values[-1], continuationToken=None, value=cells)
