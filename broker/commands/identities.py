"""Accounts of people whom an OpenID Connect provider has signed in.

For: finding, linking and creating the account. Not for: the provider and its ID token (broker/outbound/oidc.py), the
session and the cookies (api/oidc.py).
"""

from __future__ import annotations

from uuid import uuid4

from broker.commands.accounts import check_email
from broker.commands.context import account_context, event_fields, record
from broker.core import events as ev
from broker.core.accounts import Account, Identity
from broker.errors import IdentityRefused
from broker.ports import ControlLog, DirectoryView


class IdentityCommands:
    """The commands on accounts of people whom an OpenID Connect provider has signed in. They write their events to the
    topic `control`.
    """

    def __init__(self, control: ControlLog, view: DirectoryView) -> None:
        self._control = control
        self._view = view

    async def account_of(self, identity: Identity, *, may_create: bool, request_id: str) -> Account:
        """Return the account of a person whose e-mail address the OpenID Connect provider has verified. If no account
        is linked to the person yet, link the account that has this address. If no account has this address, create one,
        provided that `may_create` is set and the operator has created an organization or an API key. Raises
        IdentityRefused if the person may not sign in, and Refused if the address is not valid.
        """
        check_email(identity.email)
        await self._view.caught_up()
        found = self._known(identity)
        if found is None:
            found = self._view.state.accounts.account(identity.email)
            if found is None:
                found = await self._create(identity, may_create=may_create, request_id=request_id)
            _check_unblocked(found)
            await record(
                self._control,
                self._view,
                ev.AccountIdentityLinked(
                    **event_fields(account_context(found.id, request_id)),
                    account_id=found.id,
                    issuer=identity.issuer,
                    subject=identity.subject,
                ),
            )
            found = self._known(identity)
        if found is None:
            raise IdentityRefused(
                "The account with the person's e-mail address is linked to another identity, or was deleted during "
                "this sign-in. If the same person has a new identity: sign in with the password, remove the link, and "
                "sign in with the provider again. If the account has no password: `everput accounts reset-password` "
                "prints a one-time password. Sign in with it, and replace it before you remove the link.",
                reason="taken",
            )
        _check_unblocked(found)
        return found

    def _known(self, identity: Identity) -> Account | None:
        return self._view.state.accounts.by_identity(identity.issuer, identity.subject)

    async def _create(self, identity: Identity, *, may_create: bool, request_id: str) -> Account:
        if not may_create or not self._view.state.initialized:
            raise IdentityRefused(
                "No account has the person's e-mail address, and this person may not create one, because registration "
                "is closed, or nobody has run `everput init` yet. Invite the person (`everput organizations invite`), "
                "or run `everput init` first.",
                reason="unknown",
            )
        account_id = str(uuid4())
        event = ev.AccountCreated(
            **event_fields(account_context(account_id, request_id)),
            account_id=account_id,
            email=identity.email,
            password_hash="",
        )
        await record(self._control, self._view, event)
        account = self._view.state.accounts.account(identity.email)
        if account is None:
            raise IdentityRefused(
                "This sign-in created an account, but the account was deleted before the sign-in was complete. If the "
                "person signs in again, another account is created.",
                reason="unknown",
            )
        return account


def _check_unblocked(account: Account) -> None:
    if account.blocked:
        raise IdentityRefused("The account is blocked. `everput accounts unblock` unblocks it.", reason="blocked")
