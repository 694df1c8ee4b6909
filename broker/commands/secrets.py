"""Commands on a listener's signing secrets: show the secret, and replace it so that no message is rejected.

For: rotation, after which the former secrets also sign for a while. Not for: signing (broker/core/signing.py),
encrypting the secrets (broker/sealing.py).
"""

from __future__ import annotations

from typing import Final

from broker.commands.context import Context, event_fields, find_listener, record
from broker.commands.listeners import signing_secret
from broker.core import events as ev
from broker.core.entities import Listener
from broker.errors import NotFound, QuotaReached
from broker.ports import ControlLog, DirectoryView
from broker.sealing import Sealer

OVERLAP_S: Final = 86_400
OVERLAP_S_MAX: Final = 30 * 86_400
FORMER_MAX: Final = 3


class SecretCommands:
    """The commands on signing secrets. `sealer` encrypts the secrets for the log."""

    def __init__(self, control: ControlLog, view: DirectoryView, sealer: Sealer) -> None:
        self._control = control
        self._view = view
        self._sealer = sealer

    async def show(self, context: Context, queue_id: str, listener_id: str) -> tuple[Listener, str]:
        """Return the listener and its newest signing secret. Raises NotFound if there is no such listener."""
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        return listener, self._sealer.open(listener.sealed_secret)

    async def rotate(
        self, context: Context, queue_id: str, listener_id: str, *, secret: str | None, overlap_s: int
    ) -> tuple[Listener, str]:
        """Give the listener a new signing secret: the given one, or a random one. Return the listener and the secret.
        For the next `overlap_s` seconds, requests are also signed with the former secrets. If a former secret was to
        end earlier, it still ends at the earlier time.

        Raises Refused if the new secret is not valid, and NotFound if there is no such listener. Raises QuotaReached if
        FORMER_MAX former secrets still sign requests, and `overlap_s` is not 0.
        """
        new = signing_secret(secret)
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        going_on = [ends for _, ends in listener.former_secrets if ends > context.at_ms]
        if overlap_s and len(going_on) >= FORMER_MAX:
            raise QuotaReached(
                f"Requests to this listener are already signed with {FORMER_MAX} former secrets. This is the limit. "
                "Wait until a former secret expires, or set `overlap_s` to 0: then all former secrets end now, so give "
                "the new secret to the receiver first.",
                pointer="/overlap_s",
            )
        event = ev.ListenerSecretRotated(
            **event_fields(context),
            listener_id=listener_id,
            sealed_secret=self._sealer.seal(new),
            former_end_at_ms=context.at_ms + overlap_s * 1000,
        )
        await record(self._control, self._view, event)
        rotated = self._view.state.listener(context.organization_id, listener_id)
        if rotated is None:
            raise NotFound("The listener was deleted while this request was running.")
        return rotated, new
