import subprocess
import sys

from conftest import ROOT


def test_ctrl_c_is_one_line_and_exit_code_130_after_what_was_printed():
    done = subprocess.run(
        [sys.executable, '-c', 'import ctrl_c; print("begun"); raise KeyboardInterrupt'],
        cwd=str(ROOT / 'scripts'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (130, b'begun\nerror: stopped\n')
