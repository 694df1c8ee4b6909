"""Walking a stretch of a partition whose end is known, whatever a new leader says of it."""

from __future__ import annotations

import pytest

from broker.errors import LogUnavailable
from broker.kafka import requests as requests_module
from broker.kafka.requests import KafkaRequests, Record, Stretch
from broker.settings import KafkaSettings


def record(offset: int) -> Record:
    return Record(offset, 0, b"k", b"v", ())


class Leader(KafkaRequests):
    """Answers reads with these, one after the other, and the last one again and again."""

    def __init__(self, *answers: Stretch) -> None:
        super().__init__(KafkaSettings(bootstrap="localhost:1"), timeout_ms=100)
        self.answers = list(answers)

    async def read(self, *_: object, **__: object) -> Stretch:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests_module, "_BEHIND_PAUSE_S", 0.01)


async def walked(leader: Leader) -> list[int]:
    return [one.offset async for one in leader.walk("t", 0, 0, 3)]


async def test_a_leader_that_does_not_know_the_end_yet_is_waited_for():
    behind, there = Stretch([], 1, 1), Stretch([record(1), record(2)], 3, 3)
    assert await walked(Leader(Stretch([record(0)], 1, 1), behind, behind, there)) == [0, 1, 2]


async def test_a_leader_that_never_gives_what_there_is_is_an_error():
    with pytest.raises(LogUnavailable, match="from offset 1"):
        await walked(Leader(Stretch([record(0)], 1, 1), Stretch([], 1, 1)))


async def test_where_compaction_has_left_nothing_the_walk_ends():
    assert await walked(Leader(Stretch([record(0)], 1, 3), Stretch([], 1, 3))) == [0]
