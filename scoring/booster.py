"""The few calls of LightGBM's C library that scoring needs, without the Python package around it.

Importing `lightgbm` (numpy, scipy, and pandas, pyarrow and scikit-learn where they are installed)
takes most of the service's start-up time and memory; the C library alone is there in 0.03 s.
"""
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import threading
from pathlib import Path

FLOAT64, ROW_MAJOR, NORMAL, CONTRIBUTIONS, ALL_TREES = 1, 1, 0, 3, -1
# LightGBM itself writes it last; its Python package adds the categories of pandas.
LAST_LINE = '\nend of parameters\n'
CONTRACT = Path(__file__).with_name('swagger3.json')


class ModelError(RuntimeError):
    """The model file cannot be used, or LightGBM refused a call; the text says why."""


def load_library():
    """LightGBM's C library, found by the package's own rules (pip and conda-forge differ there)."""
    package = importlib.util.find_spec('lightgbm')
    if package is None:
        raise ModelError('the package lightgbm is not installed')
    path = os.path.join(os.path.dirname(package.origin), 'libpath.py')
    spec = importlib.util.spec_from_file_location('lightgbm_libpath', path)
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    find = getattr(rules, '_find_lib_path', None) or rules.find_lib_path
    library = ctypes.CDLL(find()[0])
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    return library


def read_header(path, digest=None):
    """The lines `key=value` at the top of a LightGBM text model, as a dict of strings.

    Raises ModelError where the file is no whole text model of one probability a row of our columns,
    or has another SHA-256 than the digest or metrics.json beside it, as far as there are such.
    """
    path = Path(path)
    content, report = path.read_bytes(), path.with_name('metrics.json')
    told = json.loads(report.read_text(encoding='utf-8')) if report.is_file() else {}
    if not {None, hashlib.sha256(content).hexdigest()} >= {digest, told.get('model_sha256')}:
        raise ModelError(f'{path} was changed or damaged: its SHA-256 is not the one that was '
                         'written down when it was made')
    top, _, trees = content.decode('latin-1').partition('\n\n')
    header = dict(line.partition('=')[::2] for line in top.splitlines())
    size = sum(map(int, re.findall('[0-9]+', header.get('tree_sizes', ''))))
    if not trees.startswith('end of trees', size) or LAST_LINE not in trees:
        raise ModelError(f'{path} is damaged, or not a whole LightGBM text model')
    if not header.get('objective', '').startswith('binary') or header.get('num_class') != '1':
        raise ModelError(f"{path} has the objective {header.get('objective')!r}; a binary one is "
                         'needed')
    columns = json.loads(CONTRACT.read_text())['components']['schemas']['RowAsObject']['required']
    if header.get('feature_names') != ' '.join(columns):
        raise ModelError(f"{path} has other columns than the service's {len(columns)}, or has them "
                         'in another order')
    return header


class Booster:
    """A LightGBM text model. Safe to use from several threads."""

    def __init__(self, path, digest=None):
        self.columns = read_header(path, digest)['feature_names'].split(' ')
        self.library = load_library()
        self.handle, trees = ctypes.c_void_p(), ctypes.c_int()
        self._call('LGBM_BoosterCreateFromModelfile', os.fsencode(path), ctypes.byref(trees),
                   ctypes.byref(self.handle))
        self.trees = trees.value
        # Over a tree with a way back this ends the process, and a score would never come.
        self._call('LGBM_BoosterDumpModel', self.handle, 0, ALL_TREES, 0, ctypes.c_int64(0),
                   ctypes.byref(ctypes.c_int64()), None)
        # A call made ready for one row takes a fifth of the time. LightGBM 3.1.1, the container's,
        # gives wrong scores when several threads use it at a time.
        self.one_row, self.one_row_lock = ctypes.c_void_p(), threading.Lock()
        self._call('LGBM_BoosterPredictForMatSingleRowFastInit', self.handle, NORMAL, 0, ALL_TREES,
                   FLOAT64, ctypes.c_int32(len(self.columns)), b'num_threads=1',
                   ctypes.byref(self.one_row))

    def _call(self, name, *args):
        if getattr(self.library, name)(*args) != 0:
            raise ModelError(f'{name}: {self.library.LGBM_GetLastError().decode()}')

    def predict(self, values, rows, threads):
        """The probability of each row (list of floats).

        `values` are rows x columns float64 in native byte order, row after row, as bytes.
        """
        self._check_size(values, rows)
        scores, count = (ctypes.c_double * rows)(), ctypes.c_int64()
        # Should the server's alarm leave the lock held, one row takes the long way; nobody waits.
        if rows == 1 and self.one_row_lock.acquire(False):
            try:
                self._call('LGBM_BoosterPredictForMatSingleRowFast', self.one_row, values,
                           ctypes.byref(count), scores)
            finally:
                self.one_row_lock.release()
        else:
            self._predict(NORMAL, values, rows, threads, count, scores)
        if count.value != rows:
            raise ModelError(f'{count.value} scores for {rows} rows')
        return scores[:]

    def contributions(self, values, rows, threads):
        """What each column adds to each row's log-odds, and last the base value: lists of floats.

        `values` as in predict(). LightGBM's exact values (its prediction type "contributions"),
        which add up to the raw score.
        """
        self._check_size(values, rows)
        width = len(self.columns) + 1
        found, count = (ctypes.c_double * (rows * width))(), ctypes.c_int64()
        self._predict(CONTRIBUTIONS, values, rows, threads, count, found)
        if count.value != rows * width:
            raise ModelError(f'{count.value} contributions for {rows} rows')
        return [found[start:start + width] for start in range(0, rows * width, width)]

    def _check_size(self, values, rows):
        if len(values) != 8 * rows * len(self.columns):
            raise ValueError(
                f'{len(values)} bytes are not {rows} rows of {len(self.columns)} columns')

    def _predict(self, kind, values, rows, threads, count, found):
        self._call('LGBM_BoosterPredictForMat', self.handle, values, FLOAT64, ctypes.c_int32(rows),
                   ctypes.c_int32(len(self.columns)), ROW_MAJOR, kind, 0, ALL_TREES,
                   b'num_threads=%d' % threads, ctypes.byref(count), found)
