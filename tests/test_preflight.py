import os
import subprocess
import sys

import pytest

import preflight
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


def test_what_is_missing_is_named_with_what_to_do(tmp_path):
    pytest.importorskip('azureml.core', reason='the Azure SDK needs Python 3.11 or older')
    loopback = pytest.importorskip('loopback', reason='the stand-in needs trustme')
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
