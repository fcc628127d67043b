"""The scoring benchmark: the answers it checks, the ratios it states, and whole runs of it."""
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import bench_scoring
from bench_scoring import FOREIGN_SHARE, ROWS, SCRIPTS
from conftest import ROOT
from served import NAME, register

pytestmark = pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(),
                                reason='the benchmark reads /proc of Linux')


def test_ratios_are_of_the_rounds_that_others_did_not_spoil():
    good = {'rate': 1, 'seconds': 1, 'megabytes': 1, 'others': 0.0}
    results = {name: {measure: [good, good] for measure in (*ROWS, 'start', 'memory')}
               for name in SCRIPTS}
    spoilt = dict(good, rate=99, others=2 * FOREIGN_SHARE)
    results['ours']['1 row'] = [dict(good, rate=0.85), spoilt]
    results['ours']['memory'] = [dict(good, megabytes=0.56)]
    results['ours']['100 rows'] = [spoilt]
    table = bench_scoring.medians(results)
    reached = {label.partition(',')[0]: (ratio, is_reached) for label, _, ratio, is_reached
               in bench_scoring.compare_with_targets(table)}
    assert reached['1 row'] == (0.85, True)
    assert reached['memory after load against starter'] == (0.56, False)
    assert reached['100 rows'] == (99, True), 'spoilt rounds count where there are no others'
    assert not bench_scoring.enough_rounds(results, 1)


@pytest.mark.parametrize('fault', [None, 'score', 'status', 'name', 'cut', 'empty'])
def test_a_wrong_answer_ends_the_benchmark(fault):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers['Content-Length'])).decode())['data']
            found = [0.5] if fault == 'score' else [row[0] / 100 for row in rows]
            body = json.dumps({'scores' if fault == 'name' else 'result': found}).encode()
            self.send_response(500 if fault == 'status' else 200)
            self.end_headers()
            self.wfile.write({'cut': body[:-1], 'empty': b''}.get(fault, body))

        def log_message(self, *_):
            pass

    requests = [bench_scoring.http_request({'data': [[number, 1]]}) for number in range(20)]
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        received = bench_scoring.offer_requests(server.server_address[1], requests, 2, 0.1)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(received) > 2 and all(latency > 0 for latency, _, _ in received)
    answers = [[number / 100] for number in range(20)]
    if fault:
        with pytest.raises(RuntimeError, match='wrong answer'):
            bench_scoring.check_answers(received, answers)
    else:
        bench_scoring.check_answers(received, answers)


@pytest.mark.end_to_end
def test_the_load_uses_the_cpu_and_ends_with_the_block():
    with bench_scoring.Load() as load:
        used = bench_scoring.cpu_seconds([load.process.pid])
        while bench_scoring.cpu_seconds([load.process.pid]) == used:
            pass
    assert load.process.returncode is not None


@pytest.fixture
def command(tmp_path):
    """The benchmark with a small model, in the packages of this interpreter: nothing to install."""
    pytest.importorskip('inference_schema.parameter_types.pandas_parameter_type')
    register(tmp_path / 'registry', 1)
    packages = bench_scoring.scoring_packages()
    for name, extra in (('scoring', []), ('challenge', bench_scoring.CHALLENGE_PACKAGES)):
        venv = tmp_path / 'scoring' / f'venv-{name}'
        (venv / 'bin').mkdir(parents=True)
        (venv / 'bin' / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (venv / 'bin' / 'python').chmod(0o755)
        (venv / 'installed.txt').write_text('\n'.join(packages + extra))
    return [sys.executable, str(ROOT / 'scripts' / 'bench_scoring.py'), '--model-name', NAME,
            '--registry', str(tmp_path / 'registry'), '--out', str(tmp_path), '--rounds', '1']


@pytest.mark.end_to_end
def test_small_benchmark(command, tmp_path):
    subprocess.run(command + ['--seconds', '0.2'], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / 'scoring.json').read_text())
    for name, (_, _, measures) in SCRIPTS.items():
        assert set(results[name]) == set(measures) | {'start', 'memory'}
        assert all(one['rate'] > 0 for measure in measures for one in results[name][measure])
        assert all(one['megabytes'] > 20 for one in results[name]['memory'])
    text = (tmp_path / 'scoring.md').read_text()
    assert all(f'| {label} |' in text for label, *_ in bench_scoring.TARGETS)
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
    assert [pid for pid in servers if Path(f'/proc/{pid}').exists()] == []
