"""Training as the challenge leaves it: the whole table in pandas, early stopping on a fifth.

    python reference_training.py TABLE PARAMETERS MODEL

The last line is JSON: {"boosting": seconds, "rounds": ..., "auc": of that fifth}.
"""
import json
import sys
import time

import lightgbm
import numpy
import pandas

table, parameters, model_file = sys.argv[1:]
data = pandas.read_csv(table)
order = numpy.random.RandomState(0).permutation(len(data))
fifth = len(data) // 5
features, labels = data.drop(['target', 'id'], axis=1), numpy.array(data['target'])
train_data = lightgbm.Dataset(features.iloc[order[fifth:]], label=labels[order[fifth:]])
valid_data = lightgbm.Dataset(features.iloc[order[:fifth]], label=labels[order[:fifth]],
                              free_raw_data=False)
began = []


def clock(env):
    began.append(time.monotonic())


clock.before_iteration = True
with open(parameters) as file:
    training = json.load(file)['training']
model = lightgbm.train(training, train_data, valid_sets=[valid_data], num_boost_round=500,
                       callbacks=[lightgbm.early_stopping(20, verbose=False), clock])
seconds = time.monotonic() - began[0]
score, label = model.predict(valid_data.data), valid_data.label
rank = numpy.empty(len(score))
rank[numpy.argsort(score)] = numpy.arange(len(score))
ones = label.sum()
auc = (rank[label == 1].sum() - ones * (ones - 1) / 2) / ones / (len(label) - ones)
model.save_model(model_file)
print(json.dumps({'boosting': seconds, 'rounds': model.best_iteration, 'auc': auc}))
