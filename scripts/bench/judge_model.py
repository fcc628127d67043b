"""The AUC to be expected of a model and after every five trees, and its calibration, as JSON.

    PYTHONPATH=training python judge_model.py TRUTH.npz MODEL
"""
import json
import sys

import lightgbm
import numpy

import metrics

with numpy.load(sys.argv[1]) as truth:
    features, probability = truth['features'], truth['probability']
model, raw, curve = lightgbm.Booster(model_file=sys.argv[2]), 0, []
for done in range(0, model.num_trees(), 5):
    trees = min(5, model.num_trees() - done)
    raw = raw + model.predict(features, raw_score=True, start_iteration=done, num_iteration=trees)
    curve.append([done + trees, metrics.expected_auc(probability, raw)])
calibration = float((1 / (1 + numpy.exp(-raw))).mean() / probability.mean())
print(json.dumps({'auc': curve[-1][1], 'curve': curve, 'calibration': calibration}))
