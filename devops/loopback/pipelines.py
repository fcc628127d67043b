"""Pipelines: modules (a step's definition), graphs, published pipelines, and their submission.

No public document describes this service (it calls itself Aeva). Sources: the SDK's generated
models in azureml/pipeline/core/_restclients/aeva, azureml/pipeline/core/_aeva_provider.py for
the meaning of the numbers (PipelineRun 0..4 NotStarted Running Failed Finished Canceled; node
0..5 NotStarted Queued Running Failed Finished Canceled), and what azureml-sdk 1.55 and 1.62
send.
"""
import json
import uuid

from .history import ENDED, get_or_create_experiment, new_run
from .storage import artifact_path
from .routing import API, WORKSPACE, Answer, problem, route
from .workspaces import api_root, need_registry, now

PIPELINES = '/pipelines/v1.0' + WORKSPACE
NODES = PIPELINES + '/PipelineRuns/{run}/Graph/'
DATA_TYPES = ('AnyFile', 'AnyDirectory', 'AzureBlobReference', 'AzureFilesReference',
              'AzureDataLakeReference', 'AzureDataLakeGen2Reference', 'AzureSqlDatabaseReference',
              'AzurePostgresDatabaseReference', 'AzureMySqlDatabaseReference', 'DBFSReference',
              'ZipFile', 'ModelDirectory', 'AzureMLDataset', 'TransformerDirectory', 'UnifiedFile')
PIPELINE_CODES = {
    'NotStarted': '0', 'Queued': '0', 'Running': '1', 'Finalizing': '1', 'CancelRequested': '1',
    'Failed': '2', 'Completed': '3', 'Canceled': '4'
}
NODE_CODES = {
    'NotStarted': '0', 'Queued': '1', 'Running': '2', 'Finalizing': '2', 'CancelRequested': '2',
    'Failed': '3', 'Completed': '4', 'Canceled': '5'
}


def entity(fields, **more):
    return dict(fields, Id=str(uuid.uuid4()), Etag='e', CreatedDate=now(), LastModifiedDate=now(),
                EntityStatus='0', **more)


@route('GET', API, PIPELINES + '/DataTypes')
def data_types(call):
    return [
        dict(
            entity(
                {'Name': name, 'Description': name, 'IsDirectory': True, 'ParentDataTypeIds': []}),
            Id=name) for name in DATA_TYPES
    ]


@route('GET', API, PIPELINES + '/Modules/Hash/{fingerprint}')
def find_module(call, fingerprint):
    """204: no module of this fingerprint is known, so the SDK uploads it."""
    known = call.table('fingerprints').get(fingerprint)
    return get_module(call, known) if known else Answer(status=204)


@route('POST', API, PIPELINES + '/Modules')
def create_module(call):
    document = entity(call.json, UploadState='1')
    call.table('modules')[document['Id']] = document
    if call.json.get('IdentifierHash'):
        call.table('fingerprints')[call.json['IdentifierHash']] = document['Id']
    return document


@route('GET', API, PIPELINES + '/Modules/{module}')
def get_module(call, module):
    document = call.table('modules')[module]
    shape = document.get('StructuredInterface') or {}
    return {
        'Data': document, 'Interface': {
            'Parameters': _parameters(shape.get('Parameters')),
            'MetadataParameters': _parameters(shape.get('MetadataParameters')),
            'DataPathParameters': [], 'DataSetPathParameters': [], 'Ports': {
                'Inputs': [{
                    'Name': port['Name'], 'DataTypesIds': port.get('DataTypeIdsList') or [],
                    'IsOptional': False
                } for port in shape.get('Inputs') or []],
                'Outputs': [{'Name': port['Name'], 'DataTypeId': port.get('DataTypeId')}
                            for port in shape.get('Outputs') or []]
            }
        }
    }


def _parameters(listed):
    return [{'Name': one['Name'], 'Documentation': None, 'DefaultValue': one.get('DefaultValue'),
             'IsOptional': one.get('IsOptional', False), 'Type': '0'} for one in listed or []]


@route('POST', API, PIPELINES + '/Pipelines/Create')
def publish(call):
    asked = call.json
    graph = _keep_graph(call, asked)
    fields = {
        key: value
        for key, value in asked.items() if key not in ('Graph', 'GraphInterface', 'GraphLayout')
    }
    document = entity(fields, GraphId=graph, TotalRunSteps=len(asked['Graph'].get('ModuleNodes')
                                                               or []))
    document['Url'] = '%s/pipelines/v1.0%s/PipelineRuns/PipelineSubmit/%s' % (
        api_root(call.workspace), call.workspace['id'], document['Id'])
    call.table('pipelines')[document['Id']] = document
    return document


def _keep_graph(call, asked):
    graph = entity(asked['Graph'])
    call.table('graphs')[graph['Id']] = {
        'graph': graph, 'interface': asked.get('GraphInterface') or {},
        'go_on': bool(asked.get('ContinueRunOnStepFailure'))
    }
    return graph['Id']


@route('GET', API, PIPELINES + '/Pipelines')
def list_pipelines(call):
    everything = call.query.get('activeOnly', 'true').lower() == 'false'
    return [
        one for one in call.table('pipelines').values() if everything or one['EntityStatus'] == '0'
    ]


@route('GET', API, PIPELINES + '/Pipelines/{pipeline}')
def get_pipeline(call, pipeline):
    return call.table('pipelines')[pipeline]


@route('PUT', API, PIPELINES + '/Pipelines/{pipeline}/status')
def set_pipeline_status(call, pipeline):
    with call.table('pipelines').change(pipeline) as document:
        document['EntityStatus'] = str(call.json)


@route('GET', API, PIPELINES + '/Graphs/{graph}')
def get_graph(call, graph):
    return call.table('graphs')[graph]['graph']


@route('GET', API, PIPELINES + '/Graphs/{graph}/Interface')
def get_interface(call, graph):
    return call.table('graphs')[graph]['interface']


@route('POST', API, PIPELINES + '/PipelineRuns/PipelineSubmit/{pipeline}')
def submit_pipeline(call, pipeline):
    """Both the SDK and plain REST come here; only the SDK writes names with a capital."""
    asked = {key.lower(): value for key, value in call.json.items()}
    published = call.table('pipelines')[pipeline]
    if published['EntityStatus'] != '0':
        raise problem(400, 'UserError', 'Pipeline %s is disabled.' % pipeline)
    if not asked.get('experimentname'):
        raise problem(400, 'UserError', 'ExperimentName is missing.')
    return _submit(call, asked['experimentname'], asked, published['GraphId'], pipeline)


@route('POST', API, PIPELINES + '/PipelineRuns/Unsubmitted/CreationInfoWithGraph')
def create_pipeline_run(call):
    graph = _keep_graph(call, call.json)
    asked = {key.lower(): value for key, value in (call.json.get('CreationInfo') or {}).items()}
    return _submit(call, call.query['experimentName'], asked, graph, None)


@route('POST', API, PIPELINES + '/PipelineRuns/Submit/{run}')
def submit_pipeline_run(call, run):
    return None


def _submit(call, experiment, asked, graph, pipeline):
    values = asked.get('parameterassignments') or {}
    known = {
        one['Name']
        for one in call.table('graphs')[graph]['interface'].get('Parameters') or []
    }
    strange = sorted(set(values) - known)
    if strange:
        raise problem(400, 'UserError', 'The pipeline has no parameter %s.' % ', '.join(strange))
    row = new_run(
        call.table('runs'), get_or_create_experiment(call.table('experiments'), experiment),
        status='Queued', runType='azureml.PipelineRun', tags=asked.get('tags') or {},
        description=asked.get('description'), properties=dict(
            asked.get('properties') or {}, **{
                'azureml.runsource': 'azureml.PipelineRun', 'runSource': asked.get('runsource')
                or 'Unavailable', 'runType': 'HTTP', 'azureml.parameters': json.dumps(values),
                'azureml.pipelineid': pipeline or '',
                'azureml.continue_on_step_failure': str(bool(asked.get('continuerunonstepfailure')))
            }))
    run = row['dto']['runId']
    need_registry(call.cloud, call.workspace)
    call.table('pipeline-runs')[run] = dict(
        entity({
            'Description': asked.get('description'), 'GraphId': graph, 'IsSubmitted': True,
            'HasErrors': False, 'HasWarnings': False, 'ParameterAssignments': values,
            'RunHistoryExperimentName': experiment, 'PipelineId': pipeline,
            'RunSource': asked.get('runsource'), 'RunType': asked.get('runtype'),
            'TotalRunSteps': len(call.table('graphs')[graph]['graph'].get('ModuleNodes') or [])
        }), Id=run)
    call.cloud.jobs.start(call.workspace, run)
    return get_pipeline_run(call, run)


@route('GET', API, PIPELINES + '/PipelineRuns/{run}')
def get_pipeline_run(call, run):
    dto = call.table('runs')[run]['dto']
    document = call.table('pipeline-runs')[run]
    return dict(
        document, tags=dto['tags'], Status={
            'StatusCode': PIPELINE_CODES[dto['status']], 'StatusDetail': None,
            'CreationTime': dto['createdUtc'], 'EndTime': dto['endTimeUtc']
        })


@route('GET', API, PIPELINES + '/PipelineRuns/Pipeline/{pipeline}')
def list_pipeline_runs(call, pipeline):
    return [get_pipeline_run(call, one['Id']) for one in call.table('pipeline-runs').values()
            if one['PipelineId'] == pipeline]


@route('DELETE', API, PIPELINES + '/PipelineRuns/{run}/Execution')
def cancel_pipeline_run(call, run):
    row = call.table('runs')[run]
    if row['dto']['status'] in ENDED:
        raise problem(400, 'UserError',
                      'Run %s has already ended (%s).' % (run, row['dto']['status']))
    call.cloud.jobs.cancel(call.workspace, run)


def _step(call, run, node):
    """The run of a node, or None when it has not started."""
    for row in call.table('runs').values():
        if row['dto']['parentRunId'] == run and row['dto']['properties'].get(
                'azureml.nodeid') == node:
            return row
    return None


def _node(call):
    return call.query['nodeId'] if 'nodeId' in call.query else call.json[-1]


@route('GET', API, NODES + 'AllNodes/Status')
def all_nodes(call, run):
    graph = call.table('graphs')[call.table('pipeline-runs')[run]['GraphId']]['graph']
    return {
        node['Id']: _node_status(_step(call, run, node['Id']))
        for node in graph.get('ModuleNodes') or []
    }


@route('GET', API, NODES + 'Node/Status')
@route('POST', API, NODES + 'Node/Status')
def node_status(call, run):
    return _node_status(_step(call, run, _node(call)))


def _node_status(row):
    dto = row['dto'] if row else {
        'status': 'NotStarted', 'runId': None, 'startTimeUtc': None, 'endTimeUtc': None
    }
    return {'StatusCode': NODE_CODES[dto['status']], 'StatusDetail': None, 'RunId': dto['runId'],
            'StartTime': dto['startTimeUtc'], 'EndTime': dto['endTimeUtc']}


@route('GET', API, NODES + 'Node/StatusCode')
@route('POST', API, NODES + 'Node/StatusCode')
def node_code(call, run):
    return node_status(call, run)['StatusCode']


@route('POST', API, PIPELINES + '/PipelineRuns/{run}/Outputs')
@route('POST', API, NODES + 'Node/Outputs')
def node_outputs(call, run):
    row = _step(call, run, _node(call))
    outputs = row['outputs'] if row and 'outputs' in row else {}
    return {
        name: {
            'DataTypeId': 'AzureBlobReference', 'DataLocation': {
                'StorageType': '3', 'DataReference': {
                    'Type': '1', 'AzureBlobReference': {
                        'AmlDataStoreName': place['datastore'], 'RelativePath': place['path']
                    }
                }
            }
        }
        for name, place in outputs.items()
    }


@route('POST', API, NODES + 'Shareable/JobLog')
@route('POST', API, NODES + 'Shareable/StdOut')
@route('POST', API, NODES + 'Shareable/StdErr')
def node_log(call, run):
    row = _step(call, run, _node(call))
    path = artifact_path(call.cloud, call.workspace, 'ExperimentRun', row['dto']['dataContainerId'],
                         'user_logs/std_log.txt')
    with open(path, encoding='utf-8', errors='replace') as log:
        return log.read()
