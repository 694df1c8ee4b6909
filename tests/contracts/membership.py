"""What delivery relies on as a member of the workers' group (ports.Membership)."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from broker.core.flow import WHOLE, Share
from broker.delivery.ports import Membership
from broker.errors import LogUnavailable
from broker.ports import NoMember
from tests.listeners import until

ALL = {0, 1, 2, 3}


class Member:
    """A membership, and what it was told. told: all partitions gained and given up, in order."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.owns: set[int] = set()
        self.told: list[tuple[str, set[int]]] = []

    async def join(self) -> None:
        await self.membership.start(self._gained, self._given_up)

    def _gained(self, partitions: Collection[int]) -> None:
        self.owns = set(partitions)
        self.told.append(("gained", self.owns))

    async def _given_up(self, partitions: Collection[int]) -> None:
        self.told.append(("gave up", set(partitions)))
        self.owns = set()


async def shared(first: Member, second: Member) -> None:
    await until(lambda: len(first.owns) == len(second.owns) == 2, what="each has a half")
    assert first.owns | second.owns == ALL


class MembershipContract:
    async def test_partitions_are_given_up_before_another_member_owns_them(self, memberships):
        first, second = Member(memberships()), Member(memberships())
        await first.join()
        await until(lambda: first.owns == ALL, what="the first has all")
        await second.join()
        await shared(first, second)
        gave_up = first.told.index(("gave up", ALL))
        assert gave_up < first.told.index(("gained", first.owns))
        await second.membership.stop()
        await until(lambda: first.owns == ALL, what="the first has all again")

    async def test_only_a_member_is_confirmed(self, memberships):
        first, second = Member(memberships()), Member(memberships())
        await first.join()
        await until(lambda: first.owns == ALL, what="the first has all")
        await first.membership.confirm({0: 7})
        with pytest.raises(LogUnavailable):
            await first.membership.confirm({})
        await first.membership.stop()
        with pytest.raises(NoMember):  # also while the group has no members at all
            await first.membership.confirm({0: 8})
        await second.join()
        await until(lambda: second.owns == ALL, what="the second has all")
        with pytest.raises(NoMember):
            await first.membership.confirm({0: 8})
        await second.membership.confirm({0: 9})

    async def test_the_next_owner_is_given_the_last_note(self, memberships):
        first, second = Member(memberships()), Member(memberships())
        await first.join()
        await until(lambda: first.owns == ALL, what="the first has all")
        assert await first.membership.notes(ALL) == {}
        await first.membership.confirm({0: 7, 1: 0}, {0: "1:2:3"})
        await first.membership.confirm({0: 7, 1: 0}, {0: "4:5:6", 1: "7:8:9"})
        await first.membership.stop()
        await second.join()
        assert await second.membership.notes([0, 1, 2]) == {0: "4:5:6", 1: "7:8:9"}

    async def test_a_share_is_that_of_the_partitions_owned(self, memberships):
        first, second = Member(memberships()), Member(memberships())
        await first.join()
        await until(lambda: first.owns == ALL, what="the first has all")
        assert await first.membership.share(sorted(ALL)) == WHOLE
        with pytest.raises(LogUnavailable):
            await first.membership.share([0])
        await second.join()
        await shared(first, second)
        ranks = {}
        for member in (first, second):
            share = await member.membership.share(sorted(member.owns))
            ranks[min(member.owns)] = share.rank
            assert share == Share(partitions=0.5, workers=2, rank=share.rank)
        assert [ranks[one] for one in sorted(ranks)] == [0, 1]

    async def test_records_come_from_where_it_begins_and_not_before_it_begins(self, memberships, put):
        for data in (b"m-0", b"m-1", b"m-2"):
            await put(1, data)
        member = Member(memberships())
        await member.join()
        await until(lambda: member.owns == ALL, what="it has all")
        assert await member.membership.read() == {}
        member.membership.begin({1: 1})
        found: list[bytes | None] = []

        async def read(count: int) -> bool:
            for partition, records in (await member.membership.read()).items():
                assert partition == 1
                found.extend(record.key for record in records)
            return len(found) >= count

        await until(lambda: read(2), what="two are read")
        await put(1, b"m-3")
        await until(lambda: read(3), what="the new one is read")
        assert found == [b"m-1", b"m-2", b"m-3"]
        member.membership.begin({1: 3})  # once more
        await until(lambda: read(4), what="it is read again")
        assert found[3:] == [b"m-3"]
