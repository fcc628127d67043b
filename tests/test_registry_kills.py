"""Registrations and whole retrainings, killed at random moments."""
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tracking

TRAINING = Path(tracking.__file__).parent

# Registers its own builds one after the other until it is killed, and says which version each got.
WORKER = '''
import itertools, sys
sys.path.insert(0, sys.argv[1])
import tracking
for number in itertools.count():
    build = '{}.{}'.format(sys.argv[4], number)
    version, _ = tracking.Folder(sys.argv[2]).register('model', sys.argv[3], {'BuildId': build})
    print(version, build, flush=True)
'''


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(str(folder)).iterdir()}


def kill_at_random(tmp_path, kills, workers=4):
    """Register in `workers` processes at once, kill one at a random moment `kills` times.

    Returns the counts, having checked that no version is lost, doubled or half there.
    """
    model = tmp_path / 'model'
    model.mkdir()
    for name in ('model.txt', 'metrics.json', 'report.html'):
        (model / name).write_text('tree ' * 20000)
    registry = tmp_path / 'registry'
    home = registry / 'model'
    home.mkdir(parents=True)
    log = tmp_path / 'log'
    random.seed(kills)
    running, started, leftovers = [], 0, 0
    try:
        for kill in range(kills + workers):
            if len(running) == workers:
                victim = running.pop(random.randrange(workers))
                with pytest.raises(subprocess.TimeoutExpired):
                    victim.wait(random.uniform(0.01, 0.12))
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                leftovers += any(path.name.startswith('.new-') for path in home.iterdir())
            if kill < kills:
                with open(str(log), 'a') as out:
                    running.append(subprocess.Popen(
                        [sys.executable, '-c', WORKER, str(TRAINING), str(registry), str(model),
                         str(started)], stdout=out))
                started += 1
    finally:
        for process in running:
            process.kill()
            process.wait()
    last, _ = tracking.Folder(str(registry)).register('model', str(model), {'BuildId': 'last'})
    assert sorted(path.name for path in home.iterdir() if path.name != '.lock') == sorted(
        str(version) for version in range(1, last + 1))
    builds = {}
    for version in range(1, last + 1):
        assert contents(home / str(version) / 'model') == contents(model)
        builds[version] = json.loads((home / str(version) / 'tags.json').read_text())['BuildId']
    assert len(set(builds.values())) == last
    said = [line.split() for line in log.read_text().splitlines()]
    assert all(builds[int(version)] == build for version, build in said)
    return {'kills': started, 'versions': last, 'reported': len(said),
            'kills that left something to sweep': leftovers}


def test_kills_neither_lose_nor_double_nor_block(tmp_path):
    counts = kill_at_random(tmp_path, 24)
    assert counts['versions'] > 4
    print(counts)
