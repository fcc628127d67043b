"""Champion and challenger, real LightGBM models, on the same hold-out rows."""
import json
import shutil
from types import SimpleNamespace

import lightgbm
import numpy as np
import pytest

import booster
import evaluate
import metrics
import register
import sample
import table
import tracking

NAME = 'safe_driver_model'
TRAINING = {'objective': 'binary', 'verbosity': -1, 'num_leaves': 8, 'num_threads': 1}


def make_model(folder, frame, target, data, features=table.FEATURES):
    """A model folder as train.py leaves it; returns its scores of the hold-out rows."""
    folder.mkdir()
    model = lightgbm.train(TRAINING, lightgbm.Dataset(frame[features], target), 20)
    model.save_model(str(folder / 'model.txt'))
    rows = frame[table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT]
    scores = model.predict(rows[features])
    figures = metrics.summary(rows['target'], scores)
    lineage = {'data': data.name, 'data_sha256': tracking.sha256(str(data))}
    (folder / 'metrics.json').write_text(json.dumps(dict(figures, lineage=lineage)))
    return scores


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A table; the model `strong`, which saw the hold-out rows; `weak`, which saw wrong labels."""
    folder = tmp_path_factory.mktemp('evaluate')
    data = folder / 'table.csv'
    next(sample.generate(4000, 1)).to_csv(str(data), index=False)
    frame = table.read_table(str(data))
    target = frame['target'].to_numpy()
    strong = make_model(folder / 'strong', frame, target, data)
    weak = make_model(folder / 'weak', frame, np.roll(target, 7), data)
    label = target[table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT]
    return SimpleNamespace(folder=folder, data=data, frame=frame, label=label, strong=strong,
                           weak=weak)


@pytest.fixture
def judge(models, parameters, tmp_path, monkeypatch):
    """A function that evaluates a model against the registry; returns exit code and decision."""
    monkeypatch.setattr(evaluate, 'DRAWS', 100)

    def judge(model, *flags, **changes):
        criteria = dict({'metric': 'auc', 'direction': 'maximize', 'least_gain': 0.0}, **changes)
        out = tmp_path / 'decision.json'
        code = evaluate.main([
            '--data', str(models.data), '--parameters', parameters(evaluation=criteria),
            '--model', str(models.folder / model), '--model-name', NAME, '--out', str(out),
            '--registry', str(tmp_path / 'registry'), '--run-evaluation', 'true'] + list(flags))
        return code, json.loads(out.read_text()) if out.exists() else None
    return judge


@pytest.fixture
def register_model(models, tmp_path):
    """A function that registers a model under the decision that is there; returns the result."""
    def register_model(model):
        out = tmp_path / 'registration.json'
        assert register.main([
            '--model', str(models.folder / model), '--decision', str(tmp_path / 'decision.json'),
            '--model-name', NAME, '--registry', str(tmp_path / 'registry'), '--out', str(out)]) == 0
        return json.loads(out.read_text())
    return register_model


@pytest.fixture
def champion(models, tmp_path):
    """A function that makes a model the champion, without comparing; the folder of the model."""
    def champion(model, tagged=True):
        folder = models.folder / model
        tags = {'model_sha256': tracking.sha256(folder / 'model.txt')} if tagged else {}
        version, _ = tracking.Folder(str(tmp_path / 'registry')).register(NAME, folder, tags)
        return tmp_path / 'registry' / NAME / str(version) / 'model'
    return champion


def test_the_first_model_is_registered(judge, register_model):
    code, decision = judge('weak')
    assert code == 0 and decision['register'] and decision['champion_version'] is None
    assert 'no registered version' in decision['reason']
    result = register_model('weak')
    assert (result['result'], result['version'], result['model']) == ('registered', 1, NAME)


def test_without_evaluation_the_worse_model_is_registered(judge, champion):
    champion('strong')
    code, decision = judge('weak', '--run-evaluation', 'False')
    assert code == 0 and decision['register']
    assert decision['champion'] is decision['difference'] is None
    assert 'RUN_EVALUATION=false' in decision['reason']


def test_the_better_model_wins_on_the_same_rows(judge, champion, models):
    champion('weak')
    code, decision = judge('strong')
    before, after = [metrics.auc(models.label, scores) for scores in (models.weak, models.strong)]
    assert code == 0 and decision['register'] and decision['champion_version'] == 1
    assert decision['champion'] == pytest.approx(before, abs=1e-12)
    assert decision['challenger'] == pytest.approx(after, abs=1e-12)
    assert decision['difference'] == pytest.approx(after - before, abs=1e-12)
    low, high = decision['difference_interval']
    assert 0 < low < decision['difference'] < high and decision['probability_better'] > 0.99


def test_the_worse_model_is_kept_out(judge, register_model, champion, tmp_path, capsys):
    champion('strong')
    code, decision = judge('weak')
    assert code == 0 and decision['register'] is False and decision['probability_better'] < 0.01
    result = register_model('weak')
    assert (result['result'], result['version']) == ('kept', 1)
    assert 'kept version 1 of ' + NAME in capsys.readouterr().out
    assert tracking.Folder(str(tmp_path / 'registry')).champion(NAME)[0] == 1


def test_the_same_model_is_not_better(judge, champion):
    champion('strong')
    code, decision = judge('strong')
    assert code == 0 and decision['register'] is False and decision['difference'] == 0
    assert 'byte for byte' in decision['reason']


@pytest.mark.parametrize('metric', ['log_loss', 'brier'])
def test_a_metric_to_minimise(judge, champion, metric):
    champion('weak')
    code, decision = judge('strong', metric=metric, direction='minimize')
    assert code == 0 and decision['register'] and decision['difference'] < 0
    assert decision['probability_better'] > 0.99 and 'lower' in decision['rule']
    champion('strong')
    code, decision = judge('weak', metric=metric, direction='minimize')
    assert code == 0 and not decision['register'] and decision['probability_better'] < 0.01


def test_a_gain_must_reach_the_least_gain(judge, champion):
    champion('weak')
    gain = judge('strong')[1]['difference']
    assert judge('strong', least_gain=gain - 1e-6)[1]['register'] is True
    assert judge('strong', least_gain=gain + 1e-6)[1]['register'] is False


def test_allow_run_cancel_false_registers_whatever_the_comparison_says(judge, champion):
    champion('strong')
    code, decision = judge('weak', '--allow-run-cancel', 'false')
    assert code == 0 and decision['register'] and decision['difference'] < 0
    assert 'ALLOW_RUN_CANCEL=false' in decision['reason']


def test_gini_differs_twice_as_much_as_auc(models):
    auc, gini = [evaluate.compare(models.label, models.weak, models.strong, metric, 'maximize')
                 for metric in ('auc', 'gini')]
    assert gini['difference'] == pytest.approx(2 * auc['difference'])
    assert gini['difference_interval'] == pytest.approx(
        [2 * bound for bound in auc['difference_interval']])


def test_a_table_that_changed_since_training_is_refused(judge, champion, models, tmp_path, capsys):
    champion('weak')
    (tmp_path / 'decision.json').write_text('{}')
    other = tmp_path / 'other.csv'
    models.frame.head(3000).to_csv(str(other), index=False)
    assert judge('strong', '--data', str(other)) == (1, {})
    error = capsys.readouterr().err
    assert 'other.csv' in error and 'train again' in error


@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_a_damaged_champion_is_named(judge, champion, capsys, share):
    model = champion('weak', tagged=False) / 'model.txt'
    text = model.read_bytes()
    model.write_bytes(text[:int(share * len(text))])
    assert judge('strong')[0] == 1
    error = capsys.readouterr().err
    assert 'version 1 of ' + NAME in error and 'RUN_EVALUATION=false' in error


def test_a_champion_that_lightgbms_command_line_wrote_is_whole(judge, champion):
    model = champion('weak', tagged=False) / 'model.txt'
    text, categories, _ = model.read_text().partition('pandas_cat')
    assert categories
    model.write_text(text)
    assert judge('strong')[1]['champion_version'] == 1


def test_training_and_scoring_call_the_same_files_whole():
    assert evaluate.LAST_LINE == booster.LAST_LINE


def test_a_champion_that_was_exchanged_is_named(judge, champion, models, capsys):
    shutil.copy(str(models.folder / 'strong' / 'model.txt'), str(champion('weak')))
    assert judge('strong')[0] == 1
    error = capsys.readouterr().err
    assert 'version 1 of ' + NAME in error and 'changed after' in error


def exchange(folder, models, features, columns):
    """Put a model of these features, its columns renamed, in place of the one in the folder."""
    shutil.rmtree(str(folder))
    make_model(folder, models.frame.rename(columns=columns), models.frame['target'], models.data,
               features)


def test_a_champion_with_other_columns_is_named(judge, champion, models, capsys):
    exchange(champion('weak', tagged=False), models, ['ps_ind_99'] + table.FEATURES[1:],
             {'ps_ind_01': 'ps_ind_99'})
    assert judge('strong')[0] == 1
    error = capsys.readouterr().err
    assert 'ps_ind_99' in error and 'RUN_EVALUATION=false' in error


def test_a_champion_that_does_without_some_columns_is_compared(judge, champion, models):
    exchange(champion('strong', tagged=False), models, table.FEATURES[10:], {})
    assert judge('weak')[1]['champion_version'] == 1


def test_a_missing_or_damaged_challenger_is_an_error(judge, models, tmp_path, capsys):
    assert judge('missing')[0] == 1
    assert 'missing' in capsys.readouterr().err
    assert not (tmp_path / 'decision.json').exists()
