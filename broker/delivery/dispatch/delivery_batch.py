"""The deliveries of one request that sends a batch of messages.

For: telling them from a single delivery. It is a module of its own because mypyc can't compile a class that inherits
from tuple (docs/operations.md, "Compiled modules"). Not for: choosing the deliveries (batches.py).
"""

from __future__ import annotations

from broker.delivery.dispatch.stream import Delivery


class DeliveryBatch(tuple[Delivery, ...]):
    """The deliveries (one or more) whose messages one request sends as a batch, in the order of the request's body."""

    __slots__ = ()
