"""All that the stand-in remembers: tables of JSON documents in one journal, and files for blobs.

The journal is replayed and tidied at start, so that the stand-in can be stopped at any moment
and started again on the same folder. A torn last line, left by a kill, is dropped.
"""
import contextlib
import hashlib
import json
import os
import threading


class Missing(KeyError):
    """There is no such document or blob."""


class Journal:
    """Tables of JSON documents in one file. What is read is a copy; what is put back is kept."""

    def __init__(self, path):
        self.lock = threading.RLock()
        self._tables = {}
        if os.path.exists(path):
            with open(path, encoding='utf-8') as lines:
                for line in lines:
                    if line.endswith('\n'):
                        self._apply(*json.loads(line))
        with private_file(path + '.new') as tidy:
            for table, rows in self._tables.items():
                for key, text in rows.items():
                    tidy.write(_line(table, key, text))
        os.replace(path + '.new', path)
        self._file = open(path, 'a', encoding='utf-8')

    def table(self, name):
        return Table(self, name)

    def rows(self, table):
        return self._tables.setdefault(table, {})

    def write(self, table, key, document):
        with self.lock:
            self._apply(table, key, document)
            if not self._file.closed:
                self._file.write(_line(table, key, json.dumps(document)))
                self._file.flush()

    def close(self):
        with self.lock:
            self._file.close()

    def _apply(self, table, key, document):
        if document is None:
            self.rows(table).pop(key, None)
        else:
            self.rows(table)[key] = json.dumps(document)


class Table:
    """A dictionary of JSON documents by key, in the order in which the keys first came."""

    def __init__(self, journal, name):
        self._journal = journal
        self._name = name

    def __getitem__(self, key):
        try:
            return json.loads(self._journal.rows(self._name)[key])
        except KeyError:
            raise Missing(f"{self._name.rsplit('/', 1)[-1].rstrip('s')} {key}")

    def __setitem__(self, key, document):
        self._journal.write(self._name, key, document)

    def __delitem__(self, key):
        self._journal.write(self._name, key, None)

    def __contains__(self, key):
        return key in self._journal.rows(self._name)

    def __len__(self):
        return len(self._journal.rows(self._name))

    def get(self, key):
        return self[key] if key in self else None

    def values(self):
        with self._journal.lock:
            return [json.loads(text) for text in self._journal.rows(self._name).values()]

    @contextlib.contextmanager
    def change(self, key):
        """The document under `key`, to be changed in place while nobody else writes."""
        with self._journal.lock:
            document = self[key]
            yield document
            self[key] = document


class Blobs:
    """Blobs as files, FOLDER/ACCOUNT/CONTAINER/NAME, so a mounted container is its folder."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self._staged = os.path.join(os.path.dirname(self.folder), 'blocks')
        os.makedirs(self._staged, mode=0o700, exist_ok=True)

    def path(self, account, container, name=''):
        root = os.path.join(self.folder, account, container)
        path = os.path.normpath(os.path.join(root, name))
        if os.path.relpath(path, root).startswith('..'):
            raise Missing(f'blob name {name!r} leaves its container')
        return path

    def write(self, path, content):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        temporary = os.path.join(self._staged, f'new.{threading.get_ident()}')
        with private_file(temporary, 'wb') as file:
            file.write(content)
        os.replace(temporary, path)

    def stage_block(self, path, block, content):
        self.write(os.path.join(self._staged, _flat(path), _flat(block)), content)

    def join_blocks(self, path, blocks):
        """Make the blob of its staged blocks, as Put Block List does."""
        staged = os.path.join(self._staged, _flat(path))
        parts = []
        for block in blocks:
            with open(os.path.join(staged, _flat(block)), 'rb') as file:
                parts.append(file.read())
        self.write(path, b''.join(parts))
        for name in os.listdir(staged) if os.path.isdir(staged) else []:
            os.remove(os.path.join(staged, name))

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


def private_file(path, mode='w'):
    """Open `path` for writing, readable by its owner only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return os.fdopen(descriptor, mode, encoding=None if 'b' in mode else 'utf-8')


def _line(table, key, text):
    return f'[{json.dumps(table)}, {json.dumps(key)}, {text}]\n'


def _flat(name):
    return hashlib.sha256(name.encode()).hexdigest()
