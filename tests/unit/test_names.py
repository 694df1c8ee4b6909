"""Names that hang in DNS, many of them, and those that don't."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from broker.outbound import addresses as guard
from broker.outbound import dns as names
from broker.outbound.addresses import Resolver
from broker.outbound.dns import Names, NotAsked

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
    for seconds in ("_QUICK_S", "_KNOWN_LEAVES_S", "_NEW_LEAVES_S", "_ASKED_S"):
        monkeypatch.setattr(names, seconds, 0.02)
    monkeypatch.setattr(guard, "_ANSWER_S", 0.05)
    monkeypatch.setattr(guard, "_OTHER_ANSWER_S", 0.05)
    dns = Dns()
    yield dns
    dns.let_go()


async def test_a_thousand_names_that_hang_hold_up_no_other_name_and_no_more_threads_than_there_may_be(dns, monkeypatch):
    monkeypatch.setattr(guard, "_ANSWER_S", 30.0)
    monkeypatch.setattr(names, "_HANGING_MAX", 40)
    for seconds in ("_QUICK_S", "_KNOWN_LEAVES_S", "_NEW_LEAVES_S"):
        monkeypatch.setattr(names, seconds, 0.2)
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
        while dns.hanging < names._HANGING_MAX * 3 // 4 + names._NEW_MAX:
            await asyncio.sleep(0.01)
        assert await resolver.addresses("known.example") == PUBLIC
    assert dns.hanging <= names._HANGING_MAX * 3 // 4 + names._NEW_MAX
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


async def test_a_new_name_leaves_its_place_before_it_is_known_to_hang_and_is_answered_all_the_same(dns, monkeypatch):
    monkeypatch.setattr(names, "_QUICK_S", 60.0)
    asking = Names(dns.ask)
    slow = [asking.addresses(f"hang-{number}.example") for number in range(names._NEW_MAX)]
    assert await asyncio.wait_for(asking.addresses("new.example"), 10) == PUBLIC
    dns.let_go()
    assert await asyncio.wait_for(asyncio.gather(*slow), 10) == [PUBLIC] * names._NEW_MAX
    assert asking._desk_of("hang-0.example") is asking._known


async def test_hundreds_that_hang_are_passed_by_a_new_name_while_they_do(dns):
    asking = Names(dns.ask)
    for number in range(300):
        asking.addresses(f"hang-{number}.example")
    assert await asyncio.wait_for(asking.addresses("new.example"), 20) == PUBLIC
    assert dns.hanging == 300


async def test_known_names_that_hang_leave_their_places_where_new_ones_can_no_more(dns, monkeypatch):
    monkeypatch.setattr(names, "_HANGING_MAX", 2 * names._KNOWN_MAX)
    asking = Names(dns.ask)
    for number in range(names._KNOWN_MAX):
        asking._remember(f"hang-known-{number}.example", 0)
    asking._remember("known.example", 0)
    for number in range(10 * names._KNOWN_MAX):
        asking.addresses(f"hang-{number}.example")
    async with asyncio.timeout(20):
        while asking._slow.under_way < asking._new.hanging_max:
            await asyncio.sleep(0.01)
        for number in range(names._KNOWN_MAX):
            asking.addresses(f"hang-known-{number}.example")
        assert await asking.addresses("known.example") == PUBLIC


async def test_that_a_name_had_no_turn_is_told_from_a_failure_and_not_kept(dns, monkeypatch):
    monkeypatch.setattr(names, "_HANGING_MAX", 0)
    resolver = Resolver((), dns.ask)
    hanging = [asyncio.create_task(resolver.addresses(f"hang-{number}.example")) for number in range(names._NEW_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(NotAsked):
        await resolver.addresses("new.example")
    found = await asyncio.gather(*hanging, return_exceptions=True)
    assert [str(one) for one in found] == ["DNS did not answer in time"] * names._NEW_MAX
    assert "new.example" not in dns.asked
    monkeypatch.setattr(guard, "_ANSWER_S", 30.0)
    dns.let_go()
    assert await resolver.addresses("new.example") == PUBLIC


async def test_that_a_name_had_no_turn_is_its_own_fault_where_it_hung_before(dns, monkeypatch):
    monkeypatch.setattr(names, "_SLOW_MAX", 0)
    resolver = Resolver((), dns.ask)
    resolver._names._remember("hang.example", names._SLOW_AFTER)
    with pytest.raises(OSError, match="DNS did not answer in time"):
        await resolver.addresses("hang.example")
    assert not dns.asked
