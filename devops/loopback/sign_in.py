"""Microsoft Entra ID: sign-in of a service principal, and the tokens that other requests need.

Sources: learn.microsoft.com/entra/identity-platform, the pages v2-oauth2-client-creds-grant-flow
and reference-error-codes (AADSTS90002, AADSTS700016, AADSTS7000215, AADSTS700213, AADSTS700024).
A federated service connection: MicrosoftDocs/vsts-rest-api-specs, distributedTask/7.1, operation
Oidctoken_Create; that its job must name the connection: dotnet/docker-tools, issue 2012.
"""
import secrets
import time
import uuid

import jwt

from .routing import DEVOPS, SIGN_IN, Answer, problem, route

TENANT = '11111111-1111-1111-1111-111111111111'
CLIENT = '33333333-3333-3333-3333-333333333333'
OBJECT = '44444444-4444-4444-4444-444444444444'
CONNECTION = '55555555-5555-5555-5555-555555555555'
LIFETIME = 3600
OIDC_LIFETIME = 600
EXPIRED = (401, 'ExpiredAuthenticationToken', 'The access token has expired.')
STS = f'https://sts.windows.net/{TENANT}/'
EXCHANGE = 'api://AzureADTokenExchange'
ASSERTION = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'


class Tokens:
    """Who may come in. All of it is in memory only, so that no secret is ever written."""

    def __init__(self):
        self.secret = secrets.token_urlsafe(30)
        self._key = secrets.token_bytes(32)
        # {job of Azure Pipelines: (its token, whether its tasks name the service connection)}
        self._jobs = {}

    def issue(self, audience='https://management.azure.com'):
        """A token of access as the SDK expects it, which reads `exp` and `tid`."""
        return self._sign(LIFETIME, aud=audience, iss=STS, appid=CLIENT, oid=OBJECT, tid=TENANT)

    def new_job(self, with_connection):
        """The variables by which a job of Azure Pipelines asks for OIDC tokens.

        with_connection: whether its tasks name the service connection; else it gets none.
        """
        job, token = secrets.token_hex(8), secrets.token_urlsafe(40)
        self._jobs[job] = token, with_connection
        return {'SYSTEM_ACCESSTOKEN': token, 'SYSTEM_OIDCREQUESTURI':
                'https://dev.azure.com/rehearsal/rehearsal/_apis/distributedtask/hubs/build/plans/'
                f'plan/jobs/{job}/oidctoken'}

    def oidc_token(self, job, authorization, connection):
        """An OIDC token for a job of Azure Pipelines. Raises Answer."""
        token, with_connection = self._jobs.get(job, (None, False))
        if token is None or authorization != f'Bearer {token}':
            raise Answer({'$id': '1', 'message': 'TF400813: The user is not authorized to access '
                          'this resource.', 'typeKey': 'UnauthorizedRequestException'}, 401)
        if connection != CONNECTION or not with_connection:
            raise Answer({'count': 151, 'value': 'There is no explicit reference to service '
                          f'connection {connection} from current stage.'}, 400)
        return self._sign(OIDC_LIFETIME, aud=EXCHANGE, sub=f'/eid1/c/sc/{connection}',
                          iss=f'https://login.microsoftonline.com/{TENANT}/v2.0')

    def check_assertion(self, assertion):
        """Raise Answer unless this is an OIDC token from here, not older than ten minutes."""
        try:
            jwt.decode(assertion, self._key, ['HS256'], audience=EXCHANGE)
        except jwt.ExpiredSignatureError:
            raise refused(401, 'invalid_client', 700024,
                          'Client assertion is not within its valid time range.')
        except jwt.InvalidTokenError:
            raise refused(401, 'invalid_client', 700213, 'No matching federated identity record '
                          'found for presented assertion subject.')

    def check(self, authorization):
        """Refuse a request without a good token, in the words of Azure Resource Manager."""
        scheme, _, token = (authorization or '').partition(' ')
        if scheme.lower() != 'bearer' or not token:
            raise problem(401, 'AuthenticationFailed',
                          "Authentication failed. The 'Authorization' header is missing.")
        try:
            jwt.decode(token, self._key, ['HS256'], options={'verify_aud': False}, issuer=STS)
        except jwt.ExpiredSignatureError:
            raise problem(*EXPIRED)
        except jwt.InvalidTokenError:
            raise problem(401, 'InvalidAuthenticationToken', 'The access token is invalid.')

    def _sign(self, seconds, **claims):
        now = int(time.time())
        return jwt.encode(dict(claims, iat=now, nbf=now, exp=now + seconds, jti=str(uuid.uuid4())),
                          self._key)

    @staticmethod
    def expiry():
        """When a token that is issued now expires, in seconds since 1970."""
        return int(time.time()) + LIFETIME


@route('GET', SIGN_IN, '/{tenant}/v2.0/.well-known/openid-configuration', signed_in=False)
def configuration(call, tenant):
    check_tenant(tenant)
    root = f'https://{call.host}/{tenant}'
    return {'token_endpoint': root + '/oauth2/v2.0/token', 'issuer': root + '/v2.0',
            'authorization_endpoint': root + '/oauth2/v2.0/authorize'}


@route('GET', SIGN_IN, '/common/discovery/instance', signed_in=False)
def instance(call):
    names = ['login.microsoftonline.com', 'login.windows.net']
    discovery_url = f'https://{names[0]}/{TENANT}/v2.0/.well-known/openid-configuration'
    return {'tenant_discovery_endpoint': discovery_url, 'api-version': '1.1', 'metadata': [{
        'preferred_network': names[0], 'preferred_cache': names[1], 'aliases': names}]}


@route('POST', SIGN_IN, '/{tenant}/oauth2/v2.0/token', signed_in=False)
def token(call, tenant):
    check_tenant(tenant)
    form = call.form
    client = form.get('client_id')
    if form.get('grant_type') != 'client_credentials':
        raise refused(400, 'unsupported_grant_type', 70003,
                      'The app requested an unsupported grant type.')
    if client != CLIENT:
        raise refused(400, 'unauthorized_client', 700016, 'Application with identifier '
                      f"'{client}' was not found in the directory 'Loopback'.")
    if form.get('client_assertion_type') == ASSERTION:
        call.cloud.tokens.check_assertion(form.get('client_assertion', ''))
    elif form.get('client_secret') != call.cloud.tokens.secret:
        raise refused(
            401, 'invalid_client', 7000215,
            'Invalid client secret provided. Ensure the secret being sent in the request is the '
            f"client secret value, not the client secret ID, for a secret added to app '{client}'.")
    audience = form.get('scope', '').replace('/.default', '')
    return {'token_type': 'Bearer', 'expires_in': LIFETIME, 'ext_expires_in': LIFETIME,
            'access_token': call.cloud.tokens.issue(audience)}


@route('POST', DEVOPS, '/{organisation}/{project}/_apis/distributedtask/hubs/{hub}/plans/{plan}'
                       '/jobs/{job}/oidctoken', signed_in=False)
def create_oidc_token(call, job, **_):
    if call.query.get('api-version') not in ('7.1', '7.1-preview.1'):
        raise Answer({'$id': '1', 'message': 'No api-version was supplied that this resource has.',
                      'typeKey': 'VssVersionNotSpecifiedException'}, 400)
    return {'oidcToken': call.cloud.tokens.oidc_token(
        job, call.headers.get('Authorization'), call.query.get('serviceConnectionId'))}


def check_tenant(tenant):
    if tenant not in (TENANT, 'common', 'organizations'):
        raise refused(400, 'invalid_request', 90002, f"Tenant '{tenant}' not found. Check to make "
                      'sure you have the correct tenant ID and are signing into the correct cloud.')


def refused(status, error, code, text):
    return Answer({
        'error': error, 'error_description': f'AADSTS{code}: {text}', 'error_codes': [code],
        'timestamp': time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}, status)
