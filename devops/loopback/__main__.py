"""Run loopback Azure DevOps until Ctrl-C; it prints `export` lines to paste into another shell.

    cd devops && python -m loopback
"""
import argparse
import shlex
import sys
import threading


def main(argv=None):
    argparse.ArgumentParser(
        prog='python -m loopback', description=__doc__.splitlines()[0]).parse_args(argv)
    from loopback.azure_devops import AzureDevOps
    with AzureDevOps() as service:
        for name, value in sorted(service.env.items()):
            print(f'export {name}={shlex.quote(value)}', flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0


if __name__ == '__main__':
    sys.exit(main())
