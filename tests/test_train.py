"""Training: the challenge's contract functions, parameters, and a table that becomes a model."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import lightgbm
import numpy as np
import pandas
import pytest

import metrics
import sample
import table
import tracking
import train
from conftest import ROOT
from parameters import LIGHTGBM, ParametersError, dropped, load_parameters

DEFAULT = ROOT / 'training' / 'parameters.json'
CHALLENGE = ROOT / 'training' / 'parameters_challenge.json'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'table.csv'
    assert sample.main(['--rows', '6000', '--seed', '3', '--out', str(path)]) == 0
    return path


@pytest.fixture
def parameters(tmp_path):
    """A function that writes a file of parameters, the default's with these changed."""
    def write(training=None, path=DEFAULT, **changes):
        content = dict(json.loads(path.read_text()), **changes)
        content['training'].update(training or {})
        file = tmp_path / 'parameters.json'
        file.write_text(json.dumps(content))
        return str(file)
    return write


@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    """The folder that the default parameters make of the table."""
    out = tmp_path_factory.mktemp('model') / 'model'
    assert train.main(['--data', str(data), '--out', str(out), '--build-id', '12',
                       '--caller-run-id', 'none', '--code-commit', 'c0ffee']) == 0
    return out


def fit(frame, path):
    return train.fit(frame, load_parameters(str(path)))


# The contract of the earlier challenges.

def test_split_data_sets_a_fifth_apart():
    frame = pandas.DataFrame({'id': range(5), 'target': [0, 0, 1, 0, 1], 'col1': range(1, 6),
                              'col2': [2, 1, 1, 2, 1]})
    training, validation = train.split_data(frame)
    assert list(training.data.columns) == ['col1', 'col2']
    assert training.data.shape == (4, 2)
    assert validation.data.shape == (1, 2)
    assert not validation.free_raw_data


def test_split_data_keeps_rows_and_targets_together():
    frame = pandas.DataFrame({'id': range(1000), 'target': np.arange(1000) % 7 == 0,
                              'col1': np.arange(1000)})
    parts = train.split_data(frame)
    assert [len(part.data) for part in parts] == [800, 200]
    for part in parts:
        assert ((part.data['col1'] % 7 == 0) == part.label).all()
    rows = np.concatenate([part.data['col1'] for part in parts])
    assert sorted(rows) == list(range(1000))
    assert list(rows) != list(range(1000))


def small_datasets():
    training = lightgbm.Dataset(np.arange(1, 7).reshape(-1, 1), [1, 1, 0, 1, 0, 1])
    validation = lightgbm.Dataset(np.array([[7], [8]]), [0, 1], free_raw_data=False)
    return training, validation


def test_train_model_passes_its_parameters_on():
    given = {'learning_rate': 0.05, 'metric': 'auc', 'min_data': 1}
    model = train.train_model(small_datasets(), given)
    assert {name: model.params[name] for name in given} == given
    assert given == {'learning_rate': 0.05, 'metric': 'auc', 'min_data': 1}


def test_train_model_stops_early():
    random = np.random.RandomState(1)
    label = random.randint(0, 2, 400)
    features = random.normal(size=(400, 2)) + 0.5 * label[:, None]
    training = lightgbm.Dataset(features[:300], label[:300])
    validation = lightgbm.Dataset(features[300:], label[300:], reference=training)
    model = train.train_model((training, validation), {
        'objective': 'binary', 'metric': 'auc', 'verbosity': -1})
    assert 0 < model.best_iteration < 100


def test_get_model_metrics_takes_any_model():
    class Undecided:
        @staticmethod
        def predict(rows):
            return np.zeros(len(rows))

    assert train.get_model_metrics(Undecided(), small_datasets()) == {'auc': 0.5}


def test_contract_functions_work_together(data):
    parts = train.split_data(table.read_table(str(data)))
    model = train.train_model(parts, {'objective': 'binary', 'metric': 'auc', 'verbosity': -1,
                                      'num_leaves': 4, 'min_data': 100})
    assert 0.5 < train.get_model_metrics(model, parts)['auc'] < 0.7


# Parameters.

@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_own_files_of_parameters_are_good(path):
    assert load_parameters(str(path)) == json.loads(path.read_text())


def test_the_challenges_parameters_are_the_challenges():
    assert json.loads(CHALLENGE.read_text())['training'] == {
        'learning_rate': 0.02, 'boosting_type': 'gbdt', 'objective': 'binary', 'metric': 'auc',
        'sub_feature': 0.7, 'num_leaves': 60, 'min_data': 100, 'min_hessian': 1, 'verbose': 0}


def test_all_problems_are_listed_at_once(parameters):
    path = parameters({'lerning_rate': 0.1, 'num_leaves': 15.5, 'num_threads': 2},
                      rounds=0, non_claims_kept='some', ronds=5)
    with pytest.raises(ParametersError) as error:
        load_parameters(path)
    text = str(error.value)
    for part in ('training.lerning_rate is unknown; is learning_rate meant?',
                 'training.num_leaves is 15.5; it must be a whole number from 2',
                 'training.num_threads cannot be set here: set OMP_NUM_THREADS',
                 'rounds is 0', 'non_claims_kept is "some"', 'ronds is unknown; is rounds meant?'):
        assert part in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize('changes, message', [
    ({'training': {'min_data': 5}}, 'training.min_data_in_leaf and training.min_data are the same'),
    ({'training': {'extra_trees': 1}}, 'it must be true or false'),
    ({'training': {'learning_rate': True}}, 'learning_rate is true'),
    ({'training': {'metric': 'aucc'}}, 'one of auc, binary_logloss'),
    ({'training': {'is_unbalance': True}}, 'it makes the probabilities wrong'),
    ({'rounds': 5.0}, 'rounds is 5.0'), ({'seed': -1}, 'seed is -1'),
    ({'non_claims_kept': 0}, 'a number above 0 and at most 1'),
    ({'dropped_columns': ['ps_clac_*']}, 'no feature is called ps_clac_*'),
    ({'dropped_columns': ['*']}, 'no feature is left'),
    ({'dropped_columns': 'ps_calc_01'}, 'a list of column names'),
    ({'evaluation': {'metric': 'auc', 'direction': 'up', 'least_gain': 0}}, 'direction is "up"'),
    ({'evaluation': {'metric': 'auc', 'direction': 'maximize'}}, 'least_gain is missing'),
    ({'evaluation': {'metric': 'brier', 'direction': 'maximize', 'least_gain': 0}},
     'set minimize'),
    ({'evaluation': []}, 'evaluation must be a JSON object')])
def test_bad_values_are_refused(parameters, changes, message):
    with pytest.raises(ParametersError) as error:
        load_parameters(parameters(**changes))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize('text, message', [
    ('{', 'cannot be read'), ('[]', 'must be a JSON object'),
    ('{"seed": 1, "seed": 2}', 'seed is there twice'), ('{}', 'training is missing')])
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / 'p.json').write_text(text)
    with pytest.raises(ParametersError, match=message):
        load_parameters(str(tmp_path / 'p.json'))
    with pytest.raises(ParametersError, match='cannot be read'):
        load_parameters(str(tmp_path / 'missing.json'))


def test_names_are_lightgbms_own():
    if not hasattr(lightgbm.basic._ConfigAliases, '_get_all_param_aliases'):
        pytest.skip('this LightGBM does not list its parameters')
    known = lightgbm.basic._ConfigAliases._get_all_param_aliases()
    for name, (others, _) in LIGHTGBM.items():
        assert set(others) <= set(known[name])


# From a table to a model.

def test_model_takes_the_57_numbers_and_gives_the_reported_figures(model, data):
    booster = lightgbm.Booster(model_file=str(model / 'model.txt'))
    assert booster.feature_name() == table.FEATURES
    frame = pandas.read_csv(str(data))
    rows = frame[table.parts(frame['id'].to_numpy()) == table.HOLD_OUT]
    probability = booster.predict(rows[table.FEATURES].to_numpy())
    result = json.loads((model / 'metrics.json').read_text())
    figures = metrics.summary(rows['target'], probability)
    assert {name: result[name] for name in figures} == pytest.approx(figures, abs=1e-9)
    assert result['auc_interval'][0] < result['auc'] < result['auc_interval'][1]
    assert result['rounds'] == booster.num_trees() > 1
    assert result['rows'] == {'training': 6000 - len(rows), 'early_stopping': 0,
                              'hold_out': len(rows)}
    assert result['claims']['hold_out'] == rows['target'].sum()
    given = json.loads(DEFAULT.read_text())
    # There are too few rows for some, and what was used is told.
    lowered = re.search(r'\[min_data_in_leaf: (\d+)\]', (model / 'model.txt').read_text()).group(1)
    given['training']['min_data_in_leaf'] = int(lowered)
    assert result['parameters'] == given


def test_lineage_says_what_made_the_model(model, data):
    lineage = json.loads((model / 'metrics.json').read_text())['lineage']
    assert lineage['data'] == 'table.csv'
    assert lineage['data_sha256'] == tracking.sha256(str(data))
    assert lineage['data_rows'] == 6000
    assert lineage['build_id'] == '12'
    assert lineage['code_commit'] == 'c0ffee'
    assert lineage['packages']['lightgbm'] == lightgbm.__version__
    for name in ('dataset_name', 'dataset_version', 'build_uri', 'caller_run_id'):
        assert lineage[name] is None


def test_dropped_columns_have_no_say(data, parameters):
    path = parameters(dropped_columns=['ps_car_1*', 'ps_ind_15', 'ps_reg_03'])
    frame = table.read_table(str(data))
    model = fit(frame, path)[0]
    changed = frame.copy()
    for name in dropped(load_parameters(path)):
        changed[name] = frame[name].to_numpy()[::-1]
    first, again = [model.predict(rows[table.FEATURES]) for rows in (frame, changed)]
    assert (first == again).all()
    assert len(set(first)) > 10
    assert (fit(frame, parameters(dropped_columns=[]))[0].predict(frame[table.FEATURES]) !=
            first).any()


@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_hold_out_rows_have_no_say(data, parameters, path):
    """Other targets change the model wherever they are but in the hold-out."""
    path = parameters(path=path, rounds=20)
    frame = table.read_table(str(data))
    parts = table.parts(frame['id'].to_numpy())
    texts = []
    for part in (None, table.TRAINING, table.EARLY_STOPPING, table.HOLD_OUT):
        changed = frame.copy()
        rows = np.flatnonzero(parts == part)
        changed.loc[rows, 'target'] = np.random.RandomState(1).permutation(frame['target'][rows])
        texts.append(fit(changed, path)[0].model_to_string())
    assert [text != texts[0] for text in texts[1:]] == [True, True, False]


def test_early_stopping_keeps_the_best_round(data, parameters):
    path = parameters(path=CHALLENGE)
    model, label, probability, rest = fit(table.read_table(str(data)), path)
    best = max(rest['curve'], key=lambda point: point[1])
    assert rest['rounds'] == best[0] < len(rest['curve']) == best[0] + 20
    assert rest['rows']['early_stopping'] > 0
    assert len(probability) == rest['rows']['hold_out']
    assert metrics.auc(label, probability) == pytest.approx(0.58, abs=0.08)


def test_early_stopping_by_log_loss_is_called_so(data, parameters):
    path = parameters({'metric': 'binary_logloss'}, path=CHALLENGE)
    rest = fit(table.read_table(str(data)), path)[3]
    assert rest['metric'] == 'log loss'
    assert rest['rounds'] == min(rest['curve'], key=lambda point: point[1])[0]


def test_fewer_non_claims_leave_the_probabilities_calibrated(data, parameters):
    frame = table.read_table(str(data))
    kept = fit(frame, parameters(non_claims_kept=0.2))
    rate = kept[3]['claims']['training'] / kept[3]['rows']['training']
    assert kept[2].mean() == pytest.approx(rate, rel=0.05)


def test_a_thousand_rows_still_give_a_model_that_tells_rows_apart(caplog):
    model, _, probability, rest = fit(sample.generate(1200, 1), DEFAULT)
    assert len(set(probability)) > 10
    assert rest['rounds'] > 1
    assert 'few rows: min_data_in_leaf is lowered from 300' in caplog.text
    assert 'few rows: lambda_l1 is lowered from 16' in caplog.text
    assert rest['training']['min_data_in_leaf'] < 300


def test_parameters_are_lowered_by_any_of_their_names():
    own = {'min_data': 100, 'reg_alpha': 3, 'num_leaves': 9}
    assert train.lowered(own, 400, 20) == {'min_data': 20, 'reg_alpha': 2, 'num_leaves': 9}
    assert train.lowered(own, 2000, 30) == own


def test_subsample_keeps_all_claims_and_the_total_weight():
    label = (np.arange(10000) % 30 == 0).astype(int)
    rows = np.arange(100, 9000)
    kept, weight = train.subsample(label, rows, 0.3, 1)
    assert set(rows[label[rows] == 1]) <= set(kept) <= set(rows)
    assert 0.25 < (label[kept] == 0).sum() / (label[rows] == 0).sum() < 0.35
    assert weight.sum() == pytest.approx(len(rows), rel=1e-6)
    assert set(weight[label[kept] == 1]) == {1}
    assert (train.subsample(label, rows, 0.3, 1)[0] == kept).all()
    assert train.subsample(label, rows, 1, 1) == (rows, None)


@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_same_input_gives_the_same_bytes(data, path):
    frame = table.read_table(str(data))
    texts = {fit(frame, path)[0].model_to_string() for _ in range(2)}
    assert len(texts) == 1


def test_failures_leave_an_earlier_result_alone(model, data, parameters, tmp_path, capsys):
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    bad = tmp_path / 'bad.csv'
    bad.write_text('id,target\n1,2\n')
    for flags in (['--data', str(bad)], ['--data', str(tmp_path / 'missing.csv')],
                  ['--data', str(data), '--parameters', parameters(rounds='many')],
                  ['--data', str(data), '--parameters', str(tmp_path / 'missing.json')]):
        assert train.main(flags + ['--out', str(model)]) == 1
        assert capsys.readouterr().err.startswith('error: ')
        assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_no_place_for_the_result_is_said(data, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert train.main(['--data', str(data), '--out', str(tmp_path / 'file')]) == 1
    assert 'error: ' in capsys.readouterr().err


def test_no_table_is_wrong_use(tmp_path):
    with pytest.raises(SystemExit) as stop:
        train.main(['--out', str(tmp_path)])
    assert stop.value.code == 2


def test_metrics_are_only_ever_beside_their_own_model(tmp_path, monkeypatch):
    """Whatever replacing the process stops at, metrics.json tells of the model beside it."""
    replace = os.replace
    for last in range(4):
        folder = tmp_path / str(last)
        folder.mkdir()
        train.write_set(str(folder), {'metrics.json': 'old', 'model.txt': 'old', 'report.html': ''})
        left = list(range(last))

        def stop(source, target):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            replace(source, target)

        monkeypatch.setattr(os, 'replace', stop)
        try:
            train.write_set(str(folder), {'metrics.json': 'new', 'model.txt': 'new',
                                          'report.html': 'new'})
        except KeyboardInterrupt:
            pass
        monkeypatch.undo()
        found = {file.name: file.read_text() for file in folder.iterdir()}
        assert set(found) >= {'model.txt', 'report.html'}
        assert found.get('metrics.json', found['model.txt']) == found['model.txt']
        assert ('metrics.json' in found) == (last == 3)


@pytest.mark.end_to_end
@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_threads_do_not_change_the_bytes(data, tmp_path, path):
    models = set()
    for threads in ('1', '2', '3'):
        out = tmp_path / threads
        subprocess.run([sys.executable, str(ROOT / 'training' / 'train.py'), '--data', str(data),
                        '--parameters', str(path), '--out', str(out)], check=True,
                       env=dict(os.environ, OMP_NUM_THREADS=threads), stdout=subprocess.DEVNULL)
        models.add((out / 'model.txt').read_bytes())
    assert len(models) == 1


@pytest.mark.end_to_end
def test_kills_leave_whole_results_or_none(data, tmp_path):
    """A killed training leaves what was there, or nothing, and the next one succeeds."""
    out = tmp_path / 'model'
    command = [sys.executable, str(ROOT / 'training' / 'train.py'), '--data', str(data), '--out',
               str(out), '--code-commit', 'c0ffee']
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - start
    text = (out / 'model.txt').read_bytes()
    for share in np.linspace(0.1, 1.1, 12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(share * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if (out / 'metrics.json').exists():
            assert (out / 'model.txt').read_bytes() == text
            json.loads((out / 'metrics.json').read_text())
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(file.name for file in out.iterdir()) == [
        'metrics.json', 'model.txt', 'report.html']
