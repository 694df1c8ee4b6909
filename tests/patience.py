"""A machine that is slow, or stands still for some seconds, must change nothing but the time that a test takes.

For: the times after which the product gives something up, in the tests' own process; a test that is about one of them
sets it anew. Not for: processes of their own (tests/scenarios)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from broker.commands import changes as changes_commands
from broker.commands import context
from broker.delivery.tuning import Tuning
from broker.kafka import tail
from broker.kafka.log import KafkaLog
from broker.kafka.requests import KafkaRequests
from projections.directory import DirectoryProjection

PATIENCE_S: Final = 30.0
PATIENT: Final = Tuning(  # of a worker
    answer_s=PATIENCE_S - 5,
    suspended_s=PATIENCE_S,
    drain_s=PATIENCE_S,
    hand_over_s=PATIENCE_S,
    hanging_s=PATIENCE_S,
    last_checkpoint_s_max=PATIENCE_S,
)

_TIMES: Final = (
    (context, "_FOLD_S", PATIENCE_S),
    (changes_commands, "ANSWER_S", PATIENCE_S),
    (tail, "SESSION_TIMEOUT_MS", 60_000),
    (tail, "_ANSWER_MS", 65_000),
    (tail, "FAILING_S_MAX", PATIENCE_S),
)
_DEFAULTS: Final = (
    (KafkaLog.__init__, "append_timeout_ms", round(PATIENCE_S * 1000)),
    (KafkaRequests.__init__, "timeout_ms", round(PATIENCE_S * 1000)),
    (DirectoryProjection.seen, "timeout_s", PATIENCE_S),
    (DirectoryProjection.caught_up, "timeout_s", PATIENCE_S),
)


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """For a module that imports it. Before all else, so that what a test sets besides is undone first."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in _TIMES:
            patch.setattr(module, name, value)
        for function, name, value in _DEFAULTS:
            patch.setitem(function.__kwdefaults__, name, value)
        yield
