import os
import subprocess
import sys

import pytest

import build_venv
import lock
from conftest import ROOT


def test_what_changed_is_told_package_by_package():
    old = '# via\na==1 ; python_version > "3" \\\n    --hash=sha256:1\nb==2\nc==3\n'
    assert lock.changes(old, old.replace('sha256:1', 'sha256:2')) == []
    assert lock.changes(old, old.replace('b==2', 'b==2.1')) == ['-b==2', '+b==2.1']
    assert lock.changes('', 'a==1\n') == ['+a==1'] and lock.changes('a==1\n', '') == ['-a==1']


@pytest.mark.parametrize('change, stale', [
    (lambda text: text, False), (lambda text: text.replace('numpy==', 'numpy==9', 1), True),
    (lambda text: text.replace('|numpy', '', 1), True)])
def test_a_lock_of_another_list_is_stale(tmp_path, monkeypatch, change, stale):
    text = (lock.LOCKS / 'local.txt').read_text()
    (tmp_path / 'locks').mkdir()
    (tmp_path / 'locks' / 'local.txt').write_text(change(text))
    monkeypatch.setattr(build_venv, 'DEVOPS', tmp_path)
    assert build_venv.stale('local') == stale and build_venv.stale('full')


@pytest.mark.end_to_end
def test_without_the_package_index_nothing_is_changed():
    before = {path: path.read_bytes() for path in lock.LOCKS.iterdir()}
    done = subprocess.run(
        [sys.executable, str(ROOT / 'scripts' / 'lock.py')], stderr=subprocess.PIPE,
        universal_newlines=True, env=dict(
            os.environ, PIP_INDEX_URL='http://127.0.0.1:9', PIP_RETRIES='0', PIP_FIND_LINKS='',
            PIP_EXTRA_INDEX_URL='', PIP_CONFIG_FILE=os.devnull))
    assert done.returncode == 1 and 'error: nothing is changed' in done.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in lock.LOCKS.iterdir()} == before
