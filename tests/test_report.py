"""The report: one HTML file that opens from disk; test_train.py has one with its plots."""
import html.parser
import re
import sys
import unittest.mock

import numpy as np
import pytest

import metrics
import report

EMPTY = {'meta', 'br'}


class Reader(html.parser.HTMLParser):
    """Collects tags, text and attributes, and holds that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.links, self.open = [], '', [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes
                       if name in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset')]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='module')
def content():
    """The arguments of report.page for a made-up model of 2000 hold-out rows."""
    random = np.random.RandomState(1)
    probability = 1 / (1 + np.exp(3 - random.normal(size=2000)))
    label = (random.random_sample(2000) < probability).astype(int)
    result = dict(metrics.summary(label, probability), auc_interval=[0.7, 0.75], rounds=30, rows={
        'training': 8000, 'early_stopping': 0, 'hold_out': 2000}, claims={
        'training': 600, 'early_stopping': 0, 'hold_out': int(label.sum())}, parameters={
        'training': {'learning_rate': 0.1}, 'rounds': 40, 'dropped_columns': ['ps_calc_*'],
        'evaluation': {'metric': 'auc', 'least_gain': 0.001}}, lineage={
        'data': '<b>table</b>.csv', 'data_sha256': 'ab' * 32, 'data_rows': 10000,
        'dataset_name': None, 'dataset_version': None, 'code_commit': None, 'build_id': '77',
        'build_uri': 'https://dev.azure.com/x', 'caller_run_id': None,
        'packages': {'python': '3.11.7'}, 'created': '2026-11-23T10:20:30Z'})
    features = [(f'feature_{number}', float(number)) for number in range(57)]
    return result, features, label, probability, ('AUC', [[10, 0.6], [20, 0.65], [30, 0.66]])


def read(text):
    """What is in the page, which needs nothing outside of itself."""
    seen = Reader(text)
    assert not [link for link in seen.links if not link.startswith('#')]
    assert not re.search(r'url\((?!#)|@import', text)
    return seen


def test_report_without_matplotlib_keeps_the_tables(content, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    result, _, label, probability, _ = content
    text = report.page(*content)
    seen = read(text)
    for words in (f"{result['auc']:.4f}", f"{result['gini']:.4f}",
                  '0.7000 to 0.7500', f"{result['top_decile_lift']:.2f}",
                  f"{result['brier']:.5f}", '<b>table</b>.csv', '2026-11-23', 'ab' * 32,
                  'learning_rate', 'ps_calc_*', 'evaluation least gain', 'python 3.11.7',
                  f'{label.mean():.3%} had a claim', 'feature_56', 'feature_37', '77',
                  'code commitnot known',
                  'training 8,000 rows (600 claims), hold-out 2,000 rows',
                  f"{metrics.deciles(label, probability)[3]['mean_score']:.2%}",
                  'plots are left out: matplotlib is not installed'):
        assert words in seen.text, words
    assert 'feature_36' not in seen.text and 'svg' not in seen.tags and '<b>table' not in text


def test_report_of_a_model_without_a_tree_that_splits_and_with_early_stopping(
        content, monkeypatch):
    monkeypatch.setattr(report, 'draw', lambda *_: dict.fromkeys(
        ('roc', 'lift', 'calibration', 'curve', 'features'), '<svg></svg>'))
    result, features, label, _, _ = content
    flat = np.full(len(label), 0.04)
    stopped = dict(result, rows=dict(result['rows'], early_stopping=500),
                   claims=dict(result['claims'], early_stopping=20))
    seen = read(report.page(dict(stopped, **metrics.summary(label, flat)),
                            [(name, 0.0) for name, _ in features], label, flat, ('log loss', [])))
    for words in ('0.5000', 'The model uses no feature',
                  'log loss of the rows that decide when to stop as trees are added; 30 are kept',
                  '(600 claims), early stopping 500 rows (20 claims), hold-out 2,000 rows'):
        assert words in seen.text, words


def test_no_features_can_be_drawn():
    axes = unittest.mock.MagicMock()
    report.draw_features(axes, [])
    axes.set_ylim.assert_called_once_with(0.5, -0.5)


def test_calibration_interval_is_wilsons():
    """Its bounds are the claim rates from which what was seen is 1.96 standard errors away."""
    for bound in report.interval(0.04, 1000):
        assert abs(0.04 - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / 1000))
    assert report.interval(0, 50)[0] == pytest.approx(0, abs=1e-12)
