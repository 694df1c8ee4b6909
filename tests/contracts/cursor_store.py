"""What delivery relies on when it stores cursors (ports.CursorStore)."""

from __future__ import annotations

from uuid import uuid4

from broker.core.cursor import Cursor
from broker.delivery.ports import Ports


class CursorStoreContract:
    async def test_a_cursor_is_loaded_as_it_was_stored_and_none_where_none_was(self, ports: Ports):
        one, other = str(uuid4()), str(uuid4())
        cursor = Cursor(top=9, open=(3, 7), pending=2, oldest_at_ms=5, state="down", error="refused", attempts=(0, 2))
        await ports.cursors.store({one: {0: cursor}})
        assert await ports.cursors.load([one, other], [0, 1]) == {one: {0: cursor}, other: {}}

    async def test_a_later_cursor_replaces_that_of_its_partition_and_no_other(self, ports: Ports):
        one = str(uuid4())
        await ports.cursors.store({one: {0: Cursor(top=1), 1: Cursor(top=2)}})
        await ports.cursors.store(
            {one: {1: Cursor(top=1)}}
        )  # also a lower one: who may store is not the store's to say
        assert await ports.cursors.load([one], [0, 1]) == {one: {0: Cursor(top=1), 1: Cursor(top=1)}}

    async def test_listeners_with_cursors_are_listed_until_these_are_deleted(self, ports: Ports):
        one, other = str(uuid4()), str(uuid4())
        await ports.cursors.store({one: {0: Cursor(top=1)}, other: {0: Cursor(top=1)}})
        assert {one, other} <= await ports.cursors.listeners()
        await ports.cursors.delete(one)
        await ports.cursors.delete(one)  # there is nothing to delete any more
        assert await ports.cursors.listeners() & {one, other} == {other}
        assert await ports.cursors.load([one], [0]) == {one: {}}
