"""All that the stand-in remembers while it runs: tables of JSON documents, and blobs as files."""
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


class Table:
    """Documents by key, in the order in which the keys first came.

    What is read is a copy; what is put back is kept.
    """

    def __init__(self, name, lock):
        self._name, self._lock, self._texts = name, lock, {}

    def __getitem__(self, key):
        try:
            return json.loads(self._texts[key])
        except KeyError:
            raise Missing(f"{self._name.rsplit('/', 1)[-1].rstrip('s')} {key}")

    def __setitem__(self, key, document):
        with self._lock:
            self._texts[key] = json.dumps(document)

    def __delitem__(self, key):
        with self._lock:
            self._texts.pop(key, None)

    def __contains__(self, key):
        return key in self._texts

    def __len__(self):
        return len(self._texts)

    def get(self, key):
        return self[key] if key in self else None

    def values(self):
        with self._lock:
            return [json.loads(text) for text in self._texts.values()]

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
        self.folder = os.path.abspath(folder)
        self._blocks = {}

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

    def stage_block(self, path, block, content):
        self._blocks[path, block] = content

    def join_blocks(self, path, blocks):
        """Make the blob of its staged blocks, as Put Block List does."""
        self.write(path, b''.join(self._blocks.pop((path, block)) for block in blocks))

    def names(self, account, container, prefix=''):
        """The names of the container's blobs that begin with `prefix`, in order."""
        root = self.path(account, container)
        found = []
        for folder, _, files in os.walk(self.path(account, container, os.path.dirname(prefix))):
            for file in files:
                name = os.path.relpath(os.path.join(folder, file), root)
                if name.startswith(prefix):
                    found.append(name)
        return sorted(found)


def open_private(path):
    """Open `path` for writing bytes, readable by its owner only."""
    return open(path, 'wb', opener=lambda name, flags: os.open(name, flags, 0o600))
