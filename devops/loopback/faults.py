"""Faults on demand: what can go wrong on Azure's side, without touching the client.

A fault is a dictionary: `fault` (its name, see NAMES), `count` (how often it strikes: once unless
given, without end if null), `skip` (how many occasions it lets pass first), and what its name
takes.
"""
import re
import threading

from .routing import METADATA, TELEMETRY, Dropped, problem
from .sign_in import OBJECT, expired

NAMES = {
    'throttled': '429 with Retry-After of `seconds` (1)',
    'server-error': '500',
    'unavailable': '503',
    'reset': 'the connection is reset',
    'stalled': 'no answer for `seconds` (600), then a reset',
    'expired-token': '401, as when the token has expired',
    'forbidden': '403, AuthorizationFailed of Azure Resource Manager',
    'step-fails': 'a step (`step`: its name, any unless given) exits with 1',
    'step-never-ends': 'a step (`step`) runs until it is canceled',
    'blob-mount': 'a step (`step`) sees its pipeline data as flat blob storage, see blob_mount.py',
    'no-capacity': 'the cluster cannot allocate nodes: runs stay queued while the fault is set',
    'admin-user-off': 'the admin user of the container registry is not enabled',
    'registration-collides': '409 to the registration of a model',
    'crash-loop': 'a service\'s container crashes at every start',
    'late': 'a service is healthy `seconds` (3) later',
    'late-resource': 'a resource that is created is ready `seconds` later',
    'late-image': 'an image is built `seconds` later',
    'image-fails': 'the build of an image fails',
    'scoring-500': 'a service answers 500 to POST',
}
# These strike requests in whose "METHOD https://host/path" the regular expression `path` is found
# (any unless given). With `after` true the request is carried out and only its answer is lost.
ON_REQUESTS = ('throttled', 'server-error', 'unavailable', 'reset', 'stalled')
ON_SIGNED_IN_REQUESTS = ('expired-token', 'forbidden')
STALL_SECONDS = 600
KEYS = ('fault', 'count', 'skip', 'path', 'after', 'seconds', 'step')


class Faults:
    """The faults that are still to come."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults = []
        self.stopping = threading.Event()
        self.struck = []

    def add(self, fault, **details):
        """Let a fault happen from now on. ValueError if its name or a key is unknown."""
        details['fault'] = fault
        strange = sorted(set(details) - set(KEYS))
        if fault not in NAMES or strange:
            raise ValueError(f'unknown fault {fault!r} or key {strange}: the names are '
                             f"{', '.join(NAMES)}; the keys are {', '.join(KEYS)}")
        with self._lock:
            self._faults.append(dict({'count': 1, 'skip': 0}, **details))

    def clear(self):
        with self._lock:
            self._faults = []

    def take(self, *names, **matching):
        """The next fault of one of these names that is due, counted as having struck, or None."""
        with self._lock:
            for fault in self._faults:
                due = fault['fault'] in names and fault['count'] != 0
                if not due or not _fits(fault, **matching):
                    continue
                if fault['skip']:
                    fault['skip'] -= 1
                    continue
                if fault['count'] is not None:
                    fault['count'] -= 1
                self.struck.append(fault['fault'])
                return fault
        return None

    def take_for_step(self, name):
        """The name of the fault that this step has to suffer, or None."""
        fault = self.take('step-fails', 'step-never-ends', step=name)
        return fault and fault['fault']

    def capacity_errors(self):
        """The errors that a cluster shows while it cannot allocate nodes."""
        with self._lock:
            if not any(fault['fault'] == 'no-capacity' for fault in self._faults):
                return None
        return [{'error': {'code': 'ClusterCoreQuotaReached', 'message': 'Operation results in '
                           'exceeding quota limits of Core. Maximum allowed: 0.'}}]

    def take_for_request(self, call, signed_in):
        """The fault that this request has to suffer, or None; telemetry suffers none."""
        if re.match(f'{TELEMETRY}$|{METADATA}$', call.host):
            return None
        names = ON_REQUESTS + (ON_SIGNED_IN_REQUESTS if signed_in else ())
        return self.take(*names, path=str(call))

    def raise_fault(self, fault):
        """Raise what the client gets to see."""
        name, seconds = fault['fault'], fault.get('seconds')
        if name == 'throttled':
            raise problem(429, 'TooManyRequests', 'The request is throttled.',
                          {'Retry-After': str(seconds or 1)})
        if name == 'server-error':
            raise problem(500, 'InternalServerError', 'Encountered an unexpected error.')
        if name == 'unavailable':
            raise problem(503, 'ServiceUnavailable', 'The service is unavailable.')
        if name == 'expired-token':
            raise expired()
        if name == 'forbidden':
            raise problem(
                403, 'AuthorizationFailed', f"The client with object id '{OBJECT}' does not have "
                'authorization to perform this action over this scope or the scope is invalid. If '
                'access was recently granted, please refresh your credentials.')
        if name == 'stalled':
            self.stopping.wait(seconds or STALL_SECONDS)
        raise Dropped


def _fits(fault, path='', step=None):
    return fault.get('step') in (None, step) and re.search(fault.get('path', ''), path)
