import ast
import contextlib
import importlib
import re

import pytest

import settings
from conftest import ROOT

SUBSCRIPTION = '00000000-0000-0000-0000-000000000001'
# What a script cannot do without, for those that read settings.
SCRIPTS = {'workspace': [], 'dataset': ['--data', 'absent.csv'], 'publish': [], 'run': [],
           'cancel_run': [], 'deploy': [], 'rollback': [], 'preflight': [],
           'smoke_test': ['--service', 'aci'], 'monitor': ['--service', 'aci'],
           'branch_policy': [], 'devops_project': []}
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
    assert all(name in text for name in (
        'SUBSCRIPTION_ID', 'WORKSPACE_NAME', 'ACI_DEPLOYMENT_NAME', 'RUN_EVALUATION',
        'AML_CLUSTER_MAX_NODES', 'AML_CLUSTER_PRIORITY', 'RUN_TIMEOUT_MINUTES'))
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


def test_a_model_is_trained_on_at_most_as_many_machines_as_the_cluster_has():
    text = problems(dict(ENOUGH, AML_TRAINING_NODES='3'))
    assert ('AML_TRAINING_NODES is 3: it must be at most 2, which is AML_CLUSTER_MAX_NODES; '
            '`make workspace` sets another maximum') in text
    enough = dict(ENOUGH, AML_TRAINING_NODES='3', AML_CLUSTER_MAX_NODES='3')
    assert settings.read(enough).aml_training_nodes == 3


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
    ('LOCATION', 'West Europe'), ('AML_CLUSTER_MIN_NODES', '5'), ('AML_TRAINING_NODES', '3'),
    ('AML_TRAINING_NODES', '0')])
def test_malformed_values_are_named(name, value):
    assert name + ' is ' in problems(dict(ENOUGH, **{name: value}))


@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_wrong_settings_are_wrong_use_in_every_script(name, tmp_path, monkeypatch, capsys):
    for variable in ENOUGH:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv('AZURE_DEVOPS_ORG_URL', raising=False)
    monkeypatch.setenv('MODEL_NAME', 'a b')
    (tmp_path / 'outputs').mkdir()
    (tmp_path / 'outputs' / 'service.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(name).main(SCRIPTS[name]) == 2
    said = ''.join(capsys.readouterr())
    assert re.search('SUBSCRIPTION_ID is not set|AZURE_DEVOPS_ORG_URL', said)


def test_every_script_that_reads_settings_is_among_them():
    readers = {path.stem for path in (ROOT / 'scripts').glob('*.py')
               if all(re.search(pattern, path.read_text()) for pattern in (
                   "'__main__'", r'read(_settings)?\(os\.environ'))}
    assert readers == set(SCRIPTS)


def option_defaults(path):
    """{NAME: default} of the options of a script; a default that is computed is left out."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', None) == 'add_argument':
            for value in [word.value for word in node.keywords if word.arg == 'default']:
                if isinstance(value, ast.Call) and getattr(value.func, 'id', None) == 'Path':
                    value = value.args[0]
                with contextlib.suppress(ValueError):
                    name = ast.literal_eval(node.args[0]).strip('-').replace('-', '_').upper()
                    found[name] = ast.literal_eval(value)
    return found


def test_makefile_settings_and_options_have_the_same_defaults():
    """Those of variables.yml are a team's own; test_yaml says whether they are settings."""
    sources = {'Makefile': dict(re.findall(r'^([A-Z_]+) +\?= (\S+)$',
                                           (ROOT / 'Makefile').read_text(), re.M)),
               'settings': {name: default for name, default, _, _ in settings.SETTINGS}}
    for folder in ('scripts', 'training'):
        for path in (ROOT / folder).glob('*.py'):
            if not path.name.startswith('bench_'):
                sources[path.name] = option_defaults(path)
    found = {}
    for source, defaults in sources.items():
        for name, value in defaults.items():
            if value not in (None, ''):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                found.setdefault(name, {}).setdefault(text, []).append(source)
    assert {name: texts for name, texts in found.items() if len(texts) > 1} == {}
    assert {'Makefile', 'settings'} < set(found['RUN_EVALUATION']['false'])
    shared = {name for name, texts in found.items() if len(sum(texts.values(), [])) > 1}
    assert {'MODEL_NAME', 'RUN_EVALUATION', 'ALLOW_RUN_CANCEL', 'ROWS', 'PORT', 'OUT',
            'SERVICE'} <= shared
