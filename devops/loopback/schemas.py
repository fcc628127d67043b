"""JSON schemas in few words: what requests to either stand-in may hold."""
TEXT, SWITCH, WHOLE = {'type': 'string'}, {'type': 'boolean'}, {'type': 'integer'}


def closed(required=(), **properties):
    """The schema of an object that has these properties and no others."""
    schema = {'type': 'object', 'additionalProperties': False, 'properties': properties}
    return dict(schema, required=list(required)) if required else schema
