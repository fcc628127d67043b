"""What train.py hands to LightGBM as a file.

    PYTHONPATH=training python training_matrix.py TABLE PARAMETERS OUT

OUT, of numpy.savez: matrix, label, weight, names, and as JSON own (LightGBM's parameters), rounds.
"""
import json
import sys

import lightgbm
import numpy

import table
import train


def keep(matrix, label, weight=None, params=None, feature_name=None, **_):
    with open(out, 'wb') as file:
        numpy.savez(file, matrix=matrix, label=label, weight=weight, names=feature_name,
                    own=json.dumps(params), rounds=parameters['rounds'])
    sys.exit()


data, parameters, out = sys.argv[1:]
parameters = train.load_parameters(parameters)
lightgbm.Dataset = keep
train.fit(table.read_table(data), parameters)
