"""Several nodes train one model: here processes, as make train NODES=3 starts them."""
import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import nodes
import sample
import tracking
import train
from conftest import CHALLENGE, DEFAULT, ROOT
from parameters import ParametersError

TRAIN = ROOT / 'training' / 'train.py'
# Runs train.py with one thing changed: what a fault does to one node, or a mistake to all of them.
DRIVER = '''
import contextlib, os, signal, sys
sys.path.insert(0, {training!r})
import console, drift, lightgbm, nodes, table, train
train.__file__ = __file__
rank, end = int(os.environ.get(nodes.RANK, 0)), None


def die(function):
    def dying(*args, **options):
        os.kill(os.getpid(), {signal})
        return function(*args, **options)
    return dying


def in_round_5(env):
    if env.iteration == 5:
        os.kill(os.getpid(), {signal})


@contextlib.contextmanager
def no_network(node):
    yield {{}}


@contextlib.contextmanager
def late_network(node):
    network, train_model = real_network(node), train.train_model

    def connect_first(*args):
        network.__enter__()
        return train_model(*args)
    train.train_model = connect_first
    yield {{'tree_learner': 'data', 'num_machines': node.size, 'pre_partition': True}}


def shorter(rows, label=None, weight=None, **options):
    less = slice(None if label is None else -50)
    return dataset(rows[less], label, weight=weight, **options) if label is None else dataset(
        rows[less], label[less], weight=weight[less], **options)


real_network, dataset = nodes.Node.network, lightgbm.Dataset
{change}
if __name__ == '__main__':
    sys.exit(console.run(train.main))
'''
AT = {
    'start': 'train.load_parameters = die(train.load_parameters)',
    'reading': 'table._parse = die(table._parse)',
    'boosting': 'lightgbm.record_evaluation = lambda _: in_round_5',
    'end': 'drift.make_profile = die(drift.make_profile)',
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'table.csv'
    assert sample.main(['--rows', '20000', '--seed', '3', '--out', str(path)]) == 0
    return path


def run(command, *flags, **options):
    """(exit code, output, process group) of a training, when its node 0 has ended."""
    with subprocess.Popen([sys.executable, str(command)] + [str(flag) for flag in flags],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, start_new_session=True, **options) as process:
        # The others write to nobody, so the output ends when node 0 does.
        said = process.stdout.read()
    return process.returncode, said, process.pid


def wait_for_all(group):
    """Wait until no process of the group is left: False if some still run after 30 s."""
    for _ in range(300):
        if subprocess.run(['pgrep', '-g', str(group)], stdout=subprocess.DEVNULL).returncode:
            return True
        nodes.time.sleep(0.1)
    return False


def drive(folder, change, data, size, name='driver.py'):
    """run() of train.py on so many nodes, after a line of Python that changes it."""
    driver = folder / name
    driver.write_text(DRIVER.format(training=str(ROOT / 'training'), signal=int(signal.SIGKILL),
                                    change=change))
    (folder / 'out').mkdir(exist_ok=True)
    return run(driver, '--data', data, '--out', folder / 'out', '--nodes', size)


@contextlib.contextmanager
def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    yield port


def environ_of(rank, size, port):
    return {nodes.SIZE: str(size), nodes.RANK: str(rank), nodes.MASTER: '127.0.0.1:6000',
            nodes.PORT: str(port), nodes.AZURE_RUN: 'run-1'}


def connected(port):
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(('127.0.0.1', port))


def message(value):
    body = json.dumps(value).encode()
    return nodes.HEAD.pack(nodes.VALUE, len(body)) + body


def in_threads(group, function):
    """[function(node) of each node], all at once."""
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(function, group))


@pytest.fixture
def three():
    with free_port() as port, ThreadPoolExecutor(3) as pool:
        first = pool.submit(nodes.meet, environ_of(0, 3, port))
        others = [pool.submit(nodes.join, environ_of(rank, 3, port)) for rank in (1, 2)]
        group = [node.result() for node in [first] + others]
    yield group
    in_threads(group, nodes.Node.part)


def test_nodes_share_values_and_gather_arrays_in_the_order_of_rank(three):
    assert in_threads(three, lambda node: node.share({'rank': node.rank})) == [
        [{'rank': 0}, {'rank': 1}, {'rank': 2}]] * 3
    # More than fits into a socket's buffers.
    parts = [np.full(500000, rank, dtype=np.float32) for rank in range(3)]
    whole, *others = in_threads(three, lambda node: node.gather(parts[node.rank]))
    assert others == [None, None]
    assert whole.dtype == np.float32 and (whole == np.concatenate(parts)).all()
    everywhere = in_threads(three, lambda node: node.gather(parts[node.rank][:3], to_all=True))
    assert [found.tolist() for found in everywhere] == [[0] * 3 + [1] * 3 + [2] * 3] * 3


def test_one_node_talks_to_nobody():
    array = np.arange(3)
    assert nodes.ALONE.share('a') == ['a'] and nodes.ALONE.gather(array) is array
    for environ in ({}, {nodes.SIZE: ''}, {nodes.SIZE: '1'}):
        with nodes.together(1, [], environ) as node, node.network() as parameters:
            assert (node.rank, node.size, parameters) == (0, 1, {})


def test_who_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(nodes, 'SECONDS_TO_COME', 0.5)
    monkeypatch.setattr(nodes, 'SECONDS_TO_EXPLAIN', 0)
    with free_port() as port, ThreadPoolExecutor(1) as pool:
        other = pool.submit(nodes.join, environ_of(2, 3, port))
        with pytest.raises(nodes.NodesError, match='^node 1 of 3 did not come within 0.5 s$'):
            nodes.meet(environ_of(0, 3, port))
        # It hears why.
        with pytest.raises(nodes.NodesError, match='^node 1 of 3 did not come'):
            other.result()


def test_a_node_without_node_0_says_where_it_looked(monkeypatch):
    monkeypatch.setattr(nodes, 'SECONDS_TO_COME', 0.2)
    monkeypatch.setattr(nodes, 'SECONDS_TO_END', 0)
    with free_port() as port, pytest.raises(nodes.NodesError) as error:
        nodes.join(environ_of(1, 2, port))
    assert str(error.value).startswith(
        f'node 1 of 2 cannot reach node 0 at 127.0.0.1, port {port}: ')
    with pytest.raises(nodes.NodesError, match='AZ_BATCH_MASTER_NODE is not set'):
        nodes.join(dict(environ_of(1, 2, port), AZ_BATCH_MASTER_NODE=''))


@pytest.mark.parametrize('name, text', [
    (nodes.SIZE, 'x'), (nodes.SIZE, '0'), (nodes.SIZE, '-1'), (nodes.RANK, ''), (nodes.RANK, '2'),
    (nodes.PORT, 'text'), (nodes.PORT, '70000')])
def test_what_a_launcher_cannot_have_meant_is_said(name, text):
    with pytest.raises(nodes.NodesError, match=f'^{name} is {text!r}; '):
        with nodes.together(1, [], dict(environ_of(0, 2, 6105), **{name: text})):
            pass


def test_a_taken_port_is_said():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(nodes.NodesError, match=f'cannot listen on port {port}: Address'):
            nodes.meet(environ_of(0, 2, port))


def test_strangers_at_the_port_are_not_taken_for_nodes():
    with free_port() as port, ThreadPoolExecutor(3) as pool:
        first = pool.submit(nodes.meet, environ_of(0, 2, port))
        for hello in (b'GET / HTTP/1.1\r\n\r\n', message([1, 2, 'run-2']), message('text'), b'',
                      message([2, 2, 'run-1']), nodes.HEAD.pack(nodes.VALUE, 4000) + b'[' * 4000):
            with connected(port) as stranger:
                stranger.sendall(hello)
        # One that says nothing, and one that takes its time.
        waiting = [connected(port) for _ in range(2)]
        waiting[0].sendall(b'v')
        start = nodes.time.monotonic()
        both = [first, pool.submit(nodes.join, environ_of(1, 2, port))]
        in_threads([node.result() for node in both], nodes.Node.part)
        assert nodes.time.monotonic() < start + nodes.SECONDS_OF_SILENCE / 6
        for stranger in waiting:
            stranger.close()


def test_no_process_is_left_when_not_all_can_be_started(monkeypatch):
    started, popen = [], subprocess.Popen

    def only_one(*args, **options):
        if started:
            raise BlockingIOError('no more processes')
        started.append(popen(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, 'Popen', only_one)
    with pytest.raises(BlockingIOError), nodes.together(3, ['sleep', '60'], {}):
        pass
    assert started[0].returncode == -signal.SIGKILL


def test_a_node_whose_starter_was_killed_waits_for_nobody():
    with free_port() as port, pytest.raises(nodes.NodesError, match='^node 0 is gone$'):
        nodes.join(dict(environ_of(1, 2, port), **{nodes.STARTER: '1'}))


def test_a_node_that_does_not_end_is_said(monkeypatch):
    monkeypatch.setattr(nodes, 'SECONDS_OF_SILENCE', 0.1)
    with subprocess.Popen(['sleep', '60']) as stopped:
        with pytest.raises(nodes.NodesError, match='^node 1 of 1 does not end$'):
            nodes.Node(children=[stopped]).part()
        stopped.kill()


def test_ports_of_nodes_of_one_machine_differ(monkeypatch):
    class Shared(Exception):
        pass

    def share(_, place):
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(('127.0.0.1', int(place.rpartition(':')[2])))
        raise Shared

    monkeypatch.setitem(sys.modules, 'lightgbm', argparse.Namespace(
        basic=argparse.Namespace(_LIB=None)))
    monkeypatch.setattr(nodes.Node, 'share', share)
    link = argparse.Namespace(getsockname=lambda: ('127.0.0.1', 0))
    with pytest.raises(Shared), nodes.Node(0, 2, {1: link}).network():
        pass


def test_lightgbm_does_not_wait_for_ever_to_be_connected(monkeypatch):
    def connect(*_):
        waiting.get(timeout=30)

    waiting, library = nodes.queue.Queue(), argparse.Namespace(
        LGBM_NetworkInit=connect, LGBM_NetworkFree=lambda: None)
    monkeypatch.setitem(sys.modules, 'lightgbm', argparse.Namespace(
        basic=argparse.Namespace(_LIB=library), register_logger=lambda _: None))
    monkeypatch.setattr(nodes, 'SECONDS_OF_SILENCE', 0.1)
    monkeypatch.setattr(nodes.Node, 'share', lambda _, place: ['a:1', 'b:2'])
    monkeypatch.setattr(nodes.Node, '_hear', lambda _, *words: told.append(
        words) or waiting.put(None))
    told, link = [], argparse.Namespace(getsockname=lambda: ('127.0.0.1', 0))
    with nodes.Node(0, 2, {1: link}).network():
        assert told == [(nodes.OWN, 'LightGBM has not connected a:1,b:2 within 0.1 s')]


@pytest.mark.parametrize('error, text', [
    (KeyboardInterrupt(), 'node 1 of 2: it was stopped'),
    (OSError('Socket recv error'), 'LightGBM refuses: Socket recv error')])
def test_who_was_stopped_in_boosting_is_told_before_what_came_of_it(monkeypatch, error, text):
    monkeypatch.setattr(nodes, 'SECONDS_TO_EXPLAIN', 0)
    sent = []
    first, other = nodes.Node(0, 2), nodes.Node(1, 2)
    monkeypatch.setattr(other, '_send', lambda _, __, body: sent.append(json.loads(body.decode())))
    first.networked = other.networked = True
    other.blame(error)
    first.reasons.append(tuple(sent[0]))
    assert str(first.blame(OSError('LightGBM refuses: Socket recv error'))) == text


def test_a_late_signal_of_a_failure_ends_no_process(monkeypatch):
    monkeypatch.setattr(nodes, 'meet', lambda *_: nodes.Node(0, 2))
    monkeypatch.setattr(nodes, 'SECONDS_TO_EXPLAIN', 0)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(OSError), nodes.together(1, [], environ_of(0, 2, 6105)):
            raise OSError
        nodes.os.kill(nodes.os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_node_that_has_no_memory_for_what_it_is_sent_waits_for_nobody(monkeypatch):
    def no_memory(_):
        raise MemoryError

    heard = []
    monkeypatch.setattr(nodes, 'receive', no_memory)
    monkeypatch.setattr(nodes.Node, '_hear', lambda _, *words: heard.append(words))
    nodes.Node(0, 2, {1: None})._listen(1)
    assert heard == [(nodes.LOST, 'node 1 of 2 sends more than node 0 has memory for')]


# The real thing: processes that train.

@pytest.mark.end_to_end
@pytest.mark.parametrize('size', [2, 3])
def test_nodes_share_the_rows_and_make_one_model_again_and_again(data, one, tmp_path, size):
    reports = []
    for out in ('first', 'again'):
        code, said, group = run(TRAIN, '--data', data, '--out', tmp_path / out, '--nodes', size)
        assert (code, wait_for_all(group)) == (0, True)
        reports.append(json.loads((tmp_path / out / 'metrics.json').read_text()))
        assert f'node {size - 1}: ' in said and 'Connect' not in said
    first, again = reports
    assert first['model_sha256'] == again['model_sha256']
    assert sum(node['rows'] for node in first['nodes']) == 20000 == one['nodes'][0]['rows']
    assert min(node['rows'] for node in first['nodes']) > 0.9 * 20000 / size
    for name in ('rows', 'claims', 'warnings'):
        assert first[name] == one[name]
    assert first['auc'] == pytest.approx(one['auc'], abs=0.02)
    profiles = [json.loads((tmp_path / out / 'profile.json').read_text())['columns']
                for out in ('first', 'again')]
    assert profiles[0] == profiles[1] == one['profile']


@pytest.fixture(scope='module')
def one(data, tmp_path_factory):
    """What one node makes of the table."""
    out = tmp_path_factory.mktemp('one') / 'model'
    assert run(TRAIN, '--data', data, '--out', out)[0] == 0
    return dict(json.loads((out / 'metrics.json').read_text()),
                profile=json.loads((out / 'profile.json').read_text())['columns'])


@pytest.mark.end_to_end
def test_nodes_judge_as_one_does(data, tmp_path):
    model, registry = tmp_path / 'model', tmp_path / 'registry'
    assert run(TRAIN, '--data', data, '--out', model)[0] == 0
    tracking.Folder(registry).register('m', model, {})
    decisions = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        code, said, group = run(
            TRAIN.with_name('evaluate.py'), '--data', data, '--model', model, '--model-name', 'm',
            '--registry', registry, '--parameters', DEFAULT, '--run-evaluation', 'true',
            '--out', folder / 'decision.json', '--nodes', size)
        assert (code, wait_for_all(group)) == (0, True), said
        assert {path.name for path in folder.iterdir()} == {'comparison.html', 'decision.json'}
        decisions.append(json.loads((folder / 'decision.json').read_text()))
    assert decisions[0] == decisions[1] and decisions[0]['champion'] > 0.5


@pytest.mark.end_to_end
@pytest.mark.parametrize('victim, place', [(0, 'boosting'), (1, 'start'), (2, 'reading'),
                                           (1, 'boosting'), (2, 'end')])
def test_all_end_when_one_is_killed(data, tmp_path, victim, place):
    code, said, group = drive(tmp_path, f'if rank == {victim}: {AT[place]}', data, 3)
    assert wait_for_all(group) and not any((tmp_path / 'out').iterdir())
    if victim:
        assert code == 1
        assert said.splitlines()[-1].startswith(f'error: node {victim} of 3 ')
        assert 'Traceback' not in said
    else:
        assert code == -signal.SIGKILL


@pytest.mark.end_to_end
@pytest.mark.parametrize('change, words', [
    ('nodes.Node.network = no_network', 'the nodes have trained different models'),
    ('nodes.Node.network, train.common_bins = late_network, lambda *_: None',
     'the nodes have found different bins'),
    ('if rank: lightgbm.Dataset = shorter', 'rows were lost')])
def test_mistakes_that_make_a_silently_wrong_model_are_caught(data, tmp_path, change, words):
    code, said, group = drive(tmp_path, change, data, 2)
    assert code == 1 and words in said and 'Traceback' not in said
    assert wait_for_all(group) and not any((tmp_path / 'out').iterdir())


@pytest.mark.end_to_end
def test_a_node_s_own_error_is_told_by_node_0(data, tmp_path):
    code, said, group = drive(
        tmp_path, "if rank: train.fit = lambda *_: table.read_table('no such table')", data, 2)
    assert code == 1 and said.splitlines()[-1] == (
        'error: node 1 of 2: no such table: there is no such file')
    assert wait_for_all(group)


def test_parameters_that_differ_between_nodes_are_refused(monkeypatch):
    monkeypatch.setattr(nodes.Node, 'share', lambda _, value: [value, dict(value, seed=2)])
    with pytest.raises(ParametersError, match='differs between the nodes'):
        train.run(argparse.Namespace(parameters=str(DEFAULT)), nodes.Node(size=2))


@pytest.mark.end_to_end
def test_a_model_of_one_leaf_is_the_same_on_all_nodes(tmp_path):
    path, model = tmp_path / 'table.csv', tmp_path / 'parameters.json'
    assert sample.main(['--rows', '2000', '--seed', '1', '--out', str(path)]) == 0
    parameters = json.loads(DEFAULT.read_text())
    parameters['training']['min_gain_to_split'] = 1e9
    model.write_text(json.dumps(parameters))
    # Some have less than 100 rows, some more.
    code, said, _ = run(TRAIN, '--data', path, '--parameters', model, '--out', tmp_path / 'out',
                        '--nodes', 5)
    assert code == 0 and '1 trees, AUC 0.5000' in said, said


def test_early_stopping_is_for_one_node():
    with pytest.raises(ParametersError) as error:
        train.run(argparse.Namespace(parameters=str(CHALLENGE)), nodes.Node(size=2))
    assert 'early_stopping_rounds is 20; with 2 nodes it must be 0' in str(error.value)
