"""Select lines of conda_dependencies.yml by their tag, as a conda file, pip requirements or a name.

    python scripts/dependencies.py --tag scoring
"""
import argparse
import hashlib
import re
import sys
from pathlib import Path

LIST = Path(__file__).resolve().parent.parent / 'conda_dependencies.yml'
TAGS = ('training', 'scoring', 'control', 'tools', 'cloud')
LINE = re.compile(r'^(?P<indent> +)- (?P<package>[^#\s]+)\s*(?:#\s*(?P<tags>.*?)\s*)?$')
PINNED = re.compile(r'^[A-Za-z0-9._-]+(\[[a-z,]+\])?==?[A-Za-z0-9.*+!_-]+$')
CONDA_INDENT = 2
# On which Azure ML builds the environments, and part of their names: without it each SDK takes its
# own, that of Python 3.7 one of 2024 which gets no more fixes (Azure/AzureML-Containers).
BASE_IMAGE = 'mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:20251130.v1'


def parse(text):
    """(conda, package, tags) of each line under `dependencies:`; conda is False in the pip list.

    Raises ValueError that names every line without a pin or with an unknown or no tag.
    """
    lines, wrong = [], []
    section = text[text.index('dependencies:'):] if 'dependencies:' in text else ''
    for line in section.splitlines()[1:]:
        match = LINE.match(line)
        if not match:
            if line.strip() and not line.strip().startswith('#'):
                wrong.append(f'{line.strip()!r} is not "- package=version  # tags"')
            continue
        package, tags = match.group('package'), (match.group('tags') or '').split()
        if package == 'pip:':
            continue
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
    """pip requirements of .venv: 'local' is what needs no Azure SDK, 'full' is every line."""
    selected = []
    for conda, package, tags in parse(text):
        local = 'cloud' not in tags and tags != {'control'}
        if package.split('=')[0] not in ('python', 'pip') and (part == 'full' or local):
            selected.append(package.replace('=', '==', 1) if conda else package)
    return selected


def python_version(text):
    """The Python that the list pins, such as '3.11'."""
    return next(line.split('=')[1] for _, line, _ in parse(text) if line.startswith('python='))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tag', required=True, choices=TAGS, help='whose lines to select')
    parser.add_argument('--name', action='store_true', help="print the environment's name only")
    args = parser.parse_args(argv)
    try:
        text = LIST.read_text()
        print(name(text, args.tag) if args.name else select(text, args.tag).rstrip())
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
