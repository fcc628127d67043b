"""Train with a base commit's code and parameters and with those here, on one table; compare.

    python scripts/compare.py --base origin/master --data outputs/data/safe_driver.csv --out outputs

Writes compare/compare.json into --out, of which `make summary STAGE=compare` tells. Only a
training that fails here is an error.
"""
import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import atomic
import azure_ml
import bench_report
import summary

ROOT = Path(__file__).resolve().parent.parent


def make(folder, *words):
    """{"seconds", "megabytes": the largest process} of make in a folder. AzureError if it fails."""
    # Not what the make that started this one was told.
    environ = {name: value for name, value in os.environ.items()
               if name not in ('MAKEFLAGS', 'MAKEOVERRIDES', 'OUT', 'VENV')}
    code, said, used = bench_report.run_measured(
        ('make', *words, f'PYTHON={sys.executable}', 'MODEL_NAME=compared'), cwd=str(folder),
        env=environ)
    if code:
        raise azure_ml.AzureError(f'make {words[0]} failed in {folder}:\n{said}')
    return {'seconds': used['wall, s'], 'megabytes': used['peak memory, MB']}


def git(*words):
    """What git prints (bytes) in the project's folder. AzureError where it fails."""
    done = subprocess.run(['git', *words], cwd=str(ROOT), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode:
        raise azure_ml.AzureError(f"git {' '.join(words)}: {done.stderr.decode().strip()}")
    return done.stdout


def unpack(base, folder):
    """The commit (str) that `base` names, its files in the new folder. AzureError if there is none.
    """
    try:
        commit = git('rev-parse', '--verify', '--quiet', f'{base}^{{commit}}').decode().strip()
    except azure_ml.AzureError:
        raise azure_ml.AzureError(
            f"BASE is '{base}', and git knows no such commit here: fetch it, as in `git fetch "
            "origin master`, or name another") from None
    with tarfile.open(fileobj=io.BytesIO(git('archive', commit))) as archive:
        archive.extractall(str(folder))
    return commit


def train(folder, out, data):
    """Train in a project's folder: metrics.json, with "seconds" and "megabytes" of training."""
    used = make(folder, 'train', f'OUT={out}', f'DATA={data}')
    report = atomic.read_json(Path(folder, out, 'model', 'metrics.json'), 'auc', 'auc_interval')
    return dict(used, **{name: report[name] for name in ('auc', 'auc_interval')})


def compare(base, data, out):
    """The content of compare.json; the trees and results of both are in `out` (Path). AzureError.

    Paths within a project's folder are relative, since make cannot handle all that one may lie in.
    """
    before, here = out / 'before', os.path.relpath(str(out / 'here'), str(ROOT))
    for folder in (before, out / 'here'):
        shutil.rmtree(str(folder), ignore_errors=True)
    found = {'base': base, 'commit': unpack(base, before), 'table': data.name,
             'here': train(ROOT, here, data)}
    try:
        found['before'] = train(before, 'outputs', data)
        make(before, 'register', 'OUT=outputs', f'DATA={data}', 'RUN_EVALUATION=false')
        shutil.copytree(str(before / 'outputs' / 'registry'), str(ROOT / here / 'registry'))
        make(ROOT, 'evaluate', f'OUT={here}', f'DATA={data}', 'RUN_EVALUATION=true')
        found['decision'] = atomic.read_json(ROOT / here / 'decision.json', 'metric', 'reason',
                                             'difference', 'difference_interval')
    except (azure_ml.AzureError, ValueError) as error:
        # What is asked about is the code here; the base may be from before this could be asked.
        found['problem'] = str(error)
    return found


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--base', required=True, help='the commit to compare with')
    parser.add_argument('--data', type=Path, required=True,
                        help='table to train on, a CSV file or a folder of such')
    parser.add_argument('--out', type=Path, required=True, help='folder for results')
    args = parser.parse_args(argv)
    folder = args.out.resolve() / 'compare'
    atomic.write_json(folder / 'compare.json', compare(args.base, args.data.resolve(), folder))
    print(summary.compare(args.out, '')[0], end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
