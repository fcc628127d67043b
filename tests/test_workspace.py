"""The workspace's resources by Azure Resource Manager: made once, whatever interrupts it."""
import re

import pytest
import requests

import arm
import azure_ml
import settings
import workspace

GROUP = 'group'
VALUES = {'RESOURCE_GROUP': GROUP, 'WORKSPACE_NAME': 'my-space', 'LOCATION': 'westeurope',
          'SUBSCRIPTION_ID': '00000000-0000-0000-0000-000000000001'}
KINDS = ['Microsoft.Storage/storageAccounts', 'Microsoft.KeyVault/vaults',
         'Microsoft.OperationalInsights/workspaces', 'Microsoft.Insights/components',
         'Microsoft.MachineLearningServices/workspaces']


class Token:
    """In place of the SDK's authentication: a token of the stand-in."""

    def __init__(self, token='a.eyJ0aWQiOiAidCJ9.c'):
        self.token = token

    def get_authentication_header(self):
        return {'Authorization': f'Bearer {self.token}'}


@pytest.fixture
def azure(tmp_path, monkeypatch):
    pytest.importorskip('trustme')
    import loopback
    monkeypatch.setattr(arm, 'PAUSE_SECONDS', 0.01)
    monkeypatch.setattr(azure_ml, 'FIRST_PAUSE_SECONDS', 0.01)
    with loopback.start(str(tmp_path)) as azure:
        # Contributor on the group is enough.
        azure.add_group(GROUP)
        azure.set_role(None, azure.subscription)
        for name, value in azure.proxy_environment().items():
            monkeypatch.setenv(name, value)
        yield azure
    assert azure.unknown == []


def create(azure, seconds=10, **changes):
    config = settings.read(dict(VALUES, **changes))
    workspace.create_resources(arm.Manager(Token(azure.tokens.issue()), seconds), config)


def made(azure):
    """The types of the resources that there are, in the order in which they came."""
    return [row['document']['type'] for row in azure.journal.table('resources').values()]


def test_all_of_it_is_made_in_the_group_and_found_by_a_second_run(azure, capsys):
    create(azure)
    assert made(azure) == KINDS
    assert capsys.readouterr().out.count(': created') == 5
    create(azure)
    assert capsys.readouterr().out == 'workspace my-space: there already\n'
    assert made(azure) == KINDS


@pytest.mark.end_to_end
def test_interrupted_at_every_resource_it_goes_on_and_a_lost_answer_makes_nothing_twice(azure):
    for number in range(len(KINDS)):
        azure.faults.add('forbidden', path='PUT ', skip=min(number, 1))
        with pytest.raises(azure_ml.AzureError, match='AuthorizationFailed'):
            create(azure)
        assert made(azure) == KINDS[:number]
    azure.faults.add('reset', path='PUT .*workspaces/my-space', after=True)
    create(azure)
    assert made(azure) == KINDS


@pytest.mark.end_to_end
def test_what_is_under_way_is_waited_for(azure, capsys):
    for _ in KINDS:
        azure.faults.add('late-resource', seconds=0.05)
    create(azure)
    assert made(azure) == KINDS
    manager = arm.Manager(Token(azure.tokens.issue()), 10)
    (path,) = [row['document']['id'] for row in azure.journal.table('resources').values()
               if row['document']['type'] == KINDS[1]]
    with azure.journal.table('resources').change(path.lower()) as row:
        row['ready'] += 3600
    with pytest.raises(azure_ml.AzureError, match='it is creating and goes on in Azure'):
        manager.wait(path, '2026-02-01', 'create the key vault', 0)


@pytest.mark.parametrize('role, said', [
    ('Reader', "does not have authorization to perform action 'Microsoft.Storage/storageAccounts/"
               "write'.*role Contributor"),
    (None, 'AuthorizationFailed')])
def test_without_contributor_on_the_group_the_sentence_says_so(azure, role, said):
    azure.add_group(GROUP, role=role)
    with pytest.raises(azure_ml.AzureError) as error:
        create(azure)
    assert re.search(said, str(error.value), 16), error.value
    assert made(azure) == []


def test_a_provider_that_is_not_registered_is_named_with_what_to_do(azure):
    azure.unregistered.add('microsoft.keyvault')
    with pytest.raises(azure_ml.AzureError, match="namespace 'Microsoft.KeyVault'.*\n.*preflight"):
        create(azure)
    assert made(azure) == KINDS[:1]


def test_an_api_version_that_ends_is_refused(azure, monkeypatch):
    wanted = workspace.resources(settings.read(VALUES), 't')
    old = [row[:2] + ('2015-06-01', row[3]) if 'vaults' in row[1] else row for row in wanted]
    monkeypatch.setattr(workspace, 'resources', lambda *_: old)
    with pytest.raises(azure_ml.AzureError, match="API version '2015-06-01' for type 'vaults'"):
        create(azure)


def test_a_name_that_someone_else_has_is_said_with_the_way_out(azure):
    azure.faults.add('forbidden', path='PUT ', skip=1)
    with pytest.raises(azure_ml.AzureError, match='AuthorizationFailed'):
        create(azure)
    table = azure.journal.table('resources')
    (row,) = table.values()
    del table[row['document']['id'].lower()]
    row['document']['id'] = row['document']['id'].replace(GROUP, 'another')
    table['elsewhere'] = row
    with pytest.raises(azure_ml.AzureError, match='StorageAccountAlreadyTaken.*\n.*another WORKSP'):
        create(azure)


@pytest.fixture
def odd(monkeypatch):
    """A function that has Azure Resource Manager answer everything with this."""
    def answer(status, kind, body):
        response = requests.Response()
        response.status_code, response._content = status, body
        response.headers['Content-Type'] = kind
        monkeypatch.setattr(requests, 'request', lambda *_, **__: response)
    return answer


@pytest.mark.parametrize('status, kind, body, said', [
    (200, 'text/html', b'<html>sign in</html>', 'HTTP 200, text/html.*proxy'),
    (200, 'application/json', b'', 'HTTP 200.*proxy'),
    (200, 'application/json', b'[1]', 'HTTP 200.*proxy'),
    (302, 'text/html', b'', 'HTTP 302.*proxy'),
    (400, 'application/json', b'null', 'HTTP 400.*proxy'),
    (403, 'text/html', b'<html>', 'HTTP 403, text/html.*proxy'),
    (404, 'text/html', b'<html>', 'HTTP 404, text/html.*proxy'),
    (200, 'application/json', b'{"properties": "x"}', 'HTTP 200.*proxy'),
    (401, 'application/json', b'{"error": {"code": "InvalidAuthenticationToken", "message": "no"}}',
     'InvalidAuthenticationToken: no.*\n.*az login'),
])
def test_an_answer_that_is_not_of_resource_manager_is_one_sentence(odd, status, kind, body, said):
    odd(status, kind, body)
    manager = arm.Manager(Token(), 2)
    for ask in (lambda: manager.get('/x', '1', 'look'),
                lambda: manager.create('/x', '1', {}, 'make it', 0)):
        with pytest.raises(azure_ml.AzureError) as error:
            ask()
        assert re.search(said, str(error.value)), error.value
        assert len(str(error.value).splitlines()) <= 2


def test_the_tenant_is_that_of_the_token():
    assert arm.Manager(Token(), 1).tenant() == 't'
    for token in ('opaque', 'a.b.c', 'a.e30.c', 'a.W10.c'):
        with pytest.raises(azure_ml.AzureError, match='the token does not name its directory'):
            arm.Manager(Token(token), 1).tenant()


def test_a_resource_that_does_not_appear_is_not_waited_for_long(odd, monkeypatch):
    monkeypatch.setattr(arm, 'APPEAR_SECONDS', 0)
    odd(404, 'application/json', b'{"error": {"code": "ResourceNotFound", "message": "none"}}')
    with pytest.raises(azure_ml.AzureError, match='make it in time: it is not there yet'):
        arm.Manager(Token(), 2).wait('/x', '1', 'make it', float('inf'))


def test_names_that_are_unique_in_azure_follow_from_the_settings():
    config = settings.read(VALUES)
    assert workspace.resources(config, 't') == workspace.resources(config, 't')
    other = settings.read(dict(VALUES, RESOURCE_GROUP='other'))
    first, second = [[path.split('/')[-1] for _, path, _, _ in workspace.resources(one, 't')]
                     for one in (config, other)]
    assert set(first[:2]).isdisjoint(second[:2]) and first[2:] == second[2:]
    # Allowed in the name of a workspace, not in that of its logs.
    odd = workspace.resources(settings.read(dict(VALUES, WORKSPACE_NAME='our_space')), 't')
    assert odd[2][1].endswith('/our-space-logs')


def test_an_upload_that_did_not_arrive_is_said():
    class Store:
        container_name, blob_service = 'c', property(lambda self: self)

        def get_blob_client(self, container, path):
            self.status_code = {'there': None}.get(path, 404 if path == 'lost' else 403)
            return self

        def get_blob_properties(self):
            if self.status_code:
                raise type('Refused', (Exception,), {'status_code': self.status_code})

    workspace.check_stored(Store(), ['there'])
    workspace.check_stored(object(), ['of a store that is no blob storage'])
    with pytest.raises(azure_ml.AzureError, match='could not upload lost: it did not arrive'):
        workspace.check_stored(Store(), ['there', 'lost'])
    with pytest.raises(Exception) as error:
        workspace.check_stored(Store(), ['forbidden'])
    assert azure_ml.status_of(error.value) == 403
