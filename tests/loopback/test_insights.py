"""Application Insights of loopback by plain HTTP: what it takes, counts and refuses."""
import calendar
import time

import pytest

import arm
import azure_ml
import loopback
import monitor
import sign_in
import test_monitor
from test_loopback import ARM, GROUP, Client, code

pytest.importorskip('azureml.core')
pytestmark = [pytest.mark.no_cover, pytest.mark.end_to_end]

TRACK = 'https://dc.services.visualstudio.com/v2.1/track'
VERSION = monitor.QUERY_VERSION


class Insights(Client):
    """The Application Insights of a workspace."""

    def __init__(self, azure):
        super().__init__(azure)
        self.set_up()
        space, = azure.journal.table('workspaces').values()
        self.key = space['properties']['workspaceId']
        self.component = space['properties']['applicationInsights']

    def send(self, lines, **changes):
        """Send lines of serve.log as the exporter of a container does."""
        self.session.post(TRACK, json=[dict({
            'name': 'Microsoft.ApplicationInsights.Message', 'iKey': self.key,
            'time': line[:23].replace(' ', 'T').replace(',', '.') + '000Z', 'tags': {},
            'data': {'baseType': 'MessageData', 'baseData': {
                'ver': 2, 'message': line.partition(' - ')[2].rstrip('\n')}}}, **changes)
            for line in lines]).raise_for_status()

    def query(self, version=VERSION, **body):
        return self.arm('POST', self.component + '/query', body, version)


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    with loopback.start(str(tmp_path_factory.mktemp('azure') / 'state')) as azure:
        yield azure
        assert azure.unknown == []


@pytest.fixture(scope='module')
def insights(azure):
    return Insights(azure)


def queries(window, service='safe-driver'):
    words = {'service': service, 'start': monitor.text_of(window.start), 'step': window.step,
             'fineness': monitor.FINENESS}
    return monitor.REQUESTS % words, monitor.SCORES % words


@pytest.fixture
def manager(azure, monkeypatch):
    """Resource Manager for a script that is signed in."""
    for name, value in azure.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('azure_ml.FIRST_PAUSE_SECONDS', 0.05)
    return arm.Manager(sign_in.authentication(azure.env), 60)


def test_it_counts_what_monitor_counts_in_a_file(insights, manager):
    lines = test_monitor.scored(300) + [test_monitor.line(3600, 500, rows=0)] * 3 + [
        test_monitor.line(3700)[:150] + '\n', test_monitor.line(25 * 3600)]
    lines += [line.replace('"x"', f'"{number}"') for number, line in enumerate(
        [test_monitor.line(3600, 413, version='2')] * 4)]
    insights.send(lines)
    # What is sent twice counts once; nobody else's lines count.
    insights.send(lines[:50])
    insights.send([line.replace('safe-driver', 'another') for line in lines])
    insights.send([line.replace('{"request_id"', '{"model"') for line in lines])
    insights.send([line.replace('"x"', '"x", "test": true') for line in lines])
    insights.send(lines, iKey='another')
    window = monitor.Window(24, calendar.timegm(time.gmtime()))
    groups, scores = monitor.azure_counts(manager, insights.component, 'safe-driver', window)
    known, known_scores = monitor.count_lines(sorted(set(lines)), window)

    def figures(groups):
        return sorted((group[:3], str(group.steps), *group[4:6]) for group in groups
                      if group.status is not None)
    assert figures(groups) == figures(known) and scores == known_scores
    found = monitor.figures(groups, scores, None)
    assert (found['cut_lines'], found['failed'], found['refused']) == (1, 1, 4)
    assert monitor.azure_counts(manager, insights.component, 'nobody', window) == ([], {})


def test_it_refuses_what_azure_refuses(azure, insights):
    window = monitor.Window(24, calendar.timegm(time.gmtime()))
    good = {'query': queries(window)[0], 'timespan': '2026-01-01T00:00:00Z/2026-01-02T00:00:00Z'}
    assert insights.query(**good).json()['tables'][0]['columns'][0] == {
        'name': 'slot', 'type': 'int'}
    for wrong in ({'query': good['query'] + '| take 1'}, {'query': 'traces'}, {'query': ''},
                  {'timespan': 'yesterday'}, {'apps': []}):
        assert code(insights.query(**dict(good, **wrong))) == (400, 'BadArgumentError')
    assert code(insights.query(timespan=good['timespan'])) == (400, 'BadArgumentError')
    assert code(insights.query('2020-02-02', **good)) == (400, 'NoRegisteredProviderFound')
    where = f'{ARM}{insights.component}/query?api-version={VERSION}'
    assert code(insights.session.post(where, json=good)) == (401, 'AuthenticationFailed')
    # Without the header there is an empty answer.
    answer = insights.session.post(where, data='{}', headers={
        'Authorization': f'Bearer {insights.token}'})
    assert (answer.status_code, answer.content) == (200, b'')
    other = insights.component.replace('-insights', '-other')
    assert code(insights.arm('POST', other + '/query', good, VERSION)) == (404, 'ResourceNotFound')
    azure.set_role(None, azure.group(GROUP))
    azure.set_role(None, azure.subscription)
    assert code(insights.query(**good)) == (403, 'AuthorizationFailed')
    # To read is enough.
    azure.set_role('Reader', azure.subscription)
    assert insights.query(**good).status_code == 200
    azure.set_role('Contributor', azure.group(GROUP))


def test_a_part_of_the_lines_is_no_answer(azure, insights, manager):
    window = monitor.Window(24, calendar.timegm(time.gmtime()))
    azure.faults.add('partial-answer')
    with pytest.raises(azure_ml.AzureError, match='only a part of the lines'):
        monitor.azure_counts(manager, insights.component, 'safe-driver', window)
    azure.faults.add('throttled', path='/query')
    azure.faults.add('reset', path='/query', skip=1)
    monitor.azure_counts(manager, insights.component, 'safe-driver', window)
    assert azure.faults.struck[-2:] == ['throttled', 'reset']
