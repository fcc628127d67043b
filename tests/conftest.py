"""What all tests share: the path to the project's modules, and files of parameters."""
import gzip
import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('training', 'scoring', 'scripts', 'devops', 'devops/rehearsal')
DEFAULT = ROOT / 'training' / 'parameters.json'
CHALLENGE = ROOT / 'training' / 'parameters_challenge.json'
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]

import azure_ml  # noqa: E402
import container  # noqa: E402
import rehearse  # noqa: E402
import sample  # noqa: E402
import settings  # noqa: E402

# Tests mean the settings, sign-in, proxy, git and make variables that they give, not those of an
# agent, a user or the make that runs them.
MAKE = re.findall(r'^([A-Z_]+) +\?=', (ROOT / 'Makefile').read_text(), re.M)
for name in [row[0] for row in settings.SETTINGS] + MAKE + list(container.PASSED) + [
        'MAKEFLAGS', 'ALL_PROXY', 'GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE']:
    os.environ.pop(name, None)
    os.environ.pop(name.lower(), None)
os.environ.update(rehearse.NO_GIT_SETTINGS)
# Tests run beside each other, and LightGBM's threads wait for each other by spinning.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# No test's file has to outlast a power cut. This, too, refuses what is no open file.
os.fsync = os.fstat


def write_table(path, rows, seed=1):
    """A sample table whose few rows make a model above chance: a column tells half the claims."""
    frame = next(sample.generate(rows, seed))
    frame.loc[(frame['target'] == 1) & (frame['id'] % 2 == 0), 'ps_ind_15'] = 0
    frame.to_csv(str(path), index=False)


def write_parts(folder, path):
    """The table in three files: the second in gzip, the columns of the third in reverse."""
    header, *rows = path.read_text().splitlines(True)
    folder.mkdir()
    for number, name in enumerate(('part-1.csv', 'part-2.csv.gz', 'part-3.csv')):
        lines = [header] + rows[number * len(rows) // 3:(number + 1) * len(rows) // 3]
        if number == 2:
            lines = [','.join(line.strip().split(',')[::-1]) + '\n' for line in lines]
        content = ''.join(lines).encode()
        (folder / name).write_bytes(gzip.compress(content) if number == 1 else content)
    return folder


def python_of_one_thread(folder):
    """This interpreter for steps of a pipeline, which get no variable of this process."""
    path = folder / 'python'
    path.write_text(f'#!/bin/sh\nexport OMP_NUM_THREADS=1\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def loud_again():
    """What makes the SDK silent in one test is not there in the next."""
    yield
    logging.disable(logging.NOTSET)
    for name in azure_ml.SDK_BACKOFF:
        os.environ.pop(name, None)


@pytest.fixture
def parameters(tmp_path):
    """A function that writes a file of parameters, the default's with these changed."""
    def write(training=None, path=DEFAULT, **changes):
        content = dict(json.loads(path.read_text()), **changes)
        content['training'].update(training or {})
        file = tmp_path / 'parameters.json'
        file.write_text(json.dumps(content))
        return str(file)
    return write
