"""The scoring script of Azure ML's inference server: init() once per worker, run() per request.

    python scripts/serve.py --registry outputs/registry --model-name safe_driver_model --port 5001
"""
import bisect
import gc
import json
import logging
import math
import os
import re
import shutil
import time
from pathlib import Path

import orjson
from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import g
from gunicorn import glogging

import booster
import rows
from rows import Refused

FOLDER = Path(__file__).resolve().parent
ALLOWED = {'Allow': 'OPTIONS, POST'}
JSON = {'Content-Type': 'application/json'}
# More objects than the largest request makes lists.
OBJECTS_BETWEEN_COLLECTIONS = 20000
# Below this many rows a second thread saves less than it costs beside a busy neighbour.
ROWS_FOR_THREADS = 64
DRAINED_BODIES = 4
TRACEPARENT_SHOWN = 64
# The header of our own tests, which are no customers: X-Smoke-Test.
TEST = 'HTTP_X_SMOKE_TEST'

# Of the file's environment, OMP_WAIT_POLICY keeps idle threads of LightGBM from spinning.
settings = json.loads((FOLDER / 'deployment.json').read_text(encoding='utf-8'))
model = None
threads = 1
# What the log line of each request says of the service, and the edges of the bins of scores.
served, edges = {}, []


def init():
    """Load the model of AZUREML_MODEL_DIR (.../NAME/VERSION) and log which one it is."""
    global model, threads, served, edges
    folder = Path(os.environ['AZUREML_MODEL_DIR'])
    model = booster.Booster(folder / 'model' / 'model.txt')
    served = {'service': os.environ.get('SERVED_AS', ''), 'version': folder.name}
    edges = score_edges(folder / 'model' / 'profile.json')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    threads = threads_wanted(os.environ.get('OMP_NUM_THREADS', ''), cores)
    publish_documents()
    one_line_a_request()
    try:
        auc = json.loads((folder / 'model' / 'metrics.json').read_text(encoding='utf-8')).get('auc')
    except (OSError, ValueError):
        auc = None
    print(json.dumps({'model': folder.parent.name, 'version': folder.name, 'auc': auc,
                      'trees': model.trees, 'columns': len(model.columns),
                      'bins': len(edges) + 1 if edges else None}))
    # LightGBM's threads are not in a worker that is forked later (WORKER_PRELOAD), which would wait
    # for them for ever.
    os.register_at_fork(after_in_child=lambda: globals().update(threads=1))
    # The collector need not look through what stays, nor again and again at a large request.
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


def score_edges(path):
    """The edges of the bins in which a profile counts the scores of the hold-out rows, or []."""
    try:
        edges = json.loads(path.read_text(encoding='utf-8'))['scores']['edges']
        return list(map(float, edges))
    except (OSError, ValueError, LookupError, TypeError):
        return []


def in_bins(scores):
    """{bin: how many of the scores}; an edge belongs to the bin below it, as in the profile."""
    # To sort them is faster than to look each up.
    ordered, counts, before = sorted(scores), {}, 0
    for place, edge in enumerate(edges):
        upto = bisect.bisect_right(ordered, edge, before)
        if upto > before:
            counts[place], before = upto - before, upto
    if before < len(ordered):
        counts[len(edges)] = len(ordered) - before
    return counts


def threads_wanted(setting, cores):
    """How many threads OMP_NUM_THREADS asks for, at most the cores; all where it is unusable."""
    wanted = re.match(r'\s*0*([1-9][0-9]{0,8})\s*(,|$)', setting)
    return min(int(wanted.group(1)), cores) if wanted else cores


def publish_documents():
    """Write the OpenAPI documents to where the server reads them after init(): AML_APP_ROOT.

    That is the folder above this one on ACI. This one is source and gets no file.
    """
    root = Path(os.environ.get('AML_APP_ROOT', FOLDER))
    if root.resolve() == FOLDER:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in ('swagger2.json', 'swagger3.json'):
            shutil.copy(FOLDER / name, root)
        # All that 3.1 says otherwise is its version and what may be null.
        text = (FOLDER / 'swagger3.json').read_text(encoding='utf-8')
        text = text.replace('"openapi": "3.0.3"', '"openapi": "3.1.0"')
        text = re.sub(r'"type": ("\w+"),\s*"nullable": true', r'"type": [\1, "null"]', text)
        (root / 'swagger3.1.json').write_text(text, encoding='utf-8')
    except OSError as error:
        print(f'the OpenAPI documents will not be served: {error}')


def one_line_a_request():
    """Keep gunicorn and the server from writing lines of their own beside that of run()."""
    # Whatever its logger's level, gunicorn would put each line together: 5 % of a request's time.
    glogging.Logger.access = lambda *_: None
    logging.getLogger('azmlinfsrv').setLevel(logging.ERROR)
    logging.getLogger('azmlinfsrv.print').setLevel(logging.INFO)


@rawhttp
def run(request):
    """Answer one request: {"data": [row, ...]} gets {"result": [probability, ...]}.

    With "explain": n beside the data there is also {"explanations": [see explanation(), ...]}.
    """
    started, status, count, environ = time.perf_counter(), 500, 0, request.environ
    more = {'test': True} if TEST in environ else {}
    if not environ.get('QUERY_STRING', '').isascii():
        g.api_name = None  # or the server's own log line fails, and the request with it
    try:
        if environ['REQUEST_METHOD'] == 'OPTIONS':
            answer = AMLResponse('', 200, ALLOWED)
        else:
            values, count, asked = rows.parse(read(environ), model.columns, settings['max_rows'])
            workers = threads if count >= ROWS_FOR_THREADS else 1
            scores = model.predict(values, count, workers)
            result = {'result': scores}
            if asked:
                result['explanations'] = [explanation(found, asked) for found in
                                          model.contributions(values, count, workers)]
            answer = AMLResponse(orjson.dumps(result), 200, JSON)
            if edges:
                more['bins'] = in_bins(scores)
        status = 200
    except Refused as refused:
        status, answer = refused.status, refusal(refused)
    finally:
        # scripts/monitor.py reads it. What scores there were is said in counts by bin only.
        print(json.dumps({'request_id': g.request_id, **served, 'status': status, 'rows': count,
                          'traceparent': environ.get('HTTP_TRACEPARENT', '')[:TRACEPARENT_SHOWN],
                          'milliseconds': round(1000 * (time.perf_counter() - started), 3),
                          **more}))
    return answer


def explanation(contributions, asked):
    """Why a row has its score: the `asked` columns that count most, in log-odds, largest first.

    With the base value and the rest, which is the other columns', they add up to the score's.
    """
    *each, base = contributions
    order = sorted(range(len(each)), key=lambda place: -abs(each[place]))
    return {'base': base, 'rest': math.fsum(each[place] for place in order[asked:]),
            'contributions': [{'column': model.columns[place], 'log_odds': each[place]}
                              for place in order[:asked]]}


def read(environ):
    """The body of a POST of JSON (bytes). Raises Refused where it is not one, or not whole."""
    if environ['REQUEST_METHOD'] != 'POST':
        raise Refused(405, 'use POST')
    kind = environ.get('CONTENT_TYPE', '').partition(';')[0].strip().lower()
    if kind not in ('application/json', '') and not kind.endswith('+json'):
        raise Refused(415, 'the Content-Type is not application/json')
    coding = environ.get('HTTP_CONTENT_ENCODING')
    if coding and coding.strip().lower() != 'identity':
        raise Refused(415, 'the Content-Encoding is not identity: send the body uncompressed')
    # The server has refused lengths that are no numbers; a body in chunks has none.
    limit, declared = settings['max_body_bytes'], int(environ.get('CONTENT_LENGTH') or 0)
    stream, body = environ['wsgi.input'], b''
    try:
        if declared <= limit:
            body = stream.read(limit + 1)
        too_large = max(declared, len(body)) > limit
        # A client that is still sending would see a broken connection, not the answer.
        for _ in range(DRAINED_BODIES):
            if not too_large or not stream.read(limit):
                break
    except TimeoutError:
        raise Refused(408, 'the body did not arrive in time')
    except Exception as error:  # the server has a dozen kinds for broken chunks and connections
        raise Refused(400, f'the body cannot be read: {type(error).__name__}')
    if too_large:
        raise Refused(413, f'the body is larger than {limit} bytes')
    if declared and len(body) != declared:
        raise Refused(400, f'the body ends after {len(body)} of {declared} bytes')
    return body


def refusal(refused):
    """The response to a refused request: one sentence, and all problems that were found."""
    row, column, reason = refused.problems[0]
    location = ', '.join(([] if row is None else [f'row {row}']) + ([column] if column else []))
    message = {'message': f'{location} {reason}' if location else reason,
               'errors': [{'row': row, 'column': column, 'reason': reason}
                          for row, column, reason in refused.problems]}
    return AMLResponse(message, refused.status, ALLOWED if refused.status == 405 else {},
                       json_str=True)
