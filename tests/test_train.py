"""Training: the challenge's contract functions, and a table that becomes a model."""
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys

import lightgbm
import numpy as np
import pandas
import pytest

import metrics
import sample
import table
import tracking
import train
from conftest import CHALLENGE, DEFAULT, ROOT, write_parts, write_table
from parameters import dropped, load_parameters
from test_report import SVG, read


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'table.csv'
    assert sample.main(['--rows', '6000', '--seed', '3', '--out', str(path)]) == 0
    return path


@pytest.fixture(scope='module')
def frame(data):
    return table.read_table(str(data))


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

def test_split_data_sets_a_fifth_apart_and_keeps_rows_and_targets_together():
    frame = pandas.DataFrame({'id': range(1000), 'target': np.arange(1000) % 7 == 0,
                              'col1': np.arange(1000), 'col2': 1})
    training, validation = train.split_data(frame)
    assert list(training.data.columns) == ['col1', 'col2']
    assert [len(part.data) for part in (training, validation)] == [800, 200]
    assert not validation.free_raw_data
    for part in (training, validation):
        assert ((part.data['col1'] % 7 == 0) == part.label).all()
    rows = np.concatenate([part.data['col1'] for part in (training, validation)])
    assert sorted(rows) == list(range(1000)) != list(rows)


def small_datasets():
    training = lightgbm.Dataset(np.arange(1, 7).reshape(-1, 1), [1, 1, 0, 1, 0, 1])
    validation = lightgbm.Dataset(np.array([[7], [8]]), [0, 1], free_raw_data=False)
    return training, validation


def test_train_model_passes_its_parameters_on():
    given = {'learning_rate': 0.05, 'metric': 'auc', 'min_data': 1}
    model = train.train_model(small_datasets(), given)
    assert {name: model.params[name] for name in given} == given
    assert given == {'learning_rate': 0.05, 'metric': 'auc', 'min_data': 1}


def test_get_model_metrics_takes_any_model():
    class Undecided:
        @staticmethod
        def predict(rows):
            return np.zeros(len(rows))

    assert train.get_model_metrics(Undecided(), small_datasets()) == {'auc': 0.5}


def test_contract_functions_work_together_and_stop_early(frame):
    parts = train.split_data(frame)
    model = train.train_model(parts, {'objective': 'binary', 'metric': 'auc', 'verbosity': -1,
                                      'num_leaves': 4, 'min_data': 100})
    assert 0 < model.best_iteration < 400
    assert 0.5 < train.get_model_metrics(model, parts)['auc'] < 0.7


# From a table to a model.

def test_model_takes_the_57_numbers_and_gives_the_reported_figures(model, data):
    booster = lightgbm.Booster(model_file=str(model / 'model.txt'))
    assert booster.feature_name() == table.FEATURES
    frame = pandas.read_csv(str(data))
    rows = frame[table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT]
    probability = booster.predict(rows[table.FEATURES].to_numpy())
    result = json.loads((model / 'metrics.json').read_text())
    figures = metrics.summary(rows['target'], probability)
    assert {name: result[name] for name in figures} == pytest.approx(figures, abs=1e-9)
    assert result['auc_interval'][0] < result['auc'] < result['auc_interval'][1]
    assert result['rounds'] == booster.num_trees() > 1
    assert result['model_sha256'] == tracking.sha256(model / 'model.txt')
    known = [list(map(float, row.split())) for row in result['known_rows']['rows']]
    assert result['known_rows']['scores'] == booster.predict(known).tolist()
    assert 1 < len(set(result['known_rows']['scores'])) <= len(known) == 8
    found = [segment for segment in result['segments'] if segment['segment'] == 'ps_ind_06_bin = 0']
    level = rows['ps_ind_06_bin'].to_numpy() == 0
    assert found == [{'segment': 'ps_ind_06_bin = 0', 'rows': level.sum(),
                     'claims': rows['target'][level].sum(),
                      'mean_score': pytest.approx(probability[level].mean()),
                      'auc': pytest.approx(metrics.auc(rows['target'][level], probability[level]))}]
    assert result['rows'] == {'training': 6000 - len(rows), 'early_stopping': 0,
                              'hold_out': len(rows)}
    assert result['claims']['hold_out'] == rows['target'].sum()
    assert [text.split(' is ')[0] for text in result['warnings']] == ['few rows: min_data_in_leaf']
    given = json.loads(DEFAULT.read_text())
    # There are too few rows for some, and what was used is told.
    lowered = re.search(r'\[min_data_in_leaf: (\d+)\]', (model / 'model.txt').read_text()).group(1)
    given['training']['min_data_in_leaf'] = int(lowered)
    assert result['parameters'] == given


def test_report_shows_the_plots(model):
    pytest.importorskip('matplotlib', reason='no plots without matplotlib')
    root, text = read((model / 'report.html').read_text())
    assert len(list(root.iter(SVG))) == 5
    rounds = json.loads((model / 'metrics.json').read_text())['rounds']
    for words in ('ROC curve', 'Lift by decile', 'Calibration', 'Learning curve', 'ps_ind_0',
                  f'AUC of the hold-out rows as trees are added; {rounds} are kept. It decided '
                  'nothing', 'Learning curve, hold-out rows', 'compared with the registered model, '
                  'auc'):
        assert words in text
    assert 'left out' not in text


@pytest.mark.end_to_end
def test_an_auc_that_the_data_cannot_give_is_doubted_in_log_metrics_and_report(
        frame, parameters, tmp_path, caplog):
    leak = frame.assign(ps_calc_04=frame['target'])
    leak.to_csv(str(tmp_path / 'leak.csv'), index=False)
    path = parameters({'min_data_in_leaf': 9, 'feature_fraction': 1}, rounds=3, dropped_columns=[])
    assert train.main(['--data', str(tmp_path / 'leak.csv'), '--out', str(tmp_path / 'model'),
                       '--parameters', path]) == 0
    warnings = json.loads((tmp_path / 'model' / 'metrics.json').read_text())['warnings']
    assert warnings == caplog.messages and 'the AUC is above 0.65' in warnings[-1]
    assert warnings[-1] in read((tmp_path / 'model' / 'report.html').read_text())[1]


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


def test_dropped_columns_have_no_say(frame, parameters):
    path = parameters(dropped_columns=['ps_car_1*', 'ps_ind_15', 'ps_reg_03'], rounds=40)
    model = fit(frame, path)[0]
    changed = frame.copy()
    for name in dropped(load_parameters(path)):
        changed[name] = frame[name].to_numpy()[::-1]
    first, again = [model.predict(rows[table.FEATURES]) for rows in (frame, changed)]
    assert (first == again).all()
    assert len(set(first)) > 10
    model = fit(frame, parameters(dropped_columns=[], rounds=40))[0]
    assert (model.predict(frame[table.FEATURES]) != first).any()


@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_hold_out_rows_have_no_say(frame, parameters, path):
    """Other targets change the model but in the hold-out, with which its bytes are the same."""
    path = parameters(path=path, rounds=5)
    parts = table.split_of(frame['id'].to_numpy())
    texts = []
    for part in (None, table.TRAINING, table.EARLY_STOPPING, table.HOLD_OUT):
        changed = frame.copy()
        rows = np.flatnonzero(parts == part)
        changed.loc[rows, 'target'] = np.random.RandomState(1).permutation(frame['target'][rows])
        texts.append(fit(changed, path)[0].model_to_string())
    assert [text != texts[0] for text in texts[1:]] == [True, True, False]


@pytest.mark.parametrize('own, name, best_of', [
    ({}, 'AUC', max), ({'metric': 'binary_logloss'}, 'log loss', min)])
def test_early_stopping_keeps_the_best_round(frame, parameters, own, name, best_of):
    _, label, probability, rest = fit(frame, parameters(own, path=CHALLENGE))
    metric, points = rest['curve']
    best = best_of(points, key=lambda point: point[1])
    assert metric == name and rest['rounds'] == best[0] < len(points) == best[0] + 20
    assert rest['rows']['early_stopping'] > 0
    assert len(probability) == rest['rows']['hold_out']
    assert metrics.auc(label, probability) == pytest.approx(0.58, abs=0.08)


def test_fewer_non_claims_leave_the_probabilities_calibrated(frame, parameters):
    kept = fit(frame, parameters(non_claims_kept=0.2))
    rate = kept[3]['claims']['training'] / kept[3]['rows']['training']
    assert kept[2].mean() == pytest.approx(rate, rel=0.05)


def test_a_thousand_rows_still_give_a_model_that_tells_rows_apart(caplog):
    model, _, probability, rest = fit(next(sample.generate(1200, 1)), DEFAULT)
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
    rows, ids = np.arange(100, 9000), np.random.RandomState(1).permutation(20000)[:10000]
    kept, weight = train.subsample(label, ids, rows, 0.3, 1)
    assert set(rows[label[rows] == 1]) <= set(kept) <= set(rows)
    assert 0.25 < (label[kept] == 0).sum() / (label[rows] == 0).sum() < 0.35
    assert weight.sum() == pytest.approx(len(rows), rel=1e-6)
    assert set(weight[label[kept] == 1]) == {1}
    assert set(train.subsample(label, ids, rows[::-1], 0.3, 1)[0]) == set(kept)
    assert set(train.subsample(label, ids, rows, 0.3, 2)[0]) != set(kept)
    assert train.subsample(label, ids, rows, 1, 1) == (rows, None)


def test_failures_are_said_and_leave_an_earlier_result_alone(model, data, parameters, tmp_path,
                                                             capsys):
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    bad = tmp_path / 'bad.csv'
    bad.write_text('id,target\n1,2\n')
    for flags, words in (
            (['--data', str(bad)], 'missing columns'),
            (['--data', str(tmp_path / 'missing.csv')], 'no such file'),
            (['--data', str(data), '--parameters', str(tmp_path / 'missing.json')], 'be read'),
            (['--data', str(data), '--parameters', parameters({'num_leaves': 1})],
             'LightGBM refuses: num_leaves must be > 1\n'),
            (['--data', str(data), '--out', str(bad)], 'bad.csv')):
        assert train.main(['--out', str(model)] + flags) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and words in error
        assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_no_table_is_wrong_use(tmp_path):
    with pytest.raises(SystemExit) as stop:
        train.main(['--out', str(tmp_path)])
    assert stop.value.code == 2


@pytest.mark.parametrize('replaced', range(4))
def test_whatever_replacing_it_stops_at_the_earlier_set_loses_no_file(
        tmp_path, monkeypatch, replaced):
    """Between the last two, metrics.json tells of another model, which all readers refuse."""
    # An empty folder of a mounted storage may be gone when training ends.
    folder = tmp_path / 'gone' / 'model'
    train.write_set(str(folder), {'metrics.json': 'old', 'model.txt': 'old', 'report.html': 'old'})
    left, replace = list(range(replaced)), os.replace

    def stop(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(source, target)

    monkeypatch.setattr(os, 'replace', stop)
    with contextlib.suppress(KeyboardInterrupt):
        train.write_set(
            str(folder), {'metrics.json': 'new', 'model.txt': 'new', 'report.html': 'new'})
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert [found[name] for name in ('report.html', 'model.txt', 'metrics.json')] == \
        ['new'] * replaced + ['old'] * (3 - replaced)


def test_a_failure_leaves_the_earlier_set_whole(tmp_path, monkeypatch):
    before = {'metrics.json': 'old', 'model.txt': 'old', 'report.html': 'old'}
    (tmp_path / '.model.txt.1.new').write_text('what a killed training left')
    train.write_set(str(tmp_path), before)
    with pytest.raises(AttributeError):
        train.write_set(str(tmp_path), dict(before, **{'model.txt': 'new', 'report.html': None}))
    # As a full disk may say only when all is to be written.
    monkeypatch.setattr(tracking, 'flush', lambda path: 1 / ('model' not in path.name))
    with pytest.raises(ZeroDivisionError):
        train.write_set(str(tmp_path), dict.fromkeys(before, 'new'))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


@pytest.mark.end_to_end
@pytest.mark.parametrize('path', [DEFAULT, CHALLENGE])
def test_threads_do_not_change_the_bytes(data, tmp_path, path):
    models = set()
    for threads in ('1', '3'):
        out = tmp_path / threads
        subprocess.run([sys.executable, str(ROOT / 'training' / 'train.py'), '--data', str(data),
                        '--parameters', str(path), '--out', str(out)], check=True,
                       env=dict(os.environ, OMP_NUM_THREADS=threads), stdout=subprocess.DEVNULL)
        models.add((out / 'model.txt').read_bytes())
    assert len(models) == 1


@pytest.mark.end_to_end
def test_a_table_in_parts_is_as_good_as_one_file(tmp_path):
    """By make, from a folder whose name has signs; a damaged part harms nothing."""
    file, out = tmp_path / 'table.csv', tmp_path / 'out'
    write_table(file, 6000)
    parts = write_parts(tmp_path / "my $(parts)'", file)

    def retrain(data, **variables):
        """(exit code, what is said, SHA-256 of the model and of the table)"""
        words = [f'{name}={value}' for name, value in dict(
            variables, DATA=data, OUT=out, PYTHON=sys.executable).items()]
        done = subprocess.run(['make', '-C', str(ROOT), 'retrain'] + words, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True)
        report = json.loads((out / 'model' / 'metrics.json').read_text())
        return (done.returncode, done.stdout, report['model_sha256'],
                report['lineage']['data_sha256'])

    code, text, model, digest = retrain(file)
    assert (code, digest) == (0, hashlib.sha256(file.read_bytes()).hexdigest()), text
    whole = b''.join(part.read_bytes() for part in sorted(parts.iterdir()))
    expected = 0, model, hashlib.sha256(whole).hexdigest()
    code, text, *found = retrain(parts, RUN_EVALUATION='true')
    assert (code, *found) == expected and 'the same model, byte for byte' in text
    parts.rename(tmp_path / 'renamed')
    code, text, *found = retrain(tmp_path / 'renamed' / 'part-*')
    assert (code, *found) == expected
    packed = tmp_path / 'renamed' / 'part-2.csv.gz'
    packed.write_bytes(packed.read_bytes()[:-10])
    code, text, *found = retrain(tmp_path / 'renamed')
    assert (code, *found) == (2, *expected[1:])
    assert 'part-2.csv.gz: the gzip file is truncated or damaged' in text
