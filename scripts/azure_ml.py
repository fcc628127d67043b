"""Calls to Azure ML with a deadline, without the SDK's noise, and with errors of one sentence.

    with azure_ml.asking('open the workspace', seconds=180):
        ...
"""
import contextlib
import functools
import io
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings

import ctrl_c  # noqa: F401
import settings

# By default the SDK repeats a request after 32, 64 and 128 s when it is throttled, and after up to
# 40 s when it meets 503, whatever Retry-After says: longer than our deadlines. It doubles these.
SDK_BACKOFF = {'AZUREML_DEFAULT_BACKOFF': '2', 'AZUREML_DEFAULT_503_BACKOFF': '2'}

TRANSIENT = (408, 429, 500, 502, 503, 504)
ANSWER_SECONDS = 20
FIRST_PAUSE_SECONDS = 1
# Modules whose exceptions come from the service or from the way there, not from a mistake here.
SERVICE_MODULES = ('azure', 'azureml', 'msal', 'msrest', 'msrestazure', 'adal', 'requests',
                   'urllib3', 'socket', 'ssl', 'http')
UNTRUSTED = 'CERTIFICATE_VERIFY_FAILED'
CAUSES = ('inner_exception', 'inner_error', '__cause__', '__context__')

SECRETS = re.compile(
    r'eyJ[\w-]{10,}(\.[\w-]+)*'
    r'|(?<=[?&;])sig=[^&\s"\']+'
    r'|(?i:bearer\s+)[\w.~+/=-]+'
    r'|(?i:(accountkey|sharedaccesskey|client_secret|password)["\']?\s*[=:]\s*)["\']?[^\s"\',;&]+')

# A command to the agent, "##vso[" anywhere in a line, or "##[", which colours its log. It compares
# by culture (Command.cs of microsoft/azure-pipelines-agent), so that characters of no width between
# these do not count.
UNSEEN = '[^ -~\\n]*'
COMMAND = re.compile(f"#{UNSEEN}#(?={UNSEEN}({UNSEEN.join('vso')}{UNSEEN})?\\[)")
LONGEST_LINE, LONGEST_SENTENCE = 2000, 300

ADVICE = {
    401: 'the sign-in was refused: check the service connection, renew its secret if it has one, '
         'or run `az login`',
    403: 'the sign-in has no right to do this: give it the role Contributor on the resource group',
    404: 'it is not there: correct its name or version; `make preflight` checks most names',
    409: 'another operation on it is under way: run this again in a few minutes',
    429: 'Azure is throttling: run this again in a few minutes; nothing is done twice',
}
SIGN_IN = 'check tenantId, servicePrincipalId and servicePrincipalKey, or renew the secret'
NO_KEYS = 'KeyBasedAuthenticationNotPermitted'
KEYS = ('a policy forbids the keys of the storage account, and SDK v1 knows no other way in: ask '
        'for an exemption (allowSharedKeyAccess)')
LATER = 'Azure has a fault: run this again later; nothing is done twice'
ODD = 'is there a proxy that changes answers? else run this again later; nothing is done twice'
CONNECTION = 'check the network and HTTPS_PROXY, then run this again; nothing is done twice'


class AzureError(Exception):
    """What could not be done, why, and what to do about it; free of secrets.

    status is the HTTP status, or None when there was no answer.
    """

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class Harmless:
    """A text stream that writes what `clean` leaves."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self.stream.write(clean(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def verb(main):
    """A script's main that prints what is for the user to put right instead of raising it.

    Exit code 2 for a setting, 1 for all else. File names, logs and answers may hold anything, so
    all that it prints is made Harmless.
    """
    @functools.wraps(main)
    def run(argv=None):
        with contextlib.redirect_stdout(Harmless(sys.stdout)), \
                contextlib.redirect_stderr(Harmless(sys.stderr)):
            try:
                return main(argv)
            except (AzureError, ValueError, OSError) as error:
                print(f'error: {error}', file=sys.stderr)
                return 2 if isinstance(error, settings.SettingsError) else 1
            except Exception:
                traceback.print_exc()
                return 1
    return run


def tell_agent(command, data):
    """Give the agent a command, from a `verb`, which else lets none through."""
    sys.stdout.stream.write(f'##vso[{command}]{data}\n')


def set_output(name, value):
    """Tell the agent an output variable of this step."""
    tell_agent(f'task.setvariable variable={name};isOutput=true', sentence(value))


def clean(text):
    """The text without secrets, commands to the agent, control characters and endless lines."""
    text = COMMAND.sub('# #', SECRETS.sub('***', re.sub('\r\n?', '\n', text)))
    if not text.isprintable():
        text = ''.join(char if char.isprintable() or char in '\n\t' else '?' for char in text)
    return re.sub(f'(.{{{LONGEST_LINE}}}).+', r'\1 ...', text)


def sentence(text):
    """What others say, of any type, as a sentence: cleaned, on one line, not too long."""
    return clean(' '.join(str(text).split()))[:LONGEST_SENTENCE]


def chain(error):
    """The error and those that caused it, outermost first."""
    found = []
    while isinstance(error, BaseException) and error not in found:
        found.append(error)
        error = next((cause for cause in (getattr(error, name, None) for name in CAUSES)
                      if isinstance(cause, BaseException) and cause not in found), None)
    return found


def in_service_module(link):
    return type(link).__module__.split('.')[0] in SERVICE_MODULES


def is_from_service(error):
    """Whether an error came from Azure or the network; the SDK also raises plain Exception."""
    return any(type(link) is Exception or in_service_module(link) or is_connection(link)
               for link in chain(error))


def is_raised_by_sdk(error):
    """Whether the SDK stumbled, over an answer that lacks what it counts on."""
    return any(frame.f_globals.get('__name__', '').split('.')[0] in SERVICE_MODULES
               for frame, _ in traceback.walk_tb(error.__traceback__))


def is_connection(link):
    """Whether this one error is a connection that failed, was lost or gave no answer."""
    # Those of requests that are ValueErrors too are about what was asked or answered.
    return isinstance(link, (ConnectionError, TimeoutError)) or (
        isinstance(link, OSError) and not isinstance(link, ValueError)
        and in_service_module(link)) or 'Connection' in type(link).__name__


def status_of(error):
    """The HTTP status behind an error, or None."""
    for link in chain(error):
        for holder in (getattr(link, 'response', None), link):
            status = getattr(holder, 'status_code', None)
            if isinstance(status, int):
                return status
    match = re.search(r"(?i)(?:response code|http error|code|status code)[:=]? '?([45]\d\d)\b",
                      str(error))
    return int(match.group(1)) if match else None


def reason_of(error):
    """What the service said, as a `sentence`."""
    said = str(getattr(error, 'message', '') or error) or type(error).__name__
    response = next((link.response for link in chain(error)
                     if getattr(link, 'response', None) is not None), None)
    body = getattr(response, 'text', '')
    body = body() if callable(body) else body
    message = re.search(r'\\?"(?:message|error_description)\\?"\s*:\s*\\?"(.+?)\\?"[,}\s]',
                        f'{body}\n{said}', re.IGNORECASE | re.DOTALL)
    if message:
        said = message.group(1)
    return sentence(said.replace('\\n', ' ').replace('\\r', ' '))


def explain(what, error):
    """An AzureError for an error of the SDK: could not <what>: <reason>, and the advice."""
    status, reason = status_of(error), reason_of(error)
    advice = LATER if (status or 0) >= 500 else ADVICE.get(status)
    if 'AADSTS' in reason:
        # https://learn.microsoft.com/entra/identity-platform/reference-error-codes
        status, advice = 401, SIGN_IN
    if NO_KEYS in str(error) + reason:
        advice = KEYS
    if status:
        reason = f'HTTP {status}, {reason}'
    elif any(map(is_connection, chain(error))):
        host = re.search(r"host='([^']+)'", reason)
        lack = 'answer from' if 'Read timed out' in reason else 'connection to'
        reason = f'no {lack} {host.group(1)}' if host else 'no connection: ' + reason
        advice = CONNECTION
        if UNTRUSTED in str(error):
            reason += ': its certificate is not trusted here'
            advice = 'set REQUESTS_CA_BUNDLE to a file with the certificates of your proxy'
    return AzureError('\n'.join(filter(None, [f'could not {what}: {reason}', advice])), status)


def give_up(what, seconds):
    """End the process: the SDK's threads and native code cannot be stopped in another way."""
    sys.__stderr__.write(clean(f'error: could not {what}: no answer within {seconds:g} s\n'
                               'run this again; nothing is done twice\n'))
    sys.__stderr__.flush()
    os._exit(1)


@contextlib.contextmanager
def deadline(what, seconds):
    """End the process with exit code 1 when what is done takes longer than so many seconds."""
    watch = threading.Timer(seconds, give_up, (what, seconds))
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def quieten():
    """Make the SDK keep its warnings to itself; to be called before it is imported."""
    for name, backoff in SDK_BACKOFF.items():
        os.environ.setdefault(name, backoff)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')


@contextlib.contextmanager
def asking(what, seconds):
    """Calls of the SDK that belong together; what: such as 'open the workspace'.

    Raises AzureError for what the service or the network refuses, and for an answer that the SDK
    cannot read. Ends the process with exit code 1 when the calls take longer than so many seconds.
    """
    quieten()
    try:
        with deadline(what, seconds), contextlib.redirect_stdout(io.StringIO()):
            yield
    except AzureError:
        raise
    except Exception as error:
        if is_from_service(error):
            raise explain(what, error) from None
        if not is_raised_by_sdk(error):
            raise
        raise AzureError(f'could not {what}: the answer is not of the form that the SDK expects '
                         f'({type(error).__name__}: {sentence(error)})\n{ODD}') from None


def repeat(call, seconds):
    """call(), repeated while it fails by throttling, a fault of the server or the connection.

    For the calls that the SDK does not repeat by itself: all to the environment service, and POST
    to the pipeline service.
    """
    end, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            status = status_of(error)
            transient = status in TRANSIENT or (
                status is None and any(map(is_connection, chain(error)))
                and UNTRUSTED not in str(error))
            if not transient or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause *= 2


def request(what, seconds, method, url, **more):
    """The answer to a request of our own, of any status but those that pass: asked again.

    seconds: the longest wait. Raises AzureError.
    """
    import requests

    def send():
        response = requests.request(method, url, timeout=ANSWER_SECONDS, allow_redirects=False,
                                    **more)
        if response.status_code in TRANSIENT:
            response.raise_for_status()
        return response
    with asking(what, seconds):
        return repeat(send, seconds / 2)


def decode_json(response):
    """The JSON of an answer. Raises ValueError or RecursionError when it is something else."""
    # Some answers of Azure DevOps begin with a byte order mark.
    return json.loads(response.content.decode('utf-8-sig'))


def json_object(response):
    """The JSON object that an answer is, or {}."""
    try:
        found = decode_json(response)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
