"""Run a command in the container of the pipelines, in this checkout, by docker.

    python3 devops/container.py make lint test
    python3 devops/container.py --prepare

The agent's own container jobs need its Node inside the image, which the image's C library is too
old for; docker does not. The checkout is mounted under its own path, so that paths in results, in
the cache and in logging commands are the same inside and outside; the .venv of the container and
the programs that the image lacks are in .container, apart from those of this machine.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'scripts'))

import azure_ml  # noqa: E402

VARIABLES = ROOT / 'devops' / 'variables.yml'
TOOLS = ROOT / '.container' / 'tools'
# Set inside, to these values: the user of the agent has no entry in the image's /etc/passwd. With
# the last, docker's init hands a signal on to all processes, not only to make, which keeps it.
FIXED = {'HOME': '/tmp', 'USER': 'container', 'VENV': '.container/venv',
         'TINI_KILL_PROCESS_GROUP': '1'}
# Beside the settings of scripts/: how to sign in, what the agent says, how to reach the network.
PASSED = (
    'AZUREML_SERVICE_PRINCIPAL_TENANT_ID', 'AZUREML_SERVICE_PRINCIPAL_ID',
    'AZUREML_SERVICE_PRINCIPAL_PASSWORD', 'AZURESUBSCRIPTION_TENANT_ID',
    'AZURESUBSCRIPTION_CLIENT_ID', 'AZURESUBSCRIPTION_SERVICE_CONNECTION_ID',
    'SYSTEM_OIDCREQUESTURI', 'SYSTEM_ACCESSTOKEN', 'TF_BUILD', 'SYSTEM_COLLECTIONURI',
    'SYSTEM_TEAMPROJECT', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'PIP_INDEX_URL')
# Finds make and git in .container/tools, which is there only where the image's own do not do.
START = 'PATH="$0/bin:$PATH" exec "$@"'
HAVE_TOOLS = "make --version 2>&1 | grep -q '^GNU Make [4-9]' && git --version >/dev/null 2>&1"
GET_TOOLS = ('conda create --quiet --yes --prefix "$0" --override-channels --channel conda-forge '
             'git make')
ADVICE = ('set CONTAINER_IMAGE in devops/variables.yml to a copy of it, or to any image with '
          'Python 3.7, 3.10 or 3.11 and bash, such as python:3.11')


def image(variables):
    """The image's name: CONTAINER_IMAGE of the environment, else of the text of variables.yml."""
    found = re.search(r"""name: CONTAINER_IMAGE\n +value: *["']?([^\s"']+)""", variables)
    return os.environ.get('CONTAINER_IMAGE') or (found.group(1) if found else '')


def docker_run(name, words):
    """The `docker run` command line for these words; values of variables do not appear in it."""
    import settings
    # The files that the command writes are to be those of this user.
    command = ['docker', 'run', '--rm', '--init', '--user', f'{os.getuid()}:{os.getgid()}',
               '--workdir', str(ROOT), '--mount', f'type=bind,source={ROOT},target={ROOT}']
    for variable, value in FIXED.items():
        command += ['--env', f'{variable}={value}']
    for variable in [row[0] for row in settings.SETTINGS] + list(PASSED):
        if variable in os.environ:
            command += ['--env', variable]
    return command + [name, 'bash', '-c', START, str(TOOLS)] + list(words)


def prepare(name):
    """Pull the image and get it make and git; None, or what is wrong and what to do about it."""
    have = docker_run(name, ['bash', '-c', HAVE_TOOLS])
    if subprocess.call(['docker', 'pull', '--quiet', name]):
        return f'the image {name} cannot be pulled: {ADVICE}'
    if subprocess.call(have):
        # Those of another image may hide this one's own.
        shutil.rmtree(str(TOOLS), ignore_errors=True)
        if subprocess.call(have) and subprocess.call(
                docker_run(name, ['bash', '-c', GET_TOOLS, str(TOOLS)])):
            shutil.rmtree(str(TOOLS), ignore_errors=True)
            return (f'the image {name} has no GNU make 4 or no git, nor a conda to get them: '
                    f'{ADVICE}')
    return None


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--prepare', action='store_true',
                        help='pull the image, and get make and git where it has none')
    parser.add_argument('words', nargs=argparse.REMAINDER, metavar='command',
                        help='what to run, such as make test')
    args = parser.parse_args(argv)
    name = image(VARIABLES.read_text(encoding='utf-8'))
    if bool(args.words) == args.prepare:
        parser.error('either --prepare or a command is needed')
    if not name or set(',:"') & set(str(ROOT)):
        parser.error('devops/variables.yml names no CONTAINER_IMAGE' if not name else
                     f'docker cannot mount {ROOT}: use a path without , : and "')
    if not shutil.which('docker'):
        raise azure_ml.AzureError('there is no docker here: install Docker Engine, or run make '
                                  'without the container')
    TOOLS.parent.mkdir(exist_ok=True)
    if args.prepare:
        problem = prepare(name)
        if problem:
            raise azure_ml.AzureError(problem)
        return 0
    # In place of this process, so that docker gets the signals of whoever cancels it.
    os.execvp('docker', docker_run(name, args.words))


if __name__ == '__main__':
    sys.exit(main())
