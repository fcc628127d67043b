"""The docker command line of a pipeline's step, and what the rehearsal's stand-in makes of it."""
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

import container
import docker_stand_in
import rehearse
import settings
import sign_in
from conftest import ROOT

pytestmark = pytest.mark.no_cover

USER = f'{os.getuid()}:{os.getgid()}'
STAND_IN = ROOT / 'devops' / 'rehearsal' / 'docker_stand_in.py'


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A `docker` on the path that is the stand-in, by an interpreter with a blank in its path."""
    python = tmp_path / 'a b' / 'python'
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'executable', str(python))
        programs = rehearse.put_docker(python.parent)
    monkeypatch.setenv('PATH', f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv('CONTAINER', raising=False)
    monkeypatch.setattr(container, 'TOOLS', tmp_path / '.container' / 'tools')
    return programs


def run(*words, **environ):
    """(exit code, output) of container.py with these words."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'devops' / 'container.py')] + list(words),
        env=dict(os.environ, **environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode()


def test_every_setting_is_passed_by_name_and_no_value_is_in_the_command(monkeypatch):
    names = [row[0] for row in settings.SETTINGS] + list(container.PASSED)
    for name in names + ['OTHER']:
        monkeypatch.setenv(name, 's3cret')
    command = container.docker_run('image', ['make', 'test'])
    args = docker_stand_in.parse(command[2:])
    assert args.image == 'image' and args.command[-2:] == ['make', 'test']
    assert set(names) <= set(args.env) and 'OTHER' not in args.env
    assert not any('s3cret' in word for word in command)


def test_every_name_that_the_scripts_read_is_passed():
    text = ''.join(path.read_text() for path in (ROOT / 'scripts').glob('*.py'))
    read = set(re.findall(r"'((?:SYSTEM|TF)_[A-Z]+)'", text))
    read |= set(sign_in.FEDERATION + sign_in.JOB + sign_in.PRINCIPALS[1])
    # Of these it is pip and requests that read them.
    read |= {'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'PIP_INDEX_URL'}
    assert set(container.PASSED) == read - {row[0] for row in settings.SETTINGS}


def test_a_command_sees_the_checkout_its_settings_and_nothing_else(docker):
    code, text = run('sh', '-c', 'pwd; env; id -u; exit 7', MODEL_NAME='mine', OTHER='theirs',
                     AZUREML_SERVICE_PRINCIPAL_PASSWORD='s3cret')
    assert code == 7, text
    lines = text.splitlines()
    assert lines[0] == str(ROOT) and lines[-1] == str(os.getuid())
    assert {'MODEL_NAME=mine', 'VENV=.container/venv', 'USER=container'} <= set(lines)
    assert 'AZUREML_SERVICE_PRINCIPAL_PASSWORD=s3cret' in lines and 'theirs' not in text


def test_the_image_is_that_of_the_variables_unless_the_environment_names_one(monkeypatch):
    monkeypatch.delenv('CONTAINER_IMAGE', raising=False)
    text = '- name: A\n  value: b\n- name: CONTAINER_IMAGE\n  value: {}\n'
    for value, meant in (("'python:3.11'  # why", 'python:3.11'), ('"a:b"', 'a:b'), ("''", '')):
        assert container.image(text.format(value)) == meant
    monkeypatch.setenv('CONTAINER_IMAGE', 'python:3.11')
    assert container.image(text) == 'python:3.11'


@pytest.mark.parametrize('codes, said', [
    ([1], 'cannot be pulled: set CONTAINER_IMAGE in devops/variables.yml'),
    ([0, 0], None), ([0, 1, 1, 0], None), ([0, 1, 1, 1], 'has no GNU make'),
    # The tools of another image hid those of this one.
    ([0, 1, 0], None)])
def test_make_and_git_are_fetched_where_the_image_lacks_them(docker, monkeypatch, codes, said):
    """The commands: pull; look for them; look again, without fetched ones; fetch them."""
    container.TOOLS.mkdir(parents=True)
    left = list(codes)
    monkeypatch.setattr(subprocess, 'call', lambda words: left.pop(0))
    problem = container.prepare('image')
    assert (said in problem) if said else problem is None
    assert left == [] and container.TOOLS.exists() == (len(codes) <= 2)


def test_tools_that_were_fetched_come_before_an_old_make_of_the_image(
        docker, tmp_path, monkeypatch):
    for folder, version in ((tmp_path / 'image', '3.81'), (container.TOOLS / 'bin', '4.4')):
        folder.mkdir(parents=True)
        for name in ('make', 'git'):
            (folder / name).write_text(f'#!/bin/sh\necho GNU Make {version}\n')
            (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f"{tmp_path / 'image'}:{os.environ['PATH']}")
    check = container.docker_run('image', ['bash', '-c', container.HAVE_TOOLS])
    assert subprocess.call(check) == 0
    (container.TOOLS / 'bin' / 'make').unlink()
    assert subprocess.call(check) == 1


@pytest.mark.parametrize('words, root, said', [
    ([], ROOT, 'either --prepare or a command'),
    (['--prepare', 'make', 'test'], ROOT, 'either --prepare or a command'),
    (['make'], ROOT / 'a,b', 'a path without'), (['make'], ROOT / 'a:b', 'a path without'),
    (['make'], ROOT, 'error: there is no docker here')])
def test_what_cannot_be_is_one_sentence(words, root, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(container, 'ROOT', root)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SystemExit) as end:
        sys.exit(container.main(words))
    text = capsys.readouterr().err
    assert said in text and end.value.code == (1 if 'no docker' in text else 2)


def test_a_cancelled_step_reaches_the_script_behind_make(docker, tmp_path):
    process = subprocess.Popen(
        ['bash', '-c', f"exec {shlex.quote(sys.executable)} "
                       f"{shlex.quote(str(ROOT / 'devops' / 'container.py'))} sh -c "
                       "'trap \"echo cancelled; exit 3\" INT; echo ready; while :; do sleep 0.05; "
                       "done'"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b'cancelled\n' and process.returncode == 3


IN_HOME = ['run', '--user', USER, '--env', 'HOME=/tmp']


@pytest.mark.parametrize('words, code, said', [
    (['run', '--volume', '/tmp:/tmp', 'image'], 125, 'unrecognized arguments: --volume'),
    (['run', '--user'], 125, 'expected one argument'),
    (['run', '--workdir', 'here', 'image'], 125, 'it needs to be an absolute path'),
    (['run', '--mount', 'type=bind,source=/no/such,target=/no/such', 'image'], 125,
     'bind source path does not exist: /no/such'),
    (['run', '--mount', 'type=bind,sauce=/tmp,target=/tmp', 'image'], 125, 'can only bind'),
    (['run', 'image'], 125, "without the agent's user"),
    (['run', '--user', USER, 'image:no-such-tag'], 125, 'manifest unknown'),
    (['run', '--user', USER, 'image', 'true'], 125, '--user without HOME'),
    (['run', '--user', USER, '--env', 'HOME=/', 'image', 'true'], 125, '--user without HOME'),
    (IN_HOME + ['--env', 'TINI_KILL_PROCESS_GROUP=1', 'image', 'true'], 125, 'without --init'),
    (IN_HOME + ['--env', '=x', 'image', 'true'], 125, 'invalid environment variable: =x'),
    (IN_HOME + ['--workdir', '/no/such', 'image', 'true'], 125, 'would make it as root'),
    (IN_HOME + ['image'], 125, 'no command'),
    (['pull', 'image:no-such-tag'], 1, 'manifest unknown'),
    (['pull'], 1, 'invalid reference format'),
    (['build', '.'], 125, 'does not imitate docker build'),
])
def test_the_stand_in_refuses_what_docker_refuses(words, code, said, monkeypatch, capsys):
    for name in ('AGENT_BUILDDIRECTORY', 'CONTAINER'):
        monkeypatch.delenv(name, raising=False)
    assert docker_stand_in.main(words) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('words, code', [
    (['--init', '--env', 'TINI_KILL_PROCESS_GROUP=1', 'image', 'true'], 0),
    (['image', 'no-such-command'], 127), (['image', '/tmp'], 126),
    (['--env', 'NAME=x', 'image', 'sh', '-c', 'test $NAME = x; exit 9'], 9)])
def test_the_stand_in_ends_as_the_command_does(words, code):
    assert subprocess.call([sys.executable, str(STAND_IN)] + IN_HOME + words,
                           env={'PATH': os.environ['PATH']}) == code


@pytest.mark.parametrize('name, valid', [(name, True) for name in (
    'python', 'python:3.11', 'mcr.microsoft.com/mlops/python:openhack', 'MyHost/image',
    'localhost:5000/a__b/c--d.e:T_1', 'python:3.11@sha256:' + 'a' * 64)] + [
        (name, False) for name in (
            '', 'image:', '"image"', 'a//b', '-image', 'a___b', 'image:-tag', 'image:' + 'a' * 129,
            'image@sha256:abc', 'image ', 'image\n', 'image:é', 'host:port/image', 'Image',
            'mcr.microsoft.com/MLOps/python:openhack')])
def test_a_name_that_no_image_can_have(name, valid):
    assert bool(docker_stand_in.REFERENCE.fullmatch(name)) == valid


def test_what_is_not_mounted_is_missing_in_the_container(tmp_path, monkeypatch, capsys):
    (tmp_path / 's').mkdir()
    (tmp_path / 'temp').mkdir()
    monkeypatch.setenv('AGENT_BUILDDIRECTORY', str(tmp_path))
    monkeypatch.delenv('CONTAINER', raising=False)
    mount = f"type=bind,source={tmp_path / 's'},target={tmp_path / 's'}"
    words = ['run', '--user', USER, '--mount', mount, '--workdir', str(tmp_path / 's'), 'image']
    for command in (['ls', str(tmp_path / 'temp')], ['make', f"OUT={tmp_path / 'temp'}"]):
        assert docker_stand_in.main(words + command) == 125
        assert 'temp is not mounted' in capsys.readouterr().err


def test_container_1_runs_the_real_docker_with_the_same_words(docker, tmp_path):
    real = tmp_path / 'real' / 'docker'
    real.parent.mkdir()
    real.write_text('#!/bin/bash\necho "$@"\n')
    real.chmod(0o755)
    given = {'CONTAINER': '1', 'MODEL_NAME': 'mine'}
    code, text = run('make', 'lint', PATH=f'{docker}:{real.parent}', **given)
    assert code == 0 and text.startswith('run --network host ')
    assert '--env MODEL_NAME' in text and text.endswith('make lint\n')
    assert run('make', 'lint', PATH=str(docker), **given) == (
        1, 'CONTAINER=1 asks for Docker, and there is none here\n')
