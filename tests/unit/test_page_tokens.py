"""Page tokens: what they hide, and which are refused. Through the API, as clients use them."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from api_client import Api, make_api, problem
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from test_api_deliveries import kept

from api.page_tokens import PageTokens
from api.problems import BadParameter
from broker.commands.organizations import create_key, create_organization
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.read_slots import ReadSlots
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from tests.outstanding_topic import OutstandingTopic

KAFKA = KafkaSettings(bootstrap="unused", partitions=2)


@pytest.fixture
def topic() -> OutstandingTopic:
    return OutstandingTopic()


@pytest.fixture
async def api(topic: OutstandingTopic) -> Api:
    made = await make_api(outstanding=KafkaOutstanding(KAFKA, topic, ReadSlots()))
    made.key = await made.key_with(("queues", "messages", "keys", "audit"))
    return made


async def lists(api: Api, topic: OutstandingTopic, name: str) -> list[str]:
    """The paths of the lists of a queue that go on at offsets, each of more than a page of one."""
    queue_id = await api.queue(name)
    listener_id = await api.listener(queue_id)
    for number in range(3):
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "m"})
        await topic.keep(kept(listener_id, number))
    return [
        f"/v1/queues/{queue_id}/messages",
        f"/v1/queues/{queue_id}/listeners/{listener_id}/deliveries",
        "/v1/log",
    ]


async def token_of(api: Api, path: str) -> str:
    """The token of the second page."""
    answer = await api.get(f"{path}?limit=1")
    assert answer.status_code == 200
    if path == "/v1/log":
        return orjson.loads(answer.content.splitlines()[-1])["cursor"]
    return parse_qs(urlsplit(answer.json()["_links"]["next"]["href"]).query)["cursor"][0]


def raw(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


async def test_a_token_has_the_documented_form_and_tells_nothing_without_the_key(api, topic):
    (key,) = [
        HKDF(SHA256(), 32, salt=None, info=b"everput page token").derive(base64.urlsafe_b64decode(one))
        for one in (api.settings.sealing_key,)
    ]
    for path in await lists(api, topic, "orders"):
        first, second = await token_of(api, path), await token_of(api, path)
        assert first != second  # a nonce of its own: two equal places can't be told
        for token in (first, second):
            assert raw(token)[:1] == b"\x01"
            place = AESGCM(key).decrypt(raw(token)[1:13], raw(token)[13:], f"{api.organization_id}\0{path}".encode())
            assert place
            assert place not in raw(token)


async def test_a_token_of_another_list_is_refused(api, topic):
    paths = await lists(api, topic, "orders")
    tokens = {path: await token_of(api, path) for path in [*paths, *(await lists(api, topic, "others"))]}
    for path in tokens:
        for whose, token in tokens.items():
            answer = await api.get(f"{path}?limit=1&cursor={token}")
            if whose == path:
                assert answer.status_code == 200
            else:
                assert problem(answer, 422, "bad-parameter")["errors"][0]["parameter"] == "cursor"


async def test_a_token_of_another_organization_is_refused(api, topic):
    *_, log = await lists(api, topic, "orders")
    token = await token_of(api, log)
    control = api.log.control
    organization = await create_organization(control, control, name="another")
    _, theirs = await create_key(control, control, organization_id=organization.id, name="theirs", scopes=("audit",))
    answer = await api.bare.get(f"{log}?limit=1", headers={"x-api-key": theirs})
    assert answer.status_code == 200
    answer = await api.bare.get(f"{log}?limit=1&cursor={token}", headers={"x-api-key": theirs})
    assert problem(answer, 422, "bad-parameter")["errors"][0]["parameter"] == "cursor"


async def test_what_is_no_token_is_refused(api, topic):
    for path in await lists(api, topic, "orders"):
        token = await token_of(api, path)
        changed = base64.urlsafe_b64encode(raw(token)[:-1] + bytes([raw(token)[-1] ^ 1])).decode().rstrip("=")
        other_version = base64.urlsafe_b64encode(b"\x02" + raw(token)[1:]).decode().rstrip("=")
        for wrong in ("", "zzz", "W10", "%C3%BC", token[:20], token + "AAAA", changed, other_version, "A" * 5_000):
            answer = await api.get(f"{path}?limit=1&cursor={wrong}")
            assert problem(answer, 422)["errors"][0]["parameter"] == "cursor", wrong


def test_a_token_outlives_a_change_of_the_sealing_key():
    old, new = new_sealing_key(), new_sealing_key()
    token = PageTokens(Sealer(old)).seal(b"place", "o", "/p")
    both = PageTokens(Sealer(f"{new},{old}"))
    assert both.open(token, "o", "/p") == b"place"
    newer = both.seal(b"place", "o", "/p")
    assert PageTokens(Sealer(new)).open(newer, "o", "/p") == b"place"
    for tokens, one in ((PageTokens(Sealer(new)), token), (PageTokens(Sealer(old)), newer)):
        with pytest.raises(BadParameter):
            tokens.open(one, "o", "/p")
