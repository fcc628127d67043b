"""The summary of a stage by the files that it left: what a team reads on the run's page."""
import json
import re

import pytest

import summary

BAD = 'a | b\n<script>x</script> [y](javascript:z) ![p](q) **b** `c` ##vso[task.complete]d\x1b[1m'
LINK = 'https://ml.azure.com/runs/r1?wsid=/subscriptions/s/resourcegroups/a(b)/workspaces/w'
DECISION = {
    'metric': 'auc', 'champion': 0.62, 'champion_version': 2, 'challenger': 0.63,
    'difference': 0.01, 'difference_interval': [0.004, 0.016], 'probability_better': 0.998,
    'drift': {'columns': {'ps_ind_01': 0.31}, 'sentence': 'ps_ind_01 has drifted.'}}
RUN = {'result': 'registered', 'reason': 'It is better.', 'model': 'safe_driver_model',
       'version': 3, 'run_id': 'r1', 'link': LINK, 'auc': 0.63, 'auc_interval': [0.61, 0.65],
       'nodes': [{'rows': 10010, 'peak_memory_mb': 301}, {'rows': 9990, 'peak_memory_mb': 298}],
       'decision': DECISION}
SUBMITTED = {'run_id': 'r1', 'link': LINK, 'failure': None}
TRAINED = {'run.json': RUN, 'submitted.json': SUBMITTED}
URI = 'http://safe-driver.azurecontainer.io/score'
SERVICE = {'name': 'safe-driver', 'scoring_uri': URI, 'model': 'safe_driver_model', 'version': 3,
           'previous_version': 2}
TESTED = {'uri': URI, 'what': 'safe_driver_model version 3', 'rows': 8, 'lowest': 0.0188,
          'highest': 0.1993}
SUITE = '<testsuite>%s<testcase classname="a" name="good"/></testsuite>'
FAILURE = '<testcase classname="t" name="bad &lt;b&gt;"><failure/></testcase>'


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Summarizes a stage that left files, {path: text or JSON}; (Markdown, commands)."""
    def summarize(stage, files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv('TF_BUILD', 'True')
        # A setting by which the stage failed.
        monkeypatch.setenv('MODEL_NAME', 'a b')
        monkeypatch.setenv('BUILD_URI', 'https://dev.azure.com/o/p/_build/results?buildId=7')
        monkeypatch.chdir(tmp_path.parent)
        assert summary.main(['--stage', stage, '--out', tmp_path.name]) == 0
        text = (tmp_path / 'summary' / (stage + '.md')).read_text()
        printed = capsys.readouterr().out
        commands = re.findall(r'##vso\[(.*?)\](.*)', printed)
        assert printed.startswith(text) and commands.pop(0) == (
            'task.uploadsummary', str(tmp_path / 'summary' / (stage + '.md')))
        assert len(printed[len(text):].splitlines()) == len(commands) + 1
        return text, commands
    return summarize


def test_lint_and_tests_that_passed(said):
    text, commands = said('code_quality', {
        'test-results/lint.xml': SUITE % '', 'test-results/unit.xml': SUITE % (
            '<testcase classname="a" name="s"><skipped/></testcase>'),
        'coverage.xml': '<coverage line-rate="0.925"/>'})
    assert '**Lint and unit tests have passed.**' in text and commands == []
    for row in ('Lint | 1 passed, 0 failed', 'Unit tests | 1 passed, 0 failed, 1 skipped',
                'Coverage | 92% of the lines'):
        assert f'| {row} |' in text


def test_a_failing_test_is_named_and_a_missing_file_sends_to_its_log(said):
    text, _ = said('code_quality', {'test-results/unit.xml': SUITE % (FAILURE * 12)})
    assert '| Unit tests | 1 passed, 12 failed |' in text and '\n- ... and 2 more\n' in text
    assert text.count('\n- t: bad &lt;b&gt;') == 10
    assert '| Lint | no results: see the log of `make lint` |' in text
    assert '| Coverage | no figures: see the log of `make test` |' in text
    text, _ = said('code_quality', {'test-results/unit.xml': SUITE % ''})
    assert '**Nothing is published or trained: mend what failed.**' in text


def test_a_model_that_was_registered(said):
    text, commands = said('train', dict(TRAINED, **{'report.html': 'x', 'comparison.html': 'x'}))
    assert commands == [('build.addbuildtag', 'registered-version-3')]
    assert '**Registered: version 3 of safe\\_driver\\_model.**' in text
    for row in (
            'Why | It is better.', 'AUC on the hold-out rows | 0.6300 [0.6100, 0.6500]',
            'Trained on 2 machines | 10,010 rows, 301 MB; 9,990 rows, 298 MB',
            'auc against version 2, on the same rows | +0.01000 [+0.00400, +0.01600], better in '
            '100% of resamples',
            'Drift (PSI) | ps\\_ind\\_01 has drifted.',
            f"Run in Azure ML | [r1]({LINK.replace('(', '%28').replace(')', '%29')})",
            'Report | [report.html and comparison.html, artifacts of this run](https://dev.azure.'
            'com/o/p/_build/results?buildId=7&view=artifacts&type=publishedArtifacts)'):
        assert f'\n| {row} |\n' in text


@pytest.mark.parametrize('changes, sentence, tag', [
    ({'result': 'kept', 'version': 2}, 'Kept: version 2 of safe\\_driver\\_model stays',
     'kept-version-2'),
    ({'result': 'kept', 'version': None, 'auc': None, 'decision': None}, 'Kept: version none',
     'kept'),
    ({'result': 'unchanged', 'run_id': None, 'link': None}, 'Nothing to do: version 3',
     'unchanged-version-3')])
def test_a_run_that_changed_nothing(said, changes, sentence, tag):
    text, commands = said('train', {
        'run.json': dict(RUN, **changes),
        'submitted.json': dict(SUBMITTED, run_id=changes.get('run_id', 'r1'))})
    assert f'**{sentence}' in text and commands == [('build.addbuildtag', tag)]


@pytest.mark.parametrize('run, submitted, why', [
    ({}, dict(SUBMITTED, failure='step train failed'), 'step train failed'),
    # It was stopped; run.json is of an earlier one.
    (TRAINED, dict(SUBMITTED, run_id='r2'), 'it was not waited for to its end.'),
    # Its results could not be fetched.
    (TRAINED, dict(SUBMITTED, failure='no connection'), 'no connection')])
def test_a_run_that_failed_is_not_taken_for_an_earlier_one(said, run, submitted, why):
    text, commands = said('train', dict(run, **{'submitted.json': submitted}))
    assert '**The run has no result' in text and f'\n| Why | {why} |\n' in text
    assert f"| Run | [{submitted['run_id']}](" in text and commands == []
    assert 'registered' not in text.lower()


def test_no_run_at_all(said):
    assert '**No run was started: ' in said('train', {})[0]


@pytest.mark.parametrize('stage, name, where', [
    ('deploy', 'service', 'qa'), ('production', 'endpoint', 'production')])
def test_a_version_that_serves(said, stage, name, where):
    known = dict(SERVICE, deployment='v3-abc') if stage == 'production' else SERVICE
    text, commands = said(stage, dict(
        TRAINED, **{'smoke_test.json': TESTED, name + '.json': known}))
    assert '**safe\\_driver\\_model version 3 serves.**' in text
    assert '| Scores served | 8 known rows, from 0.0188 to 0.1993, ' in text
    assert '| AUC on the hold-out rows | 0.6300' in text and '| Version before | 2 |' in text
    assert ('| Deployment | v3-abc |' in text) == (stage == 'production')
    assert commands == [('build.addbuildtag', where + '-version-3')]


@pytest.mark.parametrize('files, sentence, tags', [
    ({}, 'This stage deployed nothing.', []),
    ({'service.json': SERVICE}, 'version 3 is deployed, and the smoke test not passed.', []),
    # The test was of the version before, or of another service.
    ({'service.json': SERVICE, 'smoke_test.json': dict(TESTED, what='safe_driver_model version 2')},
     'the smoke test not passed.', []),
    ({'service.json': SERVICE, 'smoke_test.json': dict(TESTED, uri='http://127.0.0.1:5001/score')},
     'the smoke test not passed.', []),
    ({'service.json': dict(SERVICE, rolled_back=True), 'smoke_test.json': TESTED},
     'Rolled back: safe\\_driver\\_model version 3 serves again.', ['qa-rolled-back'])])
def test_a_deployment_that_failed(said, files, sentence, tags):
    text, commands = said('deploy', files)
    assert sentence + '**' in text
    assert [data for _, data in commands] == tags


def test_texts_of_others_are_only_text(said):
    """No cell, link, picture, HTML or command comes from them, and no control character."""
    good, _ = said('train', TRAINED)
    text, commands = said('train', dict(TRAINED, **{'run.json': dict(
        RUN, reason=BAD, model=BAD, link='javascript:alert(1)', decision=dict(
            DECISION, metric=BAD, drift={'columns': {BAD: 0.2}, 'sentence': BAD}))}))
    assert commands == [('build.addbuildtag', 'registered-version-3')]
    assert '\n| Run in Azure ML | r1 |\n' in text
    bars = re.findall(r'(?<!\\)\|', text)
    assert len(bars) == len(re.findall(r'(?<!\\)\|', good)) and len(text.splitlines()) == len(
        good.splitlines())
    plain = re.sub(r'\\.', '', text)
    assert not re.search(r'[<>`!\x1b]|##vso|\]\(', plain)


def test_wrong_use_and_a_spoilt_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        summary.main(['--stage', ''])
    assert end.value.code == 2
    (tmp_path / 'run.json').write_text('{"result"')
    assert summary.main(['--stage', 'train', '--out', str(tmp_path)]) == 1
    assert 'run.json holds no JSON object with result' in capsys.readouterr().err
    assert not (tmp_path / 'summary').exists()


def test_a_change_says_what_it_does_to_the_model(said):
    side = {'auc': 0.61, 'auc_interval': [0.58, 0.64], 'seconds': 2.04, 'megabytes': 250.4}
    found = {'base': 'HEAD^1', 'commit': 'c0ffee' * 7, 'here': side, 'before': dict(side, auc=0.6),
             'decision': {'metric': 'auc', 'difference': 0.01,
                          'difference_interval': [-0.002, 0.022]}}
    text, commands = said('compare', {'compare/compare.json': found})
    assert '**auc changes by +0.01000 \\[-0.00200, +0.02200\\] on the same hold-out rows.**' in text
    assert '| by HEAD^1, c0ffeec0ff | AUC 0.6000 [0.5800, 0.6400]; training 2.0 s, 250 MB |' in text
    assert '| by this change | AUC 0.6100 ' in text and not commands
    text, _ = said('compare', {'compare/compare.json': dict(
        found, before=None, decision=None, problem='make train failed:\nno such table')})
    assert '**HEAD^1 could not be compared with.**' in text and '- no such table' in text
    text, _ = said('compare', {'compare/compare.json': dict(
        found, decision={'difference': None, 'reason': 'There is no champion.'})})
    assert '**Nothing was compared: There is no champion.**' in text


def test_a_change_that_cannot_be_trained_has_a_summary(said):
    assert 'see the log of make compare' in said('compare', {})[0]
