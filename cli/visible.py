"""Text from outside with its control characters escaped, so that it can be shown.

For: what commands print (printing.py) and processes log (logs.py).
"""

from __future__ import annotations

import re
from typing import Final

# Characters to escape: control characters, text direction marks, line separators, and lone surrogates.
# This regular expression takes linear time on any input, because it matches a single character.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# This regular expression takes linear time on any input, because it matches a single character.
_CONTROL_BUT_LAYOUT: Final = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def visible(text: str, *, layout: bool = False) -> str:
    r"""Escape control characters as Python does, for example as `\x1b`, `\u202e` or `\n`. With `layout`, do not escape
    tabs and line ends.
    """
    found = _CONTROL_BUT_LAYOUT if layout else _CONTROL
    return found.sub(lambda match: ascii(match[0])[1:-1], text)


def visible_json(text: str) -> str:
    r"""Escape control characters in a line of JSON, for example as `\u009b`. This is needed because JSON encoders
    escape only the control characters below 32.
    """
    return _CONTROL_BUT_LAYOUT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
