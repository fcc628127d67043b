"""Cancel the run of this build in Azure ML.

    BUILD_BUILDID=42 python scripts/cancel_run.py
"""
import argparse
import os
import sys
import time

import azure_ml
import run
import settings
import workspace


def cancel_runs(config):
    """Cancel every run of the build that is under way; their ids. Raises AzureError."""
    space = workspace.connect(config)
    found = [one for one, state in run.runs_of(space, config, 'BuildId', config.build_buildid)
             if state in run.UNDER_WAY]
    for one in found:
        with azure_ml.asking(f'cancel the run {one.id}', config.call_timeout_seconds):
            one.cancel()
            while one.get_status() in run.UNDER_WAY:
                time.sleep(run.FIRST_PAUSE_SECONDS)
    return [one.id for one in found]


@azure_ml.verb
def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    config = settings.read(os.environ, needs=settings.WORKSPACE + ('BUILD_BUILDID',))
    cancelled = cancel_runs(config)
    done = f"cancelled run {', '.join(cancelled)}" if cancelled else \
        'no run is under way, nothing to cancel'
    print(f'build {config.build_buildid}: {done}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
