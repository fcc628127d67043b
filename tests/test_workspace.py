import os

import pytest

import azure_ml
import settings
import workspace

AGENT = {'tenantId': 't', 'servicePrincipalId': 'i', 'servicePrincipalKey': 'k'}
OWN = {'AZUREML_SERVICE_PRINCIPAL_TENANT_ID': 'T', 'AZUREML_SERVICE_PRINCIPAL_ID': 'I',
       'AZUREML_SERVICE_PRINCIPAL_PASSWORD': 'K'}


@pytest.fixture
def az(tmp_path, monkeypatch):
    """A function that puts an Azure CLI on the path: a shell script with this text."""
    monkeypatch.setenv('PATH', str(tmp_path))

    def put(text):
        command = tmp_path / 'az'
        command.write_text('#!/bin/sh\n' + text)
        command.chmod(0o755)
        return tmp_path / 'asked'
    return put


def test_principal_of_the_agent_then_of_the_sdk():
    assert workspace.principal(dict(AGENT, **OWN)) == ('t', 'i', 'k')
    assert workspace.principal(OWN) == ('T', 'I', 'K')
    assert workspace.principal({}) is None
    # A federated connection gives id and tenant, but no secret.
    assert workspace.principal(dict(AGENT, servicePrincipalKey='', idToken='x')) is None
    with pytest.raises(settings.SettingsError, match='servicePrincipalKey is set without tenantId'):
        workspace.principal({'servicePrincipalKey': 'k', 'servicePrincipalId': 'i'})


def test_azure_cli_gives_tokens_and_is_asked_once_for_each(az):
    asked = az('echo "$4" >> {0}/asked; echo \'{{"accessToken": "token"}}\'\n'.format(
        os.environ['PATH']))
    token = workspace.command_line_tokens()
    assert [token('https://a/'), token('https://a/')] == ['token', 'token']
    assert asked.read_text().split() == ['https://management.azure.com/', 'https://a/']


@pytest.mark.parametrize('text', ['echo "Please run az login" >&2; exit 1', 'echo nonsense'])
def test_azure_cli_that_is_not_signed_in_is_passed_over(az, text):
    az(text)
    assert workspace.command_line_tokens() is None


def test_without_any_sign_in_the_message_says_what_to_do(az, monkeypatch):
    pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
    # Never a browser here, even when the tests run on a terminal.
    monkeypatch.setattr('sys.stdin', open(os.devnull))
    for environ, said in (({'idToken': 'x'}, 'federated'), ({}, 'az login'),
                          ({'TF_BUILD': 'True'}, 'addSpnToEnvironment')):
        with pytest.raises(azure_ml.AzureError, match=said):
            workspace.sign_in(environ)
