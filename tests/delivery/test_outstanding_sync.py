"""Which records of `outstanding` are in doubt while several appends are under way, without Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping

import pytest

from broker.delivery.outstanding.sync import WatchedAppender
from broker.delivery.ports import KeyAndValue
from broker.errors import LogUnavailable


class Topic:
    """It stores nothing. append() waits for `go`, as for a slow partition. fails: what append_one() raises."""

    name = "outstanding"

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fails: Exception | None = None

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        await self.go.wait()
        outcomes.clear()

    async def append_one(self, _partition: int, _key: bytes, _value: bytes) -> int:
        if self.fails is not None:
            raise self.fails
        return 7


async def test_a_doubt_ends_with_an_append_of_the_key_that_began_after_it():
    topic = Topic()
    topic.go.set()
    watched = WatchedAppender(topic)
    watched.doubt(0, b"k")
    await watched.append_one(0, b"other", b"value")
    assert not watched.settled(0)
    await watched.append({0: [(b"k", None)]})
    assert watched.settled(0)


async def test_a_doubt_that_is_newer_than_a_tombstone_under_way_stays():
    """The value was stored after the tombstone, which still waits for another partition."""
    topic = Topic()
    watched = WatchedAppender(topic)
    burying = asyncio.create_task(watched.append({0: [(b"k", None)], 1: [(b"other", None)]}))
    await asyncio.sleep(0)
    await watched.append_one(0, b"k", b"value")
    watched.doubt(0, b"k")  # its listener was deleted meanwhile
    topic.go.set()
    await burying
    assert (watched.settled(0), watched.settled(1)) == (False, True)
    await watched.append({0: [(b"k", None)]})
    assert watched.settled(0)


async def test_a_record_that_may_be_stored_is_in_doubt_until_it_was_appended_again():
    topic = Topic()
    topic.fails = LogUnavailable("late")
    watched = WatchedAppender(topic)
    with pytest.raises(LogUnavailable):
        await watched.append_one(0, b"k", b"value")
    assert not watched.settled(0)
    topic.fails = None
    await watched.append_one(0, b"k", b"value")
    assert watched.settled(0)


async def test_a_delivery_and_its_tombstone_that_are_under_way_together_are_in_doubt():
    """Kafka may have stored them in either order."""
    topic = Topic()
    watched = WatchedAppender(topic)
    burying = asyncio.create_task(watched.append({0: [(b"k", None)]}))
    again = asyncio.create_task(watched.append({0: [(b"k", None)]}))
    await asyncio.sleep(0)
    await watched.append_one(0, b"k", b"value")
    topic.go.set()
    await asyncio.gather(burying, again)
    assert not watched.settled(0)
    await watched.append({0: [(b"k", None)]})
    assert watched.settled(0)


async def test_two_tombstones_that_are_under_way_together_are_not_in_doubt():
    topic = Topic()
    watched = WatchedAppender(topic)
    burying = [asyncio.create_task(watched.append({0: [(b"k", None)]})) for _ in range(2)]
    await asyncio.sleep(0)
    assert not watched.settled(0)
    topic.go.set()
    await asyncio.gather(*burying)
    assert watched.settled(0)
