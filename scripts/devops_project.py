"""Set up the Azure DevOps project: pipelines, variable group, environment, permissions, policies.

    python scripts/devops_project.py

Run it again at any time: it creates what is missing, puts right what differs and leaves the rest.
At the end it says what only a person can do. Settings: those of branch_policy.py, DRY_RUN=1 among
them; for the variable group SUBSCRIPTION_ID, LOCATION, RESOURCE_GROUP and WORKSPACE_NAME or
BASE_NAME (needed only until they are in the group), AZURE_RM_SVC_CONNECTION (default
azure-resource-connection); APPROVER, the mail address or group of those who approve deployments
(default: the owner of the token).
"""
import argparse
import functools
import os
import re
import sys
from pathlib import Path

import azure_devops
import branch_policy
import settings
from azure_devops import AzureDevOpsError
from settings import SettingsError

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = (('safe-driver-pr', 'devops/pr.yml'),
             ('safe-driver-workspace', 'devops/workspace.yml'),
             ('safe-driver-ci', 'devops/ci.yml'))
# Why a person must start a pipeline once.
FIRST_RUN = {'devops/workspace.yml': 'it makes the resources in Azure',
             'devops/ci.yml': 'only after its first run do pushes start it'}
CONNECTION = 'AZURE_RM_SVC_CONNECTION'
DEFAULT_CONNECTION = 'azure-resource-connection'
WANTED = ('SUBSCRIPTION_ID', 'RESOURCE_GROUP', 'WORKSPACE_NAME', 'LOCATION')
APPROVAL = {'id': '8c6f20a7-a545-4486-9777-f762fafe0d4d', 'name': 'Approval'}
# The longest that Azure DevOps lets a deployment wait for an approval: 30 days.
APPROVAL_MINUTES = 43200
# microsoft/terraform-provider-azuredevops, resource_check_exclusive_lock.
LOCK = {'id': '2ef31ad6-baa0-403a-8b45-2cbc9b4e5563', 'name': 'ExclusiveLock'}
PREVIEW = '7.1-preview.1'
GROUPS = '{project}/_apis/distributedtask/variablegroups'
ENVIRONMENTS = '{project}/_apis/distributedtask/environments'
CHECKS = '{project}/_apis/pipelines/checks/configurations'
PERMISSIONS = '{project}/_apis/pipelines/pipelinepermissions'
LIBRARY = "the role 'Administrator' on the variable group (Pipelines > Library > Security)"
ENVIRONMENT = "the role 'Administrator' on the environment (Pipelines > Environments > Security)"
ENDPOINT = "the role 'Administrator' on the service connection (Project settings)"
# What a pipeline can use, by the service's name for it: words for people, permission to ask for.
KINDS = {'variablegroup': ('variable group', LIBRARY), 'environment': ('environment', ENVIRONMENT),
         'endpoint': ('service connection', ENDPOINT)}

# What is counted on in answers of the service: azure_devops.check_answer.
TOKEN_OWNER = {'authenticatedUser': {'id': str, 'descriptor': str, 'providerDisplayName': str}}
GROUP = {'id': int, 'type': str, 'variables?': {'*': {'value?': str}},
         'variableGroupProjectReferences?': [{}]}
CHECK = {'id': int, 'type': {'id': str}, 'resource': {}, 'settings?': {
    'approvers?': [{'id': str}]}}
CONNECTION_FIELDS = {'id': str, 'authorization?': {'scheme?': str}}
USERS = {'allPipelines?': {}, 'pipelines?': [{'id': int}]}


@functools.lru_cache(maxsize=None)
def used_resources(path):
    """What a pipeline file and its templates need leave for: {(kind, name), ...}.

    The kinds are those of the permission service: variablegroup, environment, endpoint. The name
    of a service connection is as in the file, $(AZURE_RM_SVC_CONNECTION).
    """
    import yaml
    found = set()

    def walk(node):
        if isinstance(node, list):
            for item in node:
                walk(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == 'template':
                    found.update(used_resources(path.parent / value))
                elif key == 'group':
                    found.add(('variablegroup', value))
                elif key == 'environment' and 'deployment' in node:
                    found.add(('environment', value['name'] if isinstance(value, dict) else value))
                elif key == 'azureSubscription':
                    found.add(('endpoint', value))
                else:
                    walk(value)
    walk(yaml.safe_load(path.read_text()))
    return frozenset(found)


def group_values(environ, group):
    """The values that the variable group is to have: the environment's, else what is there.

    group: the existing one or None. Raises SettingsError with all that is missing or malformed.
    """
    there = {name.upper(): one.get('value') or '' for name, one in (
        (group or {}).get('variables') or {}).items()}
    known = {}
    for name in WANTED + ('BASE_NAME', CONNECTION):
        value = azure_devops.read_value(environ, name) or there.get(name)
        if value:
            known[name] = value
    connection = known.setdefault(CONNECTION, DEFAULT_CONNECTION)
    secrets = [name for name in WANTED if name in there and not there[name]]
    read = settings.read(known, needs=[name for name in WANTED if name not in secrets])
    values = {name: getattr(read, name.lower()) for name in WANTED + ('BASE_NAME',)}
    values = {name: value for name, value in values.items() if value}
    return dict(values, **{CONNECTION: connection})


def plan_group(name, group, values, project):
    """What differs, and the variable group to send; variables of others stay.

    A secret is read back without its value and is sent back so, which keeps it: as Microsoft's own
    command line does (az pipelines variable-group variable update).
    """
    variables = dict((group or {}).get('variables') or {})
    spelt = {key.upper(): key for key in variables}
    lines = []
    for key, value in sorted(values.items()):
        have = variables.get(spelt.get(key), {})
        if have.get('isSecret') or have.get('value') == value:
            continue
        before = f'"{have["value"]}"' if have.get('value') else 'none'
        lines.append(f'{key}: {before} -> "{value}"')
        variables[spelt.get(key, key)] = dict(have, value=value)
    body = {
        'name': name, 'type': 'Vsts',
        'variables': {key: {'isSecret': True} if one.get('isSecret') else one
                      for key, one in variables.items()},
        'variableGroupProjectReferences': (group or {}).get('variableGroupProjectReferences') or [
            {'name': name, 'projectReference': {'id': project['id'], 'name': project['name']}}],
    }
    if (group or {}).get('description'):
        body['description'] = group['description']
    return lines, body


def plan_approval(environment, checks, approver, named):
    """The approval that is there or None, what differs, and the one to send.

    Someone must approve what goes to the environment. checks: the environment's; approver: {'id',
    'name'}; named: whether a setting names them, else any approval that is there will do.
    Approvers that others added stay.
    """
    there = [check for check in checks if check['type']['id'] == APPROVAL['id']]
    if not there:
        body = {'type': APPROVAL, 'timeout': APPROVAL_MINUTES, 'settings': {
            'approvers': [{'id': approver['id']}], 'executionOrder': 'anyOrder',
            'minRequiredApprovers': 1, 'instructions': '', 'blockedApprovers': []},
            'resource': {'type': 'environment', 'id': str(environment['id']),
                         'name': environment['name']}}
        return None, ['approvers: none -> ' + approver['name']], body
    check = there[0]
    fields = check.get('settings') or {}
    approvers = fields.get('approvers') or []
    lines, ids = [], [one['id'].lower() for one in approvers]
    if named and approver['id'].lower() not in ids:
        names = ', '.join(one.get('displayName') or one['id'] for one in approvers) or 'none'
        lines.append(f"approvers: {names} -> and {approver['name']}")
        approvers = approvers + [{'id': approver['id']}]
    if check.get('isDisabled'):
        lines.append('isDisabled: true -> false')
    body = {'type': APPROVAL, 'timeout': check.get('timeout', APPROVAL_MINUTES),
            'isDisabled': False, 'resource': check['resource'],
            'settings': dict(fields, approvers=[{'id': one['id']} for one in approvers])}
    return check, lines, body


def plan_lock(environment, checks):
    """The exclusive lock that is there or None, what differs, and the one to send.

    With it one deployment at a time goes to the environment, of whatever pipeline.
    """
    there = next((check for check in checks if check['type']['id'].lower() == LOCK['id']), None)
    lines = ['isDisabled: true -> false'] if (there or {}).get('isDisabled') else []
    body = {'type': LOCK, 'timeout': APPROVAL_MINUTES, 'isDisabled': False, 'settings': {},
            'resource': {'type': 'environment', 'id': str(environment['id']),
                         'name': environment['name']}}
    return there, lines, body


def plan_permission(granted, pipelines):
    """What differs, and the permission to send, for all of {name: id} to use a resource.

    granted: the service's answer.
    """
    everyone = (granted.get('allPipelines') or {}).get('authorized')
    ids = {one['id'] for one in granted.get('pipelines') or [] if one.get('authorized')}
    lacking = [] if everyone else [name for name in sorted(pipelines) if pipelines[name] not in ids]
    return ([f'pipeline {name}: not allowed -> allowed' for name in lacking],
            {'pipelines': [{'id': pipelines[name], 'authorized': True} for name in lacking]})


def find_approver(client, wanted):
    """{'id', 'name'} of the user or group of APPROVER, or of the token's owner when it is ''."""
    if not wanted:
        me = client.call('GET', '_apis/connectionData', 'find out whose token this is',
                         fields=TOKEN_OWNER, version=PREVIEW)['authenticatedUser']
        if 'ServiceIdentity' in me['descriptor']:
            raise AzureDevOpsError("The token is a build identity's, which cannot approve: set "
                                   'APPROVER to the mail address of a person or the name of a '
                                   f'group, such as [{client.settings.project}]\\Contributors.')
        return {'id': me['id'], 'name': me.get('customDisplayName') or me['providerDisplayName']}
    found = client.identities(wanted, 'find the approver')
    if len(found) != 1:
        known = f'{len(found)} identities' if found else 'nobody'
        raise AzureDevOpsError(f'APPROVER is {wanted!r}: Azure DevOps knows {known} by it. Give a '
                               'mail address or the full name of a group.')
    return {'id': found[0]['id'],
            'name': found[0].get('customDisplayName') or found[0]['providerDisplayName']}


def find_group(client, name):
    """The variable group with its project references, or None."""
    for group in client.pages(GROUPS, 'list the variable groups', {'id': int, 'name': str},
                              {'groupName': name}, needs=LIBRARY):
        if group['name'].lower() == name.lower():
            group = client.call('GET', f"{GROUPS}/{group['id']}", 'read the variable group',
                                fields=GROUP, needs=LIBRARY)
            if group['type'] != 'Vsts':
                raise AzureDevOpsError(f'Variable group {name} takes its values from a key vault '
                                       f"(type {group['type']}): put them there.")
            return group
    return None


class Work:
    """The set-up by one client; keeps what is left for a person."""

    def __init__(self, client):
        self.client = client
        self.by_hand = []
        self.complete = True

    def leave_to_person(self, text):
        """Something that only a person can do and that the set-up is not complete without."""
        self.by_hand.append(text)
        self.complete = False

    def set_up_group(self, name, project, environ):
        """The variable group's id (None in a dry run that would create it) and its values."""
        group = find_group(self.client, name)
        values = group_values(environ, group)
        lines, body = plan_group(name, group, values, project)
        # Variable groups are made for several projects at once, outside of any.
        answer = self.client.put_right('variable group ' + name, group, lines, body,
                                       '_apis/distributedtask/variablegroups',
                                       fields={'id': int}, needs=LIBRARY)
        return (answer or group or {}).get('id'), values

    def set_up_environment(self, name, wanted):
        """The environment and its approval; its id."""
        fields = {'id': int, 'name': str}
        listed = self.client.pages(ENVIRONMENTS, 'list the environments', fields, {'name': name},
                                   needs=ENVIRONMENT)
        there = next((one for one in listed if one['name'].lower() == name.lower()), None)
        environment = self.client.put_right(
            'environment ' + name, there, [],
            {'name': name, 'description': 'The service of the safe driver model'}, ENVIRONMENTS,
            fields=fields, needs=ENVIRONMENT) or there
        checks = environment and self.client.pages(
            CHECKS, 'read the checks of the environment', CHECK, {
                'resourceType': 'environment', 'resourceId': environment['id'],
                '$expand': 'settings'}, needs=ENVIRONMENT, version=PREVIEW)
        shown = environment or {'id': None, 'name': name}
        for title, planned in (
                ('approval before', plan_approval(shown, checks or [], find_approver(
                    self.client, wanted), bool(wanted))),
                ('exclusive lock on', plan_lock(shown, checks or []))):
            check, lines, body = planned
            self.client.put_right(f'{title} {name}', check, lines, body, CHECKS,
                                  update='PATCH', needs=ENVIRONMENT, version=PREVIEW)
        return environment and environment['id']

    def find_connection(self, name, subscription, group):
        """The id of the service connection, or None, and then what a person must do."""
        page = azure_devops.portal_page(self.client.settings, '_settings', 'adminservices')
        there = self.client.pages('{project}/_apis/serviceendpoint/endpoints',
                                  'list the service connections', CONNECTION_FIELDS,
                                  {'endpointNames': name},
                                  needs="the role 'Reader' on the service connections")
        if not there:
            self.leave_to_person(
                f'Create the service connection {name}: {page} > New service connection > Azure '
                'Resource Manager > App registration (automatic) > Workload identity federation, '
                f'scope: subscription {subscription}, resource group {group}. For `make preflight` '
                'its app needs Reader on the subscription as well:\n'
                'az role assignment create --role Reader --assignee APP_ID '
                f'--scope /subscriptions/{subscription}')
            return None
        return there[0]['id']

    def create_pipelines(self, repository, known):
        """Create the pipelines that are missing, and add them to what find_pipelines found."""
        for name, path in PIPELINES:
            there = known.get(path, [None])[0]
            answer = self.client.put_right(
                f"pipeline {there['name'] if there else name}, {path}", there, [],
                {'name': name, 'folder': '\\', 'configuration': {
                    'type': 'yaml', 'path': '/' + path, 'repository': {
                        'id': repository['id'], 'name': repository['name'],
                        'type': 'azureReposGit'}}},
                '{project}/_apis/pipelines', fields={'id': int, 'name': str},
                needs="'Create build pipeline'")
            if not there:
                known[path] = [answer or {'id': 'that of ' + name, 'name': name}]
            if path in FIRST_RUN and not known[path][0].get('latestBuild'):
                self.by_hand.append(f"Run {known[path][0]['name']} once: {FIRST_RUN[path]}:\n"
                                    f"{azure_devops.portal_page(self.client.settings, '_build')}")

    def permit_pipelines(self, resources, needed, known):
        """resources: {(kind, name): id}, None in a dry run; needed: {path: uses}."""
        for (kind, name), number in sorted(resources.items()):
            users = {known[path][0]['name']: known[path][0]['id'] for path in needed
                     if (kind, name) in needed[path] and path in known}
            if not users:
                continue
            path, (words, needs) = f'{PERMISSIONS}/{kind}/{number}', KINDS[kind]
            granted = number is not None and self.client.call(
                'GET', path, f'read who may use the {words}', fields=USERS, version=PREVIEW)
            lines, body = plan_permission(granted or {}, users)
            self.client.put_right(f'use of {words} {name}', {}, lines, body, path,
                                  update='PATCH', needs=needs, version=PREVIEW)


def set_up(work, environ):
    """All of it, in the order in which things need each other."""
    client, config = work.client, work.client.settings
    repository = branch_policy.find_repository(client)
    needed = {path: used_resources(ROOT / path) for _, path in PIPELINES}
    everything = set().union(*needed.values())
    groups = [name for kind, name in everything if kind == 'variablegroup']
    environments = [name for kind, name in everything if kind == 'environment']
    print(f'Project {config.project} in {config.organisation}')
    resources, values = {}, {}
    for name in sorted(groups):
        resources['variablegroup', name], more = work.set_up_group(
            name, repository['project'], environ)
        values.update(more)
    for name in sorted(environments):
        resources['environment', name] = work.set_up_environment(
            name, azure_devops.read_value(environ, 'APPROVER'))
    # The files name the connection by a variable of the group.
    needed = {path: {(kind, re.sub(r'\$\((\w+)\)', lambda found: values.get(found.group(1), ''),
                                   name)) for kind, name in found}
              for path, found in needed.items()}
    for kind, name in sorted(set().union(*needed.values())):
        if kind == 'endpoint':
            number = work.find_connection(
                name, values.get('SUBSCRIPTION_ID', 'ID'), values.get('RESOURCE_GROUP', 'GROUP'))
            if number:
                resources[kind, name] = number
    branches = branch_policy.find_branches(client, repository)
    if config.branch not in branches:
        print('  later   pipelines, permissions and policies: the code is not in Azure Repos yet')
        work.leave_to_person(branch_policy.absent_branch(client, repository, branches))
        return
    if repository.get('defaultBranch') != 'refs/heads/' + config.branch:
        page = azure_devops.portal_page(config, '_git', repository['name'], 'branches')
        work.leave_to_person(
            f'Make {config.branch} the default branch, where pipelines look for their YAML:\n'
            f'{page} > {config.branch} > More options > Set as default branch')
    known = branch_policy.find_pipelines(client, repository)
    work.create_pipelines(repository, known)
    work.permit_pipelines(resources, needed, known)
    branch_policy.apply_policies(client, repository, known)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=(
        argparse.RawDescriptionHelpFormatter))
    parser.parse_args(argv)
    try:
        config = azure_devops.read_settings(os.environ)
    except SettingsError as error:
        print(f'error: {error}', file=sys.stderr)
        try:
            group_values(os.environ, None)
        except SettingsError as more:
            print(f'And, unless they are in the variable group already, {more}', file=sys.stderr)
        return 2
    work = Work(azure_devops.Client(config))
    try:
        set_up(work, os.environ)
    except (SettingsError, AzureDevOpsError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(work.client.summary())
    if work.by_hand:
        print('\nLeft for you:')
        for number, text in enumerate(work.by_hand, 1):
            indented = text.replace('\n', '\n   ')
            print(f'{number}. {indented}')
    if not work.complete:
        print('Not complete: then run `make devops-project` again.')
    return 0 if work.complete or config.dry_run else 1


if __name__ == '__main__':
    sys.exit(main())
