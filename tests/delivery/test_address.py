"""A listener whose address changes while attempts are under way. Real sockets."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from broker.core.flow import WHOLE
from broker.outbound.connection import connect
from tests.delivery.office import OK, until


def moved_to(dispatcher, server) -> None:
    dispatcher.update(replace(dispatcher.listener, notify_url=server.url), share=WHOLE)


async def answers_200(_request, writer):
    writer.write(OK)


async def test_once_the_address_is_changed_the_former_one_gets_only_what_it_had_already(serve, open_office):
    free = asyncio.Event()

    async def kept_back(_request, writer):
        await free.wait()
        writer.write(OK)

    old, new = await serve(kept_back), await serve(answers_200)
    office = await open_office(old, max_in_flight=4, timeout_ms=60_000)
    office.put(50)
    await until(lambda: len(old.posts) == 4)
    moved_to(office.dispatcher, new)
    free.set()
    await office.all_settled()
    office.check_books()
    assert len(old.posts) == 4
    assert len(new.posts) == 46
    await until(lambda: old.open == 0)


async def test_a_connection_begun_before_the_change_carries_nothing_to_the_former_address(serve, open_office):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late(owner, target, resolver, tls):
        begun.set()
        await go_on.wait()
        return await connect(owner, target, resolver, tls)

    old, new = await serve(answers_200), await serve(answers_200)
    office = await open_office(old, office={"connect": late}, timeout_ms=60_000)
    office.put(3)
    await begun.wait()
    moved_to(office.dispatcher, new)
    go_on.set()
    await office.all_settled()
    office.check_books()
    assert not old.posts
    assert sorted(post.message_id for post in new.posts) == ["m-0", "m-1", "m-2"]


async def test_the_former_addresss_410_does_not_pause_the_listener_at_its_new_one(serve, open_office):
    free = asyncio.Event()

    async def gone(_request, writer):
        await free.wait()
        writer.write(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n")

    old, new = await serve(gone), await serve(answers_200)
    office = await open_office(old, timeout_ms=60_000)
    office.put()
    await until(lambda: old.posts)
    moved_to(office.dispatcher, new)
    free.set()
    await office.all_settled()
    office.check_books()
    assert office.outcomes[0] == [(1, "failed", 410), (2, "delivered", 200)]
    assert not office.gone


async def test_once_the_address_is_changed_nothing_leads_to_the_former_one(serve, open_office):
    old, new = await serve(answers_200), await serve(answers_200)
    office = await open_office(old)
    office.put(3)
    await office.all_settled()
    assert old.open > 0
    moved_to(office.dispatcher, new)
    await until(lambda: old.open == 0)
    office.put()
    await office.all_settled()
    assert len(new.posts) == 1
