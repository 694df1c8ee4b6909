"""The tests themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.listeners import Listeners, until


def test_every_test_file_has_a_name_of_its_own():
    """pytest can't tell two modules of one name apart, and then runs nothing at all."""
    names = Counter(path.name for path in Path(__file__).parent.parent.glob("*/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


async def test_a_listener_s_path_is_the_whole_one_wherever_the_network_cuts_it():
    request = b"POST /far HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n{}"
    async with Listeners() as listeners:
        _, writer = await asyncio.open_connection("127.0.0.1", listeners.port)
        for cut in range(1, len(request)):
            writer.write(request[:cut])
            await asyncio.sleep(0.001)
            writer.write(request[cut:])
            await until(lambda cut=cut: len(listeners.got) == cut, what="it got all of it", within_s=5)
        writer.close()
        await writer.wait_closed()
    assert {(one.path, one.body) for one in listeners.got} == {("far", b"{}")}
