"""The supervisor's child processes: real processes, started again whenever one dies or could not be started."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from cli.processes import children
from cli.processes.children import Child
from tests.listeners import until


async def test_a_process_that_could_not_be_started_is_started_a_moment_later(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(children, "PAUSE_S_MAX", 0.1)
    kafka: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    child = Child("api-1", ["--help"], environment=dict(os.environ), kafka=kafka)
    keeping = asyncio.create_task(child.keep())

    def logged(event: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith(event)]

    try:
        await until(lambda: len(logged("process.died")) >= 2, what="the start has failed twice")
        assert "could not be started" in logged("process.died")[0]
        assert not logged("process.started")
        monkeypatch.undo()
        await until(lambda: logged("process.started"), what="the process is started")
    finally:
        await child.stop(timeout_s=10)
        await keeping
