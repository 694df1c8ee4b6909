"""Password resets by e-mail: a mail with a link, and the new password for that link.

For: the requests of /v1/accounts/password-reset, their limits, and the token in the link. The token is encrypted and
not stored. It contains the account, its expiry, and a hash of the password that it replaces, so it works once. Not for:
the operator's one-time passwords (cli/commands/accounts.py), sending mail (broker/outbound/mail.py).
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Any, Final

from api.calls import Call
from api.clients import Clients
from api.limits import EVERYBODY, Limit
from api.page_tokens import PageTokens
from api.problems import BadParameter, Forbidden
from api.shapes import NewPasswordBody, ResetBody
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands, WrongPassword, check_email
from broker.core.accounts import Account
from broker.errors import Changed, Refused
from broker.outbound.mail import Mailer
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

VALID_S: Final = 3_600  # seconds for which a link works
# In each process, this is the rate limit on requests for reset mails to one e-mail address.
EACH_AT_ONCE, EACH_PER_S = 3, 1 / 1_200
# In each process, this is the rate limit on requests of one client for reset mails.
CLIENTS_AT_ONCE, CLIENTS_PER_S = 10, 1 / 60
# In each process, this is the rate limit on requests of all clients together for reset mails.
ALL_AT_ONCE, ALL_PER_S = 20, 0.2
_PATH: Final = "/v1/accounts/password-reset"
_REFUSAL: Final = "Too many password resets. Try again later."
_SUBJECT: Final = "Everput: reset your password"
_TEXT: Final = """\
Somebody asked to reset the password of your Everput account. To choose a new password, open this page within an hour:

{link}

If that was not you, ignore this mail. Your password stays as it is.
"""


class PasswordResets:
    """Handlers for /v1/accounts/password-reset.

    `mailer` is None if the operator has set no mail server, and `public_url` is None if the operator has set no public
    URL. In either case, no mail that resets a password can be sent.
    """

    def __init__(
        self,
        commands: AccountCommands,
        view: DirectoryView,
        tokens: PageTokens,
        clients: Clients,
        *,
        mailer: Mailer | None,
        public_url: str | None,
    ) -> None:
        self._commands = commands
        self._view = view
        self._tokens = tokens
        self._clients = clients
        self._mailer = mailer
        self._public_url = public_url
        self._each = Limit("resets", EACH_AT_ONCE, per_s=EACH_PER_S, refusal=_REFUSAL)
        self._of_clients = Limit("network-resets", CLIENTS_AT_ONCE, per_s=CLIENTS_PER_S, refusal=_REFUSAL)
        self._all = Limit("all-resets", ALL_AT_ONCE, per_s=ALL_PER_S, refusal=_REFUSAL)
        self._set = Limit("all-new-passwords", ALL_AT_ONCE, per_s=ALL_PER_S, refusal=_REFUSAL)
        self._sending: set[asyncio.Task[None]] = set()

    async def ask(self, call: Call) -> Any:
        """Begin to send a mail with a link for a new password, if the account exists and is not blocked. Send none
        while this process is sending 20 other reset mails. The answer does not tell whether the account exists.
        """
        body = await call.json(ResetBody, small=True)
        mailer, public_url = self._mailer, self._public_url
        if mailer is None or public_url is None:
            raise Forbidden(
                "This server can't reset passwords by e-mail. Ask its operator for a one-time password "
                "(`everput accounts reset-password ADDRESS`)."
            )
        check_email(body.email)
        client = self._clients.name(call.scope)
        if client is not None:
            self._of_clients.check(call.headers, client)
        self._all.check(call.headers, EVERYBODY)
        self._each.take(call.headers, body.email.lower())
        self._all.take(call.headers, EVERYBODY)
        if client is not None:
            self._of_clients.take(call.headers, client)
        account = self._view.state.accounts.account(body.email)
        if account is not None and not account.blocked and len(self._sending) < ALL_AT_ONCE:
            task = asyncio.create_task(self._send(mailer, public_url, account))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return {"sent_if_known": True}

    async def _send(self, mailer: Mailer, public_url: str, account: Account) -> None:
        position = f"{now_ms() + VALID_S * 1000} {_fingerprint(account)} {account.id}".encode()
        token = self._tokens.seal(position, "", _PATH)
        link = f"{public_url}/console#/reset/{token}"
        status, said = await mailer.send(account.email, _SUBJECT, _TEXT.format(link=link))
        log.info("password.reset_mailed account=%s status=%d reply=%s", account.id, status, said)

    async def set(self, call: Call) -> Any:
        """Set a new password with the token of a mail. All sessions of the account end."""
        body = await call.json(NewPasswordBody, small=True)
        account = await self._account(body.token)
        self._set.take(call.headers, EVERYBODY)  # only now: otherwise, invalid tokens could use up everybody's limit
        try:
            await self._commands.replace_password(account, body.new_password, request_id=call.request_text)
        except (WrongPassword, Changed):  # another request has used the same link meanwhile, or ended all sessions
            raise _invalid() from None
        return {"account": {"id": account.id, "email": account.email}}

    async def _account(self, token: str) -> Account:
        """Return the account that a token is for. Raises Refused if the token is invalid or has expired, if the
        password has changed since the mail, or if the account is blocked or deleted.
        """
        try:
            ends_at_ms, fingerprint, account_id = self._tokens.open(token, "", _PATH).decode().split(" ")
        except BadParameter:
            raise _invalid() from None
        await self._view.caught_up()
        account = self._view.state.accounts.by_id.get(account_id)
        if account is None or account.blocked or int(ends_at_ms) <= now_ms() or _fingerprint(account) != fingerprint:
            raise _invalid()
        return account


def _invalid() -> Refused:
    return Refused("This link is not valid any more. Ask for another one.", pointer="/token")


def _fingerprint(account: Account) -> str:
    """Return a hash of the account's password hash. The link in a mail holds this hash. When the password changes, the
    hash changes, so that the link stops working.
    """
    return sha256(account.password_hash.encode()).hexdigest()[:32]
