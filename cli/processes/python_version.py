"""The warning about a Python with known security faults, once for each server."""

from __future__ import annotations

import platform
import sys
from typing import Final

from cli.logs import Logger

_SOUND: Final = {
    (3, 11): 10,
    (3, 12): 6,
}  # for each Python version, the first patch release without CVE-2024-7592 and CVE-2024-6232

_log = Logger(__name__)


def warn_if_outdated() -> None:
    """Log a warning if the running Python lacks the fixes of CVE-2024-7592 and CVE-2024-6232."""
    if sound := outdated(sys.version_info[:3]):
        _log.warning(
            "python.outdated", version=platform.python_version(), wanted=sound, because="CVE-2024-7592, CVE-2024-6232"
        )


def outdated(version: tuple[int, int, int]) -> str | None:
    """Return the first patch release of this Python version that has the fixes of CVE-2024-7592 and CVE-2024-6232.
    Return None if `version` has these fixes.
    """
    sound = _SOUND.get(version[:2], 0)
    return None if version[2] >= sound else f"{version[0]}.{version[1]}.{sound}"
