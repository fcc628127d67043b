"""README, help, YAML, pins and code tell the same story."""
import ast
import re
import subprocess
import sys

import pytest

import dependencies
import environment
from conftest import ROOT

FOLDERS = ('training', 'scoring', 'scripts', 'devops', 'tests')
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py'))
SCRIPTS = [path for path in FILES if "__name__ == '__main__'" in path.read_text()
           and path.parent.name != 'tests']
README = (ROOT / 'README.md').read_text()
MAKEFILE = (ROOT / 'Makefile').read_text()
TARGETS = re.findall(r'^([a-z][a-z-]*):.*## ', MAKEFILE, re.M)
HEAVY = {'azureml', 'numpy', 'pandas', 'lightgbm', 'matplotlib', 'scipy', 'requests', 'yaml'}
# What a folder may import of this project; None is "anything". tracking.py and score.py below.
ARROWS = {
    'training': {'training'},
    'scoring': {'scoring'},
    'scripts': {'scripts'},
    'devops': {'devops', 'loopback'},
    'loopback': {'loopback'},
    'tests': {'training', 'scoring', 'scripts', 'devops', 'loopback', 'tests'},
}
AZUREML = {
    'training/tracking.py': ('azureml',),
    'scoring/score.py': ('azureml.contrib.services', 'azureml_inference_server_http'),
}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path):
    """Full names of all modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


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
        assert re.search(r'^  %s +\S' % target, done.stdout, re.M), target


def test_every_target_is_phony_or_a_file():
    phony = set(' '.join(re.findall(r'^\.PHONY: (.*)', MAKEFILE, re.M)).split())
    assert set(TARGETS) <= phony


def test_ci_calls_the_test_commands_of_the_readme():
    called = made_by_make((ROOT / '.ci' / 'run').read_text())
    assert {'lint', 'test', 'end-to-end'} <= called
    assert called <= made_by_make(commands(README))


def test_module_names_are_unique():
    stems = [path.stem for path in FILES if path.parent.name != 'loopback']
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_imports_follow_the_arrows(path):
    folder = path.parent.name
    own = {other.stem: other.parent.name for other in FILES if other.parent.name != 'loopback'}
    own['loopback'] = 'loopback'
    for module in imports(path):
        owner = own.get(module.split('.')[0])
        assert owner is None or owner in ARROWS[folder], 'imports %s of %s' % (module, owner)
        if module.startswith('azureml') and folder in ('training', 'scoring'):
            allowed = AZUREML.get(names([path])[0], ())
            assert module.startswith(allowed) if allowed else False, 'imports ' + module


@pytest.mark.skipif(sys.version_info < (3, 8), reason='ast.parse takes a version from 3.8 on')
@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_syntax_stays_within_the_containers_python(path):
    ast.parse(path.read_text(), feature_version=(3, 7))


@pytest.mark.parametrize('path', SCRIPTS, ids=names(SCRIPTS))
def test_help_of_a_script_is_cheap_and_its_docstring_shows_the_command(path):
    shown = ast.get_docstring(ast.parse(path.read_text()))
    name = path.parent.name if path.stem == '__main__' else path.stem
    assert re.search(r'python\S* .*%s' % re.escape(name), shown), shown
    loaded = 'import sys, runpy; sys.argv = [%r, "--help"]; sys.path.insert(0, %r)\n' \
             'try: runpy.run_path(%r, run_name="__main__")\n' \
             'except SystemExit as e: assert not e.code\n' \
             'print("loaded", *sys.modules)' % (str(path), str(path.parent), str(path))
    done = subprocess.run([sys.executable, '-c', loaded], stdout=subprocess.PIPE, check=True,
                          universal_newlines=True)
    modules = {name.split('.')[0] for name in done.stdout.split('loaded')[-1].split()}
    assert 'usage' in done.stdout
    assert not modules & HEAVY


def test_pins_agree():
    text = dependencies.LIST.read_text()
    pins = {re.split('==?', line)[0]: re.split('==?', line)[1]
            for _, line, _ in dependencies.parse(text)}
    assert pins['azureml-sdk'] == pins['azureml-defaults']
    assert pins['python'] == environment.SUPPORTED[0]
    assert pins['python'] in environment.SDK_PYTHONS
    conda = {line.split('=')[0] for is_conda, line, _ in dependencies.parse(text) if is_conda}
    assert 'lightgbm' in conda and 'azureml-dataprep' in set(pins) - conda
    container = environment.pins('full', environment.CONTAINER)
    assert all('==' in line for line in container)


def test_no_path_of_one_machine_and_no_leftover():
    pattern = re.compile(r'/(work|farm|root)/[A-Za-z_.]|\b(TODO|FIXME|XX' r'X)\b')
    texts = FILES + [ROOT / 'Makefile', ROOT / 'README.md', ROOT / '.ci' / 'run']
    texts += list((ROOT / 'devops').rglob('*.yml'))
    found = ['%s: %s' % (path.relative_to(ROOT), match.group(0)) for path in texts
             for match in pattern.finditer(path.read_text()) if path.name != 'test_project.py']
    assert found == []
