"""Small files that pass results from script to script."""
import json
import os
import time
from pathlib import Path


def now():
    """The time in UTC as ISO text to the second."""
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())


def local_build():
    """An id for what is published or run outside a build."""
    return time.strftime('local-%Y%m%dT%H%M%SZ', time.gmtime())


def write_json(path, value):
    """Write a value as JSON so that the file is whole at any moment."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name('.%s.%d' % (path.name, os.getpid()))
    new.write_text(json.dumps(value, indent=2) + '\n')
    os.replace(str(new), str(path))


def read_json(path):
    """The JSON object of a file, or None if there is none. Raises ValueError with its path."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError('%s is no JSON: remove it and run this again' % path)
    return value
