"""What is served is whole, the model that was registered, and of the table's columns."""
import hashlib
import json
import re

import pytest

import booster
import serve
from served import NAME, register


def first(pattern, text):
    """A function that replaces what the pattern finds first in a model."""
    return lambda model: re.sub(pattern, text, model, 1, re.M)


@pytest.fixture
def version(tmp_path):
    """A registered version of which neither tags nor metrics.json know the SHA-256."""
    register(tmp_path, 1)
    for file in ('tags.json', 'model/metrics.json'):
        (tmp_path / NAME / '1' / file).write_text('{}')
    return tmp_path / NAME / '1'


DAMAGES = {
    'nothing': lambda model: '', 'other text': lambda model: 'hello',
    'CRLF': lambda model: model.replace('\n', '\r\n'),
    'half': lambda model: model[:len(model) // 2],
    'no end': lambda model: model.partition('end of parameters')[0],
    '4 KB missing': lambda model: model[:5000] + model[9096:],
    'a block twice': lambda model: model[:7000] + model[6000:],
    'another objective': first('objective=binary', 'objective=regression'),
    'another order': first('ps_ind_01 ps_ind_02_cat', 'ps_ind_02_cat ps_ind_01'),
    'another column': first('ps_car_13', 'ps_car_99'),
    'a column more': lambda model: re.sub('(feature_(names|infos)=)', '\\1none ', model).replace(
        'feature_idx=56', 'feature_idx=57')}


@pytest.mark.parametrize('name', DAMAGES)
def test_what_is_not_whole_or_has_other_columns_never_gets_to_lightgbm(version, name):
    path = version / 'model' / 'model.txt'
    path.write_bytes(DAMAGES[name](path.read_text()).encode())
    with pytest.raises(booster.ModelError, match='txt (is damaged|has (other|the obj))'):
        booster.Booster(path)


def test_no_line_of_a_tree_can_be_missing_nor_be_there_twice(version):
    path = version / 'model' / 'model.txt'
    model = path.read_text()
    start = model.index('Tree=19')
    for line in re.findall('.+\n', model[start:model.index('shrinkage', start)]):
        for text in ('', line * 2):
            path.write_text(model[:start] + model[start:].replace(line, text, 1))
            with pytest.raises(booster.ModelError, match='damaged'):
                booster.Booster(path)


@pytest.mark.parametrize('change', [
    first('^left_child=1 ', 'left_child=0 '), first('^leaf_value=(-?)[0-9]', 'leaf_value=\\g<1>x'),
    lambda model: model[:5000] + '\0' * 4096 + model[9096:]], ids=['circle', 'letter', 'zeros'])
def test_what_ends_lightgbm_is_a_sentence(version, change):
    path = version / 'model' / 'model.txt'
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match='version 1 cannot be loaded: it is damaged; put the'):
        serve.newest_version(version.parent.parent, NAME)


def test_a_changed_model_is_refused_by_what_registration_or_training_wrote(version, capsys):
    path = version / 'model' / 'model.txt'
    digest = json.dumps({'model_sha256': hashlib.sha256(path.read_bytes()).hexdigest()})
    assert serve.newest_version(version.parent.parent, NAME) == version
    assert re.fullmatch('.* has no tag model_sha256: .*\n', capsys.readouterr().out)
    path.write_text(first('^leaf_value=(-?)[0-9]', 'leaf_value=\\g<1>7')(path.read_text()))
    for file in ('tags.json', 'model/metrics.json'):
        (version / file).write_text(digest)
        with pytest.raises(ValueError, match='version 1 was changed or damaged: .*; put the file'):
            serve.newest_version(version.parent.parent, NAME)
        (version / file).write_text('{}')
    path.with_name('metrics.json').write_text(digest)
    with pytest.raises(booster.ModelError, match='SHA-256'):
        booster.Booster(path)
