"""Each way to sign in to Azure: what the environment must hold, and what a refusal says."""
import collections
import os
import re

import pytest

import azure_ml
import settings
import sign_in

AGENT = {'tenantId': 't', 'servicePrincipalId': 'i', 'servicePrincipalKey': 'k'}
OWN = {'AZUREML_SERVICE_PRINCIPAL_TENANT_ID': 'T', 'AZUREML_SERVICE_PRINCIPAL_ID': 'I',
       'AZUREML_SERVICE_PRINCIPAL_PASSWORD': 'K'}


@pytest.fixture
def az(tmp_path, monkeypatch):
    """A function that puts an Azure CLI on the path: a shell script with this text."""
    monkeypatch.setenv('PATH', str(tmp_path))

    def install(text):
        command = tmp_path / 'az'
        command.write_text('#!/bin/sh\n' + text)
        command.chmod(0o755)
        return tmp_path / 'asked'
    return install


def test_principal_of_the_agent_then_of_the_sdk():
    assert sign_in.principal(dict(AGENT, **OWN)) == ('t', 'i', 'k')
    assert sign_in.principal(OWN) == ('T', 'I', 'K')
    assert sign_in.principal({}) is None
    # A federated connection gives id and tenant, but no secret; the step maps one all the same.
    assert sign_in.principal(dict(
        AGENT, servicePrincipalKey='', AZUREML_SERVICE_PRINCIPAL_PASSWORD='$(PASSWORD)')) is None
    with pytest.raises(settings.SettingsError, match='servicePrincipalKey is set without tenantId'):
        sign_in.principal({'servicePrincipalKey': 'k', 'servicePrincipalId': 'i'})
    with pytest.raises(settings.SettingsError) as error:
        sign_in.principal(dict(AGENT, servicePrincipalKey='s3c\nret'))
    assert str(error.value) == 'copy servicePrincipalKey anew: a blank or a line end is in it'


def test_azure_cli_gives_tokens_and_is_asked_once_for_each(az):
    asked = az(f'echo "$6" >> {os.environ["PATH"]}/asked; echo \'{{"accessToken": "token", '
               '"expiresOn": "2999-01-01 00:00:00.000000"}\'\n')
    token = sign_in.command_line_tokens()
    assert [token('https://a/'), token('https://a/')] == ['token', 'token']
    assert asked.read_text().split() == ['https://management.core.windows.net/', 'https://a/']


@pytest.mark.parametrize('text', [
    'echo "Please run az login" >&2; exit 1', 'echo nonsense', 'echo []', 'echo {}'])
def test_azure_cli_that_is_not_signed_in_is_passed_over(az, text):
    az(text)
    assert sign_in.command_line_tokens() is None


def test_without_any_sign_in_the_message_says_what_to_do(az, monkeypatch):
    # Never a browser here, even when the tests run on a terminal.
    monkeypatch.setattr('sys.stdin', open(os.devnull))
    for environ in ({'idToken': 'x'}, {}, {'TF_BUILD': 'True'}):
        with pytest.raises(azure_ml.AzureError, match='sign_in.yml.*az login'):
            sign_in.authentication(environ)


@pytest.fixture(scope='module')
def azure(tmp_path_factory):
    pytest.importorskip('trustme')
    import loopback
    with loopback.start(str(tmp_path_factory.mktemp('azure'))) as azure:
        yield azure


@pytest.fixture
def federated(azure, monkeypatch):
    """The environment of a step in a job whose tasks name a federated connection."""
    for name, value in azure.proxy_environment().items():
        monkeypatch.setenv(name, value)
    named = {name: value for name, value in azure.connection.items() if name.startswith('AZURESUB')}
    return dict(azure.new_job(with_connection=True), **named)


def test_a_job_gets_a_token_without_any_secret_and_asks_once_an_hour(azure, federated):
    token = sign_in.federated_tokens(federated)
    first = token(sign_in.RESOURCE_MANAGER)
    assert token(sign_in.RESOURCE_MANAGER) == first
    azure.tokens.check(f'Bearer {first}')


def test_a_token_is_asked_for_again_before_it_ends(monkeypatch):
    class Credential:
        asked = []

        def get_token(self, scope):
            self.asked.append(scope)
            return collections.namedtuple('Token', 'token expires_on')(len(self.asked), now + 3600)

    now = 1000.0
    monkeypatch.setattr(sign_in.time, 'time', lambda: now)
    token = sign_in.renewed(Credential(), '')
    assert [token('a'), token('a'), token('b')] == [1, 1, 2]
    now += 3600 - sign_in.MARGIN_SECONDS + 1
    assert token('a') == 3


@pytest.mark.parametrize('changes, said', [
    ({'SYSTEM_ACCESSTOKEN': 'wrong'}, 'HTTP 401, TF400813.*sign_in.yml'),
    ({'AZURESUBSCRIPTION_SERVICE_CONNECTION_ID': 'another'}, 'no explicit reference.*sign_in.yml'),
    ({'AZURESUBSCRIPTION_CLIENT_ID': 'other'}, 'AADSTS700016.*federated credential'),
    ({'AZURESUBSCRIPTION_TENANT_ID': 'other'}, 'AADSTS90002'),
])
def test_a_refusal_says_what_is_wrong_and_shows_no_token(azure, federated, changes, said):
    environ = dict(federated, **changes)
    with pytest.raises(azure_ml.AzureError) as error:
        sign_in.federated_tokens(environ)(sign_in.RESOURCE_MANAGER)
    assert re.search(said, str(error.value), 16), str(error.value)
    assert environ['SYSTEM_ACCESSTOKEN'] not in str(error.value) and 'eyJ' not in str(error.value)


def test_a_job_that_does_not_map_its_token_is_told_so():
    with pytest.raises(settings.SettingsError, match='without.* SYSTEM_ACCESSTOKEN'):
        sign_in.federated_tokens(dict.fromkeys(sign_in.FEDERATION, 'x'))
