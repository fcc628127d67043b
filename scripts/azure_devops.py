"""Azure DevOps over REST: find it in the environment, call it, say in words what went wrong.

    client = azure_devops.Client(azure_devops.read_settings(os.environ))
    client.pages('{project}/_apis/policy/configurations', 'list the branch policies')
"""
import collections
import json
import re
import sys
import time
import urllib.parse

from settings import UNDEFINED_VARIABLE, SettingsError

VERSION = '7.1'
CONNECT_SECONDS = 10
READ_SECONDS = 30
# Longest wait for one answer, retries and the service's own Retry-After included.
DEADLINE_SECONDS = 120
RETRY_SECONDS = (1, 2, 4)
TRANSIENT = (429, 500, 502, 503, 504)
IDENTITIES = '8a3d49b8-91f0-46ef-b33d-dda338c25db3'
SCOPES = ('Code (read, write), Build (read, execute), Variable Groups (read, create, manage), '
          'Environment (read, manage), Pipeline Resources (use, manage), '
          'Service Connections (read), Identity (read); for DENY_BYPASS=1 also Security (manage)')

# What it is, the name for people, the agent's own name, what to set it to.
SETTINGS = (
    ('organisation', 'AZURE_DEVOPS_ORG_URL', 'SYSTEM_COLLECTIONURI',
     'the address of the organisation, such as https://dev.azure.com/contoso'),
    ('project', 'AZURE_DEVOPS_PROJECT', 'SYSTEM_TEAMPROJECT', 'the name of the project'),
    ('repository', 'AZURE_DEVOPS_REPOSITORY', 'BUILD_REPOSITORY_NAME',
     'the name of the repository in Azure Repos'),
    ('token', 'AZURE_DEVOPS_EXT_PAT', 'SYSTEM_ACCESSTOKEN', 'a personal access token'),
)
SWITCHES = ('DRY_RUN', 'DENY_BYPASS')
ON, OFF = ('1', 'true'), ('', '0', 'false')
Settings = collections.namedtuple('Place', 'organisation project repository token personal branch '
                                  'dry_run deny_bypass')


class AzureDevOpsError(Exception):
    """What was wrong and what to do, for a person. status: of HTTP, or None."""

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


def given(environ, name):
    """A setting, or '' when it is empty or an undefined variable of Azure Pipelines, $(NAME)."""
    value = environ.get(name, '').strip()
    return '' if UNDEFINED_VARIABLE.fullmatch(value) else value


def is_organisation(address):
    """Whether this is https (a token travels with every call) and ends where projects begin."""
    url = urllib.parse.urlsplit(address)
    local = url.hostname in ('127.0.0.1', 'localhost')
    names = [name for name in url.path.split('/') if name]
    return (bool(url.hostname) and '@' not in url.netloc and '_git' not in names
            and (url.scheme == 'https' or url.scheme == 'http' and local)
            and (url.hostname != 'dev.azure.com' or len(names) == 1))


def read_settings(environ):
    """Where to work and how, from the environment. Raises SettingsError with all problems."""
    found, problems = {}, []
    for key, name, agents, meaning in SETTINGS:
        found[key] = given(environ, name) or given(environ, agents)
        if not found[key]:
            problems.append(f'{name} is not set (in Azure Pipelines: {agents}): {meaning}')
    if found['organisation'] and not is_organisation(found['organisation']):
        # The value is not shown: a pasted clone URL may hold a token.
        problems.append('AZURE_DEVOPS_ORG_URL is not the address of an organisation: it must be '
                        'like https://dev.azure.com/contoso, without user, project or repository')
    if found['token'] and not re.fullmatch('[!-~]+', found['token']):
        problems.append('AZURE_DEVOPS_EXT_PAT holds characters that no token has: paste it again')
    branch = given(environ, 'BRANCH') or 'master'
    if branch.startswith('refs/heads/'):
        branch = branch[len('refs/heads/'):]
    switches = [given(environ, name).lower() for name in SWITCHES]
    problems += [f'{name} is {value!r}: it must be 1 or 0'
                 for name, value in zip(SWITCHES, switches) if value not in ON + OFF]
    if problems:
        plural, listed = 's' * (len(problems) > 1), '\n  '.join(problems)
        raise SettingsError(f'{len(problems)} setting{plural} to correct in the environment:\n'
                            f'  {listed}')
    return Settings(found['organisation'].rstrip('/'), found['project'], found['repository'],
                    found['token'], bool(given(environ, 'AZURE_DEVOPS_EXT_PAT')), branch,
                    *[value in ON for value in switches])


def web(here, *parts):
    """The address of a page of the portal, inside the project."""
    return '/'.join([here.organisation, urllib.parse.quote(here.project)] + list(parts))


def decoded(response):
    """The JSON of an answer, None without a body. Raises ValueError when it is something else."""
    if not response.content.strip():
        return None
    # Some answers of the service begin with a byte order mark.
    return json.loads(response.content.decode('utf-8-sig'))


def reason(response):
    """(message, typeKey) of an error answer, each '' when the service says none.

    Form, of recorded answers: {"$id", "innerException", "message", "typeName", "typeKey", ...}.
    """
    try:
        answer = decoded(response)
        return str(answer['message']).strip(), str(answer.get('typeKey', ''))
    except (ValueError, TypeError, KeyError):
        return '', ''


class Client:
    """Calls to one organisation and project. `{project}` in a path is the project's name."""

    def __init__(self, here):
        import requests
        self.here = here
        self.session = requests.Session()
        self.session.headers.update({'Accept': 'application/json',
                                     # 401 rather than a redirect to the sign-in page
                                     'X-TFS-FedAuthRedirect': 'Suppress'})
        self.session.auth = self._sign

    def _sign(self, request):
        """Basic with an empty user name for a personal token, Bearer for the agent's own."""
        import requests
        if self.here.personal:
            return requests.auth.HTTPBasicAuth('', self.here.token)(request)
        request.headers['Authorization'] = 'Bearer ' + self.here.token
        return request

    def pages(self, path, doing, query=None, **more):
        """All items of a list, over all its pages."""
        query = dict(query or {})
        items, tokens = [], set()
        while True:
            answer, token = self._call('GET', path, doing, None, query, **more)
            if not isinstance(answer, dict) or not isinstance(answer.get('value'), list):
                raise AzureDevOpsError(f'Azure DevOps sent no list when asked to {doing}.')
            items += answer['value']
            if not token or token in tokens:
                return items
            tokens.add(token)
            query['continuationToken'] = token

    def call(self, method, path, doing, body=None, query=None, **more):
        """One call.

        doing: finishes 'no permission to ...'; needs: the permission to ask for; version: the
        api-version; base: another service's address. Returns the JSON of the answer. Raises
        AzureDevOpsError.
        """
        return self._call(method, path, doing, body, query, **more)[0]

    def identities(self, search, doing):
        """Users and groups whose name or mail address is `search`."""
        area = self.call('GET', '_apis/resourceAreas/' + IDENTITIES, doing,
                         version='7.1-preview.1')
        # Azure DevOps Server has no separate host for identities and sends null.
        base = (area or {}).get('locationUrl') or self.here.organisation
        return self.pages('_apis/identities', doing, {'searchFilter': 'General',
                                                      'filterValue': search}, base=base)

    def _call(self, method, path, doing, body, query, needs=None, version=VERSION, base=None):
        import requests
        project = urllib.parse.quote(self.here.project, safe='')
        url = f"{(base or self.here.organisation).rstrip('/')}/{path}"
        url = url.replace('{project}', project)
        query = dict(query or {}, **{'api-version': version})
        started = time.monotonic()
        for pause in RETRY_SECONDS + (None,):
            wait = pause
            try:
                response = self.session.request(
                    method, url, params=query, json=body, allow_redirects=False,
                    timeout=(CONNECT_SECONDS, READ_SECONDS))
            except requests.RequestException as error:
                problem = self._unreachable(error, doing)
                # What was sent may have been done: a POST is not sent twice.
                again = method != 'POST'
            else:
                status = response.status_code
                if status not in TRANSIENT:
                    return self._answer(response, doing, needs)
                problem = self._refused(response, doing, needs)
                again = status == 429 or method != 'POST'
                asked = response.headers.get('Retry-After', '')
                if pause is not None and asked.isdigit():
                    wait = max(pause, int(asked))
            if not again or wait is None or (
                    time.monotonic() - started + wait > DEADLINE_SECONDS):
                raise problem
            print(f'{problem} (trying again in {wait} s)', file=sys.stderr)
            time.sleep(wait)

    def _answer(self, response, doing, needs):
        signed_out = response.status_code in (203, 401) or 300 <= response.status_code < 400
        page = 'html' in response.headers.get('Content-Type', '')
        if signed_out or response.status_code == 200 and page:
            raise self._signed_out(response, page)
        if response.status_code not in (200, 201, 204):
            raise self._refused(response, doing, needs)
        try:
            return decoded(response), response.headers.get('x-ms-continuationtoken')
        except ValueError:
            raise AzureDevOpsError(
                f'The answer to the attempt to {doing} is not JSON but '
                f"{response.headers.get('Content-Type', 'of no type')}, {len(response.content)} "
                f'bytes: is there a proxy before {self.here.organisation}?')

    def _signed_out(self, response, page):
        how = str(response.status_code)
        if response.status_code != 401:
            how += ', a sign-in page' if page and response.status_code < 300 else (
                ', a redirect to sign in')
        words = reason(response)[0]
        if words:
            how += ', ' + words
        if self.here.personal:
            text = (f'AZURE_DEVOPS_EXT_PAT is not accepted ({how}): the token is wrong, expired, '
                    'of another organisation or lacks a scope. Make one at '
                    f'{self.here.organisation}/_usersSettings/tokens with the scopes {SCOPES}.')
        else:
            text = (f'SYSTEM_ACCESSTOKEN is not accepted ({how}). It ends with its job, and the '
                    'step must ask for it: env: SYSTEM_ACCESSTOKEN: $(System.AccessToken).')
        return AzureDevOpsError(text, response.status_code)

    def _unreachable(self, error, doing):
        import requests
        host = urllib.parse.urlsplit(self.here.organisation).netloc
        if isinstance(error, requests.exceptions.SSLError):
            return AzureDevOpsError(f'The certificate of {host} is not trusted. Behind a proxy '
                                    'that reads TLS, put its authority in REQUESTS_CA_BUNDLE.')
        if isinstance(error, requests.ReadTimeout):
            return AzureDevOpsError(f'No answer from {host} within {READ_SECONDS:g} s to the '
                                    f'attempt to {doing}.')
        cause = error.args[0] if error.args else error
        cause = str(getattr(cause, 'reason', cause)).rsplit(': ', 1)[-1].strip('()\'"')
        return AzureDevOpsError(f'Cannot reach {host} to {doing}: {cause}.')

    def _refused(self, response, doing, needs):
        """The sentence for an error status, with the service's own words where it has any."""
        status = response.status_code
        words, kind = reason(response)
        if status == 404 and not words:
            text = f'There is no organisation at {self.here.organisation} (HTTP 404).'
        elif kind.startswith('ProjectDoesNotExist'):
            text = (f'There is no project {self.here.project!r} in {self.here.organisation}, or '
                    f"the owner of the token may not see it ({words.split(':')[0]}).")
        elif status == 403:
            text = f"No permission to {doing}: {words or 'HTTP 403.'}"
            if needs:
                text += f' Ask for: {needs}.'
        elif status == 429:
            text = ('Azure DevOps is asked too often (429) and wants a pause of '
                    f"{response.headers.get('Retry-After', 'some')} s.")
        else:
            text = f'Azure DevOps did not {doing} (HTTP {status})'
            text += ': ' + words if words else '.'
        if status in TRANSIENT:
            text += ' Run this again later; nothing is done twice.'
        return AzureDevOpsError(text, status)
