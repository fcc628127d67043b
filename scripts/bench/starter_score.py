"""The challenge's starter: json, numpy and the lightgbm package."""
import json
import os

import lightgbm
import numpy


def init():
    global model
    model = lightgbm.Booster(model_file=os.environ['AZUREML_MODEL_DIR'] + '/model/model.txt')


def run(raw_data, request_headers):
    data = numpy.array(json.loads(raw_data)['data'])
    result = model.predict(data)
    print(json.dumps({'RequestId': request_headers.get('X-Ms-Request-Id', ''),
                      'TraceParent': request_headers.get('Traceparent', ''),
                      'NumberOfPredictions': len(result)}))
    return {'result': result.tolist()}
