"""The signals that ask a process to end cleanly.

For: the supervisor and its processes. Not for: what they do after such a signal.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_end(callback: Callable[[], None]) -> None:
    """Call `callback` for each SIGTERM and SIGINT, and for the first SIGHUP.

    SIGHUP says that the terminal was closed. The shell and the kernel may both send SIGHUP for the same terminal, so
    only the first SIGHUP counts. Under `nohup`, the process ignores SIGHUP.
    """
    loop = asyncio.get_running_loop()
    heard = False

    def hung_up() -> None:
        nonlocal heard
        if not heard:
            heard = True
            callback()

    loop.add_signal_handler(signal.SIGTERM, callback)
    loop.add_signal_handler(signal.SIGINT, callback)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, hung_up)
