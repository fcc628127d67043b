"""Child processes: steps of pipelines and scoring containers. They end with the stand-in,
however it ends."""
import ctypes
import os
import signal
import socket
import subprocess
import sys

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform.startswith('linux') else None


def start(command, folder, environ, log):
    """Start `command` in its own process group, with nothing of our environment; `log` takes both
    outputs.

    On Linux the kernel kills it when the thread that called this ends, so that thread has to
    wait for the process.
    """
    with open(log, 'ab') as output:
        return subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL,
                                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                preexec_fn=_die_with_parent if _LIBC else None)


def kill(process):
    """Kill the process, if it is still there, and all that it started, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def clean_environ(interpreter, home):
    """The least environment that a Python program needs; no variable of the caller, hence none
    of its secrets."""
    os.makedirs(home, mode=0o700, exist_ok=True)
    folder = os.path.dirname(interpreter)
    path = f'{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    return {'PATH': path, 'HOME': home, 'LANG': 'C.UTF-8', 'LC_ALL': 'C.UTF-8',
            'PYTHONUNBUFFERED': '1', 'PYTHONDONTWRITEBYTECODE': '1'}


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _die_with_parent():
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
