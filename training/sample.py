"""Make a synthetic safe driver table from the published statistics of the real one.

    python training/sample.py --rows 100000 --out outputs/data/safe_driver.csv

columns.json holds the frequencies of the values in the 595,212 real rows. Every row starts as
normal numbers with the correlations given there, and each number becomes the value of the same rank
(a Gaussian copula); the correlations are such that the columns come out correlated as in the first
10,000 real rows. Which rows have a claim is drawn by log_odds, an invention with the directions and
sizes that are published. ps_calc_* are noise, there as in the real table.
"""
import argparse
import math
import sys

import console
import table
import tracking

CHUNK_ROWS = 10000
# The real ids are those of 40 % of the policies, in order; the rest is the competition's test set.
SHARE_OF_IDS = .4
MISSING_PREFIX = 'missing '
# Set so that 3.6448 % of the rows have a claim.
INTERCEPT = -3.7608


def claim_probabilities(frame):
    """The probability of a claim by which the target of each row was drawn, shape (rows,).

    frame: a table as generate or table.read_table gives it; its target is not looked at.
    """
    import numpy
    return 1 / (1 + numpy.exp(-log_odds(frame) - INTERCEPT))


def log_odds(frame):
    """What each row adds to INTERCEPT, the sum of the effects of its columns, shape (rows,)."""
    import numpy

    def number(name, typical):
        """Distance from the typical value; 0 where it is missing."""
        values = numpy.asarray(frame[name], dtype=numpy.float64)
        return numpy.where(values == table.MISSING, 0, values - typical)

    def category(name, effects):
        values = numpy.asarray(frame[name])
        return sum(effect * (values == code) for code, effect in effects.items())

    def scattered(name, size):
        """An effect for each code, without any order among the codes; `size` is the typical one."""
        return size * math.sqrt(2) * numpy.sin(78.233 * numpy.asarray(frame[name], float) + 1)

    value, region = numpy.tanh(number('ps_car_13', .81) / .45), numpy.tanh(number('ps_reg_03', .8))
    years, ind_01, ind_03 = number('ps_ind_15', 7), number('ps_ind_01', 2), number('ps_ind_03', 4)
    ind_07, ind_17 = number('ps_ind_07_bin', 0), number('ps_ind_17_bin', 0)
    alone = (
        .30 * value + .24 * region + .09 * number('ps_reg_02', .4) + .18 * number('ps_reg_01', .6)
        - .035 * years + .023 * ind_01 + .014 * ind_03 ** 2 + .003 * ind_03
        + .1 * number('ps_car_12', .38) + .05 * number('ps_car_15', 3.1)
        + .6 * number('ps_car_14', .37) + .57 * ind_17 - .10 * number('ps_ind_16_bin', 0)
        + .13 * ind_07 - .11 * number('ps_ind_06_bin', 0))
    categories = (
        category('ps_ind_05_cat', {-1: .75, 1: .3, 2: .6, 3: .2, 4: .4, 5: .5, 6: .55})
        + category('ps_ind_02_cat', {-1: .6, 2: .06, 3: .03, 4: .18})
        + category('ps_ind_04_cat', {-1: 1, 1: .06})
        + category('ps_car_01_cat', {-1: .7, 0: .15, 3: .15, 4: -.1, 5: .1, 6: -.08, 8: .12, 9: .1,
                                     10: .05, 11: .1})
        + category('ps_car_03_cat', {0: .1, 1: .06})
        + category('ps_car_07_cat', {-1: .35, 0: .4}) + category('ps_car_08_cat', {0: .06})
        + category('ps_car_09_cat', {-1: .6, 0: -.05, 1: .25, 3: .1, 4: .3})
        + scattered('ps_car_04_cat', .06) + scattered('ps_car_06_cat', .07)
        + scattered('ps_car_11_cat', .15))
    together = (
        - .05 * ind_17 * years + .20 * ind_07 * value - .20 * value * region
        + .25 * (number('ps_ind_05_cat', 0) > 0) * region - .012 * ind_01 * ind_03)
    return alone + categories + together


def generate(rows, seed):
    """A table of `rows` rows in frames of CHUNK_ROWS, the last one shorter.

    Whole numbers are int8, id int32, fractions float64 with the ten digits of the real table. The
    same seed gives the same rows, and a longer table begins with the rows of a shorter one.
    """
    import numpy
    import pandas
    correlations, choices = table.PUBLISHED['correlations'], table.PUBLISHED['choices']
    names = list(correlations) + [name for name in table.FEATURES if name.startswith('ps_calc_')]
    draw = _draws(names)
    mixture = numpy.eye(len(names))
    for row, values in enumerate(correlations.values()):
        mixture[row, :row] = mixture[:row, row] = values
    mixture = numpy.linalg.cholesky(mixture)
    last_id = 0
    for start in range(0, rows, CHUNK_ROWS):
        random = numpy.random.Generator(numpy.random.PCG64([seed, start]))
        normal = mixture.dot(random.standard_normal((len(names), CHUNK_ROWS)))
        columns = {name: draw[name](values) for name, values in zip(names, normal)}
        for name, members in choices.items():
            for code, member in enumerate(members):
                columns[member] = (columns[name] == code).astype(numpy.int8)
        for name in names:
            if MISSING_PREFIX + name in columns:
                columns[name][columns[MISSING_PREFIX + name]] = table.MISSING
        columns['ps_ind_14'] = sum(columns[f'ps_ind_{n}_bin'] for n in range(10, 14))
        gaps = 1 + numpy.log1p(-random.random(CHUNK_ROWS)) // math.log(1 - SHARE_OF_IDS)
        columns['id'] = (last_id + gaps.cumsum()).astype(numpy.int32)
        last_id = columns['id'][-1]
        claims = random.random(CHUNK_ROWS) < claim_probabilities(columns)
        columns['target'] = claims.astype(numpy.int8)
        yield pandas.DataFrame({name: columns[name] for name in table.COLUMNS})[:rows - start]


def _draws(names):
    """For each name the function from standard normal numbers to its values."""
    import numpy
    grid = numpy.linspace(-6, 6, 6001)
    ranks = numpy.array([math.erfc(-value / math.sqrt(2)) / 2 for value in grid])

    def by_count(values, counts):
        cuts = numpy.interp(numpy.cumsum(counts)[:-1] / sum(counts), ranks, grid)
        return lambda normal: values[numpy.searchsorted(cuts, normal)]

    def by_quantile(known):
        def values(normal):
            over, rank = known['root_of_whole_number_over'], numpy.interp(normal, grid, ranks)
            root = numpy.interp(rank, known['shares'], known['quantiles']) * over
            return numpy.round(numpy.sqrt(numpy.rint(root ** 2)) / over, 10)
        return values

    draws, rows = {}, table.PUBLISHED['rows']
    for name in names:
        if name.startswith(MISSING_PREFIX):
            missing = table.KNOWN[name[len(MISSING_PREFIX):]]['missing']
            draws[name] = by_count(numpy.array([False, True]), [rows - missing, missing])
        elif name in table.PUBLISHED['choices']:
            counts = [table.KNOWN[member]['counts']['1'] if member else 0
                      for member in table.PUBLISHED['choices'][name]]
            counts = [count or rows - sum(counts) for count in counts]
            draws[name] = by_count(numpy.arange(len(counts)), counts)
        elif 'counts' in table.KNOWN[name]:
            known = table.KNOWN[name]
            kind = 'float64' if known['type'] == 'float32' else known['type']
            draws[name] = by_count(numpy.array([float(value) for value in known['counts']], kind),
                                   list(known['counts'].values()))
        else:
            draws[name] = by_quantile(table.KNOWN[name])
    return draws


def lines(frame):
    """The rows as lines of CSV; each different value is made text once, for speed."""
    import numpy
    import pandas
    cells = []
    for name in frame:
        codes, values = pandas.factorize(frame[name].values)
        cells.append(numpy.array([repr(value) for value in values.tolist()], object)[codes])
    return (','.join(row) + '\n' for row in zip(*cells))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=100000, help='rows to make')
    parser.add_argument('--seed', type=int, default=1, help='another seed makes another table')
    parser.add_argument('--out', required=True, help='CSV file to write')
    args = parser.parse_args(argv)
    if args.rows < 1 or args.seed < 0:
        parser.error('--rows must be 1 or more and --seed 0 or more')
    try:
        with tracking.replacing(args.out) as unfinished, open(unfinished, 'w', newline='\n') as out:
            out.write(','.join(table.COLUMNS) + '\n')
            for frame in generate(args.rows, args.seed):
                out.writelines(lines(frame))
    except OSError as error:
        print(f'error: {args.out} cannot be written: {error.strerror}', file=sys.stderr)
        return 1
    print(f'{args.out}: {args.rows:,} synthetic rows, seed {args.seed}')
    return 0


if __name__ == '__main__':
    sys.exit(console.run(main))
