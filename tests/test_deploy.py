import types

import pytest

import atomic
import azure_ml
import deploy
import settings


def service(state='Healthy', cpu=1, memory=1, **tags):
    need = types.SimpleNamespace(cpu=cpu, memory_in_gb=memory)
    return types.SimpleNamespace(name='s', state=state, tags=tags,
                                 container_resource_requirements=need)


def parts(version, **changes):
    return dict({'model': 'm', 'version': version, 'environment': 'e', 'scoring': 'c'}, **changes)


def test_model_of_the_run_unless_a_version_is_set(tmp_path):
    config = settings.read({})
    with pytest.raises(azure_ml.AzureError, match='make run'):
        deploy.model_to_deploy(config, tmp_path)
    run = {'result': 'registered', 'model': 'm', 'version': 3}
    atomic.write_json(tmp_path / 'run.json', run)
    assert deploy.model_to_deploy(config, tmp_path) == ('m', 3)
    atomic.write_json(tmp_path / 'run.json', dict(run, result='kept'))
    assert deploy.model_to_deploy(config, tmp_path) == ('m', None)
    config = settings.read({'MODEL_NAME': 'other', 'MODEL_VERSION': '2'})
    assert deploy.model_to_deploy(config, tmp_path) == ('other', 2)
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


def test_cpu_and_memory_are_never_changed_in_place():
    wanted = {'cpu_cores': 1, 'memory_gb': 2}
    asked, allowed = settings.read({}), settings.read({'ACI_REPLACE': 'true'})
    assert deploy.resources(None, wanted, asked) == (1, 2, False)
    assert deploy.resources(service(memory=2), wanted, asked) == (1, 2, False)
    with pytest.raises(azure_ml.AzureError, match='ACI_REPLACE=true'):
        deploy.resources(service(), wanted, asked)
    assert deploy.resources(service(), wanted, allowed) == (1, 2, True)
