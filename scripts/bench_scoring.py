"""Scoring speed, start-up and memory: this score.py against other scripts on the same server.

    python scripts/bench_scoring.py --registry outputs/registry --model-name safe_driver_model \
        --out outputs/bench

In rotation, several rounds, quiet and beside a training of two threads. Compared are: ours, with
the settings of deployment.json; a `starter` (json, numpy, the lightgbm package) and a `pandas`
script, as the earlier challenges leave them, in an environment that holds scikit-learn and pandas
as theirs does; and a `null` script that answers a constant, the limit of the server as it comes.
Every answer is compared with the score that it must hold. Server, load and client are a session
each: Linux then shares the processor among the three, as a host does among containers, and not
among their threads. Beside the load the scripts take turns of a second, since a machine's speed
drifts from minute to minute and the load makes the more of it.
"""
import argparse
import itertools
import json
import os
import random
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import dependencies
import serve
import smoke_test
from bench_training import busy_seconds

PROGRAMS = Path(__file__).resolve().parent / 'bench'
CHALLENGE_PACKAGES = ['pandas==2.3.3', 'scikit-learn==1.7.2']
LOADED = '1 row, CPU load'
CLIENTS = {'1 row': 4, '1 row as object': 4, '100 rows': 2, '10000 rows': 1, LOADED: 4}
ROWS = {'1 row': 1, '1 row as object': 1, '100 rows': 100, '10000 rows': 10000, LOADED: 1}
TURNS = 6
# Seconds of requests, checked but not counted, before a measurement.
WARM_UP = 0.5
BODIES = {1: 2000, 100: 200, 10000: 4}
NULL_ANSWERS = [[0.03]] * max(BODIES.values())
# name: (file, environment, measures)
SCRIPTS = {
    'ours': (serve.SCORING / 'score.py', 'scoring', tuple(ROWS)),
    'starter': (PROGRAMS / 'starter_score.py', 'challenge', (
        '1 row', '100 rows', '10000 rows', LOADED)),
    'pandas': (PROGRAMS / 'pandas_score.py', 'challenge', ('1 row as object',)),
    'null': (PROGRAMS / 'null_score.py', 'scoring', ('1 row', LOADED)),
}
COLOURS = dict(zip(SCRIPTS, ('#1b6ca8', '#c98b2b', '#b5513f', '#9a9a9a')))
# label, measure, what of it, against, bound of the ratio: a least rate, a greatest time or memory
TARGETS = (
    ('1 row, requests/s against null', '1 row', 'rate', 'null', 0.85),
    ('1 row beside the load, requests/s against starter', LOADED, 'rate', 'starter', 7),
    ('1 row as object, requests/s against pandas', '1 row as object', 'rate', 'pandas', 14),
    ('100 rows, requests/s against starter', '100 rows', 'rate', 'starter', 1.0),
    ('10000 rows, requests/s against starter', '10000 rows', 'rate', 'starter', 1.3),
    ('start-up to the first 200 against starter', 'start', 'seconds', 'starter', 0.50),
    ('memory after load against starter', 'memory', 'megabytes', 'starter', 0.55),
)
TICK = os.sysconf('SC_CLK_TCK')
START_DEADLINE = 60.0
# Bytes. A client waits for more than any answer holds, so it is woken when the server closes.
MORE_THAN_AN_ANSWER, PIECE = 1 << 20, 1 << 16
# A measurement is spoilt if other processes took more than this share of one core.
FOREIGN_SHARE = 0.10


def http_request(payload):
    """A whole HTTP request as bytes, its body a value as JSON."""
    body = json.dumps(payload).encode()
    return (b'POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
            b'Content-Length: %d\r\nConnection: close\r\n\r\n' % len(body)) + body


def exchange(port, request, timeout):
    """Send one request on a connection of its own; (status, body) of the answer."""
    with socket.create_connection(('127.0.0.1', port), timeout) as connection:
        connection.sendall(request)
        pieces = []
        while True:
            piece = connection.recv(1 << 20)
            if not piece:
                break
            pieces.append(piece)
    head, _, body = b''.join(pieces).partition(b'\r\n\r\n')
    return int(head.split(b' ', 2)[1]), body


class Connection:
    """One request on a connection of its own; nothing here waits for the server."""

    def __init__(self, port, request, index):
        self.began, self.index, self.pieces = time.perf_counter(), index, []
        self.socket = socket.socket()
        self.socket.connect(('127.0.0.1', port))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, MORE_THAN_AN_ANSWER)
        self.socket.setblocking(False)
        self.left = memoryview(request)
        self.send_more()

    def send_more(self):
        self.left = self.left[self.socket.send(self.left):]

    def receive_more(self):
        """Whether the answer is whole: whether the server has closed."""
        try:
            while True:
                piece = self.socket.recv(PIECE)
                if not piece:
                    return True
                self.pieces.append(piece)
        except BlockingIOError:
            return False


def offer_requests(port, requests, clients, seconds):
    """Post different bodies over `clients` connections at a time for `seconds`.

    Returns [(seconds, index of the request, whole answer), ...]. One thread serves all
    connections, so that the server never waits for a lock of this process: it goes on only when a
    client has closed. It wakes once for each answer and takes as little of the processor as it
    can, since on this machine the server must do without what it takes. Raises OSError where a
    connection breaks, RuntimeError where no answer comes.
    """
    selector, received = selectors.DefaultSelector(), []
    numbers = itertools.cycle(range(len(requests)))

    def connect():
        index = next(numbers)
        connection = Connection(port, requests[index], index)
        selector.register(connection.socket, selectors.EVENT_WRITE if connection.left else
                          selectors.EVENT_READ, connection)

    until = time.perf_counter() + seconds
    for _ in range(clients):
        connect()
    while selector.get_map():
        ready = selector.select(60)
        if not ready:
            raise RuntimeError('no answer within 60 s')
        for key, _ in ready:
            connection = key.data
            if connection.left:
                connection.send_more()
                if not connection.left:
                    selector.modify(connection.socket, selectors.EVENT_READ, connection)
            elif connection.receive_more():
                selector.unregister(connection.socket)
                connection.socket.close()
                received.append((time.perf_counter() - connection.began, connection.index,
                                 b''.join(connection.pieces)))
                if time.perf_counter() < until:
                    connect()
    return received


def check_answers(received, answers):
    """Raise RuntimeError if an answer is not exactly the expected one."""
    for _, index, answer in received:
        head, _, body = answer.partition(b'\r\n\r\n')
        try:
            right = b' 200 ' in head[:15] and json.loads(body.decode())['result'] == answers[index]
        except (ValueError, LookupError, TypeError):
            right = False
        if not right:
            raise RuntimeError(f'wrong answer: {answer[:400]}')


def family(pid):
    """The ids of a process and all its descendants."""
    found = [pid]
    for task in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def megabytes(pids, kind='Pss'):
    """Memory of these processes. Pss: with the fair share of what they share, also with others."""
    total = 0
    for pid in pids:
        rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith(kind + ':'))
                     .split()[1])
    return total / 1024


def start_server(name, pythons, model_folder, log):
    """Start the inference server with a script on a free port; (process, port)."""
    script, venv, _ = SCRIPTS[name]
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environ = {key: value for key, value in os.environ.items()
               if key not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    environ.update(AML_APP_ROOT=str(script.parent), AZUREML_MODEL_DIR=str(model_folder))
    if name == 'ours':
        environ = serve.server_environ(model_folder, environ)
    command = [str(pythons[venv]), '-m', serve.SERVER, '--entry_script', str(script),
               '--port', str(port)]
    return subprocess.Popen(command, env=environ, cwd=str(script.parent), stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True), port


def first_answer(process, port, request):
    """Seconds from now to the first 200. Raises RuntimeError if the server ends or is too slow."""
    began = time.perf_counter()
    while process.poll() is None and time.perf_counter() - began < START_DEADLINE:
        try:
            status, body = exchange(port, request, START_DEADLINE)
        except (OSError, ValueError, IndexError):
            time.sleep(0.005)
            continue
        if status == 200:
            return time.perf_counter() - began
        raise RuntimeError(f'the first request got status {status}: {body[:200]}')
    raise RuntimeError('the server did not start')


class Load:
    """A process that trains with two threads for as long as the block lasts."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / 'training_load.py')], stdout=subprocess.PIPE,
            start_new_session=True)
        self.process.stdout.readline()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def offer_and_watch(name, measure, server, port, prepared, seconds, load=None):
    """One measurement: requests/s, p50 and p99 (ms), CPU ms a request, the share of others."""
    requests, answers = prepared[measure]
    own = [os.getpid()] + ([load.process.pid] if load else [])
    pids = family(server.pid)
    used, everything = cpu_seconds(pids), busy_seconds()
    ours, began = cpu_seconds(own), time.perf_counter()
    received = offer_requests(port, requests, CLIENTS[measure], seconds)
    elapsed = time.perf_counter() - began
    used = cpu_seconds(pids) - used
    others = busy_seconds() - everything - used - (cpu_seconds(own) - ours)
    check_answers(received, NULL_ANSWERS if name == 'null' else answers)
    latencies = sorted(latency for latency, _, _ in received)
    return {'rate': len(latencies) / elapsed, 'p50': 1000 * statistics.median(latencies),
            'p99': 1000 * latencies[int(0.99 * (len(latencies) - 1))],
            'cpu': 1000 * used / len(latencies), 'others': others / elapsed}


def scoring_packages():
    """What conda_dependencies.yml lists for scoring, for pip."""
    return [package if '==' in package else package.replace('=', '==')
            for _, package, tags in dependencies.parse(dependencies.LIST.read_text())
            if 'scoring' in tags and 'cloud' not in tags and not package.startswith('python=')]


def build_venv(folder, packages):
    """The interpreter of a virtual environment with these packages, made unless it is there."""
    python, stamp = folder / 'bin' / 'python', folder / 'installed.txt'
    if stamp.exists() and stamp.read_text() == '\n'.join(packages):
        return python
    print(f"Installing {', '.join(packages)} into {folder}", flush=True)
    uv = shutil.which('uv')
    shutil.rmtree(str(folder), ignore_errors=True)
    subprocess.run([uv, 'venv', '-q', '--python', sys.executable, str(folder)] if uv else
                   [sys.executable, '-m', 'venv', str(folder)], check=True)
    subprocess.run(([uv, 'pip', 'install', '-q', '--compile-bytecode', '--python', str(python)]
                    if uv else [str(python), '-m', 'pip', 'install', '-q']) + packages, check=True)
    stamp.write_text('\n'.join(packages))
    return python


def prepare_requests(model_text):
    """{measure: (requests, expected scores)}: random rows, scored by lightgbm."""
    import lightgbm
    import numpy
    rng, model = random.Random(20), lightgbm.Booster(model_str=model_text)
    columns, prepared = model.feature_name(), {}
    for measure, size in ROWS.items():
        rows = smoke_test.random_rows(model, rng, BODIES[size] * size)
        scores = model.predict(numpy.array(rows, dtype=float)).tolist()
        if 'object' in measure:
            rows = [dict(zip(columns, row)) for row in rows]
        firsts = range(0, len(rows), size)
        prepared[measure] = ([http_request({'data': rows[first:first + size]}) for first in firsts],
                             [scores[first:first + size] for first in firsts])
    return prepared


def measure_alone(name, pythons, model_folder, prepared, seconds, log):
    """All measurements of one script on a fresh server, without load: {measure: figures}."""
    found = {}
    requests, _ = prepared['1 row as object' if name == 'pandas' else '1 row']
    everything, ours, began = busy_seconds(), cpu_seconds([os.getpid()]), time.perf_counter()
    server, port = start_server(name, pythons, model_folder, log)
    try:
        found['start'] = {'seconds': first_answer(server, port, requests[0])}
        others = busy_seconds() - everything - cpu_seconds(family(server.pid)) - (
            cpu_seconds([os.getpid()]) - ours)
        found['start']['others'] = others / (time.perf_counter() - began)
        for measure in SCRIPTS[name][2]:
            if measure != LOADED:
                offer_and_watch(name, measure, server, port, prepared, min(WARM_UP, seconds))
                found[measure] = offer_and_watch(name, measure, server, port, prepared, seconds)
        found['memory'] = {'megabytes': megabytes(family(server.pid)), 'others': 0.0}
    finally:
        server.terminate()
        server.wait()
    return found


def measure_beside_load(order, pythons, model_folder, prepared, seconds, log):
    """The scripts' turns beside one load, each on a server of its own: {script: [figures]}."""
    names = [name for name in order if LOADED in SCRIPTS[name][2]]
    servers, found = {}, {name: [] for name in names}
    try:
        for name in names:
            servers[name] = start_server(name, pythons, model_folder, log)
            first_answer(*servers[name], prepared[LOADED][0][0])
            offer_and_watch(name, LOADED, *servers[name], prepared, min(WARM_UP, seconds))
        with Load() as load:
            for _ in range(TURNS):
                for name in names:
                    found[name].append(offer_and_watch(name, LOADED, *servers[name], prepared,
                                                       min(1.0, seconds), load))
    finally:
        for server, _ in servers.values():
            server.terminate()
        for server, _ in servers.values():
            server.wait()
    return found


def spoilt(figures):
    return figures['others'] > FOREIGN_SHARE


def medians(results):
    """{script: {measure: {figure: median of the good rounds}}} of {script: {measure: [figures]}}.

    Where no round was good, all count.
    """
    table = {}
    for script, measures in results.items():
        for measure, rounds in measures.items():
            good = [figures for figures in rounds if not spoilt(figures)] or rounds
            table.setdefault(script, {})[measure] = {
                key: statistics.median(figures[key] for figures in good) for key in good[0]}
    return table


def enough_rounds(results, rounds):
    """Whether each measurement has so many good rounds."""
    return all(sum(not spoilt(figures) for figures in measured) >= rounds
               for measures in results.values() for measured in measures.values())


def describe_results(table, results):
    """The tables as Markdown: all figures, the targets, the spoilt measurements."""
    lines = ['| script | measure | requests/s | p50 ms | p99 ms | CPU ms a request | spoilt |',
             '|---|---|---|---|---|---|---|']
    for script, measures in table.items():
        for measure in ROWS:
            if measure in measures:
                row = measures[measure]
                bad = sum(map(spoilt, results[script][measure]))
                lines.append(f"| {script} | {measure} | {row['rate']:.1f} | {row['p50']:.2f} | "
                             f"{row['p99']:.2f} | {row['cpu']:.2f} | {bad} of "
                             f"{len(results[script][measure])} |")
    lines += ['', '| script | start-up to the first 200, s | memory after load (PSS), MB |',
              '|---|---|---|']
    for script, measures in table.items():
        lines.append(f"| {script} | {measures['start']['seconds']:.2f} | "
                     f"{measures['memory']['megabytes']:.0f} |")
    lines += ['', '| ratio of medians | must be | is | |', '|---|---|---|---|']
    for label, wanted, ratio, reached in compare_with_targets(table):
        lines.append(f"| {label} | {wanted} | {ratio:.2f} | {'reached' if reached else 'MISSED'} |")
    return '\n'.join(lines)


def compare_with_targets(table):
    """(label, what it must be, ratio, whether it is) for each of TARGETS."""
    for label, measure, figure, other, bound in TARGETS:
        ratio = table['ours'][measure][figure] / table[other][measure][figure]
        if figure == 'rate':
            yield label, f'at least {bound:g}', ratio, ratio >= bound
        else:
            yield label, f'at most {bound:g}', ratio, ratio <= bound


def draw_picture(table, path):
    """One panel of bars per measure, a bar per script."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    panels = [(f"{measure}, {CLIENTS[measure]} client{'s' * (CLIENTS[measure] > 1)}: requests/s",
               measure, 'rate', '.4g') for measure in ROWS]
    panels += [('start-up to the first 200: seconds', 'start', 'seconds', '.2f'),
               ('memory after load: MB', 'memory', 'megabytes', '.0f')]
    figure, axes = pyplot.subplots(4, 2, figsize=(10, 10))
    axes[-1][-1].axis('off')
    axes[-1][-1].text(0, 1, '\n'.join(f'{ratio:.2f}  {label}\n         ({wanted})'
                                      for label, wanted, ratio, _ in compare_with_targets(table)),
                      fontsize=8.5, va='top')
    for axis, (title, measure, key, form) in zip(axes.flat, panels):
        found = [(script, measures[measure][key]) for script, measures in table.items()
                 if measure in measures]
        bars = axis.barh([script for script, _ in found], [value for _, value in found],
                         color=[COLOURS[script] for script, _ in found])
        axis.bar_label(bars, [f' {value:{form}}' for _, value in found], fontsize=9)
        axis.set_ylim(len(SCRIPTS) - 0.5, -0.6)
        axis.margins(x=0.15)
        axis.set_title(title, fontsize=10, loc='left')
        axis.spines[['top', 'right', 'bottom', 'left']].set_visible(False)
        axis.tick_params(length=0)
        axis.set_xticks([])
    figure.suptitle("Scoring scripts on Azure ML's inference server, medians", x=0.02, ha='left')
    figure.tight_layout()
    figure.savefig(str(path), dpi=110)


def measure_rounds(args, pythons, model_folder, prepared, log):
    """{script: {measure: [figures of each round]}}."""
    results, order = {}, list(SCRIPTS)

    def keep(script, found):
        for measure, rounds in found.items():
            results.setdefault(script, {}).setdefault(measure, []).extend(rounds)

    for number in range(1, 2 * args.rounds + 1):
        if number > args.rounds and enough_rounds(results, args.rounds):
            break
        for script in order:
            found = measure_alone(script, pythons, model_folder, prepared, args.seconds, log)
            keep(script, {measure: [figures] for measure, figures in found.items()})
            told = ', '.join(f"{measure} {figures['rate']:.1f}/s{' (spoilt)' * spoilt(figures)}"
                             for measure, figures in found.items() if 'rate' in figures)
            print(f"round {number}, {script}: start {found['start']['seconds']:.2f} s, {told}",
                  flush=True)
        found = measure_beside_load(order, pythons, model_folder, prepared, args.seconds, log)
        for script, turns in found.items():
            keep(script, {LOADED: turns})
        told = ', '.join(f"{script} {statistics.median(turn['rate'] for turn in turns):.1f}/s "
                         f"({sum(map(spoilt, turns))} of {len(turns)} spoilt)"
                         for script, turns in found.items())
        print(f'round {number}, {LOADED}: {told}', flush=True)
        order = order[1:] + order[:1]
    return {script: results[script] for script in SCRIPTS}


def write_results(results, out):
    table = medians(results)
    text = (f"{len(results['ours']['start'])} rounds on {os.cpu_count()} cores, Python "
            f"{sys.version.split()[0]}, {time.strftime('%d %B %Y')}\n\n"
            f'{describe_results(table, results)}')
    (out / 'scoring.md').write_text(text + '\n')
    (out / 'scoring.json').write_text(json.dumps(results, indent=1) + '\n')
    draw_picture(table, out / 'scoring.png')
    print(text)
    print(f"written: {', '.join(str(out / f'scoring.{kind}') for kind in ('md', 'json', 'png'))}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--registry', type=Path, required=True, help='folder of registered models')
    parser.add_argument('--model-name', required=True, help='name of the registered model')
    parser.add_argument('--rounds', type=int, default=5, help='good rounds, at least (default 5)')
    parser.add_argument('--seconds', type=float, default=3.0, help='of each measurement')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f'--rounds is {args.rounds}: it takes one at least')
    if not Path('/proc/self/smaps_rollup').exists():
        print('error: this benchmark reads /proc, which only Linux has', file=sys.stderr)
        return 1
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
            results = measure_rounds(args, pythons, model_folder, prepared, log)
    except subprocess.CalledProcessError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        print(f"error: {error}; the servers wrote {folder / 'servers.log'}", file=sys.stderr)
        return 1
    write_results(results, args.out)
    if not enough_rounds(results, args.rounds):
        print('warning: other processes used this machine; spoilt rounds are left out where good '
              'ones are there', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
