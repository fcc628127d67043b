"""What the scripts of this folder share at the terminal: how they end, and what they may print."""
import logging
import os
import re
import signal
import sys

log = logging.getLogger('training')

# The agent compares by culture, for which characters of no width between these do not count.
UNSEEN = '[^ -~\\n]*'
COMMAND = re.compile(f"#{UNSEEN}#(?={UNSEEN}{UNSEEN.join('vso')}{UNSEEN}\\[)", re.I)


class Harmless:
    """A stream for others' text: the agent obeys ##vso[ in it, a terminal control characters."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        shown = ''.join(char if char.isprintable() or char in '\n\t' else ascii(char)[1:-1]
                        for char in text)
        return self.stream.write(COMMAND.sub(r'\g<0> ', shown))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def run(main):
    """The exit code of main(), whose output is made harmless.

    Ctrl-C, SIGTERM and the end of the terminal take along what is unfinished and say one line.
    """
    def stop(number, _):
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    sys.stdout, sys.stderr = Harmless(sys.stdout), Harmless(sys.stderr)
    logging.basicConfig(format='warning: %(message)s')
    # LightGBM's threads, not loaded yet, would spin for long while they wait for each other, which
    # takes fifty times as long where others use the cores too.
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
    try:
        return main()
    except KeyboardInterrupt as stopped:
        number = signal.Signals(stopped.args[0] if stopped.args else signal.SIGINT)
        print(f'error: stopped by {number.name}; nothing unfinished is left', file=sys.stderr)
        return 128 + number
