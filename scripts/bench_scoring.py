"""Scoring speed, start-up and memory: this score.py against other scripts on the same server.

    python scripts/bench_scoring.py --registry outputs/registry --model-name safe_driver_model \
        --out outputs/bench

In rotation, several rounds, quiet and beside a training of two threads. Compared are: ours, with
the settings of deployment.json; a `starter` (json, numpy, the lightgbm package) and a `pandas`
script, as the earlier challenges leave them, in an environment that holds scikit-learn and pandas
as theirs does; a `null` script that answers a constant, the limit of the server as it comes; and
`starter-slim`, the starter in the environment of ours, to show how much of the difference the
environment makes. Every answer is compared with the score that it must hold. Server, load and
client are a session each: Linux then shares the processor among the three, as a host does among
containers, and not among their threads. Beside the load the scripts take turns of a second, since
a machine's speed drifts from minute to minute and the load makes the more of it.
"""
import argparse
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

ROOT = Path(__file__).resolve().parent.parent
CHALLENGE_PACKAGES = ('pandas==2.3.3', 'scikit-learn==1.7.2')
LOADED = '1 row, CPU load'
CLIENTS = {'1 row': 4, '1 row as object': 4, '100 rows': 2, '10000 rows': 1, LOADED: 4}
ROWS = {'1 row': 1, '1 row as object': 1, '100 rows': 100, '10000 rows': 10000, LOADED: 1}
TURNS = 6
# Seconds of requests, checked but not counted, before a measurement.
WARM_UP = 0.5
BODIES = {1: 2000, 100: 200, 10000: 4}
STARTER = '''
import json, os
import lightgbm, numpy

def init():
    global model
    model = lightgbm.Booster(model_file=os.environ["AZUREML_MODEL_DIR"] + "/model/model.txt")

def run(raw_data, request_headers):
    data = numpy.array(json.loads(raw_data)["data"])
    result = model.predict(data)
    print(json.dumps({"RequestId": request_headers.get("X-Ms-Request-Id", ""),
                      "TraceParent": request_headers.get("Traceparent", ""),
                      "NumberOfPredictions": len(result)}))
    return {"result": result.tolist()}
'''
PANDAS = '''
import os
import lightgbm, numpy, pandas
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.schema_decorators import input_schema, output_schema

sample = pandas.DataFrame([%s])

def init():
    global model
    model = lightgbm.Booster(model_file=os.environ["AZUREML_MODEL_DIR"] + "/model/model.txt")

@input_schema("data", PandasParameterType(sample))
@output_schema(NumpyParameterType(numpy.array([0.0])))
def run(data):
    return {"result": model.predict(data).tolist()}
'''
NULL = '''
def init():
    pass

def run(raw_data):
    return {"result": [0.03]}
'''
NULL_ANSWERS = [[0.03]] * max(BODIES.values())
# script: (environment, measures)
SCRIPTS = {
    'ours': ('scoring', tuple(ROWS)),
    'starter': ('challenge', ('1 row', '100 rows', '10000 rows', LOADED)),
    'starter-slim': ('scoring', ('1 row', '100 rows', '10000 rows', LOADED)),
    'pandas': ('challenge', ('1 row as object',)),
    'null': ('scoring', ('1 row', LOADED)),
}
# Ends by itself soon after the benchmark was killed.
LOAD = '''
import os
import lightgbm, numpy
random, parent = numpy.random.RandomState(1), os.getppid()
data = lightgbm.Dataset(random.rand(50000, 57), random.randint(0, 2, 50000)).construct()
print(flush=True)
while os.getppid() == parent:
    lightgbm.train({"objective": "binary", "num_leaves": 60, "num_threads": 2, "verbose": -1},
                   data, 50)
'''
# label, measure, what of it, against, least ratio, greatest ratio
TARGETS = (
    ('1 row, requests/s against null', '1 row', 'rate', 'null', 0.85, None),
    ('1 row beside the load, requests/s against starter', LOADED, 'rate', 'starter', 7, None),
    ('1 row as object, requests/s against pandas', '1 row as object', 'rate', 'pandas', 14, None),
    ('100 rows, requests/s against starter', '100 rows', 'rate', 'starter', 1.0, None),
    ('10000 rows, requests/s against starter', '10000 rows', 'rate', 'starter', 1.3, None),
    ('start-up to the first 200 against starter', 'start', 'seconds', 'starter', None, 0.50),
    ('memory after load against starter', 'memory', 'megabytes', 'starter', None, 0.55),
)
TICK = os.sysconf('SC_CLK_TCK')
START_DEADLINE = 60.0
# Bytes. A client waits for more than any answer holds, so it is woken when the server closes.
MORE_THAN_AN_ANSWER, PIECE = 1 << 20, 1 << 16
# A measurement is spoilt if other processes took more than this share of one core.
FOREIGN_SHARE = 0.10


def random_rows(rng, model_text, count):
    """`count` rows within the ranges that the model file states for its columns."""
    infos = next(line for line in model_text.splitlines() if line.startswith('feature_infos='))
    ranges = []
    for info in infos.partition('=')[2].split():
        low, _, high = info.strip('[]').partition(':')
        ranges.append((float(low), float(high)) if high else (0.0, 1.0))
    return [[round(rng.uniform(low, high), 9) if high - low < 4 and high != int(high)
             else rng.randint(int(low), int(high)) for low, high in ranges] for _ in range(count)]


def http(body):
    """A whole HTTP request as bytes."""
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


def offer(port, requests, clients, seconds):
    """Post different bodies over `clients` connections at a time for `seconds`.

    Returns [(seconds, index of the request, whole answer), ...]. One thread serves all
    connections, so that the server never waits for a lock of this process: it goes on only when a
    client has closed. It wakes once for each answer and takes as little of the processor as it
    can, since on this machine the server must do without what it takes. Raises OSError where a
    connection breaks, RuntimeError where no answer comes.
    """
    selector, received, sent = selectors.DefaultSelector(), [], 0

    def connect():
        nonlocal sent
        index, sent = sent % len(requests), sent + 1
        began, request, connection = time.perf_counter(), requests[index], socket.socket()
        connection.connect(('127.0.0.1', port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, MORE_THAN_AN_ANSWER)
        connection.setblocking(False)
        left = memoryview(request)[connection.send(request):]
        selector.register(connection, selectors.EVENT_WRITE if left else selectors.EVENT_READ,
                          {'index': index, 'left': left, 'pieces': [], 'began': began})

    def send(connection, state):
        state['left'] = state['left'][connection.send(state['left']):]
        if not state['left']:
            selector.modify(connection, selectors.EVENT_READ, state)

    def receive(connection, state):
        """Whether the answer is whole: whether the server has closed."""
        try:
            while True:
                piece = connection.recv(PIECE)
                if not piece:
                    return True
                state['pieces'].append(piece)
        except BlockingIOError:
            return False

    until = time.perf_counter() + seconds
    for _ in range(clients):
        connect()
    while selector.get_map():
        ready = selector.select(60)
        if not ready:
            raise RuntimeError('no answer within 60 s')
        for key, _ in ready:
            connection, state = key.fileobj, key.data
            if state['left']:
                send(connection, state)
            elif receive(connection, state):
                selector.unregister(connection)
                connection.close()
                received.append((time.perf_counter() - state['began'], state['index'],
                                 b''.join(state['pieces'])))
                if time.perf_counter() < until:
                    connect()
    return received


def check(received, answers):
    """Raise RuntimeError if an answer that offer() received is not exactly the expected one."""
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


def machine_seconds():
    """CPU seconds that anything used on this machine, stolen ones included."""
    fields = [int(value) for value in Path('/proc/stat').read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICK


def megabytes(pids, kind='Pss'):
    """Memory of these processes. Pss: with the fair share of what they share, also with others."""
    total = 0
    for pid in pids:
        rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith(kind + ':'))
                     .split()[1])
    return total / 1024


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(python, script, model_folder, log):
    """Start the inference server on a free port; (process, port)."""
    port = free_port()
    environ = {name: value for name, value in os.environ.items()
               if name not in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS')}
    if script.parent == serve.SCORING:
        environ = serve.server_environ(model_folder, environ)
    environ.update(AZUREML_MODEL_DIR=str(model_folder), AML_APP_ROOT=str(script.parent))
    command = [str(python), '-m', 'azureml_inference_server_http', '--entry_script', str(script),
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
        self.process = subprocess.Popen([sys.executable, '-c', LOAD], stdout=subprocess.PIPE,
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
    used, everything = cpu_seconds(pids), machine_seconds()
    ours, began = cpu_seconds(own), time.perf_counter()
    received = offer(port, requests, CLIENTS[measure], seconds)
    elapsed = time.perf_counter() - began
    used = cpu_seconds(pids) - used
    others = machine_seconds() - everything - used - (cpu_seconds(own) - ours)
    check(received, NULL_ANSWERS if name == 'null' else answers)
    latencies = sorted(latency for latency, _, _ in received)
    return {'rate': len(latencies) / elapsed, 'p50': 1000 * statistics.median(latencies),
            'p99': 1000 * latencies[int(0.99 * (len(latencies) - 1))],
            'cpu': 1000 * used / len(latencies), 'others': others / elapsed}


def install(folder, extra):
    """A virtual environment with the scoring packages of conda_dependencies.yml and `extra`."""
    python = folder / 'bin' / 'python'
    listed = [package if '==' in package else package.replace('=', '==')
              for _, package, tags in dependencies.parse(dependencies.LIST.read_text())
              if 'scoring' in tags and 'cloud' not in tags and not package.startswith('python=')]
    packages, stamp = listed + list(extra), folder / 'installed.txt'
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


def prepare(model_text):
    """(columns, {measure: (requests, expected scores)}): random rows, scored by lightgbm."""
    import lightgbm
    import numpy
    rng, model = random.Random(20), lightgbm.Booster(model_str=model_text)
    columns, prepared = model.feature_name(), {}
    for measure, size in ROWS.items():
        requests, answers = [], []
        for _ in range(BODIES[size]):
            rows = random_rows(rng, model_text, size)
            answers.append(model.predict(numpy.array(rows, dtype=float)).tolist())
            data = [dict(zip(columns, row)) for row in rows] if 'object' in measure else rows
            requests.append(http(json.dumps({'data': data}).encode()))
        prepared[measure] = requests, answers
    return columns, prepared


def write_scripts(folder, columns):
    """{script: path}; the compared scripts as files in a folder each, ours where it is."""
    sample = '{%s}' % ', '.join('%r: 0.5' % name for name in columns)
    paths = {'ours': ROOT / 'scoring' / 'score.py'}
    for name, text in (('starter', STARTER), ('starter-slim', STARTER), ('pandas', PANDAS % sample),
                       ('null', NULL)):
        paths[name] = folder / name / 'score.py'
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(text.lstrip())
    return paths


def one_server(name, python, script, model_folder, prepared, seconds, log):
    """All measurements of one script on a fresh server, without load: {measure: figures}."""
    found = {}
    requests, _ = prepared['1 row as object' if name == 'pandas' else '1 row']
    everything, ours, began = machine_seconds(), cpu_seconds([os.getpid()]), time.perf_counter()
    server, port = start(python, script, model_folder, log)
    try:
        found['start'] = {'seconds': first_answer(server, port, requests[0])}
        others = machine_seconds() - everything - cpu_seconds(family(server.pid)) - (
            cpu_seconds([os.getpid()]) - ours)
        found['start']['others'] = others / (time.perf_counter() - began)
        for measure in SCRIPTS[name][1]:
            if measure != LOADED:
                offer_and_watch(name, measure, server, port, prepared, min(WARM_UP, seconds))
                found[measure] = offer_and_watch(name, measure, server, port, prepared, seconds)
        found['memory'] = {'megabytes': megabytes(family(server.pid)), 'others': 0.0}
    finally:
        server.terminate()
        server.wait()
    return found


def beside_the_load(order, pythons, scripts, model_folder, prepared, seconds, log):
    """The scripts' turns beside one load, each on a server of its own: {script: [figures]}."""
    names = [name for name in order if LOADED in SCRIPTS[name][1]]
    servers, found = {}, {name: [] for name in names}
    try:
        for name in names:
            servers[name] = start(pythons[SCRIPTS[name][0]], scripts[name], model_folder, log)
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


def enough(results, rounds):
    return all(sum(not spoilt(figures) for figures in measured) >= rounds
               for measures in results.values() for measured in measures.values())


def report(table, results):
    """The tables as Markdown: all figures, the targets, the spoilt measurements."""
    lines = ['| script | measure | requests/s | p50 ms | p99 ms | CPU ms a request | spoilt |',
             '|---|---|---|---|---|---|---|']
    for script, measures in table.items():
        for measure in ROWS:
            if measure in measures:
                row = measures[measure]
                bad = sum(map(spoilt, results[script][measure]))
                lines.append('| %s | %s | %.1f | %.2f | %.2f | %.2f | %d of %d |' % (
                    script, measure, row['rate'], row['p50'], row['p99'], row['cpu'], bad,
                    len(results[script][measure])))
    lines += ['', '| script | start-up to the first 200, s | memory after load (PSS), MB |',
              '|---|---|---|']
    for script, measures in table.items():
        lines.append('| %s | %.2f | %.0f |' % (script, measures['start']['seconds'],
                                               measures['memory']['megabytes']))
    lines += ['', '| ratio of medians | must be | is | |', '|---|---|---|---|']
    for label, wanted, ratio, reached in ratios(table):
        lines.append(f"| {label} | {wanted} | {ratio:.2f} | {'reached' if reached else 'MISSED'} |")
    return '\n'.join(lines)


def ratios(table):
    """(label, what it must be, ratio, whether it is) for each of TARGETS."""
    for label, measure, figure, other, least, most in TARGETS:
        ratio = table['ours'][measure][figure] / table[other][measure][figure]
        if least is not None:
            yield label, f'at least {least:g}', ratio, ratio >= least
        else:
            yield label, f'at most {most:g}', ratio, ratio <= most


def draw(table, path):
    """One panel of bars per measure, a bar per script."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    panels = [('%s, %d client%s: requests/s' % (measure, CLIENTS[measure],
                                                's' * (CLIENTS[measure] > 1)),
               measure, 'rate', '%.4g') for measure in ROWS]
    panels += [('start-up to the first 200: seconds', 'start', 'seconds', '%.2f'),
               ('memory after load: MB', 'memory', 'megabytes', '%.0f')]
    colours = dict(zip(SCRIPTS, ('#1b6ca8', '#c98b2b', '#e3c58e', '#b5513f', '#9a9a9a')))
    figure, axes = pyplot.subplots(4, 2, figsize=(10, 10))
    axes[-1][-1].axis('off')
    axes[-1][-1].text(0, 1, '\n'.join(f'{ratio:.2f}  {label}\n         ({wanted})'
                                      for label, wanted, ratio, _ in ratios(table)),
                      fontsize=8.5, va='top')
    for axis, (title, measure, key, text) in zip(axes.flat, panels):
        found = [(script, measures[measure][key]) for script, measures in table.items()
                 if measure in measures]
        bars = axis.barh([script for script, _ in found], [value for _, value in found],
                         color=[colours[script] for script, _ in found])
        axis.bar_label(bars, [' ' + text % value for _, value in found], fontsize=9)
        axis.set_ylim(len(SCRIPTS) - 0.5, -0.6)
        axis.margins(x=0.15)
        axis.set_title(title, fontsize=10, loc='left')
        axis.spines[['top', 'right', 'bottom', 'left']].set_visible(False)
        axis.tick_params(length=0)
        axis.set_xticks([])
    figure.suptitle("Scoring scripts on Azure ML's inference server, medians", x=0.02, ha='left')
    figure.tight_layout()
    figure.savefig(str(path), dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    parser.add_argument('--registry', type=Path, required=True, help='folder of registered models')
    parser.add_argument('--model-name', required=True, help='name of the registered model')
    parser.add_argument('--rounds', type=int, default=5, help='good rounds, at least (default 5)')
    parser.add_argument('--seconds', type=float, default=3.0, help='of each measurement')
    args = parser.parse_args(argv)
    if not Path('/proc/self/smaps_rollup').exists():
        print('error: this benchmark reads /proc, which only Linux has', file=sys.stderr)
        return 1
    # The servers are sessions of their own and would outlive a benchmark that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('error: ended by SIGTERM'))
    folder = args.out.resolve() / 'scoring'
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model_folder = serve.newest_version(args.registry, args.model_name)
        pythons = {'scoring': install(folder / 'venv-scoring', ()),
                   'challenge': install(folder / 'venv-challenge', CHALLENGE_PACKAGES)}
        columns, prepared = prepare((model_folder / 'model' / 'model.txt').read_text())
        scripts = write_scripts(folder, columns)
        results, order = {}, list(SCRIPTS)
        with open(str(folder / 'servers.log'), 'w') as log:
            for number in range(2 * args.rounds):
                if number >= args.rounds and enough(results, args.rounds):
                    break
                for script in order:
                    found = one_server(script, pythons[SCRIPTS[script][0]], scripts[script],
                                       model_folder, prepared, args.seconds, log)
                    for measure, figures in found.items():
                        results.setdefault(script, {}).setdefault(measure, []).append(figures)
                    print('round %d, %s: start %.2f s, %s' % (
                        number + 1, script, found['start']['seconds'], ', '.join(
                            '%s %.1f/s%s' % (measure, figures['rate'],
                                             ' (spoilt)' * spoilt(figures))
                            for measure, figures in found.items() if 'rate' in figures)),
                          flush=True)
                found = beside_the_load(order, pythons, scripts, model_folder, prepared,
                                        args.seconds, log)
                for script, turns in found.items():
                    results[script].setdefault(LOADED, []).extend(turns)
                print('round %d, %s: %s' % (number + 1, LOADED, ', '.join(
                    '%s %.1f/s%s' % (script, statistics.median(turn['rate'] for turn in turns),
                                     ' (%d spoilt)' % sum(map(spoilt, turns))
                                     if any(map(spoilt, turns)) else '')
                    for script, turns in found.items())), flush=True)
                order = order[1:] + order[:1]
    except subprocess.CalledProcessError as error:
        print('error: "%s" failed with exit code %d' % (' '.join(map(str, error.cmd)),
                                                        error.returncode), file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        print(f"error: {error}; the servers wrote {folder / 'servers.log'}", file=sys.stderr)
        return 1
    table = medians({script: results[script] for script in SCRIPTS})
    text = '%d rounds on %d cores, Python %s, %s\n\n%s' % (
        len(results['ours']['start']), os.cpu_count(), sys.version.split()[0],
        time.strftime('%d %B %Y'), report(table, results))
    (args.out / 'scoring.md').write_text(text + '\n')
    (args.out / 'scoring.json').write_text(json.dumps(results, indent=1) + '\n')
    draw(table, args.out / 'scoring.png')
    print(text)
    if not enough(results, args.rounds):
        print('warning: other processes used this machine; spoilt rounds are left out where good '
              'ones are there', file=sys.stderr)
    print('written: %s' % ', '.join(str(args.out / ('scoring.' + kind))
                                    for kind in ('md', 'json', 'png')))
    return 0


if __name__ == '__main__':
    sys.exit(main())
