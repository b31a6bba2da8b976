"""Run a module as `python -m MODULE ARGUMENT...` does, but without a stack trace at an early SIGINT.

`python -m cluster.supervisor.launch MODULE ARGUMENT...`

Importing Ray, torch and gRPC takes seconds, in which there is nothing to shut down: SIGINT ends the process then, until
the module handles the signal itself. The caller starts this with SIGINT blocked, since Python would print a stack
trace at one that comes before the first line runs.
"""

from __future__ import annotations

import runpy
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
