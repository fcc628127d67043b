"""Pipelines: modules (a step's definition), graphs, published pipelines, and their runs.

No public document describes this service, which calls itself Aeva. Sources: the SDK's generated
models in azureml/pipeline/core/_restclients/aeva; azureml/pipeline/core/_aeva_provider.py for the
meaning of the numbers; what azureml-sdk 1.55 and 1.62 send.
"""
import json
import uuid

from .history import ENDED, get_or_create_experiment, new_run
from .routing import API, WORKSPACE, Answer, problem, route
from .workspaces import api_root, need_registry, now

PIPELINES = '/pipelines/v1.0' + WORKSPACE
RUNS = PIPELINES + '/PipelineRuns/'
DATA_TYPES = ('AnyFile', 'AnyDirectory', 'AzureBlobReference', 'AzureFilesReference',
              'AzureDataLakeReference', 'AzureDataLakeGen2Reference', 'AzureSqlDatabaseReference',
              'AzurePostgresDatabaseReference', 'AzureMySqlDatabaseReference', 'DBFSReference',
              'ZipFile', 'ModelDirectory', 'AzureMLDataset', 'TransformerDirectory', 'UnifiedFile')
# State in run history: (number of a pipeline run's state, number of a node's state).
CODES = {'NotStarted': ('0', '0'), 'Queued': ('0', '1'), 'Running': ('1', '2'),
         'CancelRequested': ('1', '2'), 'Failed': ('2', '3'), 'Completed': ('3', '4'),
         'Canceled': ('4', '5')}
ACTIVE = '0'


def _entity(fields, identity=None):
    return dict(fields, Id=identity or str(uuid.uuid4()), Etag='e', EntityStatus=ACTIVE,
                CreatedDate=now(), LastModifiedDate=now())


@route('GET', API, PIPELINES + '/DataTypes')
def list_data_types(call):
    return [_entity({'Name': name, 'Description': name, 'IsDirectory': True,
                     'ParentDataTypeIds': []}, name) for name in DATA_TYPES]


@route('GET', API, PIPELINES + '/Modules/Hash/{fingerprint}')
def find_module(call, fingerprint):
    """None is known, so the SDK makes it."""
    return Answer(status=204)


@route('POST', API, PIPELINES + '/Modules')
def create_module(call):
    if call.json.get('IsDeterministic'):
        raise problem(501, 'LoopbackReuse', 'Loopback never reuses results: say allow_reuse=False.')
    document = _entity(dict(call.json, UploadState='1'))
    call.table('modules')[document['Id']] = document
    return get_module(call, document['Id'])['Data']


@route('GET', API, PIPELINES + '/Modules/{module}')
def get_module(call, module):
    document = call.table('modules')[module]
    for key in ('StorageId', 'IsInterfaceOnly'):
        document.pop(key, None)
    shape = document['StructuredInterface']
    parameters = {
        kind: [{'Name': one['Name'], 'DefaultValue': one.get('DefaultValue'), 'Type': '0',
                'IsOptional': one['IsOptional']} for one in shape[kind]]
        for kind in ('Parameters', 'MetadataParameters')}
    inputs = [{'Name': port['Name'], 'DataTypesIds': port['DataTypeIdsList'], 'IsOptional': False}
              for port in shape['Inputs']]
    outputs = [{'Name': port['Name'], 'DataTypeId': port['DataTypeId']}
               for port in shape['Outputs']]
    return {'Data': document, 'Interface': dict(
        parameters, DataPathParameters=[], Ports={'Inputs': inputs, 'Outputs': outputs})}


@route('POST', API, PIPELINES + '/Pipelines/Create')
def publish_pipeline(call):
    asked, graph = call.json, str(uuid.uuid4())
    call.table('graphs')[graph] = {'graph': asked['Graph'], 'interface': asked['GraphInterface']}
    fields = {key: value for key, value in asked.items() if not key.startswith('Graph')}
    document = _entity(dict(fields, GraphId=graph,
                            TotalRunSteps=len(asked['Graph']['ModuleNodes'])))
    document['Url'] = (f"{api_root(call.workspace)}/pipelines/v1.0{call.workspace['id']}/"
                       f"PipelineRuns/PipelineSubmit/{document['Id']}")
    call.table('pipelines')[document['Id']] = document
    return document


@route('GET', API, PIPELINES + '/Pipelines')
def list_pipelines(call):
    return [one for one in call.table('pipelines').values() if one['EntityStatus'] == ACTIVE]


@route('GET', API, PIPELINES + '/Pipelines/{pipeline}')
def get_pipeline(call, pipeline):
    return call.table('pipelines')[pipeline]


@route('PUT', API, PIPELINES + '/Pipelines/{pipeline}/status')
def set_pipeline_status(call, pipeline):
    """0 active, 1 deprecated, 2 disabled."""
    with call.table('pipelines').change(pipeline) as document:
        document['EntityStatus'] = str(call.json)


@route('POST', API, RUNS + 'PipelineSubmit/{pipeline}')
def submit_published(call, pipeline):
    published = call.table('pipelines')[pipeline]
    if published['EntityStatus'] != ACTIVE:
        raise problem(400, 'UserError', f'Pipeline {pipeline} is not active.')
    asked = call.json
    values = asked['ParameterAssignments']
    known = call.table('graphs')[published['GraphId']]['interface']['Parameters']
    strange = sorted(set(values) - {one['Name'] for one in known})
    if strange:
        raise problem(400, 'UserError', f"The pipeline has no parameter {', '.join(strange)}.")
    need_registry(call.cloud, call.workspace)
    experiment = get_or_create_experiment(
        call.table('experiments'), asked.get('ExperimentName', ''))
    row = new_run(
        call.table('runs'), experiment, status='Queued', runType='azureml.PipelineRun',
        tags=asked.get('tags', {}), properties={
            'azureml.runsource': 'azureml.PipelineRun', 'azureml.pipelineid': pipeline,
            'azureml.parameters': json.dumps(values)})
    run = row['dto']['runId']
    call.table('pipeline-runs')[run] = _entity({
        'GraphId': published['GraphId'], 'ParameterAssignments': values, 'PipelineId': pipeline,
        'RunHistoryExperimentName': experiment['name']}, run)
    call.cloud.jobs.start(call.workspace, run)
    return get_pipeline_run(call, run)


@route('GET', API, RUNS + '{run}')
def get_pipeline_run(call, run):
    dto = call.table('runs')[run]['dto']
    return dict(call.table('pipeline-runs')[run], tags=dto['tags'], Status={
        'StatusCode': CODES[dto['status']][0], 'StatusDetail': None,
        'CreationTime': dto['createdUtc'], 'EndTime': dto['endTimeUtc']})


@route('DELETE', API, RUNS + '{run}/Execution')
def cancel_pipeline_run(call, run):
    status = call.table('runs')[run]['dto']['status']
    if status in ENDED:
        raise problem(400, 'UserError', f'Run {run} has ended already: {status}.')
    call.cloud.jobs.cancel(call.workspace, run)


@route('POST', API, RUNS + '{run}/Graph/Node/StatusCode')
def get_node_code(call, run):
    """The state of the node that the request names; it has no run until it starts."""
    node, = call.json
    for row in call.table('runs').values():
        dto = row['dto']
        if dto['parentRunId'] == run and dto['properties']['azureml.nodeid'] == node:
            return CODES[dto['status']][1]
    return CODES['NotStarted'][1]
