"""Managed online endpoints of loopback Azure ML by plain HTTP: contract, states, routing, load."""
import collections
import contextlib
import concurrent.futures
import json
import threading

import pytest

import forked
import loopback
from test_loopback import ARM, GROUP, Client, code, until

pytest.importorskip('azureml_inference_server_http')
pytestmark = [pytest.mark.no_cover, pytest.mark.end_to_end]

NAME = 'drivers-12ab'
SCRIPT = '''
import json, os, time
from helper import read
from azureml_inference_server_http.api.aml_response import AMLResponse

def init():
    global name
    name = read()
    print('the model is', name, flush=True)
    if name == 'broken':
        raise RuntimeError('this model cannot be read')

def run(text):
    asked = json.loads(text)
    time.sleep(asked.get('seconds', 0))
    if asked.get('status'):
        return AMLResponse(json.dumps({'message': 'no'}).encode(), asked['status'])
    return name
'''
HELPER = '''
import os

def read():
    return open(os.path.join(os.environ['AZUREML_MODEL_DIR'], 'model', 'text')).read()
'''


class Endpoint(Client):
    """An endpoint with key authentication, and what its deployments need."""

    def __init__(self, azure):
        super().__init__(azure)
        self.path = f'{self.space}/onlineEndpoints/{NAME}'
        self.models, self.key, self.url = {}, None, None

    def prepare(self):
        self.set_up()
        for name in ('old', 'new', 'broken'):
            container = self.upload({'model/text': name})
            asset = self.good('POST', 'modelmanagement/v1.0', '/assets', {'artifacts': [
                {'prefix': f'LocalUpload/{container}/model'}]})
            model = self.good('POST', 'modelmanagement/v1.0', '/models', {
                'name': 'drivers', 'url': 'aml://asset/' + asset['id']})
            self.models[name] = f"{self.space}/models/drivers/versions/{model['version']}"
        self.good('PUT', 'environment/v1.0', '/environments/scoring', {
            'name': 'scoring', 'environmentVariables': {'WORKER_TIMEOUT': '60'}})
        self.upload_code('code', '1', {'score.py': SCRIPT, 'helper.py': HELPER})
        self.until_done(self.put())
        self.key = self.arm('POST', self.path + '/listKeys').json()['primaryKey']
        self.url = self.arm('GET', self.path).json()['properties']['scoringUri']

    def upload_code(self, name, version, files):
        path = f'{self.space}/codes/{name}/versions/{version}'
        place = self.arm('POST', path + '/startPendingUpload', {
            'pendingUploadType': 'TemporaryBlobReference'}).json()['blobReferenceForConsumption']
        folder, _, query = place['credential']['sasUri'].partition('?')
        for file, text in files.items():
            self.session.put(f'{folder}/src/{file}?{query}', data=text).raise_for_status()
        answer = self.arm('PUT', path, {'properties': {'codeUri': place['blobUri'] + '/src'}})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def put(self, path=None, traffic=None, **properties):
        """PUT the endpoint."""
        return self.arm('PUT', path or self.path, {
            'location': 'westeurope', 'identity': {'type': 'SystemAssigned'},
            'properties': {'authMode': 'Key', 'traffic': traffic or {}, **properties}})

    def body(self, model='old', size='Standard_D2as_v4', capacity=1, **more):
        sku = {'name': 'Default', 'tier': 'Standard', 'capacity': capacity}
        return {'location': 'westeurope', 'sku': sku, 'properties': {
            'endpointComputeType': 'Managed', 'instanceType': size, 'model': self.models[model],
            'environmentId': self.space + '/environments/scoring/versions/1',
            'requestSettings': {'requestTimeout': 'PT10S', 'maxConcurrentRequestsPerInstance': 8},
            'codeConfiguration': {'codeId': self.space + '/codes/code/versions/1',
                                  'scoringScript': 'score.py'}, **more}}

    def deployment(self, name):
        return f'{self.path}/deployments/{name}'

    def deploy(self, name, *model, **more):
        return self.until_done(self.arm('PUT', self.deployment(name), self.body(*model, **more)))

    def state(self, path):
        answer = self.arm('GET', path)
        return answer.ok and answer.json()['properties']['provisioningState']

    def until_done(self, answer):
        """The operation that this answer has begun, when it has ended."""
        assert answer.ok, answer.text
        url = answer.headers['Azure-AsyncOperation']
        return until(lambda: (lambda now: now['status'] != 'InProgress' and now)(
            self.ask('GET', url).json()))

    def delete(self, name):
        return self.until_done(self.arm('DELETE', self.deployment(name)))

    def score(self, asked=None, key=None, session=None, **headers):
        return (session or self.session).post(
            self.url, json=asked or {}, timeout=60, headers=dict(
                {'Authorization': 'Bearer ' + (key or self.key)}, **headers))

    def named(self, name, asked=None):
        return self.score(asked, **{'azureml-model-deployment': name})


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    forked.prepare()
    with pytest.MonkeyPatch.context() as patch, loopback.start(
            str(tmp_path_factory.mktemp('azure') / 'state')) as azure:
        patch.setattr('loopback.processes.start', forked.Popen)
        yield azure
        assert azure.unknown == []


@pytest.fixture(scope='module')
def prepared(azure):
    endpoint = Endpoint(azure)
    endpoint.prepare()
    assert endpoint.deploy('blue')['status'] == 'Succeeded'
    return endpoint


@pytest.fixture
def endpoint(prepared, azure):
    """With blue alone, which serves all."""
    prepared.until_done(prepared.put(traffic={'blue': 100}))
    yield prepared
    azure.faults.clear()
    prepared.until_done(prepared.put(traffic={'blue': 100}))
    for row in prepared.arm('GET', prepared.path + '/deployments').json()['value']:
        if row['name'] != 'blue':
            prepared.delete(row['name'])


def test_it_answers_with_its_key_and_says_which_deployment_did(endpoint):
    answer = endpoint.score()
    assert (answer.status_code, answer.json()) == (200, 'old')
    assert answer.headers['azureml-model-deployment'] == 'blue'
    assert endpoint.url == f'https://{NAME}.westeurope.inference.ml.azure.com/score'
    assert endpoint.score(key='other').status_code == 401
    for headers in ({}, {'Authorization': 'Basic ' + endpoint.key}):
        assert endpoint.session.post(endpoint.url, json={}, headers=headers).status_code == 401
    assert endpoint.named('green').status_code == 404


def test_what_the_model_refuses_is_424_and_what_takes_too_long_408(endpoint):
    answer = endpoint.score({'status': 400})
    assert (answer.status_code, answer.json()) == (424, {'message': 'no'})
    assert answer.headers['ms-azureml-model-error-statuscode'] == '400'
    endpoint.deploy('hasty', requestSettings={'requestTimeout': 'PT1S'})
    assert endpoint.named('hasty', {'seconds': 2}).status_code == 408


def test_more_than_twice_the_requests_at_once_that_are_allowed_are_refused(endpoint):
    endpoint.deploy('narrow', requestSettings={'requestTimeout': 'PT20S'})
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: endpoint.named('narrow', {'seconds': 1}).status_code,
                              range(6)))
    assert collections.Counter(found) == {200: 2, 429: 4}


@pytest.mark.parametrize('change, status, said', [
    (lambda body: body.pop('sku'), 400, "'sku' is a required property"),
    (lambda body: body['sku'].pop('capacity'), 400, "'capacity' is a required property"),
    (lambda body: body['sku'].update(capacity='1'), 400, 'sku.capacity'),
    (lambda body: body['sku'].update(capacity=51), 400, 'sku.capacity'),
    (lambda body: body.update(tags={'a/b': ''}), 400, 'tags'),
    (lambda body: body.update(tags={'a': 'b' * 257}), 400, 'tags.a'),
    (lambda body: body.update(location='eastus'), 400, 'not that of the workspace'),
    (lambda body: body['properties'].update(scoreTimeout='PT5S'), 400, 'scoreTimeout'),
    (lambda body: body['properties'].update(endpointComputeType='Kubernetes'), 400, 'Kubernetes'),
    (lambda body: body['properties'].update(instanceType='Standard_D2ds_v5'), 400,
     'not supported by managed online endpoints'),
    (lambda body: body['properties'].update(model='azureml:drivers:1'), 400, 'the id of one of'),
    (lambda body: body['properties'].update(
        environmentId=body['properties']['environmentId'] + '1'), 400, 'was not found'),
    (lambda body: body['properties'].pop('codeConfiguration'), 400, 'codeConfiguration'),
    (lambda body: body['properties'].update(requestSettings={'requestTimeout': 'PT181S'}), 400,
     'at most PT180S'),
    (lambda body: body['properties'].update(requestSettings={'requestTimeout': 5}), 400,
     'requestTimeout'),
    (lambda body: body['properties'].update(environmentVariables={'A': 1}), 400,
     'environmentVariables.A'),
    # 24 cores, of which blue has 4 (a fifth more than one instance, in whole ones).
    (lambda body: body['sku'].update(capacity=9), 400, 'usage/limit: 4/24. Additional needed: 22')])
def test_a_deployment_that_azure_refuses_is_refused(prepared, change, status, said):
    body = prepared.body()
    change(body)
    answer = prepared.arm('PUT', prepared.deployment('green'), body)
    assert answer.status_code == status and said in answer.json()['error']['message']
    assert prepared.arm('GET', prepared.deployment('green')).status_code == 404


@pytest.mark.parametrize('name', ['v1', '1green', 'gr--een', 'green-', 'g_reen', 'g' * 33])
def test_names_are_3_to_32_letters_digits_and_single_hyphens(prepared, name):
    for path, body in ((prepared.deployment(name), prepared.body()), (
            f'{prepared.space}/onlineEndpoints/{name}',
            {'location': 'westeurope', 'properties': {'authMode': 'Key'}})):
        answer = prepared.arm('PUT', path, body)
        assert answer.status_code == 400 and 'is invalid: 3 to 32' in answer.text


def test_an_endpoint_that_azure_refuses_is_refused(prepared, azure):
    other = f'{prepared.space}/onlineEndpoints/other'
    assert 'authMode' in prepared.put(other, authMode='None').text
    assert 'mirrorTrafic' in prepared.put(other, mirrorTrafic={}).text
    assert prepared.arm('PUT', other, {'properties': {}}).status_code == 400
    # PATCH has tags and identity, no traffic.
    answer = prepared.arm('PATCH', prepared.path, {'properties': {'traffic': {'blue': 0}}})
    assert answer.status_code == 400
    azure.faults.add('name-taken')
    answer = prepared.put(other)
    assert answer.status_code == 400 and 'unique within a region' in answer.text
    assert prepared.arm('PUT', prepared.path, {}, version='2021-04-01').status_code == 400
    assert code(prepared.arm('GET', other)) == (404, 'ResourceNotFound')


def test_rights_are_those_of_the_contract(prepared, azure):
    azure.set_role('Reader', azure.group(GROUP))
    try:
        for method, path in (('PUT', prepared.path), ('POST', prepared.path + '/listKeys'),
                             ('DELETE', prepared.deployment('blue'))):
            answer = prepared.arm(method, path, {})
            assert code(answer) == (403, 'AuthorizationFailed')
        assert 'onlineEndpoints/deployments/delete' in answer.text
        assert prepared.arm('GET', prepared.path).ok
    finally:
        azure.set_role('Contributor', azure.group(GROUP))


def test_a_name_is_unique_in_the_region_until_it_is_free_again(prepared, azure):
    spaces = azure.journal.table('workspaces')
    row, = spaces.values()
    twin = dict(row, id=row['id'] + '2', name=row['name'] + '2', properties=dict(
        row['properties'], workspaceId='twin'))
    spaces[twin['id'].lower()] = twin
    ours, theirs = (f'{space}/onlineEndpoints/other' for space in (prepared.space, twin['id']))
    prepared.until_done(prepared.put(ours))
    assert 'unique within a region' in prepared.put(theirs.upper()).text
    prepared.until_done(prepared.arm('DELETE', ours))
    prepared.until_done(prepared.put(theirs))
    prepared.until_done(prepared.arm('DELETE', theirs))
    del spaces[twin['id'].lower()]


def test_code_comes_by_a_link_to_its_container_and_is_registered_once(prepared):
    path = prepared.space + '/codes/another/versions/1'
    known = prepared.upload_code('another', '1', {'score.py': SCRIPT})
    place = known['properties']['codeUri']
    assert prepared.arm('PUT', path, {'properties': {'codeUri': place}}).status_code == 200
    other = prepared.upload_code('another', '2', {'score.py': SCRIPT})['properties']['codeUri']
    answer = prepared.arm('PUT', path, {'properties': {'codeUri': other}})
    assert answer.status_code == 400 and 'a version cannot be changed' in answer.text
    for uri in (place + '2', 'https://elsewhere.blob.core.windows.net/container/src'):
        answer = prepared.arm('PUT', path + '1', {'properties': {'codeUri': uri}})
        assert answer.status_code == 400 and 'no folder with code' in answer.text
    reply = prepared.arm('POST', path + '/startPendingUpload', {}).json()
    link = reply['blobReferenceForConsumption']['credential']['sasUri']
    folder, _, query = link.partition('?')
    assert prepared.session.put(f'{folder}2/x?{query}', data='x').status_code == 403
    assert prepared.session.put(f'{folder}/x?{query}', data='x', headers={
        'x-ms-blob-type': ''}).status_code == 400
    assert prepared.session.get(f'{folder}?{query}&comp=list&restype=container').ok


@pytest.mark.parametrize('traffic, said', [
    ({'blue': 90}, 'add up to 0 or 100, not 90'), ({'blue': 101}, 'traffic.blue'),
    ({'blue': 50.5, 'green': 49.5}, 'traffic.'), ({'blue': 0, 'green': 100}, 'does not exist'),
    ({'blue': 90, 'broken': 10}, 'it is Failed')])
def test_traffic_that_azure_refuses_is_refused(endpoint, traffic, said):
    if 'broken' in traffic:
        endpoint.deploy('broken', 'broken')
    answer = endpoint.put(traffic=traffic)
    assert answer.status_code == 400 and said in answer.json()['error']['message']
    assert endpoint.arm('GET', endpoint.path).json()['properties']['traffic'] == {'blue': 100}


def test_traffic_is_routed_by_its_shares(endpoint, azure):
    endpoint.deploy('green', 'new')
    assert endpoint.named('green').json() == 'new'
    assert {endpoint.score().json() for _ in range(20)} == {'old'}
    endpoint.until_done(endpoint.put(traffic={'blue': 70, 'green': 30}))
    found = collections.Counter(endpoint.score().json() for _ in range(400))
    assert 70 < found['new'] < 170 and found['new'] + found['old'] == 400
    # The change is made when its operation has ended.
    azure.faults.add('late-resource', path='PUT', seconds=1)
    begun = endpoint.put(traffic={'blue': 0, 'green': 0})
    assert endpoint.score().ok
    endpoint.until_done(begun)
    assert endpoint.score().status_code == 404
    assert endpoint.named('blue').json() == 'old'


def test_a_change_that_fails_leaves_all_as_it_was_and_can_be_tried_again(endpoint, azure):
    endpoint.deploy('green', 'new')
    azure.faults.add('update-fails')
    ended = endpoint.until_done(endpoint.put(traffic={'blue': 0, 'green': 100}))
    assert (ended['status'], ended['error']['code']) == ('Failed', 'InternalServerError')
    found = endpoint.arm('GET', endpoint.path).json()['properties']
    assert (found['provisioningState'], found['traffic']) == ('Failed', {'blue': 100})
    why = endpoint.ask('GET', found['properties']['AzureAsyncOperationUri']).json()
    assert why['error'] == ended['error']
    assert {endpoint.score().json() for _ in range(10)} == {'old'}
    endpoint.until_done(endpoint.put(traffic={'green': 100}))
    assert {endpoint.score().json() for _ in range(10)} == {'new'}


def test_one_operation_at_a_time_and_its_states(endpoint, azure):
    azure.faults.add('late-resource', path='PUT .*onlineEndpoints/[^/]*$', seconds=1)
    begun = endpoint.put(traffic={'blue': 100})
    assert begun.json()['properties']['provisioningState'] == 'Updating'
    assert endpoint.state(endpoint.path) == 'Updating'
    for method, path, body in (
            ('PUT', endpoint.deployment('green'), endpoint.body()),
            ('DELETE', endpoint.deployment('blue'), None), ('DELETE', endpoint.path, None),
            ('PATCH', endpoint.path, {'tags': {}})):
        assert code(endpoint.arm(method, path, body)) == (409, 'Conflict')
    assert endpoint.put().status_code == 409
    assert endpoint.score().json() == 'old'
    assert endpoint.until_done(begun)['status'] == 'Succeeded'
    azure.faults.add('late', path='deployment', seconds=1)
    begun = endpoint.arm('PUT', endpoint.deployment('green'), endpoint.body())
    assert (begun.status_code, endpoint.state(endpoint.deployment('green'))) == (201, 'Creating')
    assert endpoint.put(traffic={'green': 100}).status_code == 409
    assert endpoint.until_done(begun)['status'] == 'Succeeded'
    azure.faults.add('busy')
    assert endpoint.put().status_code == 409


def test_a_deployment_with_traffic_stays_and_what_goes_answers_first(endpoint):
    endpoint.deploy('green', 'new')
    endpoint.until_done(endpoint.put(traffic={'blue': 50, 'green': 50}))
    answer = endpoint.arm('DELETE', endpoint.deployment('green'))
    assert answer.status_code == 400 and 'has traffic: 50' in answer.text
    endpoint.until_done(endpoint.put(traffic={'blue': 100, 'green': 0}))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(endpoint.named, 'green', {'seconds': 2})
        running = endpoint.azure.endpoints.containers
        path = endpoint.deployment('green').lower()
        until(lambda: running[path].busy)
        answer = endpoint.arm('DELETE', endpoint.deployment('green'))
        result = answer.headers['Location']
        assert (answer.status_code, endpoint.ask('GET', result).status_code) == (202, 202)
        assert slow.result().json() == 'new'
    assert endpoint.until_done(answer)['status'] == 'Succeeded'
    assert endpoint.ask('GET', result).status_code == 200
    assert endpoint.arm('GET', endpoint.deployment('green')).status_code == 404
    assert endpoint.arm('DELETE', endpoint.deployment('green')).status_code == 204
    assert endpoint.arm('GET', endpoint.path).json()['properties']['traffic'] == {'blue': 100}


def test_a_container_that_does_not_start_fails_its_deployment_and_shows_its_log(endpoint, azure):
    ended = endpoint.deploy('green', 'broken')
    assert (ended['status'], ended['error']['code']) == ('Failed', 'ResourceNotReady')
    assert endpoint.state(endpoint.deployment('green')) == 'Failed'
    logs = endpoint.deployment('green') + '/getLogs'
    assert 'this model cannot be read' in endpoint.arm(
        'POST', logs, {'containerType': 'InferenceServer', 'tail': 500}).json()['content']
    assert '2 files of code' in endpoint.arm(
        'POST', logs, {'containerType': 'StorageInitializer'}).json()['content']
    assert endpoint.arm('POST', logs, {'containerType': 'Sidecar'}).status_code == 400
    # Put right, it is the same deployment; an update that fails leaves the old one serving.
    assert endpoint.deploy('green', 'new')['status'] == 'Succeeded'
    azure.faults.add('crash-loop', path=f'^deployment {NAME}/green$')
    assert endpoint.deploy('green')['status'] == 'Failed'
    assert endpoint.named('green').json() == 'new'
    assert endpoint.deploy('green')['status'] == 'Succeeded'
    assert endpoint.named('green').json() == 'old'
    size = endpoint.body(size='Standard_F4s_v2')
    assert 'cannot be changed' in endpoint.arm('PUT', endpoint.deployment('green'), size).text


def test_cores_are_counted_until_the_deployment_is_gone(endpoint, azure):
    def used():
        region = azure.subscription + '/providers/Microsoft.MachineLearningServices/locations/'
        found = endpoint.arm('GET', region + 'westeurope/usages').json()['value']
        return {row['name']['value']: row['currentValue'] for row in found
                if row['type'].endswith('edicatedCores/usages')}

    assert (used()['StandardDASv4Family'], used()['TotalDedicatedCores']) == (4, 4)
    endpoint.deploy('green', capacity=6)
    assert used()['StandardDASv4Family'] == 20
    answer = endpoint.arm('PATCH', endpoint.deployment('green'), {'sku': {'capacity': 9}})
    assert answer.status_code == 400 and 'Additional needed: 6' in answer.text
    answer = endpoint.arm('PATCH', endpoint.deployment('green'), {'sku': {'capacity': 1}})
    assert answer.status_code == 202 and endpoint.until_done(answer)['status'] == 'Succeeded'
    endpoint.delete('green')
    assert used()['StandardDASv4Family'] == 4
    azure.faults.add('no-quota')
    assert 'Not enough quota' in endpoint.arm(
        'PUT', endpoint.deployment('green'), endpoint.body()).text


def test_the_newest_deployment_fails_with_traffic_but_not_by_its_name(endpoint, azure):
    endpoint.deploy('green', 'new')
    azure.faults.add('live-500', count=None)
    assert endpoint.named('green').json() == 'new'
    assert endpoint.score().json() == 'old'
    endpoint.until_done(endpoint.put(traffic={'blue': 50, 'green': 50}))
    found = collections.Counter(
        (answer.headers['azureml-model-deployment'], answer.status_code)
        for answer in [endpoint.score() for _ in range(60)])
    assert set(found) == {('blue', 200), ('green', 424)}


def test_no_request_is_lost_while_the_traffic_changes(endpoint):
    endpoint.deploy('green', 'new')
    stop, found = threading.Event(), []

    def ask():
        own = Client(endpoint.azure).session
        while not stop.is_set():
            answer = endpoint.score({'seconds': 0.002}, session=own)
            found.append((answer.status_code, answer.text,
                          answer.headers['azureml-model-deployment']))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        with contextlib.ExitStack() as stack:
            stack.callback(stop.set)
            for green in (10, 100, 0, 50, 100):
                enough = len(found) + 100
                endpoint.until_done(endpoint.put(traffic={'blue': 100 - green, 'green': green}))
                until(lambda: len(found) > enough)
            endpoint.delete('blue')
            until(lambda: len(found) > enough + 100)
        for one in clients:
            one.result()
    assert set(found) == {(200, '"old"', 'blue'), (200, '"new"', 'green')}
    endpoint.deploy('blue')


def test_an_endpoint_goes_with_its_deployments_and_its_name_is_free_again(endpoint, azure):
    other = f'{endpoint.space}/onlineEndpoints/other'
    endpoint.until_done(endpoint.put(other))
    ended = endpoint.arm('PUT', other + '/deployments/only', endpoint.body())
    endpoint.until_done(ended)
    assert len(endpoint.arm('GET', endpoint.space + '/onlineEndpoints').json()['value']) == 2
    endpoint.until_done(endpoint.arm('DELETE', other))
    assert endpoint.arm('GET', other).status_code == 404
    assert endpoint.arm('GET', other + '/deployments').status_code == 404
    assert len(azure.endpoints.containers) == 1
    assert endpoint.arm('DELETE', other).status_code == 204
    endpoint.until_done(endpoint.put(other))
    endpoint.until_done(endpoint.arm('DELETE', other))


def test_an_endpoint_that_failed_is_deleted_and_made_again(prepared, azure):
    other = f'{prepared.space}/onlineEndpoints/other'
    azure.unregistered.add('microsoft.cdn')
    ended = prepared.until_done(prepared.put(other))
    azure.unregistered.clear()
    assert (ended['status'], ended['error']['code']) == ('Failed', 'SubscriptionNotRegistered')
    for answer in (prepared.put(other), prepared.arm(
            'PUT', other + '/deployments/blue', prepared.body())):
        assert answer.status_code == 400 and 'Please recreate endpoint' in answer.text
    prepared.until_done(prepared.arm('DELETE', other))
    assert prepared.until_done(prepared.put(other))['status'] == 'Succeeded'
    prepared.until_done(prepared.arm('DELETE', other))


def test_no_key_is_written(prepared, azure):
    keys = prepared.arm('POST', prepared.path + '/listKeys').json()
    texts = json.dumps([prepared.arm('GET', prepared.path).json(), ARM])
    texts += open(azure.folder + '/requests.log').read()
    assert not [key for key in keys.values() if key in texts]
