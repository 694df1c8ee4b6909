"""Processes that stand still for a while.

For: tests of what happens while one does not answer. Not for: killing it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path


def stop_still(pid: int) -> None:
    """Send SIGSTOP, and wait until all threads stand still: on a busy machine, they run for some milliseconds more."""
    os.kill(pid, signal.SIGSTOP)
    while sys.platform == "linux" and any(_runs(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _runs(task: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
        return (task / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZX"
    return False
