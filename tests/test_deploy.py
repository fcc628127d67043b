import types

import pytest

import azure_ml
import deploy
import settings


def service(state='Healthy', **tags):
    return types.SimpleNamespace(state=state, tags=tags)


def parts(version, **changes):
    return dict({'model': 'm', 'version': version, 'environment': 'e', 'scoring': 'c'}, **changes)


def test_without_a_usable_run_json_it_is_said(tmp_path):
    with pytest.raises(azure_ml.AzureError, match='make run'):
        deploy.model_to_deploy(settings.read({}), tmp_path)
    (tmp_path / 'run.json').write_text('{')
    with pytest.raises(ValueError, match='run.json'):
        deploy.model_to_deploy(settings.read({}), tmp_path)


def test_fingerprint_follows_what_is_uploaded(tmp_path):
    (tmp_path / 'score.py').write_text('1')
    first = deploy.fingerprint(tmp_path)
    (tmp_path / '__pycache__').mkdir()
    (tmp_path / '__pycache__' / 'score.pyc').write_text('1')
    (tmp_path / '.hidden').write_text('1')
    assert deploy.fingerprint(tmp_path) == first
    (tmp_path / 'score.py').write_text('2')
    assert deploy.fingerprint(tmp_path) != first


def test_rollback_goes_to_what_was_healthy():
    assert deploy.previous_tags(None, parts('1')) == {}
    before = {'previous_' + name: value for name, value in parts('1').items()}
    assert deploy.previous_tags(service(**parts('1')), parts('2')) == before
    # A new scoring script under the same model is a change, too.
    assert deploy.previous_tags(service(**parts('1')), parts('1', scoring='d')) == before
    # What never became healthy, and a deployment repeated, leave the way back as it was.
    for state in ('Unhealthy', 'Failed', 'Transitioning'):
        broken = service(state, **dict(parts('2'), **before))
        assert deploy.previous_tags(broken, parts('3')) == before
    assert deploy.previous_tags(service(**dict(parts('2'), **before)), parts('2')) == before
