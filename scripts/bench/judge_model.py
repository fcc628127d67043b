"""The AUC to be expected of a model and after every five trees, and its calibration, as JSON.

    PYTHONPATH=training python judge_model.py TABLE MODEL

TABLE is a sample table: its generator knows the probabilities that its targets were drawn from.
"""
import json
import sys

import lightgbm
import numpy

import metrics
import sample
import table

frame = table.read_table(sys.argv[1])
features, probability = frame[table.FEATURES], sample.claim_probabilities(frame)
model, raw, curve = lightgbm.Booster(model_file=sys.argv[2]), 0, []
for done in range(0, model.num_trees(), 5):
    trees = min(5, model.num_trees() - done)
    raw = raw + model.predict(features, raw_score=True, start_iteration=done, num_iteration=trees)
    curve.append([done + trees, metrics.expected_auc(probability, raw)])
calibration = float((1 / (1 + numpy.exp(-raw))).mean() / probability.mean())
print(json.dumps({'auc': curve[-1][1], 'curve': curve, 'calibration': calibration}))
