import re
import subprocess
import sys

import pytest

import build_venv
import dependencies
from conftest import ROOT


def fake_python(folder, name, version):
    """An executable that answers the probe of build_venv.version_of like this version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho {version}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def path_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'none'))
    return tmp_path / 'bin'


@pytest.mark.parametrize('there, best', [
    ({'python3': '3.13', 'python3.11': '3.11'}, 'python3.11'),
    ({'python3': '3.7', 'python3.11': '3.11'}, 'python3'),
    ({'python3': '3.12', 'python3.11': '; exit 127'}, 'python3'),
])
def test_the_python_that_fits_best_is_taken(path_folder, there, best):
    for name, version in there.items():
        fake_python(path_folder, name, version)
    assert build_venv.find_python(None) == (str(path_folder / best), there[best])


def test_without_a_suitable_python_the_message_says_which_and_how(path_folder, tmp_path, capsys):
    fake_python(path_folder, 'python3', '3.9')
    assert build_venv.main(['--part', 'local', '--venv', str(tmp_path / 'venv')]) == 1
    message = capsys.readouterr().err
    for words in ('3.10', '3.11', '3.12', '3.13', 'uv', 'apt-get', 'pyenv', 'PYTHON='):
        assert words in message
    assert not (tmp_path / 'venv').exists()
    assert build_venv.find_python('/bin/uv') == ('3.11', '3.11')


@pytest.mark.parametrize('pin, words', [
    ('orjson==', 'exit code 9'), ('orjson==1', 'local.txt is not of what is listed now')])
def test_a_failed_set_up_leaves_no_stamp(path_folder, tmp_path, monkeypatch, capsys, pin, words):
    text = dependencies.LIST.read_text()
    monkeypatch.setattr(dependencies, 'LIST', tmp_path / 'list')
    dependencies.LIST.write_text(text.replace('orjson==', pin))
    fake_python(path_folder, 'python3.11', '3.11').write_text(
        '#!/bin/sh\ncase "$*" in *probe*|-c*) echo 3.11;; *) exit 9;; esac\n')
    assert build_venv.main(['--part', 'local', '--venv', str(tmp_path / 'venv')]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'venv' / '.local').exists()


def test_in_the_container_pip_is_renewed_before_it_installs_the_rest(path_folder, tmp_path):
    asked = tmp_path / 'asked'
    fake_python(path_folder, 'python3', '3.7').write_text(
        '#!/bin/sh\ncase "$*" in\n  -c*) echo 3.7;;\n'
        '  *--clear*) /bin/mkdir -p "$4/bin" && /bin/cp "$0" "$4/bin/python";;\n'
        f'  *) echo "$*" >> {asked};;\nesac\n')
    assert build_venv.main(['--part', 'local', '--venv', str(tmp_path / 'venv')]) == 0
    first, second = asked.read_text().splitlines()
    assert '--require-hashes' in first and first.endswith('requirements-first.txt')
    assert 'pip==24.0 ' in (tmp_path / 'venv' / 'requirements-first.txt').read_text()
    assert '--require-hashes' in second and second.endswith('devops/locks/container.txt')


def test_each_lock_is_of_its_list_and_has_hashes_of_every_package():
    pinned = {}
    for part in ('local', 'full', 'container'):
        pins = build_venv.pins(part)
        assert pins and all(re.match(r'^[A-Za-z0-9-]+==[0-9a-z.]+( ;|$)', pin) for pin in pins)
        lock = (build_venv.DEVOPS / 'locks' / f'{part}.txt').read_text()
        assert f"make lock, of {'|'.join(pins)}\n" in lock, 'stale: run make lock'
        pinned[part] = re.findall(r'^(\w\S+==\S+).*\\\n +--hash=sha256:', lock, re.M)
        assert pinned[part] == re.findall(r'^\w\S*', lock, re.M)
    assert set(pinned['local']) < set(pinned['full']), 'what comes later would replace packages'


def test_a_given_interpreter_is_told_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name != 'matplotlib' or None)
    assert build_venv.main(['--part', 'local', '--check', '--stamp', str(tmp_path / 'stamp')]) == 0
    assert 'lacks matplotlib (the plots of report.html)' in capsys.readouterr().err
    assert (tmp_path / 'stamp').exists()


def test_a_given_interpreter_that_lacks_everything_stops_make(tmp_path):
    bare = fake_python(tmp_path, 'bare', '')
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ES "$@"\n')
    done = subprocess.run(
        ['make', '-C', str(ROOT), 'train', f'PYTHON={bare}', f'OUT={tmp_path}/out'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert done.returncode != 0
    assert 'lacks numpy, pandas, lightgbm' in done.stdout
    assert not (tmp_path / 'out' / 'model').exists()
