"""Faults on demand: what can go wrong on Azure's side, without touching the client."""
import re
import threading

from .routing import METADATA, TELEMETRY, Dropped, problem
from .sign_in import EXPIRED, OBJECT

# Faults of requests, and what is answered instead; nothing: the connection is reset.
ANSWERS = {
    'throttled': (429, 'TooManyRequests', 'The request is throttled.', {'Retry-After': '1'}),
    'server-error': (500, 'InternalServerError', 'Encountered an unexpected error.'),
    'unavailable': (503, 'ServiceUnavailable', 'The service is unavailable.'),
    'expired-token': EXPIRED,
    'forbidden': (
        403, 'AuthorizationFailed', f"The client with object id '{OBJECT}' does not have "
        'authorization to perform this action over this scope or the scope is invalid. If '
        'access was recently granted, please refresh your credentials.'),
    'gone': (404, 'BlobNotFound', 'The specified blob does not exist.'),
    'reset': ()}
# These strike only where a token is asked for.
OF_TOKENS = ('expired-token', 'forbidden')
NAMES = tuple(ANSWERS) + (
    'step-fails',  # a step (`step`: its name, any unless given) exits with 1
    # Of a step (`step`) on several nodes the last one,
    'node-killed',  # which is killed while that of rank 0 trains
    'node-absent',  # which never starts
    'node-slow',  # which is stopped then, and never goes on
    'blob-mount',  # a step (`step`) sees its pipeline data as flat blob storage, see blob_mount.py
    'no-capacity',  # the cluster cannot allocate nodes: runs stay queued while the fault is set
    'admin-user-off',  # the admin user of the container registry is not enabled
    'registration-collides',  # 409 to the registration of a model
    # Of the next two `path` chooses: "service NAME" or "deployment ENDPOINT/NAME".
    'crash-loop',  # the container of a service or of a deployment crashes at every start
    'late',  # a service or a deployment is healthy `seconds` later
    'late-resource',  # a resource that is created is ready `seconds` later
    'busy',  # 409 to the request that would begin an operation on an endpoint
    'update-fails',  # a change of an endpoint fails when it has begun
    'name-taken',  # the name of a new endpoint is taken in the region
    'no-quota',  # there are no cores for a new deployment
    'live-500',  # the newest of several deployments answers 500 to what the traffic sends it
    'late-image',  # an image is built `seconds` later, by whoever needs it first
    'partial-answer',  # a query counts only a part of the lines, and says so
    'scoring-500',  # a service answers 500 to POST
)


class Faults:
    """The faults that are still to come, and the names of those that struck."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults = []
        self.struck = []

    def add(self, fault, count=1, skip=0, path='', after=False, step=None, seconds=0):
        """Let a fault of NAMES happen from now on. ValueError for another name.

        count: how often it strikes, None: without end; skip: how many occasions it lets pass first.
        path: a regular expression that is found in the "METHOD https://host/path" of the requests
        that it strikes; after: these are carried out, and only their answers are lost.
        """
        if fault not in NAMES:
            raise ValueError(f"unknown fault {fault!r}: the names are {', '.join(NAMES)}")
        with self._lock:
            self._faults.append({
                'fault': fault, 'left': float('inf') if count is None else count, 'skip': skip,
                'path': path, 'after': after, 'step': step, 'seconds': seconds})

    def clear(self):
        with self._lock:
            self._faults = []

    def take(self, *names, path='', step=None):
        """The next fault of one of these names that is due, counted as having struck, or None."""
        with self._lock:
            for fault in self._faults:
                if (fault['fault'] in names and fault['left'] and fault['step'] in (None, step)
                        and re.search(fault['path'], path)):
                    if fault['skip']:
                        fault['skip'] -= 1
                        continue
                    fault['left'] -= 1
                    self.struck.append(fault['fault'])
                    return fault
        return None

    def capacity_errors(self):
        """The errors that a cluster shows while it cannot allocate nodes."""
        if 'no-capacity' not in [fault['fault'] for fault in self._faults]:
            return None
        return [{'error': {'code': 'ClusterCoreQuotaReached', 'message': 'Operation results in '
                           'exceeding quota limits of Core. Maximum allowed: 0.'}}]

    def take_for_request(self, call, signed_in):
        """The fault that this request has to suffer, or None; telemetry suffers none."""
        if re.match(f'{TELEMETRY}$|{METADATA}$', call.host):
            return None
        names = [name for name in ANSWERS if signed_in or name not in OF_TOKENS]
        return self.take(*names, path=str(call))


def raise_fault(fault):
    """Raise what the client gets to see."""
    answer = ANSWERS[fault['fault']]
    raise problem(*answer) if answer else Dropped
