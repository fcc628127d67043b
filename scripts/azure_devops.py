"""Azure DevOps over REST: find it in the environment, call it, say in words what went wrong.

    client = azure_devops.Client(azure_devops.read_settings(os.environ))
    client.pages('{project}/_apis/policy/configurations', 'list the branch policies', {'id': int})
"""
import collections
import json
import math
import re
import sys
import time
import urllib.parse

import azure_ml
from azure_ml import AzureError
from settings import UNDEFINED_VARIABLE, SettingsError

VERSION = '7.1'
JSON_NAMES = {dict: 'an object', list: 'a list', str: 'text', int: 'a number'}
CONNECT_SECONDS = 10
READ_SECONDS = 30
# Longest wait for one answer, retries and the service's own Retry-After included.
DEADLINE_SECONDS = 120
RETRY_SECONDS = (1, 2, 4)
SCOPES = ('Code (read, write), Build (read, execute), Variable Groups (read, create, manage), '
          'Environment (read, manage), Pipeline Resources (use, manage), '
          'Service Connections (read), Identity (read)')

# What it is, the name for people, the agent's own name, what to set it to.
SETTINGS = (
    ('organisation', 'AZURE_DEVOPS_ORG_URL', 'SYSTEM_COLLECTIONURI',
     'the address of the organisation, such as https://dev.azure.com/contoso'),
    ('project', 'AZURE_DEVOPS_PROJECT', 'SYSTEM_TEAMPROJECT', 'the name of the project'),
    ('repository', 'AZURE_DEVOPS_REPOSITORY', 'BUILD_REPOSITORY_NAME',
     'the name of the repository in Azure Repos'),
    ('token', 'AZURE_DEVOPS_EXT_PAT', 'SYSTEM_ACCESSTOKEN', 'a personal access token'),
)
ON, OFF = ('1', 'true'), ('', '0', 'false')
Settings = collections.namedtuple('Settings', 'organisation project repository token personal '
                                  'branch dry_run')


def read_value(environ, name):
    """A setting, or '' when it is empty or an undefined variable of Azure Pipelines, $(NAME)."""
    value = environ.get(name, '').strip()
    return '' if UNDEFINED_VARIABLE.fullmatch(value) else value


def is_organisation(address):
    """Whether this is https (a token travels with every call) and ends where projects begin."""
    url = urllib.parse.urlsplit(address)
    local = url.hostname in ('127.0.0.1', 'localhost')
    names = [name for name in url.path.split('/') if name]
    return (bool(url.hostname) and '@' not in url.netloc and '_git' not in names
            and not url.query and not url.fragment
            and (url.scheme == 'https' or url.scheme == 'http' and local)
            and (url.hostname != 'dev.azure.com' or len(names) == 1))


def read_settings(environ):
    """Where to work and how, from the environment. Raises SettingsError with all problems."""
    found, problems = {}, []
    for key, name, agents, meaning in SETTINGS:
        found[key] = read_value(environ, name) or read_value(environ, agents)
        if not found[key]:
            problems.append(f'{name} is not set (in Azure Pipelines: {agents}): {meaning}')
    if found['organisation'] and not is_organisation(found['organisation']):
        # The value is not shown: a pasted clone URL may hold a token.
        problems.append("AZURE_DEVOPS_ORG_URL must be an organisation's address in https, like "
                        'https://dev.azure.com/contoso, without user, project or repository')
    if found['token'] and not re.fullmatch('[!-~]+', found['token']):
        problems.append('AZURE_DEVOPS_EXT_PAT holds characters that no token has: paste it again')
    branch = re.sub('^refs/heads/', '', read_value(environ, 'BRANCH') or 'master')
    dry_run = read_value(environ, 'DRY_RUN').lower()
    if dry_run not in ON + OFF:
        problems.append(f'DRY_RUN is {dry_run!r}: it must be 1 or 0')
    if problems:
        plural, listed = 's' * (len(problems) > 1), '\n  '.join(problems)
        raise SettingsError(f'{len(problems)} setting{plural} to correct in the environment:\n'
                            f'  {listed}')
    found['organisation'] = found['organisation'].rstrip('/')
    return Settings(personal=bool(read_value(environ, 'AZURE_DEVOPS_EXT_PAT')), branch=branch,
                    dry_run=dry_run in ON, **found)


def portal_page(settings, *parts):
    """The address of a page of the portal, inside the project."""
    return '/'.join([settings.organisation, urllib.parse.quote(settings.project)] + list(parts))


def error_words(response):
    """(message, typeKey) of an error answer, each '' when the service says none.

    Form, of recorded answers: {"$id", "innerException", "message", "typeName", "typeKey", ...}.
    """
    answer = azure_ml.json_object(response)
    return azure_ml.sentence(answer.get('message') or ''), str(answer.get('typeKey', ''))


def check_answer(answer, fields, doing, path=''):
    """Raise AzureError unless an answer has what the caller counts on.

    fields: a type, [fields of each item] or {name: fields}; 'name?' may be missing or null, and '*'
    stands for all names. doing: what was asked for. Returns the answer.
    """
    kind = fields if isinstance(fields, type) else type(fields)
    if not isinstance(answer, kind):
        what = 'is missing' if answer is None else f'is {json.dumps(answer)[:60]}'
        raise AzureError(f'Azure DevOps was asked to {doing}, and its answer cannot be used: '
                         f"{path or 'all of it'} {what} and must be {JSON_NAMES[kind]}.")
    if isinstance(fields, list):
        for number, item in enumerate(answer):
            check_answer(item, fields[0], doing, f'{path}[{number}]')
    elif isinstance(fields, dict):
        for name, inner in fields.items():
            for key in list(answer) if name == '*' else [name.rstrip('?')]:
                if answer.get(key) is not None or not name.endswith('?'):
                    check_answer(answer.get(key), inner, doing, f'{path}.{key}'.lstrip('.'))
    return answer


class Client:
    """Calls to one organisation and project. `{project}` in a path is the project's name.

    changes: how many things put_right changed, or would change without DRY_RUN=1.
    """

    def __init__(self, settings):
        import requests
        self.settings, self.changes = settings, 0
        self.session = requests.Session()
        self.session.headers.update({'Accept': 'application/json',
                                     # 401 rather than a redirect to the sign-in page
                                     'X-TFS-FedAuthRedirect': 'Suppress'})
        # The agent's own token too: Microsoft's command line knows only this way for both.
        self.session.auth = ('', settings.token)

    def pages(self, path, doing, fields, query=None, **more):
        """All items of a list, over all its pages. fields: of an item, see check_answer."""
        query = dict(query or {})
        items, tokens = [], set()
        while True:
            answer, token = self._call('GET', path, doing, None, query, **more)
            items += check_answer(answer, {'value': [fields]}, doing)['value']
            if not token or token in tokens:
                return items
            tokens.add(token)
            query['continuationToken'] = token

    def call(self, method, path, doing, body=None, query=None, fields=None, **more):
        """One call.

        doing: finishes 'no permission to ...'; fields: what the answer must have, see check_answer,
        or None when it does not matter; needs: the permission to ask for; version: the api-version;
        base: another service's address. Returns the JSON of the answer. Raises AzureError.
        """
        answer, _ = self._call(method, path, doing, body, query, **more)
        return answer if fields is None else check_answer(answer, fields, doing)

    def put_right(self, name, existing, differences, body, path, update='PUT', **more):
        """Create a thing when `existing` is None, update it when something differs; print it.

        differences: lines for people; update: the method that does it. Returns the thing as it is
        then: in a dry run as it was, {} for nothing.
        """
        verb = 'create' if existing is None else 'update' if differences else 'ok'
        kept = existing or {}
        number = kept.get('id')
        self.changes += verb != 'ok'
        if verb != 'ok' and not self.settings.dry_run:
            kept = self.call('POST' if verb == 'create' else update,
                             f'{path}/{number}' if number else path, f'{verb} the {name}', body,
                             **more)
        print(f'  {verb:8}{name}' + (f' (id {number})' if number else ''))
        for line in differences:
            print('            ' + line)
        return kept

    def summary(self):
        """The last line: what put_right did or would do."""
        if not self.changes:
            return 'Nothing to change.'
        things = f"{self.changes} thing{'s' * (self.changes > 1)}"
        if self.settings.dry_run:
            return f'Dry run: nothing was changed. Without DRY_RUN=1 this changes {things}.'
        return f'Changed {things}.'

    def _call(self, method, path, doing, body, query, needs=None, version=VERSION, base=None):
        import requests
        project = urllib.parse.quote(self.settings.project, safe='')
        url = f"{(base or self.settings.organisation).rstrip('/')}/{path}".replace(
            '{project}', project)
        query = dict(query or {}, **{'api-version': version})
        started = time.monotonic()
        # After the last try no wait is short enough.
        for wait in RETRY_SECONDS + (math.inf,):
            try:
                response = self.session.request(
                    method, url, params=query, json=body, allow_redirects=False,
                    timeout=(CONNECT_SECONDS, READ_SECONDS))
            except requests.RequestException as error:
                problem = azure_ml.explain(doing, error)
            else:
                if response.status_code not in azure_ml.TRANSIENT:
                    return self._answer(response, doing, needs)
                problem = self._refused(response, doing, needs)
                asked = response.headers.get('Retry-After', '')
                wait = max(wait, int(asked) if asked.isdigit() else 0)
            # What was sent may have been done: a POST is repeated only when it was turned away.
            again = method != 'POST' or problem.status == 429
            if not again or time.monotonic() - started + wait > DEADLINE_SECONDS:
                raise problem
            print(f'{str(problem).splitlines()[0]} (trying again in {wait} s)', file=sys.stderr)
            time.sleep(wait)

    def _answer(self, response, doing, needs):
        status, page = response.status_code, 'html' in response.headers.get('Content-Type', '')
        if status in (203, 401) or 300 <= status < 400 or status == 200 and page:
            raise self._signed_out(response)
        if status not in (200, 201, 204):
            raise self._refused(response, doing, needs)
        try:
            answer = azure_ml.decode_json(response) if response.content.strip() else None
            return answer, response.headers.get('x-ms-continuationtoken')
        except (ValueError, RecursionError):
            raise AzureError(
                f'The answer to the attempt to {doing} is not JSON but '
                f"{response.headers.get('Content-Type', 'of no type')}, {len(response.content)} "
                f'bytes: is there a proxy before {self.settings.organisation}?')

    def _signed_out(self, response):
        kind = {200: 'a sign-in page', 203: 'a sign-in page', 401: ''}.get(
            response.status_code, 'a redirect to sign in')
        how = ', '.join(filter(None, [
            str(response.status_code), kind, error_words(response)[0]]))
        if self.settings.personal:
            text = (f'AZURE_DEVOPS_EXT_PAT is not accepted ({how}): the token is wrong, expired, '
                    'of another organisation or lacks a scope. Make one at '
                    f'{self.settings.organisation}/_usersSettings/tokens with the scopes {SCOPES}.')
        else:
            text = (f'SYSTEM_ACCESSTOKEN is not accepted ({how}). It ends with its job, and the '
                    'step must ask for it: env: SYSTEM_ACCESSTOKEN: $(System.AccessToken).')
        return AzureError(text, response.status_code)

    def _refused(self, response, doing, needs):
        """The sentence for an error status, with the service's own words where it has any."""
        status = response.status_code
        words, kind = error_words(response)
        if status == 404 and not words:
            text = f'There is no organisation at {self.settings.organisation} (HTTP 404).'
        elif kind.startswith('ProjectDoesNotExist'):
            text = (f'There is no project {self.settings.project!r} in '
                    f'{self.settings.organisation}, or the owner of the token may not see it '
                    f"({words.split(':')[0]}).")
        elif status == 403:
            text = f"No permission to {doing}: {words or 'HTTP 403.'}"
            text += f' Ask for: {needs}.' if needs else ''
        elif status == 429:
            text = ('Azure DevOps is asked too often (429) and wants a pause of '
                    f"{response.headers.get('Retry-After', 'some')} s.")
        else:
            text = f'Azure DevOps did not {doing} (HTTP {status})'
            text += ': ' + words if words else '.'
        if status in azure_ml.TRANSIENT:
            text += ' Run this again later; nothing is done twice.'
        return AzureError(text, status)
