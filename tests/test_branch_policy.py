"""Branch policies against Azure DevOps on loopback. `pytest -s` prints the acceptance table."""
import copy

import pytest

import azure_devops
import branch_policy
from loopback.azure_devops_contract import BUILD, COMMENTS, REVIEWERS, WORK_ITEMS
from test_azure_devops import row, run, service, waits

LISTING = 'GET /contoso/Safe%20Driver/_apis/policy'


@pytest.fixture
def ready(service):
    """A project whose pull request pipeline exists."""
    service.pipeline = service.add_pipeline('safe-driver-pr', '/devops/pr.yml')
    return service


def policies(service):
    return {one['type']['id']: one for one in service.policies.values()}


def test_dry_run_shows_and_changes_nothing(ready):
    code, text = run(branch_policy, dict(ready.env, DRY_RUN='1'))
    row('branch-policy, dry run', code, text)
    assert code == 0
    assert ready.writes() == []
    for line in ('create  policy "at least one reviewer', 'creatorVoteCounts: none -> false',
                 'minimumApproverCount: none -> 1', 'resetOnSourcePush: none -> true',
                 'blockLastPusherVote: none -> true', 'filenamePatterns: none -> []',
                 f"buildDefinitionId: none -> {ready.pipeline['id']}",
                 'create  policy "all comments resolved"', 'Dry run: nothing was changed'):
        assert line in text


def test_apply_then_apply_again(ready):
    code, text = run(branch_policy, ready.env)
    row('branch-policy, apply', code, text)
    assert (code, text.count('create  ')) == (0, 3)
    made = policies(ready)
    assert set(made) == {REVIEWERS, BUILD, COMMENTS}
    for one in made.values():
        assert one['isEnabled'] and one['isBlocking']
        assert one['settings']['scope'] == [dict(ready.scope()[0], matchKind='Exact')]
    reviewers, build = made[REVIEWERS]['settings'], made[BUILD]['settings']
    assert reviewers['minimumApproverCount'] == 1 and not reviewers['creatorVoteCounts']
    assert reviewers['resetOnSourcePush'] and reviewers['blockLastPusherVote']
    assert build['buildDefinitionId'] == ready.pipeline['id']
    assert not build.get('filenamePatterns')

    ready.requests.clear()
    code, text = run(branch_policy, ready.env)
    row('branch-policy, apply again', code, text)
    assert (code, 'Nothing to change.' in text) == (0, True)
    assert ready.writes() == []


@pytest.mark.parametrize('kind, field, value', [
    (REVIEWERS, 'isEnabled', False), (REVIEWERS, 'isBlocking', False),
    (REVIEWERS, 'creatorVoteCounts', True), (REVIEWERS, 'allowDownvotes', True),
    (REVIEWERS, 'resetOnSourcePush', False), (REVIEWERS, 'blockLastPusherVote', False),
    (BUILD, 'isBlocking', False), (BUILD, 'filenamePatterns', ['/training/*']),
    (BUILD, 'manualQueueOnly', True), (BUILD, 'validDuration', 720.0),
    (BUILD, 'queueOnSourceUpdateOnly', True), (BUILD, 'displayName', 'Other'),
    (COMMENTS, 'isEnabled', False)])
def test_drift_is_put_right(ready, kind, field, value):
    run(branch_policy, ready.env)
    wanted = copy.deepcopy(policies(ready))
    policy = policies(ready)[kind]
    (policy if field in policy else policy['settings'])[field] = value
    dry_code, dry = run(branch_policy, dict(ready.env, DRY_RUN='1'))
    assert (dry_code, dry.count('update  ')) == (0, 1)
    line, = [line.strip() for line in dry.splitlines() if ' -> ' in line]
    assert line.startswith(field + ': ')
    code, text = run(branch_policy, ready.env)
    row(f'branch-policy, drift: {line}', code, text)
    assert (code, text.count('update  ')) == (0, 1)
    found = policies(ready)
    assert len(ready.policies) == 3
    for name in (REVIEWERS, BUILD, COMMENTS):
        wanted[name].pop('revision'), found[name].pop('revision')
    assert found == wanted


def test_a_stricter_number_of_reviewers_stays(ready):
    run(branch_policy, ready.env)
    policies(ready)[REVIEWERS]['settings'].update(minimumApproverCount=2, allowDownvotes=True)
    code, text = run(branch_policy, ready.env)
    assert (code, 'minimumApproverCount' in text) == (0, False)
    assert policies(ready)[REVIEWERS]['settings']['minimumApproverCount'] == 2
    assert 'Nothing' in run(branch_policy, ready.env)[1]


def test_settings_that_are_not_ours_stay(ready):
    run(branch_policy, ready.env)
    policies(ready)[REVIEWERS]['settings'].update(requireVoteOnLastIteration=True)
    assert 'Nothing' in run(branch_policy, ready.env)[1]
    policies(ready)[REVIEWERS]['settings'].update(creatorVoteCounts=True)
    run(branch_policy, ready.env)
    assert policies(ready)[REVIEWERS]['settings']['requireVoteOnLastIteration']


def by_hand(service):
    """Policies of others that bear on master, and two that do not."""
    other = service.add_pipeline('slow tests', 'slow.yml')
    build = {'buildDefinitionId': other['id'], 'validDuration': 0, 'displayName': 'Slow tests'}
    return [
        service.add_policy(WORK_ITEMS, {'scope': service.scope()}, 'Kim Lee'),
        service.add_policy(BUILD, dict(build, scope=service.scope()), 'Kim Lee'),
        service.add_policy(COMMENTS, {'scope': [
            {'repositoryId': None, 'refName': 'refs/heads/', 'matchKind': 'Prefix'}]}),
        service.add_policy(REVIEWERS, {'minimumApproverCount': 2, 'scope': [
            {'repositoryId': None, 'refName': None, 'matchKind': 'DefaultBranch'}]}),
        service.add_policy(COMMENTS, {
            'scope': service.scope() + service.scope('release')}, isEnabled=False),
    ], [
        service.add_policy(COMMENTS, {'scope': service.scope('release')}),
        service.add_policy(COMMENTS, {'scope': service.scope(
            repository=service.add_repository('another', ['master']))}),
    ]


def test_policies_of_others_are_left_alone_and_reported(ready):
    bearing, elsewhere = by_hand(ready)
    before = copy.deepcopy(bearing + elsewhere)
    code, text = run(branch_policy, ready.env)
    print(text)
    assert (code, text.count('create  ')) == (0, 3)
    for one in bearing:
        assert f"left alone: policy {one['id']}, " in text
    assert 'Slow tests (required), made by Kim Lee' in text
    assert '(switched off)' in text
    assert text.count('left alone') == len(bearing)
    assert before == [ready.policies[one['id']] for one in before]
    assert 'Nothing' in run(branch_policy, ready.env)[1]


def test_every_page_of_the_list_is_read_before_anything_is_created(ready):
    by_hand(ready)
    run(branch_policy, ready.env)
    ready.page_size = 1
    assert 'Nothing' in run(branch_policy, ready.env)[1]


def test_duplicates_are_said_and_not_deleted(ready):
    run(branch_policy, ready.env)
    first = policies(ready)[COMMENTS]
    second = ready.add_policy(COMMENTS, copy.deepcopy(first['settings']))
    code, text = run(branch_policy, ready.env)
    assert code == 0
    assert f"duplicate: policy {second['id']} does the same as policy {first['id']}" in text
    assert 'Nothing to change' in text
    assert second['id'] in ready.policies


def test_a_pipeline_made_anew_takes_the_old_policys_place(ready):
    run(branch_policy, ready.env)
    number = policies(ready)[BUILD]['id']
    del ready.definitions[ready.pipeline['id']]
    again = ready.add_pipeline('safe-driver-pr', 'devops/pr.yml')
    code, text = run(branch_policy, ready.env)
    assert f"buildDefinitionId: {ready.pipeline['id']} -> {again['id']}" in text
    assert len(ready.policies) == 3
    assert ready.policies[number]['settings']['buildDefinitionId'] == again['id']


def test_a_second_pipeline_of_the_same_file_changes_nothing(ready):
    other = ready.add_pipeline('second', 'devops/pr.yml')
    run(branch_policy, ready.env)
    assert policies(ready)[BUILD]['settings']['buildDefinitionId'] == ready.pipeline['id']
    policies(ready)[BUILD]['settings']['buildDefinitionId'] = other['id']
    assert 'Nothing' in run(branch_policy, ready.env)[1]


def test_a_pipeline_that_is_switched_off_is_said(ready):
    ready.pipeline['queueStatus'] = 'disabled'
    assert 'safe-driver-pr, is disabled' in run(branch_policy, ready.env)[1]


def test_another_branch(ready):
    ready.branches[ready.repositories[0]['id']].append('release/1')
    code, text = run(branch_policy, dict(ready.env, BRANCH='release/1'))
    assert code == 0
    assert {one['settings']['scope'][0]['refName'] for one in ready.policies.values()} == {
        'refs/heads/release/1'}


def test_a_setting_that_the_service_drops_is_an_error(ready):
    ready.ignores = {'blockLastPusherVote'}
    code, text = run(branch_policy, ready.env)
    assert code == 1
    assert 'did not keep it all: blockLastPusherVote: false -> true' in text


def test_what_failed_half_way_is_finished_by_the_next_run(ready):
    ready.misbehave('no permission', 'POST', times=1)
    assert run(branch_policy, ready.env)[0] == 1
    code, text = run(branch_policy, ready.env)
    assert (code, len(ready.policies)) == (0, 3)


def test_no_settings_at_all():
    code, text = run(branch_policy, {})
    row('no settings', code, text)
    assert code == 2
    for name in ('AZURE_DEVOPS_ORG_URL', 'AZURE_DEVOPS_PROJECT', 'AZURE_DEVOPS_REPOSITORY',
                 'AZURE_DEVOPS_EXT_PAT'):
        assert name in text


@pytest.mark.parametrize('what, changes, words', [
    ('unknown organisation', {'AZURE_DEVOPS_ORG_URL': '/nobody'}, 'There is no organisation at '),
    ('unknown project', {'AZURE_DEVOPS_PROJECT': 'X'}, "There is no project 'X'"),
    ('unknown repository', {'AZURE_DEVOPS_REPOSITORY': 'X'}, "There is no repository 'X' in "
     "project 'Safe Driver', or the owner of the token may not read it. There is: safe-driver"),
    ('branch that does not exist', {'BRANCH': 'main'}, "Branch 'main' does not exist yet in "
     "repository 'safe-driver' (there is: master). Push it first: git push https://"),
    ('wrong token', {'AZURE_DEVOPS_EXT_PAT': 'x'}, 'AZURE_DEVOPS_EXT_PAT is not accepted (401)'),
    ('DRY_RUN=maybe', {'DRY_RUN': 'maybe'}, "DRY_RUN is 'maybe': it must be 1 or 0"),
])
def test_wrong_settings_are_sentences(ready, what, changes, words):
    if 'AZURE_DEVOPS_ORG_URL' in changes:
        changes = {'AZURE_DEVOPS_ORG_URL': ready.address + changes['AZURE_DEVOPS_ORG_URL']}
    code, text = run(branch_policy, dict(ready.env, **changes))
    row(what, code, text)
    assert code == (2 if 'DRY_RUN' in changes else 1)
    assert words in text
    assert ready.writes() == []


def test_no_pipeline_yet(service):
    code, text = run(branch_policy, service.env)
    row('pipeline not created yet', code, text)
    assert (code, service.writes()) == (1, [])
    assert '`make devops-project` creates it' in text


@pytest.mark.parametrize('fault, words', [
    ('expired', 'AZURE_DEVOPS_EXT_PAT is not accepted (401)'),
    ('redirect', 'is not accepted (302, a redirect to sign in)'),
    ('sign-in page', 'is not accepted (203, a sign-in page)'),
    ('anonymous page', 'is not accepted (200, a sign-in page)'),
    ('no permission', 'No permission to list the branch policies: TF401027'),
    ('no access', 'No permission to list the branch policies: TF400813'),
    ('busy', 'asked too often (429) and wants a pause of 1 s'),
    ('busy for long', 'wants a pause of 900 s'),
    ('broken', 'did not list the branch policies (HTTP 500): TF400898'),
    ('stopped', 'did not list the branch policies (HTTP 503): TF24668'),
    ('not JSON', 'is not JSON but text/plain, 19 bytes'),
    ('no list', 'asked to list the branch policies, and its answer cannot be used: value is '
                'missing'),
    ('stalled', 'No answer from 127.0.0.1'),
])
def test_bad_answers_are_sentences(ready, waits, monkeypatch, fault, words):
    if fault == 'stalled':
        monkeypatch.setattr(azure_devops, 'READ_SECONDS', 0.1)
    ready.misbehave(fault, LISTING, times=9)
    code, text = run(branch_policy, ready.env)
    row(fault, code, text)
    assert code == 1
    assert words in text
    assert ready.pat not in text and 'Traceback' not in text
    assert ready.writes() == []


def test_no_permission_to_write_names_the_permission(ready):
    ready.misbehave('no permission', 'POST')
    code, text = run(branch_policy, ready.env)
    row('no permission to write', code, text)
    assert code == 1
    assert "Ask for: 'Edit policies' on the repository" in text
