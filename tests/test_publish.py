import subprocess

import publish
import settings


def test_the_commit_is_the_builds_or_gits_and_dirty_where_files_differ(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.check_output(
            ('git', '-c', 'user.name=n', '-c', 'user.email=e', '-C', str(tmp_path)) + words
        ).decode().strip()

    monkeypatch.setattr(publish, 'ROOT', tmp_path)
    config = settings.read({})
    assert publish.code_commit(config) == 'none'
    git('init', '-q')
    (tmp_path / 'train.py').write_text('1')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    commit = git('rev-parse', 'HEAD')
    (tmp_path / 'notes.txt').write_text('not of the code')
    assert publish.code_commit(config) == commit
    (tmp_path / 'train.py').write_text('2')
    assert publish.code_commit(config) == commit + '-dirty'
    assert publish.code_commit(settings.read({'BUILD_SOURCEVERSION': 'c' * 40})) == 'c' * 40
    # An archive that was unpacked within that repository.
    (tmp_path / 'archive').mkdir()
    monkeypatch.setattr(publish, 'ROOT', tmp_path / 'archive')
    (tmp_path / 'archive' / 'train.py').write_text('1')
    assert publish.code_commit(config) == 'none'
