import xml.etree.ElementTree as ElementTree

import lint

CLEAN, BAD = 'x = 1\n', 'import os\nx=1\ny=2 \n'


def run(tmp_path, *texts):
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / (f'file{number}.py'))
        paths[-1].write_text(text)
    junit = tmp_path / 'results' / 'lint.xml'
    code = lint.main(['--junit', str(junit)] + [str(path) for path in paths])
    return code, ElementTree.parse(str(junit)).getroot()


def test_every_finding_is_printed_and_in_the_junit_file(tmp_path, capsys):
    code, root = run(tmp_path, CLEAN, BAD)
    shown = capsys.readouterr().out
    failures = root.findall('.//failure')
    assert code == 1
    assert shown.count('E225') == failures[0].text.count('E225') == 2
    assert 'file1.py:3:4 W291' in shown and 'file1.py:3:4 W291' in failures[0].text
    assert len(failures) == 1 and len(root.findall('.//testcase')) == 2
    assert root.find('testsuite').get('failures') == '1'


def test_clean_files_pass(tmp_path, capsys):
    code, root = run(tmp_path, CLEAN)
    assert code == 0
    assert root.findall('.//failure') == []
    assert '1 files, 0 findings' in capsys.readouterr().out


def test_a_syntax_error_is_a_finding(tmp_path):
    code, root = run(tmp_path, 'def broken(:\n')
    assert code == 1 and 'E9' in root.find('.//failure').text


def test_a_missing_file_is_wrong_use(tmp_path, capsys):
    assert lint.main(['--junit', str(tmp_path / 'l.xml'), str(tmp_path / 'absent.py')]) == 2
    assert 'absent.py' in capsys.readouterr().err
    assert not (tmp_path / 'l.xml').exists()
