"""Check a table, upload it and register it as a new version of the dataset.

    python scripts/dataset.py --data train.csv
"""
import argparse
import hashlib
import mmap
import os
import subprocess
import sys
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


def register_table(space, config, path):
    """(registered dataset, whether its version is new)."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        digest = hashlib.sha256(content).hexdigest()
    name = config.dataset_name
    with azure_ml.asking(f'look for the dataset {name}', config.call_timeout_seconds):
        found = find(space, name)
    if found is not None and (found.tags or {}).get('sha256') == digest:
        return found, False
    store = workspace.datastore(space, config)
    target = f'{name}/{digest[:16]}'
    seconds = config.call_timeout_seconds + os.path.getsize(path) / SLOWEST_BYTES_PER_SECOND
    with azure_ml.asking(f'upload {path}', seconds):
        store.upload_files([str(path)], target_path=target, overwrite=True, show_progress=False)
        workspace.check_stored(store, [f'{target}/{Path(path).name}'])
    with azure_ml.asking(f'register the dataset {name}', config.call_timeout_seconds):
        from azureml.core import Dataset
        files = Dataset.File.from_files([(store, f'{target}/{Path(path).name}')],
                                        validate=False)
        return files.register(space, name, description='A table of drivers and their claims',
                              tags={'sha256': digest, 'file': Path(path).name},
                              create_new_version=True), True


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='the table, a CSV file')
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
