"""What requests to Azure DevOps and its answers must be: Microsoft's contract, ids, refusals.

azure_devops_contract.json beside this file is the used part of the Swagger files of
github.com/MicrosoftDocs/vsts-rest-api-specs at adb2878 (MIT licence, in the file of that name).
What it leaves open, or has too narrow, is in CORRECTIONS, QUERIES and OUTSIDE.
"""
import collections
import functools
import json
import re
import urllib.parse
from pathlib import Path

import jsonschema

from .schemas import SWITCH, TEXT, WHOLE, closed

CONTRACT = Path(__file__).with_name('azure_devops_contract.json')
# Of the service: fixed ids of policy types, see scripts/branch_policy.py.
REVIEWERS = 'fa4e907d-c16b-4a4c-9dfa-4906e5d171dd'
BUILD = '0609b952-1397-4640-95ec-e00a01b2c241'
COMMENTS = 'c6a1889d-b943-4856-b76f-9e46bb6b0df2'
WORK_ITEMS = '40e92b44-2fe1-4dd6-b3d8-74a9c21d0c6e'
POLICY_TYPES = {REVIEWERS: 'Minimum number of reviewers', BUILD: 'Build',
                COMMENTS: 'Comment requirements', WORK_ITEMS: 'Work item linking'}
REVIEWERS_SWITCHES = (
    'creatorVoteCounts', 'allowDownvotes', 'resetOnSourcePush', 'blockLastPusherVote',
    'requireVoteOnLastIteration', 'resetRejectionsOnSourcePush', 'requireVoteOnEachIteration')
ID = {'type': 'string', 'pattern': '^[0-9a-fA-F-]{36}$'}
SCOPE = {'type': 'array', 'minItems': 1, 'items': closed(
    repositoryId=TEXT, refName=TEXT, matchKind={
        'enum': ['exact', 'prefix', 'defaultBranch', 'Exact', 'Prefix', 'DefaultBranch']})}
# The settings of a policy: an untyped object in the contract.
SETTINGS = {
    REVIEWERS: closed(['scope', 'minimumApproverCount'], scope=SCOPE,
                      minimumApproverCount={'type': 'integer', 'minimum': 1},
                      **dict.fromkeys(REVIEWERS_SWITCHES, SWITCH)),
    BUILD: closed(['scope', 'buildDefinitionId', 'validDuration'], scope=SCOPE,
                  buildDefinitionId=WHOLE, validDuration={'type': 'number'}, displayName=TEXT,
                  filenamePatterns={'type': 'array', 'items': TEXT},
                  queueOnSourceUpdateOnly=SWITCH, manualQueueOnly=SWITCH),
    COMMENTS: closed(['scope'], scope=SCOPE),
    WORK_ITEMS: closed(['scope'], scope=SCOPE)}
APPROVAL_SETTINGS = closed(
    ['approvers'], approvers={'type': 'array', 'minItems': 1,
                              'items': closed(['id'], id=ID, displayName=TEXT)},
    blockedApprovers={'type': 'array'}, executionOrder={'enum': ['anyOrder', 'inSequence']},
    minRequiredApprovers=WHOLE, instructions=TEXT, requesterCannotBeApprover=SWITCH)
# Definitions of the contract that are too narrow or untyped, as the service has them.
CORRECTIONS = {
    'build_BuildProcess': closed(type=WHOLE, yamlFilename=TEXT),
    'pipelines_CreatePipelineConfigurationParameters': closed(
        ['type', 'path', 'repository'], type={'enum': ['yaml']}, path=TEXT, repository=closed(
            ['id', 'type'], id=ID, name=TEXT, type={'enum': ['azureReposGit']})),
    'pipelines_PipelineConfiguration': {'type': 'object'},
    'build_BuildDefinitionReference': {'$ref': '#/definitions/build_BuildDefinition'},
}
# Query parameters that the service takes and the contract forgets, or calls required.
QUERIES = {('GET', '/{organization}/{project}/_apis/distributedtask/variablegroups'): (
    {'groupName', 'continuationToken', '$top'}, {'groupIds'})}
# query: the names it takes; required: those of them that it needs; body, answer: JSON schemas.
Operation = collections.namedtuple(
    'Operation', 'method template version query required body answer',
    defaults=(frozenset(), frozenset(), {}, {}))
# Operations that are in no Swagger file, with the version that the service's own clients send.
OUTSIDE = [
    Operation('GET', '/{organization}/_apis/connectionData', '7.1-preview.1'),
    Operation('GET', '/{organization}/_apis/resourceAreas/{areaId}', '7.1-preview.1'),
    Operation('GET', '/{organization}/_apis/identities', '7.1', {'searchFilter', 'filterValue'})]


class Refusal(Exception):
    """An error in the service's form. `answer`: its status, headers and body."""

    def __init__(self, status, key, message, headers=None):
        super().__init__(message)
        self.answer = status, headers or {}, {
            '$id': '1', 'innerException': None, 'message': message,
            'typeName': f'Microsoft.TeamFoundation.{key}, Microsoft.TeamFoundation',
            'typeKey': key, 'errorCode': 0, 'eventId': 3000}


def _operation(method, template, swagger):
    version, body, queries = '7.1', {}, []
    for parameter in swagger['parameters']:
        if '$ref' in parameter:
            version += re.search(r'(-preview\.\d+)?$', parameter['$ref']).group()
        elif parameter['in'] == 'query':
            queries.append(parameter)
        elif parameter['in'] == 'body':
            body = parameter['schema']
    added, excused = QUERIES.get((method, template), (set(), set()))
    return Operation(method, template, version, {one['name'] for one in queries} | added,
                     {one['name'] for one in queries if one.get('required')} - excused, body,
                     next(iter(swagger['responses'].values())).get('schema', {}))


@functools.lru_cache(maxsize=None)
def contract():
    """(operations, validator with the definitions that they refer to), read once."""
    swagger = json.loads(CONTRACT.read_text())
    definitions = dict(swagger['definitions'], **CORRECTIONS)
    definitions['pipelinesChecks_CheckConfiguration']['properties']['settings'] = {
        'anyOf': [APPROVAL_SETTINGS, closed()]}
    operations = [_operation(method.upper(), template, one)
                  for template, methods in swagger['paths'].items()
                  for method, one in methods.items()]
    return operations + OUTSIDE, jsonschema.Draft4Validator({'definitions': definitions})


@functools.lru_cache(maxsize=None)
def _pattern(template):
    return re.compile('^' + re.sub(r'\\{(\w+)\\}', r'(?P<\1>[^/]+)', re.escape(template)) + '$',
                      re.IGNORECASE)


def find(method, path):
    """The operation and its values in the path. Raises Refusal."""
    for operation in contract()[0]:
        match = operation.method == method and _pattern(operation.template).match(path)
        if match:
            return operation, {name: urllib.parse.unquote(value)
                               for name, value in match.groupdict().items()}
    raise Refusal(404, 'VssServiceException', f'There is no operation {method} {path}.')


def problems(schema, value):
    """What is wrong with a value, as texts. Null counts as absent: Swagger 2 knows no null."""
    return [f"{'.'.join(map(str, error.path)) or 'body'}: {error.message}"
            for error in contract()[1].evolve(schema=schema).iter_errors(without_null(value))]


def without_null(value):
    """The value without its members that are null."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value
