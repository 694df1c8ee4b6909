"""The dice of a run: their seed is printed, and can be given again."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def dice(capsys: pytest.CaptureFixture[str]) -> random.Random:
    seed = int(os.environ.get("EVERPUT_SOAK_SEED") or random.randrange(1 << 32))
    with capsys.disabled():
        print(f" EVERPUT_SOAK_SEED={seed} ", end="", flush=True)
    return random.Random(seed)
