"""Names that hang in DNS, many of them, and those that don't."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from broker.delivery import guard, names
from broker.delivery.guard import Resolver
from broker.delivery.names import Names

PUBLIC = ["93.184.215.14"]


class Dns:
    """Answers every name but those that begin with `hang`, until they are let go."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, list[str] | OSError] = {}
        self.hanging = 0
        self._lock = threading.Lock()
        self._let_go = threading.Event()

    def ask(self, host: str) -> list[str]:
        with self._lock:
            self.asked[host] += 1
            self.hanging += host.startswith("hang")
        if host.startswith("hang"):
            self._let_go.wait()
            with self._lock:
                self.hanging -= 1
        answer = self.answers.get(host, PUBLIC)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dns]:
    monkeypatch.setattr(names, "_QUICK_S", 0.02)
    monkeypatch.setattr(guard, "_ANSWER_S", 0.05)
    monkeypatch.setattr(guard, "_OTHER_ANSWER_S", 0.05)
    dns = Dns()
    yield dns
    dns.let_go()


async def test_a_thousand_names_that_hang_hold_up_no_other_name_and_no_more_threads_than_there_may_be(dns, monkeypatch):
    monkeypatch.setattr(guard, "_ANSWER_S", 30.0)
    monkeypatch.setattr(names, "_QUICK_S", 0.2)
    resolver = Resolver((), dns.ask)
    await resolver.addresses("known.example")
    monkeypatch.setattr(guard, "_CACHE_S", -1.0)
    waiting = [asyncio.create_task(resolver.addresses(f"hang-{number}.example")) for number in range(1000)]
    async with asyncio.timeout(20):
        while dns.hanging < names._NEW_MAX:
            await asyncio.sleep(0.01)
        # One that was there before is not even in the same line; a new one gets its turn, many hanging ones before it.
        assert await resolver.addresses("known.example") == PUBLIC
        assert dns.asked["known.example"] >= 1
        while dns.hanging < names._HANGING_MAX:
            await asyncio.sleep(0.01)
        assert await resolver.addresses("known.example") == PUBLIC
    assert dns.hanging <= names._HANGING_MAX + names._NEW_MAX
    dns.let_go()
    found = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert found == [PUBLIC] * 1000
    assert max(dns.asked[f"hang-{number}.example"] for number in range(1000)) == 1


async def test_a_new_name_is_asked_although_as_many_hang_as_are_asked_at_once(dns):
    asking = Names(dns.ask)
    for number in range(names._NEW_MAX):
        asking.addresses(f"hang-{number}.example")
    assert await asyncio.wait_for(asking.addresses("new.example"), 10) == PUBLIC


async def test_a_name_that_hung_twice_waits_behind_its_like_and_one_good_answer_puts_it_back(dns):
    asking = Names(dns.ask)
    for _ in range(2):
        question = asking.addresses("hang.example")
        while asking._slow.under_way == 0:
            await asyncio.sleep(0.01)
        dns.let_go()
        await question
        dns._let_go.clear()
    assert asking._desk_of("hang.example") is asking._slow
    dns.let_go()
    await asking.addresses("hang.example")
    assert asking._desk_of("hang.example") is asking._known


async def test_who_waits_for_a_name_that_hangs_is_told_so_and_a_late_answer_is_the_next_ones(dns, monkeypatch):
    monkeypatch.setattr(guard, "_FAILURE_CACHE_S", -1.0)
    resolver = Resolver((), dns.ask)
    with pytest.raises(OSError, match="DNS did not answer in time"):
        await resolver.addresses("hang.example")
    dns.let_go()
    async with asyncio.timeout(10):
        while "hang.example" not in resolver._kept or resolver._kept["hang.example"].error is not None:
            await asyncio.sleep(0.01)
    assert await resolver.addresses("hang.example") == PUBLIC
    assert dns.asked == {"hang.example": 1}


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "try again"), None])
async def test_an_old_answer_serves_while_dns_has_none(dns, monkeypatch, error):
    monkeypatch.setattr(guard, "_CACHE_S", -1.0)
    dns.let_go()
    resolver = Resolver((), dns.ask)
    await resolver.addresses("hang.example")
    if error is None:
        dns._let_go.clear()
    else:
        dns.answers["hang.example"] = error
    assert await resolver.addresses("hang.example") == PUBLIC
    assert dns.asked["hang.example"] == 2


async def test_an_old_answer_is_forgotten_when_dns_says_that_there_is_no_such_name(dns, monkeypatch):
    resolver = Resolver((), dns.ask)
    monkeypatch.setattr(guard, "_CACHE_S", -1.0)
    await resolver.addresses("gone.example")
    dns.answers["gone.example"] = socket.gaierror(socket.EAI_NONAME, "no such name")
    with pytest.raises(OSError, match="no such name"):
        await resolver.addresses("gone.example")
    assert resolver._kept["gone.example"].addresses == []


async def test_what_nobody_waits_for_any_more_is_not_asked(dns, monkeypatch):
    monkeypatch.setattr(names, "_HANGING_MAX", 0)
    asking = Names(dns.ask)
    hanging = [asking.addresses(f"hang-{number}.example") for number in range(names._NEW_MAX)]
    monkeypatch.setattr(names, "_WANTED_S", -1.0)
    late = asking.addresses("late.example")
    dns.let_go()
    await asyncio.gather(*hanging)
    with pytest.raises(OSError, match="no time for this name"):
        await late
    assert "late.example" not in dns.asked
