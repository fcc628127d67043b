"""The stand-in of Azure DevOps: its contract is Microsoft's, and it takes nothing else."""
import json
import re

import pytest
import requests

from conftest import ROOT
from loopback.azure_devops_contract import CONTRACT
from test_azure_devops import service

pytestmark = pytest.mark.no_cover

REFERENCE = ROOT.parent / 'shared' / 'reference' / 'azure-devops' / 'rest-api.json'
LEFT_OUT = {'description', 'x-ms-enum', 'tags', 'operationId', 'produces', 'consumes'}


def is_same(kept, whole):
    """Whether this is all of it, but for what checks nothing."""
    if isinstance(kept, dict) and isinstance(whole, dict):
        return set(whole) - LEFT_OUT <= set(kept) <= set(whole) and all(
            is_same(kept[name], whole[name]) for name in kept)
    if isinstance(kept, list) and isinstance(whole, list):
        return len(kept) == len(whole) and all(map(is_same, kept, whole))
    return kept == whole


def test_the_contract_is_microsofts():
    if not REFERENCE.is_file():
        pytest.skip('no ../shared')
    kept, whole = json.loads(CONTRACT.read_text()), json.loads(REFERENCE.read_text())
    for kind in ('definitions', 'parameters'):
        for name in kept[kind]:
            assert is_same(kept[kind][name], whole[kind][name]), name
    for path, methods in kept['paths'].items():
        for method in methods:
            assert is_same(methods[method], whole['paths'][path][method]), (method, path)
    for kind, name in re.findall(r'"#/(\w+)/([^"]+)"', json.dumps(kept)):
        assert name in kept[kind]
    licence = CONTRACT.with_suffix('.LICENSE').read_text()
    assert licence == REFERENCE.with_suffix('.LICENSE').read_text()


def policy(kind='c6a1889d-b943-4856-b76f-9e46bb6b0df2', settings=(), **changes):
    return dict({'isEnabled': True, 'isBlocking': True, 'type': {'id': kind},
                 'settings': dict(settings)}, **changes)


@pytest.mark.parametrize('method, path, body, status, words', [
    ('POST', 'policy/configurations', policy(), 400, "'scope' is a required property"),
    ('POST', 'policy/configurations', policy(isEnable=True), 400, "'isEnable' was unexpected"),
    ('POST', 'policy/configurations', policy(isEnabled='yes'), 400, "isEnabled: 'yes' is not"),
    ('POST', 'policy/configurations', policy(
        '0609b952-1397-4640-95ec-e00a01b2c241', {'buildDefinitionID': 5}), 400,
     "'buildDefinitionID' was unexpected"),
    ('GET', 'policy/configurations?api-version=', None, 400, 'api-version'),
    ('GET', 'policy/configurations?scop=x', None, 400, 'unknown query parameter scop'),
    ('GET', 'policy/configurations', None, 200, '"count": 0'),
    ('GET', 'serviceendpoint/endpoints', None, 400, 'missing query parameter endpointNames'),
    ('POST', 'pipelines', {'name': 'x', 'configuration': {'type': 'yaml'}}, 400,
     "'repository' is a required property"),
    ('POST', 'distributedtask/environments', {'names': 'x'}, 400, "'names' was unexpected"),
    ('PUT', 'policy/configurations/99', policy(), 404, 'nothing with the id 99'),
    ('GET', 'policies', None, 404, 'no operation GET'),
])
def test_only_what_the_contract_allows_is_taken(service, method, path, body, status, words):
    url = f"{service.env['AZURE_DEVOPS_ORG_URL']}/Safe%20Driver/_apis/{path}"
    if 'api-version' not in url:
        url += ('&' if '?' in url else '?') + 'api-version=7.1'
    answer = requests.request(method, url, json=body, auth=('', service.pat), timeout=10)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    if status != 200:
        assert set(json.loads(answer.content.decode('utf-8-sig'))) >= {
            '$id', 'message', 'typeName', 'typeKey', 'errorCode', 'eventId'}
