"""The report of a trained model: one HTML page, plots inside, that opens without a network."""
import html
import io
import string
from pathlib import Path

import metrics

FEATURES_SHOWN = 20
CALIBRATION_GROUPS = 20
POINTS_DRAWN = 400
SIZE = 4.6, 3.7
FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans'"
INK, ACCENT, PALE, WARM, GREY = '#1d2733', '#14568c', '#b9cbdb', '#c8602a', '#8b97a3'
DASHED = {'color': GREY, 'linewidth': 1, 'linestyle': (0, (4, 3))}
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 10, 'text.color': INK,
         'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK, 'axes.edgecolor': GREY,
         'axes.titlesize': 11, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left'}
WITHOUT_PLOTS = '<p>The plots are left out: matplotlib is not installed for this Python.</p>'

PAGE = string.Template(Path(__file__).with_name('report_page.html').read_text(encoding='utf-8'))
CARD = string.Template('''<h2>What it is for, and what not</h2>
<p><b>Intended use.</b> $use</p>
<p><b>Training period.</b> $period</p>
<ul>$limits</ul>
$segments''')


def page(result, features, label, probability, curve):
    """The page as text.

    result: as in metrics.json; features: [(name, gain), ...]; label and probability of the
    hold-out rows; curve: (name of a metric, [[round, its value], ...]). Without matplotlib the
    plots are left out and the tables stay.
    """
    lineage, rows, claims = result['lineage'], result['rows'], result['claims']
    parameters = dict(result['parameters'])
    card = parameters.pop('card', {})
    groups = metrics.deciles(label, probability)
    ranked = sorted(features, key=lambda item: -item[1])
    total = sum(gain for _, gain in ranked) or 1
    ranked = [(name, gain / total) for name, gain in ranked[:FEATURES_SHOWN] if gain > 0]
    plots = draw(
        ('roc', SIZE, draw_roc, *metrics.roc_curve(label, probability), result['auc']),
        ('lift', SIZE, draw_lift, [group['lift'] for group in groups]),
        ('calibration', SIZE, draw_calibration,
         metrics.deciles(label, probability, CALIBRATION_GROUPS)),
        ('curve', SIZE, draw_curve, *curve, result['rounds'],
         'stopping' if rows['early_stopping'] else 'hold-out'),
        ('features', (6, 0.4 + 0.24 * max(3, len(ranked))), draw_features, ranked))
    rate, top = claims['hold_out'] / rows['hold_out'], groups[0]
    predicted = sum(group['mean_score'] * group['rows'] for group in groups) / rows['hold_out']
    low, high = result['auc_interval']
    seen = 'the rows that decide when to stop' if rows['early_stopping'] else 'the hold-out rows'
    return PAGE.substitute(
        fonts=FONTS, title='Safe driver model, ' + escape(lineage['created'][:10]),
        day=escape(lineage['created'][:10]), clock=escape(lineage['created'][11:16]),
        source=escape(lineage['data'] or lineage['dataset_name']), rows=f"{rows['hold_out']:,}",
        claims=f"{claims['hold_out']:,}", top_rate=f"{top['claim_rate']:.1%}",
        top_lift=f"{top['lift']:.1f}", average=f'{rate:.1%}', rate=f'{rate:.3%}',
        predicted=f'{predicted:.3%}', low=f'{low:.4f}', high=f'{high:.4f}',
        auc=f"{result['auc']:.4f}", gini=f"{result['gini']:.4f}",
        lift=f"{result['top_decile_lift']:.2f}", log_loss=f"{result['log_loss']:.4f}",
        brier=f"{result['brier']:.5f}",
        warnings=table(['not to be overlooked'], [[text] for text in result['warnings']])
        if result['warnings'] else '',
        without_plots='' if plots else WITHOUT_PLOTS,
        roc_plot=figure(plots, 'roc', 'Share of the claims found among the policies rated '
                        'riskiest. The diagonal is chance.'),
        lift_plot=figure(plots, 'lift', 'Claim rate of each tenth of the policies over that of '
                         'all, riskiest first.'),
        calibration_plot=figure(plots, 'calibration', 'Each point is a twentieth of the policies, '
                                'with the 95 % interval of its claim rate.'),
        curve_plot=figure(plots, 'curve', f"{curve[0]} of {seen} as trees are added; "
                          f"{result['rounds']} are kept. " + (
                              'It decided how many.' if rows['early_stopping'] else 'It decided '
                              'nothing: the number of trees was set before.')),
        metric=escape(parameters['evaluation']['metric'].replace('_', ' ')),
        deciles=table(['decile', 'policies', 'claim rate', 'mean prediction', 'lift'],
                      [(number, f"{group['rows']:,}", f"{group['claim_rate']:.2%}",
                        f"{group['mean_score']:.2%}", f"{group['lift']:.2f}")
                       for number, group in enumerate(groups, 1)], 'numbers'),
        card=CARD.substitute(
            use=escape(card.get('intended_use', 'Not said.')),
            period=escape(card.get('training_period', 'Not said.')),
            limits=''.join(f'<li>{escape(text)}</li>' for text in card.get('limits', ())),
            segments=table(['segment', 'policies', 'claims', 'claim rate, 95 % interval',
                            'mean prediction', 'AUC'],
                           map(segment_cells, result['segments']), 'numbers')
            if result['segments'] else '') if card else '',
        used=f'Share of the total gain in training: the {len(ranked)} features with the largest.'
        if ranked else 'The model uses no feature: every row gets the same score.',
        features=figure(plots, 'features', '') or table(
            None, [(name, f'{share:.1%}') for name, share in ranked]),
        parameters=table(None, in_words(parameters.pop('training'))) + table(
            None, in_words(dict(parameters, trees_kept=result['rounds']))),
        lineage=table(None, in_words(dict(lineage, rows=rows, claims=claims))))


def segment_cells(segment):
    rate = segment['claims'] / segment['rows']
    low, high = metrics.share_interval(rate, segment['rows'])
    return (segment['segment'], f"{segment['rows']:,}", f"{segment['claims']:,}",
            f'{rate:.2%}, {low:.2%} to {high:.2%}', f"{segment['mean_score']:.2%}",
            '' if segment['auc'] is None else f"{segment['auc']:.4f}")


def in_words(section, above=''):
    """(name, value) of all that a dict and the dicts in it hold, without what is not known."""
    for key, value in section.items():
        name = above + key.replace('_', ' ')
        if isinstance(value, dict):
            yield from in_words(value, name + ' ')
        elif value is not None:
            yield name, value


def escape(value):
    return html.escape(', '.join(value) or 'none' if isinstance(value, list) else str(value))


def cells(kind, values):
    return ''.join(f'<{kind}>{escape(value)}</{kind}>' for value in values)


def table(header, rows, kind='names'):
    """An HTML table; without a header the first cell of each row names it."""
    first, head = 'th', ''
    if header:
        first, head = 'td', f"<thead><tr>{cells('th', header)}</tr></thead>"
    body = ''.join(f"<tr>{cells(first, row[:1])}{cells('td', row[1:])}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def figure(plots, name, caption):
    if not plots:
        return ''
    return f'<figure>{plots[name]}<figcaption>{escape(caption)}</figcaption></figure>'


def draw(*pictures):
    """{name: SVG} of (name, size, function from axes and data to nothing, *data); {} without
    matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    plots = {}
    with matplotlib.rc_context(STYLE):
        for name, size, function, *data in pictures:
            drawing = Figure(figsize=size, layout='constrained')
            FigureCanvasSVG(drawing)
            axes = drawing.add_subplot()
            axes.spines[['top', 'right']].set_visible(False)
            function(axes, *data)
            text = io.StringIO()
            drawing.savefig(text, format='svg', metadata={'Date': None}, transparent=True)
            svg = text.getvalue().replace("'DejaVu Sans'", FONTS + ", 'DejaVu Sans'")
            plots[name] = svg[svg.index('<svg'):]
    return plots


def draw_roc(axes, false, true, auc):
    false, true = thinned(false, true)
    axes.fill_between(false, true, false, color=PALE, alpha=0.45, linewidth=0)
    axes.plot(false, true, color=ACCENT, linewidth=2)
    axes.text(0.97, 0.06, f'AUC {auc:.4f}', ha='right', fontsize=12)
    frame_roc(axes)


def thinned(false, true):
    thin = max(1, len(false) // POINTS_DRAWN)
    return list(false[:-1:thin]) + [1], list(true[:-1:thin]) + [1]


def frame_roc(axes):
    axes.plot([0, 1], [0, 1], zorder=1, **DASHED)
    axes.set(title='ROC curve', xlim=(0, 1), ylim=(0, 1.005),
             xlabel='share of policies without a claim', ylabel='share of claims found')
    percent(axes)


def draw_lift(axes, lifts):
    numbers = range(1, len(lifts) + 1)
    bars = axes.bar(numbers, lifts, color=[ACCENT if lift >= 1 else PALE for lift in lifts])
    for text in axes.bar_label(bars, fmt='%.2f', padding=2, fontsize=8.5):
        text.set_bbox({'color': 'white', 'pad': 0.5})
    axes.axhline(1, zorder=0, **DASHED)
    axes.set(title='Lift by decile', xticks=numbers, ylabel='lift',
             xlabel='decile of predicted risk, riskiest first')


def draw_calibration(axes, groups):
    draw_points(axes, groups, ACCENT)
    frame_calibration(axes)


def draw_points(axes, groups, color, marker='o', name=None):
    predicted = [group['mean_score'] for group in groups]
    axes.vlines(predicted, *zip(*[
        metrics.share_interval(group['claim_rate'], group['rows']) for group in groups]),
        color=color, alpha=0.35, linewidth=2)
    axes.plot(predicted, [group['claim_rate'] for group in groups], marker, color=color,
              markersize=4.5, label=name)


def frame_calibration(axes):
    limit = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, limit], [0, limit], zorder=1, **DASHED)
    axes.set(title='Calibration', xlim=(0, limit), ylim=(0, limit),
             xlabel='predicted probability of a claim', ylabel='claim rate')
    percent(axes)


def draw_curve(axes, metric, points, kept, rows):
    rounds, values = zip(*points)
    axes.plot(rounds, values, color=ACCENT, linewidth=2,
              marker='o' if len(points) < 40 else None, markersize=3.5)
    axes.axvline(kept, **dict(DASHED, color=WARM))
    axes.set(title=f'Learning curve, {rows} rows', xlabel='trees', ylabel=metric, xlim=(0, None))
    axes.grid(axis='y', color='#e4e9ed', linewidth=0.8)
    axes.set_axisbelow(True)


def draw_features(axes, ranked):
    names, shares = zip(*ranked) if ranked else ((), ())
    bars = axes.barh(range(len(ranked)), shares, color=ACCENT, height=0.66)
    axes.bar_label(bars, [f'{share:.1%}' for share in shares], padding=4)
    axes.set_yticks(range(len(ranked)), names)
    axes.spines[['bottom', 'left']].set_visible(False)
    axes.set_ylim(max(1, len(ranked)) - 0.5, -0.5)
    axes.tick_params(bottom=False, labelbottom=False, left=False)


def percent(axes):
    from matplotlib.ticker import PercentFormatter
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
