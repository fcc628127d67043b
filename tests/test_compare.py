import json
import subprocess

import pytest

import compare
from conftest import ROOT


def test_a_base_that_git_does_not_know_is_one_sentence(tmp_path, capsys):
    words = ['--data', str(tmp_path / 't.csv'), '--out', str(tmp_path / 'out')]
    for base in ('no/such', '--help', '$(touch x)', ''):
        assert compare.main(['--base=' + base] + words) == 1
        said = capsys.readouterr().err
        assert f"BASE is '{base}'" in said and len(said.splitlines()) == 1


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of this project whose last commit trains three trees instead of 220."""
    root = tmp_path / 'My Work (1)' / 'clone'
    subprocess.check_call(['git', 'clone', '--quiet', str(ROOT), str(root)])
    monkeypatch.setattr(compare, 'ROOT', root)

    def commit(path, *change):
        text = (root / path).read_text()
        assert change[0] in text
        (root / path).write_text(text.replace(*change))
        subprocess.check_call(
            ['git', '-C', str(root), '-c', 'user.name=n', '-c', 'user.email=e', '-c',
             'commit.gpgsign=false', 'commit', '--quiet', '--no-verify', '-am', 'x'])

    commit('training/parameters.json', '"rounds": 220', '"rounds": 3')
    return commit


@pytest.mark.end_to_end
def test_a_change_that_makes_the_model_worse_shows(clone, tmp_path, capsys):
    import sample
    assert sample.main(['--rows', '20000', '--out', str(tmp_path / 't.csv')]) == 0

    def run(base):
        code = compare.main(['--base', base, '--data', str(tmp_path / 't.csv'),
                             '--out', str(tmp_path / 'out')])
        return code, json.loads((tmp_path / 'out' / 'compare' / 'compare.json').read_text())

    code, found = run('HEAD~1')
    assert code == 0 and 'problem' not in found
    difference = found['here']['auc'] - found['before']['auc']
    assert difference == pytest.approx(found['decision']['difference']) and difference < 0
    assert 'auc changes by -' in capsys.readouterr().out
    # A base that cannot be trained is told of; only a fault here is an error.
    clone('training/train.py', 'import', 'broken import')
    clone('training/train.py', 'broken import', 'import')
    code, found = run('HEAD~1')
    assert code == 0 and 'train failed' in found['problem'] and found['here']['auc'] > 0.5
    clone('training/train.py', 'import', 'broken import')
    capsys.readouterr()
    assert compare.main(['--base', 'HEAD~1', '--data', str(tmp_path / 't.csv'),
                         '--out', str(tmp_path / 'out')]) == 1
    assert 'SyntaxError' in capsys.readouterr().err
