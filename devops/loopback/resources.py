"""Resources of a group without a service of their own here: storage, vault, logs, insights.

What may be asked of each is in resource_manager.py. To be imported after the modules that know a
type better, since the first route that fits is taken.
"""
from .resource_manager import PROVIDER, TYPES, UNIQUE, arm_id, resource, store, validated
from .routing import ARM, GROUP, problem, route


@route('PUT', ARM, GROUP + '/providers/Microsoft.{provider}/{kind}/{name}')
def put_resource(call, group, provider, kind, name):
    """A storage account, vault, log workspace or insights; late by `seconds` of `late-resource`."""
    kind = next((known for known in TYPES if known.lower() == f'microsoft.{provider}/{kind}'.lower()
                 and known != PROVIDER + '/workspaces'), None)
    if kind is None:
        raise problem(404, 'InvalidResourceType', f'The resource type of {call.path} could not be '
                      'found.')
    body, path = validated(call, kind, name), arm_id(group, kind, name)
    log_workspace = body.get('properties', {}).get('WorkspaceResourceId')
    if log_workspace and resource(call.cloud, log_workspace) is None:
        raise problem(400, 'BadRequest', f'The workspace {log_workspace} was not found.')
    taken = [row['document']['id'] for row in call.cloud.journal.table('resources').values()
             if row['document']['type'] == kind and row['document']['name'] == name]
    if kind in UNIQUE and taken and taken != [path]:
        raise problem(409, UNIQUE[kind], f'The name {name} is already taken.')
    document = {'id': path, 'name': name, 'type': kind, 'location': body['location'],
                'tags': body.get('tags') or {}, 'properties': body.get('properties') or {}}
    document.update({key: body[key] for key in ('kind', 'sku') if key in body})
    return store(call, document, 201 if not taken else 200)


@route('GET', ARM, GROUP + '/providers/Microsoft.{provider}/{kind}/{name}')
def get_resource(call, group, provider, kind, name):
    found = resource(call.cloud, call.path.rstrip('/'))
    if found is None:
        raise problem(404, 'ResourceNotFound', f"The Resource 'Microsoft.{provider}/{kind}/{name}' "
                      f"under resource group '{group}' was not found. For more details please go "
                      'to https://aka.ms/ARMResourceNotFoundFix')
    return found
