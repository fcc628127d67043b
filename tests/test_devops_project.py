"""Set-up of the project on Azure DevOps on loopback."""
import collections
import copy
import itertools
import json
import re

import pytest
import requests

import devops_project
import pipeline_yaml
from conftest import ROOT
from test_azure_devops import run, service

VALUES = {'SUBSCRIPTION_ID': '00000000-0000-0000-0000-000000000001', 'RESOURCE_GROUP': 'rg',
          'WORKSPACE_NAME': 'work', 'LOCATION': 'westeurope'}
PR, WORKSPACE, CI, RETRAIN, ROLLBACK = [name for name, _, _ in devops_project.PIPELINES]
QA, PRODUCTION = [name for name, _, _ in devops_project.ENVIRONMENTS]
VARIABLES = dict({name: {'value': value} for name, value in VALUES.items()},
                 AZURE_RM_SVC_CONNECTION={'value': 'azure-resource-connection'})
NIGHTLY = ("schedules:\n- cron: '0 2 * * *'\n  branches:\n    include:\n    - master\n"
           '  always: true\n')


@pytest.fixture
def ready(service, monkeypatch, tmp_path):
    """A project in which a person has done their part: the connection and the push."""
    monkeypatch.setattr(devops_project, 'DEVOPS', tmp_path)
    (tmp_path / 'ci.yml').write_text('trigger: [master]\n')
    (tmp_path / 'retrain.yml').write_text(NIGHTLY)
    service.add_connection('azure-resource-connection')
    service.env.update(VALUES)
    return service


@pytest.fixture
def done(ready):
    """A project that is set up."""
    assert run(devops_project, ready.env)[0] == 0
    return ready


def group(service):
    return next(iter(service.groups.values()))


def check_set_up(service):
    """Assert that everything is there, once."""
    assert group(service)['variables'] == VARIABLES
    assert [one['projectReference']['name'] for one in group(service)[
        'variableGroupProjectReferences']] == ['Safe Driver']
    assert {(one['name'], one['process']['yamlFilename'][1:])
            for one in service.definitions.values()} == {
                row[:2] for row in devops_project.PIPELINES}
    found = {(one['resource']['name'], one['type']['name']): one
             for one in service.checks.values()}
    assert sorted(found) == [(name, kind) for name in (QA, PRODUCTION)
                             for kind in ('Approval', 'ExclusiveLock')]
    for (_, kind), check in found.items():
        assert not check['isDisabled']
        assert check['settings'] == {} if kind == 'ExclusiveLock' else [
            one['id'] for one in check['settings']['approvers']] == [service.users[0]['id']]
    assert allowed(service) == {
        kind: sorted(name for name, _, uses in devops_project.PIPELINES if kind in uses)
        for kind in devops_project.KINDS}
    assert (len(service.groups), len(service.environments), len(service.definitions),
            len(service.policies), len(service.checks)) == (1, 2, 5, 3, 4)


def allowed(service):
    """{kind of resource: names of the pipelines that may use each of this kind}."""
    found = {}
    for (kind, _), users in service.permissions.items():
        names = {service.definitions[one]['name'] for one, yes in users.items() if yes}
        found[kind] = found.get(kind, names) & names
    return {kind: sorted(names) for kind, names in found.items()}


def test_every_pipeline_of_devops_is_set_up_with_what_its_yaml_uses():
    found = {}
    for path in (ROOT / 'devops').glob('*.yml'):
        text = path.read_text()
        if '\ntrigger:' not in text:
            continue
        pipeline = pipeline_yaml.read_pipeline(path, changes={'PRODUCTION': 'endpoint'})
        jobs = str(pipeline.get('stages') or pipeline['jobs'])
        named = set(re.findall("'environment': '(.*?)'", jobs))
        assert named <= {QA, PRODUCTION}
        uses = {'variablegroup': devops_project.GROUP in pipeline_yaml.groups(pipeline),
                'endpoint': f"'azureSubscription': '$({devops_project.CONNECTION})'" in jobs,
                'environment': bool(named)}
        found['devops/' + path.name] = {kind for kind in uses if uses[kind]}
        for one in [pipeline['trigger']] * (path.name == 'ci.yml') + pipeline.get('schedules', []):
            assert devops_project.started_branches(
                text, 'trigger' if path.name == 'ci.yml' else 'schedules') == one[
                    'branches']['include']
    assert found == {path: set(uses) for _, path, uses in devops_project.PIPELINES}


def test_dry_run_shows_and_changes_nothing(ready):
    # Without a name of its own, the workspace has that of BASE_NAME.
    del ready.env['WORKSPACE_NAME']
    code, text = run(devops_project, dict(ready.env, DRY_RUN='1', BASE_NAME='abc'))
    assert (code, ready.writes()) == (0, [])
    for line in ('create  variable group ' + devops_project.GROUP, 'RESOURCE_GROUP: none -> "rg"',
                 'WORKSPACE_NAME: none -> "abc-AML-WS"',
                 'create  environment ' + QA, 'create  environment ' + PRODUCTION,
                 'approvers: none -> Jane Doe', 'create  exclusive lock on ' + PRODUCTION,
                 f'create  pipeline {PR}, devops/pr.yml',
                 'update  use of service connection azure-resource-connection',
                 f'pipeline {CI}: not allowed -> allowed',
                 f'buildDefinitionId: none -> "that of {PR}"', 'Dry run: nothing'):
        assert line in text


def test_apply_then_apply_again(ready):
    code, text = run(devops_project, ready.env)
    assert code == 0
    check_set_up(ready)
    assert f'Run {WORKSPACE} once' in text and f'Run {CI} once' in text

    ready.requests.clear()
    for one in ready.definitions.values():
        one['latestBuild'] = {'id': 1}
    # The values are in the group now: nobody has to have them at hand.
    for name in VALUES:
        del ready.env[name]
    code, text = run(devops_project, ready.env)
    assert (code, 'Nothing to change.' in text, 'Left for you' in text) == (0, True, False)
    assert ready.writes() == []


def make_strange(service):
    """What strangers changed or took away; how the set-up says it."""
    group(service)['variables'].update(LOCATION={'value': 'eastus'})
    group(service)['variables'].pop('WORKSPACE_NAME')
    for users in service.permissions.values():
        users.clear()
    next(iter(service.checks.values())).update(isDisabled=True)
    service.checks.popitem()
    service.policies.popitem()
    next(iter(service.policies.values())).update(isBlocking=False)
    service.definitions.popitem()
    return ('LOCATION: "eastus" -> "westeurope"', 'WORKSPACE_NAME: none -> "work"',
            f'pipeline {CI}: not allowed -> allowed', 'isDisabled: true -> false',
            'create  exclusive lock on ' + PRODUCTION, 'create  pipeline ' + ROLLBACK,
            'create  policy "all comments resolved"', 'isBlocking: false -> true')


def test_drift_is_put_right(done):
    lines = make_strange(done)
    code, text = run(devops_project, done.env)
    assert (code, [line for line in lines if line not in text]) == (0, [])
    check_set_up(done)
    assert 'Nothing to change' in run(devops_project, done.env)[1]


def test_what_others_put_in_the_group_stays(done):
    variables = group(done)['variables']
    # A value of ours that somebody made secret is left alone and need not be known.
    variables.update(MINE={'value': 'x'}, PASSWORD={'isSecret': True, 'value': 's'},
                     SUBSCRIPTION_ID={'isSecret': True, 'value': VALUES['SUBSCRIPTION_ID']})
    # Azure DevOps takes both spellings for the same variable.
    variables['location'] = variables.pop('LOCATION')
    group(done)['description'] = 'ours'
    group(done)['variableGroupProjectReferences'].append(
        {'name': devops_project.GROUP, 'projectReference': {'id': done.organisation_id}})
    wanted = copy.deepcopy(group(done))
    assert 'Nothing to change' in run(devops_project, done.env)[1]
    wanted['variables']['location'] = {'value': 'eastus'}
    del done.env['SUBSCRIPTION_ID']
    assert run(devops_project, dict(done.env, LOCATION='eastus'))[0] == 0
    assert group(done) == wanted


@pytest.mark.end_to_end
def test_what_failed_half_way_is_finished_by_the_next_run(ready):
    for point, needed in (
            ('POST .*variablegroups', "the role 'Administrator' on the variable group"),
            ('POST .*environments', "the role 'Administrator' on the environment"),
            ('POST .*checks', "the role 'Administrator' on the environment"),
            # Of the second environment, now that the first is there.
            ('POST .*environments', "the role 'Administrator' on the environment"),
            ('POST .*checks', "the role 'Administrator' on the environment"),
            ('GET .*endpoints', "the role 'Reader' on the service connections"),
            ('POST .*_apis/pipelines$', "'Create build pipeline'"),
            ('PATCH .*variablegroup', "the role 'Administrator' on the variable group"),
            ('PATCH .*environment', "the role 'Administrator' on the environment"),
            ('POST .*policy', "'Edit policies' on the repository")):
        ready.misbehave('no access', point)
        code, text = run(devops_project, ready.env)
        assert code == 1
        assert re.search('^error: No permission to .* Ask for: ' + needed, text, re.M), text
    assert run(devops_project, ready.env)[0] == 0
    check_set_up(ready)


def test_what_waits_for_a_person_is_done_by_a_later_run(ready):
    ready.endpoints.clear()
    branches = ready.branches[ready.repositories[0]['id']]
    branches.remove('master')
    code, text = run(devops_project, ready.env)
    assert (code, len(ready.groups), len(ready.checks), len(ready.definitions)) == (1, 1, 4, 0)
    for words in ('_git/safe-driver HEAD:refs/heads/master',
                  'Create the service connection azure-resource-connection: ',
                  'Workload identity federation', 'Not complete',
                  '/contoso/Safe%20Driver/_settings/adminservices'):
        assert words in text
    branches.append('master')
    assert (run(devops_project, ready.env)[0], len(ready.policies)) == (1, 3)
    ready.add_connection('azure-resource-connection')
    code, text = run(devops_project, ready.env)
    assert (code, text.count('update  ')) == (0, 1)
    check_set_up(ready)


def test_production_may_have_an_approver_of_its_own(ready):
    code, text = run(devops_project, dict(
        ready.env, APPROVER='kim@contoso.com', PRODUCTION_APPROVER='[Safe Driver]\\Contributors'))
    found = {one['resource']['name']: [who['id'] for who in one['settings']['approvers']]
             for one in ready.checks.values() if 'approvers' in one['settings']}
    assert (code, found) == (0, {QA: [ready.users[1]['id']], PRODUCTION: [ready.users[2]['id']]})


def test_the_approver_is_a_setting(ready):
    builds = dict(ready.env, AZURE_DEVOPS_EXT_PAT='', SYSTEM_ACCESSTOKEN=ready.system_token)
    code, text = run(devops_project, builds)
    assert (code, 'set APPROVER to the mail address' in text) == (1, True)
    code, text = run(devops_project, dict(builds, APPROVER='kim@contoso.com'))
    assert (code, 'approvers: none -> Kim Lee' in text) == (0, True)
    # Without the setting any approval that is there will do.
    for env in (builds, ready.env):
        assert 'Nothing to change' in run(devops_project, env)[1]
    check = next(iter(ready.checks.values()))
    check['settings']['minRequiredApprovers'] = 2
    run(devops_project, dict(ready.env, APPROVER='[Safe Driver]\\Contributors'))
    assert [one['id'] for one in check['settings']['approvers']] == [
        ready.users[1]['id'], ready.users[2]['id']]
    assert check['settings']['minRequiredApprovers'] == 2


def test_a_branch_whose_pushes_start_nothing_is_said(done):
    done.branches[done.repositories[0]['id']].append('main')
    done.repositories[0]['defaultBranch'] = 'refs/heads/main'
    code, text = run(devops_project, dict(done.env, BRANCH='main'))
    assert (code, 'pushes to main start devops/ci.yml (trigger: master)' in text,
            'a schedule on main start devops/retrain.yml (schedules: master)' in text) == (
                1, True, True)
    (devops_project.DEVOPS / 'ci.yml').write_text('trigger: [main]\n')
    (devops_project.DEVOPS / 'retrain.yml').write_text(NIGHTLY.replace('master', 'main'))
    assert run(devops_project, dict(done.env, BRANCH='main'))[0] == 0


@pytest.mark.parametrize('text, branches', [
    ('trigger:\n- main\npr: none', ['main']), ('trigger: none\npr: [x]', []),
    ('pr: [x]', ['*']), ('trigger: [main, "refs/heads/rel/*"]', ['main', 'rel/*']),
    ("trigger:\n  branches:\n    include:\n    - 'main' # x\n    exclude:\n    - old", ['main']),
    ('trigger:\n  branches: {include: [main]}\n  paths:\n    include:\n    - docs', ['main'])])
def test_the_branches_of_a_trigger_are_read_in_all_its_forms(text, branches):
    assert devops_project.started_branches(text) == branches


@pytest.mark.parametrize('spoil, approver, words', [
    (lambda done: done.repositories[0].update(defaultBranch='refs/heads/main'), '',
     'Make master the default branch, where pipelines look for their YAML, or set BRANCH'),
    (lambda done: list(done.definitions.values())[-1]['process'].update(yamlFilename='other.yml'),
     '', 'already exists'),
    (lambda done: group(done).update(type='AzureKeyVault'), '', 'key vault'),
    (lambda done: None, 'nobody@contoso.com', "APPROVER is 'nobody@contoso.com'")])
def test_what_only_a_person_can_put_right_is_said(done, spoil, approver, words):
    spoil(done)
    before = copy.deepcopy((done.groups, done.checks, done.definitions, done.policies))
    code, text = run(devops_project, dict(done.env, APPROVER=approver))
    assert (code, words in text) == (1, True)
    assert (done.groups, done.checks, done.definitions, done.policies) == before


def test_names_of_others(ready):
    """A pipeline is known by its file, the environment by its whole name."""
    ready.add_pipeline('My CI', 'devops/ci.yml')
    ready.environments[99] = {'id': 99, 'name': QA + '-old'}
    ready.add_connection('mine')
    code, text = run(devops_project, dict(ready.env, AZURE_RM_SVC_CONNECTION='mine'))
    assert 'ok      pipeline My CI, devops/ci.yml' in text
    assert 'update  use of service connection mine' in text
    assert group(ready)['variables']['AZURE_RM_SVC_CONNECTION'] == {'value': 'mine'}
    assert (allowed(ready)['environment'], len(ready.definitions)) == (
        ['My CI', RETRAIN, ROLLBACK], 5)
    assert len(ready.environments) == 3


def test_all_that_is_missing_at_once(service):
    code, text = run(devops_project, {})
    assert (code, 'AZURE_DEVOPS_EXT_PAT' in text, 'LOCATION' in text) == (2, True, True)
    code, text = run(devops_project, service.env)
    assert (code, service.writes()) == (2, [])
    assert 'SUBSCRIPTION_ID is not set' in text and 'WORKSPACE_NAME is not set' in text


def spoilt_forms(body):
    """Wrong forms of an answer, as they are sent."""
    forms = ['null', '', '<html></html>', '"x"', '[]']
    is_list = isinstance(body.get('value'), list)
    item = body['value'][0] if is_list and body['value'] else body
    for name, value in item.items():
        less = {key: item[key] for key in item if key != name}
        other = dict(item, **{name: 'x' if isinstance(value, (dict, list)) else []})
        forms += [json.dumps({'value': [one]} if item is not body else one)
                  for one in (less, other)]
    return forms


# Other tests cover these lines; here they would be counted thousands of times.
@pytest.mark.no_cover
@pytest.mark.end_to_end
def test_an_answer_of_another_form_is_a_sentence(ready, monkeypatch):
    """The answers of two runs are played back, each in turn in another form."""
    send, recorded, tried = requests.Session.request, {}, set()

    def kind_of(method, url):
        return method, re.sub(r'/\d+|/[0-9a-f-]{36}', '/N', url)

    def record(session, method, url, **more):
        response = send(session, method, url, **more)
        latest[kind_of(method, url)].append(response.json())
        return response

    def play(session, method, url, **more):
        kind, response = kind_of(method, url), requests.Response()
        body = json.dumps(next(left[kind]))
        response.status_code = 200
        response._content = (form if kind == spoilt else body).encode()
        return response

    # Of everything something is to be made, then to be put right: every kind of request is sent.
    for drift in (None, make_strange):
        if drift:
            drift(ready)
        latest = collections.defaultdict(list)
        monkeypatch.setattr(requests.Session, 'request', record)
        assert run(devops_project, ready.env)[0] == 0
        recorded.update(latest)
        monkeypatch.setattr(requests.Session, 'request', play)
        for spoilt, form in [(kind, form) for kind in latest for form in spoilt_forms(
                latest[kind][0]) if (kind, form) not in tried]:
            tried.add((spoilt, form))
            left = {kind: itertools.chain(answers, itertools.repeat(answers[-1]))
                    for kind, answers in recorded.items()}
            code, text = run(devops_project, ready.env)
            # What Python itself says of a wrong value begins with a small letter.
            said = len(re.findall('error: [A-Z0-9]|Not complete', text))
            assert (code in (0, 1), said) == (True, code), (spoilt, form, text)
    assert len(recorded) > 15
