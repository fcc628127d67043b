import xml.etree.ElementTree as ElementTree

import pycodestyle
import pytest

import lint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(exit code, root of the JUnit file) of lint in a project of files with these texts."""
    def run(*texts):
        monkeypatch.setattr(lint, 'ROOT', tmp_path)
        (tmp_path / 'scripts').mkdir()
        for number, text in enumerate(texts):
            (tmp_path / 'scripts' / f'file{number}.py').write_text(text)
        junit = tmp_path / 'results' / 'lint.xml'
        code = lint.main(['--junit', str(junit)])
        return code, ElementTree.parse(str(junit)).getroot()
    return run


def test_every_finding_is_printed_and_in_the_junit_file(run, capsys, tmp_path, monkeypatch):
    # What a user ignores in other projects counts here.
    (tmp_path / 'theirs').write_text('[pycodestyle]\nignore = E,W\n')
    monkeypatch.setattr(pycodestyle, 'USER_CONFIG', str(tmp_path / 'theirs'))
    code, root = run('x = 1\n', 'import os\nx=1\ny=2 \n', 'def broken(:\n')
    shown = capsys.readouterr().out
    first, second = root.findall('.//failure')
    assert code == 1
    assert shown.count('E225') == first.text.count('E225') == 2
    assert 'file1.py:3:4 W291' in shown and 'file1.py:3:4 W291' in first.text
    assert 'E9' in second.text
    assert len(root.findall('.//testcase')) == 3 and root.find('testsuite').get('failures') == '2'


def test_clean_files_pass(run, capsys):
    code, root = run('x = 1\n')
    assert code == 0 and root.findall('.//failure') == []
    assert '1 files, 0 findings' in capsys.readouterr().out
