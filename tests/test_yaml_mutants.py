"""Each mutant is one mistake in the files of devops/; the checks have to find it and say it."""
import shutil

import pytest

import pipeline_checks
from conftest import ROOT

pytestmark = [pytest.mark.no_cover, pytest.mark.end_to_end]

MAKE = pipeline_checks.CONTAINER + 'make '
# File that is changed, old text, new text, words that a problem has to say. The first occurrence
# of the old text is replaced.
SEMANTIC = [
    # names and order
    ('ci.yml', 'dependsOn: code_quality', 'dependsOn: train', 'on train, which is no stage before'),
    ('train.yml', '- stage: train', '- stage: publish', 'stage publish: this name'),
    ('train.yml', '- stage: train', '- stage: train it', 'stage train it: this name'),
    ('code_quality.yml', 'displayName: Unit tests\n',
     'name: a\n  - script: ' + MAKE + 'lint\n    name: a\n', 'step a: this name'),
    ('deploy.yml', 'deployment: service', 'deployment: deploy', 'reserved'),
    # templates, parameters, ${{ }}
    ('pr.yml', 'code_quality.yml', 'quality.yml', 'quality.yml does not exist'),
    ('code_quality.yml', '- template: prepare.yml',
     '- template: prepare.yml\n    parameters: {fast: 1}', 'there is no parameter fast'),
    ('ci.yml', 'after: train', 'aftr: train', 'there is no parameter aftr'),
    ('ci.yml', 'after: train', 'service: aci', 'default is missing'),
    ('ci.yml', 'after: train', 'after: traning', 'after is traning, not one'),
    ('ci.yml', 'variables.PRODUCTION', 'variables.PRODCTION', 'variables has no PRODCTION'),
    ('rollback.yml', 'deploy:', 'if:', 'runOnce: if is not'),
    ('ci.yml', '  default: 0\n', '', 'default is missing'),
    ('ci.yml', 'type: number', 'type: nmber', 'of type nmber'),
    ('ci.yml', 'default: train_and_deploy', 'default: train', 'action is train, not one'),
    ('ci.yml', 'parameters:\n- name: action', 'parameters:\n  action: x\nx:\n- name: action',
     'parameters is a list'),
    ('ci.yml', 'parameters.action,', 'parameters.actoin,', 'parameters has no actoin'),
    ('deploy.yml', '  lockBehavior: seq', '  dependsOn: train #', 'duplicate key dependsOn'),
    ('prepare.yml', 'steps:', 'jobs: []\nsteps:', 'holds one list'),
    ('ci.yml', "ne(parameters.action, 'deploy_version')", 'succeeded()', 'has no value'),
    ('deploy.yml', "  ${{ if eq(parameters.service, 'aci') }}:\n", '  displayName:\n',
     'only if and, after it, else'),
    # conditions
    ('code_quality.yml', 'succeededOrFailed()', 'suceededOrFailed()', 'suceededOrFailed is no'),
    ('code_quality.yml', 'condition: succeededOrFailed()',
     "condition: eq(variables['Agent.OS'], 'Linux')", 'drops the succeeded()'),
    ('code_quality.yml', 'condition: succeededOrFailed()',
     "condition: and(succeeded(), eq(variables['LINTED'], 'yes'))", 'names variables.LINTED'),
    ('deploy.yml', 'dependencies.train.outputs', 'stageDependencies.train.outputs',
     'stageDependencies'),
    # variables and secrets
    ('prepare.yml', '$(CONTAINER_IMAGE)', '$(CONTAINER_IMG)', '$(CONTAINER_IMG) is not defined'),
    ('ci.yml', '- group: ', '# ', '$(AZURE_RM_SVC_CONNECTION)'),
    ('ci.yml', '- group: ', '- group: x', 'the files name different variable groups'),
    ('train.yml', '    - template: sign_in.yml\n    - script: ' + MAKE + 'run',
     '    - script: ' + MAKE + 'run', 'not defined'),
    ('ci.yml',
     '          AZUREML_SERVICE_PRINCIPAL_PASSWORD: $(AZUREML_SERVICE_PRINCIPAL_PASSWORD)\n', '',
     'needs both secrets, by env'),
    ('ci.yml', '          SYSTEM_ACCESSTOKEN: $(System.AccessToken)\n', '',
     'needs both secrets, by env'),
    ('ci.yml', 'make publish', 'make publish TOKEN=$(System.AccessToken)', 'by env only'),
    ('code_quality.yml', 'displayName: Lint\n',
     'displayName: Lint\n    env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}\n',
     'needs nothing by env'),
    ('deploy.yml', 'MODEL_VERSION: ${{ parameters.model_version }}',
     "MODEL_VERSION: $[variables['X']]", '$[ ] is not known'),
    ('pr.yml', 'variables:\n- template: variables.yml', 'variables:\n  CONTAINER_IMAGE: a/b',
     'variables is a list'),
    # scripts
    ('code_quality.yml', 'make test', 'make test || true', 'make and one target'),
    ('code_quality.yml', MAKE + 'lint', 'make lint', 'make and one target'),
    ('code_quality.yml', MAKE + 'lint', 'python3 devops/container.py make lint',
     'make and one target'),
    ('prepare.yml',
     '- script: exec python3 devops/container.py --prepare\n'
     '  displayName: The container, with git and make\n', '', 'the first script is not exec'),
    # jobs and machines
    ('pr.yml', 'pool:\n  ', '# ', 'not {}'),
    ('pr.yml', 'pool:\n  ', 'pool:\n  vmImage: ubuntu-18.04 # ', "'ubuntu-18.04'"),
    ('pr.yml', 'pool:\n  ', 'pool:\n  vmImage: ubunut-24.04 # ', "'ubunut-24.04'"),
    ('pr.yml', 'pool:\n  ', 'pool:\n  names: mine # ', "{'names': 'mine'}"),
    ('code_quality.yml', 'timeoutInMinutes: ', 'timeoutInMinutes: x', ' is no number'),
    ('deploy.yml', '    environment: ', '    # ', 'environment is missing'),
    ('deploy.yml', '          - download: none\n', '', 'downloads every artifact'),
    ('deploy.yml', 'routeTraffic:', 'routTraffic:', 'runOnce: routTraffic is not'),
    ('deploy.yml', '  lockBehavior: sequential\n', '', 'lockBehavior is not sequential'),
    ('rollback.yml', 'sequential', 'runLatest', 'lockBehavior is not sequential'),
    ('code_quality.yml', '  steps:', '  strategy: {matrix: {a: {}}}\n  steps:', 'strategy is not'),
    ('code_quality.yml', 'script: ' + MAKE + 'lint\n    displ', 'displ', 'a step is one of'),
    ('prepare.yml', 'Cache@2', 'Cach@2', 'Cach@2 is not known'),
    ('code_quality.yml', 'testRunTitle:', 'testRunTitel:', 'testRunTitel is not known'),
    ('code_quality.yml', 'displayName: Unit tests\n',
     'displayName: Unit tests\n    continueOnError: true\n', 'continueOnError'),
    # tasks and artifacts
    ('code_quality.yml', '      failTaskOnMissingResultsFile: true\n', '', 'a failure could pass'),
    ('code_quality.yml',
     'displayName: Publish the findings of lint\n    condition: succeededOrFailed()\n',
     'displayName: Publish the findings of lint\n', 'a failure is published too'),
    ('train.yml', '  jobs:\n', '  dependsOn: code_quality\n  jobs:\n', 'is of no stage'),
    ('deploy.yml', '- publish: outputs', '- script: ' + MAKE + 'lint', 'artifact is not known'),
    ('ci.yml', '        artifact: pipeline\n',
     '        artifact: pipeline\n      - script: ' + MAKE + 'lint\n', 'an artifact comes last'),
    # triggers
    ('retrain.yml', '0 2 * * *', '0 24 * * *', 'is not five fields'),
    ('retrain.yml', '0 2 * * *', '0 2 * *', 'is not five fields'),
    ('retrain.yml', '0 2 * * *', '0 2 1-32/2 * *', 'is not five fields'),
    ('retrain.yml', '  always: true\n', '', 'always is not true'),
    ('retrain.yml', '  branches:\n    include:\n    - master\n', '', 'is for every branch'),
    ('retrain.yml', 'always:', 'allways:', 'allways is not known'),
    ('pr.yml', 'trigger: none\n', '', 'every push to every branch'),
    ('pr.yml', 'pr: none', 'pr: [master]', 'Azure Repos ignores it'),
    # YAML
    ('pr.yml', 'pool:\n  ', 'pool:\n\t', 'is not YAML'),
    ('pr.yml', 'pr: none', 'pr: none\npr: none', 'duplicate key pr'),
    ('pr.yml', 'pool:\n', 'pool: &pool\n', 'no anchors'),
    ('workspace.yml', 'jobs:\n- job: ', 'jobs:\n  job: ', 'jobs is a list'),
    ('workspace.yml', 'pool:', 'stages: []\npool:', 'either stages or jobs'),
    ('prepare.yml', None, '', 'holds no mapping'),
]
SCHEMA = [
    ('code_quality.yml', 'JUnit', 'JUnt', 'JUnt'),
    ('sign_in.yml', 'addSpnToEnvironment: true', 'addSpnToEnvironment: perhaps', 'perhaps'),
    ('sign_in.yml', '    azureSubscription: $(AZURE_RM_SVC_CONNECTION)\n', '', 'azureSubscription'),
    ('prepare.yml', '    path: .container\n', '', "'path' is a required"),
    ('pr.yml', 'trigger: none', 'trigger: {branch: [master]}', 'trigger'),
    ('workspace.yml',
     'env:\n      SYSTEM_ACCESSTOKEN: $(System.AccessToken)\n'
     '      AZUREML_SERVICE_PRINCIPAL_PASSWORD: $(AZUREML_SERVICE_PRINCIPAL_PASSWORD)', 'env: [X]',
     'env'),
]
# A file that uses the template.
USERS = {'code_quality.yml': 'pr.yml', 'prepare.yml': 'pr.yml', 'sign_in.yml': 'workspace.yml',
         'train.yml': 'ci.yml', 'deploy.yml': 'ci.yml'}


@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp('devops')
    for path in (ROOT / 'devops').glob('*.yml'):
        shutil.copy(str(path), str(folder))
    return folder


@pytest.mark.parametrize('name, old, new, words', SEMANTIC + SCHEMA,
                         ids=[mutant[-1] for mutant in SEMANTIC + SCHEMA])
def test_a_mistake_is_found(name, old, new, words, copies):
    if (name, old, new, words) in SCHEMA:
        pytest.importorskip('check_jsonschema')
    path = copies / name
    text = path.read_text()
    assert old is None or old in text
    try:
        path.write_text(new if old is None else text.replace(old, new, 1))
        found = pipeline_checks.find_problems(copies / USERS.get(name, name))
    finally:
        path.write_text(text)
    assert any(words in problem for problem in found), found
