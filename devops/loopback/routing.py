"""Which requests the stand-in knows: the hosts, the routes, one request and its answer."""
import collections
import json
import re
import urllib.parse

SIGN_IN = r'login\.(?:microsoftonline|windows)\.(?:com|net)'
DEVOPS = r'dev\.azure\.com'
ARM = r'management\.azure\.com'
API = r'[\w.-]+\.api\.azureml\.ms'
BLOB = r'[a-z0-9]+\.blob\.core\.windows\.net'
SCORING = r'[\w.-]+\.azurecontainer\.io'
ENDPOINT = r'[\w-]+\.\w+\.inference\.ml\.azure\.com'
TELEMETRY = r'(?:dc\.services\.visualstudio\.com|[\w.-]+\.applicationinsights\.azure\.com)'
METADATA = r'169\.254\.169\.254'
GROUP = '/subscriptions/{subscription}/resourceGroups/{group}'
WORKSPACE = GROUP + '/providers/Microsoft.MachineLearningServices/workspaces/{workspace}'

ROUTES = []
Route = collections.namedtuple('Route', 'method pattern handler signed_in')


class Answer(Exception):
    """What goes back: a JSON value or bytes. It can be returned, or raised from deeper down."""

    def __init__(self, body=None, status=200, headers=None):
        super().__init__(status)
        self.body = body
        self.status = status
        self.headers = headers or {}


class Dropped(Exception):
    """The connection is to be cut without an answer."""


def problem(status, code, message, headers=None):
    """An error as Azure words it (Azure REST API guidelines: error.code and error.message)."""
    return Answer({'error': {'code': code, 'message': message}}, status, headers)


def route(method, host, path, signed_in=True):
    """Register a handler. In the path, {name} takes one segment and {name*} all the rest.

    Upper and lower case are alike, as Azure has it. The first route that fits is taken.
    """
    expression = re.sub(r'\\\{(\w+)\\\*\\\}', r'(?P<\1>.+)', re.escape(path))
    expression = re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>[^/]+)', expression)
    pattern = re.compile(f'{host}{expression}/?$', re.IGNORECASE)

    def register(handler):
        ROUTES.append(Route(method, pattern, handler, signed_in))
        return handler
    return register


class Call:
    """One request to the stand-in `cloud`. Of a query's and a form's values the first counts."""

    def __init__(self, cloud, method, host, target, headers, body):
        parts = urllib.parse.urlsplit(target)
        self.target = parts.path + ('?' + parts.query if parts.query else '')
        self.cloud = cloud
        self.method = method
        self.host = host
        self.path = re.sub('/+', '/', parts.path)
        self.query = {key: values[0] for key, values in urllib.parse.parse_qs(
            parts.query, keep_blank_values=True).items()}
        self.headers = headers
        self.body = body
        self.workspace = None

    def __str__(self):
        return f'{self.method} https://{self.host}{self.path}'

    @property
    def json(self):
        try:
            return json.loads(self.body.decode())
        except ValueError:
            raise problem(400, 'InvalidRequestContent', 'The request content is not JSON.')

    @property
    def form(self):
        return {key: values[0] for key, values in urllib.parse.parse_qs(self.body.decode()).items()}

    def table(self, name):
        """A table of the workspace that the URL names."""
        return self.cloud.table(self.workspace, name)
