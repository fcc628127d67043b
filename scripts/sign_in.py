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

# The SDK asks for Resource Manager's tokens by its older name.
RESOURCE_MANAGER = 'https://management.core.windows.net/', 'https://management.azure.com'
# The longest wait for a token.
LONGEST_SECONDS = 60
# A token is renewed so long before it ends.
MARGIN_SECONDS = 300
SHORTEST_SECONDS = 600
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
        raise settings.SettingsError(f"a blank or a line end is in {', '.join(odd)}: copy it anew")
    return tuple(values[name] for name in names)


def principal(environ):
    """(tenant, id, secret) of the service principal that the environment names, or None.

    Raises SettingsError when a part of it is missing.
    """
    return next(filter(None, (of_names(environ, names, names[2]) for names in PRINCIPALS)), None)


def renewed(ask):
    """A function from audience to token, which asks again when the last one comes to its end.

    ask: function from audience to (token, seconds that it is good for).
    """
    known = {}

    def token(audience):
        value, end = known.get(audience, (None, 0))
        if time.monotonic() >= end:
            value, seconds = ask(audience)
            known[audience] = value, time.monotonic() + seconds - MARGIN_SECONDS
        return value
    return token


def post(what, field, advice, url, **request):
    """The JSON object that a POST is answered with; it has this field.

    Raises AzureError, with the advice, for every other answer.
    """
    response = azure_ml.request(what, LONGEST_SECONDS, 'POST', url, **request)
    found = azure_ml.json_object(response)
    if response.status_code == 200 and isinstance(found.get(field), str):
        return found
    said = next((found[name] for name in ('error_description', 'message', 'value')
                 if isinstance(found.get(name), str)), f'no {field} in the answer')
    said = azure_ml.clean(' '.join(said.split()))[:300]
    raise azure_ml.AzureError(
        f'could not {what}: HTTP {response.status_code}, {said}\n{advice}', status=401)


def federated_tokens(environ):
    """A function from audience to access token by a federated service connection, or None.

    The token of the job buys an OIDC token, which is good for ten minutes, and that an access
    token: POST distributedtask/hubs/.../oidctoken (MicrosoftDocs/vsts-rest-api-specs,
    distributedTask/7.1, Oidctoken_Create), and the client credentials grant with an assertion
    (learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow).
    """
    names = of_names(environ, FEDERATION + JOB, FEDERATION[2])
    if not names:
        return None
    tenant, client, connection, uri, job_token = names

    def ask(audience):
        assertion = post(
            'get an OIDC token of the service connection', 'oidcToken',
            "the job needs devops/sign_in.yml, whose task names the connection, and the step "
            'SYSTEM_ACCESSTOKEN: $(System.AccessToken)', uri.rstrip('/'),
            params={'api-version': '7.1', 'serviceConnectionId': connection},
            headers={'Authorization': f'Bearer {job_token}', 'Content-Type': 'application/json',
                     # 401 rather than a redirect to the sign-in page
                     'X-TFS-FedAuthRedirect': 'Suppress'})['oidcToken']
        resource = RESOURCE_MANAGER[1] if audience == RESOURCE_MANAGER[0] else audience
        found = post(
            'sign in with the OIDC token', 'access_token',
            'the federated credential of the app registration must have the issuer and the subject '
            'that the service connection shows',
            f'https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token', data={
                'grant_type': 'client_credentials', 'client_id': client,
                'client_assertion_type': 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
                'client_assertion': assertion, 'scope': resource.rstrip('/') + '/.default'})
        seconds = found.get('expires_in')
        return found['access_token'], seconds if isinstance(seconds, int) else SHORTEST_SECONDS
    return renewed(ask)


def command_line_tokens():
    """A function from audience to access token that asks the Azure CLI, or None if it cannot."""
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import AzureCliCredential
    credential = AzureCliCredential(process_timeout=LONGEST_SECONDS)

    def ask(audience):
        try:
            found = credential.get_token(audience + '/.default')
        # TypeError: it said JSON that is no object.
        except (ClientAuthenticationError, TypeError) as error:
            raise azure_ml.AzureError('`az account get-access-token` failed: '
                                      + azure_ml.reason_of(error), status=401) from None
        return found.token, found.expires_on - time.time()

    token = renewed(ask)
    try:
        token(RESOURCE_MANAGER[0])
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
