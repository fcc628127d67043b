"""Post known rows to the service and compare the scores with the registered model's own.

    python scripts/smoke_test.py --service local --out outputs --model-name safe_driver_model

SERVICE local is what `make serve` runs; aci is the service that OUT/service.json names, endpoint
that of OUT/endpoint.json. Nothing is changed. Rows and scores are those that training stored with
the model.
"""
import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import atomic
import azure_ml
import serve
import settings
from azure_ml import AzureError

ROWS = 8
TABLE = serve.SCORING.parent / 'training' / 'columns.json'
TOLERANCE = 1e-9
RETRIED = (429, 502, 503, 504)
# A container that was just deployed may answer 502 for minutes.
DEADLINE_SECONDS = {'local': 30, 'aci': 600, 'endpoint': 600}
REQUEST_SECONDS = 30
PAUSE_SECONDS = 2.0
SHOWN, LINE_SHOWN = 2000, 200
# By this `make monitor` knows our requests from those of customers.
TEST = {'X-Smoke-Test': '1'}
# Of an answer no more is read than so many pieces of so many bytes; some never end.
PIECES, PIECE_BYTES = 4096, 256
# The known rows so many times are enough for score.py to share them out to its threads.
TIMES = 16


def random_rows(rng, count):
    """So many rows (lists of numbers) within the ranges that the published table's columns have."""
    known = list(atomic.read_json(TABLE)['columns'].values())[2:]
    return [[rng.randint(column['min'], column['max']) if column['type'] == 'int8' else
             round(rng.uniform(column['min'], column['max']), 6) for column in known]
            for _ in range(count)]


def stored_rows(path):
    """Rows and their scores as training stored them beside a model.txt, else as this gives them."""
    known = (atomic.read_json(path.with_name('metrics.json')) or {}).get('known_rows')
    if known:
        try:
            rows, scores = [list(map(float, row.split())) for row in known['rows']], known['scores']
            if len(rows) == len(list(map(float, scores))) > 1:
                return rows, scores
        except (AttributeError, LookupError, TypeError, ValueError):
            pass
        raise AzureError('the known_rows in metrics.json beside the model are damaged: put the '
                         'file back')
    import lightgbm
    rows = random_rows(random.Random(2017), ROWS)
    return rows, lightgbm.Booster(model_file=str(path)).predict(rows).tolist()


def post_once(session, uri, headers, data, seconds):
    """(requests.Response, its text), the answer to {"data": data}. Raises what requests does.

    It is there within so many seconds, however slowly the service sends: requests by itself only
    limits the time between two bytes.
    """
    found = futures.Future()

    def post():
        try:
            with session.post(uri, json={'data': data}, headers=dict(headers, **TEST),
                              timeout=seconds, allow_redirects=False, stream=True) as answer:
                pieces = itertools.islice(answer.iter_content(PIECE_BYTES), PIECES)
                found.set_result((answer, b''.join(pieces).decode('utf-8', 'replace')))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=post, daemon=True).start()
    return found.result(seconds)


def harmless(text, headers):
    """What a service says, as it may stand in a log: cleaned, not too long, without our key."""
    key = headers.get('Authorization', 'Bearer ').partition(' ')[2]
    text = azure_ml.clean(text.replace(key, '***') if key else text)
    return ''.join(char if char.isprintable() or char == '\n' else '?' for char in text)[:SHOWN]


def try_once(session, uri, headers, data, seconds=REQUEST_SECONDS):
    """(requests.Response or None, its text, '' or why it is not good): the answer to the rows."""
    try:
        answer, text = post_once(session, uri, headers, data, seconds)
    except (OSError, ValueError, futures.TimeoutError) as error:
        reason = str(azure_ml.chain(error)[-1]) or 'timed out'
        return None, '', f'no answer from {uri}: {reason}'
    reason = f'status {answer.status_code} {answer.reason}\n{text}'
    return answer, text, '' if answer.status_code == 200 else reason


def post_rows(session, uri, headers, data, deadline):
    """The text that answers {"data": data}. Raises AzureError.

    Connection errors, timeouts and RETRIED statuses are tried again until `deadline`
    (time.monotonic()).
    """
    while True:
        left = deadline - time.monotonic()
        answer, text, reason = try_once(session, uri, headers, data,
                                        max(0.1, min(REQUEST_SECONDS, left)))
        if not reason:
            return text
        again = answer is None or answer.status_code in RETRIED
        if not again or time.monotonic() + PAUSE_SECONDS >= deadline:
            late = 'no good answer before the deadline; the last: ' if again else ''
            raise AzureError(late + reason)
        print(harmless(reason, headers).splitlines()[0][:LINE_SHOWN] + '; trying again', flush=True)
        time.sleep(PAUSE_SECONDS)


def read_scores(text, count):
    """The scores that an answer holds. Raises AzureError unless there are so many."""
    shown = 'status 200\n' + text
    try:
        scores = json.loads(text, parse_int=float, parse_constant=str)['result']
    except (ValueError, TypeError, KeyError, RecursionError):
        scores = None
    if not isinstance(scores, list) or not set(map(type, scores)) <= {float}:
        raise AzureError('the answer is not {"result": [number, ...]}; ' + shown)
    if len(scores) != count:
        raise AzureError(f'{len(scores)} scores for {count} rows; {shown}')
    return scores


def check_scores(text, expected):
    """Raise AzureError unless the answer holds exactly the expected scores, not all the same."""
    scores, shown = read_scores(text, len(expected)), 'status 200\n' + text
    if min(scores) == max(scores):
        raise AzureError(f'different rows have the same score; {shown}')
    far = max(abs(score - known) for score, known in zip(scores, expected))
    if far > TOLERANCE:
        raise AzureError(f'the scores differ from the registered model by up to {far:g}; is '
                         f'another version served? {shown}')


def local_service(args, _):
    """(uri, headers, path of model.txt, what it is) of `make serve`."""
    version = serve.newest_version(args.out / 'registry', args.model_name)
    return (f'http://127.0.0.1:{args.port}/score', {}, version / 'model' / 'model.txt',
            f'{args.model_name} version {version.name}')


def aci_service(args, folder):
    """(uri, headers, path of model.txt, what it is) of OUT/service.json; fetches key and model."""
    import deploy
    import workspace
    known = atomic.read_json(args.out / 'service.json')
    if known is None:
        raise AzureError(f"there is no {args.out / 'service.json'}; `make deploy` writes it")
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    space = workspace.connect(config)
    with azure_ml.asking('fetch the keys of the service', config.call_timeout_seconds):
        from azureml.core import Webservice
        key = Webservice(space, known['name']).get_keys()[0]
    deploy.fetch_model(space, config, known['model'], known['version'], folder)
    return (known['scoring_uri'], {'Authorization': 'Bearer ' + key},
            Path(folder, deploy.MODEL_FILE), f"{known['model']} version {known['version']}")


def endpoint_service(args, folder):
    """(uri, headers, path of model.txt, what it is) of OUT/endpoint.json, as customers ask it."""
    import deploy
    import endpoint
    import workspace
    known = atomic.read_json(args.out / endpoint.FILE)
    if known is None:
        raise AzureError(f'there is no {args.out / endpoint.FILE}; `make deploy SERVICE=endpoint` '
                         'writes it')
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    headers = endpoint.Endpoint(config._replace(endpoint_name=known['name'])).headers()
    deploy.fetch_model(workspace.connect(config), config, known['model'], known['version'], folder)
    return (known['scoring_uri'], headers, Path(folder, deploy.MODEL_FILE),
            f"{known['model']} version {known['version']}")


def check_service(session, uri, headers, rows, expected, deadline):
    """Raise AzureError unless rows, as lists, as objects and many at once, have these scores."""
    columns = list(atomic.read_json(TABLE)['columns'])[2:]
    as_objects = [dict(reversed(list(zip(columns, row)))) for row in rows]
    for data in (rows, as_objects, rows * TIMES):
        text = post_rows(session, uri, headers, data, deadline)
        check_scores(text, expected * (len(data) // len(rows)))


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--service', choices=('local', 'aci', 'endpoint'), default='local',
                        help='which one')
    parser.add_argument('--out', type=Path, default=Path('outputs'),
                        help='folder of registry/, service.json, endpoint.json (default outputs)')
    parser.add_argument('--model-name', default='safe_driver_model', help='for local: which model')
    parser.add_argument('--port', type=int, default=5001, help='for local: the port (default 5001)')
    args = parser.parse_args(argv)
    deadline = time.monotonic() + DEADLINE_SECONDS[args.service]
    import requests
    session = requests.Session()
    # A proxy for the way to Azure must not catch requests to this machine.
    session.trust_env = args.service != 'local'
    headers = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            uri, headers, path, what = {'local': local_service, 'aci': aci_service,
                                        'endpoint': endpoint_service}[args.service](args, folder)
            rows, expected = stored_rows(path)
        check_service(session, uri, headers, rows, expected, deadline)
    except settings.SettingsError:
        raise
    except (AzureError, LookupError, ValueError) as error:
        raise AzureError(f'the smoke test of the service {args.service} failed: '
                         + harmless(str(error), headers)) from None
    # For the summary of the stage.
    atomic.write_json(args.out / 'smoke_test.json', {
        'uri': uri, 'what': what, 'rows': len(rows), 'lowest': min(expected),
        'highest': max(expected)})
    print(f'{uri} answers as {what} does: {len(rows)} rows as lists and as objects, '
          f'{len(rows) * TIMES} at once, scores from {min(expected):.4f} to {max(expected):.4f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
