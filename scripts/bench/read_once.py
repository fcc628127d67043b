"""Seconds to read a table once.

    python read_once.py TABLE bytes|pandas

bytes: by read(), nothing else done. pandas: parsed in pieces, one after another.
"""
import sys
import time

import pandas

path, how = sys.argv[1:]
begin = time.monotonic()
if how == 'bytes':
    with open(path, 'rb', buffering=0) as file:
        while file.read(1 << 20):
            pass
else:
    for frame in pandas.read_csv(path, chunksize=50000):
        pass
print(time.monotonic() - begin)
