"""Tables, figures and models, in folders and in a run of (loopback) Azure ML."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tracking

TRAINING = Path(tracking.__file__).parent
TABLE = 'id,target\n1,0\n2,1\n'

# Makes a workspace with a table, runs the probe as a pipeline for each build, and writes down what
# is then to be seen.
CLIENT = '''
import json, os, sys
from azureml.core import Dataset, Experiment, Model, Workspace
from azureml.core.authentication import ServicePrincipalAuthentication
from azureml.core.runconfig import RunConfiguration
from azureml.pipeline.core import Pipeline
from azureml.pipeline.steps import PythonScriptStep

source, table, *builds = sys.argv[1:]
login = ServicePrincipalAuthentication(
    os.environ['AZUREML_SERVICE_PRINCIPAL_TENANT_ID'], os.environ['AZUREML_SERVICE_PRINCIPAL_ID'],
    os.environ['AZUREML_SERVICE_PRINCIPAL_PASSWORD'])
space = Workspace.get('tracking', login, os.environ['SUBSCRIPTION_ID'], 'group')
store = space.get_default_datastore()
for version in range(2):
    store.upload_files([table], target_path='tables', overwrite=True, show_progress=False)
    Dataset.File.from_files([(store, 'tables/table.csv')], validate=False).register(
        space, 'drivers', create_new_version=True, description=str(version))
Dataset.Tabular.from_delimited_files([(store, 'tables/table.csv')]).register(space, 'tabular')
cluster = space.compute_targets['train-cluster']
seen = []
for build in builds:
    step = PythonScriptStep('probe.py', name='probe', source_directory=source, arguments=[build],
                            compute_target=cluster, runconfig=RunConfiguration(), allow_reuse=False)
    run = Experiment(space, 'experiment').submit(Pipeline(space, [step]))
    run.wait_for_completion(show_output=False, timeout_seconds=120)
    probe, = run.get_steps()
    probe.download_file('outputs/seen.json', 'seen.json')
    seen.append({
        'run': run.id, 'files': probe.get_file_names(), 'metrics': run.get_metrics(),
        'step_metrics': probe.get_metrics(),
        'step': probe.id, 'seen': json.load(open('seen.json')), 'models': [
            {'version': model.version, 'tags': model.tags, 'run': model.run_id,
             'datasets': {key: [(one.name, one.version) for one in value]
                          for key, value in model.datasets.items()}}
            for model in Model.list(space, 'model')]})
json.dump(seen, open('client.json', 'w'))
'''

# The step: uses all of tracking.py and writes down what came of it.
PROBE = '''
import json, os, sys
import tracking
tracking.SECONDS_AFTER_COLLISION = (0, 0, None)
tracker = tracking.connect()
path, source = tracker.fetch_table(dataset_name='drivers', dataset_version='latest')
seen = {'table': [open(path).read(), source]}
path, source = tracker.fetch_table(data_file_path='tables/table.csv')
seen['file'] = [open(path).read(), source]
path, source = tracker.fetch_table(dataset_name='tabular')
seen['tabular'] = [open(path).read(), source]
try:
    tracker.fetch_table(dataset_name='missing', dataset_version='3')
except tracking.TrackingError as error:
    seen['missing'] = str(error)
seen['champion before'] = tracker.champion('model')
os.mkdir('model')
for name in ('model.txt', 'metrics.json', '.unfinished'):
    with open('model/' + name, 'w') as file:
        file.write(name + sys.argv[1])
tags = {'BuildId': sys.argv[1], 'model_sha256': sys.argv[1], 'data_sha256': '0',
        'dataset_name': 'drivers', 'dataset_version': '1'}
seen['registered'] = [tracker.register('model', 'model', tags)[0] for _ in range(2)]
version, folder, tags = tracker.champion('model')
seen['champion'] = [version, {name: open(os.path.join(folder, name)).read()
                              for name in os.listdir(folder)}, tags['BuildId']]
tracker.store('outputs/registration.json', {'version': version})
tracker.store('outputs/registration.json', {'version': version})
with open('outputs/seen.json', 'w') as file:
    json.dump(seen, file)
tracker.log({'auc': 0.625, 'rule': 'text', 'better': True})
'''


def run_in_azure(tmp_path, builds, faults):
    """Run the probe in loopback Azure ML for each build; returns what was seen, in order."""
    pytest.importorskip('azureml.core')
    pytest.importorskip('trustme')
    import loopback
    source = tmp_path / 'source'
    source.mkdir()
    shutil.copy(str(TRAINING / 'tracking.py'), str(source))
    (source / 'probe.py').write_text(PROBE)
    (tmp_path / 'table.csv').write_text(TABLE)
    with loopback.start(str(tmp_path / 'azure')) as azure:
        for fault in faults:
            azure.faults.add(**fault)
        client = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', CLIENT, str(source),
             str(tmp_path / 'table.csv')] + builds, cwd=str(tmp_path), timeout=240,
            env=dict(os.environ, **azure.env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert client.returncode == 0, client.stdout.decode()[-3000:]
        assert not azure.unknown
        assert set(azure.faults.struck) == {fault['fault'] for fault in faults}
    return json.loads((tmp_path / 'client.json').read_text())


@pytest.mark.end_to_end
def test_runs_of_azure_ml(tmp_path):
    """7 collides twice; of 8 and 9 the answer is lost, of 9 for good; and 7 runs again."""
    registration = r'POST .*/modelmanagement/.*/models$'
    seen = run_in_azure(tmp_path, ['7', '8', '9', '7'], [
        {'fault': 'registration-collides', 'count': 2},
        {'fault': 'reset', 'after': True, 'skip': 3, 'path': registration},
        {'fault': 'server-error', 'after': True, 'skip': 4, 'count': None, 'path': registration}])
    assert [one['seen']['registered'] for one in seen] == [[1, 1], [2, 2], [3, 3], [1, 1]]
    assert [one['seen']['champion'][::2] for one in seen] == [
        [1, '7'], [2, '8'], [3, '9'], [3, '9']]
    assert [model['version'] for model in seen[-1]['models']] == [3, 2, 1]
    first, probe = seen[0], seen[0]['seen']
    assert [probe[name] for name in ('table', 'file', 'tabular')] == [
        [TABLE, {'data': data, 'dataset_name': name, 'dataset_version': version}]
        for data, name, version in (('table.csv', 'drivers', 2), ('tables/table.csv', None, None),
                                    ('tabular.csv', 'tabular', 1))]
    assert 'version 3 of dataset missing' in probe['missing']
    assert first['metrics'] == first['step_metrics'] == {'auc': 0.625}
    assert probe['champion before'] is None
    assert probe['champion'][1] == {'model.txt': 'model.txt7', 'metrics.json': 'metrics.json7'}
    assert 'outputs/registration.json' in first['files']
    model, = first['models']
    assert model['run'] == first['step'] and list(model['datasets']) == ['training']
    assert model['tags'] == {
        'BuildId': '7', 'model_sha256': '7', 'data_sha256': '0', 'dataset_name': 'drivers',
        'dataset_version': '1', 'run_id': first['run'], 'experiment_name': 'experiment'}


def test_a_table_on_this_machine_is_used_as_it_is(tmp_path):
    path, source = tracking.Folder().fetch_table(data=str(tmp_path / 'table.csv'))
    assert path == str(tmp_path / 'table.csv')
    assert source == {'data': 'table.csv', 'dataset_name': None, 'dataset_version': None}
    with pytest.raises(tracking.TrackingError, match='--data'):
        tracking.Folder().fetch_table()
    with pytest.raises(tracking.TrackingError, match='--registry'):
        tracking.Folder().champion('model')


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / 'decision.json'
    tracking.write_json(str(path), {'register': True})
    with pytest.raises(TypeError):
        tracking.write_json(str(path), {'register': object()})
    assert tracking.read_json(str(path)) == {'register': True}
    assert [entry.name for entry in tmp_path.iterdir()] == ['decision.json']


@pytest.mark.parametrize('name', ['²', '٣', '007', '0', '-1', '+3', '1.5', '4 ', '4\n', 'v5', '.6'])
def test_a_version_is_a_plain_number_with_tags(tmp_path, name):
    for folder in ('2', '10', name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'tags.json').write_text('{}')
    (tmp_path / '11').mkdir()
    (tmp_path / '12').write_text('a file')
    assert tracking.whole_versions(tmp_path) == [2, 10]
    assert tracking.whole_versions(tmp_path / 'missing') == []


@pytest.mark.parametrize('text', ['', '{"register": tr', '[1]', 'null'])
def test_json_that_is_not_whole_is_refused_by_name(tmp_path, text):
    (tmp_path / 'decision.json').write_text(text)
    with pytest.raises(tracking.TrackingError, match='decision.json cannot be read'):
        tracking.read_json(str(tmp_path / 'decision.json'))


def test_none_and_nothing_mean_not_given():
    assert [tracking.given(text) for text in (None, '', 'none', '7')] == [None, None, None, '7']
