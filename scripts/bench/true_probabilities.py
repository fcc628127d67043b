"""Keep the features of a sample table and the probabilities that its targets were drawn from.

    PYTHONPATH=training python true_probabilities.py TABLE TRUTH.npz
"""
import sys

import numpy

import sample
import table

frame = table.read_table(sys.argv[1])
numpy.savez(sys.argv[2], features=frame[table.FEATURES].to_numpy(numpy.float32),
            probability=sample.claim_probabilities(frame))
