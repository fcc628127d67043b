"""The Makefile's graph: what a change redoes, and nothing else. The scripts are stand-ins here."""
import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.no_cover

ALL = ['sample', 'train', 'evaluate', 'register']
REAL = ('Makefile', 'conda_dependencies.yml', 'scripts/dependencies.py', 'scripts/build_venv.py')
# In place of Python: notes the script's name and writes what the script of that name would.
STAND_IN = '''#!/bin/sh
script=$1 name=$(basename $1 .py) out= stamp=
grep -q broken $script && exit 1
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --stamp) stamp=$2;; esac
  shift
done
case $name in
  serve) exit;;
  build_venv) mkdir -p $(dirname $stamp); touch $stamp; exit;;
  train) mkdir -p $out; touch $out/model.txt $out/metrics.json $out/report.html;;
  register) mkdir -p $(dirname $out)/registry/safe_driver_model/1
            touch $(dirname $out)/registry/safe_driver_model/1/tags.json $out;;
  *) mkdir -p $(dirname $out); touch $out;;
esac
echo $name >> log
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

    def touch(self, name, text=None):
        path = self.folder / name
        if text is not None:
            path.write_text(text)
        path.touch()

    def replace(self, name, old, new):
        text = (self.folder / name).read_text()
        assert old in text
        self.touch(name, text.replace(old, new))

    def make(self, *words, fails=False):
        """Names of the scripts that make ran, in order."""
        log = self.folder / 'log'
        log.write_text('')
        done = subprocess.run(
            ['make', 'PYTHON=./python'] + list(words), cwd=str(self.folder),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            env={'PATH': f'{self.folder}:/usr/bin:/bin'})
        assert (done.returncode != 0) == fails, done.stdout
        return log.read_text().split()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A project in which `make retrain` has just run."""
    project = Project(tmp_path_factory.mktemp('graph') / 'project')
    for name in REAL:
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(project.folder / name))
    (project.folder / 'training').mkdir()
    for name in re.findall(r'training/[a-z_]+\.(?:py|json)', (ROOT / 'Makefile').read_text()):
        project.touch(name, '')
    for name, text in (('python', STAND_IN),
                       ('python3', f'#!/bin/sh\nexec {sys.executable} -ES "$@"\n')):
        project.touch(name, text)
        (project.folder / name).chmod(0o755)
    assert project.make('retrain', '-j4') == ALL
    project.age()
    return project


@pytest.fixture(scope='module')
def rules(made):
    """{file: what make compares it with}"""
    text = subprocess.run(['make', '-pq', 'PYTHON=./python', 'retrain'], cwd=str(made.folder),
                          stdout=subprocess.PIPE, universal_newlines=True).stdout
    return {name: needed.partition('|')[0].split()
            for name, needed in re.findall(r'^(outputs/[^:=%\n]+): (.+)$', text, re.M)}


@pytest.fixture
def project(made, tmp_path):
    copy = Project(tmp_path / 'project')
    shutil.copytree(str(made.folder), str(copy.folder))
    copy.age()
    return copy


def test_nothing_changed_does_nothing(project):
    assert project.make('retrain') == []


@pytest.mark.parametrize('change, redone', [
    ('ROWS=5', ALL),
    ('PARAMETERS=training/parameters_challenge.json', ALL[1:]),
    ('DATA=other.csv', ALL[1:]),
    ('RUN_EVALUATION=true', ALL[2:]),
    ('MODEL_NAME=another', ALL[2:]),
    ('BUILD_BUILDID=7', ALL[3:]),
    ('PORT=7', []),
])
def test_a_changed_variable_redoes_what_depends_on_it(project, change, redone):
    project.touch('other.csv', '')
    project.touch('training/parameters_challenge.json', '')
    os.utime(str(project.folder / 'other.csv'), (project.clock, project.clock))
    assert project.make('retrain', change) == redone
    # And back again: the earlier value is a change too.
    assert project.make('retrain') == redone


@pytest.mark.parametrize('names, redone', [
    (['training/sample.py'], ALL),
    (['training/columns.json'], ALL),
    (['training/parameters.json'], ALL[1:]),
    (['outputs/data/safe_driver.csv'], ALL[1:]),
    (['training/evaluate.py'], ALL[2:]),
    (['training/register.py'], ALL[3:]),
    (['Makefile', 'scripts/build_venv.py'], []),
])
def test_a_touched_file_redoes_what_depends_on_it(project, names, redone):
    for name in names:
        project.touch(name)
    assert project.make('retrain') == redone
    assert project.make('retrain') == []


def imported(name, seen):
    """Add a module of training/ to `seen`, and all modules of training/ that it imports."""
    seen.add(f'training/{name}.py')
    for node in ast.walk(ast.parse((ROOT / 'training' / f'{name}.py').read_text())):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else (
            [node.module] if isinstance(node, ast.ImportFrom) else [])
        for other in names:
            if (ROOT / 'training' / f'{other}.py').is_file() and (
                    f'training/{other}.py' not in seen):
                imported(other, seen)
    return seen


@pytest.mark.parametrize('script, result', [
    ('sample', 'outputs/data/safe_driver.csv'), ('train', 'outputs/model/model.txt'),
    ('evaluate', 'outputs/decision.json'), ('register', 'outputs/registration.json')])
def test_a_result_depends_on_all_that_its_script_imports(rules, script, result):
    needed, waiting = set(), [result]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += rules.get(name, [])
    assert imported(script, set()) - needed == set()


@pytest.mark.parametrize('old, new, redone', [
    ('pandas=2.3.3', 'pandas=2.3.4', ALL[1:]),
    ('pytest==', 'pytest==1', []),
    ('orjson==', 'orjson==1', []),
    ('# The one list', '# The one and only list', []),
])
def test_a_changed_pin_retrains_only_if_training_needs_it(project, old, new, redone):
    project.replace('conda_dependencies.yml', old, new)
    assert project.make('retrain') == redone


@pytest.mark.parametrize('name, redone', [
    ('outputs/model/model.txt', ALL[1:]),
    ('outputs/model/metrics.json', ALL[1:]),
    ('outputs/decision.json', ALL[2:]),
    ('outputs/registration.json', ALL[3:]),
    ('outputs/registry/safe_driver_model/1/tags.json', ALL[3:]),
])
def test_a_removed_result_is_made_again(project, name, redone):
    (project.folder / name).unlink()
    assert project.make('retrain') == redone


def test_a_changed_table_of_ones_own_retrains(project):
    project.touch('own.csv', 'x')
    assert project.make('retrain', 'DATA=own.csv') == ALL[1:]
    project.age()
    assert project.make('retrain', 'DATA=own.csv') == []
    project.touch('own.csv', 'y')
    assert project.make('retrain', 'DATA=own.csv') == ALL[1:]


def test_a_table_that_is_not_there_reaches_the_script_that_says_so(project):
    assert project.make('retrain', 'DATA=absent.csv') == ALL[1:]


def test_a_failed_step_stops_and_is_done_again(project):
    project.touch('training/evaluate.py', 'broken')
    assert project.make('retrain', fails=True) == []
    project.touch('training/evaluate.py', '')
    assert project.make('retrain') == ALL[2:]


def test_serving_does_not_retrain_what_is_registered(project):
    project.touch('scripts/serve.py', '')
    assert project.make('serve', 'ROWS=77') == []


def test_a_name_with_a_blank_is_refused(project):
    assert project.make('retrain', 'OUT=my outputs', fails=True) == []
