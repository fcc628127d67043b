"""Set-up of the project on Azure DevOps on loopback."""
import copy
import io
import json
import re

import pytest
import requests

import devops_project
import pipeline_yaml
from conftest import ROOT
from test_azure_devops import run, service

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
VALUES = {'SUBSCRIPTION_ID': SUBSCRIPTION, 'RESOURCE_GROUP': 'rg', 'WORKSPACE_NAME': 'work',
          'LOCATION': 'westeurope'}
EVERYTHING = dict({name: {'value': value} for name, value in VALUES.items()},
                  AZURE_RM_SVC_CONNECTION={'value': 'azure-resource-connection'})


@pytest.fixture
def ready(service):
    """A project in which a person has done their part: the connection and the push."""
    service.connection = service.add_connection('azure-resource-connection')
    service.env.update(VALUES)
    return service


def group(service):
    return next(iter(service.groups.values()))


def allowed(service):
    """{kind of resource: names of the pipelines that may use it}."""
    return {kind: sorted(service.definitions[one]['name'] for one, yes in users.items() if yes)
            for (kind, _), users in service.permissions.items()}


@pytest.mark.parametrize('path, uses', [row[1:] for row in devops_project.PIPELINES])
def test_each_pipeline_is_allowed_what_its_yaml_uses(path, uses):
    pipeline = pipeline_yaml.read_pipeline(ROOT / path)
    jobs = str(pipeline.get('stages') or pipeline['jobs'])
    found = {'variablegroup': pipeline_yaml.groups(pipeline) == [devops_project.GROUP],
             'endpoint': f"'azureSubscription': '$({devops_project.CONNECTION})'" in jobs,
             'environment': f"'environment': '{devops_project.ENVIRONMENT}'" in jobs}
    assert {kind for kind in found if found[kind]} == set(uses)


def test_every_pipeline_of_devops_is_set_up():
    starts = {'devops/' + path.name for path in (ROOT / 'devops').glob('*.yml')
              if '\ntrigger:' in path.read_text()}
    assert starts == {path for _, path, _ in devops_project.PIPELINES}


def test_dry_run_shows_and_changes_nothing(ready):
    code, text = run(devops_project, dict(ready.env, DRY_RUN='1'))
    assert (code, ready.writes()) == (0, [])
    for line in ('create  variable group ' + devops_project.GROUP, 'RESOURCE_GROUP: none -> "rg"',
                 'create  environment safe-driver', 'approvers: none -> Jane Doe',
                 'create  pipeline safe-driver-pr, devops/pr.yml',
                 'update  use of service connection azure-resource-connection',
                 'pipeline safe-driver-ci: not allowed -> allowed',
                 'buildDefinitionId: none -> "that of safe-driver-pr"', 'Dry run: nothing'):
        assert line in text


def test_apply_then_apply_again(ready):
    code, text = run(devops_project, ready.env)
    assert code == 0
    assert group(ready)['variables'] == EVERYTHING
    assert [one['projectReference']['name'] for one in group(ready)[
        'variableGroupProjectReferences']] == ['Safe Driver']
    assert {one['name']: one['process']['yamlFilename'] for one in ready.definitions.values()} == {
        'safe-driver-pr': '/devops/pr.yml', 'safe-driver-ci': '/devops/ci.yml',
        'safe-driver-workspace': '/devops/workspace.yml'}
    check, lock = ready.checks.values()
    assert (lock['type']['name'], lock['settings']) == ('ExclusiveLock', {})
    assert [one['id'] for one in check['settings']['approvers']] == [ready.users[0]['id']]
    users = ['safe-driver-ci', 'safe-driver-workspace']
    assert allowed(ready) == {'variablegroup': users, 'endpoint': users,
                              'environment': ['safe-driver-ci']}
    assert len(ready.policies) == 3
    assert 'Run safe-driver-workspace once' in text and 'Run safe-driver-ci once' in text

    ready.requests.clear()
    for one in ready.definitions.values():
        one['latestBuild'] = {'id': 1}
    # The values are in the group now: nobody has to have them at hand.
    for name in VALUES:
        del ready.env[name]
    code, text = run(devops_project, ready.env)
    assert (code, 'Nothing to change.' in text, 'Left for you' in text) == (0, True, False)
    assert ready.writes() == []


def lose_pipeline(service):
    for number in [one['id'] for one in service.definitions.values()
                   if one['name'] == 'safe-driver-ci']:
        del service.definitions[number]
    service.permissions.clear()


# {how the set-up says it: how a stranger changes something}
DRIFT = {
    'LOCATION: "eastus" -> "westeurope"':
        lambda service: group(service)['variables'].update(LOCATION={'value': 'eastus'}),
    'WORKSPACE_NAME: none -> "work"':
        lambda service: group(service)['variables'].pop('WORKSPACE_NAME'),
    'pipeline safe-driver-ci: not allowed -> allowed':
        lambda service: [users.clear() for users in service.permissions.values()],
    'approvers: none -> Jane Doe': lambda service: service.checks.clear(),
    'isDisabled: true -> false':
        lambda service: next(iter(service.checks.values())).update(isDisabled=True),
    'create  pipeline safe-driver-ci': lose_pipeline,
    'create  policy "all comments resolved"': lambda service: service.policies.popitem(),
}


@pytest.mark.parametrize('line', sorted(DRIFT))
def test_drift_is_put_right(ready, line):
    run(devops_project, ready.env)
    DRIFT[line](ready)
    code, text = run(devops_project, ready.env)
    assert (code, line in text) == (0, True)
    assert group(ready)['variables'] == EVERYTHING
    assert not next(iter(ready.checks.values())).get('isDisabled')
    assert allowed(ready)['variablegroup'] == ['safe-driver-ci', 'safe-driver-workspace']
    assert (len(ready.definitions), len(ready.policies), len(ready.checks)) == (3, 3, 2)
    assert 'Nothing to change' in run(devops_project, ready.env)[1]


def test_variables_and_secrets_of_others_stay(ready):
    run(devops_project, ready.env)
    group(ready)['variables'].update(MINE={'value': 'x'}, PASSWORD={'isSecret': True, 'value': 's'})
    group(ready)['description'] = 'ours'
    projects = group(ready)['variableGroupProjectReferences']
    projects.append({'name': devops_project.GROUP,
                     'projectReference': {'id': ready.organisation_id}})
    projects = copy.deepcopy(projects)
    code, text = run(devops_project, dict(ready.env, LOCATION='eastus'))
    assert code == 0
    assert group(ready)['variables'] == dict(
        EVERYTHING, LOCATION={'value': 'eastus'}, MINE={'value': 'x'},
        PASSWORD={'isSecret': True, 'value': 's'})
    assert group(ready)['description'] == 'ours'
    assert group(ready)['variableGroupProjectReferences'] == projects


def test_a_value_that_somebody_made_secret_is_left_alone(ready):
    run(devops_project, ready.env)
    secret = {'isSecret': True, 'value': SUBSCRIPTION}
    group(ready)['variables']['SUBSCRIPTION_ID'] = dict(secret)
    assert 'Nothing to change' in run(devops_project, ready.env)[1]
    del ready.env['SUBSCRIPTION_ID']
    assert run(devops_project, dict(ready.env, LOCATION='eastus'))[0] == 0
    assert group(ready)['variables']['SUBSCRIPTION_ID'] == secret


def test_names_of_variables_are_the_same_in_upper_and_lower_case(ready):
    run(devops_project, ready.env)
    variables = group(ready)['variables']
    variables['location'] = variables.pop('LOCATION')
    run(devops_project, dict(ready.env, LOCATION='eastus'))
    assert group(ready)['variables']['location'] == {'value': 'eastus'}
    assert 'LOCATION' not in group(ready)['variables']


def test_base_name_gives_the_other_names(ready):
    for name in ('RESOURCE_GROUP', 'WORKSPACE_NAME'):
        del ready.env[name]
    assert run(devops_project, dict(ready.env, BASE_NAME='abc'))[0] == 0
    assert group(ready)['variables']['RESOURCE_GROUP'] == {'value': 'abc-RG'}
    assert group(ready)['variables']['WORKSPACE_NAME'] == {'value': 'abc-AML-WS'}


@pytest.mark.parametrize('point', ['POST .*variablegroups', 'POST .*environments', 'POST .*checks',
                                   'GET .*endpoints', 'POST .*_apis/pipelines$',
                                   'PATCH .*variablegroup', 'POST .*policy'])
def test_what_failed_half_way_is_finished_by_the_next_run(ready, point):
    ready.misbehave('no access', point)
    code, text = run(devops_project, ready.env)
    assert (code, 'error: No permission to ' in text) == (1, True)
    code, text = run(devops_project, ready.env)
    assert code == 0
    assert (len(ready.groups), len(ready.environments), len(ready.checks), len(ready.definitions),
            len(ready.policies)) == (1, 1, 2, 3, 3)


def test_before_the_code_is_pushed(ready):
    ready.branches[ready.repositories[0]['id']] = []
    code, text = run(devops_project, ready.env)
    assert code == 1
    assert (len(ready.groups), len(ready.checks), len(ready.definitions)) == (1, 2, 0)
    assert '_git/safe-driver HEAD:refs/heads/master' in text
    assert 'Not complete' in text
    ready.branches[ready.repositories[0]['id']] = ['master']
    assert run(devops_project, ready.env)[0] == 0


def test_without_a_service_connection(ready):
    ready.endpoints.clear()
    code, text = run(devops_project, ready.env)
    assert code == 1
    assert 'Create the service connection azure-resource-connection: ' in text
    assert 'Workload identity federation' in text
    assert '/contoso/Safe%20Driver/_settings/adminservices' in text
    assert len(ready.policies) == 3
    ready.add_connection('azure-resource-connection')
    code, text = run(devops_project, ready.env)
    assert (code, text.count('update  ')) == (0, 1)
    assert allowed(ready)['endpoint'] == ['safe-driver-ci', 'safe-driver-workspace']


def test_another_connection_name(ready):
    ready.add_connection('mine')
    run(devops_project, ready.env)
    code, text = run(devops_project, dict(ready.env, AZURE_RM_SVC_CONNECTION='mine'))
    assert 'AZURE_RM_SVC_CONNECTION: "azure-resource-connection" -> "mine"' in text
    assert 'use of service connection mine' in text


def test_the_approver_is_a_setting(ready):
    code, text = run(devops_project, dict(ready.env, APPROVER='kim@contoso.com'))
    assert (code, 'approvers: none -> Kim Lee' in text) == (0, True)
    # Without the setting any approval that is there will do.
    assert 'Nothing to change' in run(devops_project, ready.env)[1]
    ready.checks[next(iter(ready.checks))]['settings']['minRequiredApprovers'] = 2
    code, text = run(devops_project, dict(ready.env, APPROVER='[Safe Driver]\\Contributors'))
    check, lock = ready.checks.values()
    assert [one['id'] for one in check['settings']['approvers']] == [
        ready.users[1]['id'], ready.users[2]['id']]
    assert check['settings']['minRequiredApprovers'] == 2


@pytest.mark.parametrize('spoil, approver, words', [
    (lambda ready: ready.repositories[0].update(defaultBranch='refs/heads/main'), '',
     'Make master the default branch'),
    (lambda ready: ready.add_pipeline('safe-driver-ci', 'other.yml',
                                      ready.add_repository('other', ['main'])), '',
     'already exists'),
    (lambda ready: None, 'nobody@contoso.com', "APPROVER is 'nobody@contoso.com'")])
def test_what_only_a_person_can_put_right_is_said(ready, spoil, approver, words):
    spoil(ready)
    code, text = run(devops_project, dict(ready.env, APPROVER=approver))
    assert (code, words in text) == (1, True)


def test_a_build_identity_cannot_approve(ready):
    env = dict(ready.env, AZURE_DEVOPS_EXT_PAT='', SYSTEM_ACCESSTOKEN=ready.system_token)
    code, text = run(devops_project, env)
    assert (code, 'set APPROVER to the mail address' in text) == (1, True)
    assert run(devops_project, dict(env, APPROVER='kim@contoso.com'))[0] == 0


def test_a_pipeline_under_another_name_is_taken_as_it_is(ready):
    mine = ready.add_pipeline('My CI', 'devops/ci.yml')
    code, text = run(devops_project, ready.env)
    assert 'ok      pipeline My CI, devops/ci.yml' in text
    assert len(ready.definitions) == 3
    assert 'My CI' in allowed(ready)['environment']


def test_a_group_of_a_key_vault_is_not_touched(ready):
    run(devops_project, ready.env)
    group(ready)['type'] = 'AzureKeyVault'
    before = copy.deepcopy(ready.groups)
    code, text = run(devops_project, dict(ready.env, LOCATION='eastus'))
    assert (code, 'key vault' in text, ready.groups == before) == (1, True, True)


def test_environment_with_a_longer_name_is_another_one(ready):
    ready.environments[99] = {'id': 99, 'name': 'safe-driver-old'}
    run(devops_project, ready.env)
    assert sorted(one['name'] for one in ready.environments.values()) == [
        'safe-driver', 'safe-driver-old']


def test_all_that_is_missing_at_once(service):
    code, text = run(devops_project, {})
    assert code == 2
    for name in ('AZURE_DEVOPS_ORG_URL', 'AZURE_DEVOPS_EXT_PAT', 'SUBSCRIPTION_ID', 'LOCATION'):
        assert name in text
    code, text = run(devops_project, service.env)
    assert (code, service.writes()) == (2, [])
    assert 'SUBSCRIPTION_ID is not set' in text and 'WORKSPACE_NAME is not set' in text


def spoilt_forms(body):
    """Wrong forms of an answer, as they are sent: {what is wrong: text}."""
    forms = {'null': 'null', 'empty': '', 'HTML': '<html></html>', 'text': '"x"', 'list': '[]'}
    is_list = isinstance(body.get('value'), list)
    item = body['value'][0] if is_list and body['value'] else body
    for name, value in item.items():
        less = {key: item[key] for key in item if key != name}
        other = dict(item, **{name: 'x' if isinstance(value, (dict, list)) else []})
        for what, one in (('missing', less), ('of another type', other)):
            forms[f'{name} {what}'] = json.dumps({'value': [one]} if item is not body else one)
    return forms


# Other tests cover these lines; here they would be counted thousands of times.
@pytest.mark.no_cover
def test_an_answer_of_another_form_is_a_sentence(ready, monkeypatch):
    answers, spoilt, form = {}, None, None

    class Adapter(requests.adapters.BaseAdapter):
        """Requests to the stand-in without sockets, since here there are thousands."""

        def send(self, request, **_):
            _, _, body = ready.answer(
                request.method, request.path_url, request.headers, request.body)
            path = re.sub(r'/\d+|/[0-9a-f-]{36}', '/N', request.path_url.partition('?')[0])
            kind = request.method, path, bool(body.get('value', True))
            answers.setdefault(kind, spoilt_forms(body))
            response = requests.Response()
            response.request, response.url, response.status_code = request, request.url, 200
            text = answers[kind][form] if kind == spoilt else json.dumps(body)
            response.raw = io.BytesIO(text.encode())
            return response

    monkeypatch.setattr(requests.Session, 'get_adapter', lambda self, url: Adapter())
    # Of everything something is to be made, then to be put right: every kind of request is sent.
    for lines in ([], [line for line in DRIFT if not line.startswith(('create  pip', 'approv'))]):
        for line in lines:
            DRIFT[line](ready)
        before = {name: copy.deepcopy(getattr(ready, name)) for name in (
            'groups', 'environments', 'checks', 'definitions', 'policies', 'permissions')}
        known = set(answers)
        assert run(devops_project, ready.env)[0] == 0
        for spoilt in [kind for kind in answers if kind not in known]:
            for form in answers[spoilt]:
                for name, table in before.items():
                    setattr(ready, name, copy.deepcopy(table))
                code, text = run(devops_project, ready.env)
                said = text.count('error: ') + text.count('Not complete')
                assert (code in (0, 1), said) == (True, code), (spoilt, form, text)
                if (form, code) == ('null', 0):
                    # Nobody looks at this answer.
                    break
        spoilt = None
        run(devops_project, ready.env)
    assert len(answers) > 20
