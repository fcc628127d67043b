"""Solve the lists of packages into devops/locks, with uv, and print what changed.

    python3 scripts/lock.py

After a change of a list only what must moves; without one all moves to the newest that the lists
leave open.
"""
import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import build_venv

UV = 'uv==0.13.9'
LOCKS = build_venv.DEVOPS / 'locks'
# Two are for every Python from 3.10 on, and agree; the third is the container's.
OPTIONS = {
    'full': ('--universal', '--python-version', '3.10'),
    'local': ('--universal', '--python-version', '3.10', '-c', 'full.txt'),
    'container': ('--python-version', '3.7', '--python-platform', 'linux'),
}


def changes(old, new):
    """The lines that differ (list) between two locks: - package==version, + package==version."""
    packages = [re.findall(r'^[a-z][^\s;]*', text, re.M) for text in (old, new)]
    return [line for line in difflib.unified_diff(*packages, n=0, lineterm='')
            if re.match('[-+][a-z]', line)]


def solve(folder):
    """Solve all locks in a copy (Path) of their folder. Raises CalledProcessError."""
    subprocess.run([sys.executable, '-m', 'venv', str(folder / 'venv')], check=True)
    python = str(folder / 'venv' / 'bin' / 'python')
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', UV],
                   check=True)
    upgrade = ['--upgrade'] if not any(map(build_venv.stale, OPTIONS)) else []
    for part, options in OPTIONS.items():
        print(f'Solving {part}', flush=True)
        pins = build_venv.pins(part)
        subprocess.run(
            [python, '-m', 'uv', 'pip', 'compile', '-q', *upgrade, *options, '-o', f'{part}.txt',
             '--custom-compile-command', f"make lock, of {'|'.join(pins)}", '-'],
            input='\n'.join(pins), universal_newlines=True, cwd=str(folder), check=True)


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    # Beside the locks, so that each is replaced whole.
    with tempfile.TemporaryDirectory(dir=str(LOCKS), prefix='.new-') as folder:
        for path in LOCKS.glob('[a-z]*'):
            shutil.copy(str(path), folder)
        try:
            solve(Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f'error: nothing is changed: {error}', file=sys.stderr)
            return 1
        for part in OPTIONS:
            new, path = Path(folder, f'{part}.txt'), LOCKS / f'{part}.txt'
            different = changes(path.read_text() if path.exists() else '', new.read_text())
            print(*[f'devops/locks/{part}.txt:'] + (different or ['no version changed']), sep='\n')
            os.replace(str(new), str(path))
    return 0


if __name__ == '__main__':
    sys.exit(main())
