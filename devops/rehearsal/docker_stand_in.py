"""In place of docker in a rehearsal: runs on this machine what is for the container.

    python devops/rehearsal/docker_stand_in.py run --rm python:3.11 make test

What the command line does not pass or mount is missing, as it would be in a container. With
CONTAINER=1 the real docker runs it, with the stand-in for Azure within reach.
With a flag that is not imitated the rehearsal could not tell what Docker would do: it is refused.
Sources: messages of github.com/docker/cli at 28f7560 (container/opts.go, run.go); signals of
github.com/krallin/tini at 369448a (docker's init); names of github.com/distribution/reference.
"""
import argparse
import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Every image can be pulled but one with this tag, which FAULT=image names.
NO_SUCH_TAG = 'no-such-tag'
# host[:port]/path:tag@digest; a first part with none of . : A-Z is no host but of the path.
REFERENCE = re.compile(
    r'((?=[^/]*[.:A-Z]|localhost/)LABEL(\.LABEL)*(:[0-9]+)?/)?PART(/PART)*'
    r'(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?'
    .replace('LABEL', '[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?')
    .replace('PART', '[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*'), re.ASCII)
# What an image would bring: its Python, the size of the sample, how pip reaches its index.
IMAGE = ('PYTHON', 'ROWS', 'OMP_NUM_THREADS')
IMAGE_BEGINNINGS = ('PIP_', 'UV_')
GROUP = 'TINI_KILL_PROCESS_GROUP'
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The network of a container is that of this machine: the certificates of who answers there.
NETWORK = ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'SSL_CERT_FILE', 'SSL_CERT_DIR')


class DockerError(Exception):
    """What docker prints when it does not start the command; code: its exit code."""

    def __init__(self, text, code=125):
        super().__init__(text)
        self.code = code


def parse(words):
    """The words after `docker run`, taken apart. Raises DockerError."""
    def refuse(text):
        raise DockerError(f'the stand-in for docker: {text}')

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse
    for name in ('--rm', '--init', '--quiet'):
        parser.add_argument(name, action='store_true')
    for name in ('--env', '--mount'):
        parser.add_argument(name, action='append', default=[])
    parser.add_argument('--user')
    parser.add_argument('--workdir', default='/')
    parser.add_argument('image')
    parser.add_argument('command', nargs=argparse.REMAINDER)
    return parser.parse_args(words)


def variables(texts, environ):
    """{name: value} of the --env flags: a name alone takes the caller's value, if it has one.

    Raises DockerError for a value without a name.
    """
    passed = {}
    for text in texts:
        name, given, value = text.partition('=')
        if not name:
            raise DockerError(f'invalid argument "{text}" for "-e, --env" flag: '
                              f'invalid environment variable: {text}')
        if given or name in environ:
            passed[name] = value if given else environ[name]
    return passed


def mounts(texts):
    """The folders that are mounted. Raises DockerError unless each exists, under its own path."""
    folders = []
    for text in texts:
        fields = dict(item.partition('=')[::2] for item in next(csv.reader([text])))
        source = fields.get('source', '')
        if fields != {'type': 'bind', 'source': source, 'target': source}:
            raise DockerError('the stand-in for docker can only bind a folder under its own path, '
                              f'not {text}')
        if not os.path.isdir(source):
            raise DockerError('docker: Error response from daemon: invalid mount config for type '
                              f'"bind": bind source path does not exist: {source}')
        folders.append(Path(source))
    return folders


def check_image(image, code=125):
    """Raise DockerError for a name that no image can have, and for one that nobody pushed."""
    if not REFERENCE.fullmatch(image):
        raise DockerError('docker: invalid reference format', code)
    if image.endswith(':' + NO_SUCH_TAG):
        raise DockerError('docker: Error response from daemon: manifest for '
                          f'{image} not found: manifest unknown', code)


def check(args, passed, home):
    """Raise DockerError for what would not work in a container.

    home: the folder of the job on the agent, of which a container sees only what is mounted.
    """
    check_image(args.image)
    seen = mounts(args.mount)
    words = [args.workdir] + args.command + list(passed.values())
    # Of OUT=/path too, as make takes it.
    hidden = [str(path) for path in map(Path, words + [word.partition('=')[2] for word in words])
              if home in path.parents
              and not any(folder == path or folder in path.parents for folder in seen)]
    for wrong, text in (
            (not os.path.isabs(args.workdir),
             f"docker: Error response from daemon: the working directory '{args.workdir}' is "
             'invalid, it needs to be an absolute path'),
            (hidden,
             f"{' '.join(hidden)} is not mounted, so there is nothing there in the container"),
            (args.user != f'{os.getuid()}:{os.getgid()}',
             "without the agent's user and group by --user, the files that this writes would not "
             "be the agent's to change"),
            (passed.get('HOME', '/') == '/',
             "--user without HOME: who is not in the image's /etc/passwd gets /, where only root "
             'can write'),
            (GROUP in passed and not args.init,
             f"{GROUP} without --init: docker's init, which reads it, is not there"),
            (not os.path.isdir(args.workdir),
             f'the stand-in for docker: {args.workdir} does not exist, and docker would make it '
             'as root'),
            (not args.command,
             "the stand-in for docker: no command, and it does not know the image's")):
        if wrong:
            raise DockerError(text)


def run(args, passed):
    """Run the command with these variables and no others; its exit code. Raises DockerError.

    As with docker's init, a signal goes to all processes with TINI_KILL_PROCESS_GROUP, else to the
    command alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # The /tmp of a container is its own.
        passed = {name: scratch if value == '/tmp' else value for name, value in passed.items()}
        environ = {'PATH': os.environ['PATH'], 'LANG': 'C.UTF-8', 'TMPDIR': scratch}
        environ.update({name: value for name, value in os.environ.items()
                        if name in IMAGE + NETWORK or name.startswith(IMAGE_BEGINNINGS)})

        def begin():
            os.setpgrp()
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

        def hand_on(number, frame):
            (os.killpg if GROUP in passed else os.kill)(process.pid, number)

        # What comes between the start of the command and these handlers waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = subprocess.Popen(args.command, cwd=args.workdir, env=dict(environ, **passed),
                                       preexec_fn=begin)
        except OSError as error:
            raise DockerError('docker: Error response from daemon: failed to create task for '
                              f'container: exec: "{args.command[0]}": {error.strerror}',
                              127 if isinstance(error, FileNotFoundError) else 126) from None
        for number in SIGNALS:
            signal.signal(number, hand_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = process.wait()
    return code if code >= 0 else 128 - code


def real_docker():
    """The path of the first docker that is not a shell script, as the stand-in's are."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, 'docker')
        if os.access(path, os.X_OK) and not Path(path).read_bytes().startswith(b'#!/bin/sh\n'):
            return path
    raise DockerError('CONTAINER=1 asks for Docker, and there is none here', 1)


def run_really(words):
    """The real docker, whose container gets this machine's network and certificates."""
    extra = ['--network', 'host']
    for name in NETWORK:
        path = os.environ.get(name, '')
        if os.path.exists(path):
            extra += ['--env', name, '--mount', f'type=bind,source={path},target={path},readonly']
    os.execvp(real_docker(), ['docker', 'run'] + extra + words)


def main(argv=None):
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words else ''
    really = os.environ.get('CONTAINER') == '1'
    try:
        if verb == 'pull':
            if really:
                return subprocess.call([real_docker(), 'pull'] + words)
            check_image(words[-1] if words else '', 1)
            print(words[-1])
            return 0
        if verb == '--help':
            print(f'usage: docker pull|run ...\n\n{__doc__}')
            return 0
        if verb != 'run':
            raise DockerError(f'the stand-in for docker does not imitate docker {verb}')
        args = parse(words)
        passed = variables(args.env, os.environ)
        check(args, passed, Path(os.environ.get('AGENT_BUILDDIRECTORY') or os.devnull))
        return run_really(words) if really else run(args, passed)
    except DockerError as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == '__main__':
    sys.exit(main())
