"""Create or get the Azure ML workspace, its compute cluster and the two environments.

    python scripts/workspace.py
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import calls
import settings

TOKEN_SECONDS = 240
PRINCIPALS = (
    # What the AzureCLI task exports with addSpnToEnvironment, then the SDK's own names.
    ('tenantId', 'servicePrincipalId', 'servicePrincipalKey'),
    ('AZUREML_SERVICE_PRINCIPAL_TENANT_ID', 'AZUREML_SERVICE_PRINCIPAL_ID',
     'AZUREML_SERVICE_PRINCIPAL_PASSWORD'),
)
FEDERATED = (
    'the service connection is federated: it gives a token (idToken), which the Azure ML SDK v1 '
    'cannot use, and no secret\n'
    'use a service connection with a secret, or run this inside an AzureCLI task, where `az` is '
    'signed in')
SIGNED_OUT = (
    'not signed in to Azure\n'
    'in a pipeline: run this inside an AzureCLI task with addSpnToEnvironment: true; on your '
    'machine: run `az login`, or set ' + ', '.join(PRINCIPALS[1]))


def principal(environ):
    """(tenant, id, secret) of the service principal that the environment names, or None.

    Raises SettingsError when a part of it is missing.
    """
    for names in PRINCIPALS:
        missing = [name for name in names if not environ.get(name)]
        if not missing:
            return tuple(environ[name] for name in names)
        if environ.get(names[2]):
            raise settings.SettingsError('%s is set without %s' % (names[2], ', '.join(missing)))
    return None


def command_line_tokens():
    """A function from audience to access token that asks the Azure CLI, or None if it cannot.

    It serves federated connections too, and needs no azure-cli package beside the SDK.
    """
    az = shutil.which('az')
    cache = {}

    def token(audience):
        asked, value = cache.get(audience, (0, None))
        if time.monotonic() - asked > TOKEN_SECONDS or not value:
            answer = subprocess.run(
                [az, 'account', 'get-access-token', '--resource', audience, '--output', 'json'],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            if answer.returncode:
                raise calls.AzureError('`az account get-access-token` failed: %s' % calls.clean(
                    answer.stderr.decode(errors='replace').strip()[:300]), status=401)
            value = json.loads(answer.stdout.decode())['accessToken']
            cache[audience] = time.monotonic(), value
        return value

    try:
        return token if az and token('https://management.azure.com/') else None
    except (calls.AzureError, OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def sign_in(environ):
    """The SDK's authentication object: service principal, else Azure CLI, else a browser.

    A browser is opened on a terminal only, never in a pipeline. Raises AzureError or
    SettingsError.
    """
    found = principal(environ)
    from azureml.core import authentication
    if found:
        return authentication.ServicePrincipalAuthentication(*found)
    token = command_line_tokens()
    if token:
        return authentication.TokenAuthentication(token, cloud='AzureCloud')
    if environ.get('idToken'):
        raise calls.AzureError(FEDERATED, status=401)
    if sys.stdin.isatty() and not environ.get('TF_BUILD'):
        return authentication.InteractiveLoginAuthentication()
    raise calls.AzureError(SIGNED_OUT, status=401)


def connect(chosen, environ=os.environ):
    """The azureml.core.Workspace that the settings name. Raises AzureError or SettingsError."""
    with calls.asking('open the workspace %s' % chosen.workspace_name,
                      chosen.call_timeout_seconds):
        from azureml.core import Workspace
        return Workspace.get(
            chosen.workspace_name, auth=sign_in(environ), subscription_id=chosen.subscription_id,
            resource_group=chosen.resource_group)
