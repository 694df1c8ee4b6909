"""What delivery relies on when it follows the changes of messages (ports.ChangeFeed)."""

from __future__ import annotations

from broker.core.events import MessageUpdated
from broker.delivery.ports import Ports
from tests.listeners import until


def updated(partition: int, offset: int) -> MessageUpdated:
    return MessageUpdated(
        at_ms=1, organization_id="o", message_id="m", queue_id="q", partition=partition, offset=offset, data="d"
    )


class ChangeFeedContract:
    async def test_changes_come_from_the_offsets_that_are_followed_and_from_no_other_partition(self, ports: Ports):
        changes, feed = ports.log.changes, ports.changes
        for offset in range(3):
            await changes.append(updated(0, offset))
            await changes.append(updated(1, offset))
        feed.follow({0: 1})
        found: list[tuple[int, int, int]] = []

        async def read(count: int) -> bool:
            found.extend((partition, offset, event.offset) for partition, offset, event in await feed.read())
            return len(found) >= count

        await until(lambda: read(2), what="two are read")
        await changes.append(updated(0, 3))
        await until(lambda: read(3), what="the new one is read")
        assert found == [(0, 1, 1), (0, 2, 2), (0, 3, 3)]
        feed.follow({1: 2})
        await changes.append(updated(0, 4))
        await until(lambda: read(4), what="the other partition is read")
        assert found[3:] == [(1, 2, 2)]
