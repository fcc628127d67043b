"""README, help, YAML, pins and code tell the same story."""
import ast
import re
import subprocess
import sys

import pytest

import build_venv
import dependencies
from conftest import ROOT

pytestmark = pytest.mark.no_cover

FOLDERS = ('training', 'scoring', 'scripts', 'devops', 'tests')
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py'))
SCRIPTS = [path for path in FILES if "__name__ == '__main__'" in path.read_text()
           and path.parent.name != 'tests']
README = (ROOT / 'README.md').read_text()
MAKEFILE = (ROOT / 'Makefile').read_text()
TARGETS = re.findall(r'^([a-z][a-z-]*):.*## ', MAKEFILE, re.M)
HEAVY = {'azureml', 'numpy', 'pandas', 'lightgbm', 'matplotlib', 'scipy', 'requests', 'yaml'}
# What a folder may import of this project. tracking.py and score.py below.
ARROWS = {
    'training': {'training'},
    'scoring': {'scoring'},
    'scripts': {'scripts'},
    'bench': {'training', 'scoring'},
    # container.py passes the settings by name.
    'devops': {'scripts'},
    'rehearsal': {'rehearsal', 'loopback'},
    'loopback': {'loopback'},
    'tests': {'training', 'scoring', 'scripts', 'devops', 'rehearsal', 'loopback',
              'tests'},
}
AZUREML = {
    'training/tracking.py': ('azureml',),
    'scoring/score.py': ('azureml.contrib.services', 'azureml_inference_server_http'),
}


def imports(path):
    """Full names of all modules that a file imports, at its top, in a function or in a program."""
    text = path.read_text()
    # A SyntaxError for what Python 3.7, the container's, does not know.
    version = {'feature_version': (3, 7)} if sys.version_info >= (3, 8) else {}
    ast.parse(text, str(path), **version)
    return set(re.findall(r'^ *(?:import|from) (\w[\w.]*)', text, re.M))


def made_by_make(text):
    """Targets in `make x y` commands of a text; variables and flags are passed over."""
    found = set()
    for words in re.findall(r'\bmake((?: +[A-Za-z0-9_./=$()<>-]+)+)', text):
        for word in words.split():
            if '=' in word or word.startswith('-') or word[0] in '<$':
                continue
            if not re.match(r'^[a-z][a-z-]*$', word):
                break
            found.add(word)
    return found


def commands(markdown):
    """The code blocks and code spans of a Markdown text, in which commands are commands."""
    block = re.compile(r'^ *```.*?^ *```', re.M | re.S)
    return '\n'.join(block.findall(markdown) + re.findall(r'`([^`\n]+)`', block.sub('', markdown)))


def test_every_target_of_help_is_in_the_readme():
    assert TARGETS
    table = re.findall(r'^\| `(?:make )?([a-z-]+)`', README, re.M)
    assert sorted(TARGETS) == sorted(set(table) & set(TARGETS)), 'missing in the table of targets'


def test_every_make_command_in_the_readme_and_the_yaml_exists():
    shown = made_by_make(commands(README))
    for path in (ROOT / 'devops').rglob('*.yml'):
        shown |= made_by_make(re.sub(r'#.*', '', path.read_text()))
    assert shown - set(TARGETS) == set()
    assert {'rehearse', 'test', 'retrain'} <= shown


def test_help_prints_every_target():
    done = subprocess.run(['make', '-C', str(ROOT), 'help'], stdout=subprocess.PIPE, check=True,
                          universal_newlines=True)
    for target in TARGETS:
        assert re.search(rf'^  {target} +\S', done.stdout, re.M), target


def test_every_target_is_phony_or_a_file():
    phony = set(' '.join(re.findall(r'^\.PHONY: (.*)', MAKEFILE, re.M)).split())
    assert set(TARGETS) <= phony


def test_ci_calls_the_test_commands_of_the_readme():
    called = made_by_make((ROOT / '.ci' / 'run').read_text())
    assert {'lint', 'test', 'end-to-end'} <= called
    assert called <= made_by_make(commands(README))


def owner(path):
    """The folder that a file belongs to, as ARROWS names it."""
    return 'tests' if 'tests' in path.parts else path.parent.name


def test_module_names_are_unique():
    stems = [path.stem for path in FILES if owner(path) != 'loopback']
    assert len(stems) == len(set(stems))


def test_imports_follow_the_arrows_and_the_syntax_is_that_of_the_containers_python():
    owners = {path.stem: owner(path) for path in FILES if owner(path) != 'loopback'}
    owners['loopback'] = 'loopback'
    wrong = []
    for path in FILES:
        for module in imports(path):
            imported = owners.get(module.split('.')[0])
            allowed = imported is None or imported in ARROWS[owner(path)]
            if module.startswith('azureml') and owner(path) in ('training', 'scoring'):
                allowed = module.startswith(AZUREML.get(str(path.relative_to(ROOT)), 'nothing'))
            if not allowed:
                wrong.append(f'{path.relative_to(ROOT)} imports {module}')
    assert wrong == []


# A process for each script, which begins with what nearly all of them load.
HELP = """
import argparse, csv, gzip, hashlib, json, logging, os, runpy, subprocess, sys, tempfile, uuid
for script in sys.argv[1:]:
    if not os.fork():
        sys.argv = [script, '--help']
        sys.path.insert(0, os.path.dirname(script))
        try:
            runpy.run_path(script, run_name='__main__')
        except SystemExit as end:
            print('loaded', not end.code, *sys.modules)
        sys.exit()
    os.wait()
    print('of', script, flush=True)
"""


@pytest.mark.end_to_end
def test_help_of_a_script_is_cheap_and_its_docstring_shows_the_command():
    output = subprocess.run([sys.executable, '-c', HELP] + list(map(str, SCRIPTS)), check=True,
                            stdout=subprocess.PIPE, universal_newlines=True).stdout
    wrong = []
    for path in SCRIPTS:
        shown, output = output.split(f'of {path}\n')
        name = path.parent.name if path.stem == '__main__' else path.stem
        if not re.search(r'python\S* .*' + re.escape(name), path.read_text().split('"""')[1]):
            wrong.append(f'{path.name}: its docstring shows no command')
        modules = {name.split('.')[0] for name in shown.split('loaded True')[-1].split()}
        if 'loaded True' not in shown or 'usage' not in shown or modules & HEAVY:
            wrong.append(f'{path.name}: --help is not cheap, it loads {sorted(modules & HEAVY)}')
        if owner(path) in ('scripts', 'devops') and 'ctrl_c' not in modules:
            wrong.append(f'{path.name}: Ctrl-C prints a traceback')
    assert wrong == []


def test_pins_agree():
    text = dependencies.LIST.read_text()
    pins = {re.split('==?', line)[0]: re.split('==?', line)[1]
            for _, line, _ in dependencies.parse(text)}
    assert pins['azureml-sdk'] == pins['azureml-defaults']
    assert pins['python'] == build_venv.SUPPORTED[0]
    assert pins['python'] in build_venv.SDK_PYTHONS
    conda = {line.split('=')[0] for is_conda, line, _ in dependencies.parse(text) if is_conda}
    assert 'lightgbm' in conda and 'azureml-dataprep' in set(pins) - conda


def test_no_path_of_one_machine_and_no_leftover():
    pattern = re.compile(r'/(work|farm|root)/[A-Za-z_.]|\b(TODO|FIXME|XX' r'X)\b')
    texts = FILES + [ROOT / 'Makefile', ROOT / 'README.md', ROOT / '.ci' / 'run']
    texts += list((ROOT / 'devops').rglob('*.yml'))
    found = [f'{path.relative_to(ROOT)}: {match.group(0)}' for path in texts
             for match in pattern.finditer(path.read_text()) if path.name != 'test_project.py']
    assert found == []
