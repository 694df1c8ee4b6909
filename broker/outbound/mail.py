"""E-mail to a listener of the alerts: its `notify_url` is a `mailto:` URL, and a mail server takes its messages.

For: a transport that stands in for a network connection. It gets the same request as an HTTP listener would, hands a
mail to the SMTP server (RFC 5321), and answers with an HTTP status, so that retries, limits and the circuit work as for
every listener. Not for: what the mail says (broker/core/formats.py), who may have such a listener
(broker/commands/listeners.py).
"""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any, Final

from broker.core.formats import mail_text
from broker.settings import SmtpSettings

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0  # Each step of the conversation with the mail server takes at most this many seconds.
_AT_ONCE: Final = 4  # A process hands over at most this many mails to the mail server concurrently.
_ID: Final = b"\r\nwebhook-id: "
OK, _REFUSED, _LATER = 200, 422, 503
_TRANSIENT: Final = 400  # An SMTP reply code from 400 to 499 means that the mail server refuses a mail for now.
_PERMANENT: Final = 500  # An SMTP reply code of 500 or more means that the mail server refuses a mail permanently.
_SAID_CHARS_MAX: Final = 500


class Mailer:
    """The mail server of this process."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def handle(self, request: bytes, recipient: str) -> tuple[int, str]:
        """Send the mail that a POST request asks for, or check the mail server if the request is a GET. Return an HTTP
        status and a text: the mail server's reply or the name of an error, or nothing for a mail that the server has
        accepted.
        """
        mail = _mail(request, self._settings.sender, recipient) if request.startswith(b"POST ") else None
        async with self._slots:
            return await asyncio.to_thread(self._hand_over, mail, recipient)

    async def send(self, recipient: str, subject: str, text: str) -> tuple[int, str]:
        """Hand a mail to the mail server. If the server accepts the mail, return 200 and an empty text. Otherwise,
        return an HTTP error status, and the server's reply or the name of an error.
        """
        mail = _draft(self._settings.sender, recipient, subject, text)
        async with self._slots:
            return await asyncio.to_thread(self._hand_over, mail, recipient)

    def _hand_over(self, mail: EmailMessage | None, recipient: str) -> tuple[int, str]:
        try:
            with self._connected() as server:
                if mail is None:
                    return _answer(*server.noop())
                server.send_message(mail, to_addrs=[recipient])
                return OK, ""
        except smtplib.SMTPRecipientsRefused as error:
            return _answer(*next(iter(error.recipients.values())))
        except smtplib.SMTPDataError as error:
            return _answer(error.smtp_code, error.smtp_error)
        except (smtplib.SMTPException, OSError) as error:
            log.warning("mail.failed server=%s error=%r", self._settings.host, error)
            return _LATER, type(error).__name__

    def _connected(self) -> smtplib.SMTP:
        """Connect to the mail server, and sign in if a user name and a password are set. Raises SMTPException or
        OSError.

        The connection is encrypted if the URL is smtps://, or if the server offers STARTTLS. Raises
        SMTPNotSupportedError if a password is set, but the connection is not encrypted.
        """
        settings, context = self._settings, ssl.create_default_context()
        server: smtplib.SMTP
        if settings.tls:
            server = smtplib.SMTP_SSL(settings.host, settings.port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(settings.host, settings.port, timeout=TIMEOUT_S)
        try:
            self._encrypt_and_sign_in(server, context)
        except BaseException:
            server.close()
            raise
        return server

    def _encrypt_and_sign_in(self, server: smtplib.SMTP, context: ssl.SSLContext) -> None:
        settings = self._settings
        server.ehlo()
        if not settings.tls and server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
        elif not settings.tls and settings.password is not None:
            raise smtplib.SMTPNotSupportedError(
                "the mail server offers no STARTTLS, so the password is not sent: use smtps:// in --smtp-url"
            )
        if settings.username is not None and settings.password is not None:
            server.login(settings.username, settings.password)


def _answer(code: int, said: bytes | str) -> tuple[int, str]:
    """Return the HTTP status that fits a reply of the mail server, and the reply as text."""
    text = said.decode("ascii", "replace") if isinstance(said, bytes) else said
    status = OK if code < _TRANSIENT else _REFUSED if code >= _PERMANENT else _LATER
    return status, f"{code} {text[:_SAID_CHARS_MAX]}"


def _mail(request: bytes, sender: str, recipient: str) -> EmailMessage:
    """Create the e-mail that delivers a message. Its Message-ID is the same at each attempt."""
    head, _, body = request.partition(b"\r\n\r\n")
    message_id = head.partition(_ID)[2].partition(b"\r\n")[0].decode("ascii", "replace")
    mail = _draft(sender, recipient, *mail_text(body))
    mail["Message-ID"] = f"<{message_id}@everput>"
    return mail


def _draft(sender: str, recipient: str, subject: str, text: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = recipient
    mail["Subject"] = subject
    mail["Date"] = formatdate()
    mail["Auto-Submitted"] = "auto-generated"  # asks mail programs to send no automatic reply (RFC 3834)
    mail.set_content(text)
    return mail


class MailTransport:
    """A stand-in for the transport of a connection (asyncio.Transport). Its requests become mails.

    A caller writes whole HTTP requests. For each request, the mailer hands a mail to the mail server or checks the
    server, and `receive` is called with the bytes of an HTTP answer. `lost` is called once, after the transport was
    closed.
    """

    def __init__(
        self, mailer: Mailer, recipient: str, receive: Callable[[bytes], None], lost: Callable[[None], Any]
    ) -> None:
        self._mailer = mailer
        self._recipient = recipient
        self._receive = receive
        self._lost: Callable[[None], Any] | None = lost
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, request: bytes) -> None:
        """Take a whole request."""
        task = self._loop.create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: bytes) -> None:
        status, said = await self._mailer.handle(request, self._recipient)
        if self._lost is not None:
            body = said.encode()
            head = b"HTTP/1.1 %d Answer\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
            self._receive(head % (status, len(body)) + body)

    def abort(self) -> None:
        """Close the transport. If a mail is being handed over at this moment, the mail server may still get it."""
        lost, self._lost = self._lost, None
        if lost is not None:
            self._loop.call_soon(lost, None)
