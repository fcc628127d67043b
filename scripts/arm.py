"""Azure Resource Manager by plain REST: read a resource, or have it created and wait for it.

    manager = arm.Manager(sign_in.authentication(os.environ), seconds=60)
    manager.get('/subscriptions/ID', '2022-12-01', 'look at the subscription')
"""
import base64
import json
import time

import azure_ml

URL = 'https://management.azure.com'
ANSWER_SECONDS = 20
PAUSE_SECONDS = 5
READY, ENDED = ('succeeded',), ('succeeded', 'failed', 'canceled')
# Where Azure's own words need a way out.
ADVICE = {
    'MissingSubscriptionRegistration': 'the owner of the subscription registers the provider '
                                       'once: `make preflight` prints the command',
    'RequestDisallowedByPolicy': 'a policy of your organisation forbids it: ask who looks after '
                                 'the subscription',
    'StorageAccountAlreadyTaken': 'its name is taken by someone else in Azure: choose another '
                                  'WORKSPACE_NAME',
    'VaultAlreadyExists': 'its name is taken, perhaps by a vault that was deleted in the last 90 '
                          'days: `az keyvault recover --name NAME`, or another WORKSPACE_NAME',
    'ConflictError': 'a vault of this name was deleted in the last 90 days: `az keyvault recover '
                     '--name NAME`, or another WORKSPACE_NAME',
}


class Manager:
    """Requests with a token of `authentication`, an object of the SDK.

    seconds: the longest wait for one question, what passes and is tried again included.
    """

    def __init__(self, authentication, seconds):
        self.authentication, self.seconds = authentication, seconds

    def tenant(self):
        """The id of the directory that the sign-in belongs to, as its token says (claim tid)."""
        claims = self.authentication.get_authentication_header()['Authorization'].split('.')[1]
        return json.loads(base64.urlsafe_b64decode(claims + '=' * (-len(claims) % 4)))['tid']

    def _ask(self, what, method, url, version=None, body=None, query=()):
        """The answer, of any status but those that pass. Raises AzureError."""
        import requests

        def ask():
            response = requests.request(
                method, url, json=body,
                params=dict(query, **({'api-version': version} if version else {})),
                timeout=ANSWER_SECONDS, allow_redirects=False,
                headers=self.authentication.get_authentication_header())
            if response.status_code in azure_ml.TRANSIENT:
                response.raise_for_status()
            return response
        with azure_ml.asking(what, self.seconds):
            return azure_ml.repeat(ask, self.seconds / 2)

    def _object(self, what, response):
        """The JSON object of a good answer. Raises AzureError for every other one."""
        try:
            found = dict(response.json())
        except (ValueError, TypeError):
            found = {}
        if response.status_code in (200, 201, 202) and found:
            return found
        status, error = response.status_code, found.get('error') or {}
        if status < 400 or not isinstance(error, dict) or not error.get('message'):
            raise azure_ml.AzureError(
                f'could not {what}: the answer (HTTP {status}, '
                f"{response.headers.get('Content-Type', 'of no type')}) is not what Azure Resource "
                'Manager says: is there a proxy before management.azure.com?', status)
        raise refused(what, error, status)

    def get(self, path, version, what, **query):
        """The resource as a dict, or None where there is none. Raises AzureError."""
        response = self._ask(what, 'GET', URL + path, version, query=query)
        return None if response.status_code == 404 else self._object(what, response)

    def create(self, path, version, body, what, end):
        """PUT the resource and wait until it is ready; the resource. Raises AzureError.

        end: by time.monotonic(). Form of the wait: github.com/microsoft/api-guidelines,
        azure/ConsiderationsForServiceDesign.md, long-running operations, and ARM's page "Track
        asynchronous Azure operations": Azure-AsyncOperation first, then the resource's own state.
        """
        response = self._ask(what, 'PUT', URL + path, version, body)
        operation = response.headers.get('Azure-AsyncOperation')
        if response.status_code >= 400 or not operation:
            self._object(what, response)
        # The token goes to Resource Manager only.
        if operation and operation.startswith(URL + '/'):
            self._wait(what, end, lambda: self._object(what, self._ask(what, 'GET', operation)),
                       lambda answer: answer.get('status'))
        return self.wait(path, version, what, end)

    def wait(self, path, version, what, end):
        """The resource, when its provisioningState says that it is ready. Raises AzureError."""
        return self._wait(what, end, lambda: self.get(path, version, what) or {}, state_of)

    def _wait(self, what, end, ask, state):
        while True:
            answer = ask()
            now = (state(answer) or 'unknown').lower()
            if now in READY:
                return answer
            if now in ENDED:
                error = answer.get('error') or {}
                raise refused(what, error if isinstance(error, dict) else {}, 409, now)
            if time.monotonic() > end:
                raise azure_ml.AzureError(f'could not {what} in time: it is {now} and goes on in '
                                          'Azure; run this again to wait for it')
            time.sleep(PAUSE_SECONDS)


def state_of(resource):
    """The provisioningState of a resource; one without has no steps to wait for."""
    return (resource.get('properties') or {}).get('provisioningState', 'Succeeded') \
        if resource else None


def refused(what, error, status, ended=None):
    """An AzureError in the words of an ARM error, {"code", "message"}, with what to do."""
    code, message = str(error.get('code', '')), ' '.join(str(error.get('message', '')).split())
    said = azure_ml.clean(f'{code}: {message}' if message else f'it ended as {ended}')[:400]
    advice = ADVICE.get(code) or azure_ml.ADVICE.get(status)
    return azure_ml.AzureError(
        f'could not {what}: HTTP {status}, {said}' + (f'\n{advice}' if advice else ''), status)
