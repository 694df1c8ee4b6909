"""The bytes that each organization has stored, and the limit for all organizations of one account
(docs/decisions/0190).

For: counting each put and each record of its deliveries, recording the counts in `control` from time to time, and
refusing puts at the limit. Not for: adding up the recorded counts (broker/core/directory.py), bytes a second
(api/volume.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from broker.clock import now_ms
from broker.core.events import ControlEvent, Event, VolumeRecorded
from broker.errors import BrokerError, InDoubt, StorageFull, ViewBehind
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

# When a process has stored 1/64 of a tenant's limit, but at least 1 MiB, it records these bytes in `control`.
STEPS: Final = 64
STEP_BYTES_MIN: Final = 1 << 20
# A record counts 192 bytes more than its value. Kafka stores at most that many bytes besides the value.
# The 192 bytes: 61 for the batch's header, 27 for lengths and times, 77 for key and headers, and a reserve of 27.
RECORD_BYTES: Final = 192
# Kafka's index files take less than 1/128 of the log's bytes: at most 20 bytes for each 4,096 bytes (1/204).
_INDEX_PART: Final = 128
# For a tenant without a limit, a process records the stored bytes in `control` after each growth by 1/64.
# If a tenant without a limit stores less than 1 GiB, the bytes are recorded after each 16 MiB (1/64 of 1 GiB).
_UNBOUNDED_BYTES_MIN: Final = 1 << 30
# Every RECORD_S seconds (6 hours), a process records all bytes that it has stored and not recorded yet.
RECORD_S: Final = 6 * 3600.0
# A tenant can change queues, listeners and API keys until it stores 10 % more bytes than its limit.
_CHANGES_PART: Final = 10
_STOP_S: Final = 2.0
_SECOND_MS: Final = 1000
_NOTHING: Final[Counter[str]] = Counter()


class Control(Protocol):
    """Appends to the topic `control`."""

    async def append(self, event: ControlEvent) -> int:
        """See ports.ControlLog."""


def stored_size(size: int) -> int:
    """Return the most bytes that one copy of a record, with its part of Kafka's index files, takes on a broker's disk.
    `size` is the size of the record's value.
    """
    return size + RECORD_BYTES + size // _INDEX_PART


class StoredBytes:
    """The counts of the organizations' stored bytes, and the limit.

    `bytes_max` is the limit of each tenant. None means no limit. A tenant is an account with all organizations that it
    created. Organizations that the operator created have no limit.

    Stored bytes are counted by UTC day. The bytes of a day count until `retain_s` seconds after the day's end, or
    always if `retain_s` is None.
    """

    def __init__(
        self,
        control: Control,
        view: DirectoryView,
        *,
        bytes_max: int | None,
        retain_s: int | None = None,
        stored_size: Callable[[int], int] = stored_size,
    ) -> None:
        self._stored_size = stored_size
        self._control = control
        self._view = view
        self._bytes_max = bytes_max
        self._retain_s = retain_s
        # For each tenant: how many bytes it may store before its stored bytes are compared with the limit again.
        # The number of bytes that a tenant may still store can become negative, because several puts run concurrently.
        self._left: dict[str, int] = {}
        self._unrecorded: dict[str, Counter[str]] = {}  # by tenant, then by organization id
        self._recording: dict[str, asyncio.Task[None]] = {}  # by organization id

    def check(self, organization_id: str) -> None:
        """Raise StorageFull if the organization's tenant has reached its limit.

        This method is called for every put, so it must be fast.
        """
        tenant = self._tenant_of(organization_id)
        if self._left.get(tenant, 0) <= 0:
            self._grant(tenant, organization_id)

    def add(self, organization_id: str, size: int) -> None:
        """Count a record that is being stored as stored bytes of the organization. `size` is the size of the record's
        value in bytes.
        """
        size = self._stored_size(size)
        tenant = self._tenant_of(organization_id)
        self._left[tenant] = self._left.get(tenant, 0) - size
        counts = self._unrecorded.get(tenant)
        if counts is None:
            counts = self._unrecorded[tenant] = Counter()
        counts[organization_id] += size

    def count(self, organization_id: str, size: int) -> None:
        """Count the bytes of a record that a worker stores, such as the result of an attempt or an alert. Workers store
        such records even if the organization's tenant has reached its limit.
        """
        self.add(organization_id, size)
        tenant = self._tenant_of(organization_id)
        if self._left[tenant] <= 0:
            self._left[tenant] = step = self._step(tenant, self._bound_of(organization_id))
            if self._unrecorded_of(tenant).total() >= step:
                self._start_recording(tenant)

    def count_change(self, organization_id: str, size: int) -> None:
        """Count the bytes of a change, such as a new queue, a listener's update or a replay.

        Raises StorageFull if the organization's tenant stores at least 10 % more than its limit.
        """
        self.check_change(organization_id)
        self.add(organization_id, size)

    def check_change(self, organization_id: str) -> None:
        """Raise StorageFull if the organization's tenant stores at least 10 % more than its limit."""
        bound = self._bound_of(organization_id)
        if bound is not None and self._stored_by(self._tenant_of(organization_id)) >= bound + bound // _CHANGES_PART:
            raise self._full(organization_id)
        with suppress(StorageFull):
            self.check(organization_id)

    def follow(self, event: Event) -> None:
        """Note an event by which a process has recorded an organization's stored bytes: the next put of the
        organization's tenant checks the limit again. Ignore other events.

        An API process calls this method with each event of the topic `control`.
        """
        if isinstance(event, VolumeRecorded):
            self._left.pop(self._tenant_of(event.organization_id), None)

    def stored(self, organization_id: str) -> int:
        """Return the stored bytes of an organization, as far as this process knows. Bytes that other processes have
        counted, but not yet recorded in `control`, are missing.
        """
        organization = self._view.state.organizations.get(organization_id)
        recorded = 0 if organization is None else organization.bytes_since(self._since_ms())
        return recorded + self._unrecorded_of(self._tenant_of(organization_id)).get(organization_id, 0)

    def bound(self, organization_id: str) -> int | None:
        """Return how many bytes the organization may store. None means no limit.

        This number is the tenant's limit minus the stored bytes of the tenant's other organizations.
        """
        bound = self._bound_of(organization_id)
        if bound is None:
            return None
        others = self._stored_by(self._tenant_of(organization_id)) - self.stored(organization_id)
        return max(0, bound - others)

    def most(self, count: int) -> Iterator[tuple[str, int]]:
        """Yield the `count` organizations that store the most, with their bytes, the largest first."""
        every = ((one, self.stored(one)) for one in self._view.state.organizations)
        return iter(sorted(((one, size) for one, size in every if size), key=lambda pair: -pair[1])[:count])

    async def run(self) -> None:
        """Record the counts of stored bytes every six hours, also for organizations that store little.

        The function never returns.
        """
        while True:
            await asyncio.sleep(RECORD_S)
            await self._record_all()

    async def stop(self) -> None:
        """Record the counts, within two seconds."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._record_all()
        except TimeoutError:
            log.warning("volume.not_recorded organizations=%d", sum(map(len, self._unrecorded.values())))

    def _tenant_of(self, organization_id: str) -> str:
        return self._view.state.tenant_of(organization_id)

    def _bound_of(self, organization_id: str) -> int | None:
        """Return the limit of the organization's tenant."""
        organization = self._view.state.organizations.get(organization_id)
        return None if organization is None or organization.by_shell else self._bytes_max

    def _since_ms(self) -> int:
        return 0 if self._retain_s is None else now_ms() - self._retain_s * _SECOND_MS

    def _unrecorded_of(self, tenant: str) -> Counter[str]:
        return self._unrecorded.get(tenant, _NOTHING)

    def _stored_by(self, tenant: str) -> int:
        return self._view.state.bytes_of(tenant, self._since_ms()) + self._unrecorded_of(tenant).total()

    def _grant(self, tenant: str, organization_id: str) -> None:
        """Raise StorageFull if the tenant has reached its limit. Otherwise set how many bytes the tenant may store
        until the next check of its limit.
        """
        bound = self._bound_of(organization_id)
        step = self._step(tenant, bound)
        left = step if bound is None else min(step, bound - self._stored_by(tenant))
        if left <= 0 or self._unrecorded_of(tenant).total() >= step:
            self._start_recording(tenant)
        if left <= 0:
            raise self._full(organization_id)
        self._left[tenant] = left

    def _full(self, organization_id: str) -> StorageFull:
        stored, bound = self._stored_by(self._tenant_of(organization_id)), self._bound_of(organization_id)
        return StorageFull(
            f"this organization's account stores {stored} bytes in all its organizations and may store {bound}; "
            "the operator of this server can raise --organization-bytes-max, "
            "or have old messages deleted with --retain-messages"
        )

    def _step(self, tenant: str, bound: int | None) -> int:
        whole = max(_UNBOUNDED_BYTES_MIN, self._stored_by(tenant)) if bound is None else bound
        return max(STEP_BYTES_MIN, whole // STEPS)

    async def _record_all(self) -> None:
        for tenant in list(self._unrecorded):
            self._left.pop(tenant, None)
            self._start_recording(tenant)
        await asyncio.gather(*self._recording.values())

    def _start_recording(self, tenant: str) -> None:
        for organization_id, count in self._unrecorded_of(tenant).items():
            if organization_id not in self._recording:
                task = asyncio.create_task(self._record(tenant, organization_id, count))
                self._recording[organization_id] = task
                task.add_done_callback(partial(self._recorded, organization_id))

    def _recorded(self, organization_id: str, _: asyncio.Task[None]) -> None:
        del self._recording[organization_id]

    async def _record(self, tenant: str, organization_id: str, count: int) -> None:
        event = VolumeRecorded(at_ms=now_ms(), organization_id=organization_id, bytes=count)
        try:
            await self._view.seen(await self._control.append(event))
        # Kafka may have stored the event. So do not record its bytes again, because they could then count twice.
        except (InDoubt, ViewBehind) as error:
            log.warning("volume.in_doubt organization=%s bytes=%d error=%s", organization_id, count, error)
        except BrokerError as error:
            log.warning("volume.not_recorded organization=%s bytes=%d error=%s", organization_id, count, error)
            return
        counts = self._unrecorded[tenant]
        counts[organization_id] -= count
        if not counts[organization_id]:
            del counts[organization_id]
        if not counts:
            del self._unrecorded[tenant]
