"""Check the style of all Python files with pycodestyle; print each finding and write JUnit.

    python scripts/lint.py --junit outputs/test-results/lint.xml
"""
import argparse
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import atomic
import azure_ml

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('training', 'scoring', 'scripts', 'devops', 'tests')
MAX_LINE_LENGTH = 100


def findings(files):
    """{path: ['path:line:column code text', ...]} of these files, in order; a clean one has []."""
    import pycodestyle
    # What a user's own file says about style is not what this project says.
    pycodestyle.USER_CONFIG = None
    found = {path: [] for path in files}

    class Collector(pycodestyle.BaseReport):
        def error(self, line_number, offset, text, check):
            code = super().error(line_number, offset, text, check)
            # None for a code that is ignored by default (W503, W504 and their like).
            if code:
                found[self.filename].append(f'{self.filename}:{line_number}:{offset + 1} {text}')
            return code

    guide = pycodestyle.StyleGuide(max_line_length=MAX_LINE_LENGTH, reporter=Collector, repeat=True)
    # Not its check_files, which ends at Ctrl-C as if all files were checked.
    for path in found:
        guide.input_file(path)
    return found


def junit(found):
    """The findings as JUnit (bytes): one test case a file, failed if it has findings."""
    suites = ElementTree.Element('testsuites')
    suite = ElementTree.SubElement(
        suites, 'testsuite', name='lint', tests=str(len(found)), errors='0',
        failures=str(sum(1 for lines in found.values() if lines)))
    for path, lines in found.items():
        case = ElementTree.SubElement(suite, 'testcase', classname='pycodestyle', name=path)
        if lines:
            failure = ElementTree.SubElement(case, 'failure', message=f'{len(lines)} findings')
            failure.text = '\n'.join(lines)
    return ElementTree.tostring(suites, 'utf-8')


@azure_ml.verb
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--junit', type=Path, required=True, help='JUnit file to write')
    args = parser.parse_args(argv)
    found = findings(os.path.relpath(str(path)) for name in FOLDERS
                     for path in sorted((ROOT / name).rglob('*.py')))
    lines = sum(found.values(), [])
    print('\n'.join(lines + [f'{len(found)} files, {len(lines)} findings']))
    atomic.write_bytes(args.junit, junit(found))
    return 1 if lines else 0


if __name__ == '__main__':
    sys.exit(main())
