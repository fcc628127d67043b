"""Files that are whole at any moment, however the script that writes them ends."""
import contextlib
import json
import os
from pathlib import Path

import ctrl_c  # noqa: F401


def write_bytes(path, content):
    """Write the content; the file then holds all of it, or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        new.write_bytes(content)
        os.replace(str(new), str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def write_json(path, value):
    """Write a value as JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + '\n').encode())


def read_json(path, *names):
    """The JSON object with these names that a file holds; None: no file. Raises ValueError."""
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not set(names) <= set(found):
        wanted = f" with {', '.join(names)}" if names else ''
        raise ValueError(f'{path} holds no JSON object{wanted}: remove it and run this again')
    return found
