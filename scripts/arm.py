"""Azure Resource Manager by plain REST: read a resource, or have it created and wait for it.

    manager = arm.Manager(sign_in.authentication(os.environ), seconds=60)
    manager.get('/subscriptions/ID', '2022-12-01', 'look at the subscription')
"""
import base64
import json
import time

import azure_ml

URL = 'https://management.azure.com'
PAUSE_SECONDS = 5
# A resource that is accepted may be missing for a moment.
APPEAR_SECONDS = 120
READY, ENDED = ('succeeded',), ('succeeded', 'failed', 'canceled')
# Where Azure's own words, a code or a part of a message, need a way out.
ADVICE = {
    'Soft-deleted workspace exists': 'a workspace of this name was deleted in the last 14 days: '
                                     'choose another WORKSPACE_NAME, or purge it in the portal',
    'MissingSubscriptionRegistration': 'the owner of the subscription registers the provider '
                                       'once: `make preflight` prints the command',
    'RequestDisallowedByPolicy': 'a policy of your organisation forbids it: ask who looks after '
                                 'the subscription',
    'StorageAccountAlreadyTaken': 'its name is taken by someone else in Azure: choose another '
                                  'WORKSPACE_NAME',
    'VaultAlreadyExists': 'its name is taken, perhaps by a vault that was deleted in the last 90 '
                          'days: `az keyvault recover --name NAME`, or another WORKSPACE_NAME',
    'needs to be unique within a region': 'the name of the endpoint is taken: choose another '
                                          'ENDPOINT_NAME',
    "isn't registered with Subscription": 'the owner of the subscription registers two more '
                                          'providers once: `PRODUCTION=endpoint make preflight` '
                                          'prints the commands',
    'Not enough quota': 'fewer instances or another instance_type in scoring/deployment.json, or '
                        'ask for more in the portal; `make preflight` checks it',
    'ConflictError': 'a vault of this name was deleted in the last 90 days: `az keyvault recover '
                     '--name NAME`, or another WORKSPACE_NAME',
}


class Manager:
    """Requests with a token of `authentication`, an object of the SDK.

    seconds: the longest wait for one question, what passes and is tried again included.
    """

    def __init__(self, authentication, seconds):
        self.authentication, self.seconds = authentication, seconds

    def header(self):
        """The header that every request needs, by a sign-in where one is due. Raises AzureError."""
        with azure_ml.asking('sign in', self.seconds):
            return azure_ml.repeat(
                self.authentication.get_authentication_header, self.seconds / 2)

    def tenant(self):
        """The id of the directory that the sign-in belongs to, as its token says (claim tid).

        Raises AzureError.
        """
        try:
            claims = self.header()['Authorization'].split('.')[1]
            return json.loads(base64.urlsafe_b64decode(claims + '=' * (-len(claims) % 4)))['tid']
        except (LookupError, ValueError, TypeError):
            raise azure_ml.AzureError('could not sign in: the token does not name its directory\n'
                                      + azure_ml.ODD) from None

    def ask(self, what, method, path, version, body=None, query=()):
        """The JSON of a good answer, None of 404 to a GET. Raises AzureError for all else."""
        response = azure_ml.request(
            what, self.seconds, method, URL + path, json=body, headers=self.header(),
            params=dict(query, **{'api-version': version}))
        found, status = azure_ml.json_object(response), response.status_code
        # Microsoft.Storage accepts a PUT (202) without a body; a DELETE has none, and a query that
        # finds nothing.
        if (status == 202 and method == 'PUT' or status in (200, 202, 204) and method == 'DELETE'
                or status == 204 and method == 'POST'
                or status in (200, 201) and found and isinstance(
                    found.get('properties') or {}, dict)):
            return found
        error = found.get('error')
        if status < 400 or not isinstance(error, dict) or not error.get('message'):
            raise azure_ml.AzureError(
                f'could not {what}: the answer (HTTP {status}, '
                f"{response.headers.get('Content-Type', 'of no type')}) is not what Azure Resource "
                'Manager says: is there a proxy before management.azure.com?')
        if status == 404 and method == 'GET':
            return None
        code, message = str(error.get('code', '')), azure_ml.sentence(error['message'])
        raise azure_ml.AzureError('\n'.join(filter(None, [
            f'could not {what}: HTTP {status}, {code}: {message}',
            advice(code, message) or azure_ml.ADVICE.get(status)])), status)

    def get(self, path, version, what, **query):
        """The resource as a dict, or None where there is none. Raises AzureError."""
        return self.ask(what, 'GET', path, version, query=query)

    def create(self, path, version, body, what, end):
        """PUT the resource and wait until it is ready; the resource. Raises AzureError.

        end: by time.monotonic(). Whether the provider does it at once (200, 201) or accepts it
        (202), the resource itself says how far it is.
        """
        self.ask(what, 'PUT', path, version, body)
        return self.wait(path, version, what, end)

    def wait(self, path, version, what, end):
        """The resource, when its provisioningState says that it is ready. Raises AzureError."""
        appear = time.monotonic() + APPEAR_SECONDS
        while True:
            found = self.get(path, version, what)
            state = state_of(found)
            if state in READY:
                return found
            if state in ENDED:
                raise azure_ml.AzureError(
                    f'could not {what}: it ended as {state}; the activity log of the resource '
                    'group says why\nremove it, then run this again', 409)
            if time.monotonic() > (end if found else min(end, appear)):
                raise azure_ml.AzureError(f'could not {what} in time: it is {state} and goes on in '
                                          'Azure; run this again to wait for it')
            time.sleep(PAUSE_SECONDS)


def advice(code, message):
    """What ADVICE says to an error, or None."""
    return next((text for words, text in ADVICE.items() if words == code or words in message), None)


def state_of(resource):
    """The provisioningState of a resource in lower case; one that has none is ready."""
    if resource is None:
        return 'not there yet'
    return str((resource.get('properties') or {}).get('provisioningState') or 'Succeeded').lower()
