"""Azure DevOps on loopback: the REST routes that branch-policy and devops-project call.

Plain http on 127.0.0.1. Requests and answers are checked by azure_devops_contract.py. What the
contract cannot say follows recorded answers of the service
(github.com/Azure/azure-devops-cli-extension, its tests).
"""
import collections
import copy
import json
import re
import secrets
import threading
import urllib.parse
import uuid
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .azure_devops_contract import BOOLEANS, POLICY_TYPES, REVIEWERS, SETTINGS, Contract, Refusal

ORGANISATION, PROJECT, REPOSITORY = 'contoso', 'Safe Driver', 'safe-driver'
ROUTES = {}


def route(method, template):
    """The function that answers an operation of the contract."""
    def register(function):
        ROUTES[method, template] = function
        return function
    return register


class AzureDevOps:
    """One organisation with one project and repository, kept in memory. Use as a context manager.

    `env` holds the settings for the scripts. `requests` lists (method, path, body) of all calls.
    """

    def __init__(self):
        self.contract = Contract()
        self.lock = threading.RLock()
        self.page_size = 100
        # Settings of policies that this version of the service does not know, and so drops.
        self.ignores = set()
        self.requests = []
        self.faults = []
        self.numbers = iter(range(1, 10 ** 6))
        self.organisation_id, self.project_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.repositories = []
        self.branches = {}
        self.definitions, self.policies, self.groups = {}, {}, {}
        self.environments, self.checks, self.endpoints = {}, {}, {}
        self.permissions = collections.defaultdict(dict)
        self.secrets = {}
        self.pat, self.system_token = secrets.token_hex(26), secrets.token_hex(40)
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), _Connection)
        self.server.daemon_threads = True
        self.server.service = self
        self.stopping = threading.Event()
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        self.users = self._users()
        self.add_repository(REPOSITORY, ['master'])
        self.env = {'AZURE_DEVOPS_ORG_URL': f'{self.address}/{ORGANISATION}',
                    'AZURE_DEVOPS_PROJECT': PROJECT, 'AZURE_DEVOPS_REPOSITORY': REPOSITORY,
                    'AZURE_DEVOPS_EXT_PAT': self.pat}
        threading.Thread(target=self.server.serve_forever, args=(0.005,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self):
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def _users(self):
        def user(name, descriptor, **more):
            return dict({'id': str(uuid.uuid4()), 'descriptor': descriptor, 'isActive': True,
                         'providerDisplayName': name, 'members': [], 'memberOf': []}, **more)
        build = f'{PROJECT} Build Service ({ORGANISATION})'
        return [
            user('Jane Doe', 'Microsoft.IdentityModel.Claims.ClaimsIdentity;'
                 f'{uuid.uuid4()}\\jane@contoso.com', mail='jane@contoso.com'),
            user('Kim Lee', 'Microsoft.IdentityModel.Claims.ClaimsIdentity;'
                 f'{uuid.uuid4()}\\kim@contoso.com', mail='kim@contoso.com'),
            user(f'[{PROJECT}]\\Contributors', 'Microsoft.TeamFoundation.Identity;S-1-9-1-2',
                 isContainer=True),
            user(self.project_id, 'Microsoft.TeamFoundation.ServiceIdentity;'
                 f'{self.organisation_id}:Build:{self.project_id}', customDisplayName=build),
        ]

    # Put in place what a test or a person wants to find there.

    def number(self):
        return next(self.numbers)

    def add_repository(self, name, branches):
        """A repository; its first branch is the default. Returns it."""
        one = {'id': str(uuid.uuid4()), 'name': name, 'project': {
            'id': self.project_id, 'name': PROJECT, 'state': 'wellFormed'},
            'remoteUrl': f'https://{ORGANISATION}@dev.azure.com/{ORGANISATION}/'
                         f'{urllib.parse.quote(PROJECT)}/_git/{name}'}
        if branches:
            one['defaultBranch'] = 'refs/heads/' + branches[0]
        self.repositories.append(one)
        self.branches[one['id']] = list(branches)
        return one

    def add_pipeline(self, name, yaml, repository=None):
        """A YAML pipeline of the first repository. Returns its definition."""
        repository = repository or self.repositories[0]
        number = self.number()
        self.definitions[number] = {
            'id': number, 'name': name, 'path': '\\', 'type': 'build', 'queueStatus': 'enabled',
            'process': {'type': 2, 'yamlFilename': yaml},
            'repository': {'id': repository['id'], 'name': repository['name'], 'type': 'TfsGit'}}
        return self.definitions[number]

    def add_policy(self, kind, settings, by='Jane Doe', **more):
        """A policy as somebody made it by hand. Returns it as it is kept."""
        number = self.number()
        self.policies[number] = dict({
            'id': number, 'type': {'id': kind, 'displayName': POLICY_TYPES.get(kind, 'Other')},
            'isEnabled': True, 'isBlocking': True, 'isDeleted': False, 'settings': settings,
            'revision': 1, 'createdBy': {'displayName': by, 'id': str(uuid.uuid4())}}, **more)
        return self.policies[number]

    def add_connection(self, name, scheme='ServicePrincipal'):
        """An Azure service connection."""
        number = str(uuid.uuid4())
        self.endpoints[number] = {'id': number, 'name': name, 'type': 'azurerm', 'isReady': True,
                                  'authorization': {'scheme': scheme}}
        return self.endpoints[number]

    def scope(self, branch='master', kind='exact', repository=None):
        """The scope of a policy on a branch."""
        return [{'repositoryId': (repository or self.repositories[0])['id'],
                 'refName': 'refs/heads/' + branch, 'matchKind': kind}]

    def misbehave(self, fault, on='', times=1):
        """Answer the next requests wrongly: a name of FAULTS, a pattern of 'METHOD path'."""
        self.faults.append([FAULTS[fault], on, times])

    def writes(self):
        """The calls so far that could have changed something."""
        return [call for call in self.requests if call[0] != 'GET']

    # Answering.

    def answer(self, method, target, headers, text):
        """(status, headers, body) of one request; a body that is no text is sent as JSON."""
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        try:
            body = json.loads(text) if text else None
        except ValueError:
            return 400, {}, Refusal(400, 'VssRequestContentTypeNotSupportedException',
                                    'The request is not JSON.').body
        with self.lock:
            self.requests.append((method, urllib.parse.unquote(parts.path), body))
            for fault in self.faults:
                if re.search(fault[1], method + ' ' + parts.path) and fault[2] > 0:
                    fault[2] -= 1
                    return fault[0](self)
            try:
                return self._answer(method, parts.path, query, headers, body)
            except Refusal as refusal:
                return refusal.status, refusal.headers, refusal.body

    def _answer(self, method, path, query, headers, body):
        if path.split('/')[1].lower() != ORGANISATION:
            return 404, {}, '<html><title>Not found</title></html>'
        user = self._user(headers.get('Authorization', ''))
        if user is None:
            return 401, {}, ''
        operation, values = self.contract.find(method, path)
        version = query.pop('api-version', None)
        if version != operation.version:
            raise Refusal(400, 'VssVersionNotSpecifiedException', f'api-version is {version!r} '
                          f'and must be {operation.version!r}.')
        if values.get('project', PROJECT).lower() not in (PROJECT.lower(), self.project_id):
            raise Refusal(404, 'ProjectDoesNotExistWithNameException',
                          f"TF200016: The following project does not exist: {values['project']}. "
                          'Verify that the name of the project is correct and that the project '
                          'exists on the specified Azure DevOps Server.')
        wrong = ['unknown query parameter ' + name for name in set(query) - operation.query]
        wrong += ['missing query parameter ' + name for name in operation.required - set(query)]
        if operation.body:
            wrong += self.contract.problems(operation.body, body)
        if wrong:
            raise Refusal(400, 'VssPropertyValidationException', '; '.join(wrong))
        values.pop('organization')
        values.pop('project', None)
        result = ROUTES[method, operation.template](
            self, user=user, query=query, body=body, **values)
        wrong = self.contract.problems(operation.answer, result) if operation.answer else []
        if wrong:
            raise Refusal(500, 'LoopbackException', f'this answer breaks the contract: {wrong}')
        if isinstance(result, list):
            return self._page(result, query, 'continuationToken' in operation.query)
        return 200, {}, result

    def _page(self, items, query, paged):
        start = int(query.get('continuationToken', 0))
        more = {}
        if not paged:
            return 200, more, {'count': len(items), 'value': items}
        if start + self.page_size < len(items):
            more['x-ms-continuationtoken'] = str(start + self.page_size)
        page = items[start:start + self.page_size]
        return 200, more, {'count': len(page), 'value': page}

    def _user(self, authorization):
        kind, _, value = authorization.partition(' ')
        if kind == 'Bearer' and value == self.system_token:
            return self.users[-1]
        if kind == 'Basic' and b64decode(value).decode().partition(':')[2] == self.pat:
            return self.users[0]
        return None

    def find(self, table, number):
        """An entry by the number in the path. Raises Refusal."""
        try:
            return table[int(number)]
        except (KeyError, ValueError):
            raise Refusal(404, 'VssServiceException', f'There is nothing with the id {number}.')


@route('GET', '/{organization}/_apis/connectionData')
def _connection_data(service, user, **_):
    return {'authenticatedUser': user, 'authorizedUser': user,
            'instanceId': service.organisation_id}


@route('GET', '/{organization}/_apis/resourceAreas/{areaId}')
def _resource_area(service, areaId, **_):
    return {'id': areaId, 'name': 'IMS', 'locationUrl': f'{service.address}/{ORGANISATION}/'}


@route('GET', '/{organization}/_apis/identities')
def _identities(service, query, **_):
    wanted = query['filterValue'].lower()
    names = ('providerDisplayName', 'customDisplayName', 'mail')
    return [user for user in service.users
            if any(wanted == user.get(name, '').lower() for name in names)]


@route('GET', '/{organization}/{project}/_apis/git/repositories')
def _repositories(service, **_):
    return service.repositories


@route('GET', '/{organization}/{project}/_apis/git/repositories/{repositoryId}/refs')
def _refs(service, query, repositoryId, **_):
    if repositoryId not in service.branches:
        raise Refusal(404, 'GitRepositoryNotFoundException', 'TF401019: The Git repository with '
                      f'name or identifier {repositoryId} does not exist or you do not have '
                      'permissions for the operation you are attempting.')
    return [{'name': 'refs/heads/' + name, 'objectId': '0' * 40}
            for name in service.branches[repositoryId]
            if ('heads/' + name).startswith(query.get('filter', ''))]


@route('GET', '/{organization}/{project}/_apis/build/definitions')
def _definitions(service, query, **_):
    known = [one for one in service.definitions.values()
             if one['repository']['id'] == query.get('repositoryId', one['repository']['id'])]
    if query.get('includeLatestBuilds') != 'true':
        known = [{key: one[key] for key in one if key != 'latestBuild'} for one in known]
    if query.get('includeAllProperties') == 'true':
        return known
    return [{key: value for key, value in one.items() if key not in ('process', 'repository')}
            for one in known]


@route('POST', '/{organization}/{project}/_apis/pipelines')
def _create_pipeline(service, body, **_):
    if any(one['name'].lower() == body['name'].lower() for one in service.definitions.values()):
        raise Refusal(409, 'DefinitionExistsException', f"The build pipeline {body['name']} "
                      f"already exists in folder {body['folder']}.")
    repository = [one for one in service.repositories
                  if one['id'] == body['configuration']['repository']['id']]
    if not repository:
        raise Refusal(400, 'PipelineValidationException', 'There is no such repository.')
    made = service.add_pipeline(body['name'], body['configuration']['path'], repository[0])
    return {'id': made['id'], 'name': made['name'], 'folder': body['folder'], 'revision': 1,
            'configuration': body['configuration']}


def _policy_as_kept(service, body):
    """What the service makes of a policy: one word in another spelling, and gaps filled or left."""
    kind = body['type']['id']
    if kind not in SETTINGS:
        raise Refusal(404, 'PolicyTypeNotFoundException',
                      f'TF402455: There is no policy type {kind}.')
    wrong = service.contract.problems(SETTINGS[kind], body['settings'])
    if wrong:
        raise Refusal(400, 'InvalidPolicyConfigurationException', '; '.join(wrong))
    number = body['settings'].get('buildDefinitionId')
    if number is not None and number not in service.definitions:
        raise Refusal(400, 'InvalidPolicyConfigurationException',
                      f'There is no build definition {number}.')
    settings = {key: value for key, value in body['settings'].items()
                if value and key not in service.ignores}
    if kind == REVIEWERS:
        settings = dict({name: False for name in BOOLEANS[kind]}, **settings)
    settings['scope'] = [dict(one, matchKind=one.get('matchKind', 'exact').capitalize())
                         for one in body['settings']['scope']]
    return {'type': {'id': kind, 'displayName': POLICY_TYPES[kind]}, 'settings': settings,
            'isEnabled': body.get('isEnabled', False), 'isBlocking': body.get('isBlocking', False)}


@route('GET', '/{organization}/{project}/_apis/policy/configurations')
def _policies(service, **_):
    return list(service.policies.values())


@route('POST', '/{organization}/{project}/_apis/policy/configurations')
def _create_policy(service, user, body, **_):
    kept = _policy_as_kept(service, body)
    made = service.add_policy(kept['type']['id'], kept['settings'], user['providerDisplayName'])
    made.update(kept)
    return made


@route('PUT', '/{organization}/{project}/_apis/policy/configurations/{configurationId}')
def _update_policy(service, configurationId, body, **_):
    policy = service.find(service.policies, configurationId)
    kept = _policy_as_kept(service, body)
    policy.update(kept, revision=policy['revision'] + 1)
    return policy


def _shown(group, references):
    """A variable group as it is read: secrets without value; a list leaves out the projects."""
    group = copy.deepcopy(group)
    for one in group['variables'].values():
        if one.get('isSecret'):
            one['value'] = None
    if not references:
        group['variableGroupProjectReferences'] = None
    return group


def _keep_group(service, number, body):
    old = service.groups.get(number, {}).get('variables', {})
    variables = {}
    for name, one in body['variables'].items():
        # Recorded: a secret that comes without a value keeps its own. A null is taken at its word.
        if one.get('isSecret') and 'value' not in one:
            one = dict(one, value=old.get(name, {}).get('value', ''))
        variables[name] = one
    if not body.get('variableGroupProjectReferences'):
        # As the service does, oddly: vsts-rest-api-specs issue 531.
        raise Refusal(401, 'UnauthorizedAccessException', 'No project reference is given.')
    service.groups[number] = dict(body, id=number, variables=variables)
    return _shown(service.groups[number], True)


@route('GET', '/{organization}/{project}/_apis/distributedtask/variablegroups')
def _groups(service, query, **_):
    return [_shown(group, False) for group in service.groups.values()
            if group['name'].lower() == query.get('groupName', group['name']).lower()]


@route('GET', '/{organization}/{project}/_apis/distributedtask/variablegroups/{groupId}')
def _group(service, groupId, **_):
    return _shown(service.find(service.groups, groupId), True)


@route('POST', '/{organization}/_apis/distributedtask/variablegroups')
def _create_group(service, body, **_):
    if any(one['name'].lower() == body['name'].lower() for one in service.groups.values()):
        raise Refusal(409, 'VariableGroupExistsException', 'Variable group with name '
                      f"{body['name']} already exists.")
    return _keep_group(service, service.number(), body)


@route('PUT', '/{organization}/_apis/distributedtask/variablegroups/{groupId}')
def _update_group(service, groupId, body, **_):
    return _keep_group(service, service.find(service.groups, groupId)['id'], body)


@route('GET', '/{organization}/{project}/_apis/distributedtask/environments')
def _environments(service, query, **_):
    # By the beginning of the name, as the search box of the portal.
    return [one for one in service.environments.values()
            if one['name'].lower().startswith(query.get('name', '').lower())]


@route('POST', '/{organization}/{project}/_apis/distributedtask/environments')
def _create_environment(service, body, **_):
    if any(one['name'] == body['name'] for one in service.environments.values()):
        raise Refusal(409, 'EnvironmentExistsException',
                      f"Environment {body['name']} already exists.")
    number = service.number()
    service.environments[number] = dict(body, id=number)
    return service.environments[number]


@route('GET', '/{organization}/{project}/_apis/pipelines/checks/configurations')
def _checks(service, query, **_):
    found = [one for one in service.checks.values()
             if one['resource']['type'] == query.get('resourceType')
             and one['resource']['id'] == query.get('resourceId')]
    if query.get('$expand') == 'settings':
        return found
    return [{key: value for key, value in one.items() if key != 'settings'} for one in found]


@route('POST', '/{organization}/{project}/_apis/pipelines/checks/configurations')
def _create_check(service, body, **_):
    number = service.number()
    service.checks[number] = dict(body, id=number)
    return service.checks[number]


@route('PATCH', '/{organization}/{project}/_apis/pipelines/checks/configurations/{id}')
def _update_check(service, id, body, **_):
    check = service.find(service.checks, id)
    check.update(body)
    return check


RESOURCE = ('/{organization}/{project}/_apis/pipelines/pipelinepermissions/{resourceType}/'
            '{resourceId}')


def _resource(service, kind, number):
    tables = {'variablegroup': service.groups, 'environment': service.environments,
              'endpoint': service.endpoints}
    if str(number) not in map(str, tables.get(kind, ())):
        raise Refusal(404, 'VssServiceException', f'There is no {kind} {number}.')
    return {'resource': {'type': kind, 'id': number},
            'pipelines': [{'id': one, 'authorized': True}
                          for one, yes in service.permissions[kind, number].items() if yes]}


@route('GET', RESOURCE)
def _permission(service, resourceType, resourceId, **_):
    return _resource(service, resourceType, resourceId)


@route('PATCH', RESOURCE)
def _permit(service, resourceType, resourceId, body, **_):
    _resource(service, resourceType, resourceId)
    for one in body['pipelines']:
        service.find(service.definitions, one['id'])
        service.permissions[resourceType, resourceId][one['id']] = one['authorized']
    return _resource(service, resourceType, resourceId)


@route('GET', '/{organization}/{project}/_apis/serviceendpoint/endpoints')
def _endpoints(service, query, **_):
    return [one for one in service.endpoints.values()
            if one['name'] in query['endpointNames'].split(',')]


SIGN_IN_PAGE = '<html><head><title>Azure DevOps Services | Sign In</title></head></html>'


def _stall(service):
    service.lock.release()
    try:
        service.stopping.wait()
    finally:
        service.lock.acquire()
    return None


def _refused(status, key, message, headers=None):
    return lambda service: (status, headers or {}, Refusal(status, key, message).body)


# Wrong answers, as they were met or recorded.
FAULTS = {
    'expired': lambda service: (401, {}, ''),
    'redirect': lambda service: (302, {'Location': service.address + '/_signin?realm=x'}, ''),
    'sign-in page': lambda service: (203, {}, SIGN_IN_PAGE),
    'anonymous page': lambda service: (200, {}, SIGN_IN_PAGE),
    'no permission': _refused(
        403, 'GitNeedsPermissionException', "TF401027: You need the Git 'EditPolicies' permission "
        "to perform this action. Details: identity 'jane@contoso.com', scope 'branch'."),
    'no access': _refused(403, 'UnauthorizedRequestException', 'TF400813: The user '
                          "'jane@contoso.com' is not authorized to access this resource."),
    'busy': _refused(429, 'RequestBlockedException', 'TF400733: The request has been canceled: '
                     'Request was blocked due to exceeding usage of resource.',
                     {'Retry-After': '1'}),
    'busy for long': _refused(429, 'RequestBlockedException', 'TF400733: The request has been '
                              'canceled.', {'Retry-After': '900'}),
    'broken': _refused(500, 'VssServiceException', 'TF400898: An Internal Error Occurred.'),
    'stopped': _refused(503, 'VssServiceException', 'TF24668: The following team project '
                        'collection is stopped: contoso.'),
    'not JSON': lambda service: (200, {'Content-Type': 'text/plain'}, 'welcome to the cafe'),
    'no list': lambda service: (200, {}, {'message': 'hello'}),
    'stalled': _stall,
}


class _Connection(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def _serve(self):
        length = int(self.headers.get('Content-Length') or 0)
        answer = self.server.service.answer(self.command, self.path, self.headers,
                                            self.rfile.read(length).decode())
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        kind = 'text/html' if isinstance(body, str) else 'application/json; charset=utf-8'
        if not isinstance(body, str):
            # Some of the service's errors begin with a byte order mark: so do all here.
            body = ('\ufeff' if status >= 400 else '') + json.dumps(body)
        content = body.encode()
        self.send_response(status)
        for name, value in dict({'Content-Type': kind}, **headers).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _serve

    def log_message(self, *args):
        pass
