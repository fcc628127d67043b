"""Faults on demand: what can go wrong between a client and Azure ML, made to happen without
touching the client.

A fault is a dictionary: `fault` (its name, see NAMES), `count` (how often it strikes; 1 unless
given, null without end), `skip` (how many occasions it lets pass first), and what its name
needs. Faults are given as a list, or as a JSON file that holds such a list and is read again
whenever it changes, so that faults can be set while the stand-in runs.
"""
import json
import os
import re
import threading

from .sign_in import OBJECT, expired
from .routing import Dropped, problem

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
    'no-capacity': 'the cluster cannot allocate nodes: runs stay queued while the fault is set',
    'admin-user-off': 'the admin user of the container registry is not enabled',
    'registration-collides': '409 to the registration of a model',
    'crash-loop': 'a service\'s container crashes at every start',
    'late': 'a service is healthy `seconds` (3) later',
    'scoring-500': 'a service answers 500 to POST',
}
# These strike requests in whose "METHOD https://host/path" the regular expression `path` is found.
# With `after` true the request is carried out and only its answer is lost.
TRANSPORT = ('throttled', 'server-error', 'unavailable', 'reset', 'stalled', 'expired-token',
             'forbidden')
KEYS = ('fault', 'count', 'skip', 'path', 'after', 'seconds', 'step')


class Faults:
    """The faults that are still to come. `source` is None, a list of faults, or the path of a
    JSON file."""

    def __init__(self, source=None):
        self._lock = threading.Lock()
        self._path = source if isinstance(source, (str, os.PathLike)) else None
        self._read = None
        self._faults = []
        self.stopping = threading.Event()
        self.struck = []
        if self._path is None:
            for fault in source or []:
                self.add(**fault)
        else:
            self._refresh()

    def add(self, fault, **details):
        """Let a fault happen from now on. ValueError if its name or a key is unknown."""
        details['fault'] = fault
        strange = sorted(set(details) - set(KEYS))
        if fault not in NAMES or strange:
            raise ValueError('unknown fault %r%s: the names are %s; the keys %s' %
                             (fault, ' with %s' % ', '.join(strange) if strange else '',
                              ', '.join(NAMES), ', '.join(KEYS)))
        with self._lock:
            self._faults.append(dict({'count': 1, 'skip': 0}, **details))

    def clear(self):
        with self._lock:
            self._faults = []

    def take(self, *names, **matching):
        """The next due fault of one of these names, counted as having struck; None if there is
        none."""
        self._refresh()
        with self._lock:
            for fault in self._faults:
                if fault['fault'] not in names or not _meets(fault,
                                                             matching) or fault['count'] == 0:
                    continue
                if fault['skip']:
                    fault['skip'] -= 1
                    continue
                if fault['count'] is not None:
                    fault['count'] -= 1
                self.struck.append(fault['fault'])
                return fault
        return None

    def step(self, name):
        """The name of the fault that this step has to suffer, or None."""
        fault = self.take('step-fails', 'step-never-ends', step=name)
        return fault and fault['fault']

    def capacity_errors(self):
        """The errors that a cluster shows while it cannot allocate nodes."""
        self._refresh()
        with self._lock:
            if not any(fault['fault'] == 'no-capacity' for fault in self._faults):
                return None
        return [{
            'error': {
                'code': 'ClusterCoreQuotaReached',
                'message': 'Operation results in exceeding quota limits of '
                'Core. Maximum allowed: 0, Current in use: 0.'
            }
        }]

    def strike(self, call):
        """Raise what the request has to suffer; return it when it is to be suffered after it has
        been carried out."""
        fault = self.take(*TRANSPORT, path='%s https://%s%s' % (call.method, call.host, call.path))
        if fault is None:
            return None
        answer = self._answer(fault)
        if fault.get('after'):
            return answer
        raise answer

    def _answer(self, fault):
        name, seconds = fault['fault'], fault.get('seconds')
        if name == 'throttled':
            return problem(429, 'TooManyRequests', 'The request is throttled.',
                           {'Retry-After': str(seconds or 1)})
        if name == 'server-error':
            return problem(500, 'InternalServerError', 'Encountered an unexpected error.')
        if name == 'unavailable':
            return problem(503, 'ServiceUnavailable', 'The service is unavailable.')
        if name == 'expired-token':
            return expired()
        if name == 'forbidden':
            return problem(
                403, 'AuthorizationFailed',
                'The client with object id \'%s\' does not have authorization to perform this '
                'action over this scope or the scope is invalid. If access was recently granted, '
                'please refresh your credentials.' % OBJECT)
        if name == 'stalled':
            self.stopping.wait(seconds or 600)
        return Dropped()

    def _refresh(self):
        """Read the file again if it has changed since."""
        if self._path is None:
            return
        facts = os.stat(self._path)
        if self._read == (facts.st_mtime_ns, facts.st_size):
            return
        self._read = (facts.st_mtime_ns, facts.st_size)
        with open(self._path, encoding='utf-8') as file:
            faults = json.load(file)
        self.clear()
        for fault in faults:
            self.add(**fault)


def _meets(fault, matching):
    if 'path' in matching:
        return re.search(fault.get('path', ''), matching['path'])
    if 'step' in matching:
        return fault.get('step') in (None, matching['step'])
    return True
