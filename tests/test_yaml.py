"""The pipelines of devops/: what the service would make of them, and what they promise."""
import re

import pytest

import container
import pipeline_checks
import pipeline_yaml
import settings
from conftest import ROOT

pytestmark = pytest.mark.no_cover

DEVOPS = ROOT / 'devops'
FILES = ('pr.yml', 'ci.yml', 'workspace.yml', 'retrain.yml', 'rollback.yml')
MAKE = pipeline_checks.CONTAINER + 'make '


def stages(name, production='none', **parameters):
    return pipeline_yaml.stages(pipeline_yaml.read_pipeline(
        DEVOPS / name, parameters, {'PRODUCTION': production}))


def steps(name, **parameters):
    return [step for stage in stages(name, **parameters) for _, steps in stage['job']['hooks']
            for step in steps]


def order(name, **parameters):
    return [(stage['name'], stage['needs']) for stage in stages(name, **parameters)]


def targets(name, **parameters):
    """What make makes in the container, in order; the container is there before."""
    made = [step['script'].strip() for step in steps(name, **parameters) if 'script' in step]
    return [text[len(MAKE):] for text in made if text.startswith(MAKE)]


@pytest.mark.parametrize('name', FILES)
def test_the_checks_and_microsofts_schema_find_no_problem(name):
    assert pipeline_checks.find_problems(DEVOPS / name) == []


@pytest.mark.parametrize('table, made', [('sample', True), ('none', False)])
def test_a_dataset_is_made_of_the_table_unless_there_is_none(table, made):
    assert ('dataset' in targets('workspace.yml', table=table)) == made


def test_a_pull_request_is_linted_and_tested_and_gets_no_secret():
    pipeline = pipeline_yaml.read_pipeline(DEVOPS / 'pr.yml')
    assert targets('pr.yml') == ['setup', 'lint', 'test', 'summary STAGE=code_quality']
    assert pipeline_yaml.groups(pipeline) == []
    assert not any('env' in step for step in steps('pr.yml'))
    assert not [step for step in steps('pr.yml') if str(step.get('task')).startswith('AzureCLI')]
    assert pipeline['trigger'] == pipeline['pr'] == 'none'


def test_unit_tests_run_and_results_are_published_after_a_finding_of_lint():
    after = {step.get('displayName'): step.get('condition') for step in steps('pr.yml')}
    assert after['Lint'] is None
    assert [name for name, condition in after.items() if condition == 'succeededOrFailed()'] == [
        'Unit tests', 'Publish the findings of lint', 'Publish the unit test results',
        'Publish the coverage', 'Summary']


PUBLISHED = [('code_quality', []), ('publish', ['code_quality'])]


@pytest.mark.parametrize('parameters, found', [
    ({'action': 'train_and_deploy'},
     PUBLISHED + [('train', ['publish']), ('deploy', ['train'])]),
    ({'action': 'train_and_deploy', 'production': 'endpoint'},
     PUBLISHED + [('train', ['publish']), ('deploy', ['train']), ('production', ['deploy'])]),
    ({'action': 'train_only', 'production': 'endpoint'}, PUBLISHED + [('train', ['publish'])]),
    ({'action': 'deploy_version', 'production': 'endpoint'},
     [('code_quality', []), ('deploy', ['code_quality'])]),
    ({'action': 'deploy_version', 'service': 'endpoint'},
     [('code_quality', []), ('production', ['code_quality'])])])
def test_what_a_run_does(parameters, found):
    assert order('ci.yml', **parameters) == found


def deployed(service, stage):
    """The targets of the stage that deploys to a service."""
    return ['deploy SERVICE=' + service, 'smoke-test SERVICE=' + service, 'summary STAGE=' + stage,
            'rollback SERVICE=' + service, 'summary STAGE=' + stage]


def test_a_push_trains_and_deploys_and_only_a_push_to_one_branch_starts_it():
    trained = ['lint', 'test', 'summary STAGE=code_quality', 'preflight', 'publish', 'run',
               'cancel-run', 'summary STAGE=train'] + deployed('aci', 'deploy')
    for production, more in (('none', []), ('endpoint', deployed('endpoint', 'production'))):
        assert [target for target in targets('ci.yml', production=production)
                if target != 'setup'] == trained + more
    trigger = pipeline_yaml.read_pipeline(DEVOPS / 'ci.yml')['trigger']
    branch, = trigger['branches']['include']
    assert trigger == {'batch': True, 'branches': {'include': [branch]}} and '*' not in branch


@pytest.mark.parametrize('service', ['aci', 'endpoint'])
def test_a_given_version_is_deployed_without_the_result_of_a_run(service):
    given = {'action': 'deploy_version', 'model_version': 7, 'service': service}
    assert stages('ci.yml', **given)[-1]['condition'] is None

    def versions(**parameters):
        return [step['env'].get('MODEL_VERSION') for step in steps('ci.yml', **parameters)
                if step.get('script') == MAKE + 'deploy SERVICE=' + service]

    assert versions(**given) == [7] and versions(production='endpoint') == [None]
    assert 'run' not in [step.get('inputs', {}).get('artifactName')
                         for step in steps('ci.yml', **given)]


def test_production_gets_what_qa_tested_by_an_approval_of_its_own():
    qa, production = stages('ci.yml', production='endpoint')[-2:]
    assert (qa['job']['environment'], production['job']['environment']) == (
        'safe-driver', 'safe-driver-production')
    # Of the same run, so of the same version; without a condition of its own a skipped QA skips it.
    taken = [[step['inputs']['artifactName'] for step in stage['job']['hooks'][0][1]
              if step.get('task') == 'DownloadPipelineArtifact@2'] for stage in (qa, production)]
    assert taken == [['run'], ['run']] and production['condition'] is None
    assert "'registered'" in qa['condition']


def test_every_night_what_is_new_goes_the_same_way_and_what_serves_is_looked_at():
    assert order('retrain.yml', production='endpoint') == [
        ('train', []), ('deploy', ['train']), ('production', ['deploy']), ('monitor', [])]
    assert order('retrain.yml') == [('train', []), ('deploy', ['train']), ('monitor', [])]
    made = [target for target in targets('retrain.yml') if target != 'setup']
    assert made == ['run', 'cancel-run', 'summary STAGE=train'] + deployed('aci', 'deploy') + [
        'monitor SERVICE=aci']
    pipeline = pipeline_yaml.read_pipeline(DEVOPS / 'retrain.yml')
    values = pipeline_yaml.variables(pipeline)
    assert (values['RUN_EVALUATION'], values['ONLY_NEW_DATA']) == ('true', 'true')
    schedule, = pipeline_yaml.schedules(pipeline)
    assert (schedule['always'], schedule['branches']['include'], pipeline['trigger']) == (
        True, ['master'], 'none')


@pytest.mark.parametrize('service, environment', [
    ('aci', 'safe-driver'), ('endpoint', 'safe-driver-production')])
def test_a_rollback_takes_back_what_any_build_deployed_and_waits_for_another(service, environment):
    stage, = stages('rollback.yml', service=service)
    assert (stage['job']['environment'], stage['lock']) == (environment, 'sequential')
    step = steps('rollback.yml', service=service)[-1]
    assert step['script'] == MAKE + 'rollback SERVICE=' + service
    assert settings.read({'ROLLBACK_ANY_BUILD': step['env']['ROLLBACK_ANY_BUILD']}
                         ).rollback_any_build


def test_the_image_is_named_in_one_place_which_container_py_reads():
    image = pipeline_yaml.variables(pipeline_yaml.read_pipeline(DEVOPS / 'ci.yml'))[
        'CONTAINER_IMAGE']
    assert container.image(container.VARIABLES.read_text()) == image
    files = ''.join(path.read_text() for path in DEVOPS.glob('*.yml'))
    assert files.count('name: CONTAINER_IMAGE\n') == 1 and 'container:' not in files


def test_every_variable_is_a_setting_with_a_valid_value():
    values = pipeline_yaml.variables(pipeline_yaml.read_pipeline(DEVOPS / 'retrain.yml'))
    known = {name for name, _, _, _ in settings.SETTINGS}
    group = set(pipeline_checks.IN_GROUP)
    assert set(values) - known == {'CONTAINER_IMAGE'}
    assert group - known == {'AZURE_RM_SVC_CONNECTION'}
    assert not group & set(values)
    settings.read(values)


@pytest.mark.parametrize('text, value', [
    ("eq('a', 'A')", True), ("ne(variables.x, 'y')", False), ("eq(variables['x'], 'Y')", True),
    ("and(eq('1', '1'), ne('1', '1'))", False), ("eq('it''s', 'it''s')", True),
    ("eq(1, '1')", True),
    ('succeeded()', True), ('and(succeeded(), canceled())', False)])
def test_expressions(text, value):
    status = {'succeeded': True, 'canceled': False}.get
    assert pipeline_yaml.evaluate(text, lambda words: {'x': 'y'}[words[1]], status) == value


@pytest.mark.parametrize('text, words', [
    ("eq('a', 'b'", 'the end where ) is expected'), ("eq('a', ", 'the end is no value'),
    ("eq('a', 'b'))", ') where the end is expected'), ("eq('a')", ') where , is expected'),
    ('eq("a", 1)', '" is no value'), ('variables.x != 1', '! where the end is expected'),
    ('x', 'x is no value and no function'), ("'a", "' is no value"), ('', 'the end is no value')])
def test_an_expression_that_cannot_be_read_is_a_sentence(text, words):
    with pytest.raises(pipeline_yaml.PipelineError, match=re.escape(words)):
        pipeline_yaml.evaluate(text, str, str)


def test_macros_that_are_not_defined_stay_as_in_the_agent():
    assert pipeline_yaml.fill_in_macros('$(A.b) $(date) $c', {'a.b': 1}) == '1 $(date) $c'


def test_words_that_yaml_1_1_takes_for_booleans_stay_words(tmp_path):
    path = tmp_path / 'a.yml'
    path.write_text('on: yes\noff: 1\nx: true\ny:\n')
    assert pipeline_yaml.load_file(path) == {'on': 'yes', 'off': 1, 'x': True, 'y': None}


def test_a_template_is_put_in_and_what_is_not_asked_for_is_left_out(tmp_path):
    (tmp_path / 'steps.yml').write_text(
        'parameters:\n- name: target\nsteps:\n- script: make ${{ parameters.target }}\n')
    (tmp_path / 'a.yml').write_text(
        'parameters:\n- name: target\n  default: x\n- name: fast\n  type: number\n  default: 1\n'
        'jobs:\n- job: a\n  steps:\n  - template: steps.yml\n'
        '    parameters: {target: "${{ variables.what }}"}\n'
        "  - ${{ if eq(parameters.fast, 0) }}:\n    - script: make slow\n"
        '  - ${{ else }}:\n    - script: make ${{ parameters.target }}\n'
        '    - script: make faster\n'
        "      ${{ if eq(parameters.fast, 2) }}:\n        env: {N: '2'}\n"
        'variables:\n- name: what\n  value: lint\n')
    job, = pipeline_yaml.read_pipeline(tmp_path / 'a.yml', {'fast': 2})['jobs']
    assert job['steps'] == [{'script': 'make lint'}, {'script': 'make x'},
                            {'script': 'make faster', 'env': {'N': '2'}}]
