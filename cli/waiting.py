"""A line on stderr that says what a command waits for, after a second of waiting.

For: requests to the API and to Kafka. Not for: progress that can be counted (progress.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cli.printing import say

SAID_AFTER_S: Final = 1.0


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print "waiting for `what` …" on stderr if the `with` block takes longer than a second."""
    timer = threading.Timer(SAID_AFTER_S, say, [f"waiting for {what} …"], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
