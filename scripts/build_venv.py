"""Build .venv from a lock of devops/locks, or say what a given interpreter lacks.

    python3 scripts/build_venv.py --part full --venv .venv
"""
import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dependencies

SUPPORTED = ('3.11', '3.10', '3.12', '3.13')
CONTAINER = '3.7'
DEVOPS = Path(__file__).resolve().parent.parent / 'devops'
SDK_PYTHONS = ('3.7', '3.10', '3.11')
# First a pip that knows the wheels of the rest, and what builds packages that have none.
FIRST = re.compile(r'^(?:pip|setuptools|wheel)==(?:.*\\\n)*.*\n', re.M)
PROBE = 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
NO_PYTHON = f'''no suitable Python found.
Python {', '.join(SUPPORTED)} will do (the pins are for {SUPPORTED[0]}). Ways to get one:
  any system      install uv (pip install uv or brew install uv); it fetches Python by itself
  Debian, Ubuntu  sudo apt-get install python3 python3-venv
  macOS           brew install python@{SUPPORTED[0]}
  pyenv           pyenv install {SUPPORTED[0]}
or name an interpreter that has the packages: make PYTHON=/path/to/python ...'''

# What a given interpreter may lack: what everything needs, and what else is lost.
ESSENTIAL = ('numpy', 'pandas', 'lightgbm')
OTHERS = {
    'matplotlib': 'the plots of report.html',
    'orjson': 'the faster JSON of scoring',
    'azureml_inference_server_http': 'make serve',
    'pycodestyle': 'make lint',
    'pytest': 'make test',
    'pytest_cov': 'make test',
    'requests': 'make smoke-test, branch-policy and devops-project',
    'yaml': 'make rehearse',
    'check_jsonschema': 'the schema in make rehearse',
    'trustme': 'make rehearse',
    'azureml': 'the Azure ML targets',
}


def version_of(python):
    """'3.11' for an interpreter that runs and can make a virtual environment, else None."""
    try:
        done = subprocess.run([str(python), '-c', PROBE], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, universal_newlines=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_python(uv):
    """(interpreter, version): the container's 3.7 if first on PATH, else the best of SUPPORTED.

    Where none is found uv fetches one. Raises RuntimeError without uv.
    """
    names = ['python' + version for version in SUPPORTED] + ['python3', 'python', sys.executable]
    names += map(str, Path.home().glob('.pyenv/versions/3.1[0-3].*/bin/python'))
    found = {}
    for path in filter(None, map(shutil.which, names)):
        found.setdefault(version_of(path), path)
    for version in (CONTAINER,) + SUPPORTED:
        if version in found:
            return found[version], version
    if not uv:
        raise RuntimeError(NO_PYTHON)
    return SUPPORTED[0], SUPPORTED[0]


def pins(part):
    """The packages (list) that the lock of a part is solved from, as pip requirements."""
    if part == 'container':
        return re.findall(r'^[^#\s].*', (DEVOPS / 'openhack_requirements.txt').read_text(), re.M)
    return dependencies.requirements(dependencies.LIST.read_text(), part)


def stale(part):
    """Whether the lock of a part is missing or solved from other pins than are listed now."""
    lock = DEVOPS / 'locks' / f'{part}.txt'
    return not lock.exists() or f" of {'|'.join(pins(part))}\n" not in lock.read_text()


def build(venv, part, uv):
    """Make or complete the virtual environment `venv` (Path); its stamp .part is written last."""
    python = venv / 'bin' / 'python'
    base, version = find_python(uv)
    name = 'container' if version == CONTAINER else part
    lock = DEVOPS / 'locks' / f'{name}.txt'
    if stale(name):
        raise ValueError(f'devops/locks/{name}.txt is not of what is listed now: run `make lock`')
    stamp, first = venv / f'.{part}', venv / 'requirements-first.txt'
    whole = (venv / '.local').exists() or (venv / '.full').exists()
    if not whole or version_of(python) != version:
        print(f'Making {venv} with Python {version} ({base})', flush=True)
        make = [uv, 'venv', '-q', '--clear', '--seed', '--python', base, str(venv)]
        subprocess.run(make if uv else [base, '-m', 'venv', '--clear', str(venv)], check=True)
    if stamp.exists():
        # A restored cache is older than a fresh checkout, and yet complete.
        if stamp.read_text() == lock.read_text():
            stamp.touch()
            return
        stamp.unlink()
    note = ', the Azure SDK among them (700 MB, some minutes)' if part == 'full' else ''
    print(f'Installing the locked packages into {venv}{note}', flush=True)
    # --no-user: whatever someone's pip.conf says.
    install = [uv, 'pip', 'install', '--python', str(python)] if uv else [
        str(python), '-m', 'pip', 'install', '--no-user', '--disable-pip-version-check']
    install += [] if sys.stdout.isatty() else ['-q']
    install += ['--no-build-isolation', '--require-hashes', '-r']
    if first.write_text(''.join(FIRST.findall(lock.read_text()))):
        subprocess.run(install + [str(first)], check=True)
    subprocess.run(install + [str(lock)], check=True)
    if part == 'full' and version not in SDK_PYTHONS:
        print(f'warning: azureml-sdk needs Python 3.10 or 3.11, this is {version}: the Azure ML '
              'targets will not work and their tests are skipped', file=sys.stderr)
    stamp.write_text(lock.read_text())


def check(stamp):
    """Print what this interpreter lacks; write `stamp` unless that makes everything impossible."""
    essential = [name for name in ESSENTIAL if importlib.util.find_spec(name) is None]
    others = [f'{name} ({lost})' for name, lost in OTHERS.items()
              if importlib.util.find_spec(name) is None]
    if others:
        print(f"note: {sys.executable} lacks {', '.join(others)}", file=sys.stderr)
    if essential:
        print(f"error: {sys.executable} lacks {', '.join(essential)}, which everything needs; "
              'install it there or leave PYTHON= out', file=sys.stderr)
        return 1
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(sys.executable + '\n')
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--part', required=True, choices=('local', 'full'),
                        help='local: what one machine needs; full: the Azure SDK as well')
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='folder to make')
    parser.add_argument('--check', action='store_true', help='only say what this interpreter lacks')
    parser.add_argument('--stamp', type=Path, help='with --check: file to write if it will do')
    args = parser.parse_args(argv)
    if args.check:
        return check(args.stamp)
    try:
        build(args.venv, args.part, shutil.which('uv'))
        return 0
    except subprocess.CalledProcessError as error:
        problem = (f'"{" ".join(error.cmd)}" failed with exit code {error.returncode}; its output '
                   'is above. Is the package index reachable?')
    except (RuntimeError, OSError, ValueError) as error:
        problem = error
    print(f'error: {problem}', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
