"""A dispatcher that goes while it has deliveries from `outstanding`, and one that comes in its place. Real sockets."""

from __future__ import annotations

from broker.core.flow import WHOLE
from broker.delivery.dispatch.dispatcher import Dispatcher
from tests.delivery.test_due import Taker, held_by_its_dispatcher, serve_all
from tests.outstanding_topic import OutstandingTopic


async def test_what_a_dispatcher_had_when_it_was_removed_is_due_again_when_there_is_another(serve, open_office):
    taker, topic = Taker(), OutstandingTopic()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_in_flight=1, timeout_ms=60_000)
    await held_by_its_dispatcher(office, server, taker, topic)
    former = office.dispatchers.pop("l-1")
    former.close()
    office.outstanding.removed("l-1")
    parts = former.connections.network, former.assignment, former.queue, former.listener, former.opened
    another = Dispatcher(*parts, dice=lambda: 0.0, share=WHOLE, wants_tick=office.ticks.add, gone=lambda _: None)
    office.dispatcher = office.dispatchers["l-1"] = another
    office.partition.place(another)
    taker.free.set()
    await serve_all(office, lambda: not len(office.outstanding))
    await office.outstanding.flush()
    assert sorted(post.message_id for post in server.posts) == ["m-1", "m-1", "m-2"]
    assert not topic.kept()
