"""Create or update the branch policies of BRANCH in Azure Repos; a second run changes nothing.

    python scripts/branch_policy.py

Settings: AZURE_DEVOPS_ORG_URL, AZURE_DEVOPS_PROJECT, AZURE_DEVOPS_REPOSITORY, AZURE_DEVOPS_EXT_PAT
(in Azure Pipelines the agent's own), BRANCH (default master). DRY_RUN=1 only shows what differs.
What gets round them, 'Bypass policies', nobody has whom it was not granted.
Ids and fields: learn.microsoft.com/rest/api/azure/devops/policy/configurations
"""
import argparse
import collections
import json
import os
import sys

import azure_devops
import azure_ml
from azure_ml import AzureError

PULL_REQUEST_YAML = 'devops/pr.yml'
BUILD_POLICY = 'Lint and unit tests'
REVIEWERS = 'fa4e907d-c16b-4a4c-9dfa-4906e5d171dd'
BUILD = '0609b952-1397-4640-95ec-e00a01b2c241'
COMMENTS = 'c6a1889d-b943-4856-b76f-9e46bb6b0df2'
READ = "'Read' on the repository"
EDIT_POLICIES = ("'Edit policies' on the repository (Project settings > Repositories > the "
                 "repository > Security)")
POLICIES = '{project}/_apis/policy/configurations'
# What is counted on in answers of the service: azure_devops.check_answer.
REPOSITORY = {'id': str, 'name': str, 'project': {'id': str, 'name': str}}
PIPELINE = {'id': int, 'name': str, 'process?': {'yamlFilename?': str}}
POLICY = {'id': int, 'type': {'id': str}, 'createdBy?': {}, 'settings': {
    'minimumApproverCount?': int,
    'scope?': [{'repositoryId?': str, 'refName?': str, 'matchKind?': str}]}}


def desired_policies(definition_id, scope):
    """The policies to have: (name for people, body). definition_id: of the PR pipeline."""
    settings = (
        ('at least one reviewer, who is not the author', REVIEWERS, {
            'minimumApproverCount': 1,
            'creatorVoteCounts': False,
            'allowDownvotes': False,
            # New pushes take the approvals back, and who pushed last cannot give the next one.
            'resetOnSourcePush': True,
            'blockLastPusherVote': True,
        }),
        ('pull request build: ' + BUILD_POLICY, BUILD, {
            'buildDefinitionId': definition_id,
            'displayName': BUILD_POLICY,
            # Every push builds, and a green build is void as soon as the branch moves on.
            'manualQueueOnly': False,
            'queueOnSourceUpdateOnly': False,
            'validDuration': 0,
            # With a path filter, a pull request that touches other files needs no build at all.
            'filenamePatterns': [],
        }),
        ('all comments resolved', COMMENTS, {}),
    )
    return [(f'policy "{name}"', {'isEnabled': True, 'isBlocking': True, 'type': {'id': policy},
                                  'settings': dict(fields, scope=scope)})
            for name, policy, fields in settings]


def comparable_scope(scope):
    """A scope in a form to compare: the service answers 'Exact' to 'exact'."""
    return [(entry.get('repositoryId'), entry.get('refName'),
             (entry.get('matchKind') or 'exact').lower()) for entry in scope or []]


def is_same(existing, body, definitions):
    """Whether an existing policy is the one that `body` describes.

    There may be other build policies on the branch: ours is the one that runs a pipeline of the
    pull request's YAML, or bears our name when that pipeline was deleted.
    """
    kind, fields, wanted = body['type']['id'], existing['settings'], body['settings']
    return (existing['type']['id'].lower() == kind
            and comparable_scope(fields.get('scope')) == comparable_scope(wanted['scope'])
            and (kind != BUILD or fields.get('buildDefinitionId') in definitions
                 or fields.get('displayName') == wanted['displayName']))


def applies_to(existing, repository, branch):
    """Whether a policy bears on the branch, by its own scope or a wider one."""
    ref = 'refs/heads/' + branch
    return any(repository_id in (None, repository['id']) and (
        kind == 'defaultbranch' and repository.get('defaultBranch') == ref
        or kind == 'prefix' and ref.startswith(name or '')
        or kind == 'exact' and name in (None, ref))
        for repository_id, name, kind in comparable_scope(existing['settings'].get('scope')))


def differences(existing, body):
    """Lines 'field: is -> should be' of the fields that we own; existing None: all of them."""
    lines = []
    wanted = dict(body['settings'], isEnabled=True, isBlocking=True)
    there = dict(existing['settings'], **existing) if existing else {}
    for name in sorted(set(wanted) - {'scope'}):
        value = there.get(name)
        # The service leaves out what is false, 0 or empty.
        if existing is None or (value or None) != (wanted[name] or None):
            lines.append(f"{name}: {'none' if value is None else json.dumps(value)} -> "
                         f'{json.dumps(wanted[name])}')
    return lines


def describe_policy(policy):
    """A policy that is not ours, in a line."""
    label = (policy['settings'].get('displayName') or policy['type'].get('displayName')
             or policy['type']['id'])
    state = ('required' if policy.get('isBlocking') else 'optional') if policy.get(
        'isEnabled') else 'switched off'
    return (f"left alone: policy {policy['id']}, {label} ({state}), made by "
            f"{(policy.get('createdBy') or {}).get('displayName', 'someone')}")


def find_repository(client):
    """The repository of the settings. Raises AzureError with the names that there are."""
    settings = client.settings
    known = client.pages('{project}/_apis/git/repositories', 'list the repositories', REPOSITORY,
                         needs=READ)
    for repository in known:
        if settings.repository.lower() in (repository['name'].lower(), repository['id']):
            return repository
    names = ', '.join(sorted(one['name'] for one in known)) or 'none'
    raise AzureError(f'There is no repository {settings.repository!r} in project '
                     f'{settings.project!r}, or the owner of the token may not read it. '
                     f'There is: {names}.')


def absent_branch(client, repository):
    """The sentence about the branch of the settings when it does not exist, else None."""
    refs = client.pages(f"{{project}}/_apis/git/repositories/{repository['id']}/refs",
                        'list the branches', {'name': str}, {'filter': 'heads/'}, needs=READ)
    branches, branch = [ref['name'][len('refs/heads/'):] for ref in refs], client.settings.branch
    return None if branch in branches else (
        f"Branch {branch!r} does not exist yet in repository {repository['name']!r} (there is: "
        f"{', '.join(sorted(branches)[:10]) or 'none'}). Push it first: git push "
        f"{repository.get('remoteUrl', 'REMOTE')} HEAD:refs/heads/{branch}; or set BRANCH to the "
        'one that pull requests go to')


def find_pipelines(client, repository):
    """The pipelines of the repository: {path of the YAML file: [definition, ...]}, oldest first."""
    found = collections.defaultdict(list)
    listed = client.pages('{project}/_apis/build/definitions', 'list the pipelines', PIPELINE,
                          {'repositoryId': repository['id'], 'repositoryType': 'TfsGit',
                           'includeAllProperties': 'true', 'includeLatestBuilds': 'true'},
                          needs="'View build pipeline'")
    for definition in sorted(listed, key=lambda one: one['id']):
        path = (definition.get('process') or {}).get('yamlFilename') or ''
        found[path.lstrip('/')].append(definition)
    return found


def apply_policies(client, repository, pipelines):
    """Bring the policies of the branch to what they should be, and print what is done.

    pipelines: as find_pipelines gives them.
    """
    definitions = pipelines.get(PULL_REQUEST_YAML, [])
    if not definitions:
        raise AzureError(f"No pipeline of repository {repository['name']!r} runs "
                         f'{PULL_REQUEST_YAML} yet: `make devops-project` creates it.')
    ids = [definition['id'] for definition in definitions]
    # Exactly this branch of this repository.
    scope = [{'repositoryId': repository['id'], 'refName': f'refs/heads/{client.settings.branch}',
              'matchKind': 'exact'}]
    # All of the project: a filter that the service misread would look like 'no policy yet'.
    listed = client.pages(POLICIES, 'list the branch policies', POLICY, needs=READ)
    existing = sorted((policy for policy in listed if not policy.get('isDeleted')
                       and applies_to(policy, repository, client.settings.branch)),
                      key=lambda policy: policy['id'])
    in_use = [policy['settings']['buildDefinitionId'] for policy in existing
              if policy['settings'].get('buildDefinitionId') in ids]
    build = (in_use or ids)[0]
    print(f"Branch policies of {client.settings.branch} in {repository['name']}")
    remarks, others = [], existing
    for name, body in desired_policies(build, scope):
        same = [policy for policy in existing if is_same(policy, body, ids)]
        others = [policy for policy in others if policy not in same]
        remarks += [f"duplicate: policy {policy['id']} does the same as policy {same[0]['id']}; "
                    f"delete it: az repos policy delete --id {policy['id']}"
                    for policy in same[1:]]
        put_policy_right(client, name, same[0] if same else None, body)
    remarks += map(describe_policy, others)
    remarks += [f"pipeline {one['id']}, {one['name']}, is {one['queueStatus']}: no pull request "
                'can pass until it is enabled' for one in definitions
                if one['id'] == build and one.get('queueStatus', 'enabled') != 'enabled']
    for remark in remarks:
        print('  ' + remark)


def put_policy_right(client, name, existing, body):
    """Create or update one policy. Raises AzureError also when the service keeps less."""
    there, wanted = existing['settings'] if existing else {}, body['settings']
    if 'minimumApproverCount' in wanted:
        # More reviewers than asked stay.
        wanted['minimumApproverCount'] = max(wanted['minimumApproverCount'],
                                             there.get('minimumApproverCount') or 0)
    kept = client.put_right(name, existing, differences(existing, body),
                            dict(body, settings=dict(there, **wanted)), POLICIES,
                            fields=POLICY, needs=EDIT_POLICIES)
    lost = [] if client.settings.dry_run else differences(kept, body)
    if lost:
        raise AzureError(f"Azure DevOps took the {name} but did not keep it all: "
                         f"{'; '.join(lost)}")


@azure_ml.verb
def main(argv=None):
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(argv)
    client = azure_devops.Client(azure_devops.read_settings(os.environ))
    repository = find_repository(client)
    absent = absent_branch(client, repository)
    if absent:
        raise AzureError(absent)
    apply_policies(client, repository, find_pipelines(client, repository))
    print(client.summary())
    return 0


if __name__ == '__main__':
    sys.exit(main())
