"""The REST client of Azure DevOps, against the stand-in."""
import base64
import contextlib
import io
import os
import types
from unittest import mock

import pytest

import azure_devops
import azure_ml
from loopback.azure_devops import AzureDevOps
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


def client_of(service, **changes):
    return azure_devops.Client(azure_devops.read_settings(dict(service.env, **changes)))


@pytest.mark.parametrize('address', [
    'https://dev.azure.com/contoso', 'https://contoso.visualstudio.com',
    'https://server:8443/tfs/DefaultCollection'])
def test_the_agents_own_settings_do(address):
    settings = azure_devops.read_settings({
        'SYSTEM_COLLECTIONURI': address + '/', 'SYSTEM_TEAMPROJECT': 'P',
        'BUILD_REPOSITORY_NAME': 'R', 'SYSTEM_ACCESSTOKEN': 'token', 'BRANCH': 'refs/heads/main'})
    assert settings[:6] == (address, 'P', 'R', 'token', False, 'main')


def test_settings_say_everything_that_is_missing_at_once():
    with pytest.raises(SettingsError) as caught:
        azure_devops.read_settings({'AZURE_DEVOPS_PROJECT': ' ', 'DRY_RUN': 'perhaps',
                                    'SYSTEM_ACCESSTOKEN': '$(System.AccessToken)'})
    assert all(name in str(caught.value) for name in (
        'AZURE_DEVOPS_ORG_URL', 'AZURE_DEVOPS_PROJECT', 'AZURE_DEVOPS_REPOSITORY',
        'AZURE_DEVOPS_EXT_PAT', "DRY_RUN is 'perhaps': it must be 1 or 0"))


@pytest.mark.parametrize('name, value, hidden', [
    ('AZURE_DEVOPS_ORG_URL', address, 'pat123') for address in (
        'contoso', 'http://dev.azure.com/contoso', 'https://pat123@dev.azure.com/contoso',
        'https://dev.azure.com', 'https://dev.azure.com/contoso/?view=all',
        'https://dev.azure.com/contoso/Safe%20Driver',
        'https://server/tfs/Default/P/_git/R')] + [('AZURE_DEVOPS_EXT_PAT', 'abc\ndef', 'abc')])
def test_what_cannot_be_used_is_refused_and_not_repeated(service, name, value, hidden):
    with pytest.raises(SettingsError, match=name) as caught:
        azure_devops.read_settings(dict(service.env, **{name: value}))
    assert hidden not in str(caught.value)
    assert ('address in https, like' in str(caught.value)) == (name == 'AZURE_DEVOPS_ORG_URL')


def test_both_kinds_of_token_sign_in_whatever_netrc_says(service, tmp_path, monkeypatch):
    (tmp_path / 'netrc').write_text('machine 127.0.0.1 login me password wrong\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    for own in ({}, {'AZURE_DEVOPS_EXT_PAT': '', 'SYSTEM_ACCESSTOKEN': service.system_token}):
        assert client_of(service, **own).pages(REPOSITORIES, 'x', {})


def test_all_pages_are_read(service):
    for number in range(5):
        service.add_pipeline(f'p{number}', 'x.yml')
    service.page_size = 2
    found = client_of(service).pages('{project}/_apis/build/definitions', 'list the pipelines',
                                     {'name': str})
    assert [one['name'] for one in found] == ['p0', 'p1', 'p2', 'p3', 'p4']


@pytest.mark.parametrize('method, fault, sent', [
    ('GET', 'broken', 3), ('GET', 'stopped', 3), ('GET', 'busy', 3),
    ('POST', 'broken', 1), ('POST', 'stopped', 1), ('POST', 'stalled', 1), ('POST', 'busy', 3)])
def test_what_passes_is_tried_again_but_a_post_only_when_it_was_turned_away(
        service, waits, monkeypatch, method, fault, sent):
    monkeypatch.setattr(azure_devops, 'READ_SECONDS', 0.2)
    service.misbehave(fault, times=2)
    with pytest.raises(azure_ml.AzureError) if sent == 1 else contextlib.nullcontext():
        client_of(service).call(method, '{project}/_apis/distributedtask/environments', 'x',
                                {'name': 'aci'} if method == 'POST' else None)
    assert (len(service.requests), len(waits)) == (sent, sent - 1)


@pytest.mark.parametrize('fault, words', [
    ('expired', 'AZURE_DEVOPS_EXT_PAT is not accepted (401)'),
    ('redirect', 'is not accepted (302, a redirect to sign in)'),
    ('sign-in page', 'is not accepted (203, a sign-in page)'),
    ('anonymous page', 'is not accepted (200, a sign-in page)'),
    ('no permission', 'No permission to list the policies: TF401027'),
    ('no access', 'No permission to list the policies: TF400813'),
    ('busy', 'asked too often (429) and wants a pause of 1 s'),
    ('busy for long', 'wants a pause of 900 s'),
    ('broken', 'did not list the policies (HTTP 500): TF400898'),
    ('stopped', 'did not list the policies (HTTP 503): TF24668'),
    ('not JSON', 'is not JSON but text/plain, 19 bytes'),
    ('no list', 'asked to list the policies, and its answer cannot be used: value is missing'),
    ('stalled', 'could not list the policies: no answer from 127.0.0.1')])
def test_a_bad_answer_is_a_sentence_without_the_token(service, waits, monkeypatch, fault, words):
    if fault == 'stalled':
        monkeypatch.setattr(azure_devops, 'READ_SECONDS', 0.02)
    service.misbehave(fault, times=9)
    with pytest.raises(azure_ml.AzureError) as caught:
        client_of(service).pages(POLICIES, 'list the policies', {})
    assert words in str(caught.value)
    assert service.pat not in str(caught.value)
    assert base64.b64encode(f':{service.pat}'.encode()).decode() not in str(caught.value)
    # A pause longer than the deadline is not waited for.
    assert not waits or fault != 'busy for long'


def test_an_expired_agents_token_and_no_server_are_sentences(service, waits):
    client = client_of(service, AZURE_DEVOPS_EXT_PAT='', SYSTEM_ACCESSTOKEN='old')
    with pytest.raises(azure_ml.AzureError, match=r'TOKEN: \$\(System.AccessToken\)'):
        client.pages(REPOSITORIES, 'list the repositories', {})
    service.stop()
    with pytest.raises(azure_ml.AzureError, match='list x: no connection to 127.0.0.1\n'):
        client_of(service).pages(REPOSITORIES, 'list x', {})
    assert waits == list(azure_devops.RETRY_SECONDS)


def test_what_an_answer_lacks_is_named():
    with pytest.raises(azure_ml.AzureError, match=(
            r'asked to list x, and its answer .*: value\[0\].id is 7 and must be text')):
        azure_devops.check_answer({'value': [{'id': 7}]}, {'value': [{'id': str}]}, 'list x')
