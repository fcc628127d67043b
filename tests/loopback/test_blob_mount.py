"""A folder as a mount of flat blob storage: what is refused there, and what goes on elsewhere."""
import errno
import json
import subprocess
import sys

import pytest

from conftest import ROOT

BLOB_MOUNT = ROOT / 'devops' / 'loopback' / 'blob_mount.py'
# Each statement with `here` on the mount and `there` not, then the other way round.
STATEMENTS = [
    ("(here / 'set').rename(here / 'other')", errno.EIO, 0),
    ("os.replace(here / 'set', here / 'other')", errno.EIO, 0),
    ("os.replace(here / 'set' / 'a', there / 'set' / 'c')", errno.EXDEV, errno.EXDEV),
    ("os.link(here / 'set' / 'a', here / 'set' / 'c')", errno.ENOSYS, 0),
    ("(here / 'set' / 'c').symlink_to(here / 'set' / 'a')", errno.ENOSYS, 0),
    ("os.fsync(os.open(here / 'set', os.O_RDONLY))", errno.EINVAL, 0),
    ("shutil.rmtree(here / 'set')", errno.ENOENT, 0),
    ("shutil.rmtree(here / 'set', ignore_errors=True)", 0, 0),
    ("os.replace(here / 'set' / 'a', here / 'set' / 'b')", 0, 0),
    ("os.replace(os.fsencode(here / 'set' / 'a'), here / 'set' / 'b')", 0, 0),
    ("shutil.copytree(here / 'set', here / 'other')", 0, 0),
    ("os.fsync(os.open(here / 'set' / 'a', os.O_RDWR))", 0, 0),
]
SCRIPT = '''
import json, os, pathlib, shutil, sys
numbers = []
for number, statement in enumerate(json.loads(sys.argv[2])):
    mount, local = [pathlib.Path(sys.argv[1], name, str(number)) for name in ('mount', 'local')]
    numbers.append([])
    for here, there in ((mount, local), (local, mount)):
        for folder in (mount, local):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / 'set').mkdir(parents=True)
            (folder / 'set' / 'a').write_text('a')
            (folder / 'set' / 'b').write_text('b')
        try:
            exec(statement)
            numbers[-1].append(0)
        except OSError as error:
            numbers[-1].append(error.errno)
print(json.dumps(numbers))
'''


def under_mount(mount, *command):
    """The output of a script that sees the folder `mount` as a mount."""
    done = subprocess.run([sys.executable, str(BLOB_MOUNT), str(mount)] + list(map(str, command)),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                          universal_newlines=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    """{statement: [errno on the mount, errno elsewhere]}, 0 for none."""
    folder = tmp_path_factory.mktemp('attempts')
    script = folder / 'script.py'
    script.write_text(SCRIPT)
    statements = [statement for statement, _, _ in STATEMENTS]
    return dict(zip(statements, json.loads(
        under_mount(folder / 'mount', script, folder, json.dumps(statements)))))


@pytest.mark.parametrize('statement, on_mount, elsewhere', STATEMENTS)
def test_what_blob_storage_refuses_is_refused_on_the_mount(answers, statement, on_mount, elsewhere):
    assert answers[statement] == [on_mount, elsewhere]


def test_a_folder_goes_with_its_last_file_and_a_rename_is_a_copy(tmp_path):
    mount = tmp_path / 'mount'
    (mount / 'outer' / 'inner').mkdir(parents=True)
    (mount / 'outer' / 'inner' / 'a').write_text('first')
    (mount / 'b').write_text('second')
    number = (mount / 'b').stat().st_ino
    script = tmp_path / 'script.py'
    script.write_text('import os, sys\n'
                      'os.chdir(sys.argv[1])\n'
                      'os.rename("outer/inner/a", "b")\n'
                      'print(sorted(os.listdir(".")), os.path.isdir("."))\n')
    assert under_mount(mount, script, mount) == "['b'] True\n"
    # The target was overwritten where it was, so a reader may have seen a part of it.
    assert ((mount / 'b').read_text(), (mount / 'b').stat().st_ino) == ('first', number)
    script.write_text('import os, sys\nos.remove(os.path.join(sys.argv[1], "b"))\n')
    under_mount(mount, script, mount)
    assert list(mount.iterdir()) == []


def test_the_script_gets_its_own_arguments_folder_and_exit_code(tmp_path):
    (tmp_path / 'beside.py').write_text('VALUE = 7\n')
    script = tmp_path / 'script.py'
    script.write_text('import beside, sys\nprint(sys.argv[1:])\nsys.exit(beside.VALUE)\n')
    done = subprocess.run([sys.executable, str(BLOB_MOUNT), str(tmp_path), str(script),
                           '--out', 'x', '--help'], stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (7, b"['--out', 'x', '--help']\n")
