"""Set-up of the project on Azure DevOps on loopback. `pytest -s` prints the acceptance table."""
import copy
import io
import json
import re

import pytest
import requests

import devops_project
from conftest import ROOT
from test_azure_devops import row, run, service, waits

GROUP = 'devopsforai-aml-vg'
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


def test_the_yaml_says_what_each_pipeline_uses():
    found = {path: devops_project.used_resources(ROOT / path)
             for _, path in devops_project.PIPELINES}
    both = {('variablegroup', GROUP), ('endpoint', '$(AZURE_RM_SVC_CONNECTION)')}
    assert found == {
        # It runs code that nobody has reviewed.
        'devops/pr.yml': set(),
        'devops/ci.yml': both | {('environment', 'safe-driver')},
        'devops/workspace.yml': both,
    }


def test_every_pipeline_of_devops_is_set_up():
    starts = {'devops/' + path.name for path in (ROOT / 'devops').glob('*.yml')
              if '\ntrigger:' in path.read_text()}
    assert starts == {path for _, path in devops_project.PIPELINES}


def test_dry_run_shows_and_changes_nothing(ready):
    code, text = run(devops_project, dict(ready.env, DRY_RUN='1'))
    row('devops-project, dry run', code, text.partition('\n\n')[0])
    assert (code, ready.writes()) == (0, [])
    for line in ('create  variable group ' + GROUP, 'RESOURCE_GROUP: none -> "rg"',
                 'create  environment safe-driver', 'approvers: none -> Jane Doe',
                 'create  pipeline safe-driver-pr, devops/pr.yml',
                 'update  use of service connection azure-resource-connection',
                 'pipeline safe-driver-ci: not allowed -> allowed',
                 'buildDefinitionId: none -> "that of safe-driver-pr"', 'Dry run: nothing'):
        assert line in text


def test_apply_then_apply_again(ready):
    code, text = run(devops_project, ready.env)
    row('devops-project, apply', code, text.partition('\n\n')[0])
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
    row('devops-project, apply again', code, text)
    assert (code, 'Nothing to change.' in text, 'Left for you' in text) == (0, True, False)
    assert ready.writes() == []


def spoil_group(service):
    group(service)['variables']['LOCATION']['value'] = 'eastus'
    return 'LOCATION: "eastus" -> "westeurope"'


def spoil_variable(service):
    del group(service)['variables']['WORKSPACE_NAME']
    return 'WORKSPACE_NAME: none -> "work"'


def spoil_permission(service):
    for users in service.permissions.values():
        users.clear()
    return 'pipeline safe-driver-ci: not allowed -> allowed'


def spoil_approval(service):
    service.checks.clear()
    return 'approvers: none -> Jane Doe'


def switch_off_approval(service):
    next(iter(service.checks.values()))['isDisabled'] = True
    return 'isDisabled: true -> false'


def spoil_pipeline(service):
    for number in [one['id'] for one in service.definitions.values()
                   if one['name'] == 'safe-driver-ci']:
        del service.definitions[number]
    service.permissions.clear()
    return 'create  pipeline safe-driver-ci'


def spoil_policy(service):
    service.policies.popitem()
    return 'create  policy "all comments resolved"'


@pytest.mark.parametrize('spoil', [spoil_group, spoil_variable, spoil_permission, spoil_approval,
                                   switch_off_approval, spoil_pipeline, spoil_policy],
                         ids=lambda one: one.__name__)
def test_drift_is_put_right(ready, spoil):
    run(devops_project, ready.env)
    line = spoil(ready)
    code, text = run(devops_project, ready.env)
    row('devops-project, drift: ' + line.strip(), code, text.partition('\n\n')[0])
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
    projects.append({'name': GROUP, 'projectReference': {'id': ready.organisation_id}})
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
    row(f'devops-project, no permission at {point}', code, text)
    assert (code, 'error: No permission to ' in text) == (1, True)
    code, text = run(devops_project, ready.env)
    assert code == 0
    assert (len(ready.groups), len(ready.environments), len(ready.checks), len(ready.definitions),
            len(ready.policies)) == (1, 1, 2, 3, 3)


def test_before_the_code_is_pushed(ready):
    ready.branches[ready.repositories[0]['id']] = []
    code, text = run(devops_project, ready.env)
    row('devops-project, nothing pushed yet', code, text)
    assert code == 1
    assert (len(ready.groups), len(ready.checks), len(ready.definitions)) == (1, 2, 0)
    assert '_git/safe-driver HEAD:refs/heads/master' in text
    assert 'Not complete' in text
    ready.branches[ready.repositories[0]['id']] = ['master']
    assert run(devops_project, ready.env)[0] == 0


def test_without_a_service_connection(ready):
    ready.endpoints.clear()
    code, text = run(devops_project, ready.env)
    row('devops-project, no service connection', code, text)
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


def test_another_default_branch_is_said(ready):
    ready.repositories[0]['defaultBranch'] = 'refs/heads/main'
    code, text = run(devops_project, ready.env)
    assert (code, 'Make master the default branch' in text) == (1, True)


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


def test_an_unknown_approver(ready):
    code, text = run(devops_project, dict(ready.env, APPROVER='nobody@contoso.com'))
    row('devops-project, unknown approver', code, text)
    assert (code, "APPROVER is 'nobody@contoso.com'" in text) == (1, True)


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


def test_a_name_that_another_pipeline_has(ready):
    ready.add_pipeline('safe-driver-ci', 'other.yml', ready.add_repository('other', ['main']))
    code, text = run(devops_project, ready.env)
    row('devops-project, name taken', code, text)
    assert (code, 'already exists' in text) == (1, True)


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
    row('devops-project, no settings', code, text)
    assert code == 2
    for name in ('AZURE_DEVOPS_ORG_URL', 'AZURE_DEVOPS_EXT_PAT', 'SUBSCRIPTION_ID', 'LOCATION'):
        assert name in text
    code, text = run(devops_project, service.env)
    assert (code, service.writes()) == (2, [])
    assert 'SUBSCRIPTION_ID is not set' in text and 'WORKSPACE_NAME is not set' in text


@pytest.mark.parametrize('fault, words', [
    ('expired', 'AZURE_DEVOPS_EXT_PAT is not accepted (401)'),
    ('sign-in page', '(203, a sign-in page)'), ('broken', '(HTTP 500)'), ('busy', '(429)'),
    ('not JSON', 'is not JSON')])
def test_bad_answers_are_sentences(ready, waits, fault, words):
    ready.misbehave(fault, times=9)
    code, text = run(devops_project, ready.env)
    row('devops-project, ' + fault, code, text)
    assert (code, words in text, ready.pat in text) == (1, True, False)


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
    for changes in ([], [spoil_group, spoil_permission, switch_off_approval, spoil_policy]):
        for change in changes:
            change(ready)
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


@pytest.mark.parametrize('path, change, words', [
    ('repositories$', lambda one: one.pop('project'),
     'asked to list the repositories, and its answer cannot be used: value[0].project is missing '
     'and must be an object'),
    ('repositories$', lambda one: one.update(project={'id': 7}),
     'value[0].project.id is 7 and must be text'),
    ('connectionData', lambda one: one.pop('authenticatedUser'),
     'asked to find out whose token this is, and its answer cannot be used: authenticatedUser is '
     'missing'),
])
def test_what_an_answer_lacks_is_named(ready, path, change, words):
    answer = ready.answer

    def answer_changed(method, target, *args):
        status, headers, body = copy.deepcopy(answer(method, target, *args))
        if re.search(path, target.partition('?')[0]):
            change(body['value'][0] if 'value' in body else body)
        return status, headers, body

    ready.answer = answer_changed
    code, text = run(devops_project, ready.env)
    row('devops-project, answer without a field', code, text)
    assert (code, words in text) == (1, True)
