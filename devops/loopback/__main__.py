"""Run loopback Azure ML or Azure DevOps in the foreground, until SIGTERM or Ctrl-C.

    cd devops
    python -m loopback azure-devops
    python -m loopback azure-ml

It prints `export` lines to paste into another shell. Azure ML exits with 1 if it was asked for
something that it does not know.
"""
import argparse
import shlex
import signal
import sys
import tempfile
import threading


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m loopback', description=__doc__.splitlines()[0])
    parser.add_argument('service', choices=('azure-ml', 'azure-devops'))
    args = parser.parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if args.service == 'azure-ml':
                from loopback.cloud import Cloud
                service = Cloud(scratch)
            else:
                from loopback.azure_devops import AzureDevOps
                service = AzureDevOps()
        except OSError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        with service:
            for name, value in sorted(service.env.items()):
                print(f'export {name}={shlex.quote(value)}')
            print(f'# This is {args.service} on loopback; paste the lines above into another '
                  'shell', flush=True)
            ended.wait()
        unknown = getattr(service, 'unknown', [])
    for line in unknown:
        print(f'error: unknown to loopback: {line}', file=sys.stderr)
    return 1 if unknown else 0


if __name__ == '__main__':
    sys.exit(main())
