import json
import os
import subprocess
import sys

import pytest
import requests

import atomic
import azure_ml
import settings
from conftest import ROOT

# In parts: what looks like a token is looked for in all that a rehearsal writes, this file too.
TOKEN = 'ey' + 'J0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.ey' + 'JleHAiOjF9.abc-DEF_123'


def http_error(status, text='no'):
    response = requests.Response()
    response.status_code = status
    response._content = text.encode()
    return requests.HTTPError(f'{status} Error for url', response=response)


# By numbers, so that a look for tokens in all that was written finds none in the results.
@pytest.mark.parametrize('text', [
    'token ' + TOKEN, 'Authorization: Bearer ' + TOKEN, 'Authorization: Bearer s3cr3tkey',
    'https://a.blob.core.windows.net/c/f?sv=2019&sr=b&sig=s3cr3tkey%3D&se=1',
    'AccountKey=s3cr3tkey==;x', '{"client_secret": "s3cr3tkey"}', "password='s3cr3tkey'"],
    ids=list('1234567'))
def test_texts_are_cleaned_of_secrets(text):
    cleaned = azure_ml.clean(text)
    assert 's3cr3tkey' not in cleaned and 'eyJ' not in cleaned and '***' in cleaned


@pytest.mark.parametrize('text, harmless', [
    ('x ##vso[a b=c]1 ##vso[d]\r\ny', 'x # #vso[a b=c]1 # #vso[d]\ny'),
    ('##[error]x', '# #[error]x'), ('####vso[', '### #vso['), ('## Title [1]', '## Title [1]'),
    # The agent compares by culture, to which these characters are nothing.
    ('#\u200d#v\xads\0o\ufe0f[', '# #v?s?o\ufe0f['),
    ('\x1b[1mx\x07\u202e\ty', '?[1mx??\ty'), ('x' * 9999 + '\nz', 'x' * 2000 + ' ...\nz')],
    ids=str.split('command colour more title unseen control long'))
def test_no_text_of_others_commands_the_agent(text, harmless, capsys):
    @azure_ml.verb
    def main(argv=None):
        print(text)
        azure_ml.set_output('result', text)
        if argv:
            raise argv(text)
        return 0

    assert azure_ml.clean(text) == azure_ml.clean(harmless) == harmless
    for error, code in ((None, 0), (azure_ml.AzureError, 1), (settings.SettingsError, 2),
                        (OSError, 1), (KeyError, 1)):
        assert main(error) == code
        out, err = capsys.readouterr()
        printed, output = out.split('##vso[task.setvariable variable=result;isOutput=true]')
        assert (printed, len(output.splitlines())) == (harmless + '\n', 1)
        assert azure_ml.clean(output + err) == output + err


@pytest.mark.parametrize('error, status, said', [
    (http_error(403, json.dumps({'error': {'code': 'X', 'message': f'May not, says {TOKEN}.'}})),
     403, 'HTTP 403, May not, says ***.\n' + azure_ml.ADVICE[403]),
    # The SDK puts the status into the text.
    (Exception('Error. Code: 503\n: busy'), 503,
     'HTTP 503, Error. Code: 503 : busy\n' + azure_ml.LATER),
    (requests.ConnectionError("HTTPSConnectionPool(host='a.b', port=443): no way"), None,
     'no connection to a.b\n' + azure_ml.CONNECTION)])
def test_what_goes_wrong_is_one_sentence_with_advice(error, status, said):
    with pytest.raises(azure_ml.AzureError) as info, azure_ml.asking('deploy', 10):
        raise error
    assert (info.value.status, str(info.value)) == (status, 'could not deploy: ' + said)


def test_prints_of_the_sdk_are_swallowed(capsys):
    with azure_ml.asking('deploy', 10):
        print('noise')
    print('said')
    assert capsys.readouterr().out == 'said\n'


@pytest.fixture
def without_pauses(monkeypatch):
    monkeypatch.setattr(azure_ml, 'FIRST_PAUSE_SECONDS', 0.001)


@pytest.mark.parametrize('error, tries, said', [
    (http_error(503), 3, None), (http_error(429), 3, None),
    (http_error(404), 1, 'HTTP 404'), (http_error(401), 1, 'HTTP 401'),
    (requests.exceptions.InvalidURL('bad address'), 1, 'could not look: bad address'),
    (requests.exceptions.SSLError("host='x': CERTIFICATE_VERIFY_FAILED"), 1,
     'no connection to x: its certificate is not trusted here\nset REQUESTS_CA_BUNDLE')])
def test_only_what_passes_is_asked_for_again(without_pauses, error, tries, said):
    asked = []

    def ask():
        asked.append(1)
        if len(asked) < 3:
            raise error
        return 'good'

    if said:
        with pytest.raises(azure_ml.AzureError) as info, azure_ml.asking('look', 10):
            azure_ml.repeat(ask, 10)
        assert said in str(info.value)
    else:
        assert azure_ml.repeat(ask, 10) == 'good'
    assert len(asked) == tries


def test_repeating_ends(without_pauses):
    with pytest.raises(requests.ConnectionError):
        azure_ml.repeat(lambda: requests.get('http://127.0.0.1:1'), 0.01)


def test_a_call_that_hangs_ends_the_process():
    code = ('import azure_ml, socket\n'
            'here, there = socket.socketpair()\n'
            'with azure_ml.asking("open the workspace", 0.2):\n'
            '    here.recv(1)\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=str(ROOT / 'scripts'),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(
        'error: could not open the workspace: no answer within 0.2 s\n')


def test_an_answer_that_a_library_stumbles_over_is_one_sentence():
    with pytest.raises(azure_ml.AzureError, match='could not look: the answer is not of the form'):
        with azure_ml.asking('look', 10):
            requests.utils.dict_from_cookiejar(None)
    with pytest.raises(KeyError):
        with azure_ml.asking('look', 10):
            {}['a mistake of ours']


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / 'run.json').write_text('{}')
    monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic.write_json(tmp_path / 'run.json', {'id': 1})
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{}']


@pytest.mark.parametrize('content', [
    '[]', '{}', 'null', '7', '{"id": 1}', '{', '\xff', '[' * 100000], ids=range(8))
def test_a_file_of_another_form_is_not_taken_for_none(content, tmp_path):
    path = tmp_path / 'pipeline.json'
    assert atomic.read_json(path, 'id', 'name') is None
    path.write_bytes(content.encode('latin-1'))
    with pytest.raises(ValueError, match='pipeline.json holds no JSON object with id, name: rem'):
        atomic.read_json(path, 'id', 'name')
