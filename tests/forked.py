"""Steps and containers as forks of a process that has imported the slow packages already.

Imported afresh, as on Azure, these cost a step or a container most of its time.
"""
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
import types
from multiprocessing import forkserver

from _pytest.monkeypatch import MonkeyPatch

# Of the project's own modules none: a step has those of its snapshot.
IMPORTED = ('lightgbm', 'azureml.core', 'flask', 'gunicorn.app.base', 'gunicorn.workers.gthread')


def hasten(patch):
    """Have the SDK wait in shorter steps, leave stacks out of its telemetry and keep connections.

    patch: a pytest.MonkeyPatch.
    """
    import requests.adapters
    from msrest.universal_http.requests import ClientRetryPolicy as policy
    often = types.SimpleNamespace(time=time.time, sleep=lambda _: time.sleep(0.02))
    patch.setattr('azureml._common.async_utils.task_queue.time', often)
    patch.setattr('inspect.stack', list)
    # Each of its many clients looks a thousand numbers up in this list.
    patch.setattr(policy, 'safe_codes', frozenset(policy.safe_codes))
    # Each of their sessions would begin with a handshake, and end after one request or two.
    kept, make = {}, requests.adapters.HTTPAdapter.proxy_manager_for

    def manager_for(adapter, proxy, **more):
        if proxy not in kept:
            kept[proxy] = make(adapter, proxy, **more)
        return kept[proxy]
    patch.setattr('requests.adapters.HTTPAdapter.proxy_manager_for', manager_for)
    patch.setattr('requests.adapters.HTTPAdapter.close', lambda adapter: None)


def prepare():
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


class Popen:
    """What loopback/processes.py starts, with the methods that the stand-in calls."""

    def __init__(self, command, folder, environ, log):
        self._process = multiprocessing.get_context('forkserver').Process(
            target=become, args=(command[1:], folder, environ, log), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired('python', timeout)
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode


def become(words, folder, environ, log):
    """Go on as `python WORDS` would."""
    from loopback import processes
    os.setsid()
    processes._die_with_parent()
    with open(log, 'ab', 0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    # The server for Python 3.7 does not find its azureml.contrib in a fork.
    if sys.version_info < (3, 8):
        os.execve(sys.executable, [sys.executable] + words, environ)
    # Drawing takes as long as the training of a small table, and nobody looks at the report here.
    sys.modules['matplotlib'] = None
    hasten(MonkeyPatch())
    sys.path[:] = [os.path.dirname(os.path.join(folder, words[0]))] + [
        path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    if words[0] == '-c':
        exec(words[1], {})
    elif words[0] == '-m':
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')
