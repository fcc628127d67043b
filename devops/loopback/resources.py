"""Resources of a group: storage, vault, logs, insights, and how a workspace is made of them.

What may be asked of each is in resource_manager.py. To be imported after the modules that know a
type better, since the first route that fits is taken.
"""
from .resource_manager import TYPES, UNIQUE, arm_id, keep, resource, validated
from .routing import ARM, GROUP, Answer, problem, route
from .workspaces import REGISTRY, WORKSPACES, complete_workspace, not_found


@route('PUT', ARM, GROUP + '/providers/Microsoft.{provider}/{kind}/{name}')
def put_resource(call, group, provider, kind, name):
    """Create or update; answered at once, or by 202 without a body when it is late."""
    kind = next((known for known in TYPES if known.lower() == f'microsoft.{provider}/{kind}'.lower()
                 ), None)
    if kind is None:
        raise problem(404, 'InvalidResourceType', f'The resource type of {call.path} could not be '
                      'found.')
    body, path = validated(call, kind, name), arm_id(group, kind, name)
    taken = [row['document']['id'] for row in call.cloud.journal.table('resources').values()
             if row['document']['type'] == kind and row['document']['name'] == name]
    if kind in UNIQUE and taken and taken != [path]:
        raise problem(409, UNIQUE[kind], f'The name {name} is already taken.')
    document = dict({'tags': {}, 'properties': {}}, **body, id=path, name=name, type=kind)
    if kind == WORKSPACES:
        complete_workspace(call.cloud, group, document)
    late = call.cloud.faults.take('late-resource')
    keep(call.cloud, document, late['seconds'] if late else 0)
    if late:
        return Answer(None, 202, {'Location': f'https://{call.host}{call.path}',
                                  'Retry-After': '1'})
    return Answer(resource(call.cloud, path), 200 if path in taken else 201)


@route('GET', ARM, GROUP + '/providers/Microsoft.{provider}/{kind}/{name}')
def get_resource(call, group, provider, kind, name):
    found = resource(call.cloud, call.path.rstrip('/'))
    if found is None:
        raise not_found(f'Microsoft.{provider}/{kind}', name, group)
    if found['type'] == REGISTRY and call.cloud.faults.take('admin-user-off'):
        found['properties']['adminUserEnabled'] = False
    return found
