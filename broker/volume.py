"""The bytes that each organization has stored, and the bound on them (docs/decisions/0190).

For: counting each put and each record of its deliveries, recording the sums in `control` now and then, refusing puts of
an organization at its bound. Not for: folding the sums (broker/core/directory.py), bytes a second (api/volume.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

from broker.commands.directory import now_ms
from broker.core.directory import Organization
from broker.core.events import ControlEvent, Event, VolumeRecorded
from broker.errors import BrokerError, InDoubt, StorageFull, ViewBehind
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

STEPS: Final = 64  # a sum is recorded when it has come to this part of the bound, or of what is stored without a bound
STEP_BYTES_MIN: Final = 1 << 20
_UNBOUNDED_BYTES_MIN: Final = 1 << 30  # without a bound, steps are at least a part of this
RECORD_S: Final = 6 * 3600.0  # a smaller sum is recorded this often
_CHANGES_PART: Final = (
    10  # beyond the bound, changes may store this part of it: a full organization can mend its listeners
)
_STOP_S: Final = 2.0
_SECOND_MS: Final = 1000


class Control(Protocol):
    """The `control` topic."""

    async def append(self, event: ControlEvent) -> int:
        """See ports.ControlLog."""


class StoredBytes:
    """Counts in one process.

    bytes_max: the bound of each organization that was not made from the shell; None for no bound.
    retain_s: what was stored earlier no longer counts; None: everything counts.
    """

    def __init__(
        self, control: Control, view: DirectoryView, *, bytes_max: int | None, retain_s: int | None = None
    ) -> None:
        self._control = control
        self._view = view
        self._bytes_max = bytes_max
        self._retain_s = retain_s
        # All by organization id. A grant is what may be stored before the bound is looked at again.
        self._left: dict[str, int] = {}  # of the grant; below 0 where puts at the same moment exceeded it
        self._granted: dict[str, int] = {}
        self._unrecorded: dict[str, int] = {}  # without what was used of the grant
        self._recording: dict[str, asyncio.Task[None]] = {}

    def check(self, organization_id: str) -> None:
        """StorageFull when the organization is at its bound. Costs one look-up while a grant lasts."""
        if self._left.get(organization_id, 0) <= 0:
            self._grant(organization_id)

    def add(self, organization_id: str, size: int) -> None:
        """Count bytes that are being stored."""
        self._left[organization_id] = self._left.get(organization_id, 0) - size

    def count(self, organization_id: str, size: int) -> None:
        """Count bytes that are stored whatever the bound is: a worker's records of deliveries."""
        self.add(organization_id, size)
        if self._left[organization_id] <= 0:
            self._settle(organization_id)
            step = self._step(self.bound(organization_id), self.stored(organization_id))
            if self._unrecorded.get(organization_id, 0) >= step:
                self._start_recording(organization_id)
            self._left[organization_id] = self._granted[organization_id] = step

    def count_change(self, organization_id: str, size: int) -> None:
        """Count the bytes of a change of queues, listeners or keys (StorageFull, some way beyond the bound)."""
        bound = self.bound(organization_id)
        if bound is not None and self.stored(organization_id) >= bound + bound // _CHANGES_PART:
            raise self._full(organization_id)
        with suppress(StorageFull):
            self.check(organization_id)
        self.add(organization_id, size)

    def follow(self, event: Event) -> None:
        """Look at the bound again when any process has recorded a sum; called with each event that is folded."""
        if isinstance(event, VolumeRecorded):
            self._settle(event.organization_id)

    def stored(self, organization_id: str) -> int:
        """Bytes stored, as far as this process knows: what other processes have not recorded yet is missing."""
        organization = self._view.state.organizations.get(organization_id)
        used = self._granted.get(organization_id, 0) - self._left.get(organization_id, 0)
        return self._recorded(organization) + self._unrecorded.get(organization_id, 0) + used

    def bound(self, organization_id: str) -> int | None:
        """The most bytes that the organization may store; None for no bound."""
        organization = self._view.state.organizations.get(organization_id)
        return None if organization is None or organization.by_shell else self._bytes_max

    def most(self, count: int) -> Iterator[tuple[str, int]]:
        """The organizations that store most, by id, with their bytes."""
        every = ((one, self.stored(one)) for one in self._view.state.organizations)
        return iter(sorted(((one, size) for one, size in every if size), key=lambda pair: -pair[1])[:count])

    async def run(self) -> None:
        """For ever: record what has been counted, also of organizations that store little."""
        while True:
            await asyncio.sleep(RECORD_S)
            await self._record_all()

    async def stop(self) -> None:
        """Record what has been counted, bounded in time."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._record_all()
        except TimeoutError:
            log.warning("volume.not_recorded organizations=%d", len(self._unrecorded))

    def _grant(self, organization_id: str) -> None:
        """Let the organization store another step (StorageFull)."""
        self._settle(organization_id)
        bound = self.bound(organization_id)
        stored = self.stored(organization_id)
        step = self._step(bound, stored)
        left = step if bound is None else min(step, bound - stored)
        if left <= 0 or self._unrecorded.get(organization_id, 0) >= step:
            self._start_recording(organization_id)
        if left <= 0:
            raise self._full(organization_id)
        self._left[organization_id] = self._granted[organization_id] = left

    def _full(self, organization_id: str) -> StorageFull:
        stored, bound = self.stored(organization_id), self.bound(organization_id)
        return StorageFull(
            f"this organization stores {stored} bytes and may store {bound}; who runs this server can raise "
            "--organization-bytes-max, or have old messages deleted with --retain-messages"
        )

    def _settle(self, organization_id: str) -> None:
        """End the grant: what was used of it is unrecorded."""
        used = self._granted.pop(organization_id, 0) - self._left.pop(organization_id, 0)
        if used:
            self._unrecorded[organization_id] = self._unrecorded.get(organization_id, 0) + used

    @staticmethod
    def _step(bound: int | None, stored: int) -> int:
        whole = max(_UNBOUNDED_BYTES_MIN, stored) if bound is None else bound
        return max(STEP_BYTES_MIN, whole // STEPS)

    def _recorded(self, organization: Organization | None) -> int:
        if organization is None:
            return 0
        since_ms = 0 if self._retain_s is None else now_ms() - self._retain_s * _SECOND_MS
        return organization.bytes_since(since_ms)

    async def _record_all(self) -> None:
        for organization_id in list(self._granted):
            self._settle(organization_id)
        for organization_id in list(self._unrecorded):
            self._start_recording(organization_id)
        await asyncio.gather(*self._recording.values())

    def _start_recording(self, organization_id: str) -> None:
        if organization_id in self._unrecorded and organization_id not in self._recording:
            task = asyncio.create_task(self._record(organization_id))
            self._recording[organization_id] = task
            task.add_done_callback(lambda _: self._recording.pop(organization_id, None))

    async def _record(self, organization_id: str) -> None:
        count = self._unrecorded[organization_id]
        event = VolumeRecorded(at_ms=now_ms(), organization_id=organization_id, bytes=count)
        try:
            await self._view.seen(await self._control.append(event))
        except (InDoubt, ViewBehind) as error:  # it is stored, or probably is: recording it again would count it twice
            log.warning("volume.in_doubt organization=%s bytes=%d error=%s", organization_id, count, error)
        except BrokerError as error:
            log.warning("volume.not_recorded organization=%s bytes=%d error=%s", organization_id, count, error)
            return
        left = self._unrecorded[organization_id] - count
        if left:
            self._unrecorded[organization_id] = left
        else:
            del self._unrecorded[organization_id]
