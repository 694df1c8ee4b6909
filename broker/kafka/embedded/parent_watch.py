"""A program that runs a command and ends it with its parent: `python parent_watch.py PARENT_PID NICE COMMAND…`.

For: being executed, not imported. This way no code of the parent, which has threads, runs between fork and exec, and
the process id stays the same. Linux kills the command when the parent's *thread* that started it ends, for any reason.
On other systems the command is only executed, and kafka.py ends what an earlier run has left running. Not for: choosing
the command (java.py).
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, nice, *command = sys.argv[1:]
    os.nice(int(nice))
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # If the parent ended before prctl() was called, the kernel will never kill this process. So exit here.
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is ours, and no shell is wanted


if __name__ == "__main__":
    main()
