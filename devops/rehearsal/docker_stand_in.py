"""In place of docker in a rehearsal: takes its words apart as Docker would, and runs them here.

    python devops/rehearsal/docker_stand_in.py run --rm python:3.11 make test

What the command line does not pass or mount is missing, as it would be in a container. With
CONTAINER=1 the real docker runs it, with the stand-in for Azure within reach.
Sources: flags, exit codes and messages of github.com/docker/cli at 28f7560 (container/opts.go,
run.go, cobra.go); signals of github.com/krallin/tini at 369448a (docker's init).
"""
import csv
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Every image can be pulled but one with this tag, which FAULT=image names.
NO_SUCH_TAG = 'no-such-tag'
SWITCHES = set(
    'detach disable-content-trust help init interactive no-healthcheck oom-kill-disable '
    'privileged publish-all quiet read-only rm sig-proxy tty'.split())
VALUES = set(
    'add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent '
    'cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime '
    'cpu-shares cpus cpuset-cpus cpuset-mems detach-keys device device-cgroup-rule '
    'device-read-bps device-read-iops device-write-bps device-write-iops dns dns-opt dns-option '
    'dns-search domainname entrypoint env env-file expose gpus group-add health-cmd '
    'health-interval health-retries health-start-interval health-start-period health-timeout '
    'hostname io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label label-file link '
    'link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap '
    'memory-swappiness mount name net net-alias network network-alias oom-score-adj pid '
    'pids-limit platform publish pull restart runtime security-opt shm-size stop-signal '
    'stop-timeout storage-opt sysctl tmpfs ulimit user userns uts volume volume-driver '
    'volumes-from workdir'.split())
SHORT = {'a': 'attach', 'c': 'cpu-shares', 'd': 'detach', 'e': 'env', 'h': 'hostname',
         'i': 'interactive', 'l': 'label', 'm': 'memory', 'P': 'publish-all', 'p': 'publish',
         'q': 'quiet', 't': 'tty', 'u': 'user', 'v': 'volume', 'w': 'workdir'}
# What is imitated here; with any other flag the rehearsal could not tell what Docker would do.
IMITATED = {'rm', 'init', 'quiet', 'user', 'env', 'mount', 'workdir'}
USAGE = ('\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n'
         "Run 'docker run --help' for more information")
# What an image would bring: its Python, the size of the sample, how pip reaches its index.
IMAGE = ('PYTHON', 'ROWS', 'OMP_NUM_THREADS')
IMAGE_BEGINNINGS = ('PIP_', 'UV_')
# The network of a container is that of this machine: the certificates of who answers there.
NETWORK = ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'SSL_CERT_FILE', 'SSL_CERT_DIR')


class DockerError(Exception):
    """What docker prints when it does not start the command; code: its exit code."""

    def __init__(self, text, code=125):
        super().__init__(text)
        self.code = code


def parse(words):
    """({flag: [values]}, image, command) of the words after `docker run`. Raises DockerError.

    The first word that is no flag is the image; all after it is the command.
    """
    flags, words = {}, list(words)
    while words and words[0].startswith('-') and words[0] != '-':
        word = words.pop(0)
        if word == '--':
            break
        if word.startswith('--'):
            name, joined, value = word[2:].partition('=')
            if name not in SWITCHES | VALUES:
                raise DockerError(f'unknown flag: --{name}{USAGE}')
            found = [(name, value if joined else None)]
        else:
            found = short_flags(word)
        for name, value in found:
            if name in VALUES and value is None:
                if not words:
                    raise DockerError(f'flag needs an argument: {word}{USAGE}')
                value = words.pop(0)
            flags.setdefault(name, []).append(value)
    if not words:
        raise DockerError(f"docker: 'docker run' requires at least 1 argument{USAGE}", 1)
    return flags, words[0], words[1:]


def short_flags(word):
    """[(name, value or None)] of a word such as -it or -uroot."""
    found, letters = [], word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in SHORT:
            raise DockerError(f"unknown shorthand flag: '{letter}' in {word}{USAGE}")
        if SHORT[letter] in VALUES:
            return found + [(SHORT[letter], letters.lstrip('=') or None)]
        found.append((SHORT[letter], None))
    return found


def variables(flags, environ):
    """{name: value} of the --env flags: a name alone takes the caller's value, if it has one."""
    passed = {}
    for text in flags.get('env', []):
        name, given, value = text.partition('=')
        if not name:
            raise DockerError(f'docker: invalid environment variable: {text}')
        if given:
            passed[name] = value
        elif name in environ:
            passed[name] = environ[name]
    return passed


def mounts(flags):
    """The folders that are mounted. Raises DockerError unless each exists, under its own path."""
    folders = []
    for text in flags.get('mount', []):
        fields = dict(item.partition('=')[::2] for item in next(csv.reader([text])))
        unknown = sorted(set(fields) - {'type', 'source', 'src', 'target', 'dst', 'destination'})
        if unknown:
            raise DockerError(f'docker: invalid argument "{text}" for "--mount" flag: unexpected '
                              f"key '{unknown[0]}'{USAGE}")
        source = fields.get('source') or fields.get('src') or ''
        target = fields.get('target') or fields.get('dst') or fields.get('destination') or ''
        if fields.get('type') != 'bind' or source != target:
            raise DockerError('the stand-in for docker can only bind a folder under its own path, '
                              f'not {text}')
        if not os.path.isdir(source):
            raise DockerError('docker: Error response from daemon: invalid mount config for type '
                              f'"bind": bind source path does not exist: {source}')
        folders.append(Path(source))
    return folders


def check(flags, image, command, passed, home):
    """Raise DockerError for what would not work in a container.

    home: the folder of the job on the agent, of which a container sees only what is mounted.
    """
    strange = sorted(set(flags) - IMITATED)
    if strange:
        raise DockerError(f'the stand-in for docker does not imitate --{strange[0]}')
    if image.endswith(':' + NO_SUCH_TAG):
        raise DockerError(f"Unable to find image '{image}' locally\n"
                          f'docker: Error response from daemon: {unknown_manifest(image)}')
    workdir = flags.get('workdir', ['/'])[-1]
    if not os.path.isabs(workdir):
        raise DockerError(f"docker: Error response from daemon: the working directory '{workdir}' "
                          'is invalid, it needs to be an absolute path')
    seen = mounts(flags)
    for text in [workdir] + command + list(passed.values()):
        path = Path(text)
        if path.is_absolute() and home in path.parents and not any(
                folder == path or folder in path.parents for folder in seen):
            raise DockerError(f'{path} is not mounted, so there is nothing there in the container')
    if flags.get('user', [''])[-1] != f'{os.getuid()}:{os.getgid()}':
        raise DockerError("without the agent's user and group by --user, the files that this "
                          "writes would not be the agent's to change")


def unknown_manifest(image):
    return f'manifest for {image} not found: manifest unknown'


def run(flags, command, passed):
    """Run the command with these variables and no others; its exit code.

    As with docker's init, a signal goes to all processes with TINI_KILL_PROCESS_GROUP, else to the
    command alone.
    """
    group = 'TINI_KILL_PROCESS_GROUP' in passed and 'init' in flags
    with tempfile.TemporaryDirectory() as scratch:
        # The /tmp of a container is its own.
        passed = {name: scratch if value == '/tmp' else value for name, value in passed.items()}
        environ = {'PATH': os.environ['PATH'], 'HOME': '/', 'LANG': 'C.UTF-8', 'TMPDIR': scratch}
        environ.update({name: value for name, value in os.environ.items()
                        if name in IMAGE + NETWORK or name.startswith(IMAGE_BEGINNINGS)})
        process = subprocess.Popen(command, cwd=flags.get('workdir', ['/'])[-1],
                                   env=dict(environ, **passed), preexec_fn=os.setpgrp)

        def hand_on(number, frame):
            (os.killpg if group else os.kill)(process.pid, number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, hand_on)
        code = process.wait()
    return code if code >= 0 else 128 - code


def run_really(words):
    """The real docker, whose container gets this machine's network and certificates."""
    extra = ['--network', 'host']
    for name in NETWORK:
        path = os.environ.get(name, '')
        if os.path.exists(path):
            extra += ['--env', name, '--mount', f'type=bind,source={path},target={path},readonly']
    own = os.path.dirname(os.path.abspath(sys.argv[0]))
    os.environ['PATH'] = os.pathsep.join(
        folder for folder in os.environ['PATH'].split(os.pathsep) if folder != own)
    os.execvp('docker', ['docker', 'run'] + extra + words)


def main(argv=None):
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words else ''
    really = os.environ.get('CONTAINER') == '1'
    try:
        if verb == 'pull':
            image = words[-1]
            if really:
                return subprocess.call(['docker', 'pull'] + words)
            if image.endswith(':' + NO_SUCH_TAG):
                raise DockerError(f'Error response from daemon: {unknown_manifest(image)}', 1)
            print(image)
            return 0
        if verb == '--help':
            print(f'usage: docker pull|run ...\n\n{__doc__}')
            return 0
        if verb != 'run':
            raise DockerError(f'the stand-in for docker does not imitate docker {verb}')
        flags, image, command = parse(words)
        passed = variables(flags, os.environ)
        home = Path(os.environ.get('AGENT_BUILDDIRECTORY') or os.devnull)
        check(flags, image, command, passed, home)
        return run_really(words) if really else run(flags, command, passed)
    except DockerError as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == '__main__':
    sys.exit(main())
