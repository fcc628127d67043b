"""Each mutant is one mistake in the files of devops/; the checks have to find it and say it."""
import shutil

import pytest

import pipeline_checks
from conftest import ROOT

pytestmark = pytest.mark.no_cover

MAKE = pipeline_checks.CONTAINER + 'make '
# name: (file that is changed, old text, new text, words that a problem has to say). The first
# occurrence of the old text is replaced.
SEMANTIC = {
    # names and order
    'needs a later stage': (
        'ci.yml', 'dependsOn: code_quality', 'dependsOn: train',
        'on train, which is no stage before'),
    'two stages of a name': (
        'ci.yml', '- stage: train', '- stage: publish', 'stage publish: this name'),
    'stage name with a blank': (
        'ci.yml', '- stage: train', '- stage: train it', 'stage train it: this name'),
    'two steps of a name': (
        'code_quality.yml', 'displayName: Unit tests\n', 'name: a\n  - script: ' + MAKE +
        'lint\n    name: a\n', 'step a: this name'),
    'reserved name': ('ci.yml', 'deployment: service', 'deployment: deploy', 'reserved'),
    # templates, parameters, ${{ }}
    'missing template': ('pr.yml', 'code_quality.yml', 'quality.yml', 'quality.yml does not exist'),
    'parameter that a template does not declare': (
        'code_quality.yml', '- template: prepare.yml',
        '- template: prepare.yml\n    parameters:\n      python: 3',
        'parameter python is not declared'),
    'parameter that is not given': (
        'prepare.yml', 'steps:', 'parameters:\n- name: depth\n  type: number\nsteps:',
        'depth has no default'),
    'parameter of an unknown type': ('ci.yml', 'type: number', 'type: nmber', 'of type nmber'),
    'default that is not listed': (
        'ci.yml', 'default: train_and_deploy', 'default: train', 'action is train, not one'),
    'parameters as a mapping': (
        'ci.yml', 'parameters:\n- name: action', 'parameters:\n  action: x\nx:\n- name: action',
        'parameters is a list'),
    'undefined parameter': (
        'ci.yml', 'parameters.action,', 'parameters.actoin,', 'parameters has no actoin'),
    'key that a branch gives again': (
        'ci.yml', '    lockBehavior: seq', '    dependsOn: train #', 'duplicate key dependsOn'),
    'template of two lists': ('prepare.yml', 'steps:', 'jobs: []\nsteps:', 'holds one list'),
    'status in a template expression': (
        'ci.yml', "ne(parameters.action, 'deploy_version')", 'succeeded()', 'has no value'),
    'else without if': (
        'ci.yml', "    ${{ if eq(parameters.action, 'deploy_version') }}:\n"
        '      dependsOn: code_quality\n', '', 'only if and, after it, else'),
    # conditions
    'function with a typo': (
        'code_quality.yml', 'succeededOrFailed()', 'suceededOrFailed()',
        'suceededOrFailed is no'),
    'condition that drops succeeded()': (
        'code_quality.yml', 'condition: succeededOrFailed()',
        "condition: eq(variables['Agent.OS'], 'Linux')", 'drops the succeeded()'),
    'undefined variable in a condition': (
        'code_quality.yml', 'condition: succeededOrFailed()',
        "condition: and(succeeded(), eq(variables['LINTED'], 'yes'))", 'names variables.LINTED'),
    'output of a step without a name': (
        'ci.yml', '        name: run\n', '', 'no such job and step'),
    'output of a stage that is not needed': (
        'ci.yml', '      dependsOn: train\n', '      dependsOn: publish\n',
        'reads stage train, which is not in'),
    'stageDependencies': (
        'ci.yml', 'dependencies.train.outputs', 'stageDependencies.train.outputs',
        'stageDependencies'),
    # variables and secrets
    'undefined macro': (
        'prepare.yml', '$(CONTAINER_IMAGE)', '$(CONTAINER_IMG)', '$(CONTAINER_IMG) is not defined'),
    'macro of the group without the group': (
        'ci.yml', '- group: devopsforai-aml-vg\n', '', '$(AZURE_RM_SVC_CONNECTION)'),
    'group that nobody knows': (
        'ci.yml', 'devopsforai-aml-vg', 'devopsforai-vg', 'devopsforai-vg is not known'),
    'secret before the sign-in': (
        'ci.yml', '      - template: sign_in.yml\n      - script: ' + MAKE + 'run',
        '      - script: ' + MAKE + 'run', 'not defined'),
    'secret not passed': (
        'ci.yml', '          AZUREML_SERVICE_PRINCIPAL_PASSWORD: '
        '$(AZUREML_SERVICE_PRINCIPAL_PASSWORD)\n', '', 'needs both secrets, by env'),
    'token of the job not passed': (
        'ci.yml', '          SYSTEM_ACCESSTOKEN: $(System.AccessToken)\n', '',
        'needs both secrets, by env'),
    'token of the job in a command': (
        'ci.yml', 'make publish', 'make publish TOKEN=$(System.AccessToken)', 'by env only'),
    'token of the job where nobody needs it': (
        'code_quality.yml', 'displayName: Lint\n',
        'displayName: Lint\n    env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}\n',
        'a script needs nothing'),
    'runtime expression': (
        'ci.yml', 'MODEL_VERSION: ${{ parameters.model_version }}',
        "MODEL_VERSION: $[variables['X']]", '$[ ] is not known'),
    'variables as a mapping': (
        'pr.yml', 'variables:\n- template: variables.yml', 'variables:\n  CONTAINER_IMAGE: a/b',
        'variables is a list'),
    # scripts
    'ignored failure': (
        'code_quality.yml', 'make test', 'make test || true', 'make and one target'),
    'make on the host': ('code_quality.yml', MAKE + 'lint', 'make lint', 'make and one target'),
    'a shell that keeps the signal': (
        'code_quality.yml', MAKE + 'lint', MAKE[5:] + 'lint', 'make and one target'),
    'container that is not there': (
        'prepare.yml', '- script: exec python3 devops/container.py --prepare\n'
        '  displayName: The container, with git and make\n', '', 'the first script is not exec'),
    # jobs and machines
    'no pool': ('pr.yml', 'pool:\n  vmImage: ubuntu-24.04\n', '', 'not None'),
    'machine that is gone': (
        'pr.yml', 'vmImage: ubuntu-24.04', 'vmImage: ubuntu-18.04', "'ubuntu-18.04'"),
    'time limit as text': (
        'code_quality.yml', 'timeoutInMinutes: 30', 'timeoutInMinutes: 30m', '30m is no number'),
    'deployment without environment': (
        'ci.yml', '      environment: safe-driver\n', '', 'environment is missing'),
    'deployment that takes every artifact': (
        'ci.yml', '            - download: none\n', '', 'downloads every artifact'),
    'unknown hook': ('ci.yml', 'routeTraffic:', 'routTraffic:', 'runOnce: routTraffic is not'),
    'unknown strategy': ('ci.yml', 'runOnce:', 'canary:', 'canary is not known'),
    'job with a matrix': (
        'code_quality.yml', '  steps:', '  strategy: {matrix: {a: {}}}\n  steps:',
        'strategy is not'),
    'hook without steps': (
        'ci.yml', '            failure:\n              steps:',
        '            failure:\n              x:', 'failure: x is not known'),
    'step of no kind': (
        'code_quality.yml', 'script: ' + MAKE + 'lint\n    displ', 'displ', 'a step is one of'),
    'unknown task': ('prepare.yml', 'Cache@2', 'Cach@2', 'Cach@2 is not known'),
    'unknown input': (
        'code_quality.yml', 'testRunTitle:', 'testRunTitel:', 'testRunTitel is not known'),
    'failure that counts as success': (
        'code_quality.yml', 'displayName: Unit tests\n',
        'displayName: Unit tests\n    continueOnError: true\n', 'continueOnError'),
    # tasks and artifacts
    'missing results pass': (
        'code_quality.yml', '      failTaskOnMissingResultsFile: true\n', '',
        'a failure could pass'),
    'results only of success': (
        'code_quality.yml',
        'displayName: Publish the findings of lint\n    condition: succeededOrFailed()\n',
        'displayName: Publish the findings of lint\n', 'a failure is published too'),
    'artifact of a stage that is not needed': (
        'ci.yml', '    dependsOn: publish\n', '    dependsOn: code_quality\n', 'is of no stage'),
    'artifact published twice': (
        'ci.yml', 'artifact: run', 'artifact: pipeline', 'published twice'),
    'artifact before the end': (
        'ci.yml', '        artifact: pipeline\n', '        artifact: pipeline\n      - script: ' +
        MAKE + 'lint\n', 'an artifact comes last'),
    # triggers
    'no trigger': ('pr.yml', 'trigger: none\n', '', 'every push to every branch'),
    'pr of GitHub': ('pr.yml', 'pr: none', 'pr: [master]', 'Azure Repos ignores it'),
    # YAML
    'tab': ('pr.yml', 'pool:\n  vmImage', 'pool:\n\tvmImage', 'is not YAML'),
    'duplicate key': ('pr.yml', 'pr: none', 'pr: none\npr: none', 'duplicate key pr'),
    'anchor': ('pr.yml', 'pool:\n', 'pool: &pool\n', 'no anchors'),
    'jobs as a mapping': (
        'pr.yml', 'jobs:\n- template: code_quality.yml', 'jobs:\n  template: code_quality.yml',
        'jobs is a list'),
    'steps and jobs at once': ('pr.yml', 'pool:', 'stages: []\npool:', 'either stages or jobs'),
    'empty file': ('prepare.yml', None, '', 'holds no mapping'),
}
SCHEMA = {
    'result format': ('code_quality.yml', 'JUnit', 'JUnt', 'JUnt'),
    'boolean as text': (
        'sign_in.yml', 'addSpnToEnvironment: true', 'addSpnToEnvironment: perhaps', 'perhaps'),
    'required input': (
        'sign_in.yml', '    azureSubscription: $(AZURE_RM_SVC_CONNECTION)\n', '',
        'azureSubscription'),
    'required input of the cache': (
        'prepare.yml', '    path: .container\n', '', "'path' is a required"),
    'trigger': ('pr.yml', 'trigger: none', 'trigger: {branch: [master]}', 'trigger'),
    'env as a list': (
        'workspace.yml', 'env:\n      SYSTEM_ACCESSTOKEN: $(System.AccessToken)\n'
        '      AZUREML_SERVICE_PRINCIPAL_PASSWORD: $(AZUREML_SERVICE_PRINCIPAL_PASSWORD)',
        'env: [X]', 'env'),
}
# A file that uses the template.
USERS = {'code_quality.yml': 'pr.yml', 'prepare.yml': 'pr.yml', 'sign_in.yml': 'workspace.yml'}


@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp('devops')
    for path in (ROOT / 'devops').glob('*.yml'):
        shutil.copy(str(path), str(folder))
    return folder


def check_mutant(copies, name, old, new, words):
    path = copies / name
    text = path.read_text()
    assert old is None or old in text
    try:
        path.write_text(new if old is None else text.replace(old, new, 1))
        found = pipeline_checks.find_problems(copies / USERS.get(name, name))
    finally:
        path.write_text(text)
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize('name', sorted(SEMANTIC))
def test_a_mistake_is_found(name, copies):
    check_mutant(copies, *SEMANTIC[name])


@pytest.mark.parametrize('name', sorted(SCHEMA))
def test_a_mistake_is_found_by_the_schema(name, copies):
    pytest.importorskip('check_jsonschema')
    check_mutant(copies, *SCHEMA[name])
