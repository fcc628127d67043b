"""Make a synthetic safe driver table from the published statistics of the real one.

    python training/sample.py --rows 100000 --out outputs/data/safe_driver.csv

columns.json holds what is published: value frequencies of the 595,212 rows, and the correlations of
the first 10,000. Each row is drawn from a normal distribution with those correlations, and each
component turned into the value of the same rank (a Gaussian copula), so the columns have the real
frequencies and hang together much as the real ones do. The claims follow log_odds below, an
invention in the size and direction of published findings; ps_calc_* have no part in it.
"""
import argparse
import math
import os
import sys

import table

CHUNK_ROWS = 10000
ROWS_PUBLISHED = 595212
# In the real table 40 % of all policies were drawn from ids without gaps.
SHARE_OF_IDS = 0.4
CLAIM_RATE = 0.036448


def generate(rows, seed):
    """A DataFrame of `rows` rows in the standard columns; whole numbers int8 (id int32), the others
    float64. The same seed gives the same rows; with more rows, the same ones first."""
    import pandas
    return pandas.concat(list(_chunks(rows, seed)), ignore_index=True)


def claim_probabilities(frame):
    """The probability that each row of features was given when its target was drawn, shape (rows,).
    """
    import numpy
    return 1 / (1 + numpy.exp(-_log_odds(frame)))


def _log_odds(frame):
    import numpy

    def by_value(name, effects):
        values = frame[name].values
        return sum(effect * (values == value) for value, effect in effects.items())

    def bumps(name, size):
        """An effect of each code in no order, as categories have; fixed for good."""
        return size * numpy.sqrt(2) * numpy.sin(12.9898 * frame[name].values.astype(float) + 1)

    def number(name, typical):
        """The column as float64, its missing values replaced by a typical one."""
        values = frame[name].values.astype(numpy.float64)
        return numpy.where(values == table.MISSING, typical, values)

    car_13 = numpy.tanh((number('ps_car_13', .81) - .81) / .45)
    region = numpy.tanh(number('ps_reg_03', .72) - .72)
    age = number('ps_ind_15', 7) - 7.3
    seats = number('ps_ind_03', 4) - 4.4
    tenure = number('ps_ind_01', 1) - 1.9
    main = (
        .42 * car_13 + .28 * region + .22 * numpy.sqrt(number('ps_reg_02', .3))
        + .20 * (number('ps_reg_01', .6) - .6) - .028 * age + .035 * tenure
        + .009 * seats ** 2 + .012 * seats
        + .8 * (number('ps_car_12', .37) - .38) + .05 * (number('ps_car_15', 3) - 3)
        - 1.5 * (number('ps_car_14', .37) - .37) + .10 * (frame['ps_car_14'].values == -1)
        + .42 * frame['ps_ind_17_bin'].values - .08 * frame['ps_ind_16_bin'].values
        + .22 * frame['ps_ind_07_bin'].values - .16 * frame['ps_ind_06_bin'].values
        + .06 * (frame['ps_ind_04_cat'].values == 1) + .05 * (number('ps_car_11', 3) < 2))
    categories = (
        by_value('ps_ind_05_cat', {-1: .65, 1: .25, 2: .55, 3: .2, 4: .35, 5: .45, 6: .5})
        + by_value('ps_ind_02_cat', {-1: .6, 2: .06, 3: .03, 4: .18})
        + by_value('ps_car_07_cat', {-1: .35, 0: .4})
        + by_value('ps_car_09_cat', {-1: .6, 0: -.05, 1: .25, 3: .1, 4: .3})
        + by_value('ps_car_01_cat', {-1: .7, 0: .15, 3: .15, 4: -.1, 5: .1, 6: -.08, 8: .12, 9: .1,
                                     10: .05, 11: .1})
        + by_value('ps_car_02_cat', {0: .08}) + by_value('ps_car_03_cat', {0: .1, 1: .06})
        + by_value('ps_car_08_cat', {0: .06})
        + bumps('ps_car_04_cat', .06) + bumps('ps_car_06_cat', .07) + bumps('ps_car_11_cat', .13))
    together = (
        - .05 * frame['ps_ind_17_bin'].values * age
        + .20 * frame['ps_ind_07_bin'].values * car_13
        - .20 * car_13 * region
        + .25 * (frame['ps_ind_05_cat'].values > 0) * region
        - .012 * tenure * seats)
    return SCALE * (main + categories + together) + INTERCEPT


# Set so that the claim rate is the published one and no model can pass an AUC of about 0.647.
SCALE = 0.915
INTERCEPT = -3.8709


def _chunks(rows, seed):
    """Frames of up to CHUNK_ROWS rows."""
    import numpy
    import pandas
    latent = list(table.PUBLISHED["correlations"])
    noise = [name for name in table.FEATURES if name.startswith('ps_calc_')]
    correlations = numpy.eye(len(latent))
    for row, name in enumerate(latent):
        correlations[row, :row] = correlations[:row, row] = table.PUBLISHED["correlations"][name]
    mixer = numpy.linalg.cholesky(correlations).T
    last_id = 0
    for start in range(0, rows, CHUNK_ROWS):
        random = numpy.random.Generator(numpy.random.PCG64(
            numpy.random.SeedSequence([seed, start // CHUNK_ROWS])))
        normal = random.standard_normal((len(latent) + len(noise), CHUNK_ROWS))
        normal[:len(latent)] = mixer.T.dot(normal[:len(latent)])
        columns = {}
        for name, values in zip(latent + noise, normal):
            if name in table.PUBLISHED["choices"]:
                choices = table.PUBLISHED["choices"][name]
                shares = [_known(member)['counts']['1'] for member in choices if member]
                shares.insert(choices.index(0) if 0 in choices else len(choices),
                              ROWS_PUBLISHED - sum(shares))
                chosen = numpy.searchsorted(_cuts(shares[:len(choices)]), values)
                for code, member in enumerate(choices):
                    if member:
                        columns[member] = (chosen == code).astype(numpy.int8)
            else:
                columns[name] = _values(_known(name), values)
        columns['ps_ind_14'] = sum(columns['ps_ind_%d_bin' % number] for number in range(10, 14))
        gaps = numpy.floor(numpy.log1p(-random.random(CHUNK_ROWS)) / math.log(1 - SHARE_OF_IDS))
        columns['id'] = (last_id + numpy.cumsum(gaps + 1)).astype(numpy.int32)
        last_id = columns['id'][-1]
        frame = pandas.DataFrame(columns)
        claims = random.random(CHUNK_ROWS) < claim_probabilities(frame)
        frame["target"] = claims.astype(numpy.int8)
        yield frame[table.COLUMNS][:rows - start]


def _known(name):
    return table.KNOWN[name]


def _cuts(counts):
    """Where to cut a standard normal so that its pieces have the shares of `counts`."""
    import numpy
    grid, below = _normal()
    return numpy.interp(numpy.cumsum(counts)[:-1] / sum(counts), below, grid)


def _normal():
    import numpy
    grid = numpy.linspace(-6, 6, 6001)
    return grid, numpy.array([math.erfc(-value / math.sqrt(2)) / 2 for value in grid])


def _values(known, normal):
    """The column's value at the rank of each standard normal number."""
    import numpy
    if 'counts' in known:
        values = numpy.array([float(value) for value in known['counts']])
        values = values[numpy.searchsorted(_cuts(list(known['counts'].values())), normal)]
        return values if known['type'] == 'float32' else values.astype(known['type'])
    grid, below = _normal()
    missing = known['missing'] / ROWS_PUBLISHED
    rank = (numpy.interp(normal, grid, below) - missing) / (1 - missing)
    root = known['root_of_whole_number_over']
    whole = numpy.rint((numpy.interp(rank, known['shares'], known['quantiles']) * root) ** 2)
    return numpy.where(rank < 0, table.MISSING, numpy.round(numpy.sqrt(whole) / root, 10))


def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('--rows', type=int, default=100000, help='number of rows')
    arguments.add_argument('--seed', type=int, default=1, help='another seed, another table')
    arguments.add_argument('--out', required=True, help='CSV file to write')
    arguments = arguments.parse_args(argv)
    if arguments.rows < 1 or arguments.seed < 0:
        print('error: --rows must be at least 1 and --seed at least 0', file=sys.stderr)
        return 2
    folder = os.path.dirname(arguments.out)
    unfinished = '{}.{}.unfinished'.format(arguments.out, os.getpid())
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(unfinished, 'w', newline='') as out:
            out.write(','.join(table.COLUMNS) + '\n')
            for frame in _chunks(arguments.rows, arguments.seed):
                out.writelines(_lines(frame))
        os.replace(unfinished, arguments.out)
    except OSError as error:
        print('error: {} cannot be written: {}'.format(arguments.out, error.strerror),
              file=sys.stderr)
        return 1
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
    print('{}: {:,} synthetic rows, seed {}'.format(arguments.out, arguments.rows, arguments.seed))
    return 0


def _lines(frame):
    """CSV lines; each different value is turned into text once, which is the slow part."""
    import numpy
    import pandas
    cells = []
    for name in frame:
        codes, values = pandas.factorize(frame[name].values)
        cells.append(numpy.array([repr(value) for value in values.tolist()], dtype=object)[codes])
    return (','.join(row) + '\n' for row in zip(*cells))


if __name__ == '__main__':
    sys.exit(main())
