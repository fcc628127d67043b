"""Once imported: Ctrl-C ends a script with one line and exit code 130, not with a traceback."""
import os
import sys


def end(kind, error, trace):
    """In place of sys.excepthook. Threads of the SDK that wait for an answer do not hold it up."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    sys.stdout.flush()
    print('error: stopped', file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = end
