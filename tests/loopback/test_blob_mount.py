"""A folder as a mount of flat blob storage: what is refused there, and what goes on elsewhere."""
import errno
import subprocess
import sys

import pytest

from conftest import ROOT

BLOB_MOUNT = ROOT / 'devops' / 'loopback' / 'blob_mount.py'
SCRIPT = '''
import os, pathlib, shutil, sys, tempfile
mount, local = map(pathlib.Path, sys.argv[1:])
for folder in (mount, local):
    (folder / 'set').mkdir()
    (folder / 'set' / 'a').write_text('a')
    (folder / 'set' / 'b').write_text('b')
try:
    %s
except OSError as error:
    print(error.errno)
'''


def under_mount(mount, *command):
    """The output of a script that sees the folder `mount` as a mount."""
    done = subprocess.run([sys.executable, str(BLOB_MOUNT), str(mount)] + list(map(str, command)),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                          universal_newlines=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def attempt(tmp_path):
    """Run a statement with FOLDER on the mount, then elsewhere: both errnos, 0 for none."""
    def attempt(statement):
        numbers = []
        for name in ('mount', 'local'):
            folders = [tmp_path / name / part for part in ('mount', 'local')]
            for folder in folders:
                folder.mkdir(parents=True)
            script = tmp_path / 'script.py'
            script.write_text(SCRIPT % statement.replace('FOLDER', name))
            numbers.append(int(under_mount(folders[0], script, *folders) or 0))
        return tuple(numbers)
    return attempt


@pytest.mark.parametrize('statement, number', [
    ("(FOLDER / 'set').rename(FOLDER / 'other')", errno.EIO),
    ("os.replace(FOLDER / 'set', FOLDER / 'other')", errno.EIO),
    ("os.link(FOLDER / 'set' / 'a', FOLDER / 'set' / 'c')", errno.ENOSYS),
    ("(FOLDER / 'set' / 'c').symlink_to(FOLDER / 'set' / 'a')", errno.ENOSYS),
    ("os.fsync(os.open(FOLDER / 'set', os.O_RDONLY))", errno.EINVAL),
    ("shutil.rmtree(FOLDER / 'set')", errno.ENOENT),
    ("shutil.rmtree(FOLDER / 'set', ignore_errors=True)", 0),
    ("os.replace(FOLDER / 'set' / 'a', FOLDER / 'set' / 'b')", 0),
    ("os.replace(b'a', b'b', src_dir_fd=os.open(FOLDER / 'set', 0), "
     "dst_dir_fd=os.open(FOLDER / 'set', 0))", 0),
    ("shutil.copytree(FOLDER / 'set', FOLDER / 'other')", 0),
    ("os.fsync(os.open(FOLDER / 'set' / 'a', os.O_RDWR))", 0),
])
def test_what_blob_storage_refuses_is_refused_on_the_mount_only(attempt, statement, number):
    assert attempt(statement) == (number, 0)


@pytest.mark.parametrize('source, goal', [('local', 'mount'), ('mount', 'local')])
def test_nothing_is_renamed_across_the_border(attempt, source, goal):
    numbers = attempt(f"os.replace({source} / 'set' / 'a', {goal} / 'set' / 'c')")
    assert numbers == (errno.EXDEV, errno.EXDEV)


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
