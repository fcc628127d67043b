"""What the SDK sends to Azure ML, and what it is answered, against the SDK's own msrest models."""
import importlib
import json
import re

PACKAGES = {'r': 'azureml._restclient', 'a': 'azureml.pipeline.core._restclients.aeva',
            'w': 'azureml._base_sdk_common.workspace'}
# Where, what the SDK sends, what it is answered; models of its packages by their letters.
RUN = r'history/v1.0/experiment(s|ids)/[^/]+/runs/[^/]+'
ARTIFACTS = 'artifact/v2.0/artifacts/'
CONTRACT = [
    ('GET', r'(rp/workspaces)?', None, 'w.Workspace'),
    ('GET', r'(rp/workspaces)?/computes/[^/]+', None, 'w.ComputeResource'),
    ('GET', r'rp/workspaces/computes', None, 'w.PaginatedComputeResourcesList'),
    ('PUT', r'/computes/[^/]+', 'w.ComputeResource', 'w.ComputeResource'),
    ('PATCH', r'/computes/[^/]+', None, 'w.ComputeResource'),
    ('GET', r'datastore/v1.0/(default|datastores/[^/]+)', None, 'r.DataStore'),
    ('POST', r'dataset/v1.0/datasets', 'r.DatasetDto', 'r.DatasetDto'),
    ('GET', r'dataset/v1.0/datasets/query/name=.*', None, 'r.DatasetDto'),
    ('GET', r'dataset/v1.0/datasets/query/saved.*', None, 'r.PaginatedResultDatasetDto'),
    ('(GET|POST)', r'history/v1.0/experiments/[^/]+', None, 'r.ExperimentDto'),
    ('GET', RUN, None, 'r.RunDto'),
    ('PATCH', RUN, 'r.CreateRunDto', 'r.RunDto'),
    ('GET', RUN + '/details', None, 'r.RunDetailsDto'),
    ('GET', RUN + '/children', None, 'r.PaginatedRunDto'),
    ('POST', r'history/v1.0/experiments/[^/]+/runs/?:query', 'r.QueryParamsDto',
     'r.PaginatedRunDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/batch', 'r.BatchMetricV2Dto', 'r.PostRunMetricsResultDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/list', 'r.ListMetricsDto', 'r.PaginatedMetricDefinitionDto'),
    ('POST', r'metric/v2.0/runs/[^/]+/full', 'r.RetrieveFullFidelityMetricRequestDto',
     'r.MetricV2Dto'),
    ('POST', ARTIFACTS + 'batch/metadata/.*', 'r.BatchArtifactCreateCommand',
     'r.BatchArtifactContentInformationDto'),
    ('GET', ARTIFACTS + 'contentinfo/.*', None, 'r.ArtifactContentInformationDto'),
    ('GET', ARTIFACTS + 'prefix/contentinfo/.*', None,
     'r.PaginatedArtifactContentInformationDto'),
    ('GET', ARTIFACTS + '[^/]+/[^/]+', None, 'r.PaginatedArtifactDto'),
    ('POST', r'modelmanagement/v1.0/assets', 'r.Asset', 'r.Asset'),
    ('GET', r'modelmanagement/v1.0/assets/[^/]+', None, 'r.Asset'),
    ('POST', r'model(management|registry)/v1.0/models', 'r.Model', 'r.Model'),
    ('GET', r'model(management|registry)/v1.0/models/[^/]+', None, 'r.Model'),
    ('GET', r'model(management|registry)/v1.0/models', None, 'r.PaginatedModelList'),
    ('POST', r'modelmanagement/v1.0/services', 'r.ACIServiceCreateRequest', None),
    ('GET', r'modelmanagement/v1.0/services/[^/]+', None, 'r.ACIServiceResponse'),
    ('GET', r'modelmanagement/v1.0/operations/[^/]+', None, 'r.AsyncOperationStatus'),
    ('POST', r'modelmanagement/v1.0/services/[^/]+/listkeys', None, 'r.AuthKeys'),
    ('GET', r'pipelines/v1.0/DataTypes', None, '[a.DataTypeEntity]'),
    ('POST', r'pipelines/v1.0/Modules', 'a.ModuleCreationInfo', 'a.ModuleEntity'),
    ('GET', r'pipelines/v1.0/Modules/(Hash/)?[^/]+', None, 'a.Module'),
    ('POST', r'pipelines/v1.0/Pipelines/Create', 'a.PipelineCreationInfo', 'a.PipelineEntity'),
    ('GET', r'pipelines/v1.0/Pipelines', None, '[a.PipelineEntity]'),
    ('GET', r'pipelines/v1.0/Pipelines/[^/]+', None, 'a.PipelineEntity'),
    ('PUT', r'pipelines/v1.0/Pipelines/[^/]+/status', None, None),
    ('POST', r'pipelines/v1.0/PipelineRuns/PipelineSubmit/[^/]+', 'a.PipelineSubmissionInfo',
     'a.PipelineRunEntity'),
    ('GET', r'pipelines/v1.0/PipelineRuns/[^/]+', None, 'a.PipelineRunEntity'),
    ('DELETE', r'pipelines/v1.0/PipelineRuns/[^/]+/Execution', None, None),
    # The SDK has no model of these; it reads them as they are.
    ('.*', r'environment/v\d.0/.*|content/v\d.0/snapshots/.*|data/v1.0/dataversion/.*', None, None),
    ('POST', r'modelmanagement/v1.0/services/validate.*', None, None),
    ('(GET|DELETE)', r'modelmanagement/v1.0/services/[^/]+(/logs)?', None, None),
    ('POST', r'pipelines/v1.0/PipelineRuns/[^/]+/Graph/Node/StatusCode', None, None),
    ('(POST|GET)', r'history/v1.0/.*(metrics:query|metricsingest/wait|token)', None, None),
]
# The SDK sends environments with more than its own models have, and is answered with them.
EXCUSED = 'ACIService.*environmentImageRequest.environment.'


def load_models():
    """{letter of the table: (its models by name, a parser for them)}"""
    import msrest
    found = {}
    for letter, package in PACKAGES.items():
        models = importlib.import_module(package + '.models')
        classes = {name: one for name, one in vars(models).items() if isinstance(one, type)}
        found[letter] = classes, msrest.Deserializer(classes)
    return found


def problems(models, name, value):
    """What is wrong with a value, or with each of a list, according to the model of that name."""
    letter, plain = name.strip('[]').split('.')
    classes, parse = models[letter]
    assert plain in classes, f'there is no model {name}'
    found = []
    for one in value if name[0] == '[' else [value]:
        try:
            found += [str(error) for error in parse(plain, one).validate()]
        except Exception as error:
            found.append(f'{type(error).__name__}: {error}')
        found += unknown_keys(plain, one, classes, '')
    return found


def unknown_keys(name, value, classes, path):
    """Keys of the value that the model, and the models within it, do not have."""
    if name[0] == '[':
        return [key for one in value or []
                for key in unknown_keys(name[1:-1], one, classes, path + '[]')]
    if name[0] == '{':
        return [key for one in (value or {}).values()
                for key in unknown_keys(name[1:-1], one, classes, path + '{}')]
    found = []
    known = {attribute['key'].replace('\\.', '.').lower(): attribute['type']
             for attribute in getattr(classes.get(name), '_attribute_map', {}).values()}
    nested = {key.split('.')[0] for key in known if '.' in key}
    if isinstance(value, dict) and known and '' not in known:
        for key, inner in value.items():
            if key.lower() in known:
                found += unknown_keys(known[key.lower()], inner, classes, f'{path}.{key}')
            elif key.lower() not in nested:
                found.append(f'{path}.{key}')
    return found


def violations(exchanges):
    """(what breaks the contract, the rows of CONTRACT that were used) by these exchanges.

    exchanges: (method, path, status, bytes sent, JSON answered), as the stand-in keeps them.
    """
    models, found, used = load_models(), set(), set()
    # Each run, service and list is asked for again and again.
    for method, path, status, sent, answered in {str(one): one for one in exchanges}.values():
        short = re.sub(r'/?subscriptions/.*?/workspaces/[^/]+', '', path.lstrip('/'), flags=re.I)
        # The SDK knows no endpoints.
        if re.match('/(codes|onlineEndpoints)(/|$)', short, re.I):
            continue
        row = next((row for row in CONTRACT if re.fullmatch(row[0], method)
                    and re.fullmatch(row[1], short.rstrip('/'), re.I)), None)
        if row is None:
            found.add(f'{method} {short} is in no row of the contract')
            continue
        used.add(row)
        for name, value in ((row[2], json.loads(sent.decode()) if row[2] and sent else None),
                            (row[3], answered if status < 300 else None)):
            if name and value:
                found.update(f'{method} {row[1]}: {name}: {wrong}'
                             for wrong in problems(models, name, value))
    return sorted(one for one in found if not re.search(EXCUSED, one)), used
