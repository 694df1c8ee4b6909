"""The dice of a run: their seed is printed, and can be given again. And what servers said while a test failed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.scenarios.running import Running


@pytest.fixture(autouse=True)
def what_servers_say() -> Iterator[None]:
    """Of those that several tests share; one of a test's own tells by itself."""
    said = {server: len(server.stderr) for server in Running.now}
    yield
    for server in Running.now:
        server.tell(said.get(server, 0))


@pytest.fixture
def dice(capsys: pytest.CaptureFixture[str]) -> random.Random:
    seed = int(os.environ.get("EVERPUT_SOAK_SEED") or random.randrange(1 << 32))
    with capsys.disabled():
        print(f" EVERPUT_SOAK_SEED={seed} ", end="", flush=True)
    return random.Random(seed)
