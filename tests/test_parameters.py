"""Files of parameters: what they may hold, and how everything else is refused."""
import json

import pytest

from conftest import CHALLENGE, DEFAULT
from parameters import LIGHTGBM, ParametersError, load_parameters


@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_own_files_of_parameters_are_good_as_editors_of_windows_write_them(
        path, encoding, tmp_path):
    (tmp_path / 'p.json').write_text(path.read_text(), encoding)
    assert load_parameters(str(tmp_path / 'p.json')) == json.loads(path.read_text())


def test_the_challenges_parameters_are_the_challenges():
    assert json.loads(CHALLENGE.read_text())['training'] == {
        'learning_rate': 0.02, 'boosting_type': 'gbdt', 'objective': 'binary', 'metric': 'auc',
        'sub_feature': 0.7, 'num_leaves': 60, 'min_data': 100, 'min_hessian': 1, 'verbose': 0}


def test_all_problems_are_listed_at_once(parameters):
    path = parameters({'lerning_rate': 0.1, 'num_leaves': 'many', 'num_threads': 2},
                      rounds=0, non_claims_kept='some', ronds=5)
    with pytest.raises(ParametersError) as error:
        load_parameters(path)
    text = str(error.value)
    for part in ('training.lerning_rate is unknown; is learning_rate meant?',
                 'training.num_leaves is "many"; it must be a number',
                 'training.num_threads is 2; it must be left out: set OMP_NUM_THREADS',
                 'rounds is 0', 'non_claims_kept is "some"', 'ronds is unknown; is rounds meant?'):
        assert part in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize('changes, message', [
    ({'training': {'min_data': 5}}, 'training.min_data_in_leaf and training.min_data are the same'),
    ({'training': {'subsample': 0.5}}, 'subsample does nothing without training.bagging_freq'),
    ({'training': {'bagging_fraction': 0.5, 'bagging_freq': 0}}, 'set that to 1 or more'),
    ({'training': {'bagging_fraction': 0.5, 'bagging_freq': -1}}, 'set that to 1 or more'),
    ({'training': {'extra_trees': 1}}, 'it must be true or false'),
    ({'training': {'learning_rate': True}}, 'learning_rate is true'),
    ({'training': {'min_child_samples': 0}}, 'it must be a whole number from 1'),
    ({'training': {'metric': 'aucc'}}, 'one of auc, binary_logloss'),
    ({'training': {'is_unbalance': True}}, 'it makes the probabilities wrong'),
    ({'rounds': 5.0}, 'rounds is 5.0'), ({'seed': -1}, 'seed is -1'),
    ({'non_claims_kept': 0}, 'a number above 0 and at most 1'),
    ({'dropped_columns': ['ps_clac_*']}, 'no feature is called ps_clac_*'),
    ({'dropped_columns': ['*']}, 'no feature is left'),
    ({'dropped_columns': 'ps_calc_01'}, 'a list of column names'),
    ({'card': {'intended_us': 'x'}}, 'card.intended_us is unknown; is intended_use meant?'),
    ({'card': {'limits': 'none'}}, 'card.limits is "none"; it must be a list of texts'),
    ({'card': {'segments': ['ps_ind_99_bin']}}, 'card.segments: no feature is called ps_ind_99'),
    ({'evaluation': {'metric': 'auc', 'direction': 'up', 'least_gain': 0}}, 'direction is "up"'),
    ({'evaluation': {'metric': 'auc', 'direction': 'maximize'}}, 'least_gain is missing'),
    ({'evaluation': {'metric': 'brier', 'direction': 'maximize', 'least_gain': 0}},
     'set minimize'),
    ({'evaluation': []}, 'it must be a JSON object')])
def test_bad_values_are_refused(parameters, changes, message):
    with pytest.raises(ParametersError) as error:
        load_parameters(parameters(**changes))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize('text, message', [
    ('{', 'cannot be read'), ('[' * 100000, 'cannot be read'), ('[]', 'must be a JSON object'),
    ('{"seed": 1, "seed": 2}', 'seed is there twice'), ('{}', 'training is missing')],
    ids=range(5))
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / 'p.json').write_text(text)
    with pytest.raises(ParametersError, match=message):
        load_parameters(str(tmp_path / 'p.json'))
    with pytest.raises(ParametersError, match='cannot be read'):
        load_parameters(str(tmp_path / 'missing.json'))


@pytest.mark.parametrize('training', [
    {'bagging_fraction': 1}, {'bagging_freq': 5}, {'subsample': 0.5, 'subsample_freq': 1}])
def test_bagging_that_does_what_it_says_is_good(parameters, training):
    assert load_parameters(parameters(training))['training'].items() >= training.items()


def test_names_are_lightgbms_own():
    lightgbm = pytest.importorskip('lightgbm')
    if not hasattr(lightgbm.basic._ConfigAliases, '_get_all_param_aliases'):
        pytest.skip('this LightGBM does not list its parameters')
    known = lightgbm.basic._ConfigAliases._get_all_param_aliases()
    for name, others in LIGHTGBM.items():
        assert set(others) <= set(known[name])
