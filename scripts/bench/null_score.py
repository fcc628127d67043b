"""Answers a constant: what the server by itself can do."""


def init():
    pass


def run(raw_data):
    return {'result': [0.03]}
