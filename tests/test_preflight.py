import preflight

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
