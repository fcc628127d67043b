"""`make monitor`: figures of a log that is made up, so that the truth is known."""
import json
import random
import sys
import time

import pytest

import drift
import monitor
from served import NAME

HOUR = 3600
EDGES = [place / 20 for place in range(1, 20)]
PROFILE = {'rows': 4000, 'edges': EDGES, 'shares': [0.05] * 20}


def line(seconds_ago, status=200, rows=1, bins=None, version='3', milliseconds=2.0):
    """What the server writes of a request."""
    moment = time.time() - seconds_ago
    text = json.dumps(dict({
        'request_id': 'x', 'service': 'safe-driver', 'version': version, 'status': status,
        'rows': rows, 'traceparent': '', 'milliseconds': milliseconds}, **(
            {'bins': bins} if bins else {})))
    stamp = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(moment))
    return f'{stamp},{int(moment % 1 * 1000):03} I [7] azmlinfsrv.print - {text}\n'


def scored(count, highest=19, **more):
    """Lines of requests of one row each, whose scores are even over the bins up to the highest."""
    rng = random.Random(count)
    return [line(rng.uniform(60, 20 * HOUR), bins={rng.randint(0, highest): 1},
                 milliseconds=index + 1, **more) for index in range(count)]


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / 'registry' / NAME / '3' / 'model'
    folder.mkdir(parents=True)
    (folder / 'profile.json').write_text(json.dumps({'scores': PROFILE}))
    return tmp_path


@pytest.fixture
def watch(out, capsys, monkeypatch):
    """A function that writes serve.log and monitors it: (exit code, monitor.json, what is said)."""
    # As where matplotlib is not installed; a test of its own draws the picture, which takes long.
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)

    def act(lines, code, **settings):
        (out / 'serve.log').write_text(''.join(lines))
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        assert monitor.main(['--out', str(out), '--model-name', NAME]) == code
        said = capsys.readouterr()
        return json.loads((out / 'monitor.json').read_text()), said.out + said.err
    return act


def test_the_figures_are_those_of_the_lines_in_the_window(out, watch):
    (out / 'serve.log.1').write_text(''.join(scored(100)))
    found, said = watch(
        scored(400) + [line(HOUR, 500, rows=0)] * 20 + [line(HOUR, 400, rows=0)] * 5
        + [line(HOUR, 413, rows=0), line(25 * HOUR), line(HOUR)[:-40] + '\n', line(HOUR)[:170]]
        + ['2026-11-27 16:57:25,437 I [7] azmlinfsrv.print - {"model": "m", "version": "3"}\n',
           'Traceback (most recent call last):\n', '\xff\n'], code=1)
    assert {name: found[name] for name in ('requests', 'rows', 'failed', 'refused', 'cut_lines')
            } == {'requests': 526, 'rows': 500, 'failed': 20, 'refused': 6, 'cut_lines': 2}
    # Durations were 1 to 400 and 1 to 100 milliseconds.
    assert found['p50_ms'] == pytest.approx(150, rel=0.006)
    assert found['p95_ms'] == pytest.approx(375, rel=0.006)
    assert found['scores']['rows'] == 500 and sum(found['scores']['counts']) == 500
    assert '3.80 %' in said and '2 lines were cut' in said
    assert [text.split(':')[0] for text in found['beyond']] == ['failed (5xx)']
    assert 'MONITOR_MAX_FAILURE_PERCENT' in said.split('error: ')[1]
    found, said = watch(scored(400), code=1, MONITOR_MAX_P95_MS=300)
    assert '95 % within: 376 ms, at most 300 (MONITOR_MAX_P95_MS)' in said
    found, said = watch(scored(400), code=0, MONITOR_MAX_P95_MS=500)
    assert found['beyond'] == [] and 'is within its limits' in said


@pytest.mark.parametrize('rows, highest, most, code, limit', [
    (1000, 19, 0.2, 0, 'MONITOR_MAX_PSI'), (1000, 9, 0.2, 1, 'MONITOR_MAX_PSI'),
    # Of 120 rows chance alone gives up to 0.4.
    (120, 19, 0.01, 0, 'by chance alone'), (120, 9, 0.01, 1, 'by chance alone')])
def test_scores_are_held_against_those_of_the_hold_out(watch, rows, highest, most, code, limit):
    found, said = watch(scored(rows, highest), code, MONITOR_MAX_P95_MS=9999, MONITOR_MAX_PSI=most)
    index, _ = drift.psi([share * 4000 for share in PROFILE['shares']], found['scores']['counts'])
    assert found['scores']['psi'] == pytest.approx(index, abs=1e-12)
    assert len(found['beyond']) == code and limit in said
    assert index > most or rows == 1000 and not code


def test_chance_exceeds_its_level_about_once_in_1000_times():
    rng, beyond = random.Random(1), 0
    for _ in range(400):
        counts = [0] * 20
        for place in rng.choices(range(20), k=300):
            counts[place] += 1
        index, chance = monitor.psi([0.05] * 20, 1e9, counts)
        assert 0.1 < chance < 0.2
        beyond += index > chance
    assert beyond <= 3


def test_only_the_version_that_answered_last_is_compared(watch):
    old = scored(500, highest=3, version='2')
    last = [line(30 + place, bins={place: 5}, rows=5, version='3') for place in range(20)]
    found, said = watch(old + last, code=0, MONITOR_MAX_P95_MS=9999)
    assert found['versions'] == {'2': 500, '3': 20} and found['version'] == '3'
    assert found['scores']['counts'] == [5] * 20 and '500 by version 2' in said


def test_too_few_requests_and_scores_that_nothing_is_known_of_are_said(out, watch):
    found, said = watch([line(HOUR, 500)] * 99, code=0)
    assert not found['judged'] and 'too few requests to judge: 99' in said and '99 of them' in said
    assert watch([], code=0)[0]['requests'] == 0
    (out / 'registry' / NAME / '3' / 'model' / 'profile.json').unlink()
    found, said = watch(scored(200), code=0)
    assert found['scores'] is None and 'version 3 has no profile.json' in said
    assert 'no picture' in said


def test_what_cannot_be_monitored_is_a_sentence(out, capsys, monkeypatch):
    def said(code, *argv):
        assert monitor.main(['--out', str(out), *argv]) == code
        return capsys.readouterr().err
    assert 'make serve' in said(1)
    assert 'SUBSCRIPTION_ID is not set' in said(2, '--service', 'aci')
    monkeypatch.setenv('MONITOR_MAX_PSI', 'little')
    assert "MONITOR_MAX_PSI is 'little': it must be a number" in said(2)


@pytest.mark.end_to_end
def test_the_picture_shows_what_there_is(out, monkeypatch):
    pytest.importorskip('matplotlib')
    import settings
    config = settings.read({})
    for lines in (scored(300), [line(HOUR, 500)] * 200, []):
        window = monitor.Window(24, time.time())
        groups, scores = monitor.count_lines(lines, window)
        found = monitor.figures(groups, scores, PROFILE)
        drawn = monitor.picture('title', groups, found, window, config)
        assert drawn.startswith(b'\x89PNG')


class Answers:
    """In place of Azure: what it answers to one query after the other."""

    def __init__(self, *answers):
        self.left = list(answers)

    def ask(self, *_):
        return self.left.pop(0)


def answer(rows, names):
    return {'tables': [{'name': 'PrimaryResult', 'rows': rows,
                        'columns': [{'name': name, 'type': 'dynamic'} for name in names]}]}


REQUESTS = ('slot', 'version', 'status', 'steps', 'requests', 'rows', 'newest')
SCORES = ('version', 'bin', 'rows')
ROW = ['3', '3', '200', '70', '120', '240', '2026-11-27T17:00:00.1Z']


def test_numbers_of_azure_may_be_texts_and_nothing_may_be_no_answer():
    window = monitor.Window(24, time.time())
    groups, scores = monitor.azure_counts(Answers(
        answer([ROW, ['3', '', None, None, 2, None, '2026-11-27T17:00:00Z']], REQUESTS),
        answer([['3', '7', '240'], ['3', None, None]], SCORES)), '', 'x', window)
    found = monitor.figures(groups, scores, PROFILE)
    assert (found['requests'], found['rows'], found['cut_lines']) == (120, 240, 2)
    assert found['scores']['counts'] == [0] * 7 + [240] + [0] * 12
    assert found['p50_ms'] == pytest.approx(2.01, abs=0.01)
    groups, scores = monitor.azure_counts(Answers({}, {}), '', 'x', window)
    assert monitor.figures(groups, scores, None)['requests'] == 0


@pytest.mark.parametrize('answers, words', [
    ([{'error': {'code': 'PartialError', 'message': 'too\nmuch'}, **answer([ROW], REQUESTS)}],
     'only a part of the lines (too much)'),
    ([{'error': 'x'}], 'only a part'), ([{'tables': [{'name': 'x'}]}], 'holds no table'),
    ([{'tables': 3}], 'holds no table'), ([{'tables': [3]}], 'holds no table'),
    ([answer([['x'] * 7], REQUESTS)], 'lacks what was asked'),
    ([answer([ROW[1:]], REQUESTS[1:])], 'lacks what was asked'),
    ([answer([ROW], REQUESTS), answer([['3', 'x', 1]], SCORES)], 'lacks what was asked')])
def test_an_answer_that_is_not_whole_is_not_judged(answers, words):
    with pytest.raises(monitor.AzureError) as raised:
        monitor.azure_counts(Answers(*answers), '', 'x', monitor.Window(24, time.time()))
    assert words in str(raised.value)
