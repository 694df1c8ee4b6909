"""Run commands at once, each in a process of its own, and print the first line that each of them prints, as JSON.

For: test_cli_silence.py. A process that has imported the commands forks for each, so that forty cost little more than
one. Standard input has a JSON array of arrays of arguments."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module

from cli.app import SECTIONS, everput

WARNING = "This lets the internet reach"  # Every listen begins with it, whatever the server does.


def begin(arguments: list[str]) -> tuple[int, int]:
    """The process of a command, and where its output can be read."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    os.close(reads)
    os.dup2(writes, 1)
    os.dup2(writes, 2)
    try:
        everput.main(arguments, prog_name="everput")
    finally:
        os._exit(0)


def main() -> None:
    commands = json.load(sys.stdin)
    for module, _ in (command for section in SECTIONS.values() for command in section.values()):
        import_module(module)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    begun = [begin(arguments) for arguments in commands]
    said = []
    for pid, reads in begun:
        with os.fdopen(reads) as output:
            lines = (line.rstrip("\n") for line in output)
            said.append(next((line for line in lines if not line.startswith(WARNING)), ""))
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    json.dump(said, sys.stdout)


main()
