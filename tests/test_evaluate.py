"""Champion and challenger, real LightGBM models, on the same hold-out rows."""
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightgbm
import numpy as np
import pytest

import drift
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
    (folder / 'metrics.json').write_text(json.dumps(dict(
        figures, lineage=lineage, model_sha256=tracking.sha256(folder / 'model.txt'),
        auc_interval=metrics.bootstrap_auc_interval(rows['target'], scores, draws=100))))
    if features == table.FEATURES:
        (folder / 'profile.json').write_text(json.dumps(drift.make_profile(frame, scores)))
    return scores


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A table and models of it: `strong` saw the hold-out rows, `weak` with half of the labels
    wrong, `chance` with all of them; `flat` saw but one label.
    """
    folder = tmp_path_factory.mktemp('evaluate')
    data = folder / 'table.csv'
    next(sample.generate(3000, 1)).to_csv(str(data), index=False)
    frame = table.read_table(str(data))
    target = frame['target'].to_numpy()
    strong = make_model(folder / 'strong', frame, target, data)
    wrong = np.roll(target, 7)
    weak = make_model(folder / 'weak', frame, np.where(frame['id'] % 2, target, wrong), data)
    make_model(folder / 'chance', frame, wrong, data)
    make_model(folder / 'flat', frame, np.zeros(len(target)), data)
    label = target[table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT]
    return SimpleNamespace(folder=folder, data=data, frame=frame, label=label, strong=strong,
                           weak=weak)


@pytest.fixture(scope='module')
def tried():
    """subprocess.call for evaluate.py's trial of a model, which tries each content but once."""
    codes = {}

    def call(command, **how):
        content = Path(command[-1]).read_bytes()
        if content not in codes:
            codes[content] = subprocess.run(command, **how).returncode
        return codes[content]
    return call


@pytest.fixture(scope='module')
def read_once():
    """table.read_table, which reads the table of all tests but once; nobody changes it."""
    return functools.lru_cache(maxsize=None)(table.read_table)


@pytest.fixture
def judge(models, parameters, tried, read_once, tmp_path, monkeypatch):
    """A function that evaluates a model against the registry; returns exit code and decision."""
    monkeypatch.setattr(evaluate, 'DRAWS', 100)
    monkeypatch.setattr(evaluate.subprocess, 'call', tried)
    monkeypatch.setattr(table, 'read_table', read_once)
    # For speed; test_comparison.py looks at the plots.
    monkeypatch.setitem(sys.modules, 'matplotlib', None)

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


MINIMIZE = {'metric': 'log_loss', 'direction': 'minimize'}


@pytest.mark.parametrize('before, after, flags, criteria, registered, likely, words', [
    (None, 'weak', [], {}, True, None, 'no registered version'),
    ('strong', 'weak', ['--run-evaluation', 'False'], {}, True, None, 'RUN_EVALUATION=false'),
    ('strong', 'weak', [], {}, False, 0, 'not better'),
    ('strong', 'strong', [], {}, False, 0.5, 'byte for byte'),
    ('strong', 'weak', ['--allow-run-cancel', 'false'], {}, True, 0, 'ALLOW_RUN_CANCEL=false'),
    ('weak', 'strong', [], {}, True, 1, 'better'),
    ('weak', 'strong', [], MINIMIZE, True, 1, 'better'),
    ('strong', 'weak', [], dict(MINIMIZE, metric='brier'), False, 0, 'not better')])
def test_what_is_better_is_registered(judge, register_model, champion, capsys, before, after, flags,
                                      criteria, registered, likely, words):
    if before:
        champion(before)
    code, decision = judge(after, *flags, **criteria)
    assert code == 0 and decision['register'] is registered and words in decision['reason']
    assert decision['probability_better'] == (
        likely if likely is None else pytest.approx(likely, abs=0.01))
    assert decision['champion_version'] == (1 if before else None)
    assert (decision['difference'] is None) == (likely is None)
    assert decision['rule'].count('lower') == len(criteria) // 2
    result, version = register_model(after), 1 + bool(before and registered)
    verdict = 'registered' if registered else 'kept'
    assert [result[name] for name in ('result', 'version', 'model')] == [verdict, version, NAME]
    assert f"{verdict} version {version} of {NAME}. {decision['reason']}" in capsys.readouterr().out


def test_champion_and_challenger_score_the_same_rows(judge, champion, models):
    champion('weak')
    decision = judge('strong')[1]
    before, after = [metrics.auc(models.label, scores) for scores in (models.weak, models.strong)]
    assert [decision[name] for name in ('champion', 'challenger', 'difference')] == pytest.approx(
        [before, after, after - before], abs=1e-12)
    low, high = decision['difference_interval']
    assert 0 < low < decision['difference'] < high
    gini = judge('strong', metric='gini')[1]
    assert gini['difference_interval'] == pytest.approx([2 * low, 2 * high])


def test_a_gain_must_reach_the_least_gain(judge, champion, models):
    champion('weak')
    gain = metrics.auc(models.label, models.strong) - metrics.auc(models.label, models.weak)
    assert judge('strong', least_gain=gain - 1e-6)[1]['register'] is True
    assert judge('strong', least_gain=gain + 1e-6)[1]['register'] is False


def test_a_table_that_changed_since_training_is_refused(judge, champion, models, tmp_path, capsys):
    champion('weak')
    (tmp_path / 'decision.json').write_text('{}')
    other = tmp_path / 'other.csv'
    models.frame.head(2000).to_csv(str(other), index=False)
    assert judge('strong', '--data', str(other)) == (1, {})
    error = capsys.readouterr().err
    assert 'other.csv' in error and 'train again' in error


def test_a_table_of_a_datastore_is_fetched_from_there_again(tmp_path):
    (tmp_path / '1.csv').write_text('a')
    (tmp_path / '2.csv').write_text('b')
    asked = []
    tracker = SimpleNamespace(fetch_table=lambda **how: asked.append(how) or (str(tmp_path), {}))
    lineage = {'data': 'a/*.csv', 'dataset_version': None, 'datastore_name': 'store',
               'data_sha256': hashlib.sha256(b'ab').hexdigest()}
    assert evaluate.fetch_table(tracker, lineage, None) == str(tmp_path)
    assert asked == [{'data': None, 'dataset_name': None, 'dataset_version': None,
                      'data_file_path': 'a/*.csv', 'datastore_name': 'store'}]
    (tmp_path / '2.csv').rename(tmp_path / '0.csv')
    with pytest.raises(tracking.TrackingError, match=r'a/\*.csv is not the table that'):
        evaluate.fetch_table(tracker, lineage, None)


@pytest.mark.parametrize('known, reason', [
    ('tags', 'changed after'), ('report', 'changed after'), ('nowhere', 'is damaged')])
@pytest.mark.parametrize('damage', [lambda text: text.replace('left_child=1', 'left_child=0'),
                                    lambda text: text.replace('\n', '\r\n')])
def test_a_champion_that_was_changed_or_damaged_is_named(judge, champion, capsys, known, reason,
                                                         damage):
    model = champion('weak', known == 'tags') / 'model.txt'
    if known != 'report':
        model.with_name('metrics.json').unlink()
    model.write_bytes(damage(model.read_text()).encode())
    assert judge('strong')[0] == 1
    error = capsys.readouterr().err
    assert all(words in error for words in ('version 1 of ' + NAME, reason, 'RUN_EVALUATION=false'))


@pytest.mark.parametrize('features, code, words', [
    (['ps_ind_99'] + table.FEATURES[1:], 1, 'ps_ind_99.*RUN_EVALUATION=false'),
    (table.FEATURES[10:], 0, 'version 1 has')], ids=['another', 'fewer'])
def test_a_champion_with_other_columns_is_named_or_compared(judge, champion, models, capsys,
                                                            features, code, words):
    folder = champion('strong')
    shutil.rmtree(str(folder))
    frame = models.frame.rename(columns={'ps_ind_01': 'ps_ind_99'})
    make_model(folder, frame, models.frame['target'], models.data, features)
    shutil.copy(str(folder / 'metrics.json'), str(folder.parent / 'tags.json'))
    assert judge('weak')[0] == code
    assert re.search(words, ''.join(capsys.readouterr()))


@pytest.mark.parametrize('switch', ['true', 'false'])
def test_a_missing_or_changed_challenger_is_an_error(judge, models, switch, tmp_path, capsys):
    changed = models.folder / ('changed ' + switch)
    shutil.copytree(str(models.folder / 'strong'), str(changed))
    (changed / 'model.txt').write_text((models.folder / 'weak' / 'model.txt').read_text())
    for name, words in (('missing', 'missing'), (changed.name, 'remove .* and train again')):
        assert judge(name, '--run-evaluation', switch)[0] == 1
        assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / 'decision.json').exists()


@pytest.mark.parametrize('model, flags, words', [
    ('chance', [], 'may be chance'),
    ('flat', ['--run-evaluation', 'false', '--allow-run-cancel', 'false'], 'the same score')])
def test_a_useless_model_is_kept_out_unless_the_parameters_ask_for_it(
        judge, register_model, champion, capsys, model, flags, words):
    code, decision = judge(model, *flags)
    assert code == 0 and not decision['register']
    assert re.match(f'The new model is useless: .*{words}.*"register_useless"', decision['reason'])
    result = register_model(model)
    assert (result['result'], result['version']) == ('kept', None)
    assert f'kept no version of {NAME}. The new model is' in capsys.readouterr().out
    assert judge(model, *flags, register_useless=True)[1]['register'] is True
    champion('weak')
    judge(model, *flags)
    assert register_model(model)['version'] == 1


def test_a_model_whose_auc_has_no_interval_is_not_judged(judge, models, capsys):
    folder = models.folder / 'unsure'
    shutil.copytree(str(models.folder / 'weak'), str(folder))
    report = tracking.read_json(folder / 'metrics.json')
    del report['auc_interval']
    tracking.write_json(folder / 'metrics.json', report)
    assert judge('unsure')[0] == 1 and 'no auc_interval: train again' in capsys.readouterr().err


@pytest.fixture
def drifted(models, champion):
    """A function that makes the champion's profile one of a table that was otherwise."""
    def drifted(model):
        other = models.frame.assign(ps_ind_01=7 - models.frame['ps_ind_01'])
        path = champion(model) / 'profile.json'
        path.write_text(json.dumps(drift.make_profile(other, getattr(models, model))))
        return path
    return drifted


@pytest.mark.parametrize('switch', ['true', 'false'])
def test_drift_since_the_champion_is_told_and_stops_only_what_the_parameters_say(
        judge, drifted, caplog, switch):
    drifted('weak')
    code, decision = judge('strong', '--run-evaluation', switch)
    found = decision['drift']
    assert code == 0 and decision['register'] and found['drifted'] == ['ps_ind_01']
    assert found['sentence'].startswith('Drift since version 1 (3,000 rows): ps_ind_01 (PSI ')
    assert caplog.messages == [found['sentence']]
    assert found['columns']['ps_ind_01'] > 0.5 > max(
        value for name, value in found['columns'].items() if name != 'ps_ind_01')
    less = found['above_chance'] - 0.01
    decision = judge('strong', '--run-evaluation', switch, largest_drift=less)[1]
    assert not decision['register'] and 'drifted too far: PSI' in decision['reason']


@pytest.mark.parametrize('switch', ['true', 'false'])
def test_without_the_champions_profile_drift_is_not_measured(judge, champion, capsys, switch):
    (champion('weak') / 'profile.json').unlink()
    code, decision = judge('strong', '--run-evaluation', switch, largest_drift=0)
    assert code == 0 and decision['register']
    sentence = 'Drift was not measured: version 1 has no profile.json to compare with.'
    assert sentence == decision['drift']['sentence'] == capsys.readouterr().out.splitlines()[-1]


def test_a_damaged_profile_is_said(models, tmp_path):
    path = tmp_path / 'profile.json'
    whole = (models.folder / 'weak' / 'profile.json').read_text()
    for text in (whole[:-9], '[]', '{"rows": "4", "columns": {"ps_ind_01": 3}}',
                 whole.replace('"edges"', '"edge"'), whole.replace('"rows": 3000', '"rows": 0'),
                 whole.replace('"counts": [', '"counts": ["a", '), whole.replace('{"0":', '{"0":-'),
                 whole.replace('0.', '-0.').replace('"edges": [', '"edges": [null, ')):
        path.write_text(text)
        sentence = evaluate.measure_drift(path, 3, models.frame, models.weak)['sentence']
        assert sentence == 'Drift was not measured: profile.json of version 3 is damaged.', text


@pytest.mark.parametrize('damaged, words', [('champion', 'was changed after it was registered'),
                                            ('table', 'is not the table that the model')])
def test_without_comparing_what_is_wrong_is_in_nobodys_way(judge, champion, tmp_path, damaged,
                                                           words):
    folder = champion('weak')
    path = folder / 'model.txt' if damaged == 'champion' else tmp_path / 'other.csv'
    path.write_text('tree')
    flags = ['--data', str(path)] if damaged == 'table' else []
    code, decision = judge('strong', '--run-evaluation', 'false', *flags)
    assert code == 0 and decision['register'] and words in decision['drift']['sentence']


def test_the_comparison_is_shown_beside_its_decision_and_goes_with_it(judge, champion, tmp_path):
    champion('weak')
    reason = judge('strong')[1]['reason']
    assert reason in (tmp_path / 'comparison.html').read_text()
    judge('strong', '--run-evaluation', 'false')
    assert not (tmp_path / 'comparison.html').exists()
