"""Which errors of a Kafka client are tried again (KafkaRequests.retried). The client is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiokafka import errors as kafka_errors

from broker.errors import LogUnavailable
from broker.kafka.requests import KafkaRequests


async def nothing() -> None:
    pass


def requests() -> SimpleNamespace:
    return SimpleNamespace(_timeout_ms=60_000, client=SimpleNamespace(force_metadata_update=nothing))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),  # of uvloop
        ConnectionResetError(),
        kafka_errors.LeaderNotAvailableError(),
    ],
)
async def test_a_request_is_tried_again_after_an_error_that_passes(error: Exception):
    errors = [error, error]

    async def ask() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    assert await KafkaRequests.retried(requests(), ask) == "answer"


async def test_a_refused_request_is_not_tried_again():
    async def ask() -> None:
        raise kafka_errors.TopicAuthorizationFailedError

    with pytest.raises(LogUnavailable, match="TopicAuthorizationFailedError"):
        await KafkaRequests.retried(requests(), ask)
