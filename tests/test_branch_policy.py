"""Branch policies against Azure DevOps on loopback."""
import copy

import pytest

import branch_policy
from loopback.azure_devops_contract import BUILD, COMMENTS, REVIEWERS, WORK_ITEMS
from test_azure_devops import run, service


@pytest.fixture
def ready(service):
    """A project whose pull request pipeline exists."""
    service.pipeline = service.add_pipeline('safe-driver-pr', '/devops/pr.yml')
    return service


@pytest.fixture
def done(ready):
    """A project whose policies are set."""
    assert run(branch_policy, ready.env)[0] == 0
    return ready


def policies(service):
    return {one['type']['id']: one for one in service.policies.values()}


def test_dry_run_then_apply_then_apply_again(ready):
    code, planned = run(branch_policy, dict(ready.env, DRY_RUN='1'))
    assert (code, ready.writes()) == (0, [])
    for line in ('create  policy "at least one reviewer', 'creatorVoteCounts: none -> false',
                 'minimumApproverCount: none -> 1', 'resetOnSourcePush: none -> true',
                 'blockLastPusherVote: none -> true', 'filenamePatterns: none -> []',
                 f"buildDefinitionId: none -> {ready.pipeline['id']}", 'isBlocking: none -> true',
                 'create  policy "all comments resolved"', 'Dry run: nothing was changed'):
        assert line in planned

    code, text = run(branch_policy, ready.env)
    assert (code, text.splitlines()[:-1]) == (0, planned.splitlines()[:-1])
    assert set(policies(ready)) == {REVIEWERS, BUILD, COMMENTS}
    for one in policies(ready).values():
        assert one['isEnabled'] and one['isBlocking']
        assert one['settings']['scope'] == [dict(ready.scope()[0], matchKind='Exact')]

    ready.requests.clear()
    code, text = run(branch_policy, ready.env)
    assert (code, 'Nothing to change.' in text, ready.writes()) == (0, True, [])


def test_drift_is_put_right(done):
    wanted, spoilt = copy.deepcopy(policies(done)), policies(done)
    for kind, fields, settings in (
            (REVIEWERS, {'isEnabled': False, 'isBlocking': False},
             {'creatorVoteCounts': True, 'allowDownvotes': True, 'resetOnSourcePush': False,
              'blockLastPusherVote': False}),
            (BUILD, {'isBlocking': False},
             {'filenamePatterns': ['/training/*'], 'manualQueueOnly': True, 'displayName': 'Other',
              'validDuration': 720.0, 'queueOnSourceUpdateOnly': True}),
            (COMMENTS, {'isEnabled': False}, {})):
        spoilt[kind].update(fields)
        spoilt[kind]['settings'].update(settings)
    code, text = run(branch_policy, done.env)
    assert (code, text.count('update  '), len(done.policies)) == (0, 3, 3)
    assert [line.partition(':')[0].strip() for line in text.splitlines() if ' -> ' in line] == [
        'allowDownvotes', 'blockLastPusherVote', 'creatorVoteCounts', 'isBlocking', 'isEnabled',
        'resetOnSourcePush', 'displayName', 'filenamePatterns', 'isBlocking', 'manualQueueOnly',
        'queueOnSourceUpdateOnly', 'validDuration', 'isEnabled']
    assert policies(done) == {kind: dict(one, revision=2) for kind, one in wanted.items()}


def test_what_is_stricter_or_not_ours_stays(done):
    settings = policies(done)[REVIEWERS]['settings']
    settings.update(minimumApproverCount=2, requireVoteOnLastIteration=True)
    assert 'Nothing' in run(branch_policy, done.env)[1]
    settings.update(allowDownvotes=True)
    code, text = run(branch_policy, done.env)
    assert (code, text.count(' -> ')) == (0, 1)
    kept = policies(done)[REVIEWERS]['settings']
    assert kept['minimumApproverCount'] == 2 and kept['requireVoteOnLastIteration']


def test_policies_of_others_are_left_alone_and_reported(ready):
    build = {'buildDefinitionId': ready.add_pipeline('slow tests', 'slow.yml')['id'],
             'validDuration': 0, 'displayName': 'Slow tests', 'scope': ready.scope()}
    bearing = [
        ready.add_policy(WORK_ITEMS, {'scope': ready.scope()}, 'Kim Lee'),
        ready.add_policy(BUILD, build, 'Kim Lee'),
        ready.add_policy(COMMENTS, {'scope': [
            {'repositoryId': None, 'refName': 'refs/heads/', 'matchKind': 'Prefix'}]}),
        ready.add_policy(REVIEWERS, {'minimumApproverCount': 2, 'scope': [
            {'repositoryId': None, 'refName': None, 'matchKind': 'DefaultBranch'}]}),
        ready.add_policy(COMMENTS, {'scope': ready.scope() + ready.scope('release')},
                         isEnabled=False)]
    ready.add_policy(COMMENTS, {'scope': ready.scope('release')})
    ready.add_policy(COMMENTS, {
        'scope': ready.scope(repository=ready.add_repository('another', ['master']))})
    before = copy.deepcopy(ready.policies)
    code, text = run(branch_policy, ready.env)
    assert (code, text.count('create  '), text.count('left alone')) == (0, 3, len(bearing))
    for one in bearing:
        assert f"left alone: policy {one['id']}, " in text
    assert 'Slow tests (required), made by Kim Lee' in text and '(switched off)' in text
    assert before == {number: ready.policies[number] for number in before}
    code, text = run(branch_policy, ready.env)
    assert ('Nothing' in text, text.count('left alone')) == (True, len(bearing))


def test_duplicates_are_said_and_not_deleted(done):
    first = policies(done)[COMMENTS]
    second = done.add_policy(COMMENTS, copy.deepcopy(first['settings']))
    code, text = run(branch_policy, done.env)
    assert (code, 'Nothing to change' in text) == (0, True)
    assert f"duplicate: policy {second['id']} does the same as policy {first['id']}" in text
    assert second['id'] in done.policies


def test_a_pipeline_made_anew_takes_the_old_policys_place(done):
    number = policies(done)[BUILD]['id']
    del done.definitions[done.pipeline['id']]
    again = done.add_pipeline('safe-driver-pr', 'devops/pr.yml')
    assert (run(branch_policy, done.env)[0], len(done.policies)) == (0, 3)
    assert done.policies[number]['settings']['buildDefinitionId'] == again['id']


def test_of_two_pipelines_of_the_file_any_will_do_unless_it_is_switched_off(ready):
    other = ready.add_pipeline('second', 'devops/pr.yml')
    ready.pipeline['queueStatus'] = 'disabled'
    assert 'safe-driver-pr, is disabled' in run(branch_policy, ready.env)[1]
    assert policies(ready)[BUILD]['settings']['buildDefinitionId'] == ready.pipeline['id']
    policies(ready)[BUILD]['settings']['buildDefinitionId'] = other['id']
    assert 'Nothing' in run(branch_policy, ready.env)[1]


def test_another_branch(ready):
    ready.branches[ready.repositories[0]['id']].append('release/1')
    assert run(branch_policy, dict(ready.env, BRANCH='release/1'))[0] == 0
    assert {one['settings']['scope'][0]['refName'] for one in ready.policies.values()} == {
        'refs/heads/release/1'}


def test_a_setting_that_the_service_drops_is_an_error(ready):
    ready.ignores = {'blockLastPusherVote'}
    code, text = run(branch_policy, ready.env)
    assert code == 1
    assert 'did not keep it all: blockLastPusherVote: false -> true' in text


@pytest.mark.parametrize('name, value, words', [
    ('AZURE_DEVOPS_ORG_URL', '{}/nobody', 'There is no organisation at '),
    ('AZURE_DEVOPS_PROJECT', 'X', "There is no project 'X'"),
    ('AZURE_DEVOPS_REPOSITORY', 'X', "There is no repository 'X' in project 'Safe Driver', "
     'or the owner of the token may not read it. There is: new, safe-driver'),
    ('AZURE_DEVOPS_REPOSITORY', 'new', "No pipeline of repository 'new' runs devops/pr.yml yet: "
     '`make devops-project` creates it'),
    ('BRANCH', 'main', "Branch 'main' does not exist yet in repository 'safe-driver' (there "
     'is: master). Push it first: git push https://'),
    ('AZURE_DEVOPS_EXT_PAT', 'x', 'AZURE_DEVOPS_EXT_PAT is not accepted (401)'),
])
def test_wrong_settings_are_sentences(ready, name, value, words):
    ready.add_repository('new', ['master'])
    code, text = run(branch_policy, dict(ready.env, **{name: value.format(ready.address)}))
    assert (code, words in text, ready.writes()) == (1, True, [])
