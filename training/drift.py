"""What a table is like when a model is trained on it, and how far off another one is.

The population stability index (PSI) of two samples is the sum over cells of (now - before) *
ln(now / before), of their shares of the rows. Two samples of the same population, of n and m rows,
have one that is chi-square distributed times 1/n + 1/m (Yurdakul, Naranjo 2020, doi
10.21314/JRMV.2020.227).
"""
import math

import numpy as np
import pandas

import metrics
import table

BINS = 20
# A column of whole numbers with more values than this is counted in bins, as fractions are.
MOST_VALUES = 128
# So far above chance a PSI counts, so far off a claim rate, and so much more of a column missing.
PSI_COUNTS, CLAIM_RATE_COUNTS, MISSING_COUNTS = 0.1, 0.1, 0.01
# What chance exceeds once in 30,000 times, as 57 columns are looked at in several ways.
Z = 4.0
VALUES_NAMED = 5
PIECE = 1 << 20


def make_profile(frame, scores, like=None, gather=np.asarray):
    """What profile.json holds of a checked table, and the scores of its hold-out rows: no row.

    gather: the whole column of a part of it, or None where another node has it all, and so there is
    no profile.

    {"rows", "claims", "columns": {name: {"counts": {value: rows}, "missing"}, of fractions
    {"edges", "counts": [rows, ...], "missing"}}, "scores": {"rows", "edges": 19, "shares": 20}}.
    Edges are quantiles, or those of the profile `like`; each belongs to the bin below it.
    """
    columns, known = {}, like['columns'] if like else {}
    target = gather(frame['target'].to_numpy())
    for name in table.FEATURES:
        values = gather(frame[name].to_numpy())
        if values is None:
            continue
        missing = values == table.MISSING
        columns[name] = dict(counted(values[~missing], known.get(name)), missing=int(missing.sum()))
    if target is None:
        return None
    edges = like['scores']['edges'] if like else np.quantile(scores, inner(BINS)).tolist()
    shares = [count / len(scores) for count in in_bins(scores, edges)]
    return {'rows': len(target), 'claims': int(target.sum()), 'columns': columns,
            'scores': {'rows': len(scores), 'edges': edges, 'shares': shares}}


def inner(bins):
    return [number / bins for number in range(1, bins)]


def counted(values, like):
    """How often each value is there, or how many are in each bin; like: how the other counted."""
    if values.dtype.kind == 'i' and 'edges' not in (like or {}):
        # Far faster than numpy.unique, which sorts.
        found = pandas.Series(values).value_counts().sort_index()
        if like or len(found) <= MOST_VALUES:
            return {'counts': dict(zip(map(str, found.index), found.tolist()))}
    edges = like['edges'] if like else sorted(
        {float(f'{edge:.6g}') for edge in np.quantile(values, inner(BINS))} if len(values) else [])
    return {'edges': edges, 'counts': in_bins(values, edges)}


def in_bins(values, edges):
    counts = np.zeros(len(edges) + 1, dtype=int)
    # What numpy makes of a piece takes twice its memory.
    for start in range(0, len(values), PIECE):
        places = np.searchsorted(edges, values[start:start + PIECE])
        counts += np.bincount(places, minlength=len(counts))
    return counts.tolist()


def psi(before, now):
    """(PSI of the counts in the same cells, what chance alone hardly exceeds with so few rows).

    Half a row is added to each cell that any row is in, so that empty ones count.
    """
    before, now = np.array([before, now], dtype=float)[:, np.add(before, now) > 0] + 0.5
    first, second = before / before.sum(), now / now.sum()
    free = max(1, len(before) - 1)
    # The quantile of chi-square by Wilson and Hilferty (1931, doi 10.1073/pnas.17.12.684).
    quantile = free * (1 - 2 / (9 * free) + Z * math.sqrt(2 / (9 * free))) ** 3
    return (float(((second - first) * np.log(second / first)).sum()),
            quantile * (1 / before.sum() + 1 / now.sum()))


def above_chance(before, rows_before, now, rows_now):
    """Whether a share now, `now` of `rows_now`, is surely another than before."""
    pooled = (before + now) / (rows_before + rows_now)
    error = math.sqrt(pooled * (1 - pooled) * (1 / rows_before + 1 / rows_now))
    return abs(now / rows_now - before / rows_before) > Z * error


def only_in(some, rows, others, rows_others):
    """The values of which some rows have so many and the others none that it is no chance.

    By chance, each row with such a value is one of `rows` and not one of `rows_others`.
    """
    limit = -math.log(math.erfc(Z / math.sqrt(2)) / 2) / math.log1p(rows_others / rows)
    found = [value for value in some if some[value] > limit and not others.get(value)]
    more = len(found) - VALUES_NAMED
    return ', '.join(found[:VALUES_NAMED]) + (f' and {more} more' if more > 0 else '')


def compare_column(before, now, rows, rows_now):
    """(PSI, what it hardly exceeds by chance, [what there is to say]) of a column of profiles."""
    first, second = [dict(part['counts'] if isinstance(part['counts'], dict)
                          else enumerate(part['counts'])) for part in (before, now)]
    words = []
    if 'edges' not in before:
        words += [f'{what}: {values}' for what, values in (
            ('new', only_in(second, rows_now, first, rows)),
            ('no longer', only_in(first, rows, second, rows_now))) if values]
    was, missing = before['missing'], now['missing']
    if above_chance(was, rows, missing, rows_now) and (
            not was or missing / rows_now - was / rows >= MISSING_COUNTS):
        words.append(f'missing in {missing / rows_now:.1%}, before {was / rows:.1%}')
    values = list(first.keys() | second.keys())
    index, chance = psi(*[[part.get(value, 0) for value in values] + [gap]
                          for part, gap in ((first, was), (second, missing))])
    return index, chance, [f'PSI {index:.2f}'] * (index >= chance + PSI_COUNTS) + words


def compare(before, now):
    """How a table differs from the one before: two profiles, the second made like the first.

    {"columns": {name: PSI}, "scores": PSI, "chance": {name: what it hardly exceeds by chance},
    "above_chance": the largest PSI less that, "drifted": [name, ...], "sentence"}.
    """
    rows, rows_now = before['rows'], now['rows']
    results = {name: compare_column(before['columns'][name], now['columns'][name], rows, rows_now)
               for name in table.FEATURES if name in before['columns']}
    scores = [{'missing': 0, 'edges': part['edges'], 'counts': [
        share * part['rows'] for share in part['shares']]} for part in (
            before['scores'], now['scores'])]
    results['scores'] = compare_column(
        *scores, before['scores']['rows'], now['scores']['rows'])
    claims = before['claims'], rows, now['claims'], rows_now
    was, rate = before['claims'] / rows, now['claims'] / rows_now
    low, high = metrics.share_interval(rate, rows_now)
    claim_rate = f'{rate:.2%} [{low:.2%}, {high:.2%}], before {was:.2%}'
    changed = above_chance(*claims) and abs(rate / was - 1) >= CLAIM_RATE_COUNTS
    found = [(name, words) for name, (_, _, words) in results.items() if words]
    found += [('claim rate', [claim_rate])] * changed
    largest = max(results, key=lambda name: results[name][0])
    sentence = f'PSI at most {results[largest][0]:.3f} ({largest}), claim rate {claim_rate}'
    if found:
        sentence = '; '.join(f"{name} ({', '.join(words)})" for name, words in found)
    indices = {name: round(index, 6) for name, (index, _, _) in results.items()}
    return {'scores': indices.pop('scores'), 'columns': indices,
            'chance': {name: round(chance, 6) for name, (_, chance, _) in results.items()},
            'above_chance': round(max(index - chance for index, chance, _ in results.values()), 6),
            'drifted': [name for name, _ in found], 'sentence': sentence}
