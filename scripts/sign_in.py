"""Sign in to Azure by what the environment offers, and a fresh token whenever one is asked for.

    authentication = sign_in.authentication(os.environ)

The ways, in this order: a federated service connection, without any secret; a service principal's
secret; the Azure CLI; a browser, on a terminal only.
"""
import re
import sys
import time

import azure_ml
import settings

# As the SDK calls it when it asks for a token.
RESOURCE_MANAGER = 'https://management.core.windows.net/'
LONGEST_SECONDS = 60
# A token is renewed so long before it ends.
MARGIN_SECONDS = 300
FEDERATION = ('AZURESUBSCRIPTION_TENANT_ID', 'AZURESUBSCRIPTION_CLIENT_ID',
              'AZURESUBSCRIPTION_SERVICE_CONNECTION_ID')
JOB = ('SYSTEM_OIDCREQUESTURI', 'SYSTEM_ACCESSTOKEN')
PRINCIPALS = (
    # What the AzureCLI task exports with addSpnToEnvironment, then the SDK's own names.
    ('tenantId', 'servicePrincipalId', 'servicePrincipalKey'),
    ('AZUREML_SERVICE_PRINCIPAL_TENANT_ID', 'AZUREML_SERVICE_PRINCIPAL_ID',
     'AZUREML_SERVICE_PRINCIPAL_PASSWORD'),
)
SIGNED_OUT = (
    'not signed in to Azure\n'
    'in a pipeline: the job needs devops/sign_in.yml before this step; on your machine: run '
    '`az login`, or set ' + ', '.join(PRINCIPALS[1]))


def of_names(environ, names, last):
    """The values of these variables, or None when `last` of them, which decides, is not set.

    Raises SettingsError when another is missing or one cannot be what it is for.
    """
    values = {name: environ.get(name, '') for name in names}
    values = {name: '' if settings.UNDEFINED_VARIABLE.fullmatch(value) else value
              for name, value in values.items()}
    if not values[last]:
        return None
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise settings.SettingsError(f"{last} is set without {', '.join(missing)}")
    odd = [name for name, value in values.items() if not re.fullmatch('[!-~]+', value)]
    if odd:
        raise settings.SettingsError(f"copy {', '.join(odd)} anew: a blank or a line end is in it")
    return tuple(values[name] for name in names)


def principal(environ):
    """(tenant, id, secret) of the service principal that the environment names, or None.

    Raises SettingsError when a part of it is missing.
    """
    return next(filter(None, (of_names(environ, names, names[2]) for names in PRINCIPALS)), None)


def renewed(credential, advice):
    """A function from audience to token, which asks again when the last one comes to its end.

    credential: of azure.identity. The function raises AzureError, with the advice, for a refusal.
    """
    from azure.core.exceptions import ClientAuthenticationError
    known = {}

    def token(audience):
        if audience not in known or known[audience].expires_on < time.time() + MARGIN_SECONDS:
            try:
                known[audience] = credential.get_token(audience + '/.default')
            # TypeError: the Azure CLI said JSON that is no object.
            except (ClientAuthenticationError, TypeError) as error:
                if azure_ml.status_of(error) in azure_ml.TRANSIENT:
                    raise
                raise azure_ml.AzureError(
                    f'could not sign in: {azure_ml.reason_of(error)}\n{advice}', 401) from None
        return known[audience].token
    return token


def oidc_token(uri, connection, job_token):
    """A token of the service connection, good for ten minutes, for that of the job.

    POST distributedtask/hubs/.../oidctoken (MicrosoftDocs/vsts-rest-api-specs,
    distributedTask/7.1, Oidctoken_Create). Raises AzureError.
    """
    what = 'get an OIDC token of the service connection'
    response = azure_ml.request(
        what, LONGEST_SECONDS, 'POST', uri.rstrip('/'),
        params={'api-version': '7.1', 'serviceConnectionId': connection},
        headers={'Authorization': f'Bearer {job_token}', 'Content-Type': 'application/json',
                 # 401 rather than a redirect to the sign-in page
                 'X-TFS-FedAuthRedirect': 'Suppress'})
    found = azure_ml.json_object(response)
    if response.status_code == 200 and isinstance(found.get('oidcToken'), str):
        return found['oidcToken']
    said = azure_ml.sentence(found.get('message') or found.get('value') or 'no token')
    raise azure_ml.AzureError(
        f'could not {what}: HTTP {response.status_code}, {said}\nthe job needs '
        'devops/sign_in.yml, whose task names the connection, and the step SYSTEM_ACCESSTOKEN: '
        '$(System.AccessToken)', status=401)


def federated_tokens(environ):
    """A function from audience to access token by a federated service connection, or None."""
    names = of_names(environ, FEDERATION + JOB, FEDERATION[2])
    if not names:
        return None
    tenant, client, connection, uri, job_token = names
    from azure.identity import ClientAssertionCredential

    def assertion():
        return oidc_token(uri, connection, job_token)

    # It repeats for long by itself, azure_ml.asking ends that; 1.15 takes no options.
    return renewed(ClientAssertionCredential(tenant, client, assertion),
                   'the federated credential of the app registration must have the issuer and the '
                   'subject that the service connection shows')


def command_line_tokens():
    """A function from audience to access token that asks the Azure CLI, or None if it cannot."""
    from azure.identity import AzureCliCredential
    token = renewed(AzureCliCredential(process_timeout=LONGEST_SECONDS), 'run `az login` again')
    try:
        token(RESOURCE_MANAGER)
    except azure_ml.AzureError:
        return None
    return token


def authentication(environ):
    """The SDK's authentication object. A browser is opened on a terminal only.

    Raises AzureError or SettingsError.
    """
    azure_ml.quieten()
    tokens = federated_tokens(environ)
    found = None if tokens else principal(environ)
    tokens = tokens or (None if found else command_line_tokens())
    if not (tokens or found) and (environ.get('TF_BUILD') or not sys.stdin.isatty()):
        raise azure_ml.AzureError(SIGNED_OUT, status=401)
    from azureml.core import authentication as sdk
    if tokens:
        return sdk.TokenAuthentication(tokens, cloud='AzureCloud')
    if found:
        return sdk.ServicePrincipalAuthentication(*found)
    return sdk.InteractiveLoginAuthentication()
