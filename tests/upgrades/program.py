"""Everput as it was at an earlier commit, with an environment of its own.

For: write.py and the upgrade tests, which run it as processes. Not for: importing anything of it.
It needs the repository's history, `make` and pip. The result is kept in this environment: `make clean` removes it."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]


class NotHere(Exception):
    """This machine lacks what the earlier program is made from. The text says what."""


@dataclass(frozen=True)
class Program:
    """python: the interpreter that has that commit's dependencies and its code."""

    commit: str
    python: Path

    @classmethod
    def at(cls, commit: str) -> Self:
        """The program of the commit, installed by that commit's own Makefile; a minute the first time (NotHere)."""
        source = Path(sys.prefix) / "upgrades" / commit
        program = cls(commit, source / ".venv" / "bin" / "python")
        if not (source / ".venv" / ".installed").exists():
            packed = io.BytesIO(_archive(commit))
            source.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=packed) as archive:
                archive.extractall(source, filter="data")
            made = subprocess.run(
                ["make", f"PYTHON={sys.executable}", ".venv/.installed"],
                cwd=source,
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                raise NotHere(f"the environment of commit {commit} can't be made: {made.stderr.strip()[-500:]}")
        return program


def _archive(commit: str) -> bytes:
    try:
        asked = subprocess.run(
            ["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        raise NotHere("git is not installed") from None
    if asked.returncode != 0:
        raise NotHere(f"the repository's history does not reach back to commit {commit}: {asked.stderr.decode()[:200]}")
    return asked.stdout
