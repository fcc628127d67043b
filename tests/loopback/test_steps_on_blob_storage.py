"""A model's files are written whole to mounted blob storage, whatever an attempt before left."""
import pytest

from conftest import ROOT
from test_blob_mount import under_mount

pytest.importorskip('lightgbm')
TRAINING = ROOT / 'training'
WRITE = '''
import os, sys
sys.path.insert(0, %r)
from train import write_set
os.makedirs(sys.argv[1], exist_ok=True)
write_set(sys.argv[1], {'model.txt': 'new', 'report.html': 'new', 'metrics.json': 'new'})
'''


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
