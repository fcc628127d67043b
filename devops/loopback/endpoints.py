"""Managed online endpoints by Resource Manager, api-version 2024-10-01: code, deployments, traffic.

Sources: mfe.json (2024-04-01, and the examples of 2024-10-01) in Azure/azure-rest-api-specs for
paths, bodies, states and headers; of MicrosoftDocs/azure-ai-docs how-to-manage-quotas (names,
limits), reference-managed-online-endpoints-vm-sku-list and
includes/quota-allocation-online-deployment (sizes, a fifth more instances),
how-to-troubleshoot-online-endpoints (codes, statuses of scoring, 409),
how-to-safely-rollout-online-endpoints (traffic, deleting), reference-yaml-deployment-managed-online
(defaults), concept-endpoints-online-auth (rights); in azure-sdk-for-python, azure-ai-ml,
_asset_utils.py (how code is uploaded) and azureml_image_context.py (AML_APP_ROOT is the script's
folder). Words of refusals: the issues microsoft/azure-realtime-fraud-detection 2 (quota),
Azure/mlops-project-template 29 (name), Azure/CloudShell 487 (providers); limits of tags: learn,
tag-resources; headers of answers, which providers are wanted, that an endpoint that failed takes no
deployment: public notes of trials of 2025 and 2026.

Modelled: what a blue/green change needs of it, with keys. Not: mirrored traffic, tokens, scaling by
itself, private networks, custom containers, more than one process for all instances. devops/README
says what is inferred.
"""
import math
import os
import random
import re
import secrets
import shutil
import threading
import time
import traceback
import urllib.parse
import uuid

import urllib3

from .blobs import shared_link
from .computes import QUOTA_CORES, REGION, SIZES, cores_used
from .containers import Container, forward
from .resource_manager import PROVIDER, SUBSCRIPTION, checked, registered
from .routing import ARM, ENDPOINT, WORKSPACE, Answer, problem, route
from .schemas import SWITCH, TEXT, WHOLE, closed
from .sign_in import TENANT
from .workspaces import account, need_registry, not_found

VERSION = '2024-10-01'
OPERATIONS, NAMES = 'operations of endpoints', 'names of endpoints'
CODE = WORKSPACE + '/codes/{name}/versions/{version}'
ENDPOINTS = WORKSPACE + '/onlineEndpoints'
DEPLOYMENTS = ENDPOINTS + '/{endpoint}/deployments'
NAME = '(?=.{3,32}$)[a-zA-Z](-?[a-zA-Z0-9])+'
MOST_DEPLOYMENTS, MOST_INSTANCES, MOST_SECONDS = 20, 50, 180
SIZES_OF_ENDPOINTS = ('Standard_D2as_v4', 'Standard_D4as_v4', 'Standard_DS2_v2', 'Standard_DS3_v2',
                      'Standard_F4s_v2')
# How long an operation takes at least.
SECONDS = 0.2
# What the first endpoint of a subscription needs besides.
ALSO_REGISTERED = ('Microsoft.PolicyInsights', 'Microsoft.Cdn')
STRINGS = {'type': 'object', 'additionalProperties': TEXT}
TAGS = {'type': 'object', 'maxProperties': 50, 'additionalProperties': False,
        'patternProperties': {r'^[^<>%&\\?/]{1,512}$': {'type': 'string', 'maxLength': 256}}}
DURATION = {'type': 'string', 'pattern': '^PT(?=[0-9])([0-9]+M)?([0-9]+S)?$'}
PROBE = closed(failureThreshold=WHOLE, successThreshold=WHOLE, timeout=DURATION, period=DURATION,
               initialDelay=DURATION)
SKU = closed(['name', 'capacity'], name=TEXT, tier={'enum': ['Standard']}, capacity={
    'type': 'integer', 'minimum': 1, 'maximum': MOST_INSTANCES})
AT = {'location': TEXT, 'tags': TAGS, 'kind': TEXT,
      'identity': closed(['type'], type={'enum': ['SystemAssigned', 'systemAssigned']})}
ENDPOINT_BODY = closed(['location', 'properties'], properties=closed(
    ['authMode'], authMode={'enum': ['Key', 'key']}, description=TEXT, properties=STRINGS,
    publicNetworkAccess={'enum': ['Enabled']}, traffic={
        'type': 'object', 'additionalProperties': {
            'type': 'integer', 'minimum': 0, 'maximum': 100}}), **AT)
DEPLOYMENT_BODY = closed(['location', 'sku', 'properties'], sku=SKU, properties=closed(
    ['endpointComputeType', 'instanceType', 'model', 'environmentId', 'codeConfiguration'],
    endpointComputeType={'enum': ['Managed']}, instanceType=TEXT, model=TEXT, environmentId=TEXT,
    codeConfiguration=closed(['codeId', 'scoringScript'], codeId=TEXT, scoringScript=TEXT),
    description=TEXT, properties=STRINGS, environmentVariables=STRINGS, appInsightsEnabled=SWITCH,
    scaleSettings=closed(['scaleType'], scaleType={'enum': ['Default']}), livenessProbe=PROBE,
    readinessProbe=PROBE, startupProbe=PROBE, requestSettings=closed(
        requestTimeout=DURATION, maxQueueWait=DURATION, maxConcurrentRequestsPerInstance={
            'type': 'integer', 'minimum': 1})), **AT)
PATCHES = {'onlineEndpoints': closed(tags=TAGS, identity=AT['identity']),
           'deployments': closed(tags=TAGS, sku=closed(
               name=TEXT, tier=TEXT, capacity=SKU['properties']['capacity']))}
UPLOAD = closed(pendingUploadId=TEXT, pendingUploadType={'enum': ['TemporaryBlobReference']})
CODE_BODY = closed(['properties'], properties=closed(
    ['codeUri'], codeUri=TEXT, description=TEXT, tags=STRINGS, properties=STRINGS,
    isAnonymous=SWITCH, isArchived=SWITCH))
LOGS_BODY = closed(tail=WHOLE, containerType={'enum': ['InferenceServer', 'StorageInitializer']})
HELP = 'Please see troubleshooting guide, available here: https://aka.ms/oe-tsg#error-'


def invalid(code, message):
    return problem(400, code, message)


def seconds_of(duration):
    minutes, seconds = re.match(r'PT(?:(\d+)M)?(?:(\d+)S)?$', duration).groups('0')
    return 60 * int(minutes) + int(seconds)


class Endpoints:
    """The containers of all deployments."""

    def __init__(self):
        self.over = threading.Event()
        # {id of a deployment in lower case: its container}, and those that are not ready yet.
        self.containers, self.starting = {}, set()

    def stop(self):
        self.over.set()
        for container in [*self.starting, *self.containers.values()]:
            container.end()


class _Deployed(Container):
    """The container of one deployment."""

    def __init__(self, cloud, workspace, endpoint, document):
        own = f"{endpoint}/{document['name']}"
        super().__init__(cloud, workspace, f'deployment {own}', os.path.join(
            cloud.folder, 'endpoints', workspace['name'], own, uuid.uuid4().hex[:8], 'log.txt'))
        self.document, self.error, self.busy = document, None, 0
        asked = document['properties'].get('requestSettings', {})
        self.seconds = seconds_of(asked.get('requestTimeout', 'PT5S'))
        self.each = 2 * asked.get('maxConcurrentRequestsPerInstance', 1)

    def unpack(self, app):
        properties = self.document['properties']
        uri, model, environment = referred(self, properties)
        folder, files = uri.rsplit('/', 1)[-1], code_files(self.cloud, self.workspace, uri)
        for name, path in files.items():
            goal = os.path.join(app, folder, name)
            os.makedirs(os.path.dirname(goal), exist_ok=True)
            shutil.copyfile(path, goal)
        with open(os.path.join(os.path.dirname(self.log), 'storage.txt'), 'w') as log:
            log.write(f"Downloaded {len(files)} files of code and the model {model['id']}\n")
        script = os.path.join(app, folder, properties['codeConfiguration']['scoringScript'])
        return (os.path.dirname(script), os.path.basename(script), [model], environment,
                properties.get('environmentVariables', {}),
                properties.get('appInsightsEnabled', False))

    def report(self, state, why=None):
        if state == 'Failed':
            self.error = {'code': 'ResourceNotReady', 'message': why or 'User container has '
                          f'crashed or terminated. {HELP}resourcenotready'}

    def enter(self):
        """Give a request its place in the queue. Raises Answer when there is none."""
        if self.busy >= self.each * self.document['sku']['capacity']:
            raise problem(429, 'TooManyRequests', 'Too many pending requests.')
        self.busy += 1

    def leave(self):
        with self.cloud.journal.lock:
            self.busy -= 1

    def drain(self):
        """End when the requests that it has are answered."""
        until = time.monotonic() + self.seconds
        while self.busy and time.monotonic() < until and not self.over.wait(0.02):
            pass
        self.end()


def _asset(call, kind, path):
    """A registered code, model or environment by its id. Raises Answer."""
    match = re.fullmatch(re.escape(call.workspace['id']) + f'/{kind}/([^/]+)/versions/([^/]+)',
                         path, re.I)
    name, version = match.groups() if match else (None, None)
    key = {'codes': f'{name}/{version}', 'models': f'{name}:{version}', 'environments': name}[kind]
    found = call.cloud.table(call.workspace, kind).get(key)
    if found is None or str(found['version']) != version:
        raise invalid('BadArgument', f'{path} was not found: the id of one of the {kind} of this '
                      'workspace is wanted, /subscriptions/.../versions/VERSION.')
    return found


def referred(call, properties):
    """(address of the code, model, environment) that a deployment names. Raises Answer."""
    return (_asset(call, 'codes', properties['codeConfiguration']['codeId'])['uri'],
            _asset(call, 'models', properties['model']),
            _asset(call, 'environments', properties['environmentId']))


def code_files(cloud, workspace, uri):
    """{name below the folder: its path on this machine} of the blobs at this address."""
    host, _, path = uri.partition('://')[2].partition('/')
    container, _, folder = urllib.parse.unquote(path).partition('/')
    if host != f'{account(workspace)}.blob.core.windows.net' or not folder:
        return {}
    return {name[len(folder) + 1:]: cloud.blobs.path(account(workspace), container, name)
            for name in cloud.blobs.names(account(workspace), container, folder + '/')}


@route('POST', ARM, CODE + '/startPendingUpload')
def start_upload(call, name, version):
    asked = checked(call, UPLOAD)
    space = call.workspace
    container = f"{space['properties']['workspaceId']}-{uuid.uuid4().hex[:26]}"
    return {
        'pendingUploadId': asked.get('pendingUploadId') or str(uuid.uuid4()),
        'pendingUploadType': 'TemporaryBlobReference', 'blobReferenceForConsumption': {
            'blobUri': f'https://{account(space)}.blob.core.windows.net/{container}',
            'storageAccountArmId': space['properties']['storageAccount'], 'credential': {
                'credentialType': 'SAS', 'sasUri': shared_link(call, container)}}}


@route('PUT', ARM, CODE)
def put_code(call, name, version):
    """A version is of one place for good."""
    asked, table, key = checked(call, CODE_BODY), call.table('codes'), f'{name}/{version}'
    if not re.fullmatch('[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}', name):
        raise invalid('UserError', f'The name {name} of a code asset is invalid.')
    known, uri = table.get(key), asked['properties']['codeUri']
    if known and known['uri'] != uri:
        raise invalid('UserError', f'The code asset {name}:{version} is already linked to another '
                      'place: a version cannot be changed.')
    if not code_files(call.cloud, call.workspace, uri):
        raise invalid('UserError', f'There is no folder with code at {uri}.')
    table[key] = {'version': version, 'uri': uri, 'document': {
        'id': f"{call.workspace['id']}/codes/{name}/versions/{version}", 'name': version,
        'type': PROVIDER + '/workspaces/codes/versions',
        'properties': dict(asked['properties'], provisioningState='Succeeded')}}
    return Answer(table[key]['document'], 200 if known else 201)


@route('GET', ARM, CODE)
def get_code(call, name, version):
    found = call.table('codes').get(f'{name}/{version}')
    if found is None:
        raise not_found('codes/versions', f'{name}/{version}', call.workspace['group'])
    return found['document']


def _find(call, endpoint, name=None):
    """(table, key) of an endpoint, or with a name of its deployment. Raises Answer."""
    table = call.table('deployments' if name else 'endpoints')
    key = f'{endpoint}/{name}'.lower() if name else endpoint.lower()
    if key not in table:
        kind = 'onlineEndpoints/deployments' if name else 'onlineEndpoints'
        raise not_found(f'{PROVIDER}/workspaces/{kind}', name or endpoint, call.workspace['group'])
    return table, key


def _deployments(table, endpoint):
    """[(key, row)] of the endpoint's deployments in their table, the oldest first."""
    return [(key, table[key]) for key in list(table) if key.startswith(endpoint.lower() + '/')]


def _shown(row):
    """The resource as it is at this moment."""
    document = row['document']
    document['properties'] = dict(document['properties'], provisioningState=row['state'])
    return document


def _must_be_idle(call, endpoint):
    """Refuse a second operation on an endpoint or its deployments."""
    rows = [row for _, row in _deployments(call.table('deployments'), endpoint)]
    rows += filter(None, [call.table('endpoints').get(endpoint.lower())])
    if any(row['state'] not in ('Succeeded', 'Failed') for row in rows) or call.cloud.faults.take(
            'busy', path=str(call)):
        raise problem(409, 'Conflict', f'Another operation on the online endpoint {endpoint} is '
                      'in progress, please retry when it has ended.')


def _begun(call, row, state, work, status):
    """Begin an operation on a row of a table, and answer that.

    state: what the row is meanwhile; work: what is done, a function that gives an error as Azure
    has it, or None.
    """
    table, key = row
    operation = f'{"od" if "/" in key else "oe"}:{uuid.uuid4()}'
    operations = call.cloud.journal.table(OPERATIONS)
    operations[operation] = {'id': operation, 'name': operation, 'status': 'InProgress'}
    url, version = 'https://management.azure.com' + REGION.format(
        subscription=SUBSCRIPTION, location=call.workspace['location']), f'?api-version={VERSION}'
    headers = {'Azure-AsyncOperation': f'{url}/mfeOperationsStatus/{operation}{version}'}

    def run():
        try:
            error = work()
        except Exception:
            call.cloud.report(f'{operation}: {traceback.format_exc()}')
            error = {'code': 'InternalServerError', 'message': traceback.format_exc()}
        with call.cloud.journal.lock:
            if state == 'Deleting':
                del table[key]
            else:
                with table.change(key) as found:
                    found['state'] = 'Failed' if error else 'Succeeded'
            with operations.change(operation) as found:
                found.update({'status': 'Failed', 'error': error} if error else
                             {'status': 'Succeeded'})

    with table.change(key) as found:
        found['state'] = state
        found['document']['properties'].setdefault('properties', {})['AzureAsyncOperationUri'] = (
            headers['Azure-AsyncOperation'])
    threading.Thread(target=run, daemon=True).start()
    if status == 202:
        headers['Location'] = f'{url}/mfeOperationResults/{operation}{version}'
    return Answer(None if status == 202 else _shown(found), status, headers)


def _wait(call):
    """The time that an operation on an endpoint takes."""
    late = call.cloud.faults.take('late-resource', path=str(call))
    call.cloud.endpoints.over.wait(late['seconds'] if late else SECONDS)


def _document(call, asked, path, kind):
    """What is kept of a request, `path` below the workspace."""
    if asked['location'].lower().replace(' ', '') != call.workspace['location']:
        raise invalid('BadRequest', f"The location {asked['location']} is not that of the "
                      f"workspace, {call.workspace['location']}.")
    return {'tags': {}, **asked, 'id': f"{call.workspace['id']}/onlineEndpoints/{path}",
            'name': path.rsplit('/', 1)[-1], 'type': f'{PROVIDER}/workspaces/{kind}',
            'location': call.workspace['location']}


def _check_name(name, kind):
    if not re.fullmatch(NAME, name):
        raise invalid('BadRequest', f"The {kind} name '{name}' is invalid: 3 to 32 letters, digits "
                      'and single hyphens, the first a letter.')


@route('PUT', ARM, ENDPOINTS + '/{endpoint}')
def put_endpoint(call, endpoint):
    """Create or replace. Until the operation has ended, the traffic is as it was."""
    asked, table, key = checked(call, ENDPOINT_BODY), call.table('endpoints'), endpoint.lower()
    _check_name(endpoint, 'endpoint')
    names = call.cloud.journal.table(NAMES)
    with call.cloud.journal.lock:
        _must_be_idle(call, endpoint)
        known, region = table.get(key), f"{key}.{call.workspace['location']}"
        owner = names.get(region, call.workspace['id'])
        if owner != call.workspace['id'] or not known and call.cloud.faults.take('name-taken'):
            raise invalid('BadRequest', f'There is already an endpoint with this name, endpoint '
                          f'name needs to be unique within a region: {endpoint}')
        if known:
            _must_be_made(known)
        document = _document(call, asked, endpoint, 'onlineEndpoints')
        traffic = document['properties'].setdefault('traffic', {})
        _check_traffic(call, endpoint, traffic)
        host = f"https://{endpoint}.{call.workspace['location']}.inference.ml.azure.com"
        identity = known['document']['identity'] if known else {
            'type': 'SystemAssigned', 'principalId': str(uuid.uuid4()), 'tenantId': TENANT}
        document.update(identity=identity, properties=dict(
            document['properties'], authMode='Key', publicNetworkAccess='Enabled',
            scoringUri=host + '/score', swaggerUri=host + '/swagger.json'))
        names[region] = call.workspace['id']
        row = known or {'live': {}, 'made': False, 'state': 'Succeeded', 'keys': {
            kind: secrets.token_urlsafe(24) for kind in ('primaryKey', 'secondaryKey')}}
        table[key] = dict(row, document=document)

        def work():
            _wait(call)
            if not known and not all(registered(call.cloud, one) for one in ALSO_REGISTERED):
                return {'code': 'SubscriptionNotRegistered', 'message': "Resource provider [N/A] "
                        "isn't registered with Subscription [N/A]. Please see troubleshooting "
                        'guide, available here: https://aka.ms/register-resource-provider'}
            with table.change(key) as found:
                if not (known and call.cloud.faults.take('update-fails', path=str(call))):
                    found.update(live=traffic, made=True)
                    return None
                # The link to this operation remains.
                found['document'] = {**known['document'], 'properties': {
                    **known['document']['properties'],
                    'properties': found['document']['properties']['properties']}}
                return {'code': 'InternalServerError', 'message': 'Please try again.'}
        return _begun(call, (table, key), 'Updating' if known else 'Creating', work,
                      200 if known else 201)


def _must_be_made(row):
    """Refuse to change an endpoint whose creation failed."""
    if row['state'] == 'Failed' and not row['made']:
        raise invalid('BadRequest', 'This endpoint has not been created successfully or is in '
                      'deleting provisioning state. Please recreate endpoint and then try again.')


def _check_traffic(call, endpoint, traffic):
    """Refuse shares that do not add up, or are of deployments that cannot take them."""
    if sum(traffic.values()) not in (0, 100):
        raise invalid('BadRequest', 'The traffic of all deployments has to add up to 0 or 100, '
                      f'not {sum(traffic.values())}.')
    states = {row['document']['name']: row['state']
              for _, row in _deployments(call.table('deployments'), endpoint)}
    for name, share in traffic.items():
        if name not in states or share and states[name] != 'Succeeded':
            raise invalid('BadRequest', f'The deployment {name} cannot take traffic: it '
                          + (f'is {states[name]}.' if name in states else 'does not exist.'))


@route('GET', ARM, ENDPOINTS)
def list_endpoints(call):
    return {'value': [_shown(row) for row in call.table('endpoints').values()]}


@route('GET', ARM, ENDPOINTS + '/{endpoint}')
@route('GET', ARM, DEPLOYMENTS + '/{name}')
def get(call, endpoint, name=None):
    table, key = _find(call, endpoint, name)
    return _shown(table[key])


@route('PATCH', ARM, ENDPOINTS + '/{endpoint}')
@route('PATCH', ARM, DEPLOYMENTS + '/{name}')
def patch(call, endpoint, name=None):
    """Tags, and of a deployment the number of instances: the contract has no more."""
    table, key = _find(call, endpoint, name)
    asked = checked(call, PATCHES['deployments' if name else 'onlineEndpoints'])
    with call.cloud.journal.lock:
        _must_be_idle(call, endpoint)
        document = table[key]['document']
        if name and 'sku' in asked:
            document['sku'].update(asked['sku'])
            _take_cores(call, document)
            call.cloud.endpoints.containers[document['id'].lower()].document = document
        document['tags'].update(asked.get('tags', {}))
        table[key] = dict(table[key], document=document)
        return _begun(call, (table, key), 'Updating', lambda: _wait(call), 202)


@route('DELETE', ARM, ENDPOINTS + '/{endpoint}')
def delete_endpoint(call, endpoint):
    """With all its deployments."""
    if endpoint.lower() not in call.table('endpoints'):
        return Answer(status=204)
    with call.cloud.journal.lock:
        _must_be_idle(call, endpoint)

        def work():
            _wait(call)
            for key, row in _deployments(call.table('deployments'), endpoint):
                _remove(call, row)
                del call.table('deployments')[key]
            del call.cloud.journal.table(NAMES)[
                f"{endpoint.lower()}.{call.workspace['location']}"]
        return _begun(call, _find(call, endpoint), 'Deleting', work, 202)


def _remove(call, row):
    path = row['document']['id'].lower()
    with call.cloud.journal.lock:
        container = call.cloud.endpoints.containers.pop(path, None)
    if container:
        container.drain()
    del call.cloud.journal.table('cores')[path]


@route('POST', ARM, ENDPOINTS + '/{endpoint}/listKeys')
def list_keys(call, endpoint):
    table, key = _find(call, endpoint)
    return table[key]['keys']


@route('PUT', ARM, DEPLOYMENTS + '/{name}')
def put_deployment(call, endpoint, name):
    """Create or update; while a new container starts, the old one answers."""
    asked, table = checked(call, DEPLOYMENT_BODY), call.table('deployments')
    _check_name(name, 'deployment')
    with call.cloud.journal.lock:
        rows, place = _find(call, endpoint)
        _must_be_idle(call, endpoint)
        _must_be_made(rows[place])
        document = _document(call, asked, f'{endpoint}/deployments/{name}',
                             'onlineEndpoints/deployments')
        properties, key = document['properties'], f'{endpoint}/{name}'.lower()
        known = table.get(key)
        if not known and len(_deployments(call.table('deployments'), endpoint)) >= MOST_DEPLOYMENTS:
            raise invalid('BadRequest', f'Deployment quota of the endpoint reached: '
                          f'{MOST_DEPLOYMENTS}/{MOST_DEPLOYMENTS}.')
        before = known and known['document']['properties']['instanceType']
        if known and before != properties['instanceType']:
            raise invalid('BadRequest', f'The instanceType of a deployment cannot be changed: it '
                          f'is {before}.')
        settings = properties.get('requestSettings', {})
        if seconds_of(settings.get('requestTimeout', 'PT5S')) > MOST_SECONDS:
            raise invalid('BadRequest', f'requestTimeout is at most PT{MOST_SECONDS}S.')
        referred(call, properties)
        _take_cores(call, document)
        need_registry(call.cloud, call.workspace)
        table[key] = {'document': document, 'state': 'Succeeded'}

        def work():
            return _start(call, endpoint, document)
        return _begun(call, (table, key), 'Updating' if known else 'Creating', work,
                      200 if known else 201)


def _take_cores(call, document):
    """Note the cores that a deployment takes. Raises Answer when there are too few."""
    asked = document['properties']['instanceType']
    size = {known.lower(): known for known in SIZES_OF_ENDPOINTS}.get(asked.lower())
    if size is None:
        raise invalid('BadRequest', f'The instance type {asked} is not supported by managed online '
                      f"endpoints. Here are: {', '.join(SIZES_OF_ENDPOINTS)}.")
    family, each, _ = SIZES[size]
    table, key = call.cloud.journal.table('cores'), document['id'].lower()
    need = each * math.ceil(1.2 * document['sku']['capacity'])
    more = need - table.get(key, {'cores': 0})['cores']
    none = call.cloud.faults.take('no-quota', path=str(call))
    for used in (cores_used(call.cloud, family), cores_used(call.cloud)):
        if none or more > 0 and used + more > QUOTA_CORES:
            raise invalid('BadRequest', f'Not enough quota available for {size} in SubscriptionId '
                          f'{SUBSCRIPTION}. Current usage/limit: {used}/'
                          f'{used if none else QUOTA_CORES}. Additional needed: {more} '
                          f'{HELP}outofquota')
    table[key] = {'family': family, 'cores': need}


def _start(call, endpoint, document):
    """Start a deployment's container and let it take the place of the old one; the error."""
    containers, path = call.cloud.endpoints.containers, document['id'].lower()
    container = _Deployed(call.cloud, call.workspace, endpoint, document)
    old = containers.get(path)
    call.cloud.endpoints.starting.add(container)
    container.start()
    container.told.wait()
    call.cloud.endpoints.starting.remove(container)
    # What failed has a log to show.
    if not container.error or not (old and old.port):
        with call.cloud.journal.lock:
            containers[path] = container
        if old:
            old.drain()
    return container.error


@route('GET', ARM, DEPLOYMENTS)
def list_deployments(call, endpoint):
    _find(call, endpoint)
    return {'value': [_shown(row) for _, row in _deployments(call.table('deployments'), endpoint)]}


@route('DELETE', ARM, DEPLOYMENTS + '/{name}')
def delete_deployment(call, endpoint, name):
    table, key = call.table('deployments'), f'{endpoint}/{name}'.lower()
    if key not in table:
        return Answer(status=204)
    with call.cloud.journal.lock:
        _must_be_idle(call, endpoint)
        rows, place = _find(call, endpoint)
        name = table[key]['document']['name']
        if rows[place]['live'].get(name):
            raise invalid('BadRequest', f'The deployment {name} has traffic: '
                          f"{rows[place]['live'][name]}. Set it to 0 before you delete it.")
        with rows.change(place) as row:
            row['live'].pop(name, None)
            row['document']['properties']['traffic'].pop(name, None)

        def work():
            _wait(call)
            _remove(call, table[key])
        return _begun(call, (table, key), 'Deleting', work, 202)


@route('POST', ARM, DEPLOYMENTS + '/{name}/getLogs')
def get_logs(call, endpoint, name):
    table, key = _find(call, endpoint, name)
    asked = checked(call, LOGS_BODY)
    container = call.cloud.endpoints.containers.get(table[key]['document']['id'].lower())
    path = container and container.log
    if path and asked.get('containerType') == 'StorageInitializer':
        path = os.path.join(os.path.dirname(path), 'storage.txt')
    if not path or not os.path.exists(path):
        return {'content': 'The container is not there yet, please try again later.'}
    with open(path, encoding='utf-8', errors='replace') as log:
        return {'content': ''.join(log.readlines()[-asked.get('tail', 5000):])}


@route('GET', ARM, REGION + '/mfeOperationsStatus/{operation}')
def get_operation(call, location, operation):
    return call.cloud.journal.table(OPERATIONS)[operation]


@route('GET', ARM, REGION + '/mfeOperationResults/{operation}')
def get_result(call, location, operation):
    """202 without a body while it is under way."""
    document = get_operation(call, location, operation)
    if document['status'] == 'InProgress':
        return Answer(None, 202, {'Location': f'https://{call.host}{call.target}'})
    if document['status'] == 'Failed':
        raise problem(400, **document['error'])
    return None


@route('GET', ENDPOINT, '/{path*}', signed_in=False)
@route('POST', ENDPOINT, '/{path*}', signed_in=False)
def score(call, path):
    """Hand a request to the deployment that it names, else to one by the shares of traffic."""
    region = call.host.split('.inference.')[0]
    name, space = region.split('.')[0], call.cloud.journal.table(NAMES).get(region)
    if space is None:
        raise problem(404, 'NotFound', f'There is no endpoint {name}.')
    space = call.cloud.journal.table('workspaces')[space.lower()]
    table = call.cloud.table(space, 'endpoints')
    endpoint = table[name]
    scheme, _, given = call.headers.get('Authorization', '').partition(' ')
    if scheme.lower() != 'bearer' or not any(
            secrets.compare_digest(given.encode(), key.encode())
            for key in endpoint['keys'].values()):
        raise problem(401, 'Unauthorized', 'The key is missing or wrong.')
    wanted, path = call.headers.get('azureml-model-deployment'), endpoint['document']['id']
    # Nobody takes the container away between the choice and the request's place in its queue.
    with call.cloud.journal.lock:
        live = {one: share for one, share in table[name]['live'].items() if share}
        chosen = wanted or (random.choices(list(live), list(live.values()))[0] if live else None)
        container = call.cloud.endpoints.containers.get(f'{path}/deployments/{chosen}'.lower())
        if container is None:
            raise problem(404, 'NotFound', f'The endpoint has no deployment {wanted}.' if wanted
                          else 'The endpoint has no valid deployment with positive weight.')
        container.enter()
        rows = _deployments(call.cloud.table(space, 'deployments'), name)
        newest = len(rows) > 1 and rows[-1][1]['document']['id'] == container.document['id']
    try:
        answer = _answer(call, container, newest and not wanted)
    finally:
        container.leave()
    answer.headers.update({'azureml-model-deployment': container.document['name'],
                           'azureml-model-session': container.document['name'],
                           'Server': 'azureml-frontdoor'})
    return answer


def _answer(call, container, may_fail):
    """What the model answers: 424 for all that is not 200, 408 when it takes too long."""
    if may_fail and call.cloud.faults.take('live-500'):
        answer = Answer({'message': 'An unexpected error occurred in scoring script.'}, 500)
    else:
        try:
            answer = forward(call, container.port, container.seconds)
        except urllib3.exceptions.ReadTimeoutError:
            return problem(408, 'RequestTimeout', 'The model took longer than requestTimeout, '
                           f'{container.seconds} s.')
        except urllib3.exceptions.HTTPError:
            answer = problem(502, 'ModelUnreachable', 'The container does not answer.')
    if answer.status != 200:
        answer.headers.update({'ms-azureml-model-error-statuscode': str(answer.status),
                               'ms-azureml-model-error-reason': 'model_error'})
        answer.status = 424
    return answer
