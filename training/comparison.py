"""Champion beside challenger on the same rows: one HTML page with plots, for whoever approves."""
import string
from pathlib import Path

import metrics
import report
import table

# The head of the report's page, with its style.
PAGE = string.Template(
    report.PAGE.template.partition('<body>')[0] +
    Path(__file__).with_name('comparison_page.html').read_text(encoding='utf-8'))
NAMES, COLORS = ('champion', 'new model'), (report.WARM, report.ACCENT)
SEGMENTS_SHOWN, DRIFT_SHOWN, BARS = 10, 10, 40


def page(decision, frame, scores, differences):
    """The page as text.

    decision: as in decision.json; frame: target and table.SEGMENTS of the hold-out rows; scores:
    the champion's and the new model's of them; differences: of the metric in resamples of the rows.
    """
    label, drift = frame['target'].to_numpy(), decision['drift']
    groups = [metrics.deciles(label, one) for one in scores]
    plots = report.draw(
        ('roc', report.SIZE, draw_roc, label, scores),
        ('lift', report.SIZE, draw_lift, groups),
        ('difference', report.SIZE, draw_differences, differences, decision),
        ('calibration', report.SIZE, draw_calibration, groups))
    found = sorted(segments(frame, label, scores), key=lambda segment: segment[4] - segment[3])
    surely = sum(interval[1] < 0 for *_, interval in found)
    low, high = decision['difference_interval']
    psi = dict(drift['columns'], scores=drift['scores']) if drift['columns'] else {}
    return PAGE.substitute(
        fonts=report.FONTS, title='Champion and challenger', version=decision['champion_version'],
        model=report.escape(decision['model']), rows=f'{len(label):,}', claims=f'{label.sum():,}',
        verdict='The new model is to be registered.' if decision['register'] else
        f"Version {decision['champion_version']} is kept.",
        reason=report.escape(decision['reason']), rule=report.escape(decision['rule']),
        metric=report.escape(decision['metric'].replace('_', ' ')),
        champion=f"{decision['champion']:.5f}", challenger=f"{decision['challenger']:.5f}",
        difference=f"{decision['difference']:+.5f}", low=f'{low:+.5f}', high=f'{high:+.5f}',
        ahead=f"{decision['probability_better']:.0%}",
        without_plots='' if plots else report.WITHOUT_PLOTS,
        roc_plot=report.figure(plots, 'roc', 'Share of the claims found among the policies rated '
                               'riskiest. The diagonal is chance.'),
        lift_plot=report.figure(plots, 'lift', 'Claim rate of each tenth of the policies over that '
                                'of all, in the order of each model.'),
        difference_plot=report.figure(
            plots, 'difference', f'In {len(differences):,} resamples of the rows, the same for '
            'both models. Between the outer lines are 95 %; the dashed line is no difference.'),
        calibration_plot=report.figure(plots, 'calibration', 'Each point is a tenth of the '
                                       'policies, with the 95 % interval of its claim rate.'),
        rate=f'{label.mean():.3%}', before=f'{scores[0].mean():.3%}',
        after=f'{scores[1].mean():.3%}',
        lost=f'Of {len(found)} segments with {metrics.LEAST_IN_SEGMENT} claims or more, the AUC of '
        f'the new model is surely lower in {surely}; chance alone makes it so in one of 40.',
        segments=report.table(
            ['segment', 'policies', 'claims', 'champion', 'new model', '95 % of the difference'],
            [(name, f'{rows:,}', f'{claims:,}', f'{before:.4f}', f'{after:.4f}',
              '{:+.4f} to {:+.4f}'.format(*interval))
             for name, rows, claims, before, after, interval in found[:SEGMENTS_SHOWN]],
            'numbers') if found else '',
        drift=report.escape(drift['sentence']), drifted=report.table(
            ['column', 'PSI', 'by chance at most'],
            [(name, f'{psi[name]:.4f}', f"{drift['chance'][name]:.4f}")
             for name in sorted(psi, key=psi.get, reverse=True)[:DRIFT_SHOWN]],
            'numbers') if psi else '')


def segments(frame, label, scores):
    """(name, rows, claims, the two AUCs, 95 % interval of their difference) of each level."""
    for name, rows in table.segments(frame, table.SEGMENTS):
        claims = int(label[rows].sum())
        if min(claims, rows.sum() - claims) >= metrics.LEAST_IN_SEGMENT:
            yield (name, int(rows.sum()), claims,
                   *metrics.auc_difference(label[rows], *[one[rows] for one in scores]))


def draw_roc(axes, label, scores):
    for name, color, one in zip(NAMES, COLORS, scores):
        axes.plot(*report.thinned(*metrics.roc_curve(label, one)), color=color, linewidth=1.6,
                  label=f'{name}, AUC {metrics.auc(label, one):.4f}')
    report.frame_roc(axes)
    axes.legend(loc='lower right', frameon=False)


def draw_lift(axes, groups):
    numbers = range(1, len(groups[0]) + 1)
    for name, color, marker, one in zip(NAMES, COLORS, 'so', groups):
        axes.plot(numbers, [group['lift'] for group in one], marker + '-', color=color,
                  markersize=4.5, label=name)
    axes.axhline(1, zorder=0, **report.DASHED)
    axes.set(title='Lift by decile', xticks=numbers, ylabel='lift', ylim=(0, None),
             xlabel='decile of predicted risk, riskiest first')
    axes.legend(frameon=False)


def draw_differences(axes, differences, decision):
    axes.hist(differences, BARS, color=report.PALE)
    for bound in decision['difference_interval']:
        axes.axvline(bound, color=report.GREY, linewidth=1)
    axes.axvline(decision['difference'], color=report.ACCENT, linewidth=2)
    axes.axvline(0, **report.DASHED)
    axes.set(title='Difference, new model less champion', ylabel='resamples',
             xlabel=f"difference in {decision['metric'].replace('_', ' ')}")
    axes.locator_params(axis='x', nbins=5)


def draw_calibration(axes, groups):
    for name, color, marker, one in zip(NAMES, COLORS, 'so', groups):
        report.draw_points(axes, one, color, marker, name)
    report.frame_calibration(axes)
    axes.legend(loc='upper left', frameon=False)
