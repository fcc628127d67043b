"""What a service did in the last hours, by the lines of its log, and whether that is within limits.

    python scripts/monitor.py --service local --out outputs --model-name safe_driver_model

score.py prints a line for each request. `make serve` keeps them in OUT/serve.log; in Azure the
inference server sends them to the workspace's Application Insights, table traces, column message
(its server/appinsights_client.py). These are counted there, by a query that goes through Azure
Resource Manager, as a service principal's has to (MicrosoftDocs/azure-monitor-docs,
logs/api/errors.md): Azure/azure-rest-api-specs, applicationinsights/data-plane/Microsoft.Insights/
preview/2018-04-20, and for incomplete answers logs/api/response-format.md.
"""
import argparse
import collections
import datetime
import io
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import atomic
import azure_ml
import bench_report
import settings
from azure_ml import AzureError

QUERY_VERSION = '2018-04-20'
NAMES = {'aci': 'aci_deployment_name', 'endpoint': 'endpoint_name'}
PROFILE = 'model/profile.json'
FEWEST_REQUESTS = 100
SLOTS = 24
# Durations are counted in steps of 1 %.
FINENESS = 100
# What a line of ours begins with, and what the server writes before it in a file.
BEGIN = '{"request_id": '
PRINTED = ' azmlinfsrv.print - '
# Chance exceeds it once in 1,000 times.
Z = 3.09
# Our own tests are left out. A line that the sender repeats, for want of an answer, has the same
# time to the microsecond.
LINES = f"""traces
| where message startswith_cs '{BEGIN}' and message contains_cs '"service": "%(service)s"'
| where message !contains_cs '"test": true'
| distinct timestamp, message
| extend line = parse_json(message)
"""
REQUESTS = LINES + """| summarize requests = count(), rows = sum(tolong(line.rows)),
newest = max(timestamp) by slot = toint((timestamp - datetime(%(start)s)) / %(step)ds),
version = tostring(line.version), status = toint(line.status),
steps = toint(round(%(fineness)d * log(todouble(line.milliseconds))))
"""
SCORES = LINES + """| mv-expand bin = bag_keys(line.bins) to typeof(string)
| summarize rows = sum(tolong(line.bins[bin])) by version = tostring(line.version), bin = toint(bin)
"""

Group = collections.namedtuple('Group', 'slot version status steps requests rows newest')


class Window:
    """The last hours before `end` (seconds since 1970), in SLOTS parts of `step` seconds."""

    def __init__(self, hours, end):
        self.hours, self.step = hours, hours * 3600 // SLOTS
        self.start, self.end = end - hours * 3600, end

    def slot(self, moment):
        return int((moment - self.start) / self.step)


def text_of(moment, form='%Y-%m-%dT%H:%M:%SZ'):
    return time.strftime(form, time.gmtime(moment))


def read_line(line):
    """(seconds since 1970, message) of a line of serve.log that score.py printed, else None."""
    head, _, message = line.partition(PRINTED)
    if not message.startswith(BEGIN):
        return None
    moment = datetime.datetime.strptime(head[:23] + '+0000', '%Y-%m-%d %H:%M:%S,%f%z')
    return moment.timestamp(), message


def count_lines(lines, window):
    """(groups, {(version, bin): rows}): what the queries count in traces, of lines of serve.log.

    The group of a line that was cut has the status None.
    """
    requests, rows, newest, scores = collections.Counter(), collections.Counter(), {}, (
        collections.Counter())
    for line in lines:
        moment, message = read_line(line) or (0, '')
        if not window.start <= moment < window.end:
            continue
        slot = window.slot(moment)
        try:
            found = json.loads(message)
            if found.get('test'):
                continue
            key = (slot, found['version'], int(found['status']),
                   round(FINENESS * math.log(found['milliseconds'])))
            rows[key] += int(found['rows'])
            for place, count in found.get('bins', {}).items():
                scores[found['version'], int(place)] += count
        except (ValueError, LookupError, TypeError, AttributeError):
            key = slot, '', None, None
        requests[key] += 1
        newest[key] = text_of(moment)
    return [Group(*key, count, rows[key], newest[key]) for key, count in requests.items()], scores


def local_counts(out, window):
    """`count_lines` of what `make serve` logged."""
    paths = [path for path in (out / 'serve.log.1', out / 'serve.log') if path.is_file()]
    if not paths:
        raise AzureError(f"there is no {out / 'serve.log'}; `make serve` writes it")

    def lines():
        for path in paths:
            with open(str(path), encoding='utf-8', errors='replace') as log:
                yield from log
    return count_lines(lines(), window)


def ask(manager, component, query, window):
    """The rows of the answer, as dicts. Raises AzureError unless it is whole."""
    what = 'query Application Insights'
    answer = manager.ask(what, 'POST', component + '/query', QUERY_VERSION, {
        'query': query, 'timespan': f'{text_of(window.start)}/{text_of(window.end)}'})
    error = answer.get('error')
    if error:
        said = azure_ml.sentence(error.get('message') if isinstance(error, dict) else error)
        raise AzureError(f'could not {what}: it counted only a part of the lines ({said})\n'
                         'run this again, or with fewer MONITOR_WINDOW_HOURS')
    try:
        return [dict(zip([column['name'] for column in table['columns']], row))
                for table in answer.get('tables', [])[:1] for row in table['rows']]
    except (LookupError, TypeError, AttributeError):
        raise AzureError(f'could not {what}: the answer holds no table\n{azure_ml.ODD}') from None


def azure_counts(manager, component, service, window):
    """As `count_lines`, of what the service logged in Azure. Raises AzureError."""
    words = {'service': service, 'start': text_of(window.start), 'step': window.step,
             'fineness': FINENESS}

    def number(value):
        return None if value is None else int(value)
    try:
        groups = [Group(int(row['slot']), row['version'], number(row['status']),
                        number(row['steps']), int(row['requests']), number(row['rows']) or 0,
                        row['newest'])
                  for row in ask(manager, component, REQUESTS % words, window)]
        # Of a line without bins, that of a request that was refused, mv-expand makes one of null.
        scores = collections.Counter({
            (row['version'], int(row['bin'])): int(row['rows'])
            for row in ask(manager, component, SCORES % words, window) if row['bin'] is not None})
    except (LookupError, TypeError, ValueError):
        raise AzureError('could not query Application Insights: the answer lacks what was asked '
                         f'for\n{azure_ml.ODD}') from None
    return groups, scores


def percentile(groups, share):
    """The milliseconds that so large a share of the scored requests keeps to, or None."""
    counts = collections.Counter()
    for group in groups:
        if group.status == 200 and group.steps is not None:
            counts[group.steps] += group.requests
    wanted, seen = share * sum(counts.values()), 0
    for steps in sorted(counts):
        seen += counts[steps]
        if seen >= wanted:
            return math.exp(steps / FINENESS)
    return None


def counted(groups, low, high):
    """How many requests have a status from low to high."""
    return sum(group.requests for group in groups
               if group.status is not None and low <= group.status <= high)


def psi(shares, rows, counts):
    """(PSI of the counts against the shares of so many rows, what chance alone hardly exceeds).

    The rule is that of training/drift.py: half a row is added to each bin that any row is in, and
    chance is chi-square, its quantile by Wilson and Hilferty (1931, doi 10.1073/pnas.17.12.684).
    """
    pairs = [(share * rows + 0.5, count + 0.5) for share, count in zip(shares, counts)
             if share * rows + count > 0]
    before, now = map(sum, zip(*pairs))
    index = sum((second / now - first / before) * math.log(second / now * before / first)
                for first, second in pairs)
    free = max(1, len(pairs) - 1)
    quantile = free * (1 - 2 / (9 * free) + Z * math.sqrt(2 / (9 * free))) ** 3
    return index, quantile * (1 / before + 1 / now)


def figures(groups, scores, profile):
    """What is to be known of a window, for monitor.json. profile: {"rows", "edges", "shares"}.

    The scores are those of the version that answered last.
    """
    readable = [group for group in groups if group.status is not None]
    versions = collections.Counter()
    for group in readable:
        versions[group.version] += group.requests
    found = {
        'requests': sum(versions.values()), 'versions': versions,
        'rows': sum(group.rows for group in readable), 'refused': counted(groups, 400, 499),
        'failed': counted(groups, 500, 599),
        'cut_lines': sum(group.requests for group in groups if group.status is None),
        'newest': max((group.newest for group in groups), default=None),
        'p50_ms': percentile(groups, 0.5), 'p95_ms': percentile(groups, 0.95),
        'version': newest_version(groups), 'scores': None}
    if profile:
        counts = [scores[found['version'], place] for place in range(len(profile['shares']))]
        if any(counts):
            index, chance = psi(profile['shares'], profile['rows'], counts)
            found['scores'] = {'rows': sum(counts), 'counts': counts, 'psi': index,
                               'chance': chance, 'hold_out': profile['shares'],
                               'edges': profile['edges']}
    return found


def newest_version(groups):
    """The version of the model that answered last, or None."""
    return max(((group.newest, group.version) for group in groups if group.status is not None),
               default=(None, None))[1]


def lines_of_table(found, config):
    """[(figure, as text, value, limit, what sets it)]; what has no limit ends in three None."""
    versions = ', '.join(f'{count:,} by version {version}' for version, count in sorted(
        found['versions'].items()))
    free, requests, scores = (None, None, None), found['requests'], found['scores']
    percent = 100 * found['failed'] / requests if requests else 0.0
    lines = [('requests', f'{requests:,}' + f' ({versions})' * bool(versions), *free),
             ('rows scored', f"{found['rows']:,}", *free),
             ('refused (4xx)', f"{found['refused']:,}", *free),
             ('failed (5xx)', f"{found['failed']:,}, {percent:.2f} %", percent,
              config.monitor_max_failure_percent, 'MONITOR_MAX_FAILURE_PERCENT')]
    if found['p95_ms'] is not None:
        lines += [('half within', f"{found['p50_ms']:.3g} ms", *free),
                  ('95 % within', f"{found['p95_ms']:.3g} ms", found['p95_ms'],
                   config.monitor_max_p95_ms, 'MONITOR_MAX_P95_MS')]
    if scores:
        by_chance = scores['chance'] > config.monitor_max_psi
        lines += [
            (f"PSI by chance alone, {scores['rows']:,} rows", f"{scores['chance']:.3f}", *free),
            (f"PSI of the scores of version {found['version']}", f"{scores['psi']:.3f}",
             scores['psi'], max(scores['chance'], config.monitor_max_psi),
             'by chance alone' if by_chance else 'MONITOR_MAX_PSI')]
    return lines


def picture(title, groups, found, window, config):
    """The figures as a picture (bytes of PNG); None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    blue, amber, red, grey = bench_report.COLOURS
    figure = Figure(figsize=(10, 7.5), layout='constrained')
    figure.suptitle(title, fontsize=12, x=0.01, ha='left')
    grid = figure.add_gridspec(2, 2)
    requests, durations, scores = (figure.add_subplot(grid[place]) for place in (
        (0, 0), (0, 1), (1, slice(None))))
    slots = [[group for group in groups if group.slot == number] for number in range(SLOTS)]
    below = [0] * SLOTS
    for name, colour, low, high in (('scored', blue, 200, 299), ('refused', amber, 400, 499),
                                    ('failed', red, 500, 599)):
        counts = [counted(slot, low, high) for slot in slots]
        requests.bar(range(SLOTS), counts, 0.85, below, color=colour, label=name)
        below = [sum(pair) for pair in zip(below, counts)]
    requests.set_title(f"{found['requests']:,} requests, {found['failed']:,} failed", loc='left')
    for share, colour in ((0.95, blue), (0.5, grey)):
        durations.plot(range(SLOTS), [percentile(slot, share) or math.nan for slot in slots],
                       color=colour, marker='o', markersize=4, label=f'{100 * share:.0f} % within')
    durations.axhline(config.monitor_max_p95_ms, color=red, linewidth=1, linestyle='--',
                      label='limit of 95 %')
    durations.set_yscale('log')
    durations.set_title('milliseconds in the container', loc='left')
    form = '%H:%M' if window.hours <= SLOTS else '%d %b\n%H:%M'
    for axes in (requests, durations):
        axes.set_xlim(-0.7, SLOTS - 0.3)
        axes.set_xticks([number - 0.5 for number in range(0, SLOTS + 1, SLOTS // 4)], [
            text_of(window.start + number * window.step, form)
            for number in range(0, SLOTS + 1, SLOTS // 4)])
        axes.set_xlabel('UTC')
        axes.legend(frameon=False, fontsize=9)
    draw_scores(scores, found, blue, grey)
    for axes in (requests, durations, scores):
        axes.spines[['top', 'right']].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=110)
    return content.getvalue()


def draw_scores(axes, found, colour, of_hold_out):
    """A bar for each bin of scores, the hold-out's behind it."""
    scores = found['scores']
    if not scores:
        axes.axis('off')
        axes.text(0, 1, 'no scores to compare with those of the hold-out', va='top')
        return
    places = range(len(scores['counts']))
    axes.bar(places, [100 * share for share in scores['hold_out']], 0.92, color=of_hold_out,
             alpha=0.45, label='hold-out of the training')
    axes.bar(places, [100 * count / scores['rows'] for count in scores['counts']], 0.55,
             color=colour, label=f"{scores['rows']:,} rows of version {found['version']}")
    axes.set_xticks([place + 0.5 for place in places][:-1],
                    [f'{edge:.3f}' for edge in scores['edges']], fontsize=8, rotation=45)
    axes.set_xlabel('score')
    axes.set_ylabel('% of rows')
    axes.set_title(f"scores: PSI {scores['psi']:.3f}, by chance alone up to "
                   f"{scores['chance']:.3f}", loc='left')
    axes.legend(frameon=False, fontsize=9)


def azure_service(config, service, window, model_name):
    """(its name, groups, scores, profile) of a service in Azure. Raises AzureError."""
    import arm
    import deploy
    import sign_in
    import workspace
    name = getattr(config, NAMES[service])
    manager = arm.Manager(sign_in.authentication(os.environ), config.call_timeout_seconds)
    path = (f'/subscriptions/{config.subscription_id}/resourceGroups/{config.resource_group}'
            f'/providers/{workspace.WORKSPACES}/{config.workspace_name}')
    found = manager.get(path, workspace.WORKSPACE_VERSION, 'open the workspace')
    component = ((found or {}).get('properties') or {}).get('applicationInsights')
    if not component:
        raise AzureError(f'the workspace {config.workspace_name} is not there, or has no '
                         'Application Insights: `make workspace` creates both')
    groups, scores = azure_counts(manager, component, name, window)
    profile, version = None, newest_version(groups)
    if any(version == known for known, _ in scores):
        with tempfile.TemporaryDirectory() as folder:
            deploy.fetch_model(workspace.connect(config), config, model_name, version, folder)
            profile = atomic.read_json(Path(folder, PROFILE), 'scores')
    return name, groups, scores, profile


def local_service(args, window):
    """The same of `make serve`."""
    groups, scores = local_counts(args.out, window)
    folder = args.out / 'registry' / args.model_name / str(newest_version(groups))
    return 'make serve', groups, scores, atomic.read_json(folder / PROFILE, 'scores')


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--service', choices=('local', *NAMES), default='local', help='which one')
    parser.add_argument('--out', type=Path, default=Path('outputs'),
                        help='folder of registry/ and serve.log, and for the results')
    parser.add_argument('--model-name', default='safe_driver_model', help='which model it serves')
    args = parser.parse_args(argv)
    config = settings.read(os.environ, needs=() if args.service == 'local' else settings.WORKSPACE)
    window = Window(config.monitor_window_hours, time.time())
    name, groups, scores, profile = (
        local_service(args, window) if args.service == 'local'
        else azure_service(config, args.service, window, args.model_name))
    found = figures(groups, scores, profile and profile['scores'])
    hours = f'{window.hours} hour' + 's' * (window.hours > 1)
    title = f"{name}, {hours} until {text_of(window.end, '%Y-%m-%d %H:%M')} UTC"
    few = found['requests'] < FEWEST_REQUESTS
    rows, beyond = [('figure', 'is', 'at most', 'within')], []
    for figure, text, value, limit, source in lines_of_table(found, config):
        judged = limit is not None and not few
        if judged and value > limit:
            beyond.append(f'{figure}: {text}, at most {limit:.3g} ({source})')
        rows.append((figure, text, '' if limit is None else f'{limit:.3g} ({source})',
                     '' if not judged else 'yes' if value <= limit else 'NO'))
    print(f'{title}\n\n{bench_report.table(rows)}\n')
    if found['newest'] and args.service != 'local':
        print(f"newest request {found['newest'][:19]} UTC; later ones may not have arrived yet")
    if found['cut_lines']:
        print(f"{found['cut_lines']:,} lines were cut and are not counted")
    if found['requests'] and not found['scores']:
        print(f"no scores to compare: version {found['version']} has no profile.json, or none of "
              'its requests was scored')
    atomic.write_json(args.out / 'monitor.json', dict(
        found, service=args.service, name=name, hours=window.hours, end=text_of(window.end),
        judged=not few, beyond=beyond))
    drawn = picture(title, groups, found, window, config)
    if drawn:
        atomic.write_bytes(args.out / 'monitor.png', drawn)
    else:
        print('no picture: matplotlib is not installed for this Python')
    if beyond:
        raise AzureError(f'{name} is beyond its limits: ' + '; '.join(beyond))
    if few:
        print(f"too few requests to judge: {found['requests']} in {hours}, "
              f"{found['failed']} of them failed")
    else:
        print(f'{name} is within its limits')
    return 0


if __name__ == '__main__':
    sys.exit(main())
