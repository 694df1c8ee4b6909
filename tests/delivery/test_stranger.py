"""The API process that held a tunnel is gone, and its port is another service's by now. Real sockets."""

from __future__ import annotations

from broker.core.circuit import State
from broker.outbound.addresses import TUNNEL_PROOF, tunnel_proof
from tests.delivery.office import OK, until

TOKEN = "a-token"


def proven(token: str) -> bytes:
    return OK.replace(b"\r\n\r\n", f"\r\n{TUNNEL_PROOF}: {tunnel_proof(token)}\r\n\r\n".encode())


async def test_what_a_stranger_answers_in_place_of_a_tunnel_counts_for_nothing(serve, open_office):
    said = OK

    async def answers(_request, writer):
        writer.write(said)

    server = await serve(answers)
    url = f"tunnel://127.0.0.1:{server.port}/{TOKEN}"
    office = await open_office(f"{url}/notify", liveness_url=f"{url}/live", max_attempts=1)
    office.put(3)
    away = b"HTTP/1.1 599 Away\r\ncontent-length: 0\r\n\r\n"
    for wrong in (OK, proven("another-token"), away, b"220 mail ESMTP\r\n"):
        said = server.alive = wrong
        probes = len(server.probes)
        await until(lambda before=probes: len(server.probes) > before + 1)
        assert office.dispatcher.circuit.state is State.OPEN
    office.keep_books()
    assert not office.outcomes, "it was no attempt"
    said = server.alive = proven(TOKEN)
    await office.all_settled()
    office.check_books()
    assert {tuple(rows) for rows in office.outcomes.values()} == {((1, "delivered", 200),)}


async def test_other_listeners_need_no_proof_and_are_sent_none(serve, open_office):
    async def answers(_request, writer):
        writer.write(OK)

    server = await serve(answers)
    office = await open_office(server)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert not any(TUNNEL_PROOF in post.headers for post in server.posts)
