"""Registering in a folder: versions that are whole, distinct and never doubled."""
import concurrent.futures
import contextlib
import json
import shutil
from pathlib import Path

import pytest

import register
import tracking

NAME = 'safe_driver_model'


def make_model(folder, text='tree', data='data'):
    """A model folder and its decision beside it: to be registered."""
    folder.mkdir(parents=True)
    (folder / 'model.txt').write_text(text)
    (folder / 'report.html').write_text('<html>' + text)
    (folder / 'metrics.json').write_text(json.dumps({
        'model_sha256': tracking.sha256(folder / 'model.txt'),
        'auc': 0.63, 'gini': 0.26, 'auc_interval': [0.6, 0.66], 'lineage': {
            'data': 'table.csv', 'data_sha256': data, 'dataset_version': 4, 'code_commit': 'abc',
            'build_uri': None, 'packages': {'python': '3.11', 'lightgbm': '4.6.0'}}}))
    decide(folder)
    return folder


def decide(folder, **changes):
    decision = dict({'register': True, 'reason': 'It is better.', 'champion_version': None,
                     'model': NAME, 'model_sha256': tracking.sha256(str(folder / 'model.txt'))},
                    **changes)
    (folder.parent / (folder.name + '.json')).write_text(json.dumps(decision))


def command(folder, out=None, build=''):
    parent = folder.parent
    return ['--model', str(folder), '--decision', str(parent / (folder.name + '.json')),
            '--model-name', NAME, '--registry', str(parent / 'registry'), '--build-id', build,
            '--out', str(out or parent / 'registration.json')]


def registered(folder, build=''):
    """Register, and return registration.json."""
    assert register.main(command(folder, build=build)) == 0
    return json.loads((folder.parent / 'registration.json').read_text())


def files(folder):
    return {path.name: path.read_bytes() for path in Path(str(folder)).iterdir()}


def test_a_version_holds_the_model_and_what_is_known_about_it(tmp_path):
    model = make_model(tmp_path / 'model')
    (model / '.model.txt.123').write_text('unfinished')
    assert registered(model, '77') == {
        'result': 'registered', 'reason': 'It is better.', 'model': NAME, 'version': 1,
        'run_id': None}
    version = tmp_path / 'registry' / NAME / '1'
    (model / '.model.txt.123').unlink()
    assert files(version / 'model') == files(model)
    tags = json.loads((version / 'tags.json').read_text())
    assert tags == {'auc': '0.63', 'gini': '0.26', 'data': 'table.csv', 'data_sha256': 'data',
                    'dataset_version': '4', 'code_commit': 'abc', 'BuildId': '77',
                    'model_sha256': tracking.sha256(str(model / 'model.txt')),
                    'packages': 'lightgbm 4.6.0, python 3.11'}
    assert sorted(path.name for path in version.parent.iterdir()) == ['.lock', '1']


def test_a_build_has_one_version(tmp_path):
    first = make_model(tmp_path / 'first')
    second = make_model(tmp_path / 'second', 'another tree')
    assert registered(first, '1')['version'] == 1
    assert registered(second, '2')['version'] == 2
    again = registered(first, '1')
    assert again['version'] == 1 and 'already' in again['reason']
    changed = registered(second, '1')
    assert changed['version'] == 1 and 'another' in changed['reason']
    assert registered(second, '3')['version'] == 3


def test_without_a_build_the_newest_with_the_same_bytes_is_the_same_version(tmp_path):
    first, second = make_model(tmp_path / 'first'), make_model(tmp_path / 'second', 'another tree')
    other_data = make_model(tmp_path / 'other', 'another tree', 'more data')
    models = (first, first, second, second, other_data, first)
    assert [registered(model)['version'] for model in models] == [1, 1, 2, 2, 3, 4]
    version, folder, _ = tracking.Folder(str(tmp_path / 'registry')).champion(NAME)
    assert version == 4 and files(folder) == files(first)


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_registration_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    model, home = make_model(tmp_path / 'model'), tmp_path / 'registry' / NAME
    registered(model, '1')

    def fail(*_):
        raise error

    monkeypatch.setattr(tracking, 'flush', fail)
    with contextlib.suppress(KeyboardInterrupt):
        assert register.main(command(model, build='2')) == 1
    assert sorted(path.name for path in home.iterdir()) == ['.lock', '1']


@pytest.mark.parametrize('file, text, words', [
    ('model/model.txt', 'another tree', ['model.txt is not the model', 'train again']),
    ('model/metrics.json', '{"auc": 0.6}', ['model.txt is not the model', 'train again']),
    ('model.json', '{"register": true}', ['another model', 'evaluate again']),
    ('model.json', '{"register": tr', ['model.json', 'cannot be read']),
    ('model/metrics.json', '{"auc": 0.6', ['metrics.json', 'cannot be read']),
    ('model/model.txt', None, ['model.txt']),
    (None, None, ['another model', 'model other', NAME])])
def test_what_does_not_belong_together_is_refused(tmp_path, capsys, file, text, words):
    model = make_model(tmp_path / 'model')
    (tmp_path / 'registration.json').write_text('an earlier result')
    if file is None:
        decide(model, model='other')
    elif text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    assert register.main(command(model)) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and all(word in error for word in words)
    assert not (tmp_path / 'registry').exists()
    assert (tmp_path / 'registration.json').read_text() == 'an earlier result'


@pytest.mark.parametrize('name', ['../up', '', 'a/b', '.hidden'])
def test_a_name_stays_within_the_registry(tmp_path, name):
    with pytest.raises(tracking.TrackingError, match='named'):
        tracking.Folder(str(tmp_path / 'registry')).champion(name)


def test_the_newest_is_the_highest_whole_version(tmp_path):
    for text in ('one', 'two', 'three', 'four'):
        registered(make_model(tmp_path / text, text))
    home = tmp_path / 'registry' / NAME
    (home / '4' / 'tags.json').unlink()
    shutil.rmtree(str(home / '1'))
    parent = tracking.Folder(str(tmp_path / 'registry'))
    assert parent.champion(NAME)[0] == 3
    assert registered(make_model(tmp_path / 'five', 'five'))['version'] == 5
    (home / '5' / 'tags.json').write_text('{"auc":')
    with pytest.raises(tracking.TrackingError, match='5.tags.json cannot be read'):
        parent.champion(NAME)
    assert registered(make_model(tmp_path / 'six', 'six'))['version'] == 6
    assert parent.champion(NAME)[0] == 6


def test_eight_at_once_get_a_version_for_each_build(tmp_path):
    commands = [command(make_model(tmp_path / str(number), f'tree {number}'),
                        tmp_path / f'result{number}.json', build)
                for number, build in enumerate('01234500')]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(register.main, commands)) == [0] * 8
    versions = [json.loads((tmp_path / f'result{number}.json').read_text())['version']
                for number in range(8)]
    assert sorted(versions[:6]) == [1, 2, 3, 4, 5, 6]
    assert versions[0] == versions[6] == versions[7]


def test_a_decision_may_lie_in_a_folder(tmp_path):
    model = make_model(tmp_path / 'model')
    (tmp_path / 'decision').mkdir()
    (tmp_path / 'model.json').rename(tmp_path / 'decision' / 'decision.json')
    assert register.main(command(model) + ['--decision', str(tmp_path / 'decision')]) == 0
    assert (tmp_path / 'registry' / NAME / '1').exists()
