"""Scoring speed, start-up and memory: this score.py against other scripts on the same server.

    python scripts/bench_scoring.py --registry outputs/registry --model-name safe_driver_model \
        --out outputs/bench

Compared are: ours, with the settings of deployment.json; a `starter` (json, numpy, the lightgbm
package) and a `pandas` script, as the earlier challenges leave them, in an environment that holds
scikit-learn and pandas as theirs does; and a `null` script that answers a constant, the limit of
the server as it comes. In each round, in an order that rotates, each has a server of its own, quiet
and beside a training of two threads. Every answer is compared with the score that it must hold.
"""
import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench_report
import dependencies
import serve
import smoke_test

PROGRAMS = Path(__file__).resolve().parent / 'bench'
CHALLENGE_PACKAGES = ['pandas==2.3.3', 'scikit-learn==1.7.2']
LOADED = '1 row, CPU load'
CLIENTS = {'1 row': 4, '1 row as object': 4, '100 rows': 2, '10000 rows': 1, LOADED: 4}
# rows of a request: how many different requests
BODIES = {1: 2000, 100: 200, 10000: 4}
# name: file, environment, measures
SCRIPTS = {
    'ours': (serve.SCORING / 'score.py', 'scoring', tuple(CLIENTS)),
    'starter': (PROGRAMS / 'starter_score.py', 'challenge', (
        '1 row', '100 rows', '10000 rows', LOADED)),
    'pandas': (PROGRAMS / 'pandas_score.py', 'challenge', ('1 row as object',)),
    'null': (PROGRAMS / 'null_score.py', 'scoring', ('1 row', LOADED)),
}
START, MEMORY = 'start-up to the first 200, s', 'memory after load (PSS), MB'
FIGURES = {f'{measure}, {what}': form for measure in CLIENTS
           for what, form in (('requests/s', '.1f'), ('p50 ms', '.2f'), ('p99 ms', '.2f'))}
FIGURES.update({START: '.2f', MEMORY: '.0f'})
# figure of ours, over whose: at least this for a rate, at most for a time or memory
LIMITS = (
    ('1 row, requests/s', 'null', 0.85),
    (f'{LOADED}, requests/s', 'starter', 7),
    ('1 row as object, requests/s', 'pandas', 14),
    ('100 rows, requests/s', 'starter', 1.0),
    ('10000 rows, requests/s', 'starter', 1.3),
    (START, 'starter', 0.50),
    (MEMORY, 'starter', 0.55),
)
# Seconds of requests, checked but not counted, before a measurement.
WARM_UP = 0.5
# Seconds, for a server's start and for an answer.
DEADLINE = 60.0
MORE_THAN_AN_ANSWER = 1 << 20


def http_request(payload):
    """A whole HTTP request as bytes, its body a value as JSON."""
    body = json.dumps(payload).encode()
    return (b'POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
            b'Content-Length: %d\r\nConnection: close\r\n\r\n' % len(body)) + body


def exchange(port, request):
    """Send one request on a connection of its own; (status, body) of the answer, as bytes.

    It is woken once, when the server closes, since on this machine the server must do without what
    the client takes of the processor. Raises OSError where the connection breaks.
    """
    with socket.create_connection(('127.0.0.1', port), DEADLINE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, MORE_THAN_AN_ANSWER)
        connection.sendall(request)
        answer = connection.recv(MORE_THAN_AN_ANSWER)
    head, _, body = answer.partition(b'\r\n\r\n')
    return head[9:12], body


def is_right(status, body, scores):
    """Whether an answer is exactly the expected one."""
    try:
        return status == b'200' and json.loads(body.decode())['result'] == scores
    except (ValueError, LookupError, TypeError):
        return False


def offer_requests(port, requests, answers, clients, seconds):
    """Post different bodies from so many clients for so long: (requests/s, [seconds of each]).

    Raises RuntimeError if an answer is not exactly the expected one, and OSError if one is lost.
    """
    numbers, began = itertools.count(), time.perf_counter()

    def client(_):
        received, started = [], began
        while started < began + seconds:
            index = next(numbers) % len(requests)
            status, body = exchange(port, requests[index])
            ended = time.perf_counter()
            received.append((ended - started, index, status, body))
            started = ended
        return received

    with ThreadPoolExecutor(clients) as pool:
        received = list(itertools.chain.from_iterable(pool.map(client, range(clients))))
    elapsed = time.perf_counter() - began
    # Only now: the server must do without what this takes of the processor.
    for _, index, status, body in received:
        if not is_right(status, body, answers[index]):
            raise RuntimeError(f'wrong answer: status {status.decode()}, {body[:400]}')
    return len(received) / elapsed, [latency for latency, *_ in received]


def family(pid):
    """The ids of a process and all its descendants."""
    found = [pid]
    for task in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def megabytes(pid, kind='Pss'):
    """Memory of a process and its descendants. Pss: with the fair share of what others share."""
    rollups = [Path(f'/proc/{member}/smaps_rollup').read_text() for member in family(pid)]
    return sum(int(re.search(rf'^{kind}: +(\d+)', text, re.M).group(1)) for text in rollups) / 1024


@contextlib.contextmanager
def running(command, **options):
    """A process that ends with the block.

    It has a session of its own: Linux shares the processor among sessions, as a host does among
    containers, and not among their threads.
    """
    with subprocess.Popen([str(word) for word in command], start_new_session=True,
                          **options) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def training_load():
    with running([sys.executable, PROGRAMS / 'training_load.py'], stdout=subprocess.PIPE) as load:
        load.stdout.readline()
        yield


def wait_for_200(server, port, request):
    """Raises RuntimeError if the server ends, is too slow or answers anything else."""
    until = time.perf_counter() + DEADLINE
    while server.poll() is None and time.perf_counter() < until:
        with contextlib.suppress(OSError):
            status, body = exchange(port, request)
            if status == b'200':
                return
            raise RuntimeError(f'the first request got status {status.decode()}: {body[:200]}')
        time.sleep(0.005)
    raise RuntimeError('the server did not start')


def measure_script(name, pythons, model_folder, prepared, seconds, log):
    """All figures of one script on a server of its own: {figure: number}."""
    script, venv, measures = SCRIPTS[name]
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environ = {key: value for key, value in os.environ.items()
               if key not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    environ.update(AML_APP_ROOT=str(script.parent), AZUREML_MODEL_DIR=str(model_folder))
    if name == 'ours':
        environ = serve.server_environ(model_folder, environ, model_folder.parent / '.openapi')
    found, began = {}, time.perf_counter()
    with running([pythons[venv], '-m', serve.SERVER, '--entry_script', script, '--port', port],
                 env=environ, stdout=log, stderr=subprocess.STDOUT) as server:
        requests, _ = prepared[measures[0]]
        wait_for_200(server, port, requests[0])
        found[START] = time.perf_counter() - began
        for measure in measures:
            requests, answers = prepared[measure]
            answers = [[0.03]] * len(requests) if name == 'null' else answers
            with training_load() if measure == LOADED else contextlib.nullcontext():
                offer_requests(port, requests, answers, CLIENTS[measure], min(WARM_UP, seconds))
                rate, latencies = offer_requests(port, requests, answers, CLIENTS[measure], seconds)
            found[f'{measure}, requests/s'] = rate
            found[f'{measure}, p50 ms'] = 1000 * statistics.median(latencies)
            found[f'{measure}, p99 ms'] = 1000 * sorted(latencies)[99 * len(latencies) // 100]
        found[MEMORY] = megabytes(server.pid)
    return found


def scoring_packages():
    """What conda_dependencies.yml lists for scoring, for pip."""
    return [package.replace('=', '==', 1) if conda else package
            for conda, package, tags in dependencies.parse(dependencies.LIST.read_text())
            if 'scoring' in tags and 'cloud' not in tags and not package.startswith('python=')]


def build_venv(folder, packages):
    """The interpreter of a virtual environment with these packages, made unless it is there."""
    python, stamp = folder / 'bin' / 'python', folder / 'installed.txt'
    if not stamp.exists() or stamp.read_text() != '\n'.join(packages):
        print(f"Installing {', '.join(packages)} into {folder}", flush=True)
        subprocess.run([sys.executable, '-m', 'venv', '--clear', str(folder)], check=True)
        subprocess.run([str(python), '-m', 'pip', 'install', '-q', '--disable-pip-version-check'] +
                       packages, check=True)
        stamp.write_text('\n'.join(packages))
    return python


def prepare_requests(model_text):
    """{measure: (requests, expected scores)}: random rows, scored by lightgbm."""
    import lightgbm
    import numpy
    rng, model = random.Random(20), lightgbm.Booster(model_str=model_text)
    columns, prepared = model.feature_name(), {}
    for measure in CLIENTS:
        size = int(measure.split()[0])
        rows = smoke_test.random_rows(rng, BODIES[size] * size)
        scores = model.predict(numpy.array(rows, dtype=float)).tolist()
        if 'object' in measure:
            rows = [dict(zip(columns, row)) for row in rows]
        firsts = range(0, len(rows), size)
        prepared[measure] = ([http_request({'data': rows[first:first + size]}) for first in firsts],
                             [scores[first:first + size] for first in firsts])
    return prepared


def limits(rounds):
    """What scoring is held to, for bench_report.check()."""
    return [(f'{figure}: ours / {other}', 'at least' if 'requests/s' in figure else 'at most',
             bound, bench_report.ratios(rounds, figure, 'ours', other))
            for figure, other, bound in LIMITS]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--registry', type=Path, required=True, help='folder of registered models')
    parser.add_argument('--model-name', required=True, help='name of the registered model')
    parser.add_argument('--rounds', type=int, choices=range(1, 100), metavar='1..99', default=5,
                        help='how many (default 5)')
    parser.add_argument('--seconds', type=float, default=3.0, help='of each measurement')
    args = parser.parse_args(argv)
    if not Path('/proc/self/smaps_rollup').exists():
        parser.error('it reads /proc, which only Linux has')
    # The servers are sessions of their own and would outlive a benchmark that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('error: ended by SIGTERM'))
    folder = args.out.resolve() / 'scoring'
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model_folder = serve.newest_version(args.registry, args.model_name)
        packages = scoring_packages()
        pythons = {'scoring': build_venv(folder / 'venv-scoring', packages),
                   'challenge': build_venv(folder / 'venv-challenge',
                                           packages + CHALLENGE_PACKAGES)}
        prepared = prepare_requests((model_folder / 'model' / 'model.txt').read_text())
        with open(str(folder / 'servers.log'), 'w') as log:
            rounds = [bench_report.run_round(number, list(SCRIPTS), measure_script, pythons,
                                             model_folder, prepared, args.seconds, log)
                      for number in range(1, args.rounds + 1)]
    except (OSError, RuntimeError, ValueError, LookupError,
            subprocess.CalledProcessError) as error:
        print(f"error: {error}; the servers' log is {folder / 'servers.log'}", file=sys.stderr)
        return 1
    title = f'Scoring, {args.rounds} rounds, {os.cpu_count()} cores'
    bars = [name for name in FIGURES if not name.endswith('ms')]
    bench_report.write(args.out / 'scoring', title, rounds, FIGURES, limits(rounds), bars)
    return 0


if __name__ == '__main__':
    sys.exit(main())
