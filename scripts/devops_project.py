"""Set up the Azure DevOps project: pipelines, variable group, environments, permissions, policies.

    python scripts/devops_project.py

Run it again at any time: it creates what is missing, puts right what differs and leaves the rest.
At the end it says what only a person can do. Settings: those of branch_policy.py, DRY_RUN=1 among
them; for the variable group SUBSCRIPTION_ID, LOCATION, RESOURCE_GROUP and WORKSPACE_NAME or
BASE_NAME (needed only until they are in the group), AZURE_RM_SVC_CONNECTION (default
azure-resource-connection); APPROVER, the mail address or group of those who approve deployments
(default: the owner of the token), and PRODUCTION_APPROVER for production (default: APPROVER).
"""
import argparse
import fnmatch
import os
import re
import sys
from pathlib import Path

import azure_devops
import azure_ml
import branch_policy
import settings
from azure_ml import AzureError

DEVOPS = Path(__file__).resolve().parent.parent / 'devops'
GROUP = 'devopsforai-aml-vg'
# Name, what it is, and the setting that names its approver.
ENVIRONMENTS = (('safe-driver', 'QA of the safe driver model', 'APPROVER'),
                ('safe-driver-production', 'Production of the safe driver model',
                 'PRODUCTION_APPROVER'))
EVERYTHING = ('variablegroup', 'endpoint', 'environment')
# Name, YAML file, and what it has to be allowed to use, by the names of the permission service.
PIPELINES = (('safe-driver-pr', 'devops/pr.yml', ()),
             ('safe-driver-workspace', 'devops/workspace.yml', ('variablegroup', 'endpoint')),
             ('safe-driver-ci', 'devops/ci.yml', EVERYTHING),
             ('safe-driver-retrain', 'devops/retrain.yml', EVERYTHING),
             ('safe-driver-rollback', 'devops/rollback.yml', EVERYTHING))
# Those that begin by themselves, and the key of the YAML that names the branches for it.
STARTED = (('ci.yml', 'trigger', 'pushes to'), ('retrain.yml', 'schedules', 'a schedule on'))
# Why a person must start a pipeline once.
FIRST_RUN = {'devops/workspace.yml': 'it makes the resources in Azure',
             'devops/ci.yml': 'only after its first run do pushes start it'}
CONNECTION = 'AZURE_RM_SVC_CONNECTION'
WANTED = ('SUBSCRIPTION_ID', 'RESOURCE_GROUP', 'WORKSPACE_NAME', 'LOCATION')
APPROVAL = {'id': '8c6f20a7-a545-4486-9777-f762fafe0d4d', 'name': 'Approval'}
# The longest that Azure DevOps lets a deployment wait for an approval: 30 days.
APPROVAL_MINUTES = 43200
# microsoft/terraform-provider-azuredevops, resource_check_exclusive_lock.
LOCK = {'id': '2ef31ad6-baa0-403a-8b45-2cbc9b4e5563', 'name': 'ExclusiveLock'}
NO_APPROVAL = {'executionOrder': 'anyOrder', 'minRequiredApprovers': 1, 'instructions': '',
               'blockedApprovers': []}
PREVIEW = '7.1-preview.1'
IDENTITIES = '_apis/resourceAreas/8a3d49b8-91f0-46ef-b33d-dda338c25db3'
GROUPS = '_apis/distributedtask/variablegroups'
ENVIRONMENT_LIST = '{project}/_apis/distributedtask/environments'
CHECKS = '{project}/_apis/pipelines/checks/configurations'
PERMISSIONS = '{project}/_apis/pipelines/pipelinepermissions'
LIBRARY = "the role 'Administrator' on the variable group (Pipelines > Library > Security)"
ADMINISTRATOR = "the role 'Administrator' on the environment (Pipelines > Environments > Security)"
ENDPOINT = "the role 'Administrator' on the service connection (Project settings)"
CONNECTION_READER = "the role 'Reader' on the service connections"
# What a pipeline can use, by the service's name for it: words for people, list, filter by name,
# type of its id, permissions to read the list and to let pipelines use it.
KINDS = {
    'variablegroup': ('variable group', '{project}/' + GROUPS, 'groupName', int, LIBRARY, LIBRARY),
    'environment': ('environment', ENVIRONMENT_LIST, 'name', int, ADMINISTRATOR, ADMINISTRATOR),
    'endpoint': ('service connection', '{project}/_apis/serviceendpoint/endpoints',
                 'endpointNames', str, CONNECTION_READER, ENDPOINT)}

# What is counted on in answers of the service: azure_devops.check_answer.
IDENTITY = {'id': str, 'providerDisplayName': str}
TOKEN_OWNER = {'authenticatedUser': dict(IDENTITY, descriptor=str)}
HOST = {'locationUrl?': str}
GROUP_FIELDS = {'id': int, 'type': str, 'variables?': {'*': {'value?': str}},
                'variableGroupProjectReferences?': [{}]}
CHECK = {'id': int, 'type': {'id': str}, 'settings?': {'approvers?': [{'id': str}]}}
USERS = {'allPipelines?': {}, 'pipelines?': [{'id': int}]}


def group_values(environ, variables):
    """The values that the variable group is to have: the environment's, else what is there.

    variables: of the existing group. Raises SettingsError with all that is missing or malformed.
    """
    there = {name.upper(): one.get('value') or '' for name, one in variables.items()}
    known = {name: azure_devops.read_value(environ, name) or there.get(name, '')
             for name in WANTED + ('BASE_NAME', CONNECTION)}
    # What is there without a value is a secret.
    read = settings.read(known, needs=[name for name in WANTED if there.get(name) != ''])
    values = {name: getattr(read, name.lower()) for name in WANTED + ('BASE_NAME',)}
    values[CONNECTION] = known[CONNECTION] or 'azure-resource-connection'
    return {name: value for name, value in values.items() if value}


def find_approver(client, wanted):
    """{'id', 'name'} of the user or group of APPROVER, or of the token's owner when it is ''."""
    if not wanted:
        one = client.call('GET', '_apis/connectionData', 'find out whose token this is',
                          fields=TOKEN_OWNER, version=PREVIEW)['authenticatedUser']
        if 'ServiceIdentity' in one['descriptor']:
            raise AzureError("The token is a build identity's, which cannot approve: set "
                             'APPROVER to the mail address of a person or the name of a '
                             f'group, such as [{client.settings.project}]\\Contributors.')
    else:
        doing = 'find the approver'
        area = client.call('GET', IDENTITIES, doing, version=PREVIEW)
        # Azure DevOps Server has no separate host for identities and sends null.
        host = azure_devops.check_answer(area or {}, HOST, doing).get('locationUrl')
        found = client.pages('_apis/identities', doing, IDENTITY,
                             {'searchFilter': 'General', 'filterValue': wanted}, base=host)
        if len(found) != 1:
            known = f'{len(found)} identities' if found else 'nobody'
            raise AzureError(f'APPROVER is {wanted!r}: Azure DevOps knows {known} by it. '
                             'Give a mail address or the full name of a group.')
        one = found[0]
    return {'id': one['id'], 'name': one.get('customDisplayName') or one['providerDisplayName']}


def find(client, kind, name):
    """The resource of this kind (of KINDS) and name as its list has it, or None."""
    words, path, name_filter, number, needs, _ = KINDS[kind]
    listed = client.pages(path, f'list the {words}s', {'id': number, 'name': str},
                          {name_filter: name}, needs=needs)
    return next((one for one in listed if one['name'].lower() == name.lower()), None)


def set_up_group(client, project, environ):
    """The variable group's id (None in a dry run that would create it) and its values.

    Variables of others stay in it.
    """
    group = find(client, 'variablegroup', GROUP) or {}
    if group:
        group = client.call('GET', f"{{project}}/{GROUPS}/{group['id']}",
                            'read the variable group', fields=GROUP_FIELDS, needs=LIBRARY)
        if group['type'] != 'Vsts':
            raise AzureError(f'Variable group {GROUP} takes its values from a key vault '
                             f"(type {group['type']}): put them there.")
    variables, lines = dict(group.get('variables') or {}), []
    values = group_values(environ, variables)
    spelt = {key.upper(): key for key in variables}
    for key, value in sorted(values.items()):
        have = variables.get(spelt.get(key), {})
        if not have.get('isSecret') and have.get('value') != value:
            before = f'"{have["value"]}"' if have.get('value') else 'none'
            lines.append(f'{key}: {before} -> "{value}"')
            variables[spelt.get(key, key)] = dict(have, value=value)
    body = {
        'name': GROUP, 'type': 'Vsts',
        # A secret is read back without its value and is sent back so, which keeps it: as
        # Microsoft's own command line does (az pipelines variable-group variable update).
        'variables': {key: {'isSecret': True} if one.get('isSecret') else one
                      for key, one in variables.items()},
        'variableGroupProjectReferences': group.get('variableGroupProjectReferences') or [
            {'name': GROUP, 'projectReference': {'id': project['id'], 'name': project['name']}}],
        'description': group.get('description') or ''}
    # Variable groups are made for several projects at once, outside of any.
    kept = client.put_right('variable group ' + GROUP, group or None, lines, body, GROUPS,
                            fields={'id': int}, needs=LIBRARY)
    return kept.get('id'), values


def set_up_environment(client, name, description, wanted):
    """An environment: someone must approve what goes to it, one deployment at a time.

    wanted: its approver of the settings. Returns its id, None in a dry run that would create it.
    """
    environment = client.put_right(
        f'environment {name}', find(client, 'environment', name), [],
        {'name': name, 'description': description},
        ENVIRONMENT_LIST, fields={'id': int}, needs=ADMINISTRATOR).get('id')
    checks = {} if environment is None else {
        one['type']['id'].lower(): one for one in reversed(client.pages(
            CHECKS, 'read the checks of the environment', CHECK,
            {'resourceType': 'environment', 'resourceId': environment, '$expand': 'settings'},
            needs=ADMINISTRATOR, version=PREVIEW))}
    approval = checks.get(APPROVAL['id'], {})
    fields = approval.get('settings') or NO_APPROVAL
    approvers, lines = fields.get('approvers') or [], []
    # Without the setting any approval that is there will do; approvers of others stay.
    approver = find_approver(client, wanted) if wanted or not approval else None
    if approver and approver['id'].lower() not in [one['id'].lower() for one in approvers]:
        names = ', '.join(one.get('displayName') or one['id'] for one in approvers)
        lines.append(f"approvers: {names + ' -> and' if names else 'none ->'} {approver['name']}")
        approvers = approvers + [approver]
    fields = dict(fields, approvers=[{'id': one['id']} for one in approvers])
    resource = {'type': 'environment', 'id': str(environment), 'name': name}
    for title, kind, there, differences, wanted_fields in (
            ('approval before', APPROVAL, approval, lines, fields),
            ('exclusive lock on', LOCK, checks.get(LOCK['id'], {}), [], {})):
        if there.get('isDisabled'):
            differences.append('isDisabled: true -> false')
        body = {'type': kind, 'timeout': there.get('timeout', APPROVAL_MINUTES),
                'isDisabled': False, 'resource': resource, 'settings': wanted_fields}
        client.put_right(f'{title} {name}', there or None, differences, body, CHECKS,
                         update='PATCH', needs=ADMINISTRATOR, version=PREVIEW)
    return environment


def how_to_connect(client, values):
    """What a person must do where there is no service connection."""
    subscription = values.get('SUBSCRIPTION_ID', 'ID')
    page = azure_devops.portal_page(client.settings, '_settings', 'adminservices')
    return (f'Create the service connection {values[CONNECTION]}: {page} > New service connection '
            '> Azure Resource Manager > App registration (automatic) > Workload identity '
            f'federation, scope: subscription {subscription}, resource group '
            f"{values.get('RESOURCE_GROUP', 'GROUP')}. For `make preflight` its app needs Reader "
            'on the subscription as well:\naz role assignment create --role Reader --assignee '
            f'APP_ID --scope /subscriptions/{subscription}')


def create_pipelines(client, repository, known):
    """Create the pipelines that are missing, and add them to what find_pipelines found.

    Returns which of them a person must run once.
    """
    first_runs = []
    for name, path, _ in PIPELINES:
        there = known.get(path, [None])[0]
        pipeline = client.put_right(
            f"pipeline {there['name'] if there else name}, {path}", there, [],
            {'name': name, 'folder': '\\', 'configuration': {
                'type': 'yaml', 'path': '/' + path, 'repository': {
                    'id': repository['id'], 'name': repository['name'],
                    'type': 'azureReposGit'}}},
            '{project}/_apis/pipelines', fields={'id': int, 'name': str},
            needs="'Create build pipeline'") or {'id': 'that of ' + name, 'name': name}
        known.setdefault(path, [pipeline])
        if path in FIRST_RUN and not pipeline.get('latestBuild'):
            first_runs.append(f"Run {pipeline['name']} once: {FIRST_RUN[path]}:\n"
                              f"{azure_devops.portal_page(client.settings, '_build')}")
    return first_runs


def started_branches(text, key='trigger'):
    """The branches, or patterns of them, whose pushes or schedules start the pipeline of this YAML.

    key: trigger or schedules.
    """
    found = re.search(f'^{key}:(.*\n(?:[ -].*\n|#.*\n|\n)*)', text + '\n', re.M)
    if not found:
        return ['*']
    text = found.group(1).partition('include:')[2] if key == 'schedules' else found.group(1)
    included = re.split('^[ -]*(?:exclude|paths|tags|cron):', text, flags=re.M)[0]
    return re.findall(r"""(?:^ *- *|[\[,] *)["']?(?:refs/heads/)?([^]\s"',]+)""", included, re.M)


def permit_pipelines(client, kind, name, number, known):
    """Let pipelines use the resource; number: its id, None in a dry run."""
    users = [known[path][0] for _, path, kinds in PIPELINES if kind in kinds]
    path, words = f'{PERMISSIONS}/{kind}/{number}', KINDS[kind][0]
    granted = {} if number is None else client.call(
        'GET', path, f'read who may use the {words}', fields=USERS, version=PREVIEW)
    everyone = (granted.get('allPipelines') or {}).get('authorized')
    ids = {one['id'] for one in granted.get('pipelines') or [] if one.get('authorized')}
    lacking = [] if everyone else [user for user in users if user['id'] not in ids]
    lines = [f"pipeline {user['name']}: not allowed -> allowed" for user in lacking]
    body = {'pipelines': [{'id': user['id'], 'authorized': True} for user in lacking]}
    client.put_right(f'use of {words} {name}', {}, lines, body, path, update='PATCH',
                     needs=KINDS[kind][-1], version=PREVIEW)


def set_up(client, environ):
    """All of it, in the order in which things need each other.

    Returns what is left for a person: [what it is not complete without], [what comes after it].
    """
    config, missing = client.settings, []
    for file, key, what in STARTED:
        started = started_branches((DEVOPS / file).read_text(encoding='utf-8'), key)
        if not any(fnmatch.fnmatchcase(config.branch, pattern) for pattern in started):
            missing.append(f'Let {what} {config.branch} start devops/{file} ({key}: '
                           f"{', '.join(started) or 'no branch'}): change it and push it, or set "
                           'BRANCH')
    repository = branch_policy.find_repository(client)
    print(f'Project {config.project} in {config.organisation}')
    group, values = set_up_group(client, repository['project'], environ)
    approver = azure_devops.read_value(environ, 'APPROVER')
    environments = {name: set_up_environment(
        client, name, description, azure_devops.read_value(environ, setting) or approver)
        for name, description, setting in ENVIRONMENTS}
    connection = find(client, 'endpoint', values[CONNECTION])
    if not connection:
        missing.append(how_to_connect(client, values))
    absent = branch_policy.absent_branch(client, repository)
    if absent:
        print('  later   pipelines, permissions and policies: the code is not in Azure Repos yet')
        return missing + [absent], []
    if repository.get('defaultBranch') != 'refs/heads/' + config.branch:
        page = azure_devops.portal_page(config, '_git', repository['name'], 'branches')
        missing.append(
            f'Make {config.branch} the default branch, where pipelines look for their YAML, or '
            'set BRANCH:\n'
            f'{page} > {config.branch} > More options > Set as default branch')
    known = branch_policy.find_pipelines(client, repository)
    first_runs = create_pipelines(client, repository, known)
    permit_pipelines(client, 'variablegroup', GROUP, group, known)
    for name, number in environments.items():
        permit_pipelines(client, 'environment', name, number, known)
    if connection:
        permit_pipelines(client, 'endpoint', values[CONNECTION], connection['id'], known)
    branch_policy.apply_policies(client, repository, known)
    return missing, first_runs


@azure_ml.verb
def main(argv=None):
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(argv)
    try:
        config = azure_devops.read_settings(os.environ)
    except settings.SettingsError as problems:
        try:
            group_values(os.environ, {})
        except settings.SettingsError as more:
            raise settings.SettingsError(
                f'{problems}\nAnd, unless they are in the variable group already, {more}') from None
        raise
    client = azure_devops.Client(config)
    missing, first_runs = set_up(client, os.environ)
    print(client.summary())
    if missing or first_runs:
        print('\nLeft for you:')
    for number, text in enumerate(missing + first_runs, 1):
        print(f'{number}. ' + text.replace('\n', '\n   '))
    if missing:
        print('Not complete: then run `make devops-project` again.')
    return 1 if missing and not config.dry_run else 0


if __name__ == '__main__':
    sys.exit(main())
