"""The Makefile's graph: what a change redoes, and nothing else. The scripts are stand-ins here."""
import modulefinder
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.no_cover

ALL = ['sample', 'train', 'evaluate', 'register']
REAL = ['Makefile', 'conda_dependencies.yml'] + [
    f'scripts/{name}.py' for name in ('dependencies', 'build_venv', 'ctrl_c')] + [
    'training/' + name for name in ('table.py', 'nodes.py', 'console.py', 'columns.json')]
# No sign in it is for make or the shell.
ODD = '$(shell touch run) `touch run`; touch run "\'#*?[x]<a>|\\&(1)%~.csv'
# In place of Python: notes the script's name and writes what the script of that name would.
STAND_IN = '''#!/bin/sh
[ $1 = -c ] && echo True && exit
{ printf '%s\\n' "$@"; env; } >> given
script=$1 name=${1##*/} name=${name%.py} out= stamp=
grep -q broken $script && exit 1
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --stamp) stamp=$2;; esac
  shift
done
case $name in
  serve) exit;;
  build_venv) mkdir -p ${stamp%/*}; touch $stamp; exit;;
  train) mkdir -p $out; cd $out; touch model.txt metrics.json report.html profile.json; cd - ;;
  register) mkdir -p outputs/registry/safe_driver_model/1
            touch outputs/registry/safe_driver_model/1/tags.json $out;;
  *) mkdir -p ${out%/*}; touch $out;;
esac
echo $name >> log
'''
# The Python of the set-up; what it printed is kept while the list of versions stays as it is.
PYTHON3 = f'''#!/bin/sh
case $1 in -Ec) exit;; training/*) exec "{sys.executable}" -ES "$@";; esac
[ -e name ] && [ ! conda_dependencies.yml -nt name ] || "{sys.executable}" -ES "$@" > name || exit
cat name
'''


class Project:
    def __init__(self, folder):
        self.folder = folder
        # make compares times of files, some of which count in whole ticks of the system's clock.
        self.clock = 1000000000

    def age(self):
        """Give all files one old time, so that only what changes from now on is newer."""
        for path in self.folder.rglob('*'):
            os.utime(str(path), (self.clock, self.clock))

    def write(self, name, text=''):
        (self.folder / name).write_text(text)

    def make(self, *words, fails=False, **environ):
        """Names of the scripts that make ran, in order; output: what it said."""
        log = self.folder / 'log'
        log.write_text('')
        done = subprocess.run(
            ['make', 'PYTHON=./python'] + list(words), cwd=str(self.folder),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            env=dict(environ, PATH=f'{self.folder}:/usr/bin:/bin'))
        self.output = done.stdout
        assert (done.returncode != 0) == fails, done.stdout
        return log.read_text().split()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A project in which `make retrain` has just run."""
    project = Project(tmp_path_factory.mktemp('graph') / 'project')
    (project.folder / 'training').mkdir(parents=True)
    for name in re.findall(r'training/[a-z_]+\.(?:py|json|html)', (ROOT / 'Makefile').read_text()):
        project.write(name)
    for name in REAL:
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(project.folder / name))
    for name, text in (('python', STAND_IN), ('python3', PYTHON3)):
        project.write(name, text)
        (project.folder / name).chmod(0o755)
    assert project.make('retrain', '-j4') == ALL
    project.age()
    return project


@pytest.fixture
def project(made, tmp_path):
    copy = Project(tmp_path / 'project')
    shutil.copytree(str(made.folder), str(copy.folder))
    copy.age()
    return copy


@pytest.mark.parametrize('change, redone', [
    ('PORT=7', []),
    # As good as not given.
    ('ROWS=', []),
    ('OUT=', []),
    ('ROWS=5', ALL),
    ('PARAMETERS=training/parameters_challenge.json', ALL[1:]),
    ('DATA=Makefile', ALL[1:]),
    ('RUN_EVALUATION=true', ALL[2:]),
    ('MODEL_NAME=another', ALL[2:]),
    ('BUILD_BUILDID=7', ALL[3:]),
    ('touch training/sample.py', ALL),
    ('touch training/columns.json', ALL),
    ('touch training/parameters.json', ALL[1:]),
    ('touch outputs/data/safe_driver.csv', ALL[1:]),
    ('touch training/evaluate.py', ALL[2:]),
    ('touch training/register.py', ALL[3:]),
    ('touch Makefile scripts/build_venv.py', []),
    ('rm outputs/model/model.txt', ALL[1:]),
    ('rm outputs/model/metrics.json', ALL[1:]),
    ('rm outputs/decision.json', ALL[2:]),
    ('rm outputs/registration.json', ALL[3:]),
    ('rm outputs/registry/safe_driver_model/1/tags.json', ALL[3:]),
    ('mv outputs/registry/safe_driver_model/1 outputs/registry/safe_driver_model/1.old', ALL[3:]),
])
def test_a_changed_variable_or_file_redoes_what_depends_on_it(project, change, redone):
    if '=' not in change:
        subprocess.check_call(change.split(), cwd=str(project.folder))
    assert project.make('retrain', *[change] * ('=' in change)) == redone


def test_once_done_it_is_not_done_again_and_the_earlier_value_is_a_change_too(project):
    assert project.make('retrain', 'ROWS=5') == ALL
    assert project.make('retrain', 'ROWS=5') == []
    assert project.make('retrain') == ALL


def test_a_result_depends_on_all_that_its_script_imports(project):
    project.make('-pq', 'retrain', fails=True)
    rules = {name: needed.partition('|')[0].split() for name, needed
             in re.findall(r'^(outputs/[^:=%\n]+): (.+)$', project.output, re.M)}
    for script, result in zip(ALL, ('data/safe_driver.csv', 'model/model.txt', 'decision.json',
                                    'registration.json')):
        needed, waiting = set(), ['outputs/' + result]
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += rules.get(name, [])
        finder = modulefinder.ModuleFinder([str(ROOT / 'training')])
        finder.run_script(str(ROOT / 'training' / f'{script}.py'))
        imported = {os.path.relpath(module.__file__, str(ROOT))
                    for module in finder.modules.values() if module.__file__}
        assert f'training/{script}.py' in imported and imported <= needed


@pytest.mark.parametrize('old, new, redone', [
    ('pandas=2.3.3', 'pandas=2.3.4', ALL[1:]),
    ('pytest==', 'pytest==1', []),
    ('orjson==', 'orjson==1', []),
    ('# The one list', '# The one and only list', []),
])
def test_a_changed_pin_retrains_only_if_training_needs_it(project, old, new, redone):
    text = (project.folder / 'conda_dependencies.yml').read_text()
    assert old in text
    project.write('conda_dependencies.yml', text.replace(old, new))
    assert project.make('retrain') == redone


def test_a_list_of_versions_that_cannot_be_read_stops_make(project):
    project.write('conda_dependencies.yml', 'dependencies:\n  - pandas  # training\n')
    assert project.make('retrain', fails=True) == []
    assert 'pandas: no pinned version' in project.output


def test_a_changed_table_of_ones_own_retrains(project):
    parts = 'parts ' + ODD
    (project.folder / parts).mkdir()
    project.write(parts + '/2.csv')
    for seconds, (data, name, text) in enumerate((
            (ODD, ODD, 'a'), (ODD, ODD, 'b'), (parts, parts + '/1.csv', 'a'),
            (parts, parts + '/1.csv', 'b'), (parts, parts + '/2.csv', None))):
        path = project.folder / name
        if text:
            path.write_text(text)
            # Older than all that was made before.
            os.utime(str(path), (seconds, seconds))
        else:
            path.unlink()
        assert project.make('train', 'DATA=' + data) == ['train']
    assert project.make('train', DATA=parts) == []


def test_a_table_that_is_not_there_is_said_at_once(project):
    assert project.make('retrain', 'DATA=absent.csv', fails=True) == []
    assert 'error: absent.csv: there is no such file' in project.output
    assert project.make('retrain') == []


@pytest.mark.parametrize('number', [1, 2, 3])
def test_a_failed_step_stops_takes_no_result_away_and_is_done_again(project, number):
    results = set(project.folder.glob('outputs/**/*'))
    project.write(f'training/{ALL[number]}.py', 'broken')
    assert project.make('retrain', fails=True) == []
    assert set(project.folder.glob('outputs/**/*')) == results
    project.write(f'training/{ALL[number]}.py')
    assert project.make('retrain') == ALL[number:]


def test_serving_does_not_retrain_what_is_registered(project):
    project.write('scripts/serve.py', '')
    assert project.make('serve', 'ROWS=77') == []


@pytest.mark.parametrize('given', ['environment', 'command line'])
def test_a_value_is_text_and_the_surroundings_stay_outside(project, given):
    names = ['DATA', 'PARAMETERS', 'RUN_EVALUATION', 'ALLOW_RUN_CANCEL', 'BUILD_BUILDID', 'PORT']
    values = dict.fromkeys(names, ODD)
    words = map('='.join, values.items()) if given == 'command line' else []
    project.write(ODD)
    assert project.make('retrain', 'serve', *words, **values, PYTHONHOME='there', GIT_DIR='there',
                        PYTHONPATH='there') == ALL[1:]
    said = (project.folder / 'given').read_text().splitlines()
    assert said.count(ODD) == 8 and f'BUILD_BUILDID={ODD}' in said
    assert 'there' not in ' '.join(said) and not (project.folder / 'run').exists()


@pytest.mark.parametrize('given, said', [
    ('OUT=my outputs', "OUT is 'my outputs': make cannot handle blanks"),
    ('OUT=a(1)', "OUT is 'a(1)'"), ('OUT=$(HOME)', "OUT is '$(HOME)'"), ('OUT=-o', "OUT is '-o'"),
    ("MODEL_NAME=it's", "MODEL_NAME is 'it's'"), ('VENV=a;b', "VENV is 'a;b'"),
    ('ROWS=1\ntouch run', 'ROWS has a line break'),
    ('DATA=##vso[task.setvariable variable=x]y', 'DATA has ## in it'),
    ('PYTHON=/no/such', 'PYTHON is /no/such, and no Python'), ('PYTHON=true', 'PYTHON is true,')])
def test_what_make_cannot_handle_is_one_sentence(project, given, said):
    assert project.make('retrain', given, fails=True) == [] and said in project.output


def test_a_venv_whose_interpreter_is_gone_is_built_again(project):
    for name in ('devops/openhack_requirements.txt', '.venv/bin/python', '.venv/.local'):
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        project.write(name)
    project.age()
    for interpreter, words in ((sys.executable, 0), ('/no/such', 1)):
        subprocess.check_call(['ln', '-sf', interpreter, f'{project.folder}/.venv/bin/python'])
        project.make('-n', 'lint', 'PYTHON=')
        assert project.output.count('build_venv') == words


def test_clean_removes_what_make_made_and_nothing_else(project):
    gone = ['.venv', '.coverage', 'outputs/model', 'outputs/decision.json', 'scripts/__pycache__',
            'outputs/data/safe_driver.csv']
    kept = ['Makefile', 'scripts', 'outputs/mine.txt', 'outputs/data/mine.csv',
            'outputs/registry/safe_driver_model/1/tags.json']
    for folder in ('.venv/bin', 'scoring', 'devops', 'tests', 'scripts/__pycache__'):
        (project.folder / folder).mkdir(parents=True, exist_ok=True)
    for name in ('.coverage', 'outputs/mine.txt', 'outputs/data/mine.csv'):
        project.write(name)
    project.make('clean')
    there = {name for name in gone + kept if (project.folder / name).exists()}
    assert there == set(kept)
