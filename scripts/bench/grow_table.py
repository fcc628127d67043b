"""Make a sample table longer, all processors at work.

    PYTHONPATH=training python grow_table.py TABLE FROM TO

FROM: its rows so far, 0 to begin it. Not the rows of sample.py, which makes a table in one stream.
"""
import multiprocessing
import sys

import sample
import table

PIECE_ROWS = 50000
# sample.py gives ids 2.5 apart on average: those of a piece end before the next one begins.
IDS_A_ROW = 8


def piece(start):
    """The rows from this one on as lines of CSV."""
    lines = []
    for frame in sample.generate(min(PIECE_ROWS, stop - start), start):
        frame['id'] += start * IDS_A_ROW
        lines.extend(sample.lines(frame))
    return ''.join(lines)


path, begin, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, 'a' if begin else 'w', newline='\n') as out, \
        multiprocessing.get_context('fork').Pool() as pool:
    if not begin:
        out.write(','.join(table.COLUMNS) + '\n')
    out.writelines(pool.imap(piece, range(begin, stop, PIECE_ROWS)))
