"""Training as the table grows, and on several nodes: seconds and memory; table and picture.

    python scripts/bench_growth.py --out outputs/bench --rows 600000 6000000 24000000

Each size is measured several times, the last ones fewer, in turn: train.py on one node and more,
the file read once, and one process of plain LightGBM that finds the matrix of the same rows in
memory, with the same parameters: it must come to the same model.
"""
import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import bench_report
from bench_report import COLOURS, spread, values
from bench_training import PROGRAMS, TEST_ROWS, TEST_SEED, TRAINING, run_python

PARAMETERS = TRAINING / 'parameters.json'
NODES = ('1 node', '2 nodes', '3 nodes')
ENGINE = 'LightGBM in memory'
READING = {'read() of the file': 'bytes', 'pandas on one core': 'pandas'}
# From so many rows on a size is measured twice; from so many once, and on one node only.
TWICE, ONCE = 2000000, 12000000
LARGEST_DIFFERENCE = 0.0005
# Of packages and of blocks in work, which every node has whatever the rows.
NODE_MB = 250
# What a row took before a table was read in parallel.
BYTES_A_ROW = 218
# Of the table and of the matrix that is kept of it.
DISK_BYTES_A_ROW = 300
FIGURES = {'seconds': '.3g', 'reading, s': '.3g', 'boosting, s': '.3g', 'the rest, s': '.3g',
           'peak memory, MB': '.0f', 'bytes a row': '.0f'}
PARTS = ('reading, s', 'boosting, s', 'the rest, s')
NOTES = '''
How to read it. seconds: from the start of train.py to its end, the report left out; of LightGBM in
memory its Dataset ("the rest") and the boosting. The limit is read() of the file once, out of the
disk's cache where that holds it; pandas, parsing it in pieces, is what that costs unchecked. test
AUC: to be expected of further rows, so that no luck of the draw is in it; LightGBM's learner for
several nodes counts the rows of a leaf by hessians and tries splits that the one for one node
skips. Memory: of the largest process; bytes a row: that over the rows of the table. The nodes are
processes of one machine and share its cores: they show what a node needs of memory. On machines of
their own each has all cores for its share of the rows, but still reads the whole file.'''


def repeats(rows):
    """How often a table of so many rows is measured."""
    return 3 if rows < TWICE else 2 if rows < ONCE else 1


def subjects(rows):
    """What is measured of a table of so many rows."""
    return list(NODES if rows < ONCE else NODES[:1]) + [ENGINE] + list(READING)


def run_subject(subject, rows, data, matrix, test_data, folder):
    """{figure: number} of one measurement; of nodes also "node memory, MB", by rank."""
    if subject in READING:
        line, _ = run_python(PROGRAMS / 'read_once.py', data, READING[subject])
        return {'seconds': float(line)}
    if subject == ENGINE:
        line, used = run_python(PROGRAMS / 'memory_training.py', matrix)
        result = json.loads(line)
        found = {'seconds': result['dataset'] + result['boosting'], 'model': result['model'],
                 'boosting, s': result['boosting'], 'the rest, s': result['dataset']}
        memory = [used['peak memory, MB']]
    else:
        shutil.rmtree(str(folder), ignore_errors=True)
        number = NODES.index(subject) + 1
        _, used = run_python(TRAINING / 'train.py', '--data', data, '--parameters', PARAMETERS,
                             '--out', folder, '--nodes', number)
        result = json.loads((folder / 'metrics.json').read_text())
        seconds = result['seconds']
        wall = used['wall, s'] - seconds['report']
        found = {'seconds': wall, 'reading, s': seconds['reading'],
                 'boosting, s': seconds['boosting'],
                 'the rest, s': wall - seconds['reading'] - seconds['boosting'],
                 'model': result['model_sha256']}
        test = run_python(PROGRAMS / 'judge_model.py', test_data, folder / 'model.txt')[0]
        found['test AUC'] = json.loads(test)['auc']
        memory = [node['peak_memory_mb'] for node in result['nodes']]
        found['node memory, MB'] = memory
    found['peak memory, MB'] = max(memory + [used['peak memory, MB']])
    found['bytes a row'] = found['peak memory, MB'] * 1e6 / rows
    return found


def paired(rounds, figure, subject, other, combine):
    """combine(the subject's figure, the other's) in each round that has both."""
    return [combine(found[subject][figure], found[other][figure]) for found in rounds
            if subject in found and other in found]


def limits(sizes):
    """What is asked of each size, for bench_report.check()."""
    first = sizes[0]
    for size in sizes:
        rounds, name = size['rounds'], f"{size['rows']:,} rows"
        for figure, bound in (('seconds', 4), ('peak memory, MB', 1.9)):
            yield (f'{name}: {figure}, 1 node / {ENGINE}', 'at most', bound, bench_report.ratios(
                rounds, figure, NODES[0], ENGINE))
        if size is not first:
            peaks = [statistics.median(values(one['rounds'], NODES[0], 'peak memory, MB'))
                     for one in (first, size)]
            yield (f'{name}: bytes for each row more, 1 node', 'at most', BYTES_A_ROW,
                   [(peaks[1] - peaks[0]) * 1e6 / (size['rows'] - first['rows'])])
        yield (f'{name}: models of 1 node and {ENGINE}', 'at most', 1,
               [len({found[subject]['model'] for found in rounds
                     for subject in (NODES[0], ENGINE)})])
        for number, nodes in enumerate(NODES[1:], 2):
            if nodes not in rounds[0]:
                continue
            yield (f'{name}: test AUC, {nodes} - 1 node', 'at most', LARGEST_DIFFERENCE, paired(
                rounds, 'test AUC', nodes, NODES[0], lambda own, other: abs(own - other)))
            yield (f'{name}: models in {len(rounds)} repeats of {nodes}', 'at most', 1,
                   [len({found[nodes]['model'] for found in rounds})])
            yield (f"{name}: memory of a node of {number} - one node's / {number}, MB", 'at most',
                   NODE_MB, paired(rounds, 'node memory, MB', nodes, NODES[0],
                                   lambda own, other, number=number: max(own) - other[0] / number))


def as_table(sizes):
    rows = [['median [least, most]', 'measured'] + list(FIGURES)]
    for size in sizes:
        for subject in size['rounds'][0]:
            rows.append([f"{size['rows']:,} rows, {subject}", f"{len(size['rounds'])} x"] + [
                spread(values(size['rounds'], subject, figure), form)
                for figure, form in FIGURES.items()])
    return bench_report.table(rows)


def draw_over_rows(axes, sizes, series, title):
    """Lines over the numbers of rows; series: [(label, style, a list of numbers for each size)]."""
    for label, style, lists in series:
        points = [(size['rows'], statistics.median(numbers))
                  for size, numbers in zip(sizes, lists) if numbers]
        axes.plot(*zip(*points), label=label, marker='o', markersize=4, **style)
    axes.set_xscale('log')
    axes.set_xticks([size['rows'] for size in sizes])
    axes.set_xticklabels([f"{size['rows'] / 1e6:g} M" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel('rows', fontsize=9)
    axes.margins(0.1, 0.1)
    finish(axes, title)


def write_number(axes, place, height, form):
    axes.annotate(format(height, form), (place, height), xytext=(0, 4), ha='center',
                  textcoords='offset points', fontsize=8)


def finish(axes, title):
    axes.set_title(title, fontsize=10, loc='left')
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis='y', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)


def draw_seconds_of_nodes(axes, size):
    """A bar for each number of nodes, in the parts of its seconds, and the file read once."""
    rounds = size['rounds']
    names = [name for name in NODES if name in rounds[0]]
    bottom = [0] * len(names)
    for part, colour in zip(PARTS, COLOURS):
        heights = [statistics.median(values(rounds, name, part)) for name in names]
        axes.bar(names, heights, 0.6, bottom, color=colour, label=part[:-3])
        bottom = [low + height for low, height in zip(bottom, heights)]
    for place, total in enumerate(bottom):
        write_number(axes, place, total, '.3g')
    for name, style in zip(READING, (':', '--')):
        axes.axhline(statistics.median(values(rounds, name, 'seconds')), color='black',
                     linestyle=style, linewidth=1, label=name)
    axes.set_ylim(0, max(bottom) * 1.65)
    finish(axes, f"seconds by nodes, {size['rows']:,} rows")


def draw_memory_of_nodes(axes, size):
    """A bar for each node of each number of nodes, and one node's memory over that number."""
    rounds = size['rounds']
    names = [name for name in NODES if name in rounds[0]]
    alone = statistics.median(found[0] for found in values(rounds, NODES[0], 'node memory, MB'))
    for count, name in enumerate(names, 1):
        own = [statistics.median(numbers)
               for numbers in zip(*values(rounds, name, 'node memory, MB'))]
        places = [count - 0.4 + 0.8 * (rank + 0.5) / count for rank in range(count)]
        axes.bar(places, own, 0.75 / count, color=COLOURS[0],
                 label='peak of each node' if count == 1 else None)
        write_number(axes, count, max(own), '.0f')
    counts = list(range(1, len(names) + 1))
    axes.plot(counts, [alone / count for count in counts], color='black', linestyle='--',
              marker='o', markersize=4, linewidth=1, label="one node's over their number")
    axes.set_xticks(counts)
    axes.set_xticklabels(names)
    axes.set_ylim(0, alone * 1.3)
    finish(axes, f"memory by nodes, MB, {size['rows']:,} rows")


def draw_difference(axes, sizes):
    """The AUC of several nodes less that of one, in each round, and what it may be."""
    for name, colour, shift in zip(NODES[1:], COLOURS[1:], (-0.1, 0.1)):
        points = [(place + shift, difference) for place, size in enumerate(sizes)
                  for difference in paired(
                      size['rounds'], 'test AUC', name, NODES[0], float.__sub__)]
        axes.plot(*(zip(*points) if points else ([], [])), 'o', color=colour, label=name)
    # plot, unlike axhline, makes room for what it draws.
    for bound in (-LARGEST_DIFFERENCE, LARGEST_DIFFERENCE):
        axes.plot([-0.3, len(sizes) - 0.7], [bound] * 2, color='black', linestyle='--', linewidth=1)
    axes.set_xticks(range(len(sizes)))
    axes.set_xticklabels([f"{size['rows'] / 1e6:g} M" for size in sizes])
    axes.set_xlabel('rows', fontsize=9)
    axes.margins(0.2, 0.4)
    finish(axes, f'test AUC, several nodes - 1 node; at most {LARGEST_DIFFERENCE} apart')


def draw(figure, sizes):
    """The picture of all sizes; of those with several nodes the largest two."""
    panels = figure.subplots(4, 2)

    def found(subject, figure):
        return [values(size['rounds'], subject, figure) for size in sizes]

    own, reference = {'color': COLOURS[0], 'linewidth': 2.5}, {'color': COLOURS[3], 'linewidth': 2}
    draw_over_rows(panels[0, 0], sizes, [
        ('train.py, 1 node', own, found(NODES[0], 'seconds'))] + [
        ('... ' + part[:-3], {'color': colour, 'linewidth': 1}, found(NODES[0], part))
        for part, colour in zip(PARTS, COLOURS)] + [
        (ENGINE, reference, found(ENGINE, 'seconds'))] + [
        (name, {'color': 'black', 'linestyle': style, 'linewidth': 1}, found(name, 'seconds'))
        for name, style in zip(READING, (':', '--'))], 'seconds by rows')
    panels[0, 0].set_yscale('log')
    panels[0, 0].legend(fontsize=7, frameon=False, ncol=2, loc='upper left')
    low, high = panels[0, 0].get_ylim()
    # Above all lines, on a scale of powers.
    panels[0, 0].set_ylim(low, high * (high / low) ** 0.4)
    draw_over_rows(panels[0, 1], sizes, [
        ('train.py, 1 node', own, found(NODES[0], 'bytes a row')),
        (ENGINE, reference, found(ENGINE, 'bytes a row'))], 'peak memory, bytes a row')
    panels[0, 1].set_ylim(0)
    several = [size for size in sizes if NODES[1] in size['rounds'][0]][-2:]
    for column, size in enumerate(several):
        draw_seconds_of_nodes(panels[1, column], size)
        draw_memory_of_nodes(panels[2, column], size)
    for column in range(len(several), 2):
        panels[1, column].axis('off')
        panels[2, column].axis('off')
    draw_over_rows(panels[3, 0], sizes, [
        (name, {'color': colour, 'linewidth': 2}, [
            bench_report.ratios(size['rounds'], name, NODES[0], ENGINE) for size in sizes])
        for name, colour in (('seconds', COLOURS[0]), ('peak memory, MB', COLOURS[1]))],
        f'train.py on 1 node / {ENGINE}')
    panels[3, 0].axhline(1, color='black', linestyle=':', linewidth=1)
    panels[3, 0].set_ylim(0)
    draw_difference(panels[3, 1], sizes)


def report(path, sizes):
    """Write table, numbers and picture of what is measured so far; returns the text."""
    checks = bench_report.table([bench_report.CHECKED] + list(bench_report.check(limits(sizes))))
    text = '\n\n'.join([f'Training on more rows and nodes, {os.cpu_count()} cores',
                        as_table(sizes), checks])
    bench_report.save(path, text, sizes, lambda figure: draw(figure, sizes), 16)
    return text


def has_room(folder, rows):
    """Whether so many rows more fit on the disk; says so where they do not."""
    needed, free = rows * DISK_BYTES_A_ROW, shutil.disk_usage(str(folder)).free
    if needed > free:
        print(f'{rows:,} rows more need {needed / 1e9:.1f} GB of disk, and {folder} has '
              f'{free / 1e9:.1f} GB free: this size and larger ones are left out')
    return needed <= free


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--rows', type=int, nargs='+', default=[600000, 6000000],
                        help='of the sample tables; 6 million take 2 GB of disk (default both '
                             '600000 and 6000000)')
    args = parser.parse_args(argv)
    if min(args.rows) < 1:
        parser.error('--rows must be 1 or more')
    sizes, have, text = [], 0, 'nothing was measured'
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        # A name that make clean removes, should this be killed.
        with tempfile.TemporaryDirectory(dir=str(args.out), prefix='growth.') as folder:
            data, matrix, test_data = [Path(folder, name) for name in (
                'table.csv', 'matrix.npz', 'test.csv')]
            run_python(TRAINING / 'sample.py', '--rows', TEST_ROWS, '--seed', TEST_SEED,
                       '--out', test_data)
            for rows in sorted(set(args.rows)):
                if not has_room(args.out, rows - have):
                    break
                print(f'{rows:,} rows', flush=True)
                run_python(PROGRAMS / 'grow_table.py', data, have, rows)
                have = rows
                run_python(PROGRAMS / 'training_matrix.py', data, PARAMETERS, matrix)
                sizes.append({'rows': rows, 'rounds': [bench_report.run_round(
                    number, subjects(rows), run_subject, rows, data, matrix, test_data,
                    Path(folder, 'model'))
                    for number in range(repeats(rows))]})
                # What a larger table fails of does not take this one's figures along.
                text = report(args.out / 'growth', sizes)
        print('\n'.join(['', text, NOTES]))
    except (RuntimeError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
