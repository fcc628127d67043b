"""Profiles of tables, and how far one table is off another."""
import json
import math

import numpy as np
import pandas
import pytest

import drift
import sample
import table


@pytest.fixture(scope='module')
def halves():
    """Two tables of 5,000 rows from the same population."""
    frame = pandas.concat(sample.generate(10000, 4), ignore_index=True)
    return frame[:5000], frame[5000:].reset_index(drop=True)


def scores_of(frame):
    """Scores of the hold-out rows by a model that looks at one column."""
    held_out = table.split_of(frame['id'].to_numpy()) == table.HOLD_OUT
    return frame['ps_car_13'].to_numpy()[held_out] / 100


@pytest.fixture(scope='module')
def before(halves):
    return drift.make_profile(halves[0], scores_of(halves[0]))


def compared(before, second, factor=1):
    return drift.compare(before, drift.make_profile(second, scores_of(second) * factor, before))


def test_a_profile_counts_each_row_once_and_holds_none(halves, before):
    frame, profile = halves[0], before
    scores = scores_of(frame)
    assert profile['rows'] == 5000 and profile['claims'] == frame['target'].sum()
    columns = profile['columns']
    assert list(columns) == table.FEATURES
    for name, column in columns.items():
        counts = column['counts']
        values = counts.values() if isinstance(counts, dict) else counts
        assert sum(values) + column['missing'] == 5000
        assert column['missing'] == (frame[name] == -1).sum()
    assert columns['ps_ind_01']['counts'] == {
        str(value): (frame['ps_ind_01'] == value).sum() for value in range(8)}
    edges, counts = columns['ps_car_13']['edges'], columns['ps_car_13']['counts']
    assert len(edges) == 19 and edges == sorted(edges) and min(counts) > 240
    assert counts[0] == (frame['ps_car_13'] <= edges[0]).sum()
    edges, shares = profile['scores']['edges'], profile['scores']['shares']
    assert (len(edges), len(shares), profile['scores']['rows']) == (19, 20, len(scores))
    assert sum(shares) == pytest.approx(1) and edges == sorted(edges)
    assert shares[3] == ((scores > edges[2]) & (scores <= edges[3])).mean()
    assert len(json.dumps(profile)) < 12000


def test_many_whole_numbers_are_counted_in_bins_and_large_ones_keep_their_digits(halves):
    frame = halves[0].assign(ps_car_11=np.arange(5000), ps_ind_14=123456789)
    columns = drift.make_profile(frame, scores_of(frame))['columns']
    assert len(columns['ps_car_11']['edges']) == 19
    assert columns['ps_ind_14']['counts'] == {'123456789': 5000}


def test_psi_and_its_chance_equal_a_second_implementation():
    random = np.random.RandomState(1)
    for cells in (2, 5, 40):
        before, now = random.randint(0, 60, cells), random.randint(0, 500, cells)
        before[0] = now[1] = 0
        kept = [(b + 0.5, n + 0.5) for b, n in zip(before.tolist(), now.tolist()) if b or n]
        all_before, all_now = math.fsum(b for b, _ in kept), math.fsum(n for _, n in kept)
        expected = math.fsum((n / all_now - b / all_before) * math.log(n * all_before / b / all_now)
                             for b, n in kept)
        assert drift.psi(before, now)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('shares, rows, rows_now', [
    ([0.05] * 20, 400, 400), ([0.05] * 20, 5000, 300), ([0.96, 0.04], 1000, 1000),
    ([0.5] + [0.005] * 100, 2000, 2000)])
def test_chance_is_what_resamples_of_one_population_stay_below(shares, rows, rows_now):
    random = np.random.RandomState(7)
    found = [drift.psi(random.multinomial(rows, shares), random.multinomial(rows_now, shares))
             for _ in range(200)]
    share = [index / chance for index, chance in found]
    assert 0.4 < max(share) < 1


def some(frame, share):
    return np.random.RandomState(5).random_sample(len(frame)) < share


@pytest.mark.parametrize('name, change, words', [
    ('ps_car_13', lambda column: column * 1.15, 'PSI 0.'),
    ('ps_ind_15', lambda column: (column - 2).clip(0), 'no longer: 12, 13)'),
    ('ps_calc_05', lambda column: column.where(~some(column, 0.3), 4), 'PSI 0.'),
    ('ps_ind_01', lambda column: column.where(~some(column, 0.05), 9), 'new: 9)'),
    ('ps_car_11_cat', lambda column: column.where(~some(column, 0.01), 105), 'new: 105)'),
    ('ps_ind_05_cat', lambda column: column.where(column != 4, 0), 'no longer: 4)'),
    ('ps_car_02_cat', lambda column: column.where(column != 0, 1), 'no longer: 0)'),
    ('ps_reg_03', lambda column: column.where(~some(column, 0.1), -1), 'missing in 26'),
    ('ps_ind_03', lambda column: column.where(~some(column, 0.008), -1), 'before 0.0%'),
    ('target', lambda column: column.where(~some(column, 0.03), 1), 'claim rate (6.')])
def test_a_planted_drift_is_named_alone(halves, before, name, change, words):
    second = halves[1]
    found = compared(before, second.assign(**{name: change(second[name])}))
    named = {'target': ['claim rate'], 'ps_car_13': ['ps_car_13', 'scores']}
    assert found['drifted'] == named.get(name, [name]) and words in found['sentence']
    assert set(found['columns']) == set(table.FEATURES)


def test_scores_that_moved_are_named(halves, before):
    found = compared(before, halves[1], factor=1.3)
    assert found['drifted'] == ['scores']
    assert found['above_chance'] == pytest.approx(
        found['scores'] - found['chance']['scores'], abs=1e-6)


@pytest.mark.end_to_end
@pytest.mark.parametrize('rows', [1000, 5000])
def test_twenty_clean_resamples_are_without_a_warning(halves, rows):
    frame = pandas.concat(halves, ignore_index=True)
    for seed in range(20):
        order = np.random.RandomState(seed).permutation(len(frame))
        first, second = frame.iloc[order[:rows]], frame.iloc[order[rows:2 * rows]]
        found = compared(drift.make_profile(first, scores_of(first)), second)
        assert not found['drifted'] and found['above_chance'] < 0, found['sentence']
