"""Check a table, upload it and register it as a new version of the dataset.

    python scripts/dataset.py --data train.csv
"""
import argparse
import hashlib
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import azure_ml
import settings
import workspace

CHECKER = Path(__file__).resolve().parent.parent / 'training' / 'table.py'
SLOWEST_BYTES_PER_SECOND = 100000


def find(space, name, version='latest'):
    """A version of the registered dataset, or None where there is none."""
    from azureml.core import Dataset
    try:
        return Dataset.get_by_name(space, name, version)
    except Exception as error:
        if azure_ml.status_of(error) == 404 or 'Cannot find dataset' in str(error):
            return None
        raise


def parts_of(path):
    """The files of the checked table, in their order. AzureError where they cannot be read now."""
    told = subprocess.run([sys.executable, str(CHECKER), '--parts', '--data', path],
                          stdout=subprocess.PIPE)
    if told.returncode:
        raise azure_ml.AzureError(f'{path} was not uploaded')
    return [part for part, _, _ in json.loads(told.stdout.decode())]


def stored_names(parts):
    """A name for each file in the store: no sign in it means anything there, order is theirs."""
    names = [re.sub('[^A-Za-z0-9_.-]', '_', Path(part).name) for part in parts]
    return names if len(names) == 1 else [f'{number:05}-{name}'
                                          for number, name in enumerate(names, 1)]


def register_table(space, config, path):
    """(registered dataset, whether its version is new)."""
    parts, digest, size = parts_of(path), hashlib.sha256(), 0
    for part in parts:
        with open(part, 'rb') as file, \
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest.update(content)
            size += len(content)
    digest, name = digest.hexdigest(), config.dataset_name
    with azure_ml.asking(f'look for the dataset {name}', config.call_timeout_seconds):
        found = find(space, name)
    if found is not None and (found.tags or {}).get('sha256') == digest:
        return found, False
    store = workspace.datastore(space, config)
    target, names = f'{name}/{digest[:16]}', stored_names(parts)
    stored = [f'{target}/{one}' for one in names]
    seconds = config.call_timeout_seconds + size / SLOWEST_BYTES_PER_SECOND
    with tempfile.TemporaryDirectory() as folder, azure_ml.asking(f'upload {path}', seconds):
        for part, one in zip(parts, names):
            os.symlink(os.path.abspath(part), os.path.join(folder, one))
        store.upload_files([os.path.join(folder, one) for one in names], relative_root=folder,
                           target_path=target, overwrite=True, show_progress=False)
        workspace.check_stored(store, stored)
    with azure_ml.asking(f'register the dataset {name}', config.call_timeout_seconds):
        from azureml.core import Dataset
        files = Dataset.File.from_files([(store, one) for one in stored], validate=False)
        return files.register(space, name, description='A table of drivers and their claims',
                              tags={'sha256': digest, 'file': Path(path).absolute().name},
                              create_new_version=True), True


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='the table: a CSV file or a folder of such')
    args = parser.parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE)
    if subprocess.call([sys.executable, str(CHECKER), '--data', args.data]):
        raise azure_ml.AzureError(f'{args.data} was not uploaded')
    found, new = register_table(workspace.connect(config), config, args.data)
    done = 'registered' if new else 'holds this table already'
    print(f'dataset {found.name}, version {found.version}: {done}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
