"""Names that hang in DNS, many of them, and those that don't."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker.outbound.addresses import Resolver
from broker.outbound.dns import DnsLookups, DnsTuning, NotAsked

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

    def hold(self) -> None:
        self._let_go.clear()

    def let_go(self) -> None:
        self._let_go.set()


TUNING = DnsTuning(
    quick_s=0.02, known_leaves_s=0.02, new_leaves_s=0.02, asked_s=0.02, answer_s=0.05, other_answer_s=0.05
)


@pytest.fixture
def dns() -> Iterator[Dns]:
    dns = Dns()
    yield dns
    dns.let_go()


def lookups_of(dns: Dns, **tuning: float) -> DnsLookups:
    return DnsLookups(dns.ask, replace(TUNING, **tuning))


def resolver_of(dns: Dns, **tuning: float) -> Resolver:
    return Resolver((), dns.ask, replace(TUNING, **tuning))


async def test_a_thousand_names_that_hang_hold_up_no_other_name_and_no_more_threads_than_there_may_be(dns):
    hanging_max = 40
    resolver = resolver_of(
        dns, answer_s=30.0, hanging_max=hanging_max, quick_s=0.2, known_leaves_s=0.2, new_leaves_s=0.2
    )
    await resolver.addresses("known.example")
    resolver.tuning = replace(resolver.tuning, cache_s=-1.0)
    waiting = [asyncio.create_task(resolver.addresses(f"hang-{number}.example")) for number in range(1000)]
    async with asyncio.timeout(20):
        while dns.hanging < TUNING.new_max:
            await asyncio.sleep(0.01)
        # One that was there before is not even in the same line; a new one gets its turn, many hanging ones before it.
        assert await resolver.addresses("known.example") == PUBLIC
        assert dns.asked["known.example"] >= 1
        while dns.hanging < hanging_max * 3 // 4 + TUNING.new_max:
            await asyncio.sleep(0.01)
        assert await resolver.addresses("known.example") == PUBLIC
    assert dns.hanging <= hanging_max * 3 // 4 + TUNING.new_max
    dns.let_go()
    found = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert found == [PUBLIC] * 1000
    assert max(dns.asked[f"hang-{number}.example"] for number in range(1000)) == 1


async def test_a_new_name_is_asked_although_as_many_hang_as_are_asked_at_once(dns):
    lookup = lookups_of(dns)
    for number in range(TUNING.new_max):
        lookup.addresses(f"hang-{number}.example")
    assert await asyncio.wait_for(lookup.addresses("new.example"), 10) == PUBLIC


async def test_a_name_that_hung_twice_waits_behind_its_like_and_one_good_answer_puts_it_back(dns):
    lookup = lookups_of(dns)
    for _ in range(2):
        answer = lookup.addresses("hang.example")
        while lookup.slow.under_way == 0:
            await asyncio.sleep(0.01)
        dns.let_go()
        await answer
        dns.hold()
    assert lookup.pool_of("hang.example") is lookup.slow
    dns.let_go()
    await lookup.addresses("hang.example")
    assert lookup.pool_of("hang.example") is lookup.known


async def test_who_waits_for_a_name_that_hangs_is_told_so_and_a_late_answer_is_the_next_ones(dns):
    resolver = resolver_of(dns, failure_cache_s=-1.0)
    with pytest.raises(OSError, match="DNS did not answer in time"):
        await resolver.addresses("hang.example")
    dns.let_go()
    async with asyncio.timeout(10):
        await resolver.lookups.addresses("hang.example")  # the one that is under way
    assert await resolver.addresses("hang.example") == PUBLIC
    assert dns.asked == {"hang.example": 1}


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "try again"), None])
async def test_an_old_answer_serves_while_dns_has_none(dns, error):
    dns.let_go()
    resolver = resolver_of(dns, cache_s=-1.0)
    await resolver.addresses("hang.example")
    if error is None:
        dns.hold()
    else:
        dns.answers["hang.example"] = error
    assert await resolver.addresses("hang.example") == PUBLIC
    assert dns.asked["hang.example"] == 2


async def test_an_old_answer_is_forgotten_when_dns_says_that_there_is_no_such_name(dns):
    resolver = resolver_of(dns, cache_s=-1.0)
    await resolver.addresses("gone.example")
    dns.answers["gone.example"] = socket.gaierror(socket.EAI_NONAME, "no such name")
    with pytest.raises(OSError, match="no such name"):
        await resolver.addresses("gone.example")
    with pytest.raises(OSError, match="no such name"):
        await resolver.addresses("gone.example")  # from what is kept of it
    assert dns.asked["gone.example"] == 2


async def test_what_nobody_waits_for_any_more_is_not_asked(dns):
    lookup = lookups_of(dns, hanging_max=0)
    hanging = [lookup.addresses(f"hang-{number}.example") for number in range(TUNING.new_max)]
    lookup.tuning = replace(lookup.tuning, wanted_s=-1.0)
    late = lookup.addresses("late.example")
    dns.let_go()
    await asyncio.gather(*hanging)
    with pytest.raises(OSError, match="no time for this name"):
        await late
    assert "late.example" not in dns.asked


async def test_a_new_name_leaves_its_place_before_it_is_known_to_hang_and_is_answered_all_the_same(dns):
    lookup = lookups_of(dns, quick_s=60.0)
    slow = [lookup.addresses(f"hang-{number}.example") for number in range(TUNING.new_max)]
    assert await asyncio.wait_for(lookup.addresses("new.example"), 10) == PUBLIC
    dns.let_go()
    assert await asyncio.wait_for(asyncio.gather(*slow), 10) == [PUBLIC] * TUNING.new_max
    assert lookup.pool_of("hang-0.example") is lookup.known


async def test_hundreds_that_hang_are_passed_by_a_new_name_while_they_do(dns):
    lookup = lookups_of(dns)
    for number in range(300):
        lookup.addresses(f"hang-{number}.example")
    assert await asyncio.wait_for(lookup.addresses("new.example"), 20) == PUBLIC
    assert dns.hanging == 300


async def test_known_names_that_hang_leave_their_places_where_new_ones_can_no_more(dns):
    lookup = lookups_of(dns, hanging_max=2 * TUNING.known_max)
    for number in range(TUNING.known_max):
        lookup.remember(f"hang-known-{number}.example", 0)
    lookup.remember("known.example", 0)
    for number in range(10 * TUNING.known_max):
        lookup.addresses(f"hang-{number}.example")
    async with asyncio.timeout(20):
        while lookup.slow.under_way < lookup.new.hanging_max:
            await asyncio.sleep(0.01)
        for number in range(TUNING.known_max):
            lookup.addresses(f"hang-known-{number}.example")
        assert await lookup.addresses("known.example") == PUBLIC


async def test_that_a_name_had_no_turn_is_told_from_a_failure_and_not_kept(dns):
    resolver = resolver_of(dns, hanging_max=0)
    hanging = [asyncio.create_task(resolver.addresses(f"hang-{number}.example")) for number in range(TUNING.new_max)]
    await asyncio.sleep(0)
    with pytest.raises(NotAsked):
        await resolver.addresses("new.example")
    found = await asyncio.gather(*hanging, return_exceptions=True)
    assert [str(one) for one in found] == ["DNS did not answer in time"] * TUNING.new_max
    assert "new.example" not in dns.asked
    resolver.tuning = replace(resolver.tuning, answer_s=30.0)
    dns.let_go()
    assert await resolver.addresses("new.example") == PUBLIC


async def test_that_a_name_had_no_turn_is_its_own_fault_where_it_hung_before(dns):
    resolver = resolver_of(dns, slow_max=0)
    resolver.lookups.remember("hang.example", TUNING.slow_after)
    with pytest.raises(OSError, match="DNS did not answer in time"):
        await resolver.addresses("hang.example")
    assert not dns.asked
