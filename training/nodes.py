"""The nodes that share a table's rows: who they are, and what they tell each other.

Azure ML's MPI launcher starts a process on each node; train.py and evaluate.py start them on this
machine (--nodes), with the same variables. OMPI_COMM_WORLD_RANK and _SIZE are Open MPI's;
AZ_BATCH_MASTER_NODE is node 0's address with a port that is not ours, MASTER_PORT the one to use,
else 6105 (https://learn.microsoft.com/azure/batch/batch-compute-node-environment-variables). There
node 0 listens. The connections stay open, so that each node hears at once of another's failure.
"""
import contextlib
import json
import logging
import os
import queue
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

RANK, SIZE, MASTER = 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'AZ_BATCH_MASTER_NODE'
PORT, DEFAULT_PORT = 'MASTER_PORT', 6105
HERE = '127.0.0.1'
# What the nodes of one run have in common and nobody else who may call at that port.
RUN, AZURE_RUN = 'TRAINING_NODES_RUN', 'AZUREML_RUN_ID'
STARTER = 'TRAINING_NODES_STARTER'
SECONDS_TO_COME = 120
SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE = 2, 30
SECONDS_TO_EXPLAIN = 2
SECONDS_TO_END = 10
HEAD, VALUE, BEAT, FAILED, DONE = struct.Struct('>cQ'), b'v', b'.', b'!', b'd'
CHUNK, LONGEST_HELLO = 1 << 20, 1 << 12
# The lower, the nearer to the cause.
LOST, OWN, OTHERS, SYMPTOM = range(4)

# The scripts that share rows have this option.
OPTION = {'type': int, 'default': 1, 'choices': range(1, 17), 'metavar': '1..16',
          'help': 'processes that share the rows; in Azure ML the nodes of the step (default: 1)'}


class NodesError(RuntimeError):
    """Which node failed, and why; the text is for the user."""


class Node:
    """One of `size` nodes. links: {rank: socket}, at node 0 to all others, elsewhere to node 0."""

    def __init__(self, rank=0, size=1, links=None, children=()):
        self.rank, self.size, self.links, self.children = rank, size, links or {}, children
        self.inbox = [queue.Queue() for _ in range(size)]
        self.sending = [threading.Lock() for _ in range(size)]
        self.threads, self.reasons, self.networked = [], [], False
        self.failed, self.stopped, self.parted = [threading.Event() for _ in range(3)]

    def listen(self):
        """Hear and be heard from now on; the node itself."""
        self.threads = [threading.Thread(target=job, args=words, daemon=True) for job, *words in
                        [(self._listen, other) for other in self.links] + [(self._beat,)]]
        for thread in self.threads:
            thread.start()
        return self

    def share(self, value):
        """[the value (JSON) of node 0, of node 1, ...], at every node."""
        if self.rank:
            self._send(0, VALUE, json.dumps(value).encode())
            return json.loads(self.inbox[0].get().decode())
        values = [value] + [json.loads(self.inbox[other].get().decode())
                            for other in sorted(self.links)]
        for other in self.links:
            self._send(other, VALUE, json.dumps(values).encode())
        return values

    def gather(self, array, to_all=False):
        """The arrays of all nodes, one after another, at node 0; None elsewhere, unless to_all."""
        if self.size == 1:
            return array
        import numpy
        # Nobody sends a second one before node 0 has taken the first.
        kinds = self.share([array.dtype.str, array.shape])
        if self.rank:
            self._send(0, VALUE, numpy.ascontiguousarray(array).reshape(-1).view('u1'))
            if not to_all:
                return None
            shape = [sum(shape[0] for _, shape in kinds)] + kinds[0][1][1:]
            return numpy.ndarray(shape, kinds[0][0], self.inbox[0].get())
        whole = numpy.concatenate([array] + [
            numpy.ndarray(shape, kind, self.inbox[other].get())
            for other, (kind, shape) in enumerate(kinds) if other])
        for other in self.links if to_all else ():
            self._send(other, VALUE, whole.reshape(-1).view('u1'))
        return whole

    @contextlib.contextmanager
    def network(self):
        """The nodes' LightGBMs connected with each other; yields the parameters that this takes.

        A Dataset that is made before has bins of this node's rows alone: the model would be wrong.
        LightGBM finds its place in the list by its own address, which must be numbers
        (src/network/linkers_socket.cpp). The list is no parameter: it would be in the model's text.
        """
        if self.size == 1:
            yield {}
            return
        import lightgbm
        library = lightgbm.basic._LIB
        address = next(iter(self.links.values())).getsockname()[0]
        with socket.socket() as free:
            free.bind((address, 0))
            port = free.getsockname()[1]
            # Held until all have theirs, for several nodes may be on one machine.
            machines = ','.join(self.share(f'{address}:{port}'))
        self.networked = True
        # Else it tells of each attempt to connect.
        quiet = logging.getLogger('lightgbm')
        quiet.setLevel(logging.ERROR)
        lightgbm.register_logger(quiet)
        # A stranger that calls at LightGBM's port and says nothing would be waited for.
        late = threading.Timer(SECONDS_OF_SILENCE, self._hear, (
            OWN, f'LightGBM has not connected {machines} within {SECONDS_OF_SILENCE} s'))
        late.daemon = True
        late.start()
        if library.LGBM_NetworkInit(machines.encode(), port, SECONDS_TO_COME // 60, self.size):
            raise NodesError(f'LightGBM cannot connect {machines}')
        late.cancel()
        yield {'tree_learner': 'data', 'num_machines': self.size, 'pre_partition': True}
        library.LGBM_NetworkFree()
        self.networked = False

    def part(self):
        """All have done what they do together; node 0 goes on when the others have ended well."""
        self.share(None)
        self.parted.set()
        if self.rank:
            self._send(0, DONE, b'')
        for thread in self.threads:
            thread.join()
        self.close()
        for rank, child in enumerate(self.children, 1):
            try:
                if child.wait(SECONDS_OF_SILENCE):
                    raise NodesError(f'node {rank} of {self.size} ended with {child.returncode}')
            except subprocess.TimeoutExpired:
                raise NodesError(f'node {rank} of {self.size} does not end')

    def close(self):
        for link in self.links.values():
            link.close()

    def blame(self, error):
        """The exception that tells the cause: `error`, of this node, or another node's failure.

        The others are told, and those that were started here are ended.
        """
        stopped = isinstance(error, KeyboardInterrupt)
        text = 'it was stopped' if stopped else str(error) or type(error).__name__
        symptom = not stopped and self.networked or isinstance(error, NodesError)
        weight = SYMPTOM if symptom else OWN
        self.reasons.append((weight, text))
        if self.rank:
            self._send(0, FAILED, json.dumps([
                max(weight, OTHERS), f'node {self.rank} of {self.size}: {text}']).encode())
            self.failed.wait(0 if stopped else 2 * SECONDS_TO_EXPLAIN)
        else:
            self._wait_for_reasons(stopped or not self.links)
        self._stop()
        return error if self._why() == text else NodesError(self._why())

    def _why(self):
        return min(self.reasons)[1]

    def _wait_for_reasons(self, enough=False):
        """Neighbours of a lost node fail too, and may be heard first."""
        until = time.monotonic() + SECONDS_TO_EXPLAIN
        while not enough and min(self.reasons)[0] != LOST and time.monotonic() < until:
            time.sleep(0.05)

    def _stop(self):
        self.stopped.set()
        self.parted.set()
        for other in self.links:
            self._send(other, FAILED, json.dumps([LOST, self._why()]).encode())
        self.close()
        end(self.children)

    def _send(self, other, kind, body):
        # What cannot wait must not wait for what a stopped node does not take.
        if self.sending[other].acquire(timeout=SECONDS_OF_SILENCE if kind == VALUE else 1):
            try:
                return send(self.links[other], kind, body)
            except OSError:
                pass
            finally:
                self.sending[other].release()
        if kind == VALUE:
            # The thread that listens knows more, and stops this one.
            time.sleep(SECONDS_TO_END)
            raise NodesError(f'node {other} of {self.size} does not take what it is sent')

    def _beat(self):
        while not self.parted.wait(SECONDS_BETWEEN_BEATS):
            for other in self.links:
                self._send(other, BEAT, b'')

    def _listen(self, other):
        try:
            kind = None
            while kind != DONE:
                kind, body = receive(self.links[other])
                if kind == FAILED:
                    return self._hear(*json.loads(body.decode()))
                if kind == VALUE:
                    self.inbox[other].put(body)
            return None
        except socket.timeout:
            reason = f'has not been heard of for {SECONDS_OF_SILENCE} s'
        except OSError:
            reason = 'is gone: it was killed, or its machine or network failed'
        except MemoryError:
            reason = f'sends more than node {self.rank} has memory for'
        # A node that has parted waits for node 0 to close.
        if not (self.rank and self.parted.is_set()) and not self.stopped.is_set():
            self._hear(LOST, f'node {other} of {self.size} {reason}')

    def _hear(self, weight, reason):
        """Another node failed: have the main thread stop, at the latest with the whole process."""
        self.reasons.append((weight, reason))
        if self.failed.is_set():
            return
        self.failed.set()
        self._wait_for_reasons(self.rank > 0)
        for _ in range(SECONDS_TO_END):
            # Again, for in a destructor what a signal's handler raises is lost.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            if self.stopped.wait(1):
                return
        print(f'error: {self._why()}', file=sys.stderr, flush=True)
        self._stop()
        os._exit(1)


ALONE = Node()


def send(link, kind, body):
    link.sendall(HEAD.pack(kind, len(body)))
    # A timeout is for the whole of a sendall.
    for start in range(0, len(body), CHUNK):
        link.sendall(memoryview(body)[start:start + CHUNK])


def receive(link, most=1 << 40):
    """(kind, body) of the next message. Raises socket.timeout, and OSError where there is none."""
    def read(count):
        data, done = bytearray(count), 0
        while done < count:
            got = link.recv_into(memoryview(data)[done:], min(CHUNK, count - done))
            if not got:
                raise ConnectionResetError
            done += got
        return data

    kind, length = HEAD.unpack(read(HEAD.size))
    if length > most:
        raise ConnectionAbortedError
    return kind, read(length)


def command(script, argv):
    """The words that start this script again, as it was called."""
    return [sys.executable, os.path.abspath(script)] + (sys.argv[1:] if argv is None else argv)


@contextlib.contextmanager
def together(size, command, environ):
    """The Node that this process is: by `environ`, else node 0 of `size` that are started here.

    command: words that start this program again. Raises NodesError, in the midst of the block as
    well, when another node fails.
    """
    children = []
    try:
        if not environ.get(SIZE) and size > 1:
            # All share the cores of this machine, with a library that is not loaded yet.
            environ.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count() // size)))
            environ = start(size, command, environ, children)
        if not environ.get(SIZE) or number(environ, SIZE, 1, 1 << 16) == 1:
            yield ALONE
            return
        node = join(environ) if whereabouts(environ)[0] else meet(environ, children)

        def stop(*_):
            raise NodesError(node._why())

        before = signal.signal(signal.SIGUSR1, stop)
        try:
            yield node
            signal.signal(signal.SIGUSR1, before)
        except BaseException as error:
            # For good: a thread that has heard of a failure may be about to send it.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            raise node.blame(error)
        finally:
            node.close()
    finally:
        # Whatever came between their start and the care that a Node takes of them.
        end(children)


def start(size, command, environ, children):
    """What a launcher would tell node 0; `children` gains the processes of the other nodes."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        environ = dict(environ, **{RANK: '0', SIZE: str(size), MASTER: f'{HERE}:0',
                                   PORT: str(free.getsockname()[1]), RUN: secrets.token_hex(),
                                   STARTER: str(os.getpid())})
    nobody = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.DEVNULL)
    for rank in range(1, size):
        children.append(subprocess.Popen(command, env=dict(environ, **{RANK: str(rank)}), **nobody))
    return environ


def end(children):
    for child in children:
        child.kill()
        child.wait()


def whereabouts(environ):
    """(rank, size, address and port of node 0, what the nodes of this run have in common)."""
    size = number(environ, SIZE, 1, 1 << 16)
    rank = number(environ, RANK, 0, size - 1)
    address = environ.get(MASTER, '').rpartition(':')[0]
    if not address:
        raise NodesError(f'node {rank} of {size} cannot find node 0: {MASTER} is not set, to its '
                         'address and a port')
    port = number(environ, PORT, 1, 65535) if environ.get(PORT) else DEFAULT_PORT
    return rank, size, (address, port), environ.get(RUN) or environ.get(AZURE_RUN)


def number(environ, name, least, most):
    """What a launcher has left in a variable: a whole number, or NodesError."""
    text = environ.get(name, '')
    if not re.fullmatch('[0-9]{1,9}', text) or not least <= int(text) <= most:
        raise NodesError(f'{name} is {text!r}; where nodes are started it is a whole number from '
                         f'{least} to {most}')
    return int(text)


def meet(environ, children=()):
    """Node 0, when all others have come."""
    _, size, (address, port), run = whereabouts(environ)
    node = Node(0, size, {}, children)
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address if address == HERE else '', port))
            except OSError as error:
                raise NodesError(f'node 0 of {size} cannot listen on port {port}: '
                                 f'{error.strerror}')
            listener.listen()
            listener.settimeout(0.02)
            until, come = time.monotonic() + SECONDS_TO_COME, queue.Queue()
            while len(node.links) < size - 1:
                # Each in a thread, for strangers may take their time; RuntimeError: too many do.
                with contextlib.suppress(OSError, RuntimeError):
                    threading.Thread(target=welcome, args=(listener.accept()[0], size, run, come),
                                     daemon=True).start()
                with contextlib.suppress(queue.Empty):
                    rank, link = come.get_nowait()
                    node.links[rank] = link
                ended = [rank for rank, child in enumerate(children, 1) if child.poll() is not None]
                if ended:
                    raise NodesError(f'node {ended[0]} of {size} ended before it came, with '
                                     f'{children[ended[0] - 1].returncode}')
                if time.monotonic() > until and len(node.links) < size - 1:
                    missing = ', '.join(f'node {rank}' for rank in range(1, size)
                                        if rank not in node.links)
                    raise NodesError(f'{missing} of {size} did not come within {SECONDS_TO_COME} s')
    except BaseException as error:
        raise node.blame(error)
    for link in node.links.values():
        send(link, VALUE, b'')
    return node.listen()


def welcome(link, size, run, come):
    """Put (rank, link) into the queue `come` if the caller is a node of this run."""
    try:
        link.settimeout(SECONDS_OF_SILENCE / 6)
        rank, *others = json.loads(receive(link, LONGEST_HELLO)[1].decode())
        if others == [size, run] and rank in range(1, size):
            return come.put((rank, ready(link)))
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    link.close()


def join(environ):
    """Another node, when node 0 has all of them together."""
    rank, size, place, run = whereabouts(environ)
    until = time.monotonic() + SECONDS_TO_COME + SECONDS_TO_END
    while True:
        try:
            # LightGBM knows IPv4 only.
            address = socket.getaddrinfo(*place, socket.AF_INET, socket.SOCK_STREAM)[0][4]
            link = socket.create_connection(address, max(1, until - time.monotonic()))
            send(link, VALUE, json.dumps([rank, size, run]).encode())
            kind, body = receive(link)
            break
        except (OSError, UnicodeError) as error:
            # Started by node 0 of this machine, which was killed meanwhile.
            if environ.get(STARTER) not in (None, str(os.getppid())):
                raise NodesError('node 0 is gone')
            if time.monotonic() > until - SECONDS_TO_END:
                raise NodesError(f'node {rank} of {size} cannot reach node 0 at {place[0]}, port '
                                 f'{place[1]}: {error}')
            time.sleep(0.2)
    if kind == FAILED:
        raise NodesError(json.loads(body.decode())[1])
    return Node(rank, size, {0: ready(link)}).listen()


def ready(link):
    # Else each small message would wait for the answer to the one before.
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.settimeout(SECONDS_OF_SILENCE)
    return link
