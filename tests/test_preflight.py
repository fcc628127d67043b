import os
import subprocess
import sys

import pytest

import preflight
import settings
from conftest import ROOT

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


class Region:
    """Resource Manager with one size of machine and usages, (name, limit, in use, location)."""
    subscription = '/subscriptions/s'

    def __init__(self, *usages):
        self.usages = [{'name': {'value': name, 'localizedValue': name}, 'limit': limit,
                        'currentValue': used, 'id': self.subscription + location + '/usages'}
                       for name, limit, used, location in usages]

    def get(self, path, version, advice):
        return {'value': self.usages if path.endswith('usages') else [
            {'name': 'STANDARD_DS2_V2', 'family': 'standardDSv2Family', 'vCPUs': 2}]}


def test_a_quota_is_missing_only_where_it_can_never_be_enough():
    # Names and limits as in Azure/azure-rest-api-specs, machinelearningservices, Usage/list.json.
    family, total = 'Standard DSv2 Family Cluster %s vCPUs', 'Total Cluster %s Regional vCPUs'
    low = settings.read({'LOCATION': 'westeurope', 'AML_CLUSTER_PRIORITY': 'lowpriority'})
    no_own_limit = Region((family % 'LowPriority', -1, 0, ''), (total % 'LowPriority', 18, 18, ''))
    assert 'STANDARD_DS2_V2' in preflight.check_size(no_own_limit, low)
    dedicated = settings.read({'LOCATION': 'westeurope'})
    anothers = Region((family % 'Dedicated', 24, 0, ''),
                      (family % 'Dedicated', 0, 0, '/workspaces/another'))
    assert 'STANDARD_DS2_V2' in preflight.check_size(anothers, dedicated)
    with pytest.raises(preflight.Missing, match='is 0 cores, one machine needs 2'):
        preflight.check_size(Region((family % 'Dedicated', 0, 0, '')), dedicated)


def test_what_is_missing_is_named_with_what_to_do(tmp_path):
    pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
    pytest.importorskip('trustme')
    import loopback
    with loopback.start(str(tmp_path)) as azure:
        done = subprocess.run(
            [sys.executable, str(ROOT / 'scripts' / 'preflight.py')], stdout=subprocess.PIPE,
            env=dict(azure.env, PATH=os.environ['PATH'], RESOURCE_GROUP='rg', WORKSPACE_NAME='ws1',
                     LOCATION='westeurope'))
    lines = {line[:16].strip(): line[17:] for line in done.stdout.decode().splitlines()}
    assert done.returncode == 1
    assert lines['sign-in'].startswith('ok') and lines['machine size'].startswith('ok')
    assert 'az group create --name rg --location westeurope' in lines['resource group']
    assert lines['workspace'].startswith('unknown')
