"""Serve the newest registered model in the foreground with Azure ML's own inference server.

    python scripts/serve.py --registry outputs/registry --model-name safe_driver_model --port 5001
"""
import argparse
import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import atomic
import azure_ml

SCORING = Path(__file__).resolve().parent.parent / 'scoring'
TRIAL = ('import sys; sys.path.insert(0, sys.argv[1])\n'
         'import booster; booster.Booster(*sys.argv[2:])')
SERVER = 'azureml_inference_server_http'
VERSION = re.compile('[1-9][0-9]*')
# The log and one before it; about 80,000 requests each.
LOG_BYTES = 20_000_000


def newest_version(registry, name):
    """The folder of the highest whole version of a model. Raises ValueError if none can be served.

    The rule is that of training/tracking.py: a number, and tags.json, which is written last.
    """
    versions = [folder for folder in (registry / name).glob('*')
                if VERSION.fullmatch(folder.name) and (folder / 'tags.json').is_file()]
    if not versions:
        raise ValueError(f'no version of the model {name} in {registry}; `make retrain` registers '
                         'one')
    newest = max(versions, key=lambda folder: int(folder.name)).absolute()
    check_model(newest / 'model' / 'model.txt', atomic.read_json(newest / 'tags.json'),
                f'{name} version {newest.name}',
                f'put the file back, or remove {newest} to go on with the version before it')
    return newest


def check_model(path, tags, name, advice):
    """Raise ValueError unless a model.txt is what its tags tell of and another process loads it."""
    digest = tags.get('model_sha256')
    if not digest:
        print(f'{name} has no tag model_sha256: nothing proves that its file is as registered')
    tried = subprocess.run(
        [sys.executable, '-c', TRIAL, str(SCORING), str(path)] + [digest] * bool(digest),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    if tried.returncode:
        said = tried.stderr.decode(errors='replace').partition('booster.ModelError: ')[2].strip()
        said = said.replace(str(path), name) or f'{name} cannot be loaded: it is damaged'
        raise ValueError(f'{said}; {advice}')


def port_is_free(port):
    """Whether a server can listen on all addresses of this machine at this port."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(('', port))
        return True
    return False


def server_environ(version, environ, root):
    """The environment of the server: as on ACI, but `environ` (a dict) wins.

    root: a folder for the OpenAPI documents, which score.py writes and the server reads.
    """
    wanted = json.loads((SCORING / 'deployment.json').read_text())['environment']
    wanted.update(environ, AZUREML_MODEL_DIR=str(version), AZUREML_SOURCE_DIRECTORY=str(SCORING),
                  AML_APP_ROOT=str(root))
    return wanted


def keep_log(path, root):
    """Have the server write what score.py prints into this file as well; it looks in its root.

    A worker turns the file over by itself: with several (WORKER_COUNT) lines are lost then.
    """
    own = importlib.util.find_spec(SERVER).submodule_search_locations[0]
    config = json.loads(Path(own, 'logging.json').read_text())
    config['handlers']['kept'] = {
        'class': 'logging.handlers.RotatingFileHandler', 'filename': str(path.resolve()),
        'formatter': 'azmlinfsrv', 'maxBytes': LOG_BYTES, 'backupCount': 1}
    config['loggers']['azmlinfsrv.print'] = {'level': 'INFO', 'handlers': ['kept']}
    atomic.write_json(root / 'logging.json', config)


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--registry', type=Path, required=True, help='folder of registered models')
    parser.add_argument('--model-name', required=True, help='name of the registered model')
    parser.add_argument('--port', type=int, default=5001, help='port to listen on (default 5001)')
    parser.add_argument('--log', type=Path, default=Path('outputs/serve.log'),
                        help='what `make monitor` reads (default outputs/serve.log)')
    args = parser.parse_args(argv)
    version = newest_version(args.registry, args.model_name)
    if not 1 <= args.port <= 65535 or not port_is_free(args.port):
        raise ValueError(f'port {args.port} is in use, or not allowed: choose another between 1 '
                         'and 65535, as in PORT=5002')
    if importlib.util.find_spec(SERVER) is None:
        raise ValueError(f'{sys.executable} lacks azureml-inference-server-http: install it there, '
                         'or leave PYTHON= out so that make uses .venv')
    root = args.log.with_name('.serve')
    keep_log(args.log, root)
    print(f'Serving {args.model_name} version {version.name} at '
          f'http://127.0.0.1:{args.port}/score, its description at /swagger.json\n'
          'The server listens on all addresses of this machine and asks for no key. '
          'Ctrl-C stops it.', flush=True)
    # The server takes this process over, so that signals reach it.
    os.execve(sys.executable, [sys.executable, '-m', SERVER, '--entry_script',
                               str(SCORING / 'score.py'), '--port', str(args.port)],
              server_environ(version, os.environ, root))


if __name__ == '__main__':
    sys.exit(main())
