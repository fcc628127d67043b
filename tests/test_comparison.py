"""comparison.html: champion beside challenger, for whoever approves a deployment."""
import html
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import comparison
import drift
import evaluate
import report
import sample
import table
from test_report import SVG, content, read  # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)


@pytest.fixture(scope='module')
def arguments():
    """Those of comparison.page for models that know the truth, but the new one not everywhere."""
    frame = next(sample.generate(9000, 1))
    before = sample.claim_probabilities(frame)
    frame['target'] = (np.random.RandomState(3).random_sample(9000) < 4 * before).astype(int)
    after = np.where(frame['ps_car_01_cat'] == 7, before[::-1], before)
    figures, differences = evaluate.compare(
        frame['target'].to_numpy(), before, after, 'auc', 'maximize')
    profile = drift.make_profile(frame, before)
    decision = dict(figures, register=False, metric='auc', champion_version=3, model='<i>model',
                    rule='register when it is better', reason='It is <b>not</b> better.',
                    drift=drift.compare(profile, profile))
    return decision, frame, (before, after), differences


def test_it_says_all_in_words_and_tables_without_matplotlib(arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    decision, frame, scores, _ = arguments
    root, text = read(comparison.page(*arguments))
    rows = frame['ps_car_01_cat'] == 7
    for words in ('Version 3 is kept. It is <b>not</b> better.', 'Version 3 of <i>model',
                  'register when it is better', f"{decision['difference']:+.5f}",
                  f"{decision['difference_interval'][0]:+.5f} to", '%of the resamples have',
                  f'{scores[1].mean():.3%}', 'PSI at most', 'plots are left out'):
        assert words in text, words
    assert not list(root.iter(SVG))
    worst = text.partition('of the difference')[2]
    assert worst.startswith(f'ps_car_01_cat = 7{rows.sum():,}{frame["target"][rows].sum():,}')


def test_a_comparison_without_drift_or_segments_is_a_page_too(arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    decision, frame, scores, differences = arguments
    few = np.arange(300)
    decision = dict(decision, register=True, drift=evaluate.unmeasured('it has no profile'))
    _, text = read(comparison.page(decision, frame.iloc[few].assign(ps_ind_06_bin=0),
                                   [one[few] for one in scores], differences))
    assert 'The new model is to be registered.' in text and 'it has no profile' in text


def test_segments_have_enough_rows_to_be_judged(arguments):
    _, frame, scores, _ = arguments
    found = list(comparison.segments(frame, frame['target'].to_numpy(), scores))
    assert all(claims >= 20 <= rows - claims for _, rows, claims, *_ in found)
    names = [name for name, *_ in found]
    assert 'ps_ind_06_bin = 1' in names and 'ps_car_03_cat missing' in names
    assert not [name for name in names if 'calc' in name or name.startswith('ps_car_13')]


@pytest.mark.end_to_end
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium')
@pytest.mark.parametrize('width', [1100, 400])
def test_pages_fit_the_window_without_a_request_or_an_error(arguments, content, tmp_path,  # noqa: F811
                                                            width):
    probe = ('<script>document.title = [document.documentElement.scrollWidth, innerWidth, '
             'performance.getEntriesByType("resource").length].join(" ")</script></body>')
    for page in (comparison.page(*arguments), report.page(*content)):
        assert len(list(read(page)[0].iter(SVG))) >= 4
        path = tmp_path / 'page.html'
        path.write_text(page.replace('</body>', probe), encoding='utf-8')
        done = subprocess.run(
            [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
             f'--user-data-dir={tmp_path}/profile', f'--window-size={width},900', '--dump-dom',
             path.as_uri()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
            universal_newlines=True)
        found = html.unescape(re.search('<title>(.*?)</title>', done.stdout).group(1))
        wide, window, requests = map(int, found.split())
        assert wide <= window <= max(width, 500) and requests == 0
        assert 'CONSOLE' not in done.stderr
