"""The figures by which a model is judged, against brute force and hand-made cases."""
import numpy as np
import pytest

import metrics


def pairs_auc(label, score):
    """Share of (claim, other) pairs in which the claim scores higher, ties counted half."""
    above = np.asarray(score)[np.asarray(label) == 1][:, None]
    below = np.asarray(score)[np.asarray(label) == 0][None, :]
    return ((above > below) + (above == below) / 2).mean()


def some_rows(rows, seed=1):
    random = np.random.RandomState(seed)
    probability = 1 / (1 + np.exp(3 - random.normal(size=rows)))
    return (random.random_sample(rows) < probability).astype(int), probability


def test_auc_counts_pairs_and_ties():
    label, score = some_rows(500)
    rounded = np.round(score, 2)
    assert len(set(rounded)) < 60
    for values in (score, rounded, -rounded):
        assert metrics.auc(label, values) == pytest.approx(pairs_auc(label, values), abs=1e-12)
    assert metrics.auc([0, 1, 1], [0.5, 0.5, 0.5]) == 0.5
    assert metrics.gini([0, 1], [0.1, 0.2]) == 1


def test_expected_auc_is_the_mean_over_labels():
    random = np.random.RandomState(3)
    probability = random.uniform(0.2, 0.8, 400)
    score = probability + random.normal(size=400)
    drawn = [metrics.auc(random.random_sample(400) < probability, score) for _ in range(300)]
    assert metrics.expected_auc(probability, score) == pytest.approx(np.mean(drawn), abs=0.004)


def test_losses_and_lift_by_hand():
    assert metrics.log_loss([1, 0], [0.25, 0.5]) == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert np.isfinite(metrics.log_loss([1, 0], [0, 1]))
    assert metrics.brier([1, 0], [0.25, 0.5]) == pytest.approx((0.5625 + 0.25) / 2)
    label = np.zeros(100)
    label[:20] = 1
    assert metrics.top_decile_lift(label, -np.arange(100.0)) == pytest.approx(5)
    assert metrics.top_decile_lift(label, np.arange(100.0)) == 0
    groups = metrics.deciles(label, -np.arange(100.0))
    assert [group['rows'] for group in groups] == [10] * 10
    assert [round(group['claim_rate'], 9) for group in groups] == [1, 1] + [0] * 8


@pytest.mark.parametrize('label, score, message', [
    ([0, 0], [1, 2], 'both classes'), ([1, 1], [1, 2], 'both classes'), ([], [], 'both classes'),
    ([0, 1], [1], '2 labels but 1 scores'), ([0, 1], [1, np.nan], '1 of 2 scores'),
    ([0, 2], [1, 2], 'other than 0 and 1')])
def test_what_no_figure_exists_for_is_refused(label, score, message):
    with pytest.raises(ValueError, match=message):
        metrics.auc(label, score)


@pytest.mark.parametrize('rows', [300, 4 * metrics.BLOCKS])
def test_bootstrap_interval_is_as_wide_as_chance(rows):
    """The interval's width is that of AUCs of fresh samples: 3.92 standard deviations."""
    fresh = [metrics.auc(*some_rows(rows, seed)) for seed in range(60)]
    low, high = metrics.bootstrap_auc_interval(*some_rows(rows), seed=1, draws=400)
    assert low < metrics.auc(*some_rows(rows)) < high
    assert high - low == pytest.approx(3.92 * np.std(fresh), rel=0.35)
    assert [low, high] == metrics.bootstrap_auc_interval(*some_rows(rows), seed=1, draws=400)


def test_paired_bootstrap_is_narrower_than_two_intervals():
    label, score = some_rows(2000)
    worse = score + np.random.RandomState(4).normal(0, 0.01, 2000)
    found = metrics.paired_bootstrap(label, worse, score, seed=1, draws=200)
    assert found.mean() == pytest.approx(
        metrics.auc(label, score) - metrics.auc(label, worse), abs=found.std())
    low, high = np.percentile(found, [2.5, 97.5])
    apart = metrics.bootstrap_auc_interval(label, score)
    assert high - low < (apart[1] - apart[0]) / 2
    assert (metrics.paired_bootstrap(label, score, worse, seed=1, draws=200) == -found).all()
    assert not metrics.paired_bootstrap(label, score, score, draws=50).any()


def test_the_interval_of_a_share_is_wilsons():
    """Its bounds are the claim rates from which what was seen is 1.96 standard errors away."""
    for bound in metrics.share_interval(0.04, 1000):
        assert abs(0.04 - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / 1000))
    assert metrics.share_interval(0, 50)[0] == pytest.approx(0, abs=1e-12)


def test_interval_of_an_auc_difference_is_as_wide_as_the_bootstraps():
    random = np.random.RandomState(2)
    label = (random.random_sample(3000) < 0.1).astype(int)
    first = label + random.normal(size=3000)
    second = first.round(1) + random.normal(size=3000) / 2
    before, after, (low, high) = metrics.auc_difference(label, first, second)
    assert (before, after) == (metrics.auc(label, first), metrics.auc(label, second))
    draws = metrics.paired_bootstrap(label, first, second, draws=400)
    assert [low, high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.004)
    assert low < after - before < high < 0
    assert metrics.auc_difference(label, first, first)[2] == [0, 0]
