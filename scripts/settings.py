"""The settings of the Azure ML scripts: read once from the environment, checked all together.

    settings.read(os.environ, needs=settings.WORKSPACE)
"""
import collections
import hashlib
import re
import time
import urllib.parse

# What every script needs to find the workspace.
WORKSPACE = ('SUBSCRIPTION_ID', 'RESOURCE_GROUP', 'WORKSPACE_NAME')

UNDEFINED_VARIABLE = re.compile(r'\$\([A-Za-z0-9_.]+\)')


class SettingsError(ValueError):
    """Says for every missing or malformed setting what it should be."""


def text(pattern, rule, convert=str):
    """A parser of texts that match the pattern; the rule says so in words."""
    def parse(value):
        if not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return convert(value)
    return parse


def integer(low, high):
    """A parser of whole numbers from low to high."""
    def parse(value):
        if not re.fullmatch('[0-9]{1,9}', value) or not low <= int(value) <= high:
            raise ValueError(f'must be a whole number from {low} to {high}')
        return int(value)
    return parse


boolean = text('(?i)true|false', 'must be true or false', lambda value: value.lower() == 'true')
minutes = text(r'[0-9]{1,5}(\.[0-9]+)?', 'must be a number of minutes', float)
number = text(r'[0-9]{1,9}(\.[0-9]+)?', 'must be a number', float)
azure_name = text('[A-Za-z0-9][A-Za-z0-9._-]{0,254}', 'must be letters, digits, . _ or -')

# Name, default (None: must be given by whoever needs it), parser, what it is.
# The names are MLOpsPython's, and so is their meaning.
SETTINGS = (
    ('SUBSCRIPTION_ID', None,
     text('[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}',
          'must be an id such as 00000000-0000-0000-0000-000000000000'),
     'the Azure subscription; `az account show --query id` prints it'),
    ('RESOURCE_GROUP', None,
     text(r'[\w().-]{0,89}[\w()-]', 'must be at most 90 letters, digits or _ ( ) . -'),
     'the resource group that holds the workspace'),
    ('WORKSPACE_NAME', None,
     text('[A-Za-z0-9][A-Za-z0-9_-]{2,32}', 'must be 3 to 33 letters, digits, _ or -'),
     'the Azure ML workspace'),
    ('LOCATION', None, text('[a-z0-9]+', 'must be a region in its short form, such as westeurope'),
     'the Azure region for a new workspace'),
    ('BASE_NAME', '', text('[A-Za-z0-9]{0,10}', 'must be at most 10 letters or digits'),
     'RESOURCE_GROUP and WORKSPACE_NAME default to BASE_NAME-RG and BASE_NAME-AML-WS'),
    ('EXPERIMENT_NAME', 'safe_driver', azure_name, 'the experiment that collects the runs'),
    ('MODEL_NAME', 'safe_driver_model', azure_name, 'the registered model'),
    ('MODEL_VERSION', 0, integer(1, 999999999),
     'the model version to deploy instead of the one that the run registered'),
    ('DATASET_NAME', 'safe_driver', azure_name, 'the registered dataset'),
    ('DATASET_VERSION', 'latest',
     text('latest|[1-9][0-9]{0,8}', "must be 'latest' or a whole number"),
     'its version to train on'),
    ('DATA_FILE_PATH', 'none', str,
     'what to train on instead of the dataset: a file, folder or pattern, such as data/2017-*.csv, '
     'in the datastore'),
    ('DATASTORE_NAME', '', azure_name, "the datastore; default: the workspace's own"),
    ('TRAINING_PIPELINE_NAME', 'safe-driver-training', azure_name, 'the published pipeline'),
    ('AML_COMPUTE_CLUSTER_NAME', 'train-cluster',
     text('[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]',
          'must be 3 to 24 letters, digits or -, a letter first'),
     'the compute cluster; a published pipeline stays on that of its publication'),
    ('AML_COMPUTE_CLUSTER_CPU_SKU', 'STANDARD_D2DS_V5',
     text(r'\w+', 'must be a size such as STANDARD_D2DS_V5'),
     'its size of machine, one with a disk of its own'),
    ('AML_CLUSTER_MIN_NODES', 0, integer(0, 100), 'its least number of machines; 0 costs nothing'),
    ('AML_CLUSTER_MAX_NODES', 2, integer(1, 100), 'its greatest number of machines'),
    ('AML_TRAINING_NODES', 1, integer(1, 100),
     'how many of them train and judge a model together; a published pipeline keeps that of its '
     'publication'),
    ('AML_CLUSTER_PRIORITY', 'dedicated',
     text('(?i)dedicated|lowpriority', 'must be dedicated or lowpriority', str.lower),
     'dedicated machines, or Spot ones: of varying price, and taken away when Azure needs them'),
    ('AML_ENV_NAME', 'safe-driver',
     text('[A-Za-z0-9][A-Za-z0-9._-]{0,200}', 'must be letters, digits, . _ or -'),
     "the first part of the environments' names"),
    ('AML_REBUILD_ENVIRONMENT', False, boolean,
     'register the environments again though they exist'),
    ('RUN_EVALUATION', False, boolean, 'compare the new model with the registered one'),
    ('ALLOW_RUN_CANCEL', True, boolean, 'false registers whatever the comparison says'),
    ('ONLY_NEW_DATA', False, boolean, 'train only on a version of the dataset that is new'),
    ('ACI_DEPLOYMENT_NAME', 'safe-driver',
     text('[a-z][a-z0-9-]{1,30}[a-z0-9]',
          'must be 3 to 32 lower-case letters, digits or -, a letter first'),
     'the web service'),
    ('ACI_REPLACE', False, boolean,
     'delete and create the service when its cpu or memory changed, which cuts it off meanwhile'),
    ('PRODUCTION', 'none',
     text('(?i)none|endpoint', 'must be none or endpoint', str.lower),
     'where the model goes after QA: nowhere, or to a managed online endpoint'),
    ('ENDPOINT_NAME', '',
     text('(?=.{3,32}$)[A-Za-z](-?[A-Za-z0-9])+',
          'must be 3 to 32 letters, digits or single -, a letter first'),
     'the endpoint; default: safe-driver- and a hash of subscription, group and workspace, since '
     'it must be the only one of its name in the region'),
    ('ENDPOINT_WATCH_MINUTES', 5, minutes,
     'how long a new deployment of it is watched at 10 % of the traffic'),
    ('MONITOR_WINDOW_HOURS', 24, integer(1, 720), 'the hours that `make monitor` looks back'),
    ('MONITOR_MAX_FAILURE_PERCENT', 1.0, number,
     'the share of requests answered with 5xx from which on `make monitor` fails'),
    ('MONITOR_MAX_P95_MS', 500.0, number,
     'the milliseconds that 95 % of the requests must keep to'),
    ('MONITOR_MAX_PSI', 0.2, number,
     "how far the scores may be from the hold-out's, as population stability index"),
    ('BUILD_BUILDID', '', text('[A-Za-z0-9._-]{0,100}', 'must be letters, digits, . _ or -'),
     'the build; a re-run of the same build repeats nothing'),
    ('BUILD_URI', '', str, 'the link to the build'),
    ('ROLLBACK_ANY_BUILD', False, boolean,
     'roll back what another build deployed as well; else, in a build, only its own'),
    ('SYSTEM_STAGEATTEMPT', 1, integer(1, 999), 'which attempt of the stage of the build this is'),
    ('BUILD_SOURCEVERSION', '', text('[0-9a-f]{0,40}', 'must be a git commit'),
     'the commit; default: what git says'),
    ('CALLER_RUN_ID', 'none', text('[A-Za-z0-9._:-]+', 'must be letters, digits, . _ : or -'),
     "the run that asked for this one, where another pipeline does; a tag of the model's"),
    ('CALL_TIMEOUT_SECONDS', 180, integer(1, 3600), 'the longest wait for one answer of Azure'),
    # A hosted agent ends a job after 60 minutes and says nothing; this comes first and says how
    # to go on.
    ('RUN_TIMEOUT_MINUTES', 40.0, minutes, 'the longest wait for a run'),
    ('DEPLOY_TIMEOUT_MINUTES', 45.0, minutes, 'the longest wait for a deployment'),
)

Settings = collections.namedtuple('Settings', [name.lower() for name, _, _, _ in SETTINGS])


def read(environ, needs=()):
    """The settings, as attributes in lower case.

    environ: a mapping such as os.environ; empty values count as not set. needs: the names that
    the caller cannot do without. Raises SettingsError with every problem in one message.
    """
    # Azure Pipelines leaves a reference to an undefined variable as it is: $(NAME).
    given = {name: value.strip() for name, value in environ.items()
             if value.strip() and not UNDEFINED_VARIABLE.fullmatch(value.strip())}
    # What follows from others is composed as MLOpsPython does.
    if 'BASE_NAME' in given:
        given.setdefault('RESOURCE_GROUP', given['BASE_NAME'] + '-RG')
        given.setdefault('WORKSPACE_NAME', given['BASE_NAME'] + '-AML-WS')
    if {'SYSTEM_COLLECTIONURI', 'SYSTEM_TEAMPROJECT', 'BUILD_BUILDID'} <= set(given):
        project = urllib.parse.quote(given['SYSTEM_TEAMPROJECT'])
        given.setdefault('BUILD_URI', f"{given['SYSTEM_COLLECTIONURI']}{project}/_build/results"
                                      f"?buildId={given['BUILD_BUILDID']}")
    values, problems = {}, []
    for name, default, parse, meaning in SETTINGS:
        values[name] = default
        if name in given:
            try:
                values[name] = parse(given[name])
            except ValueError as error:
                problems.append(f'{name} is {given[name]!r}: it {error}')
        elif name in needs:
            passed = environ.get(name, '').strip()
            note = f' ({passed} is passed, an undefined variable)' if passed else ''
            problems.append(f'{name} is not set{note}: {meaning}')
    if not values['ENDPOINT_NAME'] and all(values[name] for name in WORKSPACE):
        whole = '/'.join(values[name] for name in WORKSPACE).lower()
        values['ENDPOINT_NAME'] = f'safe-driver-{hashlib.sha256(whole.encode()).hexdigest()[:10]}'
    most = values['AML_CLUSTER_MAX_NODES']
    for name in ('AML_CLUSTER_MIN_NODES', 'AML_TRAINING_NODES'):
        if values[name] > most:
            problems.append(f'{name} is {values[name]}: it must be at most {most}, which is '
                            'AML_CLUSTER_MAX_NODES; `make workspace` sets another maximum')
    if problems:
        plural = 's' * (len(problems) > 1)
        raise SettingsError('\n  '.join(
            [f'{len(problems)} setting{plural} to correct in the environment:'] + problems))
    return Settings(*values.values())


def local_build():
    """An id for what is published or run outside a build."""
    return time.strftime('local-%Y%m%dT%H%M%SZ', time.gmtime())
