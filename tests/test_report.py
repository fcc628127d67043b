"""The report: one HTML file that opens from disk, with or without matplotlib."""
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import metrics
import report

SVG = '{http://www.w3.org/2000/svg}svg'
LINKS = re.compile('src|href|action|data|srcset')


def read(page):
    """(root, text) of a page, which is well-formed XML and links to nothing outside of itself."""
    root = ElementTree.fromstring(page)
    links = [value for element in root.iter() for name, value in element.items()
             if LINKS.fullmatch(name.split('}')[-1])]
    assert not [link for link in links if not link.startswith('#')]
    assert not re.search(r'url\((?!#)|@import', page)
    return root, ''.join(root.itertext())


@pytest.fixture(scope='module')
def content():
    """The arguments of report.page for a made-up model of 2000 hold-out rows."""
    random = np.random.RandomState(1)
    probability = 1 / (1 + np.exp(3 - random.normal(size=2000)))
    label = (random.random_sample(2000) < probability).astype(int)
    result = dict(metrics.summary(label, probability), auc_interval=[0.7, 0.75], rounds=30,
                  warnings=['<i>copies'], rows={
        'training': 8000, 'early_stopping': 0, 'hold_out': 2000}, claims={
        'training': 600, 'early_stopping': 0, 'hold_out': int(label.sum())}, parameters={
        'training': {'learning_rate': 0.1}, 'rounds': 40, 'dropped_columns': ['ps_calc_*'],
        'evaluation': {'metric': 'auc', 'least_gain': 0.001}, 'card': {
            'intended_use': 'To <rank>.', 'limits': ['Weak & small.'], 'training_period': '2017'}},
        segments=[{'segment': 'ps_ind_06_bin = 1', 'rows': 400, 'claims': 20, 'mean_score': 0.04,
                   'auc': 0.61}, {'segment': 'ps_car_01_cat missing', 'rows': 1, 'claims': 0,
                                  'mean_score': 0.03, 'auc': None}], lineage={
        'data': '<b>table</b>.csv', 'data_sha256': 'ab' * 32, 'data_rows': 10000,
        'dataset_name': None, 'dataset_version': None, 'code_commit': None, 'build_id': '77',
        'build_uri': 'https://dev.azure.com/x', 'caller_run_id': None,
        'packages': {'python': '3.11.7'}, 'created': '2026-11-23T10:20:30Z'})
    features = [(f'feature_{number}', float(number)) for number in range(57)]
    return result, features, label, probability, ('AUC', [[10, 0.6], [20, 0.65], [30, 0.66]])


def test_report_says_all_in_words_and_tables_without_matplotlib(content, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    result, _, label, probability, _ = content
    root, text = read(report.page(*content))
    fourth = metrics.deciles(label, probability)[3]
    for words in (f"{result['auc']:.4f}", f"{result['gini']:.4f}",
                  '0.7000 to 0.7500', f"{result['top_decile_lift']:.2f}",
                  f"{result['brier']:.5f}", '<b>table</b>.csv', '2026-11-23', 'ab' * 32,
                  'not to be overlooked<i>copies', 'learning rate', 'ps_calc_*',
                  'evaluation least gain', 'packages python3.11.7', 'feature_56', 'feature_37',
                  f'{label.mean():.3%} had a claim', '77', 'claims training600',
                  'To <rank>.', 'Weak & small.', '2017', '5.00%, 3.26% to 7.60%4.00%0.6100',
                  'ps_car_01_cat missing10', 'rows training8000', 'rows hold out2000',
                  f"{fourth['mean_score']:.2%}"):
        assert words in text, words
    assert 'feature_36' not in text
    assert not list(root.iter(SVG))
    assert 'plots are left out: matplotlib is not installed' in text


@pytest.mark.end_to_end
def test_report_of_a_model_without_a_tree_that_splits_and_with_early_stopping(content):
    result, features, label, _, _ = content
    flat = np.full(len(label), 0.04)
    counts = dict(result['rows'], early_stopping=500)
    root, text = read(report.page(
        dict(result, rows=counts, claims=counts, **metrics.summary(label, flat)),
        [(name, 0.0) for name, _ in features], label, flat, ('log loss', [[1, 0.5]])))
    assert '0.5000' in text and 'The model uses no feature' in text
    if list(root.iter(SVG)):
        assert 'Learning curve, stopping rows' in text and 'It decided how many.' in text
