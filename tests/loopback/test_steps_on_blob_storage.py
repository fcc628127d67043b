"""A model's files are written whole to mounted blob storage, whatever an attempt before left."""
import pytest

from conftest import ROOT
from test_blob_mount import under_mount

pytest.importorskip('lightgbm')
NEW = {'model.txt': 'new', 'report.html': 'new', 'metrics.json': 'new'}
WRITE = f'''
import sys
sys.path.insert(0, {str(ROOT / 'training')!r})
from train import write_set
for folder in sys.argv[1:]:
    write_set(folder, {NEW})
'''


def test_a_set_is_written_whatever_an_attempt_before_left_alone(tmp_path):
    outs = []
    for left in ('metrics.json', 'model.txt', '.model.txt.new', '.new-1/model.txt'):
        outs.append(tmp_path / 'mount' / str(len(outs)) / 'model')
        (outs[-1] / left).parent.mkdir(parents=True)
        (outs[-1] / left).write_text('old')
    script = tmp_path / 'script.py'
    script.write_text(WRITE)
    under_mount(tmp_path / 'mount', script, *outs)
    for out in outs:
        assert {path.name: path.read_text() for path in out.iterdir()
                if path.is_file() and not path.name.startswith('.')} == NEW
