"""Linux's settings of a process, by prctl(2).

For: the name of a process, its end together with its parent, and who gets its orphans. Not for: starting processes
(prefork.py, children.py).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# linux/prctl.h
PDEATHSIG: Final = 1
_NAME: Final = 15
CHILD_SUBREAPER: Final = 36


def prctl(option: int, value: int | ctypes.c_char_p) -> int:
    """Call Linux's prctl() to set `option` of this process to `value`. Return 0, or -1 if the kernel refuses. Call this
    function only on Linux.
    """
    result: int = ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    return result


def name_process(name: str) -> None:
    """Set the name of this process in `ps -e`, `top` and `pgrep`, cut to 15 bytes. Do nothing on other systems than
    Linux.
    """
    if sys.platform == "linux":
        prctl(_NAME, ctypes.c_char_p(name.encode()))
