"""Remove what make made: .venv and the results in OUT; the registry stays.

    python scripts/clean.py --out outputs
"""
import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ('.make', 'data', 'model', 'decision.json', 'registration.json', 'test-results',
           'coverage.xml', 'pipeline.json', 'run.json', 'service.json', 'rehearsal', 'bench')
CACHES = ('.venv', '.container', '.pytest_cache', '.coverage')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    args = parser.parse_args(argv)
    # Only names that make writes: OUT may be a folder that holds other things.
    doomed = [ROOT / name for name in CACHES] + [args.out / name for name in RESULTS]
    doomed += [path for folder in ('training', 'scoring', 'scripts', 'devops', 'tests')
               for path in (ROOT / folder).rglob('__pycache__')]
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        elif path.exists() or path.is_symlink():
            path.unlink()
    kept = args.out / 'registry'
    if kept.exists():
        print(f'kept {kept}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
