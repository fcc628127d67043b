"""All that the stand-in remembers while it runs: tables of JSON documents, and blobs as files."""
import collections
import contextlib
import json
import os
import threading


class Missing(KeyError):
    """There is no such document or blob."""


class Journal:
    """Tables of JSON documents in memory, by name."""

    def __init__(self):
        self.lock = threading.RLock()
        self._tables = {}

    def table(self, name):
        return self._tables.setdefault(name, Table(name, self.lock))


class Table(collections.UserDict):
    """Documents by key, in the order in which the keys first came.

    What is read is a copy; what is put back is kept.
    """

    def __init__(self, name, lock):
        super().__init__()
        self._name, self._lock = name, lock

    def __missing__(self, key):
        raise Missing(f"{self._name.rsplit('/', 1)[-1].rstrip('s')} {key}")

    def __getitem__(self, key):
        return json.loads(super().__getitem__(key))

    def __setitem__(self, key, document):
        with self._lock:
            self.data[key] = json.dumps(document)

    def values(self):
        with self._lock:
            return [json.loads(text) for text in self.data.values()]

    @contextlib.contextmanager
    def change(self, key):
        """The document under `key`, to be changed in place while nobody else writes."""
        with self._lock:
            document = self[key]
            yield document
            self[key] = document


class Blobs:
    """Blobs as files, FOLDER/ACCOUNT/CONTAINER/NAME, so a mounted container is its folder."""

    def __init__(self, folder):
        self.folder = folder
        # {(path, block): bytes} of the blocks that no list has joined yet.
        self.blocks = {}

    def path(self, account, container, name=''):
        root = os.path.join(self.folder, account, container)
        path = os.path.normpath(os.path.join(root, name))
        if os.path.relpath(path, root).startswith('..'):
            raise Missing(f'blob name {name!r} leaves its container')
        return path

    def write(self, path, content):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        # Beside the folder: in a container it would be a blob.
        temporary = f'{self.folder}.{threading.get_ident()}'
        with open_private(temporary) as file:
            file.write(content)
        os.replace(temporary, path)

    def names(self, account, container, prefix=''):
        """The names of the container's blobs that begin with `prefix`, in order."""
        root = self.path(account, container)
        start = self.path(account, container, os.path.dirname(prefix))
        found = [os.path.relpath(os.path.join(folder, file), root)
                 for folder, _, files in os.walk(start) for file in files]
        return sorted(name for name in found if name.startswith(prefix))


def open_private(path):
    """Open `path` for writing bytes, readable by its owner only."""
    return open(path, 'wb', opener=lambda name, flags: os.open(name, flags, 0o600))
