"""The stand-in of Azure DevOps: its contract is Microsoft's, and it takes nothing else."""
import json

import pytest
import requests

from conftest import ROOT
from loopback.azure_devops_contract import CONTRACT
from test_azure_devops import service

pytestmark = pytest.mark.no_cover

REFERENCE = ROOT.parent / 'shared' / 'reference' / 'azure-devops' / 'rest-api.json'


def trimmed(reference, paths):
    """The part of Microsoft's contract that these paths use: {path: its methods}."""
    def strip(node):
        if isinstance(node, list):
            return [strip(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: strip(value) for key, value in node.items()
                if not (key == 'description' and isinstance(value, str))
                and key not in ('x-ms-enum', 'tags', 'operationId', 'produces', 'consumes')}

    def collect(node):
        if isinstance(node, list):
            for item in node:
                collect(item)
        elif isinstance(node, dict):
            parts = str(node.get('$ref', '')).split('/')
            if len(parts) == 3 and parts[2] not in found[parts[1]]:
                found[parts[1]][parts[2]] = strip(reference[parts[1]][parts[2]])
                collect(found[parts[1]][parts[2]])
            for value in node.values():
                collect(value)
    found = {'definitions': {}, 'parameters': {}}
    found['paths'] = {path: {method: strip(reference['paths'][path][method])
                             for method in methods} for path, methods in paths.items()}
    collect(found['paths'])
    # With includeAllProperties the list of definitions holds this one.
    collect({'$ref': '#/definitions/build_BuildDefinition'})
    return found


def test_the_contract_is_microsofts():
    if not REFERENCE.is_file():
        pytest.skip('no ../shared')
    kept = json.loads(CONTRACT.read_text())
    assert kept == trimmed(json.loads(REFERENCE.read_text()), kept['paths'])
    licence = CONTRACT.with_suffix('.LICENSE').read_text()
    assert licence == REFERENCE.with_suffix('.LICENSE').read_text()


def ask(service, method, path, body=None, version='7.1', **query):
    """A raw request to the stand-in, as nobody's client."""
    address = f"{service.env['AZURE_DEVOPS_ORG_URL']}/Safe%20Driver/_apis/{path}"
    return requests.request(method, address, json=body, auth=('', service.pat), timeout=10,
                            params=dict(query, **({'api-version': version} if version else {})))


POLICY = {'isEnabled': True, 'isBlocking': True,
          'type': {'id': 'c6a1889d-b943-4856-b76f-9e46bb6b0df2'}}


@pytest.mark.parametrize('method, path, body, version, query, status', [
    ('POST', 'policy/configurations', dict(POLICY, settings={}), '7.1', {}, 400),
    ('POST', 'policy/configurations', dict(POLICY, isEnable=True), '7.1', {}, 400),
    ('POST', 'policy/configurations', dict(POLICY, isEnabled='yes'), '7.1', {}, 400),
    ('GET', 'policy/configurations', None, None, {}, 400),
    ('GET', 'policy/configurations', None, '7.1', {'scop': 'x'}, 400),
    ('GET', 'policy/configurations', None, '7.1', {}, 200),
    ('GET', 'pipelines/checks/configurations', None, '7.1', {}, 400),
    ('GET', 'serviceendpoint/endpoints', None, '7.1', {}, 400),
    ('POST', 'pipelines', {'name': 'x', 'configuration': {'type': 'yaml'}}, '7.1', {}, 400),
    ('POST', 'distributedtask/environments', {'names': 'x'}, '7.1', {}, 400),
    ('PUT', 'policy/configurations/99', dict(POLICY, settings={}), '7.1', {}, 404),
    ('GET', 'policies', None, '7.1', {}, 404),
])
def test_the_stand_in_takes_only_what_the_contract_allows(service, method, path, body, version,
                                                          query, status):
    answer = ask(service, method, path, body, version, **query)
    assert answer.status_code == status
    if status != 200:
        problem = json.loads(answer.content.decode('utf-8-sig'))
        assert set(problem) >= {'$id', 'message', 'typeName', 'typeKey', 'errorCode', 'eventId'}


def test_misspelt_settings_of_a_policy_are_refused(service):
    settings = {'scope': service.scope(), 'buildDefinitionID': 5}
    answer = ask(service, 'POST', 'policy/configurations', dict(
        POLICY, type={'id': '0609b952-1397-4640-95ec-e00a01b2c241'}, settings=settings))
    assert answer.status_code == 400
    assert 'buildDefinitionID' in answer.content.decode()
