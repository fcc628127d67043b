import pytest

import dependencies

TEXT = '''name: x
channels:
  - conda-forge
dependencies:
  # a note
  - python=3.11        # training scoring
  - lightgbm=4.6.0     # training scoring
  - pandas=2.3.3       # training
  - pip:
    - azureml-defaults==1.62.0  # training scoring cloud
    - azureml-sdk==1.62.0       # control
    - pytest==8.4.2             # tools
'''


def test_select_keeps_only_the_lines_of_a_tag_and_the_two_lists_apart():
    assert dependencies.select(TEXT, 'scoring') == '''name: safe_driver_scoring
channels:
  - conda-forge
dependencies:
  - python=3.11
  - lightgbm=4.6.0
  - pip:
    - azureml-defaults==1.62.0
'''
    assert 'pip:' not in dependencies.select(TEXT.replace('scoring cloud', 'cloud'), 'scoring')


@pytest.mark.parametrize('old, new, changed', [
    ('pandas=2.3.3', 'pandas=2.3.4', {'training'}),
    ('lightgbm=4.6.0', 'lightgbm=4.7.0', {'training', 'scoring'}),
    ('pytest==8.4.2', 'pytest==9.0.0', set()),
    ('# a note', '# another note', set()),
])
def test_an_environment_is_renamed_only_by_its_own_lines(old, new, changed):
    after = TEXT.replace(old, new)
    assert after != TEXT
    assert {tag for tag in ('training', 'scoring')
            if dependencies.name(TEXT, tag) != dependencies.name(after, tag)} == changed


def test_the_one_machine_part_leaves_the_azure_sdk_out():
    assert dependencies.requirements(TEXT, 'local') == [
        'lightgbm==4.6.0', 'pandas==2.3.3', 'pytest==8.4.2']
    assert dependencies.requirements(TEXT, 'full')[-2].startswith('azureml-sdk==1.62.0 ; python')


def test_every_faulty_line_is_named_at_once():
    text = TEXT.replace('pandas=2.3.3       # training', 'pandas') \
        .replace('# control', '# kontrol').replace('pytest==8.4.2', 'pytest>=8')
    with pytest.raises(ValueError) as error:
        dependencies.parse(text)
    for words in ('pandas: no tag', 'pandas: no pinned version', 'unknown tag kontrol',
                  'pytest>=8: no pinned version'):
        assert words in str(error.value)
    with pytest.raises(ValueError, match='no line under'):
        dependencies.parse('name: x\n')
