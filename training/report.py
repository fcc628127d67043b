"""The report of a trained model: one HTML page, plots inside, that opens without a network."""
import html
import io
import math
import string

import metrics

FEATURES_SHOWN = 20
CALIBRATION_GROUPS = 20
POINTS_DRAWN = 400
FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans'"
INK, ACCENT, PALE, WARM = '#1d2733', '#14568c', '#b9cbdb', '#c8602a'

PAGE = string.Template('''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Safe driver model, $day</title>
<style>
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 62rem; color: #1d2733;
  background: #fff; font: 16px/1.5 $fonts, sans-serif }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2 }
h2 { margin: 2.4rem 0 .3rem; font-size: 1.2rem }
p { margin: .3rem 0 .8rem }
.quiet, th, caption { color: #5a6672 }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr));
  margin: 1.5rem 0 }
.tile { border-top: 3px solid #14568c; background: #f3f6f9; padding: .7rem .9rem }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.3 }
.tile span { font-size: .85rem; color: #5a6672 }
.pair { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
figure { margin: .8rem 0 0; break-inside: avoid }
figcaption { font-size: .9rem; color: #5a6672 }
svg { display: block; width: 100%; height: auto }
.narrow { max-width: 40rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .92rem }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #dde3e8; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 500 }
tr { break-inside: avoid }
.numbers th, .numbers td { text-align: right; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; white-space: nowrap }
.names th { width: 11rem }
@media print { body { padding: 0; font-size: 10.5pt } .tile { border: 1px solid #b9cbdb }
  .pair { grid-template-columns: 1fr 1fr } h2 { break-after: avoid } }
</style>
</head>
<body>
<h1>Safe driver model</h1>
<p class="quiet">$subtitle</p>
<p>$sentence</p>
<div class="tiles">$tiles</div>
$body
<h2>Parameters</h2>
<div class="pair">$parameters</div>
<h2>Where it comes from</h2>
$lineage
</body>
</html>
''')


def page(result, features, label, probability, curve):
    """The page as text.

    result: as in metrics.json; features: [(name, gain), ...]; label and probability of the
    hold-out rows; curve: (name of a metric, [[round, its value], ...]). Without matplotlib the
    plots are left out and the tables stay.
    """
    lineage, rows, claims = result['lineage'], result['rows'], result['claims']
    groups = metrics.deciles(label, probability)
    ranked = sorted(features, key=lambda item: -item[1])
    total = sum(gain for _, gain in ranked) or 1
    ranked = [(name, gain / total) for name, gain in ranked[:FEATURES_SHOWN] if gain > 0]
    plots = draw(result, groups, ranked, label, probability, curve)
    stopping = bool(rows['early_stopping'])
    low, high = result['auc_interval']
    rate = claims['hold_out'] / rows['hold_out']
    top = groups[0]
    return PAGE.substitute(
        fonts=FONTS,
        day=escape(lineage['created'][:10]),
        subtitle='Trained on {} at {} UTC with {}. All figures are from {:,} policies with {:,} '
                 'claims that were held out of training.'.format(
                     escape(lineage['created'][:10]), escape(lineage['created'][11:16]),
                     escape(lineage['data'] or lineage['dataset_name']), rows['hold_out'],
                     claims['hold_out']),
        sentence='Of the tenth of policies that the model rates riskiest, {:.1%} had a claim: '
                 '{:.1f} times the average of {:.1%}.'.format(top['claim_rate'], top['lift'], rate),
        tiles=''.join('<div class="tile"><b>{}</b><span>{}</span></div>'.format(*tile) for tile in [
            (f"{result['auc']:.4f}",
             f'AUC, 95 % interval {low:.4f} to {high:.4f}'),
            (f"{result['gini']:.4f}", 'normalised Gini'),
            (f"{result['top_decile_lift']:.2f}", 'lift of the top decile'),
            (f"{result['log_loss']:.4f}", 'log loss'),
            (f"{result['brier']:.5f}", 'Brier score')]),
        body='\n'.join([
            '<h2>How well it ranks</h2>',
            pair(figure(plots, 'roc', 'Share of the claims found among the policies rated '
                        'riskiest. The diagonal is chance.'),
                 figure(plots, 'lift', 'Claim rate of each tenth of the policies over that of all, '
                        'riskiest first.')),
            no_plots(plots),
            table(['decile', 'policies', 'claim rate', 'mean prediction', 'lift'],
                  [(number, f"{group['rows']:,}", f"{group['claim_rate']:.2%}",
                    f"{group['mean_score']:.2%}", f"{group['lift']:.2f}")
                   for number, group in enumerate(groups, 1)], 'numbers'),
            '<h2>How far its probabilities hold</h2>',
            '<p>It predicts {:.3%} on average; {:.3%} had a claim.</p>'.format(
                float(sum(group['mean_score'] * group['rows'] for group in groups)) /
                rows['hold_out'], rate),
            pair(figure(plots, 'calibration', 'Each point is a twentieth of the policies, with the '
                        '95 % interval of its claim rate.'),
                 figure(plots, 'curve', '{} {} as trees are added; {} are kept.'.format(
                     curve[0], 'of the rows that decide when to stop' if stopping else
                     'of the hold-out rows', result['rounds']))),
            '<h2>What it looks at</h2>',
            '<p>{}</p>'.format('Share of the total gain in training: the {} features with the '
                               'largest.'.format(len(ranked)) if ranked else
                               'The model uses no feature: every row gets the same score.'),
            '<div class="narrow">',
            figure(plots, 'features', '') or table(
                None, [(name, f'{share:.1%}') for name, share in ranked]),
            '</div>']),
        parameters=''.join(
            table(None, section) for section in sections(result['parameters'], result['rounds'])),
        lineage=table(None, lineage_rows(lineage, rows, claims)))


def sections(parameters, rounds):
    """The parameters as rows of two tables: LightGBM's own, and the others."""
    own = [(name, value) for name, value in parameters['training'].items()]
    rest = [(f"{name.replace('_', ' ')} {key.replace('_', ' ')}", entry)
            if name == 'evaluation' else (name.replace('_', ' '), entry)
            for name, value in parameters.items() if name != 'training'
            for key, entry in (value.items() if isinstance(value, dict) else [('', value)])]
    return own, [('trees kept', rounds)] + rest


def lineage_rows(lineage, rows, claims):
    parts = ', '.join('{} {:,} rows ({:,} claims)'.format(
        name.replace('_', ' ').replace('hold out', 'hold-out'), rows[name], claims[name])
        for name in rows if rows[name])
    known = [('rows', parts), ('table', '{} with {:,} rows'.format(
        lineage['data'], lineage['data_rows'])), ('SHA-256 of the table', lineage['data_sha256']),
        ('dataset', lineage['dataset_name'] and '{}, version {}'.format(
            lineage['dataset_name'], lineage['dataset_version'])),
        ('code commit', lineage['code_commit']), ('build', lineage['build_id']),
        ('build address', lineage['build_uri']), ('called by run', lineage['caller_run_id']),
        ('packages', ', '.join('{} {}'.format(*item) for item in lineage['packages'].items())),
        ('created', lineage['created'])]
    return [(name, 'not known' if value is None else value) for name, value in known
            if value is not None or name == 'code commit']


def escape(value):
    return html.escape(', '.join(value) or 'none' if isinstance(value, list) else str(value))


def table(header, rows, kind='names'):
    """An HTML table; without a header the first cell of each row names it."""
    head = '' if header is None else '<thead><tr>{}</tr></thead>'.format(
        ''.join('<th>{}</th>'.format(escape(cell)) for cell in header))
    first = 'th' if header is None else 'td'
    body = ''.join('<tr><{0}>{1}</{0}>{2}</tr>'.format(first, escape(row[0]), ''.join(
        '<td>{}</td>'.format(escape(cell)) for cell in row[1:])) for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def pair(*figures):
    return f"<div class=\"pair\">{''.join(figures)}</div>"


def figure(plots, name, caption):
    if not plots:
        return ''
    return f'<figure>{plots[name]}<figcaption>{escape(caption)}</figcaption></figure>'


def no_plots(plots):
    return '' if plots else ('<p>The plots are left out: matplotlib is not installed for this '
                             'Python.</p>')


def draw(result, groups, ranked, label, probability, curve):
    """{name: SVG}, empty without matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    plots = {}

    def start(width, height):
        drawing = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.spines[['top', 'right']].set_visible(False)
        return axes

    def keep(name, axes):
        text = io.StringIO()
        axes.figure.savefig(text, format='svg', metadata={'Date': None}, transparent=True)
        svg = text.getvalue().replace("'DejaVu Sans'", FONTS + ", 'DejaVu Sans'")
        plots[name] = svg[svg.index('<svg'):]

    style = {'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 10,
             'text.color': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK,
             'axes.edgecolor': '#8b97a3', 'axes.titlesize': 11, 'axes.titleweight': 'bold',
             'axes.titlelocation': 'left', 'legend.frameon': False}
    with matplotlib.rc_context(style):
        percent = matplotlib.ticker.PercentFormatter(1, decimals=0)

        axes = start(4.6, 3.7)
        false, true = metrics.roc_curve(label, probability)
        thin = max(1, len(false) // POINTS_DRAWN)
        false = list(false[:-1:thin]) + [1]
        true = list(true[:-1:thin]) + [1]
        axes.plot([0, 1], [0, 1], color='#8b97a3', linewidth=1, linestyle=(0, (4, 3)))
        axes.fill_between(false, true, false, color=PALE, alpha=0.45, linewidth=0)
        axes.plot(false, true, color=ACCENT, linewidth=2)
        axes.set(title='ROC curve', xlim=(0, 1), ylim=(0, 1.005),
                 xlabel='share of policies without a claim', ylabel='share of claims found')
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.text(0.97, 0.06, f"AUC {result['auc']:.4f}", ha='right', fontsize=12)
        keep('roc', axes)

        axes = start(4.6, 3.7)
        bars = axes.bar(range(1, len(groups) + 1), [group['lift'] for group in groups],
                        color=[ACCENT if group['lift'] >= 1 else PALE for group in groups])
        for text in axes.bar_label(bars, fmt='%.2f', padding=2, fontsize=8.5):
            text.set_bbox({'color': 'white', 'pad': 0.5})
        axes.axhline(1, color='#8b97a3', linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set(title='Lift by decile', xticks=range(1, len(groups) + 1),
                 xlabel='decile of predicted risk, riskiest first', ylabel='lift')
        keep('lift', axes)

        axes = start(4.6, 3.7)
        points = metrics.deciles(label, probability, CALIBRATION_GROUPS)
        predicted = [point['mean_score'] for point in points]
        bounds = [interval(point['claim_rate'], point['rows']) for point in points]
        limit = 1.04 * max(predicted + [high for _, high in bounds])
        axes.plot([0, limit], [0, limit], color='#8b97a3', linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(predicted, *zip(*bounds), color=PALE, linewidth=2)
        axes.plot(predicted, [point['claim_rate'] for point in points], 'o', color=ACCENT,
                  markersize=4.5)
        axes.set(title='Calibration', xlim=(0, limit), ylim=(0, limit),
                 xlabel='predicted probability of a claim', ylabel='claim rate')
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        keep('calibration', axes)

        axes = start(4.6, 3.7)
        metric, points = curve
        rounds, values = zip(*points)
        axes.plot(rounds, values, color=ACCENT, linewidth=2,
                  marker='o' if len(points) < 40 else None, markersize=3.5)
        axes.axvline(result['rounds'], color=WARM, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(title='Learning curve', xlabel='trees', ylabel=metric, xlim=(0, None))
        axes.grid(axis='y', color='#e4e9ed', linewidth=0.8)
        axes.set_axisbelow(True)
        keep('curve', axes)

        axes = start(6, 0.4 + 0.24 * max(3, len(ranked)))
        names, shares = zip(*ranked) if ranked else ((), ())
        bars = axes.barh(range(len(ranked)), shares, color=ACCENT, height=0.66)
        axes.bar_label(bars, [f'{share:.1%}' for share in shares], padding=4)
        axes.set_yticks(range(len(ranked)))
        axes.set_yticklabels(names)
        axes.spines[['bottom', 'left']].set_visible(False)
        axes.set_ylim(max(1, len(ranked)) - 0.5, -0.5)
        axes.tick_params(bottom=False, labelbottom=False, left=False)
        keep('features', axes)
    return plots


def interval(rate, rows, z=1.96):
    """Wilson's 95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(
        rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return middle - half, middle + half
