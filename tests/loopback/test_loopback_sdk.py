"""Loopback Azure ML by the real SDK: what the SDK makes of it, and whether both keep the contract.

The contract is the SDK's own msrest models: what it sends and what it is answered must fit them.
"""
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

import loopback

if not importlib.util.find_spec('azureml') or not importlib.util.find_spec('azureml.core'):
    pytest.skip('the Azure SDK needs Python 3.11 or older', allow_module_level=True)
pytest.importorskip('trustme')

# Where, what the SDK sends, what it is answered; models of its package r(est), a(eva), w(orkspace).
RUN = r'history/v1.0/experiment(s|ids)/[^/]+/runs/[^/]+'
ARTIFACTS = 'artifact/v2.0/artifacts/'
CONTRACT = [
    ('GET', r'(rp/workspaces)?', None, 'w.Workspace'),
    ('GET', r'(rp/workspaces)?/computes/[^/]+', None, 'w.ComputeResource'),
    ('GET', r'rp/workspaces/computes', None, 'w.PaginatedComputeResourcesList'),
    ('PUT', r'/computes/[^/]+', 'w.ComputeResource', 'w.ComputeResource'),
    ('GET', r'datastore/v1.0/(default|datastores/[^/]+)', None, 'r.DataStore'),
    ('POST', r'dataset/v1.0/datasets', 'r.DatasetDto', 'r.DatasetDto'),
    ('POST', r'dataset/v1.0/saveddatasets', 'r.SavedDatasetDto', 'r.SavedDatasetDto'),
    ('GET', r'dataset/v1.0/saveddatasets/.*', None, 'r.SavedDatasetDto'),
    ('GET', r'dataset/v1.0/datasets/query/name=.*', None, 'r.DatasetDto'),
    ('GET', r'dataset/v1.0/datasets/query/saved.*', None, 'r.PaginatedResultDatasetDto'),
    ('(GET|POST)', r'history/v1.0/experiments/[^/]+', None, 'r.ExperimentDto'),
    ('GET', RUN, None, 'r.RunDto'),
    ('PATCH', RUN, 'r.CreateRunDto', 'r.RunDto'),
    ('GET', RUN + '/details', None, 'r.RunDetailsDto'),
    ('GET', RUN + '/children', None, 'r.PaginatedRunDto'),
    ('POST', r'history/v1.0/experiments/[^/]+/runs/?:query', 'r.QueryParamsDto',
     'r.PaginatedRunDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/batch', 'r.BatchMetricV2Dto', 'r.PostRunMetricsResultDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/list', 'r.ListMetricsDto', 'r.PaginatedMetricDefinitionDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/full', 'r.RetrieveFullFidelityMetricRequestDto',
     'r.MetricV2Dto'),
    ('POST', ARTIFACTS + 'batch/metadata/.*', 'r.BatchArtifactCreateCommand',
     'r.BatchArtifactContentInformationDto'),
    ('GET', ARTIFACTS + 'contentinfo/.*', None, 'r.ArtifactContentInformationDto'),
    ('GET', ARTIFACTS + 'prefix/contentinfo/.*', None,
     'r.PaginatedArtifactContentInformationDto'),
    ('GET', ARTIFACTS + '[^/]+/[^/]+', None, 'r.PaginatedArtifactDto'),
    ('POST', r'modelmanagement/v1.0/assets', 'r.Asset', 'r.Asset'),
    ('GET', r'modelmanagement/v1.0/assets/[^/]+', None, 'r.Asset'),
    ('POST', r'model(management|registry)/v1.0/models', 'r.Model', 'r.Model'),
    ('GET', r'model(management|registry)/v1.0/models/[^/]+', None, 'r.Model'),
    ('PATCH', r'model(management|registry)/v1.0/models/[^/]+', '[r.JsonPatchOperation]', 'r.Model'),
    ('GET', r'model(management|registry)/v1.0/models', None, 'r.PaginatedModelList'),
    ('POST', r'modelmanagement/v1.0/services', 'r.ACIServiceCreateRequest', None),
    ('GET', r'modelmanagement/v1.0/services/[^/]+', None, 'r.ACIServiceResponse'),
    # Its own model of the list has no fields of ACI.
    ('GET', r'modelmanagement/v1.0/services', None, None),
    ('PATCH', r'modelmanagement/v1.0/services/[^/]+', '[r.JsonPatchOperation]',
     'r.ACIServiceResponse'),
    ('GET', r'modelmanagement/v1.0/operations/[^/]+', None, 'r.AsyncOperationStatus'),
    ('POST', r'modelmanagement/v1.0/services/[^/]+/listkeys', None, 'r.AuthKeys'),
    ('GET', r'pipelines/v1.0/DataTypes', None, '[a.DataTypeEntity]'),
    ('POST', r'pipelines/v1.0/Modules', 'a.ModuleCreationInfo', 'a.ModuleEntity'),
    ('GET', r'pipelines/v1.0/Modules/(Hash/)?[^/]+', None, 'a.Module'),
    ('POST', r'pipelines/v1.0/Pipelines/Create', 'a.PipelineCreationInfo', 'a.PipelineEntity'),
    ('GET', r'pipelines/v1.0/Pipelines', None, '[a.PipelineEntity]'),
    ('GET', r'pipelines/v1.0/Pipelines/[^/]+', None, 'a.PipelineEntity'),
    ('GET', r'pipelines/v1.0/Graphs/[^/]+', None, 'a.GraphEntity'),
    ('GET', r'pipelines/v1.0/Graphs/[^/]+/Interface', None, 'a.EntityInterface'),
    ('POST', r'pipelines/v1.0/PipelineRuns/PipelineSubmit/[^/]+', 'a.PipelineSubmissionInfo',
     'a.PipelineRunEntity'),
    ('POST', r'pipelines/v1.0/PipelineRuns/Unsubmitted/.*', 'a.PipelineRunCreationInfoWithGraph',
     'a.PipelineRunEntity'),
    ('GET', r'pipelines/v1.0/PipelineRuns/[^/]+', None, 'a.PipelineRunEntity'),
    ('POST', r'pipelines/v1.0/PipelineRuns/[^/]+/Graph/Node/Status', None, 'a.TaskStatus'),
    ('POST', r'pipelines/v1.0/PipelineRuns/[^/]+/Outputs', None, '{a.NodeOutput}'),
    # The SDK has no model of these; it reads them as they are.
    ('.*', r'environment/v1.0/.*|content/v\d.0/snapshots/.*|data/v1.0/dataversion/.*', None, None),
    ('POST', r'modelmanagement/v1.0/services/validate.*', None, None),
    ('(GET|DELETE)', r'modelmanagement/v1.0/services/[^/]+(/logs)?', None, None),
    ('POST', r'pipelines/v1.0/PipelineRuns/[^/]+/Graph/Node/StatusCode', None, None),
    ('(POST|GET)', r'history/v1.0/.*(metrics:query|metricsingest/wait|token)', None, None),
]
# The SDK sends environments with more than its own models have, and is answered with them.
EXCUSED = 'ACIService.*environmentImageRequest.environment.'

DRIVER = r'''
import contextlib, json, os, re, sys, warnings
warnings.simplefilter('ignore')
import logging
logging.disable(logging.CRITICAL)
real_output, sys.stdout = sys.stdout, sys.stderr
from azureml.core import Dataset, Environment, Experiment, Model, Webservice, Workspace
from azureml.core.authentication import ServicePrincipalAuthentication
from azureml.core.compute import AmlCompute, ComputeTarget
from azureml.core.model import InferenceConfig
from azureml.core.runconfig import RunConfiguration
from azureml.core.webservice import AciWebservice
from azureml.pipeline.core import Pipeline, PipelineData, PipelineParameter, PublishedPipeline
from azureml.pipeline.steps import PythonScriptStep

facts = {}
names = ['AZUREML_SERVICE_PRINCIPAL_' + name for name in ('TENANT_ID', 'ID', 'PASSWORD')]
where = {'subscription_id': os.environ['SUBSCRIPTION_ID'], 'resource_group': 'group'}
login = ServicePrincipalAuthentication(*[os.environ[name] for name in names])


def refused(call):
    try:
        call()
    except BaseException as error:
        return '%s: %s' % (type(error).__name__, error)


wrong = ServicePrincipalAuthentication(os.environ[names[0]], os.environ[names[1]], 'wrong')
facts['wrong secret'] = refused(lambda: Workspace.get('space', auth=wrong, **where))
facts['no workspace'] = refused(lambda: Workspace.get('space', auth=login, **where))
space = Workspace.create('space', auth=login, location='westeurope', create_resource_group=True,
                         show_output=False, **where)
space = Workspace.get('space', auth=login, **where)
cluster = ComputeTarget.create(space, 'cpu', AmlCompute.provisioning_configuration(
    vm_size='STANDARD_D2DS_V5', min_nodes=0, max_nodes=1))
cluster.wait_for_completion(show_output=False)
facts['computes'] = {key: value.provisioning_state for key, value in space.compute_targets.items()}
facts['no compute'] = refused(lambda: ComputeTarget(space, 'gpu'))
facts['environment'] = Environment('training').register(space).version

store = space.get_default_datastore()
with open('table.csv', 'w') as file:
    file.write('a,b\n1,2\n')
store.upload_files(['table.csv'], target_path='data', show_progress=False)
for _ in range(2):
    Dataset.File.from_files([(store, 'data/table.csv')], validate=False).register(
        space, 'drivers', create_new_version=True)
data = Dataset.get_by_name(space, 'drivers')
facts['dataset'] = [data.version, [open(path).read() for path in data.download('here')]]

configuration = RunConfiguration()
configuration.environment = Environment.get(space, 'training')
output = PipelineData('model', datastore=store)
steps = [
    PythonScriptStep('make.py', name='make', source_directory='source', compute_target=cluster,
                     runconfig=configuration, outputs=[output], allow_reuse=False,
                     arguments=['--out', output, '--text', PipelineParameter('text', 'none')]),
    PythonScriptStep('keep.py', name='keep', source_directory='source', compute_target=cluster,
                     runconfig=configuration, inputs=[output], allow_reuse=False,
                     arguments=['--model', output])]
pipeline = Pipeline(space, steps)
published = pipeline.publish(name='P', description='d', version='7')
facts['published'] = [[one.name, one.version] for one in PublishedPipeline.list(space)]
published = PublishedPipeline.get(space, published.id)
run = Experiment(space, 'experiment').submit(
    published, tags={'BuildId': '7'}, pipeline_parameters={'text': 'hello'})
facts['status'] = run.wait_for_completion(show_output=False)
facts['steps'] = {step.name: step.get_status() for step in run.get_steps()}
facts['tags'], facts['metrics'] = run.get_tags(), run.get_metrics()
keep, = run.find_step_run('keep')
facts['logs'] = sorted(keep.get_details()['logFiles'])
facts['files'] = keep.get_file_names()
find = Experiment(space, 'experiment').get_runs
facts['found'] = [len(list(find(tags={'BuildId': build}))) for build in '78']
make, = run.find_step_run('make')
facts['output'] = make.get_output_data('model').download('downloaded')

model = Model(space, 'm')
facts['model'] = [model.id, dict(model.tags), model.properties, model.run_id == keep.id]
facts['listed'] = [[one.id for one in Model.list(space, name='m', tags=[['BuildId', build]])]
                   for build in '78']
facts['model file'] = open(model.download('model')).read()
facts['no model'] = refused(lambda: Model(space, 'm', version=2))
model.add_tags({'more': 'yes'})
facts['tagged'] = Model(space, id=model.id).tags
with_data = Model.register(space, 'table.csv', 'with_data', datasets=[('training', data)])
facts['datasets'] = {key: [one.name for one in value] for key, value in Model(
    space, id=with_data.id).datasets.items()}

if sys.argv[1] == 'serve':
    service = Model.deploy(space, 'aci', [model], InferenceConfig(
        entry_script='score.py', source_directory='source', environment=Environment('scoring')),
        AciWebservice.deploy_configuration(
            cpu_cores=1, memory_gb=1, auth_enabled=True, enable_app_insights=True,
            tags={'model': model.id}), overwrite=True)
    facts['before'] = [service.state, service.scoring_uri]
    service.wait_for_deployment()
    facts['service'] = [service.state, service.run('[1]'), len(set(service.get_keys()))]
    facts['log'] = service.get_logs()
    service.update(tags={'a': 'b'})
    service = Webservice(space, 'aci')
    facts['updated'] = [service.tags, service.compute_type, [one.id for one in service.models],
                        service.container_resource_requirements.cpu]
    facts['services'] = [one.name for one in Webservice.list(space)]
    service.delete()
    facts['no service'] = refused(lambda: Webservice(space, 'aci'))
print(json.dumps(facts), file=real_output, flush=True)

import msrest
import azureml._base_sdk_common.workspace.models as workspace_models
import azureml._restclient.models as rest_models
import azureml.pipeline.core._restclients.aeva.models as aeva_models
CLASSES = {key: {name: one for name, one in vars(module).items() if isinstance(one, type)}
           for key, module in (('r', rest_models), ('a', aeva_models), ('w', workspace_models))}
PARSERS = {key: msrest.Deserializer(classes) for key, classes in CLASSES.items()}


def unknown(name, value, classes, path):
    """Keys of the value that the model, and the models within it, do not have."""
    if name[0] == '[':
        return [key for one in value or []
                for key in unknown(name[1:-1], one, classes, path + '[]')]
    if name[0] == '{':
        return [key for one in (value or {}).values()
                for key in unknown(name[1:-1], one, classes, path + '{}')]
    found = []
    known = {attribute['key'].replace('\\.', '.').lower(): attribute['type']
             for attribute in getattr(classes.get(name), '_attribute_map', {}).values()}
    nested = {key.split('.')[0] for key in known if '.' in key}
    if isinstance(value, dict) and known and '' not in known:
        for key, inner in value.items():
            if key.lower() in known:
                found += unknown(known[key.lower()], inner, classes, path + '.' + key)
            elif key.lower() not in nested:
                found.append(path + '.' + key)
    return found


def check(name, value):
    """What is wrong with a value, according to the model of that name."""
    brackets, plain = name[0] if name[0] in '[{' else '', name.strip('[]{}')
    classes, parser, plain = CLASSES[plain[0]], PARSERS[plain[0]], plain[2:]
    if plain not in classes:
        return ['there is no model ' + name]
    values = list(value.values()) if brackets == '{' else value if brackets else [value]
    wrong = []
    for one in values:
        try:
            wrong += [str(error) for error in parser(plain, one).validate()]
        except Exception as error:
            wrong.append('%s: %s' % (type(error).__name__, error))
        wrong += unknown(plain, one, classes, '')
    return wrong


contract, exchanges = json.loads(sys.stdin.readline())
found, used = set(), set()
for method, path, status, sent, answered in exchanges:
    short = re.sub(r'/?subscriptions/.*?/workspaces/[^/]+', '', path.lstrip('/'), flags=re.I)
    row = next((row for row in contract if re.fullmatch(row[0], method)
                and re.fullmatch(row[1], short.rstrip('/'), re.I)), None)
    if row is None:
        found.add('%s %s is in no row of the contract' % (method, short))
        continue
    used.add(row[1])
    for name, value in ((row[2], sent), (row[3], answered if status < 300 else None)):
        if name and value:
            found.update('%s %s: %s: %s' % (method, row[1], name, wrong)
                         for wrong in check(name, value))
print(json.dumps([sorted(found), len(used), len(exchanges)]), file=real_output, flush=True)
'''
SOURCE = {
    'make.py': '''
import os, sys
out, text = sys.argv[2], sys.argv[4]
os.makedirs(out)
with open(os.path.join(out, 'model.txt'), 'w') as file:
    file.write(text)
''',
    'keep.py': '''
import os, sys
from azureml.core import Run
run = Run.get_context(allow_offline=False)
run.log('auc', 0.6)
run.parent.log('auc', 0.7)
run.parent.flush()
run.parent.tag('who', run.parent.id)
run.upload_file('models/model.txt', os.path.join(sys.argv[2], 'model.txt'))
with open('outputs/registration.json', 'w') as file:
    file.write('{}')
model = run.register_model('m', 'models/model.txt', properties={'a': 'b'},
                           tags={'BuildId': run.parent.get_tags()['BuildId']})
print('registered', model.id)
''',
    'score.py': '''
import json, os
def init():
    global text
    folder = os.environ['AZUREML_MODEL_DIR']
    with open(os.path.join(folder, os.listdir(folder)[0])) as file:
        text = file.read()
    print('init with', text, folder)
def run(data):
    return {'model': text, 'given': json.loads(data)}
'''}


def drive(folder, how):
    """Let the SDK use the stand-in: (what it saw, verdict on the contract, what was unknown)."""
    (folder / 'source').mkdir()
    for name, text in SOURCE.items():
        (folder / 'source' / name).write_text(text)
    with loopback.start(str(folder / 'state')) as azure:
        driver = subprocess.Popen(
            [sys.executable, '-c', DRIVER, how], cwd=str(folder), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, **azure.env))
        try:
            facts = driver.stdout.readline().decode()
            exchanges = [(method, path, status, json.loads(sent.decode()) if sent else None, answer)
                         for method, path, status, sent, answer in azure.exchanges]
            verdict, errors = driver.communicate(
                json.dumps([CONTRACT, exchanges]).encode() + b'\n', timeout=120)
        finally:
            driver.kill()
            driver.wait()
        assert driver.returncode == 0, errors.decode()[-3000:]
        return json.loads(facts), json.loads(verdict.decode()), list(azure.unknown)


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    return drive(tmp_path_factory.mktemp('sdk'), 'train')


def check_contract(verdict, unknown, rows):
    problems = [problem for problem in verdict[0] if not re.search(EXCUSED, problem)]
    assert not problems, '\n'.join(problems)
    assert verdict[1] >= rows and verdict[2] > 100
    assert unknown == []


def test_requests_and_answers_fit_the_models_of_the_sdk(seen):
    check_contract(seen[1], seen[2], rows=35)


def test_workspace_and_data(seen):
    facts = seen[0]
    assert 'AADSTS7000215' in facts['wrong secret']
    assert 'Workspace not found' in facts['no workspace']
    assert facts['computes'] == {'cpu': 'Succeeded'}
    assert 'ComputeTargetNotFound' in facts['no compute']
    assert facts['environment'] == '1'
    assert facts['dataset'] == [2, ['a,b\n1,2\n']]


def test_pipelines(seen):
    facts = seen[0]
    assert facts['published'] == [['P', '7']]
    assert facts['status'] == 'Finished'
    assert facts['steps'] == {'make': 'Finished', 'keep': 'Finished'}
    assert facts['metrics'] == {'auc': 0.7}
    assert sorted(facts['tags']) == ['BuildId', 'who']
    assert 'user_logs/std_log.txt' in facts['logs']
    assert {'models/model.txt', 'outputs/registration.json'} <= set(facts['files'])
    assert facts['found'] == [1, 0] and facts['output'] == 1


def test_models(seen):
    facts = seen[0]
    assert facts['model'] == ['m:1', {'BuildId': '7'}, {'a': 'b'}, True]
    assert facts['listed'] == [['m:1'], []] and facts['model file'] == 'hello'
    assert 'ModelNotFound' in facts['no model']
    assert facts['tagged'] == {'BuildId': '7', 'more': 'yes'}
    assert facts['datasets'] == {'training': ['drivers']}


@pytest.mark.end_to_end
def test_services(tmp_path):
    pytest.importorskip('azureml_inference_server_http')
    facts, verdict, unknown = drive(tmp_path, 'serve')
    check_contract(verdict, unknown, rows=40)
    assert facts['before'] == ['Transitioning', None]
    assert facts['service'] == ['Healthy', {'model': 'hello', 'given': [1]}, 2]
    assert 'init with hello' in facts['log'] and 'azureml-models/m/1' in facts['log']
    assert facts['updated'] == [{'a': 'b'}, 'ACI', ['m:1'], 1.0] and facts['services'] == ['aci']
    assert 'WebserviceNotFound' in facts['no service']
