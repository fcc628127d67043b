"""Files that are whole at any moment, however the script that writes them ends."""
import json
import os
from pathlib import Path

import ctrl_c  # noqa: F401


def write_bytes(path, content):
    """Write the content; the file then holds all of it, or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.{os.getpid()}')
    new.write_bytes(content)
    os.replace(str(new), str(path))


def write_json(path, value):
    """Write a value as JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + '\n').encode())


def read_json(path):
    """The JSON object of a file, or None if there is none. Raises ValueError with its path."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f'{path} is no JSON: remove it and run this again')
