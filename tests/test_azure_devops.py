"""The REST client, and the stand-in that it is tested against."""
import base64
import contextlib
import io
import json
import os
import types
from unittest import mock

import pytest
import requests

import azure_devops
from conftest import ROOT
from loopback.azure_devops import FAULTS, AzureDevOps
from loopback.azure_devops_contract import CONTRACT
from settings import SettingsError

REFERENCE = ROOT.parent / 'shared' / 'reference' / 'azure-devops' / 'rest-api.json'
REPOSITORIES = '{project}/_apis/git/repositories'
POLICIES = '{project}/_apis/policy/configurations'


@pytest.fixture
def service():
    with AzureDevOps() as one:
        yield one


@pytest.fixture
def waits(monkeypatch):
    """No real waiting between tries: what would have been waited, in seconds."""
    pauses = []
    monkeypatch.setattr(azure_devops, 'time', types.SimpleNamespace(
        monotonic=lambda: sum(pauses), sleep=pauses.append))
    return pauses


def run(script, env, *argv):
    """(exit code, all that was printed) of a script's main in this environment only."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, env, clear=True):
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = script.main(list(argv))
    return code, printed.getvalue()


def row(what, code, text):
    """One row of the acceptance table; `pytest -s` shows it."""
    before, error, after = text.strip().partition('error: ')
    said = error + ' '.join(after.split()) if error else before.splitlines()[-1]
    print(f'| {what} | {code} | {said} |')


def client_of(service, **changes):
    return azure_devops.Client(azure_devops.read_settings(dict(service.env, **changes)))


def trimmed(reference, paths):
    """The part of Microsoft's contract that these paths use: {path: its methods}."""
    def strip(node):
        if isinstance(node, list):
            return [strip(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: strip(value) for key, value in node.items()
                if not (key == 'description' and isinstance(value, str))
                and key not in ('x-ms-enum', 'tags', 'operationId', 'produces', 'consumes')}

    def collect(node):
        if isinstance(node, list):
            for item in node:
                collect(item)
        elif isinstance(node, dict):
            parts = str(node.get('$ref', '')).split('/')
            if len(parts) == 3 and parts[2] not in found[parts[1]]:
                found[parts[1]][parts[2]] = strip(reference[parts[1]][parts[2]])
                collect(found[parts[1]][parts[2]])
            for value in node.values():
                collect(value)
    found = {'definitions': {}, 'parameters': {}}
    found['paths'] = {path: {method: strip(reference['paths'][path][method])
                             for method in methods} for path, methods in paths.items()}
    collect(found['paths'])
    # With includeAllProperties the list of definitions holds this one.
    collect({'$ref': '#/definitions/build_BuildDefinition'})
    return found


def test_the_contract_is_microsofts():
    if not REFERENCE.is_file():
        pytest.skip('no ../shared')
    kept = json.loads(CONTRACT.read_text())
    assert kept == trimmed(json.loads(REFERENCE.read_text()), kept['paths'])
    licence = CONTRACT.with_suffix('.LICENSE').read_text()
    assert licence == REFERENCE.with_suffix('.LICENSE').read_text()


def ask(service, method, path, body=None, version='7.1', **query):
    """A raw request to the stand-in, as nobody's client."""
    address = f"{service.env['AZURE_DEVOPS_ORG_URL']}/Safe%20Driver/_apis/{path}"
    return requests.request(method, address, json=body, auth=('', service.pat), timeout=10,
                            params=dict(query, **({'api-version': version} if version else {})))


POLICY = {'isEnabled': True, 'isBlocking': True,
          'type': {'id': 'c6a1889d-b943-4856-b76f-9e46bb6b0df2'}}


@pytest.mark.parametrize('method, path, body, version, query, status', [
    ('POST', 'policy/configurations', dict(POLICY, settings={}), '7.1', {}, 400),
    ('POST', 'policy/configurations', dict(POLICY, isEnable=True), '7.1', {}, 400),
    ('POST', 'policy/configurations', dict(POLICY, isEnabled='yes'), '7.1', {}, 400),
    ('GET', 'policy/configurations', None, None, {}, 400),
    ('GET', 'policy/configurations', None, '7.1', {'scop': 'x'}, 400),
    ('GET', 'policy/configurations', None, '7.1', {}, 200),
    ('GET', 'pipelines/checks/configurations', None, '7.1', {}, 400),
    ('GET', 'serviceendpoint/endpoints', None, '7.1', {}, 400),
    ('POST', 'pipelines', {'name': 'x', 'configuration': {'type': 'yaml'}}, '7.1', {}, 400),
    ('POST', 'distributedtask/environments', {'names': 'x'}, '7.1', {}, 400),
    ('PUT', 'policy/configurations/99', dict(POLICY, settings={}), '7.1', {}, 404),
    ('GET', 'policies', None, '7.1', {}, 404),
])
def test_the_stand_in_takes_only_what_the_contract_allows(service, method, path, body, version,
                                                          query, status):
    answer = ask(service, method, path, body, version, **query)
    assert answer.status_code == status
    if status != 200:
        problem = json.loads(answer.content.decode('utf-8-sig'))
        assert set(problem) >= {'$id', 'message', 'typeName', 'typeKey', 'errorCode', 'eventId'}


def test_misspelt_settings_of_a_policy_are_refused(service):
    settings = {'scope': service.scope(), 'buildDefinitionID': 5}
    answer = ask(service, 'POST', 'policy/configurations', dict(
        POLICY, type={'id': '0609b952-1397-4640-95ec-e00a01b2c241'}, settings=settings))
    assert answer.status_code == 400
    assert 'buildDefinitionID' in answer.content.decode()


def test_the_agents_own_settings_do():
    settings = azure_devops.read_settings({
        'SYSTEM_COLLECTIONURI': 'https://dev.azure.com/contoso/', 'SYSTEM_TEAMPROJECT': 'P',
        'BUILD_REPOSITORY_NAME': 'R', 'SYSTEM_ACCESSTOKEN': 'token', 'BRANCH': 'refs/heads/main'})
    assert settings[:6] == ('https://dev.azure.com/contoso', 'P', 'R', 'token', False, 'main')


def test_settings_say_everything_that_is_missing_at_once():
    with pytest.raises(SettingsError) as caught:
        azure_devops.read_settings({'AZURE_DEVOPS_PROJECT': ' ', 'DRY_RUN': 'perhaps',
                                    'SYSTEM_ACCESSTOKEN': '$(System.AccessToken)'})
    for name in ('AZURE_DEVOPS_ORG_URL', 'AZURE_DEVOPS_PROJECT', 'AZURE_DEVOPS_REPOSITORY',
                 'AZURE_DEVOPS_EXT_PAT', 'DRY_RUN'):
        assert name in str(caught.value)


@pytest.mark.parametrize('address', [
    'contoso', 'http://dev.azure.com/contoso', 'https://pat123@dev.azure.com/contoso',
    'https://dev.azure.com', 'https://dev.azure.com/contoso/Safe%20Driver',
    'https://server/tfs/Default/P/_git/R'])
def test_what_is_no_organisation_is_refused_and_not_repeated(service, address):
    with pytest.raises(SettingsError) as caught:
        azure_devops.read_settings(dict(service.env, AZURE_DEVOPS_ORG_URL=address))
    assert 'AZURE_DEVOPS_ORG_URL' in str(caught.value)
    assert 'pat123' not in str(caught.value)


@pytest.mark.parametrize('address', ['https://contoso.visualstudio.com',
                                     'https://server:8443/tfs/DefaultCollection'])
def test_other_forms_of_organisation_are_taken(service, address):
    settings = dict(service.env, AZURE_DEVOPS_ORG_URL=address + '/')
    assert azure_devops.read_settings(settings).organisation == address


def test_a_token_with_a_line_break_is_refused_without_showing_it(service):
    with pytest.raises(SettingsError) as caught:
        azure_devops.read_settings(dict(service.env, AZURE_DEVOPS_EXT_PAT='abc\ndef'))
    assert 'AZURE_DEVOPS_EXT_PAT' in str(caught.value)
    assert 'abc' not in str(caught.value)


def test_both_kinds_of_token_sign_in_whatever_netrc_says(service, tmp_path, monkeypatch):
    (tmp_path / 'netrc').write_text('machine 127.0.0.1 login me password wrong\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    assert client_of(service).pages(REPOSITORIES, 'x', {})
    agents = client_of(service, AZURE_DEVOPS_EXT_PAT='', SYSTEM_ACCESSTOKEN=service.system_token)
    assert agents.pages(REPOSITORIES, 'x', {})


def test_all_pages_are_read(service):
    for number in range(5):
        service.add_pipeline(f'p{number}', 'x.yml')
    service.page_size = 2
    found = client_of(service).pages('{project}/_apis/build/definitions', 'list the pipelines',
                                      {'name': str})
    assert [one['name'] for one in found] == ['p0', 'p1', 'p2', 'p3', 'p4']
    assert len(service.requests) == 3


@pytest.mark.parametrize('fault', ['broken', 'stopped', 'busy'])
def test_passing_faults_are_ridden_out(service, waits, fault):
    service.misbehave(fault, times=2)
    assert client_of(service).pages(REPOSITORIES, 'x', {})
    assert len(waits) == 2


@pytest.mark.parametrize('fault, calls', [('broken', 1), ('stopped', 1), ('busy', 2)])
def test_a_post_is_sent_again_only_when_it_was_turned_away(service, waits, fault, calls):
    service.misbehave(fault)
    body = {'name': 'aci'}
    with contextlib.suppress(azure_devops.AzureDevOpsError):
        client_of(service).call('POST', '{project}/_apis/distributedtask/environments', 'x', body)
    assert len(service.requests) == calls


def test_a_pause_longer_than_the_deadline_is_not_waited_for(service, waits):
    service.misbehave('busy for long', times=9)
    with pytest.raises(azure_devops.AzureDevOpsError) as caught:
        client_of(service).pages(REPOSITORIES, 'x', {})
    assert '900 s' in str(caught.value)
    assert waits == []


def test_no_answer_is_a_sentence(service, waits, monkeypatch):
    monkeypatch.setattr(azure_devops, 'READ_SECONDS', 0.2)
    service.misbehave('stalled', times=9)
    with pytest.raises(azure_devops.AzureDevOpsError) as caught:
        client_of(service).call('POST', POLICIES, 'create the policy', POLICY)
    assert 'No answer from 127.0.0.1' in str(caught.value)
    assert len(service.requests) == 1, 'what was sent may have been done'


def test_no_server_is_a_sentence(service, waits):
    client = client_of(service)
    service.stop()
    with pytest.raises(azure_devops.AzureDevOpsError) as caught:
        client.pages(REPOSITORIES, 'list the repositories', {})
    assert 'Cannot reach 127.0.0.1' in str(caught.value)
    assert 'refused' in str(caught.value)
    assert waits == list(azure_devops.RETRY_SECONDS)


@pytest.mark.parametrize('fault', sorted(set(FAULTS) - {'stalled'}))
def test_the_token_is_in_no_sentence(service, waits, fault):
    service.misbehave(fault, times=9)
    with pytest.raises(azure_devops.AzureDevOpsError) as caught:
        client_of(service).pages(REPOSITORIES, 'list the repositories', {})
    basic = base64.b64encode((':' + service.pat).encode()).decode()
    assert service.pat not in str(caught.value)
    assert basic not in str(caught.value)


def test_an_expired_agents_token_names_what_to_pass(service):
    with pytest.raises(azure_devops.AzureDevOpsError) as caught:
        client_of(service, AZURE_DEVOPS_EXT_PAT='', SYSTEM_ACCESSTOKEN='old').pages(
            REPOSITORIES, 'list the repositories', {})
    assert 'SYSTEM_ACCESSTOKEN: $(System.AccessToken)' in str(caught.value)
