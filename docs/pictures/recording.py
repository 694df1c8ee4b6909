"""Records `everput demo` on a terminal and draws it as an animated SVG: `make pictures` writes demo.svg.

For: running the command on a pseudo-terminal, the screen at each moment, and the picture. What is drawn is what the
command wrote, in the proportion of the times when it wrote it. Not for: what the demo shows (cli/demo).
"""

from __future__ import annotations

import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from html import escape
from pathlib import Path
from typing import Final

COLUMNS: Final = 104
ROWS: Final = 26
FRAME_S: Final = 1.0  # changes within it are drawn together
PAUSE_S: Final = 8.0  # at the end, before it begins again
PLAYED_S: Final = 25.0  # a longer recording is played faster, all of it alike
CHAR_PX, LINE_PX, EDGE_PX = 8.4, 18, 14
_ESCAPE: Final = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")
_COLORS: Final = {1: "#ffffff", 2: "#8b949e", 3: "#79c0ff", 31: "#ff7b72", 32: "#7ee787", 33: "#e3b341", 36: "#79c0ff"}
_PLAIN: Final = "#c9d1d9"

Cell = tuple[str, str]  # a character and its color
Frame = tuple[float, list[list[Cell]]]


class Screen:
    """A terminal of COLUMNS by ROWS that knows the few escape sequences that Rich writes."""

    def __init__(self) -> None:
        self.lines: list[list[Cell]] = [[] for _ in range(ROWS)]
        self._row = self._column = 0
        self._color = _PLAIN

    def feed(self, text: str) -> None:
        """Write text, as the terminal would."""
        at = 0
        while at < len(text):
            found = _ESCAPE.match(text, at)
            if found:
                self._obey(found[1], found[2])
                at = found.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, character: str) -> None:
        if character == "\n":
            self._row += 1
            if self._row == ROWS:
                self.lines = [*self.lines[1:], []]
                self._row -= 1
        elif character == "\r":
            self._column = 0
        elif character >= " ":
            if self._column == COLUMNS:
                self._column = 0
                self._put("\n")
            line = self.lines[self._row]
            line.extend([(" ", _PLAIN)] * (self._column + 1 - len(line)))
            line[self._column] = (character, self._color)
            self._column += 1

    def _obey(self, arguments: str, command: str) -> None:
        numbers = [int(number) for number in arguments.split(";") if number.isdigit()] or [0]
        if command == "A":
            self._row = max(0, self._row - max(1, numbers[0]))
        elif command == "K":
            self.lines[self._row] = [] if numbers[0] == 2 else self.lines[self._row][: self._column]
        elif command == "m":
            for number in numbers:
                self._color = _PLAIN if number == 0 else _COLORS.get(number, self._color)


def run(command: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Run a command on a pseudo-terminal, and yield what it writes with the time since its start."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    started_s = time.monotonic()
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so at the end
            break
        if not data:
            break
        yield time.monotonic() - started_s, data.decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")


def frames(command: Sequence[str]) -> list[Frame]:
    """Run the command, and return the screen at each moment when it has changed."""
    screen = Screen()
    prompt = "$ everput demo\r\n"
    screen.feed(prompt)
    taken: list[Frame] = [(0.0, [line.copy() for line in screen.lines])]
    for at_s, text in run(command):
        screen.feed(text)
        lines = [line.copy() for line in screen.lines]
        if at_s - taken[-1][0] < FRAME_S and len(taken) > 1:
            taken[-1] = (taken[-1][0], lines)
        else:
            taken.append((at_s, lines))
    return taken


def _spans(line: Sequence[Cell]) -> str:
    spans: list[tuple[str, str]] = []
    for character, color in line:
        if spans and spans[-1][1] == color:
            spans[-1] = (spans[-1][0] + character, color)
        else:
            spans.append((character, color))
    return "".join(f'<tspan fill="{color}">{escape(text)}</tspan>' for text, color in spans)


def svg(taken: Sequence[Frame]) -> str:
    """Draw the frames. Each text of a row is an element that is visible for its time."""
    slower = min(1.0, PLAYED_S / taken[-1][0])
    taken = [(at_s * slower, lines) for at_s, lines in taken]
    end_s = taken[-1][0] + PAUSE_S
    texts: list[str] = []
    for row in range(ROWS):
        since_s, shown = 0.0, taken[0][1][row]
        changes = [(at_s, lines[row]) for at_s, lines in taken[1:]]
        for at_s, line in [*changes, (end_s, None)]:
            if line == shown:
                continue
            if shown:
                texts.append(_text(row, shown, since_s, at_s, end_s))
            since_s, shown = at_s, line or []
    width, height = COLUMNS * CHAR_PX + 2 * EDGE_PX, ROWS * LINE_PX + 2 * EDGE_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-size="14" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace">\n'
        f"<title>everput demo</title>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#0d1117">'
        f'<animate id="l" attributeName="opacity" values="1;1" begin="0s;l.end" dur="{end_s:.1f}s"/></rect>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def _text(row: int, line: Sequence[Cell], since_s: float, until_s: float, end_s: float) -> str:
    last = until_s == end_s
    begin_s, dur_s, to = (0.0, since_s, "hidden") if last else (since_s, until_s - since_s, "visible")
    timing = f'<set attributeName="visibility" to="{to}" begin="l.begin+{begin_s:.2f}s" dur="{dur_s:.2f}s"/>'
    return (
        f'<text x="{EDGE_PX}" y="{EDGE_PX + (row + 1) * LINE_PX - 4}" xml:space="preserve" '
        f'textLength="{len(line) * CHAR_PX:.1f}" visibility="{"visible" if last else "hidden"}">'
        f"{timing if dur_s else ''}{_spans(line)}</text>"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg(frames([str(Path(sys.executable).with_name("everput")), "demo"])))
