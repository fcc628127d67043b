"""Print the name of the environment that the lines of conda_dependencies.yml with a tag make.

    python scripts/dependencies.py --tag training

By its functions other scripts select those lines, as a conda file or as pip requirements.
"""
import argparse
import hashlib
import re
import sys
from pathlib import Path

import ctrl_c  # noqa: F401

LIST = Path(__file__).resolve().parent.parent / 'conda_dependencies.yml'
TAGS = ('training', 'scoring', 'control', 'tools', 'cloud')
LINE = re.compile(r'^(?P<indent> +)- (?P<package>[^#\s]+)\s*(?:#\s*(?P<tags>.*?)\s*)?$')
PINNED = re.compile(r'^[A-Za-z0-9._-]+(\[[a-z,]+\])?==?[A-Za-z0-9.*+!_-]+$')
CONDA_INDENT = 2
# On which Azure ML builds the environments, and part of their names: without it each SDK takes its
# own, that of Python 3.7 one of 2024 which gets no more fixes (Azure/AzureML-Containers). Open MPI,
# which it has, starts a step on several nodes.
BASE_IMAGE = 'mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:20251130.v1'


def parse(text):
    """(conda, package, tags) of each line under `dependencies:`; conda is False in the pip list.

    Raises ValueError that names every line without a pin or with an unknown or no tag.
    """
    lines, wrong = [], []
    for line in text.partition('dependencies:')[2].splitlines():
        line = line.rstrip()
        if not line.partition('#')[0].strip() or line.endswith('- pip:'):
            continue
        match = LINE.match(line)
        if not match:
            wrong.append(f'{line.strip()!r} is not "- package=version  # tags"')
            continue
        package, tags = match.group('package'), (match.group('tags') or '').split()
        unknown = [tag for tag in tags if tag not in TAGS]
        if unknown or not tags:
            fault = 'unknown tag ' + ', '.join(unknown) if unknown else 'no tag'
            wrong.append(f"{package}: {fault}; use {', '.join(TAGS)}")
        if not PINNED.match(package):
            wrong.append(f'{package}: no pinned version')
        lines.append((len(match.group('indent')) == CONDA_INDENT, package, frozenset(tags)))
    if not lines:
        wrong.append('no line under "dependencies:"')
    if wrong:
        raise ValueError('conda_dependencies.yml: ' + '; '.join(wrong))
    return lines


def select(text, tag):
    """The conda file (text) that holds the lines with this tag, for an Azure ML environment."""
    selected = [(conda, package) for conda, package, tags in parse(text) if tag in tags]
    result = ['name: safe_driver_' + tag, 'channels:', '  - conda-forge', 'dependencies:']
    result += ['  - ' + package for conda, package in selected if conda]
    pip = ['    - ' + package for conda, package in selected if not conda]
    return '\n'.join(result + (['  - pip:'] + pip if pip else [])) + '\n'


def name(text, tag, base='safe-driver'):
    """The environment's name: base, tag and a hash of its own lines and of the base image."""
    digest = hashlib.sha256((select(text, tag) + BASE_IMAGE).encode()).hexdigest()
    return f'{base}-{tag}-{digest[:12]}'


def requirements(text, part):
    """pip requirements: 'local' is what needs no Azure SDK, which ends at 3.11; 'full' is all."""
    selected = []
    for conda, package, tags in parse(text):
        local = 'cloud' not in tags and tags != {'control'}
        if not package.startswith('python=') and (part == 'full' or local):
            pin = package.replace('=', '==', 1) if conda else package
            selected.append(pin if local else f"{pin} ; python_version < '3.12'")
    return selected


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tag', required=True, choices=TAGS, help='whose lines to select')
    args = parser.parse_args(argv)
    try:
        print(name(LIST.read_text(), args.tag))
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
