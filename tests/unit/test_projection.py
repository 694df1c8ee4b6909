"""The directory's projection without Kafka: waiting, and being told."""

from __future__ import annotations

import asyncio

import pytest

from broker.core import events as ev
from broker.errors import LogUnavailable, ViewBehind
from broker.kafka.client import client_options
from broker.settings import KafkaSettings
from projections.app import _credentials
from projections.directory import DirectoryProjection
from tests.apps import said_to_clients


class Control:
    """An end that the test sets; counts how often it was asked for."""

    def __init__(self) -> None:
        self.end = 0
        self.asked = 0
        self.down = False

    async def append(self, event: ev.ControlEvent) -> int:
        raise NotImplementedError

    async def end_offset(self) -> int:
        self.asked += 1
        end = self.end
        await asyncio.sleep(0.01)
        if self.down:
            raise LogUnavailable("down")
        return end


def organization(name: str) -> ev.Event:
    return ev.OrganizationCreated(at_ms=1, organization_id=name, name=name)


async def test_waiters_are_woken_in_the_order_of_their_offsets_and_no_sooner():
    view = DirectoryProjection(Control())
    woken: list[int] = []

    async def wait(offset: int) -> None:
        await view.seen(offset)
        woken.append(offset)

    tasks = [asyncio.create_task(wait(offset)) for offset in (2, 0, 1)]
    for offset in range(3):
        await asyncio.sleep(0)
        assert woken == list(range(offset))
        view.fold(offset, organization(str(offset)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def test_what_is_folded_already_is_not_waited_for():
    view = DirectoryProjection(Control())
    view.fold(0, organization("o"))
    await view.seen(0, timeout_s=0)


async def test_an_offset_that_comes_again_is_not_folded_again():
    view = DirectoryProjection(Control())
    heard: list[ev.Event] = []
    view.on_change(heard.append)
    view.fold(0, organization("o"))
    view.fold(0, organization("o"))
    assert len(heard) == 1
    assert view.position == 1
    assert not view.passed_over(0)


async def test_many_who_ask_at_once_share_two_look_ups_of_the_end():
    control = Control()
    view = DirectoryProjection(control)
    control.end = 1
    view.fold(0, organization("o"))
    await asyncio.gather(*(view.caught_up() for _ in range(100)))
    assert control.asked == 2


async def test_a_look_up_that_began_before_one_asked_does_not_count():
    control = Control()
    view = DirectoryProjection(control)
    early = asyncio.create_task(view.caught_up())
    while not control.asked:
        await asyncio.sleep(0)
    late = asyncio.create_task(view.caught_up(timeout_s=0.2))
    control.end = 1
    await early
    with pytest.raises(ViewBehind, match="has not applied offset") as refused:
        await late
    assert said_to_clients(refused.value) == "This process has not yet read the newest part of the log. Try again."


async def test_after_a_look_up_that_failed_the_next_one_is_tried():
    control = Control()
    view = DirectoryProjection(control)
    control.down = True
    failed = await asyncio.gather(*(view.caught_up() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, LogUnavailable) for one in failed)
    control.down = False
    await view.caught_up()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_connects_as_every_other_kafka_client(protocol, mechanism):
    kafka = KafkaSettings(
        bootstrap="a:1,b:2",
        security_protocol=protocol,
        sasl_mechanism=mechanism,
        sasl_username="name",
        sasl_password="secret",
    )
    credentials = _credentials(client_options(kafka))
    assert credentials.protocol.value == protocol
    assert credentials.mechanism.value == mechanism
    assert (credentials.username, credentials.password) == ("name", "secret")
    assert (credentials.ssl_context is not None) == (protocol == "SASL_SSL")


def test_tls_without_sasl_and_neither_of_them():
    tls = _credentials(client_options(KafkaSettings(bootstrap="a:1", security_protocol="SSL")))
    assert tls.protocol.value == "SSL"
    assert tls.context is not None
    assert _credentials(client_options(KafkaSettings(bootstrap="a:1"))) is None
