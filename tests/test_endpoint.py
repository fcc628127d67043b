"""Production by `--service endpoint`: the project's verbs against the managed endpoint of loopback."""
import collections
import contextlib
import io
import json
import os
import shutil

import pytest
from _pytest.monkeypatch import MonkeyPatch

import deploy
import endpoint
import forked
import served
import settings
import test_verbs
import workspace
from conftest import python_of_one_thread

pytest.importorskip('azureml.core')
pytestmark = pytest.mark.end_to_end

NAME = 'drivers-of-tests'


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
        forked.hasten(patch)
        azure.exchanges = collections.deque()
        made = Production(azure, folder)
        made.names = {}
        patch.setattr('loopback.processes.start', made.start)
        made('workspace')
        made.boosters = [register(folder / 'registry', version) for version in (1, 2, 3)]
        yield made
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


def test_a_new_version_takes_over_step_by_step_and_the_way_back_is_one_change(steady):
    before, _ = steady.endpoint()
    said = steady.deploy(3, BUILD_BUILDID='7')
    facts = steady.facts()
    new, old = facts['deployment'], facts['previous_deployment']
    assert before == {old: 100} and new.startswith('v3-')
    assert facts['version'] == 3 and facts['previous_version'] == 1
    order = ['deleting the deployment v2-', f'creating the deployment {new}',
             f'{new} answers as it should', f'traffic {old} 90 %, {new} 10 %',
             '110 requests with', f'traffic {new} 100 %', 'runs version 3 of']
    places = [said.index(one) for one in order]
    assert places == sorted(places)
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
    assert 'has nothing before v1-' in steady('rollback', '--service', 'endpoint', code=1)
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
    ({'fault': 'no-quota'}, 'Not enough quota available'),
    ({'fault': 'crash-loop'}, 'this container crashes on demand'),
    ({'fault': 'forbidden', 'path': 'POST .*/listKeys'}, 'fetch the key of the endpoint'),
    ({'fault': 'forbidden', 'path': ROUTE}, 'give the traffic'),
    ({'fault': 'live-500', 'count': None}, 'requests failed while v3-'),
    ({'fault': 'forbidden', 'path': ROUTE, 'skip': 1}, 'to v3-')]


def test_a_failure_at_any_step_leaves_the_traffic_where_it_was(steady, scoring):
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


def test_a_scoring_script_that_is_wrong_never_gets_traffic(steady, scoring):
    before, _ = steady.endpoint()
    script = (scoring / 'score.py').read_text()
    (scoring / 'score.py').write_text(
        script.replace('def run(request):', 'def run(request):\n    1 / 0\n'))
    routed = len(steady.routes())
    text = steady.deploy(3, code=1)
    assert 'status 424' in text and 'ZeroDivisionError' in text
    assert steady.endpoint()[0] == before and len(steady.routes()) == routed
