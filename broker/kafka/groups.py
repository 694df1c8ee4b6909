"""Requests about Kafka's consumer groups: committed offsets, members, deletion.

For: finding the coordinator of a group, also after it has moved. Not for: being a member (tail.py), the metadata of a
commit (broker/core/cursor.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest

# A commit for a consumer group without members must have the generation -1 and an empty member id.
_NO_MEMBER: Final = (-1, "")

T = TypeVar("T")


class Client(Protocol):
    """The part of KafkaRequests that KafkaGroups uses: the aiokafka client, and the method retried(), which repeats a
    request to Kafka that has failed.
    """

    @property
    def client(self) -> Any: ...

    async def retried(self, ask: Callable[[], Awaitable[T]], *, failed: Callable[[], None] = ...) -> T: ...


def check(code: int) -> None:
    """Raise the exception for an error code in an answer of Kafka. Do nothing if the code means success."""
    error = kafka_errors.for_code(code)
    if error is not kafka_errors.NoError:
        raise error


class KafkaGroups:
    """The requests about consumer groups. A request about one group goes to the Kafka broker that coordinates the
    group. names() asks all brokers.
    """

    def __init__(self, requests: Client) -> None:
        self._requests = requests
        self._coordinators: dict[str, int] = {}

    @property
    def _client(self) -> Any:
        return self._requests.client

    def forget(self, group: str) -> None:
        """Forget which broker coordinates the group, so that the next request looks it up."""
        self._coordinators.pop(group, None)

    async def commit(
        self,
        group: str,
        topic: str,
        cursors: Mapping[int, tuple[int, str]],
        *,
        member: tuple[int, str] = _NO_MEMBER,
    ) -> None:
        """Commit (offset, metadata) by partition for a consumer group. `member` is the generation and the id of the
        group member that commits. If the group has no members, do not pass `member`. Raises LogUnavailable if Kafka
        does not answer, or refuses the commit, for example because `member` is no longer in the group.
        """
        wanted = [(topic, [(partition, offset, text) for partition, (offset, text) in cursors.items()])]

        async def ask() -> None:
            request = OffsetCommitRequest(group, *member, -1, wanted)
            answer = await self._ask_coordinator(group, request)
            for _, partitions in answer.topics:
                for _, code in partitions:
                    check(code)

        await self._retried(ask, group)

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Return the newest committed (offset, metadata) by partition. Leave out partitions without a commit. Raises
        LogUnavailable if Kafka does not answer.
        """
        wanted = [(topic, list(partitions))]

        async def ask() -> dict[int, tuple[int, str]]:
            answer = await self._ask_coordinator(group, OffsetFetchRequest(group, wanted))
            check(getattr(answer, "error_code", 0))
            found = {}
            for _, rows in answer.topics:
                for partition, offset, text, code in rows:
                    check(code)
                    if offset >= 0:
                        found[partition] = (offset, text or "")
            return found

        return await self._retried(ask, group)

    async def expel(self, group: str, client_id: str) -> int:
        """Remove all members with this client id from a consumer group. Return the number of removed members.

        A removed member that is still running joins again by itself. Raises LogUnavailable if Kafka does not answer.
        """

        async def ask() -> int:
            answer = await self._ask_coordinator(group, DescribeGroupsRequest([group]))
            code, *_, members = answer.groups[0][:6]
            check(code)
            found = [member[0] for member in members if member[1] == client_id]
            for member_id in found:
                code = (await self._ask_coordinator(group, LeaveGroupRequest(group, member_id))).error_code
                # UnknownMemberIdError is no failure: the member has already left the group by itself.
                if kafka_errors.for_code(code) is not kafka_errors.UnknownMemberIdError:
                    check(code)
            return len(found)

        return await self._retried(ask, group)

    async def assignments(self, group: str, topic: str) -> list[set[int]]:
        """Return, for each group member, the set of a topic's partitions that the member owns. Members without an
        assignment are left out. So the list is empty during a rebalance.

        Raises LogUnavailable if Kafka does not answer.
        """

        async def ask() -> list[set[int]]:
            answer = await self._ask_coordinator(group, DescribeGroupsRequest([group]))
            code, *_, members = answer.groups[0][:6]
            check(code)
            given = [ConsumerProtocol.ASSIGNMENT.decode(member[4]) if member[4] else None for member in members]
            return [
                {one.partition for one in assignment.partitions() if one.topic == topic}
                for assignment in given
                if assignment is not None
            ]

        return await self._retried(ask, group)

    async def names(self) -> set[str]:
        """Return the names of the cluster's consumer groups on all brokers. Raises LogUnavailable if Kafka does not
        answer.
        """

        async def ask() -> set[str]:
            nodes = [broker.nodeId for broker in self._client.cluster.brokers()]
            answers = await asyncio.gather(*(self._client.send(node, ListGroupsRequest()) for node in nodes))
            for answer in answers:
                check(answer.error_code)
            return {group[0] for answer in answers for group in answer.groups}

        return await self._requests.retried(ask)

    async def delete(self, group: str) -> None:
        """Delete a consumer group with its committed offsets, if it exists. Raises LogUnavailable if Kafka does not
        answer.
        """

        async def ask() -> None:
            answer = await self._ask_coordinator(group, DeleteGroupsRequest([group]))
            for _, code in answer.results:
                if kafka_errors.for_code(code) is not kafka_errors.GroupIdNotFound:
                    check(code)

        await self._retried(ask, group)
        self._coordinators.pop(group, None)

    async def _ask_coordinator(self, group: str, request: Any) -> Any:
        return await self._client.send(await self._coordinator(group), request, group=ConnectionGroup.COORDINATION)

    async def _coordinator(self, group: str) -> int:
        node = self._coordinators.get(group)
        if node is None:
            brokers = self._client.cluster.brokers()
            # If Kafka has only one broker, it coordinates all groups. So look up only the first group's coordinator.
            # This first look-up makes Kafka create the topic __consumer_offsets, so it is needed even with one broker.
            if len(brokers) == 1 and self._coordinators:
                return int(next(iter(brokers)).nodeId)
            node = self._coordinators[group] = int(await self._client.coordinator_lookup(CoordinationType.GROUP, group))
        return node

    async def _retried(self, ask: Callable[[], Awaitable[T]], group: str) -> T:
        return await self._requests.retried(ask, failed=lambda: self.forget(group))
