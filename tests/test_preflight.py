import re
import types

import pytest

import azure_ml
import preflight
import settings
import workspace

CONTRIBUTOR = {'actions': ['*'], 'notActions': ['Microsoft.Authorization/*/Write']}


def test_permissions_as_resource_manager_grants_them():
    write = 'Microsoft.MachineLearningServices/workspaces/models/write'
    assert preflight.allowed(write, [CONTRIBUTOR])
    assert not preflight.allowed('Microsoft.Authorization/roleAssignments/write', [CONTRIBUTOR])
    assert not preflight.allowed(write, [{'actions': ['*/read']}])
    assert not preflight.allowed(write, [])
    ours = {'actions': ['microsoft.machinelearningservices/workspaces/*/write']}
    assert preflight.allowed(write, [{'actions': ['*/read']}, ours])
    assert not preflight.allowed(write, [dict(ours, notActions=['*/models/*'])])


class Azure:
    """Resource Manager that answers everything with this; usages apart, where there are some."""
    subscription = group = ''
    workspace = space = None

    def __init__(self, answer, usages=None, **environ):
        self.config = settings.read(dict(environ, LOCATION='westeurope'))
        self.answer, self.usages = answer, usages

    def get(self, path, *_, **__):
        return {'value': self.usages} if path.endswith('/usages') else self.answer


@pytest.mark.parametrize('answer', [
    {'a': 1}, {'value': None}, {'value': [None]}, {'value': [{}]}, {'properties': None}])
def test_an_answer_of_another_form_is_a_line_and_the_rest_is_checked(answer, monkeypatch, capsys):
    monkeypatch.setattr(workspace, 'connect', lambda _: None)
    checks = [(title, check, None) for title, check, _ in preflight.CHECKS
              if title not in ('compute cluster', 'dataset')]
    bad = preflight.run_checks(Azure(answer), checks)
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != ' ']
    assert len(lines) == len(checks) and bad >= len(checks) - 2
    assert sum('answer is not of the form' in line for line in lines) >= 3


def test_a_sign_in_that_is_set_by_half_is_wrong_use(monkeypatch, capsys):
    for name, value in (('SUBSCRIPTION_ID', '00000000-0000-0000-0000-000000000001'),
                        ('RESOURCE_GROUP', 'group'), ('WORKSPACE_NAME', 'space'),
                        ('servicePrincipalKey', 'k')):
        monkeypatch.setenv(name, value)
    assert preflight.main([]) == 2
    assert re.search('^sign-in +MISSING +servicePrincipalKey is set without tenantId',
                     capsys.readouterr().out, re.M)


def region(*usages, **environ):
    """A region with one size of machine and usages, (type, name, limit)."""
    size = {'name': 'STANDARD_D2DS_V5', 'family': 'standardDDSv5Family', 'vCPUs': 2}
    return Azure({'value': [size]}, [
        {'type': f'Microsoft.MachineLearningServices/{kind}/usages', 'limit': limit,
         'name': {'value': name, 'localizedValue': name}, 'currentValue': 18}
        for kind, name, limit in usages], **environ)


def test_a_quota_is_missing_only_where_it_can_never_be_enough():
    # As in Azure/azure-rest-api-specs, machinelearningservices, examples/ListUsages.json.
    family = 'StandardDDSv5Family'
    no_own_limit = region(('vmFamily/lowPriorityCores', family, -1),
                          ('vmFamily/dedicatedCores', family, 0),
                          ('totalLowPriorityCores', 'TotalLowPriorityCores', 18),
                          AML_CLUSTER_PRIORITY='lowpriority')
    assert 'low priority is Spot' in preflight.check_size(no_own_limit)
    anothers = region(('vmFamily/dedicatedCores', 'StandardDSv2Family', 0),
                      ('vmFamily/dedicatedCores', family, 24), ('totalLowPriorityCores', 'x', 0))
    assert preflight.check_size(anothers) == 'STANDARD_D2DS_V5 in westeurope'
    for kind, name in (('vmFamily/dedicatedCores', family),
                       ('totalDedicatedCores', 'TotalDedicatedCores')):
        with pytest.raises(azure_ml.AzureError, match='is 0 cores, one machine needs 2'):
            preflight.check_size(region((kind, name, 0)))


def test_a_model_needs_as_many_machines_as_train_it():
    nodes = {'AML_TRAINING_NODES': '3', 'AML_CLUSTER_MAX_NODES': '4'}
    family = ('vmFamily/dedicatedCores', 'StandardDDSv5Family')
    assert preflight.check_size(region(family + (6,), **nodes))
    with pytest.raises(azure_ml.AzureError, match='is 5 cores, 3 machines need 6'):
        preflight.check_size(region(family + (5,), **nodes))

    def cluster_of(most):
        scale = types.SimpleNamespace(maximum_node_count=most)
        return types.SimpleNamespace(name='cluster', type='AmlCompute', scale_settings=scale)

    azure = Azure(None, **nodes)
    azure.space = types.SimpleNamespace(compute_targets={'train-cluster': cluster_of(3)})
    assert preflight.check_compute(azure) == 'cluster, at most 3 machines'
    azure.space.compute_targets['train-cluster'] = cluster_of(2)
    with pytest.raises(azure_ml.AzureError, match='at most 2 machines, and AML_TRAINING_NODES is '
                       '3: `make workspace` gives it AML_CLUSTER_MAX_NODES, 4'):
        preflight.check_compute(azure)


def test_early_stopping_is_refused_with_several_nodes(monkeypatch, tmp_path):
    (tmp_path / 'training').mkdir()
    path = tmp_path / 'training' / 'parameters.json'
    path.write_text('{"early_stopping_rounds": 20}')
    two, one = Azure(None, AML_TRAINING_NODES='2'), Azure(None)
    assert preflight.check_parameters(two) == 'training/parameters.json, for 2 nodes'
    monkeypatch.setattr(preflight.publish, 'ROOT', tmp_path)
    assert preflight.check_parameters(one)
    with pytest.raises(azure_ml.AzureError, match='^training/parameters.json: '
                       'early_stopping_rounds is 20; with 2 nodes it must be 0$'):
        preflight.check_parameters(two)


def test_the_endpoint_needs_machines_for_two_deployments_and_a_fifth_more():
    def region_of(limit):
        found = region(('vmFamily/dedicatedCores', 'StandardDASv4Family', limit))
        found.answer = {'value': [{'name': 'Standard_D2as_v4', 'family': 'standardDASv4Family',
                                   'vCPUs': 2}]}
        return found

    assert preflight.check_endpoint_size(region_of(12)).startswith('2 of Standard_D2as_v4')
    with pytest.raises(azure_ml.AzureError, match='is 11 cores, 6 machines need 12'):
        preflight.check_endpoint_size(region_of(11))


def test_what_was_not_checked_or_may_not_be_seen_is_not_counted_as_missing(capsys):
    def gone(_):
        raise azure_ml.AzureError('gone')

    def hidden(_):
        raise preflight.Unseen('hidden')

    checks = [('group', gone, None), ('space', str, 'group'), ('cluster', str, 'space'),
              ('size', hidden, None), ('quota', str, 'size')]
    assert preflight.run_checks(None, checks) == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        'MISSING', 'unknown', 'unknown', 'unknown', 'ok']
