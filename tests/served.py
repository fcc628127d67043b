"""A small registered model and the service that scores with it, for the tests of scoring."""
import contextlib
import functools
import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest

from conftest import ROOT

NAME = 'safe_driver_model'
COLUMNS = list(json.loads((ROOT / 'training' / 'columns.json').read_text())['columns'])[2:]
START_SECONDS = 60


def make_rows(count, seed):
    """Made-up rows: small whole numbers, -1 among them, and in every fifth column decimals."""
    rng = random.Random(seed)
    return [[round(rng.random(), 6) if index % 5 == 4 else rng.randint(-1, 9)
             for index in range(len(COLUMNS))] for _ in range(count)]


@functools.lru_cache(maxsize=None)
def model_text(seed, rounds):
    """A small model of two columns with an effect, in LightGBM's text format."""
    lightgbm, numpy = pytest.importorskip('lightgbm'), pytest.importorskip('numpy')
    rows = numpy.array(make_rows(600, seed), dtype=float)
    label = (rows[:, 0] + 4 * rows[:, 4] + rows[:, 7] > 10).astype(int)
    data = lightgbm.Dataset(rows, label, feature_name=COLUMNS)
    parameters = {'objective': 'binary', 'num_leaves': 15, 'min_data': 5, 'verbose': -1,
                  'num_threads': 1, 'seed': seed}
    return lightgbm.train(parameters, data, rounds).model_to_string()


def register(registry, version, seed=1, rounds=20):
    """Put a small model into registry/NAME/VERSION; the lightgbm.Booster."""
    text = model_text(seed, rounds)
    folder = registry / NAME / str(version) / 'model'
    folder.mkdir(parents=True)
    (folder / 'model.txt').write_text(text)
    tags = {'model_sha256': hashlib.sha256(text.encode()).hexdigest()}
    (folder / 'metrics.json').write_text(json.dumps(dict(tags, auc=0.64)))
    (folder.parent / 'tags.json').write_text(json.dumps(tags))
    return pytest.importorskip('lightgbm').Booster(model_file=str(folder / 'model.txt'))


def profile(booster, folder, rows):
    """Write the profile.json that training would, of these rows' scores; the scores' part of it."""
    import numpy
    known = numpy.array(scores(booster, rows))
    edges = numpy.quantile(known, numpy.arange(1, 20) / 20)
    shares = numpy.bincount(numpy.searchsorted(edges, known), minlength=20) / len(known)
    found = {'rows': len(rows), 'edges': edges.tolist(), 'shares': shares.tolist()}
    (folder / 'profile.json').write_text(json.dumps({'scores': found}))
    return found


def scores(booster, rows):
    import numpy
    return booster.predict(numpy.array(rows, dtype=float)).tolist()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Service:
    """scripts/serve.py as a process of its own; ended with the block."""

    def __init__(self, registry, log, **environ):
        pytest.importorskip('azureml_inference_server_http')
        self.port, self.log, self.kept = free_port(), log, log.with_name('serve.log')
        with open(str(log), 'w') as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / 'scripts' / 'serve.py'), '--registry', str(registry),
                 '--model-name', NAME, '--port', str(self.port), '--log', str(self.kept)],
                stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ, **environ))

    def __enter__(self):
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.ask('GET', '/')[0] == 200:
                    return self
            except OSError:
                time.sleep(0.02)
        self.__exit__()
        raise AssertionError('the service did not start:\n' + self.log.read_text())

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(START_SECONDS)
        finally:
            self.process.kill()

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, body text) of one request."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    def score(self, payload, **headers):
        """(status, answer) of a POST of JSON; payload: bytes, or what to write as JSON."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        status, _, text = self.ask('POST', '/score', body, dict(
            {'Content-Type': 'application/json'}, **headers))
        return status, json.loads(text)

    def raw(self, data, end=True):
        """The whole answer (bytes) to raw bytes; the sending side is closed if `end`."""
        pieces = []
        with socket.create_connection(('127.0.0.1', self.port), 60) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                for piece in iter(lambda: connection.recv(1 << 16), b''):
                    pieces.append(piece)
        return b''.join(pieces)
