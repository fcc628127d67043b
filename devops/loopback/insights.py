"""Application Insights: it takes what containers send, and counts it when `make monitor` asks.

Sources: Azure/azure-rest-api-specs, applicationinsights/data-plane, Monitor.Exporters (envelopes,
/v2.1/track) and Microsoft.Insights/preview/2018-04-20 (queries); MicrosoftDocs/azure-monitor-docs,
logs/api/errors.md and response-format.md (refusals, PartialError, the empty answer to what is no
JSON); for the right Microsoft.Insights/Components/Query/Read the page resource-provider-operations.
Kusto is not modelled: two queries are known by their text. What has arrived is found at once,
though Azure takes some minutes.
"""
import calendar
import collections
import json
import math
import re
import time

from .resource_manager import resource
from .routing import ARM, GROUP, TELEMETRY, Answer, route
from .workspaces import not_found

MOST_TRACES = 500000
MOST_CHARACTERS = 32768
LINES = """traces
| where message startswith_cs '<begin>' and message contains_cs '<part>'
| where message !contains_cs '<test>'
| distinct timestamp, message
| extend line = parse_json(message)
"""
REQUESTS = LINES + """| summarize requests = count(), rows = sum(tolong(line.rows)),
newest = max(timestamp) by slot = toint((timestamp - datetime(<start>)) / <step>s),
version = tostring(line.version), status = toint(line.status),
steps = toint(round(<fineness> * log(todouble(line.milliseconds))))
"""
SCORES = LINES + """| mv-expand bin = bag_keys(line.bins) to typeof(string)
| summarize rows = sum(tolong(line.bins[bin])) by version = tostring(line.version), bin = toint(bin)
"""
REQUESTS, SCORES = [
    re.compile(re.sub('<([a-z]+)>', r"(?P<\1>[^'()]+?)", re.escape(text)) + '$')
    for text in (REQUESTS, SCORES)]
COLUMNS = {REQUESTS: {'slot': 'int', 'version': 'string', 'status': 'int', 'steps': 'int',
                      'requests': 'long', 'rows': 'long', 'newest': 'datetime'},
           SCORES: {'version': 'string', 'bin': 'int', 'rows': 'long'}}
MOMENT = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z'


class Traces:
    """What containers sent: (instrumentation key, time, message), the newest so many."""

    def __init__(self):
        self._kept = collections.deque(maxlen=MOST_TRACES)

    def take(self, envelopes):
        for one in envelopes:
            data = one['data']
            if data['baseType'] == 'MessageData':
                self._kept.append((
                    one['iKey'], one['time'], data['baseData']['message'][:MOST_CHARACTERS]))

    def between(self, keys, start, end):
        """Different (seconds since 1970, time, message) with one of these instrumentation keys."""
        found = {(seconds(moment), moment, message) for key, moment, message in list(self._kept)
                 if key in keys}
        return sorted(one for one in found if start <= one[0] < end)


def seconds(moment):
    whole, _, part = moment.rstrip('Z').partition('.')
    return calendar.timegm(time.strptime(whole, '%Y-%m-%dT%H:%M:%S')) + float(f'0.{part or 0}')


@route('POST', TELEMETRY, '/{path*}', signed_in=False)
def track(call, path):
    """Take what is sent; of others' telemetry, which comes in other forms, nothing is kept."""
    try:
        call.cloud.traces.take(call.json)
    except (Answer, LookupError, TypeError):
        pass
    return {'itemsReceived': 1, 'itemsAccepted': 1, 'errors': []}


def refused(code, message):
    """A query is refused, in the words of errors.md."""
    return Answer({'error': {
        'message': 'The request had some invalid properties', 'code': 'BadArgumentError',
        'innererror': {'code': code, 'message': message}}}, 400)


@route('POST', ARM, GROUP + '/providers/Microsoft.Insights/components/{name}/query')
def query(call, group, name):
    component = call.path[:-len('/query')].lower()
    if resource(call.cloud, component) is None:
        raise not_found('Microsoft.Insights/components', name, group)
    if not call.headers.get('Content-Type', '').startswith('application/json'):
        return Answer()
    asked = call.json
    if not isinstance(asked, dict) or not {'query'} <= set(asked) <= {'query', 'timespan'}:
        raise refused('QueryValidationError', 'Only query and timespan are known here.')
    span = re.fullmatch(f'({MOMENT})/({MOMENT})', str(asked.get('timespan')))
    if not span:
        raise refused('InvalidTimespan', f"Loopback knows no timespan {asked.get('timespan')!r}.")
    keys = [space['properties']['workspaceId']
            for space in call.cloud.journal.table('workspaces').values()
            if space['properties']['applicationInsights'].lower() == component]
    lines = call.cloud.traces.between(keys, *map(seconds, span.groups()))
    for pattern, count in ((REQUESTS, count_requests), (SCORES, count_scores)):
        match = pattern.match(asked['query'])
        if match:
            rows = count([line for line in lines if line[2].startswith(match['begin'])
                          and match['part'] in line[2] and match['test'] not in line[2]], match)
            answer = {'tables': [{'name': 'PrimaryResult', 'rows': rows, 'columns': [
                {'name': name, 'type': kind} for name, kind in COLUMNS[pattern].items()]}]}
            if call.cloud.faults.take('partial-answer'):
                del rows[len(rows) // 2:]
                answer['error'] = {
                    'code': 'PartialError', 'message': 'There were some errors when processing '
                    'your query.', 'details': [{
                        'code': 'EngineError', 'message': 'Something went wrong processing your '
                        'query on the server.'}]}
            return answer
    raise refused('SyntaxError', 'Loopback knows no such query.')


def parsed(message):
    """parse_json: what is no JSON has none of the parts that are asked for."""
    try:
        return json.loads(message)
    except ValueError:
        return {}


def count_requests(lines, match):
    groups, start = {}, seconds(match['start'])
    for moment, text, message in lines:
        line = parsed(message)
        steps = line and round(int(match['fineness']) * math.log(line['milliseconds']))
        key = (int((moment - start) / int(match['step'])), line.get('version', ''),
               line.get('status'), steps if line else None)
        known = groups.setdefault(key, [0, 0, text])
        known[:] = known[0] + 1, known[1] + line.get('rows', 0), max(known[2], text)
    return [[*key, *counts] for key, counts in groups.items()]


def count_scores(lines, match):
    rows = collections.Counter()
    for _, _, message in lines:
        line = parsed(message)
        # bag_keys of null is null, and mv-expand of null one record of it (learn: kusto/query).
        for place, count in line.get('bins', {None: 0}).items():
            rows[line.get('version', ''), place and int(place)] += count
    return [[*key, count] for key, count in rows.items()]
