"""E-mail, to a real SMTP server: a mail for a POST, a check for a GET, and an answer for both."""

from __future__ import annotations

import ssl

import orjson
import pytest

from broker.core.formats import mail_text
from broker.outbound.addresses import Resolver, parse_url, refuse_url
from broker.outbound.mail import Mailer
from broker.outbound.single_request import ask
from broker.settings import SmtpSettings
from tests.listeners import nobody
from tests.smtp import receiving_mail

OPS = "mailto:ops@example.com"
ALERT = {
    "type": "listener.down",
    "state": "raised",
    "text": "The listener größe is down.",
    "listener": {"id": "l", "name": "größe"},
    "queue": {"id": "q", "name": "orders"},
    "link": "https://everput.example/console",
    "facts": {"error": "refused"},
}


def post(data: str) -> bytes:
    body = orjson.dumps({"queue": {"id": "q", "name": "q"}, "message": {"id": "m-1", "name": "m", "data": data}})
    head = b"POST ops@example.com HTTP/1.1\r\nhost: \r\nwebhook-id: m-1\r\neverput-attempt: 1\r\n"
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def settings(port: int, **more: str) -> SmtpSettings:
    return SmtpSettings(host="127.0.0.1", port=port, tls=False, sender="everput@example.com", **more)


async def send(request: bytes, mailer: Mailer | None) -> tuple[int | None, str | None]:
    resolver = Resolver((), mailer=mailer)
    answer = await ask(request, parse_url(OPS), resolver, ssl.create_default_context(), timeout_s=60)
    return answer.status, answer.error


async def test_an_alert_becomes_a_mail():
    async with receiving_mail() as inbox:
        answer = await send(post(orjson.dumps(ALERT).decode()), Mailer(settings(inbox.port)))
        assert answer == (200, None)
        (mail,) = inbox.mails
        assert inbox.recipients == ["ops@example.com"]
        assert (mail["From"], mail["To"]) == ("everput@example.com", "ops@example.com")
        assert mail["Subject"] == "Everput: listener.down orders > größe"
        assert (mail["Message-ID"], mail["Auto-Submitted"]) == ("<m-1@everput>", "auto-generated")
        text = mail.get_content().replace("\r\n", "\n")
        assert text == "The listener größe is down.\n\nhttps://everput.example/console\n\nerror: refused\n"


@pytest.mark.parametrize(
    ("reply", "status"), [("550 No such user", 422), ("451 Try again later", 503), ("", 200)], ids=["550", "451", "250"]
)
async def test_a_refused_mail_is_answered_as_a_listener_would(reply, status):
    async with receiving_mail() as inbox:
        inbox.reply = reply
        assert await send(post("d"), Mailer(settings(inbox.port))) == (status, None)
        assert len(inbox.mails) == (status == 200)


async def test_what_the_mail_server_says_is_the_body_of_the_answer():
    async with receiving_mail() as inbox:
        inbox.reply = "550 No such user"
        resolver, tls = Resolver((), mailer=Mailer(settings(inbox.port))), ssl.create_default_context()
        answer = await ask(post("d"), parse_url(OPS), resolver, tls, timeout_s=60, keeps=True)
        assert (answer.status, answer.received.partition(b"\r\n\r\n")[2]) == (422, b"550 No such user")


async def test_a_probe_asks_the_mail_server_and_sends_nothing():
    async with receiving_mail() as inbox:
        probe = b"GET ops@example.com HTTP/1.1\r\nhost: \r\n\r\n"
        assert await send(probe, Mailer(settings(inbox.port))) == (200, None)
        assert inbox.mails == []
    with nobody() as port:
        assert await send(probe, Mailer(settings(port))) == (503, None)


async def test_no_password_is_sent_in_the_clear_and_no_mail_without_a_server():
    async with receiving_mail() as inbox:
        mailer = Mailer(settings(inbox.port, username="u", password="p"))
        assert await send(post("d"), mailer) == (503, None)
        assert inbox.mails == []
    assert await send(post("d"), None) == (None, "no-mail-server")


def test_no_name_can_add_a_header_to_a_mail():
    subject, _ = mail_text(
        orjson.dumps({"message": {"name": "n", "data": orjson.dumps({**ALERT, "type": "a\r\nBcc: b@c"}).decode()}})
    )
    assert "\n" not in subject
    assert "\r" not in subject


@pytest.mark.parametrize(
    "url",
    [
        "mailto:",
        "mailto:ops",
        "mailto:@example.com",
        "mailto:a@b,c@d",
        "mailto:a@b?cc=c@d",
        "mailto:a@b\r\nRCPT TO:<c@d>",
        "mailto:a b@c",
        "mailto:a@b-",
    ],
)
def test_a_mailto_url_is_one_plain_address(url):
    with pytest.raises(ValueError, match=r"one e-mail address|characters"):
        parse_url(url)
    assert refuse_url(OPS, ()) == "The URL must start with http:// or https://."
    assert refuse_url(OPS, (), mail=True) is None
