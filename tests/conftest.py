import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('training', 'scoring', 'scripts', 'devops', 'devops/rehearsal')
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]

# Tests run beside each other, and LightGBM's threads wait for each other by spinning.
os.environ.setdefault('OMP_NUM_THREADS', '1')
