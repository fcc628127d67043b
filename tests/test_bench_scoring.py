"""The scoring benchmark: the answers it checks, and whole runs of it."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench_scoring
from bench_scoring import SCRIPTS
from conftest import ROOT
from served import NAME, free_port, register

pytestmark = pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(),
                                reason='the benchmark reads /proc of Linux')


@pytest.mark.parametrize('status, body, right', [
    (b'200', b'{"result": [0.5]}', True), (b'200', b'{"result": [0.6]}', False),
    (b'500', b'{"result": [0.5]}', False), (b'200', b'{"scores": [0.5]}', False),
    (b'200', b'{"result": [0.5]', False), (b'', b'', False)])
def test_only_the_exact_answer_is_right(status, body, right):
    assert bench_scoring.is_right(status, body, [0.5]) == right


def test_a_wrong_or_lost_answer_ends_the_benchmark(monkeypatch):
    requests, answers = [b'0.1', b'0.2', b'0.3'], [[0.1], [0.2], [0.3]]
    with pytest.raises(OSError):
        bench_scoring.offer_requests(free_port(), requests, answers, 2, 0.01)
    monkeypatch.setattr(bench_scoring, 'exchange',
                        lambda port, request: (b'200', b'{"result": [%s]}' % request))
    rate, latencies = bench_scoring.offer_requests(1, requests, answers, 2, 0.01)
    assert rate > 0 and len(latencies) >= 2 and min(latencies) > 0
    with pytest.raises(RuntimeError, match='wrong answer: status 200'):
        bench_scoring.offer_requests(1, requests, [[0.1]] * 3, 2, 0.01)


@pytest.fixture
def command(tmp_path):
    """The benchmark with a small model, in the packages of this interpreter: nothing to install."""
    pytest.importorskip('inference_schema.parameter_types.pandas_parameter_type')
    register(tmp_path / 'registry', 1)
    packages = bench_scoring.scoring_packages()
    for name, extra in (('scoring', []), ('challenge', bench_scoring.CHALLENGE_PACKAGES)):
        venv = tmp_path / 'scoring' / f'venv-{name}'
        (venv / 'bin').mkdir(parents=True)
        (venv / 'bin' / 'python').write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (venv / 'bin' / 'python').chmod(0o755)
        (venv / 'installed.txt').write_text('\n'.join(packages + extra))
    return [sys.executable, str(ROOT / 'scripts' / 'bench_scoring.py'), '--model-name', NAME,
            '--registry', str(tmp_path / 'registry'), '--out', str(tmp_path), '--rounds', '1']


@pytest.mark.end_to_end
def test_small_benchmark(command, tmp_path):
    subprocess.run(command + ['--seconds', '0.2'], check=True, stdout=subprocess.DEVNULL)
    found, = json.loads((tmp_path / 'scoring.json').read_text())
    for name, (_, _, measures) in SCRIPTS.items():
        assert all(found[name][f'{measure}, requests/s'] > 0 for measure in measures)
        assert found[name][bench_scoring.MEMORY] > 20 and found[name][bench_scoring.START] > 0.1
    text = (tmp_path / 'scoring.md').read_text()
    assert all(f'| {figure}: ours / {other} ' in text for figure, other, _ in bench_scoring.LIMITS)
    assert (tmp_path / 'scoring.png').exists()


@pytest.mark.end_to_end
def test_no_server_outlives_a_benchmark_that_is_ended(command):
    bench = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        for line in bench.stdout:
            if line.startswith(b'round 1'):
                break
        while bench.poll() is None and len(bench_scoring.family(bench.pid)) < 3:
            pass
        servers = bench_scoring.family(bench.pid)[1:]
        bench.terminate()
        assert bench.wait(60) == 1
    finally:
        bench.kill()
        bench.communicate()
    assert servers and [pid for pid in servers if Path(f'/proc/{pid}').exists()] == []
