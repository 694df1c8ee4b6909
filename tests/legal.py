"""Checks, in all tests of this process, that each delivery only ever goes where the table lets it."""

from __future__ import annotations

from typing import Any

from broker.core.delivery import MISSING, State, legal
from broker.delivery.dispatch.stream import Delivery


class IllegalTransition(AssertionError):
    """A delivery went from one state to another one that may not follow it."""


class _Checked:
    """In the place of the slot Delivery.state."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, delivery: Delivery | None, owner: type) -> Any:
        return self if delivery is None else self._slot.__get__(delivery, owner)

    def __set__(self, delivery: Delivery, state: State) -> None:
        try:
            before = self._slot.__get__(delivery, Delivery)
        except AttributeError:
            before = None
        if not (state is MISSING if before is None else legal(before, state)):
            raise IllegalTransition(f"{before} -> {state}")
        self._slot.__set__(delivery, state)


def check_every_transition() -> None:
    """From now on, and once: whoever calls it again changes nothing."""
    slot = Delivery.__dict__["state"]
    if not isinstance(slot, _Checked):
        Delivery.state = _Checked(slot)
