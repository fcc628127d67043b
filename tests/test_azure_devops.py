"""The REST client of Azure DevOps, against the stand-in."""
import base64
import contextlib
import io
import os
import types
from unittest import mock

import pytest

import azure_devops
from loopback.azure_devops import FAULTS, AzureDevOps
from settings import SettingsError

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


@pytest.mark.parametrize('fault, times', [('broken', 1), ('stopped', 1), ('busy', 2)])
def test_a_post_is_sent_again_only_when_it_was_turned_away(service, waits, fault, times):
    service.misbehave(fault)
    body = {'name': 'aci'}
    with contextlib.suppress(azure_devops.AzureDevOpsError):
        client_of(service).call('POST', '{project}/_apis/distributedtask/environments', 'x', body)
    assert len(service.requests) == times


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
        client_of(service).call('POST', POLICIES, 'create the policy', {})
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
