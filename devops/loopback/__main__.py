"""Run loopback Azure ML in the foreground, until SIGTERM or Ctrl-C.

    cd devops
    python -m loopback --folder DIR

It prints one JSON line when it is ready, {"url": ..., "env": {...}}, with the password of its
made-up service principal, and exits with 1 if it was asked for something that it does not know.
"""
import argparse
import json
import signal
import sys
import threading


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m loopback', description=__doc__.split('\n')[0])
    parser.add_argument('--folder', required=True,
                        help='where everything is kept; used again, it goes on from there')
    parser.add_argument('--python', help='interpreter for steps and containers (default: this one)')
    parser.add_argument('--faults',
                        help='JSON file with a list of faults; read again whenever it changes')
    arguments = parser.parse_args(argv)
    from loopback import start
    try:
        cloud = start(arguments.folder, arguments.python, arguments.faults)
    except (OSError, ValueError) as error:
        print('error: %s' % error, file=sys.stderr)
        return 2
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(json.dumps({'url': cloud.url, 'env': cloud.env}), flush=True)
    ended.wait()
    cloud.stop()
    for line in cloud.unknown:
        print('error: unknown to loopback: %s' % line, file=sys.stderr)
    return 1 if cloud.unknown else 0


if __name__ == '__main__':
    sys.exit(main())
