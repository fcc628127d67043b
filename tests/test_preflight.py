import pytest

import preflight
import settings

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


@pytest.mark.parametrize('answer', [
    {'a': 1}, {'value': None}, {'value': [None]}, {'value': [{}]}, {'properties': None}])
def test_an_answer_of_another_form_is_a_line_and_the_rest_is_checked(answer, monkeypatch, capsys):
    class Azure:
        subscription = group = workspace = ''
        authentication = None
        get = staticmethod(lambda *_, **__: answer)

    monkeypatch.setattr(preflight, 'Azure', lambda *_: Azure)
    checks = preflight.CHECKS[:-1]
    bad = preflight.run_checks(settings.read({'LOCATION': 'westeurope'}), {}, [
        (title, check, ()) for title, check, _ in checks])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != ' ']
    assert len(lines) == len(checks) + 1 and bad >= len(checks) - 2
    assert sum('answer is not of the form' in line for line in lines) >= 3


class Region:
    """Resource Manager with one size of machine and usages, (type, name, limit)."""
    subscription = '/subscriptions/s'

    def __init__(self, *usages):
        self.usages = [{'type': f'Microsoft.MachineLearningServices/{kind}/usages', 'limit': limit,
                        'name': {'value': name, 'localizedValue': name}, 'currentValue': 18}
                       for kind, name, limit in usages]

    def get(self, path, version, advice):
        return {'value': self.usages if path.endswith('usages') else [
            {'name': 'STANDARD_D2DS_V5', 'family': 'standardDDSv5Family', 'vCPUs': 2}]}


def test_a_quota_is_missing_only_where_it_can_never_be_enough():
    # As in Azure/azure-rest-api-specs, machinelearningservices, examples/ListUsages.json.
    family = 'StandardDDSv5Family'
    low = settings.read({'LOCATION': 'westeurope', 'AML_CLUSTER_PRIORITY': 'lowpriority'})
    no_own_limit = Region(('vmFamily/lowPriorityCores', family, -1),
                          ('vmFamily/dedicatedCores', family, 0),
                          ('totalLowPriorityCores', 'TotalLowPriorityCores', 18))
    assert 'low priority is Spot' in preflight.check_size(no_own_limit, low)
    dedicated = settings.read({'LOCATION': 'westeurope'})
    anothers = Region(('vmFamily/dedicatedCores', 'StandardDSv2Family', 0),
                      ('vmFamily/dedicatedCores', family, 24), ('totalLowPriorityCores', 'x', 0))
    assert preflight.check_size(anothers, dedicated) == 'STANDARD_D2DS_V5 in westeurope'
    for kind, name in (('vmFamily/dedicatedCores', family),
                       ('totalDedicatedCores', 'TotalDedicatedCores')):
        with pytest.raises(preflight.Missing, match='is 0 cores, one machine needs 2'):
            preflight.check_size(Region((kind, name, 0)), dedicated)
