"""Tables, figures and models, in folders and in a run of (loopback) Azure ML."""
import concurrent.futures
import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

import azure_ml
import settings
import tracking

TRAINING = Path(tracking.__file__).parent
TABLE = 'id,target\n1,0\n2,1\n'
# By their order, two parts of one name, and what a cluster writes beside them.
PARTS = ('parts/a/1.csv', 'parts/b/1.csv', 'parts/b/2.csv', 'parts/b/_SUCCESS', 'gone/1.csv',
         'gone/2.csv')


def run_in_azure(tmp_path, builds):
    """Run the probe as a pipeline for each build; what was to be seen after each, in order."""
    import workspace
    space = workspace.connect(settings.read(os.environ))
    from azureml.core import Dataset, Experiment, Model
    from azureml.core.runconfig import RunConfiguration
    from azureml.pipeline.core import Pipeline
    from azureml.pipeline.steps import PythonScriptStep
    source, table = tmp_path / 'source', tmp_path / 'table.csv'
    source.mkdir()
    for name in ('tracking.py', 'table.py', 'nodes.py', 'console.py', 'columns.json'):
        shutil.copy(str(TRAINING / name), str(source))
    shutil.copy(str(Path(__file__).with_name('tracking_probe.py')), str(source))
    table.write_text(TABLE)
    store = space.get_default_datastore()
    for version in range(2):
        store.upload_files([str(table)], target_path='tables', overwrite=True, show_progress=False)
        Dataset.File.from_files([(store, 'tables/table.csv')], validate=False).register(
            space, 'drivers', create_new_version=True, description=str(version))
    for name in PARTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + ' ')
    store.upload_files([str(tmp_path / name) for name in PARTS], relative_root=str(tmp_path),
                       show_progress=False)
    Dataset.File.from_files([(store, name) for name in PARTS[2::-1]], validate=False).register(
        space, 'parts')
    Dataset.Tabular.from_delimited_files([(store, 'tables/table.csv')]).register(space, 'tabular')
    seen = []
    for build in builds:
        step = PythonScriptStep(
            'tracking_probe.py', name='probe', source_directory=str(source), arguments=[build],
            compute_target=space.compute_targets['train-cluster'], runconfig=RunConfiguration(),
            allow_reuse=False)
        run = Experiment(space, 'experiment').submit(Pipeline(space, [step]).publish('tracking'))
        run.wait_for_completion(show_output=False)
        probe, = run.get_steps()
        probe.download_file('outputs/seen.json', str(tmp_path / 'seen.json'))
        seen.append({
            'run': run.id, 'files': probe.get_file_names(), 'metrics': run.get_metrics(),
            'step_metrics': probe.get_metrics(), 'step': probe.id,
            'seen': json.loads((tmp_path / 'seen.json').read_text()), 'models': [
                {'version': model.version, 'tags': model.tags, 'run': model.run_id,
                 'datasets': list(model.datasets)} for model in Model.list(space, 'model')]})
    return seen


@pytest.fixture
def azure(tmp_path, monkeypatch):
    """Loopback Azure ML with a workspace, which the environment names."""
    os.environ.update(azure_ml.SDK_BACKOFF)
    pytest.importorskip('azureml.core')
    pytest.importorskip('trustme')
    import loopback
    import workspace
    with loopback.start(str(tmp_path / 'azure')) as azure:
        azure.add_group('group')
        for name, value in dict(azure.env, RESOURCE_GROUP='group', WORKSPACE_NAME='tracking',
                                LOCATION='westeurope').items():
            monkeypatch.setenv(name, value)
        assert workspace.main([]) == 0
        yield azure
        assert azure.unknown == []
    logging.disable(logging.NOTSET)


@pytest.mark.end_to_end
def test_runs_of_azure_ml(azure, tmp_path):
    """7 collides twice; of 8 and 9 the answer is lost, of 9 for good; and 7 runs again."""
    registration = r'POST .*/modelmanagement/.*/models$'
    azure.faults.add('registration-collides', count=2)
    azure.faults.add('reset', after=True, skip=3, path=registration)
    azure.faults.add('server-error', after=True, skip=4, count=None, path=registration)
    azure.faults.add('gone', count=None, path='GET .*/gone/2.csv$')
    # The SDK's engine for data finds only the first stand-in of a process.
    with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context('spawn')) as process:
        seen = process.submit(run_in_azure, tmp_path, ['7', '8', '9', '7']).result()
    assert set(azure.faults.struck) == {'registration-collides', 'reset', 'server-error', 'gone'}
    assert [one['seen']['registered'] for one in seen] == [[1, 1], [2, 2], [3, 3], [1, 1]]
    assert [one['seen']['champion'][::2] for one in seen] == [
        [1, '7'], [2, '8'], [3, '9'], [3, '9']]
    assert [model['version'] for model in seen[-1]['models']] == [3, 2, 1]
    first, probe = seen[0], seen[0]['seen']
    for key, text, data, name, version in (
            ('table', TABLE, 'table.csv', 'drivers', 2),
            ('file', TABLE, 'tables/table.csv', None, None),
            ('tabular', TABLE, 'tabular.csv', 'tabular', 1),
            ('parts', 'parts/a/1.csv parts/b/1.csv parts/b/2.csv ', '3 files', 'parts', 1),
            ('folder', 'parts/b/1.csv parts/b/2.csv ', 'parts/b', None, None),
            ('pattern', 'parts/a/1.csv parts/b/1.csv ', 'parts/*/1.csv', None, None)):
        assert probe[key] == [text, {'data': data, 'dataset_name': name,
                                     'dataset_version': version, 'datastore_name': None}]
    assert 'of the 2 files of gone of the datastore 1 could be fetched' in probe['gone']
    assert 'version 3 of dataset missing' in probe['missing']
    assert first['metrics'] == first['step_metrics'] == {'auc': 0.625}
    assert probe['champion before'] is None
    assert probe['champion'][1] == {'model.txt': 'model.txt7', 'metrics.json': 'metrics.json7'}
    assert {'outputs/registration.json', 'results/first', 'results/second'} <= set(first['files'])
    model, = first['models']
    assert model['run'] == first['step'] and list(model['datasets']) == ['training']
    assert model['tags'] == {
        'BuildId': '7', 'model_sha256': '7', 'data_sha256': '0', 'dataset_name': 'drivers',
        'dataset_version': '1', 'run_id': first['run'], 'experiment_name': 'experiment'}


def test_a_table_on_this_machine_is_used_as_it_is(tmp_path):
    for path in (str(tmp_path / 'parts'), str(tmp_path / 'parts' / '')):
        assert tracking.Folder().fetch_table(data=path) == (path, {
            'data': 'parts', 'dataset_name': None, 'dataset_version': None,
            'datastore_name': None})
    with pytest.raises(tracking.TrackingError, match='--data'):
        tracking.Folder().fetch_table()
    with pytest.raises(tracking.TrackingError, match='--registry'):
        tracking.Folder().champion('model')


def test_the_sum_of_parts_is_that_of_all_their_bytes(tmp_path):
    for name, text in (('1', 'a'), ('2', 'bc'), ('whole', 'abc')):
        (tmp_path / name).write_text(text)
    assert tracking.sha256(tmp_path / '1', tmp_path / '2') == tracking.sha256(tmp_path / 'whole')
    assert tracking.sha256(tmp_path / '2', tmp_path / '1') != tracking.sha256(tmp_path / 'whole')


@pytest.mark.parametrize('name', ['²', '٣', '007', '0', '-1', '+3', '1.5', '4 ', '4\n', 'v5', '.6'])
def test_a_version_is_a_plain_number_with_tags(tmp_path, name):
    for folder in ('2', '10', name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'tags.json').write_text('{}')
    (tmp_path / '11').mkdir()
    (tmp_path / '12').write_text('a file')
    assert tracking.whole_versions(tmp_path) == [2, 10]
    assert tracking.whole_versions(tmp_path / 'missing') == []


@pytest.mark.parametrize('text', ['', '{"register": tr', '[1]', 'null', '[' * 100000],
                         ids=range(5))
def test_json_that_is_not_whole_is_refused_by_name(tmp_path, text):
    (tmp_path / 'decision.json').write_text(text)
    with pytest.raises(tracking.TrackingError, match='decision.json cannot be read'):
        tracking.read_json(str(tmp_path / 'decision.json'))


def test_none_and_nothing_mean_not_given():
    assert [tracking.given(text) for text in (None, '', 'none', '7')] == [None, None, None, '7']
