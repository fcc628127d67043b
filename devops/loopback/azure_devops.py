"""Azure DevOps on loopback: the REST routes that branch-policy and devops-project call.

Plain http on 127.0.0.1. Requests and answers are checked by azure_devops_contract.py. What the
contract cannot say follows recorded answers of the service
(github.com/Azure/azure-devops-cli-extension, its tests).
"""
import collections
import itertools
import json
import re
import secrets
import threading
import urllib.parse
import uuid
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .azure_devops_contract import (
    POLICY_TYPES, REVIEWERS, REVIEWERS_SWITCHES, SETTINGS, Refusal, find, problems)

ORGANISATION, PROJECT, REPOSITORY = 'contoso', 'Safe Driver', 'safe-driver'
ROUTES = {}


def route(method, path):
    """The function that answers an operation of the contract; path: below the organisation."""
    def register(function):
        ROUTES[method, '/{organization}/' + path] = function
        return function
    return register


class AzureDevOps(ThreadingHTTPServer):
    """One organisation with one project and repository, kept in memory. Use as a context manager.

    `env` holds the settings for the scripts. `requests` lists (method, path, body) of all calls.
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Connection)
        self.address = f'http://127.0.0.1:{self.server_port}'
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.page_size = 100
        # Settings of policies that this version of the service does not know, and so drops.
        self.ignores = set()
        self.requests, self.faults = [], []
        self.numbers = itertools.count(1)
        self.organisation_id, self.project_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.repositories, self.branches = [], {}
        self.definitions, self.policies, self.groups = {}, {}, {}
        self.environments, self.checks, self.endpoints = {}, {}, {}
        self.permissions = collections.defaultdict(dict)
        self.users = self._users()
        self.pat, self.system_token = secrets.token_hex(26), secrets.token_hex(40)
        self.signed_in = {
            'Basic ' + b64encode(f':{token}'.encode()).decode(): user for token, user in (
                (self.pat, self.users[0]), (self.system_token, self.users[-1]))}
        self.add_repository(REPOSITORY, ['master'])
        self.env = {'AZURE_DEVOPS_ORG_URL': f'{self.address}/{ORGANISATION}',
                    'AZURE_DEVOPS_PROJECT': PROJECT, 'AZURE_DEVOPS_REPOSITORY': REPOSITORY,
                    'AZURE_DEVOPS_EXT_PAT': self.pat}
        threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True).start()

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def _users(self):
        claims = f'Microsoft.IdentityModel.Claims.ClaimsIdentity;{uuid.uuid4()}'
        group = 'Microsoft.TeamFoundation.Identity;S-1-9-1-2'
        service = f'Microsoft.TeamFoundation.ServiceIdentity;{self.organisation_id}:Build'
        return [dict(user, id=str(uuid.uuid4())) for user in (
            {'providerDisplayName': 'Jane Doe', 'mail': 'jane@contoso.com',
             'descriptor': claims + '\\jane@contoso.com'},
            {'providerDisplayName': 'Kim Lee', 'mail': 'kim@contoso.com',
             'descriptor': claims + '\\kim@contoso.com'},
            {'providerDisplayName': f'[{PROJECT}]\\Contributors', 'descriptor': group},
            {'providerDisplayName': self.project_id,
             'customDisplayName': f'{PROJECT} Build Service ({ORGANISATION})',
             'descriptor': f'{service}:{self.project_id}'})]

    # Put in place what a test or a person wants to find there.

    def add(self, table, document):
        """Keep a document under the next number, its id. Returns it as it is kept."""
        number = next(self.numbers)
        table[number] = dict(document, id=number)
        return table[number]

    def add_repository(self, name, branches):
        """A repository; its first branch is the default."""
        one = {'id': str(uuid.uuid4()), 'name': name, 'defaultBranch': 'refs/heads/' + branches[0],
               'project': {'id': self.project_id, 'name': PROJECT, 'state': 'wellFormed'},
               'remoteUrl': f'https://{ORGANISATION}@dev.azure.com/{ORGANISATION}/'
                            f'{urllib.parse.quote(PROJECT)}/_git/{name}'}
        self.repositories.append(one)
        self.branches[one['id']] = branches
        return one

    def add_pipeline(self, name, yaml, repository=None):
        """A YAML pipeline, of the first repository unless given."""
        repository = repository or self.repositories[0]
        return self.add(self.definitions, {
            'name': name, 'path': '\\', 'type': 'build', 'queueStatus': 'enabled',
            'process': {'type': 2, 'yamlFilename': yaml},
            'repository': {'id': repository['id'], 'name': repository['name'], 'type': 'TfsGit'}})

    def add_policy(self, kind, settings, by='Jane Doe', **more):
        """A policy as somebody made it by hand."""
        return self.add(self.policies, dict({
            'type': {'id': kind, 'displayName': POLICY_TYPES[kind]}, 'settings': settings,
            'isEnabled': True, 'isBlocking': True, 'isDeleted': False, 'revision': 1,
            'createdBy': {'displayName': by, 'id': str(uuid.uuid4())}}, **more))

    def add_connection(self, name):
        """An Azure service connection."""
        one = {'id': str(uuid.uuid4()), 'name': name, 'type': 'azurerm', 'isReady': True}
        self.endpoints[one['id']] = one
        return one

    def scope(self, branch='master', repository=None):
        """The scope of a policy on exactly this branch."""
        return [{'repositoryId': (repository or self.repositories[0])['id'],
                 'refName': 'refs/heads/' + branch, 'matchKind': 'exact'}]

    def misbehave(self, fault, on='', times=1):
        """Answer the next requests wrongly: a name of FAULTS, a pattern of 'METHOD path'."""
        self.faults += [(on, FAULTS[fault])] * times

    def writes(self):
        """The calls so far that could have changed something."""
        return [call for call in self.requests if call[0] != 'GET']

    # Answering.

    def answer(self, method, target, headers, text):
        """(status, headers, body) of one request, or None for no answer at all.

        A body that is no text is sent as JSON.
        """
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        body = json.loads(text) if text else None
        with self.lock:
            self.requests.append((method, urllib.parse.unquote(parts.path), body))
            for fault in self.faults:
                if re.search(fault[0], f'{method} {parts.path}'):
                    self.faults.remove(fault)
                    return fault[1]
            try:
                return self._answer(method, parts.path, query, headers, body)
            except Refusal as refusal:
                return refusal.answer

    def _answer(self, method, path, query, headers, body):
        if path.split('/')[1].lower() != ORGANISATION:
            return 404, {}, '<html><title>Not found</title></html>'
        user = self.signed_in.get(headers.get('Authorization'))
        if user is None:
            return 401, {}, ''
        operation, values = find(method, path)
        version = query.pop('api-version', None)
        if version != operation.version:
            raise Refusal(400, 'VssVersionNotSpecifiedException', f'api-version is {version!r} '
                          f'and must be {operation.version!r}.')
        project = values.pop('project', PROJECT)
        if project.lower() != PROJECT.lower():
            raise Refusal(404, 'ProjectDoesNotExistWithNameException',
                          f'TF200016: The following project does not exist: {project}. Verify that '
                          'the name of the project is correct and that the project exists on the '
                          'specified Azure DevOps Server.')
        wrong = ['unknown query parameter ' + name for name in set(query) - operation.query]
        wrong += ['missing query parameter ' + name for name in operation.required - set(query)]
        wrong += problems(operation.body, body)
        if wrong:
            raise Refusal(400, 'VssPropertyValidationException', '; '.join(wrong))
        result = ROUTES[method, operation.template](
            self, user=user, query=query, body=body, **values)
        wrong = problems(operation.answer, result)
        if wrong:
            raise Refusal(500, 'LoopbackException', f'this answer breaks the contract: {wrong}')
        more = {}
        if isinstance(result, list):
            if 'continuationToken' in operation.query:
                end = int(query.get('continuationToken', 0)) + self.page_size
                if end < len(result):
                    more['x-ms-continuationtoken'] = str(end)
                result = result[end - self.page_size:end]
            result = {'count': len(result), 'value': result}
        return 200, more, result


def kept(table, number):
    """An entry by the number in the path. Raises Refusal."""
    if not number.isdigit() or int(number) not in table:
        raise Refusal(404, 'VssServiceException', f'There is nothing with the id {number}.')
    return table[int(number)]


def refuse_taken(table, name, key, message):
    """Raise Refusal when an entry of the table has this name already."""
    if any(one['name'].lower() == name.lower() for one in table.values()):
        raise Refusal(409, key, message)


def without(documents, *names):
    """Copies of the documents without members that are answered only on demand."""
    return [{name: one[name] for name in one if name not in names} for one in documents]


@route('GET', '_apis/connectionData')
def _connection_data(service, user, **_):
    return {'authenticatedUser': user}


@route('GET', '_apis/resourceAreas/{areaId}')
def _resource_area(service, areaId, **_):
    return {'id': areaId, 'name': 'IMS', 'locationUrl': f'{service.address}/{ORGANISATION}/'}


@route('GET', '_apis/identities')
def _identities(service, query, **_):
    names = ('providerDisplayName', 'customDisplayName', 'mail')
    return [user for user in service.users
            if query['filterValue'].lower() in [user.get(name, '').lower() for name in names]]


@route('GET', '{project}/_apis/git/repositories')
def _repositories(service, **_):
    return service.repositories


@route('GET', '{project}/_apis/git/repositories/{repositoryId}/refs')
def _refs(service, query, repositoryId, **_):
    if repositoryId not in service.branches:
        raise Refusal(404, 'GitRepositoryNotFoundException', 'TF401019: The Git repository with '
                      f'name or identifier {repositoryId} does not exist or you do not have '
                      'permissions for the operation you are attempting.')
    return [{'name': 'refs/heads/' + name, 'objectId': '0' * 40}
            for name in service.branches[repositoryId]
            if ('heads/' + name).startswith(query.get('filter', ''))]


@route('GET', '{project}/_apis/build/definitions')
def _definitions(service, query, **_):
    hidden = [] if query.get('includeLatestBuilds') == 'true' else ['latestBuild']
    if query.get('includeAllProperties') != 'true':
        hidden += ['process', 'repository']
    return without((one for one in service.definitions.values() if query.get('repositoryId') in (
        None, one['repository']['id'])), *hidden)


@route('POST', '{project}/_apis/pipelines')
def _create_pipeline(service, body, **_):
    refuse_taken(service.definitions, body['name'], 'DefinitionExistsException', 'The build '
                 f"pipeline {body['name']} already exists in folder {body['folder']}.")
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
    wrong = problems(SETTINGS[kind], body['settings'])
    number = body['settings'].get('buildDefinitionId')
    if not wrong and number not in (None, *service.definitions):
        wrong = [f'There is no build definition {number}.']
    if wrong:
        raise Refusal(400, 'InvalidPolicyConfigurationException', '; '.join(wrong))
    settings = {key: value for key, value in body['settings'].items()
                if value and key not in service.ignores}
    if kind == REVIEWERS:
        settings = dict(dict.fromkeys(REVIEWERS_SWITCHES, False), **settings)
    settings['scope'] = [dict(one, matchKind=one.get('matchKind', 'exact').capitalize())
                         for one in body['settings']['scope']]
    return {'type': {'id': kind, 'displayName': POLICY_TYPES[kind]}, 'settings': settings,
            'isEnabled': body.get('isEnabled', False), 'isBlocking': body.get('isBlocking', False)}


@route('GET', '{project}/_apis/policy/configurations')
def _policies(service, **_):
    return list(service.policies.values())


@route('POST', '{project}/_apis/policy/configurations')
def _create_policy(service, user, body, **_):
    policy = _policy_as_kept(service, body)
    return service.add_policy(policy['type']['id'], by=user['providerDisplayName'], **policy)


@route('PUT', '{project}/_apis/policy/configurations/{configurationId}')
def _update_policy(service, configurationId, body, **_):
    policy = kept(service.policies, configurationId)
    policy.update(_policy_as_kept(service, body), revision=policy['revision'] + 1)
    return policy


def _shown(group):
    """A variable group as it is read: secrets without value."""
    return dict(group, variables={
        name: dict(one, value=None) if one.get('isSecret') else one
        for name, one in group['variables'].items()})


def _group_as_kept(body, old):
    """A variable group from what is sent; old: the variables that are there."""
    if not body.get('variableGroupProjectReferences'):
        # As the service does, oddly: vsts-rest-api-specs issue 531.
        raise Refusal(401, 'UnauthorizedAccessException', 'No project reference is given.')
    # Recorded: a secret that comes without a value keeps its own. A null is taken at its word.
    return dict(body, variables={
        name: dict({'value': old.get(name, {}).get('value', '')}, **one)
        if one.get('isSecret') else one for name, one in body['variables'].items()})


@route('GET', '{project}/_apis/distributedtask/variablegroups')
def _groups(service, query, **_):
    return without((_shown(group) for group in service.groups.values()
                    if group['name'].lower() == query.get('groupName', group['name']).lower()),
                   'variableGroupProjectReferences')


@route('GET', '{project}/_apis/distributedtask/variablegroups/{groupId}')
def _group(service, groupId, **_):
    return _shown(kept(service.groups, groupId))


@route('POST', '_apis/distributedtask/variablegroups')
def _create_group(service, body, **_):
    refuse_taken(service.groups, body['name'], 'VariableGroupExistsException',
                 f"Variable group with name {body['name']} already exists.")
    return _shown(service.add(service.groups, _group_as_kept(body, {})))


@route('PUT', '_apis/distributedtask/variablegroups/{groupId}')
def _update_group(service, groupId, body, **_):
    group = kept(service.groups, groupId)
    service.groups[group['id']] = dict(_group_as_kept(body, group['variables']), id=group['id'])
    return _group(service, groupId)


@route('GET', '{project}/_apis/distributedtask/environments')
def _environments(service, query, **_):
    # By the beginning of the name, as the search box of the portal.
    return [one for one in service.environments.values()
            if one['name'].lower().startswith(query.get('name', '').lower())]


@route('POST', '{project}/_apis/distributedtask/environments')
def _create_environment(service, body, **_):
    refuse_taken(service.environments, body['name'], 'EnvironmentExistsException',
                 f"Environment {body['name']} already exists.")
    return service.add(service.environments, body)


@route('GET', '{project}/_apis/pipelines/checks/configurations')
def _checks(service, query, **_):
    found = [one for one in service.checks.values()
             if one['resource']['type'] == query.get('resourceType')
             and one['resource']['id'] == query.get('resourceId')]
    return found if query.get('$expand') == 'settings' else without(found, 'settings')


@route('POST', '{project}/_apis/pipelines/checks/configurations')
def _create_check(service, body, **_):
    return service.add(service.checks, body)


@route('PATCH', '{project}/_apis/pipelines/checks/configurations/{id}')
def _update_check(service, id, body, **_):
    check = kept(service.checks, id)
    check.update(body)
    return check


PERMISSIONS = '{project}/_apis/pipelines/pipelinepermissions/{resourceType}/{resourceId}'


@route('GET', PERMISSIONS)
def _permission(service, resourceType, resourceId, **_):
    tables = {'variablegroup': service.groups, 'environment': service.environments,
              'endpoint': service.endpoints}
    if resourceId not in map(str, tables.get(resourceType, ())):
        raise Refusal(404, 'VssServiceException', f'There is no {resourceType} {resourceId}.')
    users = service.permissions[resourceType, resourceId]
    return {'resource': {'type': resourceType, 'id': resourceId},
            'pipelines': [{'id': one, 'authorized': True} for one, yes in users.items() if yes]}


@route('PATCH', PERMISSIONS)
def _permit(service, resourceType, resourceId, body, **_):
    _permission(service, resourceType, resourceId)
    for one in body['pipelines']:
        kept(service.definitions, str(one['id']))
        service.permissions[resourceType, resourceId][one['id']] = one['authorized']
    return _permission(service, resourceType, resourceId)


@route('GET', '{project}/_apis/serviceendpoint/endpoints')
def _endpoints(service, query, **_):
    return [one for one in service.endpoints.values()
            if one['name'] in query['endpointNames'].split(',')]


SIGN_IN_PAGE = '<html><head><title>Azure DevOps Services | Sign In</title></head></html>'
# Wrong answers, as they were met or recorded; None: the connection is held without an answer.
FAULTS = {
    'expired': (401, {}, ''),
    'redirect': (302, {'Location': '/_signin?realm=x'}, ''),
    'sign-in page': (203, {}, SIGN_IN_PAGE),
    'anonymous page': (200, {}, SIGN_IN_PAGE),
    'no permission': Refusal(
        403, 'GitNeedsPermissionException', "TF401027: You need the Git 'EditPolicies' permission "
        "to perform this action. Details: identity 'jane@contoso.com', scope 'branch'.").answer,
    'no access': Refusal(403, 'UnauthorizedRequestException', 'TF400813: The user '
                         "'jane@contoso.com' is not authorized to access this resource.").answer,
    'busy': Refusal(429, 'RequestBlockedException', 'TF400733: The request has been canceled: '
                    'Request was blocked due to exceeding usage of resource.',
                    {'Retry-After': '1'}).answer,
    'busy for long': Refusal(429, 'RequestBlockedException', 'TF400733: The request has been '
                             'canceled.', {'Retry-After': '900'}).answer,
    'broken': Refusal(500, 'VssServiceException',
                      'TF400898: An Internal Error Occurred.').answer,
    'stopped': Refusal(503, 'VssServiceException', 'TF24668: The following team project '
                       'collection is stopped: contoso.').answer,
    'not JSON': (200, {'Content-Type': 'text/plain'}, 'welcome to the cafe'),
    'no list': (200, {}, {'message': 'hello'}),
    'stalled': None,
}


class _Connection(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def _serve(self):
        length = int(self.headers.get('Content-Length') or 0)
        answer = self.server.answer(self.command, self.path, self.headers, self.rfile.read(length))
        if answer is None:
            self.server.stopping.wait()
            self.close_connection = True
            return
        status, headers, body = answer
        kind = 'text/html'
        if not isinstance(body, str):
            kind = 'application/json; charset=utf-8'
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

    def log_message(self, *_):
        pass
