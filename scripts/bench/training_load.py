"""Train with two threads until killed, or soon after the process that started it has ended."""
import os

import lightgbm
import numpy

random, parent = numpy.random.RandomState(1), os.getppid()
data = lightgbm.Dataset(random.rand(50000, 57), random.randint(0, 2, 50000)).construct()
print('ready', flush=True)
while os.getppid() == parent:
    lightgbm.train({'objective': 'binary', 'num_leaves': 60, 'num_threads': 2, 'verbose': -1},
                   data, 50)
