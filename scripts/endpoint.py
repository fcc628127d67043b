"""The managed online endpoint of production, whose deployments share its traffic.

    python scripts/deploy.py --service endpoint --out outputs

A new version is a new deployment beside the one that serves. It is tested by its own name, gets a
tenth of the traffic, is watched, and gets all of it; the old one stays, without any, until the next
deployment. How far this is, is on the endpoint, changed by one request: its traffic, and the tags
`trial`, the deployment that was tested and has a tenth, `previous`, the one before, and `left`, the
one that a rollback left. So what is interrupted anywhere and run again goes on, and no traffic goes
to what was not tested.

By REST, without a second SDK: Azure/azure-rest-api-specs, machinelearningservices,
stable/2024-10-01/mfe.json (OnlineEndpoints, OnlineDeployments, CodeVersions).
"""
import hashlib
import json
import os
import tempfile
import time
import urllib.parse
from pathlib import Path

import arm
import atomic
import azure_ml
import deploy
import sign_in
import smoke_test
import workspace
from azure_ml import AzureError

VERSION = '2024-10-01'
FILE = 'endpoint.json'
TRIAL_SHARE = 10
# The header that asks for a deployment whatever the traffic (learn: how-to-safely-rollout-online-
# endpoints).
BY_NAME = 'azureml-model-deployment'
CONFLICTS = 5
PAUSE_SECONDS = 5
REPORT_SECONDS = 60
# A change of traffic is done in less.
ROUTE_SECONDS = 600
# What a round of the watch asks as customers do, so that the new deployment has a share, and the
# least number of rounds: a deployment that fails all of its share is seen.
REQUESTS, ROUNDS = 15, 10
WATCH_PAUSE_SECONDS = 1
# So many requests may wait for an instance, which works on one at a time; Azure's default is one.
REQUESTS_AT_ONCE = 16
BLOB = {'x-ms-blob-type': 'BlockBlob', 'x-ms-version': '2021-08-06'}


def part(found, *names):
    """A part of an answer. Raises AzureError where Azure did not send it."""
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise AzureError(f"could not read Azure's answer about the endpoint: it has no {name}\n"
                             f'{azure_ml.ODD}')
    return found


def check_form(one):
    """Raise AzureError unless tags and traffic of an endpoint or a deployment can be read."""
    for name, found, kind in (('tags', one.get('tags'), str),
                              ('traffic', part(one, 'properties').get('traffic'), int)):
        found = found or {}
        if not isinstance(found, dict) or not set(map(type, found.values())) <= {kind}:
            raise AzureError(f"could not read Azure's answer about the endpoint: odd {name}\n"
                             f'{azure_ml.ODD}')


class Endpoint:
    """The endpoint that the settings name, as Azure last told it, and what can be done with it."""

    def __init__(self, config):
        self.config, self.name = config, config.endpoint_name
        self.manager = arm.Manager(sign_in.authentication(os.environ), config.call_timeout_seconds)
        self.workspace = (f'/subscriptions/{config.subscription_id}/resourceGroups/'
                          f'{config.resource_group}/providers/{workspace.WORKSPACES}/'
                          f'{config.workspace_name}')
        self.path = f'{self.workspace}/onlineEndpoints/{self.name}'
        self.end = time.monotonic() + 60 * config.deploy_timeout_minutes
        self.found = None

    def patience(self):
        """Until when to wait: there is always time for a change of traffic."""
        return max(self.end, time.monotonic() + ROUTE_SECONDS)

    def path_of(self, deployment):
        return f'{self.path}/deployments/{deployment}'

    def ask(self, what, method, path, body=None):
        """The answer, waited for while another operation is under way. Raises AzureError."""
        for attempt in range(CONFLICTS):
            try:
                return self.manager.ask(what, method, path, VERSION, body)
            except AzureError as error:
                if error.status != 409 or attempt == CONFLICTS - 1:
                    raise
            print(f'could not {what} yet: another operation is under way', flush=True)
            time.sleep(PAUSE_SECONDS * 2 ** attempt)
            self.look()

    def look(self):
        """Whether there is an endpoint, asked anew, when nothing on it is under way any more."""
        self.found = self.settled(f'look for the endpoint {self.name}', self.path)
        return self.found is not None

    def settled(self, what, path):
        """The resource when nothing on it is under way any more, or None. Raises AzureError."""
        end, spoken = self.patience(), time.monotonic()
        while True:
            found = self.manager.get(path, VERSION, what)
            if found:
                check_form(found)
            state, now = arm.state_of(found), time.monotonic()
            if not found or state in arm.ENDED:
                return found
            if now > end:
                raise AzureError(f'could not {what}: it is still {state} and goes on in Azure; run '
                                 'this again to wait for it')
            if now - spoken > REPORT_SECONDS:
                spoken = now
                print(f"{time.strftime('%H:%M:%S')} {what}: {state}", flush=True)
            time.sleep(PAUSE_SECONDS)

    def ready(self, what, path):
        """The resource when it is ready. Raises AzureError, with Azure's reason, if it failed."""
        found = self.settled(what, path)
        if found and arm.state_of(found) in arm.READY:
            return found
        try:
            uri = part(found, 'properties', 'properties', 'AzureAsyncOperationUri')
            error = part(self.manager.get(uri.partition('?')[0].replace(arm.URL, '', 1), VERSION,
                                          'ask why it failed'), 'error')
            code, message = part(error, 'code'), azure_ml.sentence(part(error, 'message'))
        except AzureError:
            code, message = arm.state_of(found), 'Azure does not say why'
        raise AzureError('\n'.join(filter(None, [
            f'could not {what}: {code}: {message}', arm.advice(code, message)])))

    def put(self, what, traffic, tags):
        """Create the endpoint, or give it this traffic and, of its tags, these. AzureError."""
        kept = self.found or dict(self.manager.get(
            self.workspace, workspace.WORKSPACE_VERSION, 'look for the workspace') or {},
            properties={'authMode': 'Key'}, identity={'type': 'SystemAssigned'}, tags={})
        # Others may have changed what is not ours.
        names = ('authMode', 'description', 'publicNetworkAccess', 'properties')
        properties = {name: value for name, value in part(kept, 'properties').items()
                      if name in names and value}
        tags = dict(kept.get('tags') or {}, **tags)
        self.ask(what, 'PUT', self.path, {
            'location': part(kept, 'location'),
            'identity': {'type': part(kept, 'identity', 'type')},
            'tags': {name: value for name, value in tags.items() if value},
            'properties': dict(properties, traffic=traffic)})
        self.found, end = self.ready(what, self.path), time.monotonic() + ROUTE_SECONDS
        # For a while it may still show the shares of before (Azure/azure-dev 3881).
        while self.traffic != {name: share for name, share in traffic.items() if share}:
            if time.monotonic() > end:
                raise AzureError(f'could not {what}: Azure goes on saying {self.traffic}; run '
                                 'this again')
            time.sleep(PAUSE_SECONDS)
            self.found = self.ready(what, self.path)

    def route(self, traffic, **tags):
        """Give the deployments these shares of the traffic, in per cent. Raises AzureError."""
        shares = ', '.join(f'{name} {share} %' for name, share in traffic.items())
        self.put(f'give the traffic of the endpoint {self.name} to {shares}', traffic, tags)
        print(f'endpoint {self.name}: traffic {shares}', flush=True)

    @property
    def tags(self):
        return self.found.get('tags') or {}

    @property
    def traffic(self):
        """{name: share} of the deployments that have any."""
        return {name: share for name, share in (
            part(self.found, 'properties').get('traffic') or {}).items() if share}

    @property
    def uri(self):
        return part(self.found, 'properties', 'scoringUri')

    @property
    def live(self):
        """The deployment that serves, whatever is on trial beside it, or None."""
        shares = {name: share for name, share in self.traffic.items()
                  if name != self.tags.get('trial')} or self.traffic
        return max(shares, key=shares.get, default=None)

    def check_unchanged(self, live, trial=None):
        """Raise AzureError if others, a rollback say, have changed the traffic meanwhile."""
        self.look()
        if self.live != live or trial and self.tags.get('trial') != trial:
            raise AzureError('somebody else has changed the traffic meanwhile; run this again if '
                             'it is still wanted')

    def check_ours(self):
        """Raise AzureError if others made it or deployments of it, which are not ours to delete."""
        mode = part(self.found, 'properties', 'authMode')
        if str(mode).lower() != 'key':
            raise AzureError(f'the endpoint {self.name} asks for {mode}, not for a key, so this '
                             'project did not make it: choose another ENDPOINT_NAME')
        others = [name for name, one in sorted(self.deployments().items())
                  if not set(deploy.PARTS) <= set(one.get('tags') or {})]
        if others:
            raise AzureError(f'the endpoint {self.name} has deployments that this project did not '
                             f"make, {', '.join(others)}: choose another ENDPOINT_NAME")

    def all_to_live(self):
        """Take the traffic away from what is on trial, or whatever else has a part of it."""
        if self.live and self.traffic != {self.live: 100}:
            self.route({self.live: 100}, trial='')

    def deployments(self):
        found = self.manager.get(f'{self.path}/deployments', VERSION,
                                 f'list the deployments of the endpoint {self.name}')
        try:
            known = {str(part(one, 'name')): one for one in part(found, 'value')}
            for one in known.values():
                check_form(one)
            return known
        except TypeError:
            raise AzureError("could not read Azure's answer about the endpoint: no list\n"
                             f'{azure_ml.ODD}') from None

    def delete(self, title, path):
        """Delete a resource and wait until it is gone. Raises AzureError."""
        what = f'delete the {title}'
        print(f'endpoint {self.name}: deleting the {title}', flush=True)
        if self.settled(what, path):
            self.ask(what, 'DELETE', path)
        found, states = self.manager.get(path, VERSION, what), set()
        while found:
            states.add(arm.state_of(found))
            if 'deleting' in states and arm.state_of(found) in arm.ENDED:
                raise AzureError(f'could not {what}: Azure began and gave it up; run this again')
            if time.monotonic() > self.end:
                raise AzureError(f'could not {what} in time: run this again')
            time.sleep(PAUSE_SECONDS)
            found = self.manager.get(path, VERSION, what)

    def headers(self, deployment=None):
        """Those of a request to the endpoint, or to a deployment of it; fetches the key."""
        found = self.ask('fetch the key of the endpoint', 'POST', f'{self.path}/listKeys')
        key = {'Authorization': f"Bearer {part(found, 'primaryKey')}"}
        return dict(key, **{BY_NAME: deployment}) if deployment else key

    def show_log(self, deployment):
        """Print the end of the log of a deployment's container, where there is one."""
        path = self.path_of(deployment)
        try:
            if self.manager.get(path, VERSION, 'look for the deployment'):
                text = part(self.ask("fetch the container's log", 'POST', path + '/getLogs', {
                    'containerType': 'InferenceServer', 'tail': deploy.LOG_LINES}), 'content')
                lines = azure_ml.clean(str(text)).splitlines()[-deploy.LOG_LINES:]
                print('\n  '.join([f'the log of the container, last {len(lines)} lines:'] + lines),
                      flush=True)
        except AzureError as error:
            print(error, flush=True)

    def facts(self, name):
        """The content of endpoint.json when this deployment serves."""
        known = self.deployments()
        previous = self.tags.get('previous')
        tags = {one: (known.get(one) or {}).get('tags') or {} for one in (name, previous)}
        return {'name': self.name, 'scoring_uri': self.uri,
                'deployment': name, 'model': tags[name].get('model'),
                'version': int(tags[name].get('version', 0)),
                'previous_deployment': previous if previous in known else None,
                'previous_version': int(tags[previous].get('version', 0)) or None}


def store_code(endpoint, source, fingerprint):
    """The id of the code asset that holds a folder's files, uploaded where it is not there yet.

    The upload goes to the place that Azure names, by its SAS; a version cannot be changed later.
    """
    import requests
    what = 'store the scoring files'
    path = f'{endpoint.workspace}/codes/safe-driver-scoring/versions/{fingerprint}'
    if endpoint.manager.get(path, VERSION, what):
        return path
    place = part(endpoint.ask(what, 'POST', path + '/startPendingUpload', {
        'pendingUploadType': 'TemporaryBlobReference'}), 'blobReferenceForConsumption')
    base, _, sas = part(place, 'credential', 'sasUri').partition('?')
    # The place is a container; a folder in it becomes the folder of score.py.
    base += '/' + source.name
    for file in deploy.uploaded(source):
        answer = azure_ml.request(
            f'{what}, {file.name}', endpoint.config.call_timeout_seconds, 'PUT',
            f'{base}/{urllib.parse.quote(file.relative_to(source).as_posix())}?{sas}',
            data=file.read_bytes(), headers=BLOB)
        if answer.status_code != requests.codes.created:
            raise AzureError(f'could not {what}, {file.name}: HTTP {answer.status_code}, '
                             f'{azure_ml.sentence(answer.text)}', answer.status_code)
    endpoint.ask(what, 'PUT', path, {'properties': {
        'codeUri': f"{part(place, 'blobUri')}/{source.name}",
        'description': 'score.py of the safe driver model'}})
    return path


def deployment_name(parts):
    """A name that follows from what is deployed: the same again is the same deployment."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"v{parts['version']}-{digest[:8]}"


def create_deployment(endpoint, name, parts, environment, wanted, tags):
    """Have the deployment made, or wait until it is. Raises AzureError."""
    what = f'create the deployment {name}'
    found = endpoint.manager.get(endpoint.path_of(name), VERSION, what)
    if found and arm.state_of(found) in ('failed', 'canceled', 'deleting'):
        endpoint.delete(f'deployment {name}', endpoint.path_of(name))
        found = None
    if not found:
        code = store_code(endpoint, deploy.SOURCE, parts['scoring'])
        print(f"endpoint {endpoint.name}: creating the deployment {name}, {wanted['instances']} of "
              f"{wanted['instance_type']}; a first image takes 10 to 20 minutes", flush=True)
        variables = dict(atomic.read_json(deploy.SOURCE / deploy.SETTINGS)['environment'],
                         SERVED_AS=endpoint.name)
        endpoint.ask(what, 'PUT', endpoint.path_of(name), {
            'location': part(endpoint.found, 'location'), 'tags': dict(parts, **tags),
            'sku': {'name': 'Default', 'capacity': wanted['instances']},
            'properties': {
                'endpointComputeType': 'Managed', 'instanceType': wanted['instance_type'],
                'model': f"{endpoint.workspace}/models/{parts['model']}/versions/"
                         f"{parts['version']}",
                'environmentId': f'{endpoint.workspace}/environments/{environment.name}/versions/'
                                 f'{environment.version}',
                'codeConfiguration': {'codeId': code, 'scoringScript': 'score.py'},
                'environmentVariables': variables, 'appInsightsEnabled': True,
                'scaleSettings': {'scaleType': 'Default'},
                'requestSettings': {'requestTimeout': f"PT{variables['WORKER_TIMEOUT']}S",
                                    'maxConcurrentRequestsPerInstance': REQUESTS_AT_ONCE}}})
    began = time.monotonic()
    endpoint.ready(what, endpoint.path_of(name))
    print(f'endpoint {endpoint.name}: the deployment {name} is there, '
          f'{time.monotonic() - began:.0f} s', flush=True)


def watch(endpoint, live, name, rows, expected):
    """Ask the deployment, and the endpoint as customers do, for some minutes. Raises AzureError.

    One failure may pass by, and one more in a hundred requests; a wrong score never. Those of the
    deployment that serves are its own: what takes its place may be the cure.
    """
    import requests
    session = requests.Session()
    ways = [endpoint.headers(name)] + REQUESTS * [endpoint.headers()]
    end = time.monotonic() + 60 * endpoint.config.endpoint_watch_minutes
    asked, failed, spoken = 0, 0, time.monotonic()
    while time.monotonic() < end or asked < ROUNDS * len(ways):
        for headers in ways:
            answer, text, reason = smoke_test.try_once(session, endpoint.uri, headers, rows)
            asked += 1
            # Azure says who has answered, or this is not known.
            by = headers.get(BY_NAME) or answer is not None and answer.headers.get(BY_NAME)
            if by == live:
                continue
            if not reason:
                smoke_test.read_scores(text, len(rows))
                if by == name:
                    smoke_test.check_scores(text, expected)
                continue
            failed += 1
            reason = smoke_test.harmless(reason, headers).splitlines()[0]
            print(f'request {asked} failed: {reason[:smoke_test.LINE_SHOWN]}', flush=True)
            if failed > 1 + asked // 100:
                raise AzureError(f'{failed} of {asked} requests failed while {name} had '
                                 f'{TRIAL_SHARE} % of the traffic; the last: {reason}')
        if time.monotonic() - spoken > REPORT_SECONDS:
            spoken = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} watching {name}: {asked} requests, {failed} failed",
                  flush=True)
        time.sleep(WATCH_PAUSE_SECONDS)
    print(f'endpoint {endpoint.name}: {asked} requests with {name} at {TRIAL_SHARE} % of the '
          f'traffic, {failed} failed', flush=True)


def change(endpoint, name, create, rows, expected, tags):
    """Bring the deployment from nothing to all of the traffic. Raises AzureError.

    create: a function that has it made. What fails leaves all traffic where it was.
    """
    import requests
    live, headers = endpoint.live, {}
    try:
        create()
        headers = endpoint.headers(name)
        smoke_test.check_service(
            requests.Session(), endpoint.uri, headers, rows, expected,
            time.monotonic() + smoke_test.DEADLINE_SECONDS['endpoint'])
        print(f'endpoint {endpoint.name}: {name} answers as it should', flush=True)
        endpoint.check_unchanged(live)
        if live:
            if endpoint.traffic != {live: 100 - TRIAL_SHARE, name: TRIAL_SHARE}:
                endpoint.route({live: 100 - TRIAL_SHARE, name: TRIAL_SHARE}, trial=name)
            watch(endpoint, live, name, rows, expected)
            endpoint.check_unchanged(live, name)
        endpoint.route({name: 100}, trial='', previous=live, left='', **tags)
    except (AzureError, ValueError) as error:
        try:
            endpoint.look()
            # What others have given traffic to meanwhile keeps it.
            if live and name in endpoint.traffic:
                endpoint.route({live: 100}, trial='', previous='')
            serving = ' and '.join(endpoint.traffic)
            serves = f'all traffic is on {serving}' if serving else 'it has no traffic'
        except AzureError as another:
            serves = (f'and whether all traffic is on {live} is not certain ({another}): '
                      '`make rollback SERVICE=endpoint` sees to it')
        endpoint.show_log(name)
        raise AzureError(f'{name} does not go into production, {serves}: '
                         + smoke_test.harmless(str(error), headers)) from None


def deploy_model(config, name, version):
    """Have this model version serve at the endpoint; the content of endpoint.json. AzureError."""
    space = workspace.connect(config)
    environment = workspace.environment(space, config, 'scoring')
    parts = {'model': name, 'version': str(version), 'environment': environment.name,
             'scoring': deploy.fingerprint(deploy.SOURCE)}
    new, tags = deployment_name(parts), deploy.build_tags(config)
    endpoint = Endpoint(config)
    if endpoint.look():
        endpoint.check_ours()
    if endpoint.found and arm.state_of(endpoint.found) == 'failed' and not endpoint.deployments():
        # Azure takes nothing for an endpoint whose creation failed.
        endpoint.delete('endpoint, which failed', endpoint.path)
        endpoint.look()
    if not endpoint.found:
        print(f'endpoint {endpoint.name}: creating it', flush=True)
        endpoint.put(f'create the endpoint {endpoint.name}', {}, {})
    if endpoint.tags.get('trial') != new:
        endpoint.all_to_live()
    if endpoint.traffic == {new: 100}:
        print(f'the endpoint {endpoint.name} runs version {version} already', flush=True)
        # The failure hook of one more attempt may roll back what the first one did.
        if endpoint.tags.get('BuildId') == tags['BuildId'] and (
                endpoint.tags.get('Attempt') != tags['Attempt']):
            endpoint.put('note the attempt', {new: 100}, tags)
        return endpoint.facts(new)
    with tempfile.TemporaryDirectory() as folder:
        deploy.fetch_model(space, config, name, version, folder)
        rows, expected = smoke_test.stored_rows(Path(folder, deploy.MODEL_FILE))
    # What is older than the one that serves makes room, for machines cost and count.
    for other in sorted(set(endpoint.deployments()) - {endpoint.live, new}):
        endpoint.delete(f'deployment {other}', endpoint.path_of(other))
    wanted = atomic.read_json(deploy.SOURCE / deploy.SETTINGS)['endpoint']
    change(endpoint, new,
           lambda: create_deployment(endpoint, new, parts, environment, wanted, tags),
           rows, expected, tags)
    return endpoint.facts(new)


def deploy_to(config, out):
    """What `deploy.py --service endpoint` does; its exit code."""
    tested = None if config.model_version else atomic.read_json(
        Path(out) / 'service.json', 'model', 'version')
    # What QA tested, which is not always the newest.
    name, version = ((tested['model'], tested['version']) if tested
                     else deploy.model_to_deploy(config, out))
    if version is None:
        print('nothing to deploy: the run kept the registered version')
        return 0
    result = deploy_model(config, name, version)
    atomic.write_json(Path(out) / FILE, result)
    print(f"endpoint {result['name']} runs version {result['version']} of {result['model']}: "
          f"{result['scoring_uri']}")
    return 0


def roll_back(config):
    """Give the traffic to the deployment before; the content of endpoint.json.

    None where this is the failure hook of a build, or of an attempt, that changed nothing, unless
    ROLLBACK_ANY_BUILD.
    """
    endpoint = Endpoint(config)
    if not endpoint.look() or not endpoint.live:
        raise AzureError(f'nothing serves at the endpoint {endpoint.name}: '
                         'MODEL_VERSION=n make deploy SERVICE=endpoint')
    live, previous = endpoint.live, endpoint.tags.get('previous')
    if endpoint.tags.get('trial') in endpoint.traffic:
        endpoint.all_to_live()
        return endpoint.facts(live)
    if not deploy.may_roll_back(endpoint.tags, config):
        print(f'nothing to roll back: {live} serves at the endpoint {endpoint.name}, by build '
              f"{endpoint.tags.get('BuildId')}, attempt {endpoint.tags.get('Attempt')}; build "
              f'{config.build_buildid}, attempt {config.system_stageattempt} did not touch it')
        return None
    if previous not in endpoint.deployments():
        if endpoint.tags.get('left'):
            print(f"endpoint {endpoint.name}: rolled back already, from {endpoint.tags['left']}")
            return endpoint.facts(live)
        raise AzureError(f'the endpoint {endpoint.name} has nothing before {live} any more; '
                         'MODEL_VERSION=n make deploy SERVICE=endpoint deploys version n')
    # No previous any more: what was just left is not to be put back by another rollback.
    endpoint.route({previous: 100}, trial='', previous='', left=live, **deploy.build_tags(config))
    return endpoint.facts(previous)
