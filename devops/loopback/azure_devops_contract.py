"""What requests to Azure DevOps and its answers must be: Microsoft's contract, ids, refusals.

azure_devops_contract.json beside this file is the used part of the Swagger files of
github.com/MicrosoftDocs/vsts-rest-api-specs at adb2878 (MIT licence, in the file of that name).
What it leaves open, or has too narrow, is in CORRECTIONS, QUERIES and OUTSIDE.
"""
import collections
import json
import re
import urllib.parse
from pathlib import Path

CONTRACT = Path(__file__).with_name('azure_devops_contract.json')
# Of the service: fixed ids of policy types, see scripts/branch_policy.py.
REVIEWERS = 'fa4e907d-c16b-4a4c-9dfa-4906e5d171dd'
BUILD = '0609b952-1397-4640-95ec-e00a01b2c241'
COMMENTS = 'c6a1889d-b943-4856-b76f-9e46bb6b0df2'
WORK_ITEMS = '40e92b44-2fe1-4dd6-b3d8-74a9c21d0c6e'
POLICY_TYPES = {REVIEWERS: 'Minimum number of reviewers', BUILD: 'Build',
                COMMENTS: 'Comment requirements', WORK_ITEMS: 'Work item linking'}

SCOPE = {'type': 'array', 'minItems': 1, 'items': {
    'type': 'object', 'additionalProperties': False, 'properties': {
        'repositoryId': {'type': 'string'}, 'refName': {'type': 'string'},
        'matchKind': {'enum': ['exact', 'prefix', 'defaultBranch', 'Exact', 'Prefix',
                               'DefaultBranch']}}}}
BOOLEANS = {
    REVIEWERS: ('creatorVoteCounts', 'allowDownvotes', 'resetOnSourcePush', 'blockLastPusherVote',
                'requireVoteOnLastIteration', 'resetRejectionsOnSourcePush',
                'requireVoteOnEachIteration'),
    BUILD: ('queueOnSourceUpdateOnly', 'manualQueueOnly'), COMMENTS: (), WORK_ITEMS: (),
}
OTHERS = {
    REVIEWERS: {'minimumApproverCount': {'type': 'integer', 'minimum': 1}},
    BUILD: {'buildDefinitionId': {'type': 'integer'}, 'displayName': {'type': 'string'},
            'validDuration': {'type': 'number'},
            'filenamePatterns': {'type': 'array', 'items': {'type': 'string'}}},
}
NEEDED = {REVIEWERS: ['minimumApproverCount'], BUILD: ['buildDefinitionId', 'validDuration']}


def _object(required=(), **properties):
    schema = {'type': 'object', 'additionalProperties': False, 'properties': properties}
    return dict(schema, required=list(required)) if required else schema


TEXT, ID = {'type': 'string'}, {'type': 'string', 'pattern': '^[0-9a-fA-F-]{36}$'}
# The settings of a policy: an untyped object in the contract.
SETTINGS = {kind: _object(['scope'] + NEEDED.get(kind, []), scope=SCOPE, **dict(
    {name: {'type': 'boolean'} for name in BOOLEANS[kind]}, **OTHERS.get(kind, {})))
    for kind in POLICY_TYPES}
# Definitions of the contract that are too narrow or untyped, as the service has them.
CORRECTIONS = {
    'build_BuildProcess': _object(type={'type': 'integer'}, yamlFilename=TEXT),
    'pipelines_CreatePipelineConfigurationParameters': _object(
        ['type', 'path', 'repository'], type={'enum': ['yaml']}, path=TEXT, repository=_object(
            ['id', 'type'], id=ID, name=TEXT, type={'enum': ['azureReposGit']})),
    'pipelines_PipelineConfiguration': {'type': 'object'},
    'build_BuildDefinitionReference': {'$ref': '#/definitions/build_BuildDefinition'},
}
APPROVAL_SETTINGS = _object(
    ['approvers'],
    approvers={'type': 'array', 'minItems': 1,
               'items': _object(['id'], id=ID, displayName=TEXT)},
    blockedApprovers={'type': 'array'}, executionOrder={'enum': ['anyOrder', 'inSequence']},
    minRequiredApprovers={'type': 'integer'}, instructions=TEXT,
    requesterCannotBeApprover={'type': 'boolean'})
# Query parameters that the service takes and the contract forgets, or calls required.
QUERIES = {('GET', '/{organization}/{project}/_apis/distributedtask/variablegroups'): (
    {'groupName', 'continuationToken', '$top'}, {'groupIds'})}
# Routes that are in no Swagger file, with the version that the service's own clients send.
OUTSIDE = {
    ('GET', '/{organization}/_apis/connectionData'): ('7.1-preview.1', set()),
    ('GET', '/{organization}/_apis/resourceAreas/{areaId}'): ('7.1-preview.1', set()),
    ('GET', '/{organization}/_apis/identities'): ('7.1', {'searchFilter', 'filterValue'}),
}

Operation = collections.namedtuple('Operation', 'method template pattern version query required '
                                   'body answer')


class Refusal(Exception):
    """An error answer in the service's form."""

    def __init__(self, status, key, message, headers=None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {'$id': '1', 'innerException': None, 'message': message,
                     'typeName': f'Microsoft.TeamFoundation.{key}, Microsoft.TeamFoundation',
                     'typeKey': key, 'errorCode': 0, 'eventId': 3000}


class Contract:
    """Which operations there are, and whether requests and answers are as Microsoft says."""

    def __init__(self, path=CONTRACT):
        text = json.loads(path.read_text())
        self.validators = {}
        self.definitions = dict(text['definitions'], **CORRECTIONS)
        check = self.definitions['pipelinesChecks_CheckConfiguration']
        self.definitions['pipelinesChecks_CheckConfiguration'] = dict(
            check, properties=dict(check['properties'], settings={
                'anyOf': [APPROVAL_SETTINGS, _object()]}))
        self.operations = [self._operation(method.upper(), template, operation)
                           for template, methods in text['paths'].items()
                           for method, operation in methods.items()]
        for (method, template), (version, query) in OUTSIDE.items():
            self.operations.append(Operation(method, template, self._pattern(template), version,
                                             query, set(), None, None))

    @staticmethod
    def _pattern(template):
        return re.compile('^' + re.sub(r'\\{(\w+)\\}', r'(?P<\1>[^/]+)', re.escape(template)) + '$',
                          re.IGNORECASE)

    def _operation(self, method, template, operation):
        version, query, required, body = '7.1', set(), set(), None
        for parameter in operation['parameters']:
            if '$ref' in parameter:
                found = re.search(r'preview\.\d+$', parameter['$ref'])
                version += '-' + found.group() if found else ''
            elif parameter['in'] == 'query':
                query.add(parameter['name'])
                required.update([parameter['name']] if parameter.get('required') else [])
            elif parameter['in'] == 'body':
                body = parameter['schema']
        added, excused = QUERIES.get((method, template), (set(), set()))
        answer = next(iter(operation['responses'].values())).get('schema')
        return Operation(method, template, self._pattern(template), version, query | added,
                         required - excused, body, answer)

    def find(self, method, path):
        """The operation and its values in the path. Raises Refusal."""
        for operation in self.operations:
            match = operation.pattern.match(path)
            if match and operation.method == method:
                return operation, {name: urllib.parse.unquote(value)
                                   for name, value in match.groupdict().items()}
        raise Refusal(404, 'VssServiceException', f'There is no operation {method} {path}.')

    def problems(self, schema, value):
        """What is wrong with a value, as texts. Null counts as absent: Swagger 2 knows no null."""
        import jsonschema
        key = json.dumps(schema)
        if key not in self.validators:
            self.validators[key] = jsonschema.Draft4Validator(
                {'allOf': [schema], 'definitions': self.definitions})
        return [f"{'.'.join(map(str, error.path)) or 'body'}: {error.message}"
                for error in self.validators[key].iter_errors(without_null(value))]


def without_null(value):
    """The value without its members that are null."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value
