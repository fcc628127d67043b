import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ROOT

import bench_scoring
from bench_scoring import FOREIGN_SHARE, LOADED, ROWS, SCRIPTS, TARGETS, TURNS
from served import COLUMNS, NAME, make_rows, register, scores

pytestmark = pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(),
                                reason='the benchmark reads /proc of Linux')


@pytest.fixture(scope='module')
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp('registry')
    return folder, register(folder, 1)


def figures(rate, others=0.0):
    return {'rate': rate, 'p50': 1.0, 'p99': 2.0, 'cpu': 1.0, 'others': others}


def test_medians_leave_spoilt_rounds_out_unless_all_are():
    spoilt = FOREIGN_SHARE * 2
    results = {'ours': {'1 row': [figures(1), figures(2), figures(3), figures(99, spoilt)],
                        '100 rows': [figures(5, spoilt), figures(7, spoilt)]}}
    table = bench_scoring.medians(results)
    assert (table['ours']['1 row']['rate'], table['ours']['100 rows']['rate']) == (2, 6)
    assert not bench_scoring.enough(results, 1)
    del results['ours']['100 rows']
    assert bench_scoring.enough(results, 3) and not bench_scoring.enough(results, 4)


def test_every_target_compares_what_is_measured():
    for _, measure, _, other, least, most in TARGETS:
        assert (least is None) != (most is None)
        if measure in ROWS:
            assert measure in SCRIPTS['ours'][1] and measure in SCRIPTS[other][1]


def test_a_ratio_is_reached_at_its_bound():
    table = {name: {measure: dict(figures(1), seconds=1, megabytes=1)
                    for measure in tuple(ROWS) + ('start', 'memory')} for name in SCRIPTS}
    for measure, figure, value in (('1 row', 'rate', 0.85), ('start', 'seconds', 0.5),
                                   ('memory', 'megabytes', 0.56)):
        table['ours'][measure][figure] = value
    reached = {label: is_reached for label, _, _, is_reached in bench_scoring.ratios(table)}
    assert reached['1 row, requests/s against null']
    assert reached['start-up to the first 200 against starter']
    assert not reached['memory after load against starter']


@pytest.mark.parametrize('fault', [None, 'score', 'status', 'name', 'cut', 'empty'])
def test_a_wrong_answer_ends_the_benchmark(registry, fault):
    model = registry[1]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers['Content-Length'])).decode())['data']
            found = [0.5] if fault == 'score' else scores(model, rows)
            body = json.dumps({'scores' if fault == 'name' else 'result': found}).encode()
            self.send_response(500 if fault == 'status' else 200)
            self.end_headers()
            self.wfile.write({'cut': body[:-1], 'empty': b''}.get(fault, body))

        def log_message(self, *_):
            pass

    many = make_rows(20, seed=4)
    requests = [bench_scoring.http(json.dumps({'data': [row]}).encode()) for row in many]
    answers = [[score] for score in scores(model, many)]
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        received = bench_scoring.offer(server.server_address[1], requests, 2, 0.1)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(received) > 2 and all(latency > 0 for latency, _, _ in received)
    if fault:
        with pytest.raises(RuntimeError, match='wrong answer'):
            bench_scoring.check(received, answers)
    else:
        bench_scoring.check(received, answers)


def test_rows_are_within_the_models_ranges_and_differ(registry):
    import random
    text = (registry[0] / NAME / '1' / 'model' / 'model.txt').read_text()
    rows = bench_scoring.random_rows(random.Random(1), text, 50)
    assert len(set(map(tuple, rows))) == 50 and {len(row) for row in rows} == {len(COLUMNS)}
    assert all(-1 <= value <= 9 for row in rows for value in row)


def test_the_load_uses_the_cpu_and_ends_with_the_block():
    with bench_scoring.Load() as load:
        used = bench_scoring.cpu_seconds([load.process.pid])
        while bench_scoring.cpu_seconds([load.process.pid]) == used:
            pass
    assert load.process.returncode is not None


def test_this_process_is_measured():
    pids = bench_scoring.family(os.getpid())
    assert pids[0] == os.getpid()
    assert 5 < bench_scoring.megabytes(pids[:1]) <= bench_scoring.megabytes(pids[:1], 'Rss')
    assert bench_scoring.cpu_seconds(pids[:1]) > 0


@pytest.fixture(scope='module')
def prepared(registry):
    return bench_scoring.prepare((registry[0] / NAME / '1' / 'model' / 'model.txt').read_text())


@pytest.mark.end_to_end
@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_every_script_serves_right_scores(registry, prepared, name, tmp_path):
    if name == 'pandas':
        pytest.importorskip('inference_schema.parameter_types.pandas_parameter_type')
    version, (columns, prepared) = registry[0] / NAME / '1', prepared
    paths = bench_scoring.write_scripts(tmp_path, columns)
    with open(str(tmp_path / 'log.txt'), 'w') as log:
        found = bench_scoring.one_server(name, sys.executable, paths[name], version, prepared, 0.2,
                                         log)
    assert set(found) == set(SCRIPTS[name][1]) - {LOADED} | {'start', 'memory'}
    assert found['start']['seconds'] > 0 and found['memory']['megabytes'] > 20


@pytest.mark.end_to_end
def test_scripts_take_turns_beside_the_load(registry, prepared, tmp_path):
    pythons = {venv: sys.executable for venv, _ in SCRIPTS.values()}
    with open(str(tmp_path / 'log.txt'), 'w') as log:
        found = bench_scoring.beside_the_load(
            list(SCRIPTS), pythons, bench_scoring.write_scripts(tmp_path, prepared[0]),
            registry[0] / NAME / '1', prepared[1], 0.1, log)
    assert set(found) == {name for name, (_, measures) in SCRIPTS.items() if LOADED in measures}
    assert all(len(turns) == TURNS for turns in found.values())
    assert all(turn['rate'] > 0 for turns in found.values() for turn in turns)


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.version_info < (3, 10), reason='its packages need a newer Python')
def test_no_server_outlives_a_benchmark_that_is_ended(registry, tmp_path):
    bench = subprocess.Popen(
        [sys.executable, str(ROOT / 'scripts' / 'bench_scoring.py'), '--registry', str(registry[0]),
         '--model-name', NAME, '--out', str(tmp_path)], stdout=subprocess.PIPE)
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
