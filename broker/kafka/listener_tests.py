"""The results of listener tests, in the topic `deliveries` (ports.ListenerTestLog).

For: appending the event of one test. Not for: the test itself (broker/outbound/listener_test.py), outcomes of
deliveries (appender.py).
"""

from __future__ import annotations

from broker.core.codec import encode
from broker.core.events import ListenerTested
from broker.disk import Refusal
from broker.errors import InDoubt, LogUnavailable
from broker.kafka.appender import Appender


class ListenerTestsTopic:
    """The writer of the results of listener tests. It appends each result to the topic `deliveries`."""

    def __init__(self, topic: Appender) -> None:
        self._topic = topic

    def refuse(self, refusal: Refusal | None) -> None:
        """See KafkaLog.refuse."""
        self._topic.refusal = refusal

    async def append(self, event: ListenerTested) -> None:
        """See ports.ListenerTestLog."""
        try:
            await self._topic.append_one(event.partition, event.listener_id.encode(), encode(event))
        except LogUnavailable as error:
            raise InDoubt(
                "The test was sent to the listener, but Kafka did not acknowledge its result. The log may have the "
                "result: look for events of the type listener.tested before you repeat the test."
            ) from error
