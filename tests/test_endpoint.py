"""Production by `--service endpoint`: the project's verbs against loopback's managed endpoint."""
import collections
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time

import pytest
import requests
from _pytest.monkeypatch import MonkeyPatch

import deploy
import endpoint
import forked
import served
import settings
import test_verbs
import workspace
from conftest import ROOT, python_of_one_thread

pytest.importorskip('azureml.core')
pytestmark = pytest.mark.end_to_end

NAME = 'drivers-of-tests'
ROUNDS = endpoint.ROUNDS


class Production(test_verbs.Verbs):
    """A workspace with registered models, and what its endpoint does."""

    def deploy(self, version, code=0, **changes):
        return self('deploy', '--service', 'endpoint', code=code, MODEL_VERSION=str(version),
                    **changes)

    def settle(self):
        """Have version 1 serve, and version 2 be there."""
        for version in 2, 1:
            if self.endpoint()[0] != {self.names.get(1): 100}:
                self.deploy(version)
                self.names[version] = self.facts()['deployment']

    def routes(self):
        """The changes of the traffic that were asked for."""
        return [one for one in self.azure.exchanges
                if one[0] == 'PUT' and one[1].endswith('/onlineEndpoints/' + NAME)]

    def id_of(self, deployment):
        return f"{self.workspace['id']}/onlineEndpoints/{NAME}/deployments/{deployment}".lower()

    def endpoint(self):
        """(traffic, tags) as Azure has them."""
        one = endpoint.Endpoint(settings.read(os.environ))
        return (one.traffic, one.tags) if one.look() else ({}, {})

    def facts(self):
        return self.read('endpoint.json')


def register(folder, version):
    """Register a small model, as the pipeline's step does it; its lightgbm.Booster."""
    from azureml.core.model import Model
    booster = served.register(folder, version, seed=version)
    here = folder / served.NAME / str(version)
    with contextlib.redirect_stdout(io.StringIO()), MonkeyPatch().context() as patch:
        # The SDK takes files from below the current folder only.
        patch.chdir(folder)
        made = Model.register(workspace.connect(settings.read(os.environ)),
                              model_path=str(here / 'model'), model_name=served.NAME,
                              tags=json.loads((here / 'tags.json').read_text()))
    assert made.version == version
    return booster


@pytest.fixture(scope='module')
def production(tmp_path_factory):
    import loopback
    folder = tmp_path_factory.mktemp('production')
    forked.prepare()
    with loopback.start(str(folder / 'azure'), python=python_of_one_thread(folder)) as azure, \
            MonkeyPatch().context() as patch:
        azure.add_group('production-RG')
        for name, value in dict(
                azure.env, BASE_NAME='production', LOCATION='westeurope', ENDPOINT_NAME=NAME,
                PRODUCTION='endpoint', ENDPOINT_WATCH_MINUTES='0',
                CALL_TIMEOUT_SECONDS='60').items():
            patch.setenv(name, value)
        for name in ('arm.PAUSE_SECONDS', 'workspace.PAUSE_SECONDS', 'endpoint.PAUSE_SECONDS',
                     'azure_ml.FIRST_PAUSE_SECONDS', 'endpoint.WATCH_PAUSE_SECONDS'):
            patch.setattr(name, 0.05)
        # Enough where the new deployment does not fail.
        patch.setattr('endpoint.ROUNDS', 2)
        forked.hasten(patch)
        azure.exchanges = collections.deque()
        made = Production(azure, folder)
        made.names = {}
        patch.setattr('loopback.processes.start', made.start)
        made('workspace')
        made.boosters = [register(folder / 'registry', version) for version in (1, 2, 3)]
        yield made
        keys = azure.table(made.workspace, 'endpoints')[NAME]['keys'].values()
        assert not [key for key in keys if key in ''.join(made.texts)]
    assert azure.unknown == []


@pytest.fixture
def steady(production):
    """Version 1 serves and version 2 is there, without traffic."""
    production.azure.faults.clear()
    production.settle()
    yield production
    production.azure.faults.clear()


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """A copy of the folder that is deployed, which differs from what was deployed before."""
    folder = tmp_path / 'scoring'
    shutil.copytree(str(deploy.SOURCE), str(folder), ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'change').write_text(str(tmp_path))
    monkeypatch.setattr('deploy.SOURCE', folder)
    return folder


def test_a_new_version_takes_over_step_by_step_and_the_way_back_is_one_change(
        steady, monkeypatch):
    monkeypatch.setattr('endpoint.ROUNDS', 1)
    before, _ = steady.endpoint()
    said = steady.deploy(3, BUILD_BUILDID='7', ENDPOINT_WATCH_MINUTES='0.04')
    facts = steady.facts()
    new, old = facts['deployment'], facts['previous_deployment']
    assert before == {old: 100} and new.startswith('v3-')
    assert facts['version'] == 3 and facts['previous_version'] == 1
    order = ['deleting the deployment v2-', f'creating the deployment {new}',
             f'{new} answers as it should', f'traffic {old} 90 %, {new} 10 %',
             'requests with', f'traffic {new} 100 %', 'runs version 3 of']
    places = [said.index(one) for one in order]
    assert places == sorted(places)
    assert int(re.search('([0-9]+) requests with', said).group(1)) > 16
    assert steady.endpoint()[0] == {new: 100}
    assert 'runs version 3 already' in steady.deploy(3, BUILD_BUILDID='7')
    assert 'answers as safe_driver_model version 3' in steady(
        'smoke_test', '--service', 'endpoint')
    # The failure hook of another build, and of another attempt, changes nothing.
    for build, attempt in (('8', '1'), ('7', '2')):
        assert 'nothing to roll back' in steady('rollback', '--service', 'endpoint',
                                                BUILD_BUILDID=build, SYSTEM_STAGEATTEMPT=attempt)
    steady.deploy(3, BUILD_BUILDID='7', SYSTEM_STAGEATTEMPT='2')
    deployments = steady.count('PUT', '/deployments/')
    back = steady('rollback', '--service', 'endpoint', BUILD_BUILDID='7', SYSTEM_STAGEATTEMPT='2')
    assert f'traffic {old} 100 %' in back and 'answers as safe_driver_model version 1' in back
    assert steady.count('PUT', '/deployments/') == deployments
    assert steady.endpoint()[0] == {old: 100} and steady.facts()['previous_version'] is None
    assert f'rolled back already, from {new}' in steady('rollback', '--service', 'endpoint')
    assert steady.endpoint()[0] == {old: 100}
    text = steady('preflight', code=1)
    assert 'ok       2 of Standard_D2as_v4, twice' in text and f'{NAME}, Succeeded, Key' in text


def test_the_version_is_the_one_that_was_tested(steady, tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps(
        {'result': 'registered', 'model': served.NAME, 'version': 3}))
    (tmp_path / 'service.json').write_text(json.dumps({'model': served.NAME, 'version': 1}))
    assert 'runs version 1 already' in steady('deploy', '--service', 'endpoint', '--out', tmp_path)
    (tmp_path / 'service.json').unlink()
    (tmp_path / 'run.json').write_text(json.dumps(
        {'result': 'kept', 'model': served.NAME, 'version': 1}))
    assert 'nothing to deploy' in steady('deploy', '--service', 'endpoint', '--out', tmp_path)


ROUTE = f'PUT .*/onlineEndpoints/{NAME}$'
# In the order of the steps; the words that say why.
FAILURES = [
    ({'fault': 'server-error', 'path': 'POST .*/startPendingUpload', 'count': None}, 'store the'),
    ({'fault': 'server-error', 'path': 'PUT .*blob.core', 'count': None}, 'scoring files, '),
    ({'fault': 'forbidden', 'path': 'PUT .*/codes/'}, 'the role Contributor'),
    ({'fault': 'no-quota'}, 'fewer instances or another instance_type'),
    ({'fault': 'crash-loop'}, 'this container crashes on demand'),
    ({'fault': 'forbidden', 'path': 'POST .*/listKeys'}, 'fetch the key of the endpoint'),
    ({'fault': 'forbidden', 'path': ROUTE}, 'give the traffic'),
    ({'fault': 'update-fails'}, 'to v1-'),
    ({'fault': 'live-500', 'count': None}, 'requests failed while v3-'),
    ({'fault': 'update-fails', 'skip': 1}, 'could not give the traffic of'),
    ({'fault': 'forbidden', 'path': ROUTE, 'skip': 1}, 'to v3-')]


def test_a_failure_at_any_step_leaves_the_traffic_where_it_was(steady, scoring, monkeypatch):
    monkeypatch.setattr('endpoint.ROUNDS', ROUNDS)
    before, _ = steady.endpoint()
    live, = before
    for fault, said in FAILURES:
        steady.azure.faults.add(**fault)
        text = steady.deploy(3, code=1, CALL_TIMEOUT_SECONDS='4')
        assert said in text and f'all traffic is on {live}' in text, (fault, text)
        steady.azure.faults.clear()
        assert steady.endpoint()[0] == before, fault
    assert 'nothing to roll back' in steady('rollback', '--service', 'endpoint', BUILD_BUILDID='9')
    # Of what passes nothing is seen but that it takes a little longer.
    for fault in ({'fault': 'busy', 'count': 2}, {'fault': 'reset', 'path': ROUTE, 'after': True},
                  {'fault': 'throttled', 'path': 'GET .*/onlineEndpoints/', 'skip': 3}):
        steady.azure.faults.add(**fault)
    steady.deploy(3)
    assert steady.facts()['previous_version'] == 1


def test_an_endpoint_that_cannot_be_made_is_said_with_the_way_out(production):
    other, unregistered = {'ENDPOINT_NAME': 'drivers-of-others'}, production.azure.unregistered
    production.azure.faults.add('name-taken')
    assert 'choose another ENDPOINT_NAME' in production.deploy(1, code=1, **other)
    assert 'nothing serves' in production('rollback', '--service', 'endpoint', code=1, **other)
    unregistered.add('microsoft.cdn')
    assert 'namespace Microsoft.Cdn' in production('preflight', code=1)
    assert 'registers two more providers' in production.deploy(1, code=1, **other)
    unregistered.clear()
    # What failed is made again.
    production.azure.faults.add('no-quota')
    assert 'deleting the endpoint, which failed' in production.deploy(1, code=1, **other)


def test_what_others_did_meanwhile_is_not_undone(steady, monkeypatch):
    before, watch = steady.endpoint()[0], endpoint.watch

    def watched(one, *rest):
        watch(one, *rest)
        # As `make rollback` in another window.
        assert steady('rollback', '--service', 'endpoint')
    monkeypatch.setattr('endpoint.watch', watched)
    text = steady.deploy(3, code=1)
    live, = before
    assert 'somebody else has changed' in text and f'all traffic is on {live}' in text
    assert steady.endpoint()[0] == before


def test_what_azure_does_not_delete_is_not_waited_for(steady, monkeypatch):
    one = endpoint.Endpoint(settings.read(os.environ))
    states = ['Failed', 'Failed', 'Deleting', 'Failed']
    monkeypatch.setattr(one.manager, 'get', lambda *_: {
        'properties': {'provisioningState': states.pop(0)}})
    monkeypatch.setattr(one.manager, 'ask', lambda *_: {})
    with pytest.raises(endpoint.AzureError, match='gave it up; run this again'):
        one.delete('deployment x', one.path_of('x'))


def test_an_odd_answer_is_a_sentence(steady, monkeypatch):
    before, routed, get = steady.endpoint()[0], len(steady.routes()), endpoint.arm.Manager.get

    def answer(of, **changes):
        def act(self, path, *rest, **query):
            found = get(self, path, *rest, **query)
            return dict(found, **changes) if path.endswith(of) else found
        monkeypatch.setattr('arm.Manager.get', act)
    for of, changes in ((NAME, {'tags': [3]}), (NAME, {'tags': {'previous': [3]}}),
                        (NAME, {'properties': {'traffic': {'v1': '100'}}}),
                        ('/deployments', {'value': 3}), ('/deployments', {'value': [3]}),
                        ('/deployments', {'value': [{'name': 'v1', 'tags': 3}]})):
        answer(of, **changes)
        for said in (steady.deploy(3, code=1), steady(
                'rollback', '--service', 'endpoint', code=1)):
            assert "could not read Azure's answer about the endpoint" in said, changes
            assert 'Traceback' not in said, changes
    monkeypatch.setattr('arm.Manager.get', get)
    assert steady.endpoint()[0] == before and len(steady.routes()) == routed


def test_an_endpoint_of_others_is_left_alone(steady, monkeypatch):
    before, table = steady.endpoint()[0], steady.azure.table(steady.workspace, 'deployments')
    live, = before
    with table.change(f'{NAME}/{live}') as row:
        tags, row['document']['tags'] = row['document']['tags'], {'team': 'another'}
    changed = len(steady.routes())
    text, checked = steady.deploy(3, code=1), steady('preflight', code=1)
    with table.change(f'{NAME}/{live}') as row:
        row['document']['tags'] = tags
    for said in text, checked:
        assert f'did not make, {live}: choose another ENDPOINT_NAME' in ' '.join(said.split())
    get = endpoint.arm.Manager.get

    def with_tokens(self, path, *rest, **query):
        found = get(self, path, *rest, **query)
        return dict(found, properties=dict(found['properties'], authMode='AADToken')) if (
            path.endswith('/' + NAME)) else found
    monkeypatch.setattr('arm.Manager.get', with_tokens)
    assert 'asks for AADToken, not for a key' in steady.deploy(3, code=1)
    monkeypatch.setattr('arm.Manager.get', get)
    assert steady.endpoint()[0] == before and len(steady.routes()) == changed


def test_shares_that_azure_shows_late_are_waited_for(steady, monkeypatch):
    one = endpoint.Endpoint(settings.read(os.environ))
    assert one.look()
    before, live = one.found, one.live
    other, = set(one.deployments()) - {live}
    settled, late = one.settled, [before, before]
    monkeypatch.setattr(one, 'settled', lambda *args: late.pop() if late else settled(*args))
    one.route({live: 90, other: 10}, trial=other)
    assert one.traffic == {live: 90, other: 10} and one.tags['trial'] == other
    one.all_to_live()


def test_a_scoring_script_that_is_wrong_never_gets_traffic(production, scoring):
    steady, before = production, production.endpoint()[0]
    script = (scoring / 'score.py').read_text()
    (scoring / 'score.py').write_text(
        script.replace('def run(request):', 'def run(request):\n    1 / 0\n'))
    routed = len(steady.routes())
    text = steady.deploy(3, code=1)
    assert 'status 424' in text and 'ZeroDivisionError' in text
    assert steady.endpoint()[0] == before and len(steady.routes()) == routed


# Where a change is killed, by the n-th request of this kind that Azure has carried out; the answer
# is lost. A change that is run again passes the earlier ones.
PLACES = [
    ('DELETE .*/deployments/', 1), ('POST .*/startPendingUpload', 1), ('PUT .*blob.core', 1),
    ('PUT .*blob.core', 6), ('PUT .*/codes/', 1), ('PUT .*/deployments/', 1),
    ('GET .*/deployments/v3', 2), ('POST .*/listKeys', 1), ('POST .*/score', 1),
    ('POST .*/score', 3), (ROUTE, 1), ('POST .*/score', 4), ('POST .*/score', 20),
    ('POST .*/score', 35), (ROUTE, 1), ('GET .*/deployments$', 1)]
KILLED = """
import sys, arm, deploy, endpoint, {verb}
from pathlib import Path
endpoint.ROUNDS = 2
arm.PAUSE_SECONDS = endpoint.PAUSE_SECONDS = endpoint.WATCH_PAUSE_SECONDS = 0.05
deploy.SOURCE = Path({source!r})
sys.exit({verb}.main(['--service', 'endpoint', '--out', {out!r}]))
"""


class Watch:
    """Looks at each request that Azure has carried out, before it is answered."""

    def __init__(self, production):
        self.production, self.azure, self.log = production, production.azure, production.azure.log
        self.process, self.place, self.asked, self.untested = None, None, 0, []
        self.seen = set(production.endpoint()[0])

    def __call__(self, text):
        self.log(text)
        for name in self.live() - self.seen:
            # Of the smoke test; the watch and others come later.
            log = self.azure.endpoints.containers[self.production.id_of(name)].log
            if open(log).read().count('"status": 200') < 3:
                self.untested.append(name)
            self.seen.add(name)
        if self.place and re.search(self.place[0], text.rsplit(' ', 2)[0]):
            self.asked += 1
            if self.asked == self.place[1]:
                os.kill(self.process.pid, signal.SIGKILL)
                self.place = None

    def live(self):
        row = self.azure.table(self.production.workspace, 'endpoints')[NAME]
        return {name for name, share in row['live'].items() if share}


def test_killed_at_each_step_and_run_again_it_comes_to_the_same_end(steady, scoring, monkeypatch):
    watch, old = Watch(steady), steady.endpoint()[0]
    monkeypatch.setattr(steady.azure, 'log', watch)
    environ = dict(os.environ, MODEL_VERSION='3', BUILD_BUILDID='1', PYTHONPATH='')

    def kill(verb, place):
        watch.asked, watch.place = 0, place
        code = KILLED.format(verb=verb, source=str(scoring), out=str(steady.out))
        watch.process = forked.Popen([sys.executable, '-c', code], str(ROOT / 'scripts'), environ,
                                     str(steady.folder / 'killed.log'))
        ended = watch.process.wait(120)
        log = (steady.folder / 'killed.log').read_text()
        assert ended == (-signal.SIGKILL if place else 0), (verb, place, log)

    for place in PLACES + [None]:
        kill('deploy', place)
    facts, (traffic, tags) = steady.facts(), steady.endpoint()
    assert watch.untested == [] and traffic == {facts['deployment']: 100}
    assert facts['version'] == 3 and {facts['previous_deployment']: 100} == old
    assert tags['previous'] == facts['previous_deployment'] and 'trial' not in tags
    assert {row['document']['name'] for row in steady.rows('deployments')} == {
        facts['deployment'], facts['previous_deployment']}
    assert all(row['state'] == 'Succeeded' for row in steady.rows('deployments'))
    for place in (ROUTE, 1), ('GET .*/deployments$', 1), ('POST .*/score', 2), None:
        kill('rollback', place)
    assert steady.endpoint()[0] == old and steady.facts()['deployment'] == watch.live().pop()


class Customers:
    """Threads that ask the endpoint for the score of a row, and count which model has answered."""

    def __init__(self, production, versions, threads=4):
        self.rows = served.make_rows(50, 5)
        self.scores = {version: served.scores(production.boosters[version - 1], self.rows)
                       for version in versions}
        one = endpoint.Endpoint(settings.read(os.environ))
        assert one.look()
        self.uri, self.headers = one.uri, one.headers()
        self.counts, self.over = collections.Counter(), threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(number,))
                        for number in range(threads)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def ask(self, number):
        session, rng = requests.Session(), random.Random(number)
        while not self.over.is_set():
            index = rng.randrange(len(self.rows))
            try:
                answer = session.post(self.uri, json={'data': [self.rows[index]]}, timeout=60,
                                      headers=self.headers)
                found, = answer.json()['result']
                by = [version for version, scores in self.scores.items()
                      if abs(scores[index] - found) < 1e-9]
            except (OSError, ValueError, KeyError) as error:
                by = [f'failed: {error}']
            self.counts[by[0] if by else f'neither: {found}'] += 1

    def wait(self, version, more):
        """Wait until this version has answered so many more, or for a minute."""
        goal, end = self.counts[version] + more, time.monotonic() + 60
        while self.counts[version] < goal and time.monotonic() < end:
            self.over.wait(0.05)


def test_no_request_fails_during_a_change_and_a_rollback(steady):
    with Customers(steady, (1, 3)) as customers:
        customers.wait(1, 50)
        steady.deploy(3)
        customers.wait(3, 50)
        steady('rollback', '--service', 'endpoint', BUILD_BUILDID='9', ROLLBACK_ANY_BUILD='true')
        customers.wait(1, 50)
    assert set(customers.counts) == {1, 3} and min(customers.counts.values()) > 50


def test_a_version_that_fails_does_not_hold_up_the_one_that_replaces_it(steady):
    live, = steady.endpoint()[0]
    steady.azure.endpoints.containers[steady.id_of(live)].end()
    said = steady.deploy(3)
    assert '32 requests with' in said and ', 0 failed' in said
