"""Loopback Azure ML by plain HTTP: what it answers, what it runs, and each fault."""
import json
import stat
import subprocess
import sys
import threading
import time
import types
import uuid
from pathlib import Path

import pytest

import loopback
import settings
import workspace
from conftest import ROOT

requests = pytest.importorskip('requests')
pytest.importorskip('trustme')
pytestmark = [pytest.mark.no_cover, pytest.mark.end_to_end]
from loopback import computes, resource_manager  # noqa: needs trustme

LOGIN = 'https://login.microsoftonline.com/'
ARM = 'https://management.azure.com'
API = 'https://westeurope.api.azureml.ms'
GROUP, WORKSPACE = 'group', 'space'
SECONDS = 60
SCRIPTS = {
    'write.py': 'import os, sys\n'
                'print("parameter", sys.argv[1], "variable", os.environ["COLOUR"])\n'
                'os.makedirs(sys.argv[2])\n'
                'open(os.path.join(sys.argv[2], "text"), "w").write(sys.argv[1])\n'
                'open("outputs/kept.txt", "w").write("kept")\n',
    'read.py': 'import os, sys\n'
               'print("read", open(os.path.join(sys.argv[1], "text")).read())\n'
               'print("secrets", [name for name in os.environ if "PASSWORD" in name.upper()\n'
               '      or "servicePrincipal" in name])\n',
    'rename.py': 'import os, sys\n'
                 'os.makedirs(os.path.join(sys.argv[1], "new"))\n'
                 'open(os.path.join(sys.argv[1], "new", "text"), "w").write("text")\n'
                 'os.rename(os.path.join(sys.argv[1], "new"), os.path.join(sys.argv[1], "set"))\n',
    'leave.py': 'import subprocess\n'
                'print(subprocess.Popen(["sleep", "1000000"]).pid)\n',
    'forever.py': 'import os, subprocess, sys, time\n'
                  'child = subprocess.Popen(["sleep", "1000000"])\n'
                  'print(os.getpid(), child.pid, flush=True)\ntime.sleep(1e6)\n',
    'rank.py': 'import os\n'
               'names = "RANK", "SIZE", "LOCAL_RANK"\n'
               'rank, *more = [os.environ["OMPI_COMM_WORLD_" + name] for name in names]\n'
               'print(rank, *more, os.environ["AZ_BATCH_MASTER_NODE"], os.path.exists("rank.py"))\n'
               'for name in ("same", rank):\n'
               '    open("outputs/" + name, "w").write(rank)\n',
    'meet.py': '''
import os, socket, sys, time
at = '127.0.0.1', int(os.environ['MASTER_PORT'])
if os.environ['OMPI_COMM_WORLD_RANK'] == '1':
    while True:
        try:
            peer = socket.create_connection(at)
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            break
    while True:
        peer.send(b'.')
        time.sleep(0.01)
with socket.socket() as listener:
    listener.bind(at)
    listener.listen()
    listener.settimeout(1)
    try:
        peer, _ = listener.accept()
        print('node 1 has come', flush=True)
        peer.settimeout(0.5)
        while peer.recv(1000):
            pass
        sys.exit('node 1 is lost')
    except socket.timeout:
        sys.exit('node 1 is silent')
''',
}
NODES = {'communicator': 'IntelMpi', 'nodeCount': 2,
         'mpi': {'processCountPerNode': 1, 'nodeCount': 2}}


def until(condition, seconds=SECONDS):
    """The first true value of condition(), asked for again and again."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'this took longer than {seconds:g} s'
        pause.wait(0.02)
    return condition()


class Client:
    """Plain HTTP by way of the stand-in, as a signed-in service principal."""

    def __init__(self, azure):
        self.azure, self.env = azure, azure.env
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.proxies = {'http': azure.env['HTTP_PROXY'], 'https': azure.env['HTTPS_PROXY']}
        self.session.verify = azure.env['REQUESTS_CA_BUNDLE']
        self.session.headers['x-ms-blob-type'] = 'BlockBlob'
        self.base = f"/subscriptions/{azure.env['SUBSCRIPTION_ID']}/resourceGroups/{GROUP}"
        self.space = (f'{self.base}/providers/Microsoft.MachineLearningServices/workspaces/'
                      f'{WORKSPACE}')
        self.token = self.sign_in().json()['access_token']

    def sign_in(self, tenant=None, client=None, secret=None):
        return self.session.post(
            LOGIN + (tenant or self.env['tenantId']) + '/oauth2/v2.0/token', data={
                'grant_type': 'client_credentials', 'scope': ARM + '/.default',
                'client_id': client or self.env['servicePrincipalId'],
                'client_secret': secret or self.env['servicePrincipalKey']})

    def ask(self, method, url, body=None, headers=None, timeout=SECONDS):
        headers = dict({'Authorization': 'Bearer ' + self.token}, **(headers or {}))
        return self.session.request(method, url, json=body, headers=headers, timeout=timeout)

    def arm(self, method, path, body=None, version=None, **more):
        version = version or ('2024-10-01' if '/providers/' in path else '2021-04-01')
        return self.ask(method, f'{ARM}{path}?api-version={version}', body, **more)

    def api(self, method, service, path, body=None):
        return self.ask(method, f'{API}/{service}{self.space}{path}', body)

    def good(self, method, service, path, body=None):
        answer = self.api(method, service, path, body)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def set_up(self):
        """A workspace with what belongs to it, and a cluster."""
        self.azure.add_group(GROUP)
        config = settings.read({
            'SUBSCRIPTION_ID': self.env['SUBSCRIPTION_ID'], 'RESOURCE_GROUP': GROUP,
            'WORKSPACE_NAME': WORKSPACE, 'LOCATION': 'westeurope'})
        for _, path, version, body in workspace.resources(config, 'tenant'):
            self.arm('PUT', path, body, version).raise_for_status()
        self.arm('PUT', self.space + '/computes/cpu', compute()).raise_for_status()

    def store(self):
        return self.good('GET', 'datastore/v1.0', '/default')['azureStorageSection']

    def blob(self, method, path, data=None, **headers):
        """A request to the default datastore's container, signed with its key."""
        name = self.store()['accountName']
        return self.session.request(
            method, f'https://{name}.blob.core.windows.net/azureml-blobstore{path}', data=data,
            headers=dict({'Authorization': f'SharedKey {name}:x'}, **headers))

    def upload(self, files):
        """Upload {name: content} as artifacts; the container's name."""
        container = uuid.uuid4().hex[:8]
        answer = self.good(
            'POST', 'artifact/v2.0', '/artifacts/batch/metadata/LocalUpload/' + container,
            {'paths': [{'path': name} for name in files]})
        for name, content in files.items():
            link = answer['artifactContentInformation'][name]['contentUri']
            self.session.put(link, data=content).raise_for_status()
        return container

    def snapshot(self, parent=None, sent=tuple(SCRIPTS), names=tuple(SCRIPTS), status=200):
        answer = self.good('POST', 'content/v2.0', '/snapshots/getblob', {'FileNames': list(sent)})
        nodes = answer['fileNodes']
        for node in nodes:
            self.session.put(node['blobUri'], data=SCRIPTS[node['fullName']]).raise_for_status()
        snapshot = str(uuid.uuid4())
        answer = self.api('POST', 'content/v2.0', '/snapshots/' + snapshot, {
            'ParentSnapshotId': parent, 'DirTreeNode': {'children': {
                name: {'type': 'File', 'children': {}} for name in names}},
            'FileRevisionList': {'FileNodes': [
                {'FullName': node['fullName'], 'BlobUri': node['blobUri']} for node in nodes]}})
        assert answer.status_code == status
        return snapshot

    def module(self, name, script, arguments, inputs=(), outputs=(), environment='e', **more):
        snapshot = self.snapshot()
        shape = {'Inputs': [{'Name': port, 'DataTypeIdsList': []} for port in inputs],
                 'Outputs': [{'Name': port, 'DataTypeId': 'AnyFile'} for port in outputs],
                 'Arguments': [{'ValueType': kind, 'Value': value} for kind, value in arguments],
                 'Parameters': [], 'MetadataParameters': []}
        module = self.good('POST', 'pipelines/v1.0', '/Modules', {
            'Name': name, 'IsDeterministic': False, 'StructuredInterface': shape,
            'StorageId': snapshot, 'StepType': 'PythonScriptStep'})
        values = [('0', 'Target', 'cpu'), ('0', 'Script', script), ('1', 'text', 'text')]
        return {'Id': name, 'ModuleId': module['Id'], 'ModuleParameters': [
            {'ValueType': kind, 'Name': key, 'Value': value} for kind, key, value in values],
            'ModuleOutputSettings': [{'Name': port, 'DataStoreName': 'workspaceblobstore',
                                      'DataStoreMode': 'mount'} for port in outputs],
            'Runconfig': json.dumps(dict({
                'environmentVariables': {'COLOUR': 'blue'}, 'environment': {
                    'name': environment, 'version': '1', 'environmentVariables': {}}}, **more))}

    def publish(self, nodes, edges=()):
        return self.good('POST', 'pipelines/v1.0', '/Pipelines/Create', {
            'Name': 'P', 'Version': '1', 'Graph': {'ModuleNodes': nodes, 'Edges': [
                {'SourceOutputPort': {'NodeId': source, 'PortName': port},
                 'DestinationInputPort': {'NodeId': goal, 'PortName': port}}
                for source, port, goal in edges]},
            'GraphInterface': {'Parameters': [{'Name': 'text', 'DefaultValue': 'default'}]}})['Id']

    def submit(self, pipeline, **parameters):
        return self.good('POST', 'pipelines/v1.0', '/PipelineRuns/PipelineSubmit/' + pipeline, {
            'ExperimentName': 'tests', 'ParameterAssignments': parameters})['Id']

    def one_step(self, script, **more):
        """Submit a pipeline of one step; its run. more: of its run configuration."""
        return self.submit(self.publish([self.module('only', script, [], **more)]))

    def history(self, run, part=''):
        return self.good('GET', 'history/v1.0', f'/experiments/tests/runs/{run}{part}')

    def ended(self, run):
        """The state of the run when it has ended."""
        return until(lambda: self.history(run)['status'] in ('Completed', 'Failed', 'Canceled')
                     and self.history(run)['status'])

    def step(self, run, name='only'):
        """(id, state, log) of a step, or None before it has started."""
        for row in self.history(run, '/children')['value']:
            if row['name'] == name:
                links = self.history(row['runId'], '/details')['logFiles']
                return row['runId'], row['status'], self.session.get(
                    links[min(links)]).text if links else ''
        return None

    def logs(self, run):
        """{name: log} of the only step."""
        details = self.history(self.step(run)[0], '/details')
        return {name.split('/')[1]: self.session.get(link).text
                for name, link in details['logFiles'].items()}

    def failure(self, run):
        """Why the only step failed."""
        assert self.ended(run) == 'Failed'
        step, = self.history(run, '/children')['value']
        return self.history(step['runId'], '/details')['error']['error']['message']

    def pids(self, run):
        """What the step of forever.py, which is under way now, has said."""
        said = until(lambda: (self.step(run) or '\0')[-1].endswith('\n') and self.step(run)[-1])
        return [int(pid) for pid in said.split()]

    def register(self, name):
        return self.api('POST', 'modelmanagement/v1.0', '/models', {
            'name': name, 'url': 'aml://asset/x'})

    def deploy(self, name):
        """The answer to a request to create or update a service."""
        return self.api('POST', 'modelmanagement/v1.0', '/services', {
            'name': name, 'computeType': 'ACI', 'overwrite': True,
            'environmentImageRequest': {'modelIds': []}})


def compute(size='STANDARD_D2DS_V5'):
    return {'properties': {'computeType': 'AmlCompute', 'properties': {
        'vmSize': size, 'scaleSettings': {'minNodeCount': 0, 'maxNodeCount': 3}}}}


def code(answer):
    return answer.status_code, answer.json()['error']['code']


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    with loopback.start(str(tmp_path_factory.mktemp('azure') / 'state')) as azure:
        Client(azure).set_up()
        yield azure
        assert azure.unknown == []


@pytest.fixture(scope='module')
def signed_in(azure):
    return Client(azure)


@pytest.fixture
def client(signed_in, azure):
    yield signed_in
    azure.faults.clear()


def test_the_template_of_the_sdk_needs_the_subscription_and_ends_with_its_vault(client, azure):
    version, path = '2019-10-01', '/providers/Microsoft.Resources/deployments/d'
    body = {'properties': {'template': {'resources': [
        {'type': 'Microsoft.KeyVault/vaults', 'apiVersion': '2015-06-01'},
        {'type': 'Microsoft.Resources/deployments', 'apiVersion': version,
         'subscriptionId': azure.env['SUBSCRIPTION_ID']}]}}}
    refused = client.arm('PUT', client.base + path, body, version)
    assert code(refused) == (403, 'AuthorizationFailed')
    assert "scope '/subscriptions/{SUBSCRIPTION_ID}'".format(**azure.env) in refused.text
    azure.set_role('Owner', azure.subscription)
    refused = client.arm('PUT', client.base + path, body, version)
    azure.set_role('Reader', azure.subscription)
    assert code(refused) == (400, 'NoRegisteredProviderFound') and "'2015-06-01'" in refused.text


def test_an_environment_comes_back_as_the_sdk_reads_it(client):
    sent = {'Name': 'e', 'Docker': {'baseImage': 'image'}, 'EnvironmentVariables': {'A_B': 'c'}}
    client.good('PUT', 'environment/v1.0', '/environments/e', sent)
    found = client.good('GET', 'environment/v1.0', '/environments/e')
    assert found == {'name': 'e', 'version': '1', 'docker': {'baseImage': 'image'},
                     'environmentVariables': {'A_B': 'c'}}


def test_sign_in_is_refused_in_the_words_of_entra(client):
    for wrong, status, number in (({'secret': 'wrong'}, 401, 7000215),
                                  ({'client': str(uuid.uuid4())}, 400, 700016),
                                  ({'tenant': str(uuid.uuid4())}, 400, 90002)):
        answer = client.sign_in(**wrong)
        assert (answer.status_code, answer.json()['error_codes']) == (status, [number])
        assert answer.json()['error_description'].startswith(f'AADSTS{number}: ')


@pytest.mark.parametrize('url', [ARM, API + '/history/v1.0'])
def test_requests_without_a_good_token_get_401(client, url):
    url += client.space + ('' if url == ARM else '/experiments/x/runs/x')
    assert code(client.session.get(url)) == (401, 'AuthenticationFailed')
    assert code(client.ask('GET', url, headers={'Authorization': 'Bearer eyJ.eyJ.x'})) == (
        401, 'InvalidAuthenticationToken')


def test_what_is_missing_has_the_codes_of_azure(client):
    other = client.space.replace(client.env['SUBSCRIPTION_ID'], str(uuid.uuid4()))
    assert code(client.arm('GET', other)) == (404, 'SubscriptionNotFound')
    assert code(client.arm('GET', client.base + 'x')) == (404, 'ResourceGroupNotFound')
    assert code(client.arm('GET', client.space + 'x')) == (404, 'ResourceNotFound')
    assert code(client.arm('GET', client.space + '/computes/none')) == (404, 'ResourceNotFound')


def test_an_unknown_route_fails_and_is_named(tmp_path):
    with loopback.start(str(tmp_path)) as azure:
        answer = Client(azure).arm('GET', '/subscriptions/x/nobody/knows')
        assert code(answer) == (501, 'LoopbackUnknownRoute')
        assert azure.unknown == [
            'GET https://management.azure.com/subscriptions/x/nobody/knows: no such route']


def test_a_compute_of_an_unknown_size_or_with_a_bad_name_is_refused(client):
    path = client.space + '/computes/'
    assert code(client.arm('PUT', path + 'x2x', compute(size='Giant'))) == (
        400, 'InvalidPropertyValue')
    assert code(client.arm('PUT', path + 'under_score', compute())) == (400, 'BadRequest')
    assert [one['name'] for one in client.arm('GET', path).json()['value']] == ['cpu']


def test_blobs(client, azure):
    blob = client.blob
    assert client.session.get(blob('GET', '/data/a.csv').url).status_code == 403
    assert blob('GET', '/data/a.csv').headers['x-ms-error-code'] == 'BlobNotFound'
    for block in ('b1', 'b2'):
        assert blob('PUT', '/data/a.csv?comp=block&blockid=' + block, block).status_code == 201
    assert blob('HEAD', '/data/a.csv').status_code == 404
    text = '<BlockList><Latest>b2</Latest><Latest>b1</Latest></BlockList>'
    assert blob('PUT', '/data/a.csv?comp=blocklist', text).status_code == 201
    assert blob('GET', '/data/a.csv').text == 'b2b1'
    part = blob('GET', '/data/a.csv', **{'x-ms-range': 'bytes=1-2'})
    assert (part.status_code, part.text) == (206, '2b')
    assert part.headers['Content-Range'] == 'bytes 1-2/4'
    assert blob('PUT', '/data/b/c.csv', 'x').status_code == 201
    listed = blob('GET', '?restype=container&comp=list&prefix=data/').text
    assert listed.index('<Name>data/a.csv<') < listed.index('<Name>data/b/c.csv<')
    assert blob('PUT', '/%2e%2e/%2e%2e/%2e%2e/escaped', 'x').status_code == 404
    assert not list(Path(azure.folder).rglob('escaped'))


def test_neither_keys_nor_links_are_taken_where_a_policy_forbids_keys(client, azure):
    path = f"/artifacts/contentinfo/LocalUpload/{client.upload({'a.txt': 'x'})}/a.txt"
    link = client.good('GET', 'artifact/v2.0', path)['contentUri']
    azure.shared_keys = False
    answers = [client.session.get(link), client.blob('GET', '/a.csv')]
    azure.shared_keys = True
    assert {(answer.status_code, answer.headers['x-ms-error-code']) for answer in answers} == {
        (403, 'KeyBasedAuthenticationNotPermitted')}


def test_the_name_of_an_artifact_is_taken_once_and_its_link_is_good_for_nothing_else(client):
    container = client.upload({'a.txt': 'x', 'b.txt': 'y'})
    path = f'/artifacts/contentinfo/LocalUpload/{container}/a.txt'
    link = client.good('GET', 'artifact/v2.0', path)['contentUri']
    assert client.session.get(link).text == 'x'
    assert client.session.get(link.replace('a.txt', 'b.txt')).status_code == 403
    path = '/artifacts/batch/metadata/LocalUpload/' + container
    again = client.api('POST', 'artifact/v2.0', path, {'paths': [{'path': 'a.txt'}]})
    assert again.status_code == 409 and 'already exists' in again.text


def test_steps_run_from_the_snapshot_and_hand_on_their_data(client):
    pipeline = client.publish([
        client.module('second', 'read.py', [('Input', 'data')], inputs=['data']),
        client.module('first', 'write.py', [('Parameter', 'text'), ('Output', 'data')],
                      outputs=['data'])], [('first', 'data', 'second')])
    run = client.submit(pipeline, text='hello')
    other = client.submit(pipeline)
    assert (client.ended(run), client.ended(other)) == ('Completed', 'Completed')
    number, _, said = client.step(run, 'first')
    assert said == 'parameter hello variable blue\n'
    assert client.step(run, 'second')[-1] == 'read hello\nsecrets []\n'
    assert 'parameter default' in client.step(other, 'first')[-1]
    path = '/artifacts/ExperimentRun/dcid.' + number
    kept = [one['path'] for one in client.good('GET', 'artifact/v2.0', path)['value']]
    assert kept == ['outputs/kept.txt', 'user_logs/std_log.txt']
    assert client.api('POST', 'pipelines/v1.0', '/PipelineRuns/PipelineSubmit/' + pipeline, {
        'ExperimentName': 'tests', 'ParameterAssignments': {'colour': 'red'}}).status_code == 400


def test_a_step_waits_for_its_image_once(client, azure):
    pipeline = client.publish([client.module('only', 'leave.py', [], environment='late')])
    azure.faults.add('late-image', seconds=0.3, count=None)
    for _ in range(2):
        assert client.ended(client.submit(pipeline)) == 'Completed'
    assert azure.faults.struck.count('late-image') == 1


def test_cancel_really_kills_the_step(client):
    run = client.one_step('forever.py')
    pids = client.pids(run)
    assert all(alive(pid) for pid in pids)
    client.good('DELETE', 'pipelines/v1.0', f'/PipelineRuns/{run}/Execution')
    assert client.ended(run) == client.step(run)[1] == 'Canceled'
    until(lambda: not any(alive(pid) for pid in pids))
    again = client.api('DELETE', 'pipelines/v1.0', f'/PipelineRuns/{run}/Execution')
    assert again.status_code == 400


def test_a_step_on_several_nodes_is_a_process_on_each(client):
    run = client.one_step('rank.py', **dict(NODES, nodeCount=3))
    assert client.ended(run) == 'Completed'
    assert client.logs(run) == {
        f'std_log_process_{rank}.txt': f'{rank} 3 0 127.0.0.1:6000 True\n' for rank in range(3)}
    path = '/artifacts/ExperimentRun/dcid.' + client.step(run)[0]
    kept = [one['path'] for one in client.good('GET', 'artifact/v2.0', path)['value']]
    assert kept[:4] == ['outputs/0', 'outputs/1', 'outputs/2', 'outputs/same']


def test_a_number_of_nodes_in_the_configuration_of_mpi_alone_starts_one(client):
    run = client.one_step('rank.py', **dict(NODES, nodeCount=1))
    assert client.ended(run) == 'Completed'
    assert client.logs(run) == {'std_log_process_0.txt': '0 1 0 127.0.0.1:6000 True\n'}


@pytest.mark.parametrize('changes, said', [
    ({'nodeCount': 4}, 'asks for 4 nodes, and the cluster cpu has at most 3'),
    ({'communicator': 'None'}, 'communicator is none of'),
    ({'mpi': {'processCountPerNode': 2, 'nodeCount': 2}}, 'processCountPerNode is not 1')])
def test_nodes_that_cannot_be_had_are_refused(client, changes, said):
    assert said in client.failure(client.one_step('rank.py', **dict(NODES, **changes)))


def test_more_nodes_than_the_quota_is_for_are_refused(client, azure):
    space, = azure.journal.table('workspaces').values()
    cluster = azure.table(space, 'computes')['cpu']
    cluster['properties']['properties']['scaleSettings']['maxNodeCount'] = 13
    assert computes.refusal(cluster, 12) is None
    assert 'quota of 24 and is less than the requested job node count of 13 which maps to 26' in (
        computes.refusal(cluster, 13))


@pytest.mark.parametrize('fault, said', [
    ('node-killed', 'node 1 is lost'), ('node-slow', 'node 1 is silent'),
    ('node-absent', 'node 1 is silent')])
def test_a_step_fails_that_loses_a_node(client, azure, fault, said):
    azure.faults.add(fault)
    run = client.one_step('meet.py', **NODES)
    failure = client.failure(run)
    assert failure.startswith("Execution failed. User process 'python' exited with status code 1.")
    assert "'user_logs/std_log_process_0.txt'" in failure and failure.endswith(said)
    logs = client.logs(run)
    assert ('mpi_log.txt' in logs) == (fault == 'node-killed')
    assert 'process rank 1 with PID' in logs.get('mpi_log.txt', 'process rank 1 with PID')
    # A pipeline of one node is left alone.
    azure.faults.add(fault)
    assert client.ended(client.one_step('leave.py')) == 'Completed'


def test_cancel_kills_the_step_on_all_nodes(client):
    run = client.one_step('forever.py', **NODES)
    until(lambda: client.step(run) and sum(map(bool, client.logs(run).values())) == 2)
    pids = [int(pid) for log in client.logs(run).values() for pid in log.split()]
    assert len(pids) == 4 and all(map(alive, pids))
    cluster = client.arm('GET', client.space + '/computes/cpu').json()
    assert cluster['properties']['properties']['nodeStateCounts']['runningNodeCount'] == 2
    client.good('DELETE', 'pipelines/v1.0', f'/PipelineRuns/{run}/Execution')
    assert client.ended(run) == 'Canceled'
    until(lambda: not any(map(alive, pids)))


def test_what_a_step_leaves_running_ends_with_it(client):
    run = client.one_step('leave.py')
    assert client.ended(run) == 'Completed'
    pid, = client.pids(run)
    until(lambda: not alive(pid))


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def test_a_step_whose_results_may_be_reused_is_refused(client):
    answer = client.api('POST', 'pipelines/v1.0', '/Modules', {
        'Name': 'only', 'IsDeterministic': True, 'StructuredInterface': {}, 'StorageId': 'x'})
    assert (answer.status_code, 'allow_reuse=False' in answer.text) == (501, True)


def test_pipeline_data_is_flat_blob_storage_while_the_fault_lasts(client, azure):
    pipeline = client.publish([client.module('only', 'rename.py', [('Output', 'data')],
                                             outputs=['data'])])
    azure.faults.add('blob-mount', count=None)
    run = client.submit(pipeline)
    assert client.ended(run) == 'Failed' and 'OSError: [Errno 5]' in client.step(run)[-1]
    azure.faults.clear()
    assert client.ended(client.submit(pipeline)) == 'Completed'


@pytest.mark.parametrize('fault, status, text', [
    ('throttled', 429, 'TooManyRequests'), ('server-error', 500, 'InternalServerError'),
    ('unavailable', 503, 'ServiceUnavailable'), ('forbidden', 403, 'AuthorizationFailed'),
    ('expired-token', 401, 'ExpiredAuthenticationToken')])
def test_a_request_is_answered_with_a_fault_as_often_as_asked(client, azure, fault, status, text):
    azure.faults.add(fault, path='GET .*/workspaces/space$', count=2, skip=1)
    answers = [client.arm('GET', client.space) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, status, status, 200]
    assert answers[1].json()['error']['code'] == text
    assert answers[1].headers.get('Retry-After') == ('1' if status == 429 else None)
    assert client.arm('GET', client.base).status_code == 200


def test_a_connection_is_reset_before_or_after_the_deed(client, azure):
    azure.faults.add('reset', path='/workspaces/space$')
    with pytest.raises(requests.ConnectionError):
        client.arm('GET', client.space)
    assert client.arm('GET', client.space).status_code == 200
    azure.faults.add('reset', path='POST .*/models$', after=True)
    with pytest.raises(requests.ConnectionError):
        client.register('lost')
    found = client.good('GET', 'modelmanagement/v1.0', '/models?name=lost')['value']
    assert [model['id'] for model in found] == ['lost:1']


def test_a_snapshot_takes_what_did_not_change_from_its_parent(client, azure):
    first, *others = SCRIPTS
    parent = client.snapshot()
    child = client.snapshot(parent, sent=[first], names=[first, others[0]])
    workspace, = azure.journal.table('workspaces').values()
    snapshots = azure.table(workspace, 'snapshots')
    assert snapshots[child][others[0]] == snapshots[parent][others[0]]
    assert snapshots[child][first] != snapshots[parent][first] and len(snapshots[child]) == 2
    client.snapshot(sent=[first], status=400)


def test_an_unknown_fault_is_refused(azure):
    with pytest.raises(ValueError, match='unknown fault .*the names are throttled'):
        azure.faults.add('earthquake')


def test_a_first_deployment_that_is_refused_leaves_a_failed_service(client, azure):
    space, = azure.journal.table('workspaces').values()
    identity, group = space['identity']['principalId'], azure.group(GROUP)
    resource_manager.assign(azure, identity, 'Azure AI Administrator', group)
    answer = client.deploy('refused')
    failed = client.ask('GET', answer.headers['Operation-Location']).json()
    service = client.good('GET', 'modelmanagement/v1.0', '/services/refused')
    resource_manager.assign(azure, identity, 'Contributor', group)
    assert (answer.status_code, failed['state'], service['state']) == (202, 'Failed', 'Failed')
    assert 'containerGroups/write' in service['error']['message']


def test_a_service_under_way_and_its_model_are_kept(client, azure):
    client.register('used').raise_for_status()
    space, = azure.journal.table('workspaces').values()
    services = azure.table(space, 'services')
    services['under-way'] = {'name': 'under-way', 'state': 'Transitioning',
                             'environmentImageRequest': {'modelIds': ['used:1']}}
    assert client.deploy('under-way').status_code == 409
    answer = client.api('DELETE', 'modelmanagement/v1.0', '/models/used:1')
    assert answer.status_code == 400 and 'is used by under-way' in answer.text
    del services['under-way']


def test_a_service_wants_its_key(client, azure, monkeypatch):
    service = {'authEnabled': True, 'keys': {'primaryKey': 'k'}}
    monkeypatch.setattr(azure.containers, 'container_behind', lambda host: (service, 9))
    url = 'http://x.westeurope.azurecontainer.io/score'
    for headers in ({}, {'Authorization': 'Bearer other'}):
        assert client.session.post(url, headers=headers).status_code == 401
    # With the key it goes on to the container, which nobody has started here.
    with pytest.raises(requests.ConnectionError):
        client.session.post(url, headers={'Authorization': 'Bearer k'})


def test_no_secret_is_written_and_files_are_private(client, azure):
    run = client.one_step('leave.py')
    client.ended(run)
    secrets = [client.env['servicePrincipalKey'], client.token, client.store()['accountKey'],
               client.history(run, '/token')['token']]
    folder = Path(azure.folder)
    texts = [path.read_text(errors='replace') for path in folder.rglob('*') if path.is_file()]
    assert not [secret for secret in secrets for text in texts if secret in text]
    assert stat.S_IMODE((folder / 'ca.pem').stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


DRIVER = '''
import json, sys, loopback
with loopback.start(sys.argv[1]) as azure:
    azure.add_group('group')
    print(json.dumps(azure.env), flush=True)
    sys.stdin.read()
'''


@pytest.mark.end_to_end
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux tells a child')
@pytest.mark.parametrize('killed', [False, True])
def test_processes_end_with_the_stand_in_however_it_ends(tmp_path, killed):
    process = subprocess.Popen(
        [sys.executable, '-c', DRIVER, str(tmp_path / 'state')], cwd=str(ROOT / 'devops'),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        env = json.loads(process.stdout.readline().decode())
        client = Client(types.SimpleNamespace(env=env, add_group=lambda name: None))
        client.set_up()
        pid = client.pids(client.one_step('forever.py'))[0]
        if killed:
            process.kill()
        process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    until(lambda: not alive(pid))
