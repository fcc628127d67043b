"""The steps train, evaluate and register with what passes between them on mounted blob storage."""
import json
import subprocess
import sys

import pytest

from conftest import ROOT
from test_blob_mount import under_mount

pytest.importorskip('lightgbm')
NAME = 'safe_driver_model'
TRAINING = ROOT / 'training'
WRITE = '''
import os, sys
sys.path.insert(0, %r)
from train import write_set
os.makedirs(sys.argv[1], exist_ok=True)
write_set(sys.argv[1], {'model.txt': 'new', 'report.html': 'new', 'metrics.json': 'new'})
'''


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'table.csv'
    subprocess.run([sys.executable, str(TRAINING / 'sample.py'), '--rows', '3000', '--out',
                    str(path)], check=True, stdout=subprocess.DEVNULL)
    return path


def test_each_step_ends_well_also_when_it_starts_again(tmp_path, table):
    mount = tmp_path / 'mount'
    model, decision = mount / 'run' / 'model', mount / 'run' / 'decision'
    registry, registration = tmp_path / 'registry', tmp_path / 'registration.json'
    (mount / 'run').mkdir(parents=True)
    parameters = ['--data', table, '--parameters', TRAINING / 'parameters.json']
    judged = ['--model', model, '--model-name', NAME, '--registry', registry]
    # The second build finds the files of the first and compares with the version that it made.
    for version in (1, 2):
        build = ['--build-id', version]
        under_mount(mount, TRAINING / 'train.py', *parameters, *build, '--out', model)
        under_mount(mount, TRAINING / 'evaluate.py', *parameters, *judged, '--out', decision,
                    '--run-evaluation', 'true', '--allow-run-cancel', 'false')
        under_mount(mount, TRAINING / 'register.py', *judged, *build, '--decision', decision,
                    '--out', registration)
        assert json.loads(registration.read_text())['version'] == version
    assert sorted(path.name for path in (mount / 'run').iterdir()) == ['decision', 'model']
    left = {path.name for path in model.iterdir()}
    assert {'metrics.json', 'model.txt'} <= left and not any(name[0] == '.' for name in left)


@pytest.mark.parametrize('left', ['metrics.json', 'model.txt', '.model.txt.new',
                                  '.new-1/model.txt'])
def test_a_set_is_written_whatever_an_attempt_before_left_alone(tmp_path, left):
    out = tmp_path / 'mount' / 'run' / 'model'
    (out / left).parent.mkdir(parents=True)
    (out / left).write_text('old')
    script = tmp_path / 'script.py'
    script.write_text(WRITE % str(TRAINING))
    under_mount(tmp_path / 'mount', script, out)
    assert {path.name: path.read_text() for path in out.iterdir() if path.is_file()
            and not path.name.startswith('.')} == dict.fromkeys(
                ['metrics.json', 'model.txt', 'report.html'], 'new')
