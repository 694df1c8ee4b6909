"""The first child processes of a supervisor, forked from one process that has imported their code.

For: forking them, and giving each its arguments, environment and file descriptors. The code is imported once for all
forked processes, and they share its memory. Not for: restarting a child process, for which cli/processes/children.py
starts a new Python.

Before the supervisor has threads or an event loop, it forks a process that imports the code. This process forks the
child processes, and ends. The supervisor is a subreaper, so it becomes the parent of the child processes. All of this
needs Linux: on other systems, prefork() returns None, and the supervisor starts a new Python for each child process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final

from cli.processes import supervisor_link as link
from cli.processes.prctl import CHILD_SUBREAPER, PDEATHSIG, prctl

_SIZE_BYTES: Final = 8
_DESCRIPTORS_MAX: Final = 8
_FIRST_DESCRIPTOR: Final = 3  # after stdin, stdout and stderr


class ForkedProcess:
    """A child process that another process has forked. It has those methods of asyncio.subprocess.Process that
    cli/processes/children.py calls.

    Construct it in the running event loop.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._await_end, name=f"await-end-{pid}", daemon=True).start()

    @property
    def returncode(self) -> int | None:
        """The exit code, which is negative if a signal ended the process. None while the process runs."""
        return self._code.result() if self._code.done() else None

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        return await asyncio.shield(self._code)

    def send_signal(self, number: signal.Signals) -> None:
        # This pid can't belong to another process: the system can reuse it only after _reap().
        # _reap() also sets `returncode`. Callers send no signal once `returncode` is set.
        os.kill(self.pid, number)

    def _await_end(self) -> None:
        # A thread needs no pidfd. The Pythons that uv installs have no os.pidfd_open().
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the event loop is closed, so nobody waits for the process any more
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        self._code.set_result(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))


class Prefork:
    """The process that imports the code of API processes and workers, and the child processes that it forks."""

    def __init__(self, pid: int, links: Sequence[socket.socket]) -> None:
        self._pid = pid
        self._links = list(links)
        self._template: ForkedProcess | None = None

    async def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Mapping[str, int]
    ) -> tuple[ForkedProcess, socket.socket] | None:
        """Let a forked process run `everput` with the given arguments and environment. Return the process, and a socket
        that is connected to it. Return None if no forked process is left.

        `descriptors` maps the name of an environment variable to an open file descriptor. The forked process gets a
        copy of the descriptor, and finds the number of the copy in the variable.
        """
        if not self._links:
            return None
        ours = self._links.pop()
        # Wait until the process that forked the child processes has ended: only then are they children of this process.
        if self._template is None:
            self._template = ForkedProcess(self._pid)
        await self._template.wait()
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        pid = await loop.sock_recv(ours, 32)
        if not pid:
            ours.close()
            return None
        process = ForkedProcess(int(pid))
        given = {"arguments": list(arguments), "environment": dict(environment), "descriptors": list(descriptors)}
        text = json.dumps(given).encode()
        with suppress(OSError):  # OSError: the process has ended already; the caller learns this from the exit code
            socket.send_fds(ours, [len(text).to_bytes(_SIZE_BYTES)], list(descriptors.values()))
            await loop.sock_sendall(ours, text)
        return process, ours


def import_code() -> None:
    """Import the code of API processes and workers."""
    from cli import app
    from cli.processes import api, worker
    from projections.app import prepare

    _ = app, api, worker
    prepare()


def prefork(count: int, import_code: Callable[[], None] = import_code) -> Prefork | None:
    """Fork a process that calls `import_code`, and that then forks `count` child processes with the imported code.
    Return the Prefork that starts their work, or None if the operating system does not support this.

    Call this function while the process has one thread and no event loop.
    """
    if sys.platform != "linux" or prctl(CHILD_SUBREAPER, 1) != 0:  # another system, an old kernel, or a sandbox
        return None
    parent = os.getpid()
    pairs = [socket.socketpair() for _ in range(count)]
    pid = os.fork()
    if pid == 0:
        try:
            _import_and_fork([theirs for _, theirs in pairs], import_code, parent)
        finally:
            os._exit(0)
    for _, theirs in pairs:
        theirs.close()
    return Prefork(pid, [ours for ours, _ in pairs])


def _import_and_fork(links: Sequence[socket.socket], import_code: Callable[[], None], parent: int) -> None:
    """Import the code by a call of `import_code`. Then fork one child process for each socket in `links`: the child
    process talks to the supervisor over this socket. `parent` is the process id of the supervisor.
    """
    prctl(PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the supervisor ended before prctl() was called, so no signal will end this process
        return
    os.setsid()  # Ctrl-C in a terminal must reach only the supervisor
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # Only the supervisor writes to stdout (the line `ready`). What its child processes write goes to stderr.
    os.dup2(2, 1)
    # Close all locks, sockets and pipes of the supervisor, except the links to the forked processes.
    kept = sorted(one.fileno() for one in links)
    for below, above in pairwise([_FIRST_DESCRIPTOR - 1, *kept, os.sysconf("SC_OPEN_MAX")]):
        os.closerange(below + 1, above)
    sys.argv = ["everput"]  # replace sys.argv, because Faust would read Everput's options as its own
    gc.disable()
    import_code()
    # Without freeze(), a child's first garbage collection would copy the memory that all child processes share.
    gc.freeze()
    from multiprocessing import get_context

    fork = get_context("fork")
    for one in links:
        fork.Process(target=_run, args=(one, links)).start()
        one.close()


def _run(ours: socket.socket, links: Sequence[socket.socket]) -> None:
    """Run `everput` in this forked child process, with the arguments that the supervisor sends over the socket `ours`.
    If the supervisor ends without sending arguments, return.
    """
    os.setsid()
    for other in links:
        if other is not ours:
            other.close()
    try:
        ours.sendall(b"%d" % os.getpid())
        size, descriptors, *_ = socket.recv_fds(ours, _SIZE_BYTES, _DESCRIPTORS_MAX)
        text = ours.recv(int.from_bytes(size), socket.MSG_WAITALL)
    except OSError:  # The supervisor has ended, and with it the other end of the socket.
        return
    if not text:
        return
    given = json.loads(text)
    numbers = dict(zip(given["descriptors"], [*descriptors], strict=True)) | {link.VARIABLE: ours.detach()}
    os.environ.clear()
    os.environ.update(given["environment"])
    os.environ.update({name: str(number) for name, number in numbers.items()})
    gc.enable()
    from cli.app import everput

    try:
        everput(given["arguments"], prog_name="everput")
    finally:
        logging.shutdown()  # write all log lines now, because a forked process ends without Python's exit functions
