"""The processes that `everput serve` forks at its start. Each test starts a new Python, because pytest has threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

HEAD = """
import asyncio, os, signal
from pathlib import Path
from cli.processes.prefork import prefork

os.__dict__.pop("pidfd_open", None)  # the Pythons that uv installs do not have it

def import_app():
    import cli.app

def stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

def children():
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(one.name)] if int(stat(one.name)[1]) == os.getpid() else []
        except OSError:
            pass  # it has ended meanwhile
    return found
"""


def run(program: str) -> tuple[str, str]:
    command = [sys.executable, "-P", "-c", HEAD + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_each_forked_process_is_a_child_that_runs_its_own_command():
    stdout, stderr = run("""
forked = prefork(3, import_app)

async def main():
    for arguments in (["--version"], ["completion", "bash"], ["serve", "--workers", "none"]):
        reader, writer = os.pipe()
        process, link = await forked.start(arguments, {"HOME": "/"}, {"SOME": writer})
        os.close(writer)
        print(int(stat(process.pid)[1]) == os.getpid(), await process.wait(), process.returncode)
        print(os.read(reader, 9), link.recv(9))  # it had a copy of each until its end
    print(await forked.start(["--version"], {}, {}), children())

asyncio.run(main())
""")
    assert stdout == f"{'True 0 0'}\nb'' b''\nTrue 0 0\nb'' b''\nTrue 2 2\nb'' b''\nNone []\n"
    assert stderr.startswith("everput 0.1.0\n")  # stdout is the supervisor's
    assert "'none' is not a valid integer" in stderr


def test_without_the_process_that_forks_there_is_none():
    stdout, _ = run("""
forked = prefork(2, lambda: 1 / 0)

async def main():
    print(await forked.start(["--version"], {}, {}), await forked.start(["--version"], {}, {}), children())

asyncio.run(main())
""")
    assert stdout == "None None []\n"


@pytest.mark.parametrize("when", ["", "time.sleep(0.01)", "asyncio.run(main())"])
def test_all_of_them_end_with_the_supervisor(when: str):
    """run() returns when nobody holds stderr any more."""
    with pytest.raises(AssertionError):
        run(f"""
import time
forked = prefork(2, import_app)

async def main():
    process, link = await forked.start(["--version"], {{}}, {{}})
    await process.wait()

{when}
os.kill(os.getpid(), signal.SIGKILL)
""")


def test_a_supervisor_that_ends_before_they_are_forked_is_no_error(tmp_path: Path):
    """Its end of each link is closed, as at its end; its processes end without a word."""
    _, stderr = run(f"""
import contextlib, time
closed = Path({str(tmp_path / "closed")!r})

def wait():
    while not closed.exists():
        time.sleep(0.01)

forked = prefork(2, wait)
for link in forked._links:
    link.close()
closed.touch()
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
""")
    assert stderr == ""
