"""Registrations killed at random moments, and whole retrainings killed in each of their steps.

    KILLS=120 python -m pytest tests/test_registry_kills.py
"""
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tracking
from test_register import files

TRAINING = Path(tracking.__file__).parent
KILLS = int(os.environ.get('KILLS', 12))
# How far a step has come when it is killed, as shares of the time that it took undisturbed: at the
# end, where it writes, more often.
SHARES = (0.3, 0.7, 0.9, 1.0)
STEPS = ('sample', 'train', 'evaluate', 'register')


def register_until_killed(registry, model, worker, said):
    """Register builds of its own one after the other, and say which version each got."""
    with open(said, 'a') as file:
        for number in itertools.count():
            build = f'{worker}.{number}'
            version, _ = tracking.Folder(registry).register('model', model, {'BuildId': build})
            print(version, build, file=file, flush=True)


@pytest.mark.end_to_end
def test_kills_neither_lose_nor_double_nor_block(tmp_path):
    """Four processes register at once, and one after the other is killed at a random moment."""
    model = tmp_path / 'model'
    model.mkdir()
    for name in ('model.txt', 'metrics.json', 'report.html'):
        (model / name).write_text('tree ' * 20000)
    registry = tmp_path / 'registry'
    home = registry / 'model'
    home.mkdir(parents=True)
    random.seed(KILLS)
    running = []
    try:
        for kill in range(KILLS + 4):
            if kill < KILLS:
                running.append(multiprocessing.get_context('fork').Process(
                    target=register_until_killed,
                    args=(str(registry), str(model), kill, str(tmp_path / 'said'))))
                running[-1].start()
            if kill >= 4:
                victim = running.pop(random.randrange(len(running)))
                victim.join(random.uniform(0, 0.04))
                assert victim.is_alive()
                victim.kill()
                victim.join()
    finally:
        for process in running:
            process.kill()
    said = [line.split() for line in (tmp_path / 'said').read_text().splitlines()]
    last, _ = tracking.Folder(str(registry)).register('model', str(model), {'BuildId': 'last'})
    assert sorted(path.name for path in home.iterdir() if path.name != '.lock') == sorted(
        str(version) for version in range(1, last + 1))
    builds = {}
    for version in range(1, last + 1):
        assert files(home / str(version) / 'model') == files(model)
        builds[version] = json.loads((home / str(version) / 'tags.json').read_text())['BuildId']
    assert len(set(builds.values())) == last
    assert all(builds[int(version)] == build for version, build in said)


def retrain(project, out, rows, evaluation='false', victim=None, seconds=0):
    """`make retrain`, with all that it starts killed so long after the step `victim` began.

    Returns the seconds of each step, or None if it was killed.
    """
    process = subprocess.Popen(
        ['make', 'retrain', 'PYTHON=' + sys.executable, f'OUT={out}', f'ROWS={rows}',
         'RUN_EVALUATION=' + evaluation], cwd=str(project), bufsize=1, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, universal_newlines=True)
    kill = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    output, began = '', {}
    for line in process.stdout:
        output += line
        for step in STEPS:
            if f'training/{step}.py --' in line:
                began[step] = time.monotonic()
                if step == victim:
                    kill.start()
    # Until it is waited for, the number of the process is no other's.
    if victim in began:
        kill.cancel()
        kill.join()
    if process.wait() == -signal.SIGKILL and victim:
        return None
    assert process.returncode == 0, output
    ends = list(began.values())[1:] + [time.monotonic()]
    return {step: end - begin for (step, begin), end in zip(began.items(), ends)}


def set_parameter(project, number):
    """Another number makes another model, so that each version can be told from the others."""
    path = project / 'training' / 'parameters.json'
    parameters = json.loads(path.read_text())
    parameters['rounds'] = 20
    parameters['evaluation']['register_useless'] = True
    parameters['training'].update(min_data_in_leaf=20, lambda_l2=number)
    path.write_text(json.dumps(parameters))


def check_results(out, all_rows):
    """Every result that is there is whole; returns the hash of the model of each version."""
    table = out / 'data' / 'safe_driver.csv'
    if table.exists():
        assert table.read_bytes().count(b'\n') - 1 in all_rows
    for path in out.glob('*.json'):
        tracking.read_json(str(path))
    for path in out.glob('comparison.html'):
        assert path.read_text().rstrip().endswith('</html>')
    # Killed between the renaming of the two, metrics.json is the earlier one, and refused.
    with contextlib.suppress(tracking.TrackingError):
        tracking.read_report(out / 'model')
        check_model(out / 'model')
    versions = {}
    for folder in (out / 'registry' / 'safe_driver_model').glob('[0-9]*'):
        check_model(folder / 'model')
        versions[int(folder.name)] = tracking.sha256(str(folder / 'model' / 'model.txt'))
        assert tracking.read_json(str(folder / 'tags.json'))['model_sha256'] == \
            versions[int(folder.name)]
    assert sorted(versions) == list(range(1, len(versions) + 1))
    assert len(set(versions.values())) == len(versions)
    return versions


def check_model(folder):
    """The model is whole and metrics.json tells of it."""
    report = tracking.read_json(str(folder / 'metrics.json'))
    model = (folder / 'model.txt').read_text()
    assert f"[lambda_l2: {report['parameters']['training']['lambda_l2']}]" in model
    assert model.rstrip().splitlines()[-1].startswith('pandas_categorical')
    profile = tracking.read_json(str(folder / 'profile.json'))
    assert profile['rows'] == report['lineage']['data_rows']
    assert (folder / 'report.html').read_text().rstrip().endswith('</html>')


@pytest.mark.end_to_end
def test_kills_of_make_retrain(tmp_path):
    project, out = tmp_path / 'project', tmp_path / 'out'
    shutil.copytree(str(TRAINING.parent), str(project), ignore=shutil.ignore_patterns(
        '.git', '.venv', 'outputs', '__pycache__', '.pytest_cache'))
    counts = collections.Counter()
    set_parameter(project, 0)
    seconds = retrain(project, out, 2000)
    assert tuple(seconds) == STEPS
    versions = check_results(out, [2000])
    for number, (step, share) in enumerate((step, share) for step in STEPS for share in SHARES):
        # Every other time the same again, with what the kill before has left.
        if number % 2 == 0:
            set_parameter(project, 1 + number // 2)
        rows = 2001 + number // 2 % 2
        done = retrain(project, out, rows, 'true' if number % 3 == 0 else 'false', step,
                       share * seconds[step])
        counts['done before the kill' if done else f'killed in {step}'] += 1
        before, versions = versions, check_results(out, [2000, 2001, 2002])
        assert before.items() <= versions.items()
    retrain(project, out, rows)
    versions = check_results(out, [rows])
    last = tracking.read_json(str(out / 'registration.json'))['version']
    assert files(out / 'model') == files(
        out / 'registry' / 'safe_driver_model' / str(last) / 'model')
    assert sum(counts.values()) - counts['done before the kill'] > len(STEPS)
