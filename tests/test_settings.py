import pytest

import settings

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
ENOUGH = {'SUBSCRIPTION_ID': SUBSCRIPTION, 'RESOURCE_GROUP': 'mlops-RG', 'WORKSPACE_NAME': 'ws1'}


def problems(environ, needs=settings.WORKSPACE):
    with pytest.raises(settings.SettingsError) as error:
        settings.read(environ, needs)
    return str(error.value)


def test_every_problem_is_in_one_message():
    text = problems({'RESOURCE_GROUP': 'rg', 'ACI_DEPLOYMENT_NAME': 'safe_driver',
                     'RUN_EVALUATION': 'yes', 'AML_CLUSTER_MAX_NODES': '1.5',
                     'AML_CLUSTER_PRIORITY': 'spot', 'RUN_TIMEOUT_MINUTES': 'soon'})
    assert text.startswith('7 settings')
    for name in ('SUBSCRIPTION_ID', 'WORKSPACE_NAME', 'ACI_DEPLOYMENT_NAME', 'RUN_EVALUATION',
                 'AML_CLUSTER_MAX_NODES', 'AML_CLUSTER_PRIORITY', 'RUN_TIMEOUT_MINUTES'):
        assert name in text
    assert "'safe_driver': it must be 3 to 32 lower-case letters" in text


def test_only_what_is_needed_is_demanded():
    settings.read({})
    assert 'LOCATION' in problems(ENOUGH, settings.WORKSPACE + ('LOCATION',))


def test_types_and_defaults():
    config = settings.read(dict(ENOUGH, RUN_EVALUATION='TRUE', AML_CLUSTER_MAX_NODES='3',
                                RUN_TIMEOUT_MINUTES='0.5'), settings.WORKSPACE)
    assert (config.run_evaluation, config.aml_cluster_max_nodes) == (True, 3)
    assert config.run_timeout_minutes == 0.5
    assert (config.allow_run_cancel, config.dataset_version) == (True, 'latest')
    # As the challenge asks.
    assert settings.read({}).run_evaluation is False
    assert config.aml_cluster_min_nodes == 0
    with pytest.raises(AttributeError):
        config.run_evaluation = False


@pytest.mark.parametrize('value', ['', '  ', '$(WORKSPACE_NAME)'])
def test_blank_and_undefined_variables_are_not_set(value):
    assert 'WORKSPACE_NAME is not set' in problems(dict(ENOUGH, WORKSPACE_NAME=value))
    assert settings.read(dict(ENOUGH, MODEL_NAME=value)).model_name == 'safe_driver_model'


def test_base_name_gives_the_names_that_are_not_set():
    config = settings.read({'SUBSCRIPTION_ID': SUBSCRIPTION, 'BASE_NAME': 'mlops',
                            'RESOURCE_GROUP': 'mine'}, settings.WORKSPACE)
    assert (config.resource_group, config.workspace_name) == ('mine', 'mlops-AML-WS')


def test_build_link_of_the_agent():
    agent = {'SYSTEM_COLLECTIONURI': 'https://dev.azure.com/o/', 'SYSTEM_TEAMPROJECT': 'my p',
             'BUILD_BUILDID': '7'}
    link = 'https://dev.azure.com/o/my%20p/_build/results?buildId=7'
    assert settings.read(agent).build_uri == link
    assert settings.read(dict(agent, BUILD_URI='mine')).build_uri == 'mine'


@pytest.mark.parametrize('name, value', [
    ('SUBSCRIPTION_ID', 'my subscription'), ('AML_COMPUTE_CLUSTER_NAME', 'a_b'),
    ('ACI_DEPLOYMENT_NAME', '1st'), ('ACI_DEPLOYMENT_NAME', 'UPPER'), ('BUILD_BUILDID', "7' or"),
    ('ACI_DEPLOYMENT_NAME', 'a' * 33), ('DATASET_VERSION', '0'), ('MODEL_VERSION', '-1'),
    ('LOCATION', 'West Europe')])
def test_malformed_values_are_named(name, value):
    assert name + ' is ' in problems(dict(ENOUGH, **{name: value}))
