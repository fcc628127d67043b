"""What the benchmarks and compare.py share. Rounds are [{subject: {figure: number}}, ...]."""
import io
import os
import statistics
import subprocess
import sys
import time

import atomic

# The heads of the columns of check().
CHECKED = ('median [least, most]', 'must be', 'is', 'met')
COLOURS = ('#14568c', '#c98b2b', '#b5513f', '#9a9a9a')


def run_measured(command, **options):
    """(exit code, output, {figure: number}) of a command and all that it waited for.

    options: of subprocess.Popen.
    """
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, **options) as process:
        said = process.stdout.read()
        _, process.returncode, usage = os.wait4(process.pid, 0)
    scale = 1 if sys.platform == 'darwin' else 1024
    return process.returncode, said, {
        'wall, s': time.monotonic() - start, 'CPU, s': usage.ru_utime + usage.ru_stime,
        'peak memory, MB': usage.ru_maxrss * scale / 1e6}


def run_round(number, subjects, measure, *arguments):
    """{subject: measure(subject, *arguments)}; another one begins in each round."""
    turn, found = number % len(subjects), {}
    for subject in subjects[turn:] + subjects[:turn]:
        print(f'round {number}: {subject}', flush=True)
        found[subject] = measure(subject, *arguments)
    return {subject: found[subject] for subject in subjects}


def values(rounds, subject, figure):
    """The figure in each round; [] where it is not measured of this subject."""
    return [found[subject][figure] for found in rounds if figure in found[subject]]


def ratios(rounds, figure, subject, other):
    """The subject's figure over the other's in each round: a machine's speed drifts meanwhile."""
    return [found[subject][figure] / found[other][figure] for found in rounds]


def spread(numbers, form):
    """'median [least, most]' of numbers, '' of none."""
    if not numbers:
        return ''
    median, least, most = [format(number, form) for number in (
        statistics.median(numbers), min(numbers), max(numbers))]
    return f'{median} [{least}, {most}]'


def check(limits):
    """(label, limit, found, 'yes' or 'NO') of each limit: (label, word, bound, numbers).

    The median of the numbers is to be 'at least' or 'at most' the bound.
    """
    for label, word, bound, numbers in limits:
        median = statistics.median(numbers)
        met = median >= bound if word == 'at least' else median <= bound
        yield label, f'{word} {bound:g}', spread(numbers, '.3g'), 'yes' if met else 'NO'


def table(rows):
    """Rows of words, the first of them the heads of the columns, as Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [rows[0], ['-' * width for width in widths]] + rows[1:]
    return '\n'.join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def draw_bars(axes, rounds, figure, form):
    """A bar for each subject: the median, and a line from the least to the most."""
    for subject, colour in zip(rounds[0], COLOURS):
        numbers = values(rounds, subject, figure)
        if numbers:
            median, most = statistics.median(numbers), max(numbers)
            axes.barh(subject, median, color=colour,
                      xerr=[[median - min(numbers)], [most - median]])
            axes.annotate(format(median, form), (most, subject), xytext=(6, 0), va='center',
                          textcoords='offset points', fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(figure, fontsize=10, loc='left')
    axes.spines[['top', 'right', 'bottom', 'left']].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])


def save(path, text, found, draw, height=10):
    """The text as path.md, what was found as path.json, a picture as path.png.

    draw: fills the matplotlib.figure.Figure that it is given; height: of the picture, in inches.
    """
    atomic.write_bytes(path.with_suffix('.md'), (text + '\n').encode())
    atomic.write_json(path.with_suffix('.json'), found)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('no picture: matplotlib is not installed for this Python')
        return
    figure, picture = Figure(figsize=(10, height), layout='constrained'), io.BytesIO()
    draw(figure)
    figure.savefig(picture, format='png', dpi=110)
    atomic.write_bytes(path.with_suffix('.png'), picture.getvalue())


def write(path, title, rounds, figures, limits, bars):
    """All figures ({name: how to format it}) and limits as path.md and .json; a picture as .png.

    bars: the names of those figures that the picture shows.
    """
    subjects, checks = list(rounds[0]), list(check(limits))
    rows = [[name] + [spread(values(rounds, subject, name), form) for subject in subjects]
            for name, form in figures.items()]

    def draw(figure):
        panels = figure.subplots(len(bars) // 2 + 1, 2).flat
        for axes, name in zip(panels, bars):
            draw_bars(axes, rounds, name, figures[name])
        panels[-1].axis('off')
        panels[-1].text(0, 1, '\n'.join(f'{label}: {found}\n         ({bound})'
                                        for label, bound, found, _ in checks), fontsize=9, va='top')

    text = '\n\n'.join([title, table([['median [least, most]'] + subjects] + rows),
                        table([CHECKED] + checks)])
    print('\n' + text)
    save(path, text, rounds, draw)
