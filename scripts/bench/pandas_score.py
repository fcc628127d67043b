"""Scoring as the earlier challenges leave it: rows as objects, which a schema makes a table."""
import os

import lightgbm
import numpy
import pandas
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.schema_decorators import input_schema, output_schema

# Here and not in init(): the schema needs the names of the columns.
model = lightgbm.Booster(model_file=os.environ['AZUREML_MODEL_DIR'] + '/model/model.txt')
sample = pandas.DataFrame([dict.fromkeys(model.feature_name(), 0.5)])


def init():
    pass


@input_schema('data', PandasParameterType(sample))
@output_schema(NumpyParameterType(numpy.array([0.0])))
def run(data):
    return {'result': model.predict(data).tolist()}
