"""One process of LightGBM on what it finds in memory.

    python memory_training.py MATRIX

MATRIX: as training_matrix.py makes it. The last line is JSON: {"dataset": seconds, "boosting":
seconds, "model": SHA-256 of its text}.
"""
import hashlib
import json
import sys
import time

import lightgbm
import numpy

with numpy.load(sys.argv[1]) as file:
    matrix, label, weight = file['matrix'], file['label'], file['weight']
    names, own, rounds = file['names'].tolist(), json.loads(str(file['own'])), int(file['rounds'])
begin = time.monotonic()
data = lightgbm.Dataset(matrix, label, weight=weight, params=own, feature_name=names).construct()
middle = time.monotonic()
model = lightgbm.train(own, data, rounds)
end = time.monotonic()
text = model.model_to_string()
print(json.dumps({'dataset': middle - begin, 'boosting': end - middle,
                  'model': hashlib.sha256(text.encode()).hexdigest()}))
