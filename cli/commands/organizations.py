"""`everput organizations`: the operator's commands for any organization. They use Kafka itself.

Not for: what a member does over HTTP (api/members.py, api/keys.py).
"""

from __future__ import annotations

import click

from broker.clock import now_ms
from broker.commands.context import shell_context
from broker.commands.invitations import InvitationCommands, invitation_mail
from broker.commands.members import MemberCommands
from broker.commands.organizations import revoke_key
from broker.core.roles import OWNER, ROLES
from broker.errors import NotFound, Unavailable
from broker.outbound.mail import OK, Mailer
from cli.api_commands import show_all
from cli.commands.accounts import find_account, shown_time
from cli.directory import OpenDirectory, in_directory
from cli.groups import Group, examples
from cli.options import Options, age_s, shared_options
from cli.printing import say
from cli.short_ids import Id
from cli.smtp import smtp_settings
from everput.answers import Answer


class _Row(Answer):
    id: str
    name: str
    made_by: str
    members: list[str]
    keys: int
    queues: int
    stored_bytes: int


class _Invitation(Answer):
    id: str
    email: str
    role: str
    created_at: str
    expires_at: str
    created_by: str


@click.group("organizations", cls=Group)
def command() -> None:
    """List organizations; invite members, change their roles and remove them; list and revoke invitations; revoke API
    keys. To create an organization, use `everput init`.

    The commands connect to Kafka: the cluster of --kafka, or the Kafka of the running `everput serve` on --data-dir.
    """


@command.command("list", epilog=examples("everput organizations list"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@shared_options
def list_(options: Options, *, as_json: bool) -> None:
    """List all organizations, oldest first."""

    async def rows(opened: OpenDirectory) -> list[_Row]:
        state = opened.view.state
        retain_s = None if options.retain_messages is None else age_s(options.retain_messages)
        since_ms = 0 if retain_s is None else now_ms() - retain_s * 1000
        return [
            _Row(
                id=one.id,
                name=one.name,
                made_by="shell" if one.by_shell else "account",
                members=[
                    f"{state.accounts.by_id[member].email} ({state.role_of(one.id, member)})" for member in one.members
                ],
                keys=sum(1 for _ in state.keys_of(one.id)),
                queues=state.queue_count(one.id),
                stored_bytes=one.bytes_since(since_ms),
            )
            for one in state.organizations.values()
        ]

    columns = ("id", "name", "made by", "members", "keys", "queues", "stored bytes")
    show_all(in_directory(options, rows), {heading: heading.replace(" ", "_") for heading in columns}, as_json=as_json)


@command.command(
    "remove-member", epilog=examples("everput organizations remove-member ORGANIZATION_ID ann@shop.example")
)
@click.argument("organization_id", type=Id())
@click.argument("account", metavar="ACCOUNT")
@click.option("--even-if-last", is_flag=True, help="Remove the account even if no other owner can sign in.")
@shared_options
def remove_member(options: Options, organization_id: str, account: str, *, even_if_last: bool) -> None:
    """Remove an account (an e-mail address or ID) from an organization. API keys that the account has created stay
    valid, because they belong to the organization.

    The last owner who can sign in is removed only with --even-if-last.
    """

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        await MemberCommands(*opened).leave(shell_context(organization_id), found.id, even_if_last=even_if_last)
        say(f"removed {found.email} from the organization {organization_id}")

    in_directory(options, work)


@command.command(
    "set-role", epilog=examples("everput organizations set-role ORGANIZATION_ID ann@shop.example operator")
)
@click.argument("organization_id", type=Id())
@click.argument("account", metavar="ACCOUNT")
@click.argument("role", type=click.Choice([*ROLES]))
@shared_options
def set_role(options: Options, organization_id: str, account: str, role: str) -> None:
    """Change the role of a member (an e-mail address or ID) of an organization."""

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        await MemberCommands(*opened).change_role(shell_context(organization_id), found.id, role)
        say(f"{found.email} has the role {role} in the organization {organization_id}")

    in_directory(options, work)


@command.command("invite", epilog=examples("everput organizations invite ORGANIZATION_ID bob@shop.example"))
@click.argument("organization_id", type=Id())
@click.argument("email")
@click.option("--role", type=click.Choice([*ROLES]), default=OWNER, show_default=True, help="Role of the new member.")
@shared_options
def invite(options: Options, organization_id: str, email: str, role: str) -> None:
    """Print a link that makes one account a member of an organization, and send it by mail.

    The link works once, within seven days, and can't be printed again. Mail is sent only with both --smtp-url and
    --public-url; otherwise, send the link to the person yourself. Without --public-url, only the end of the link is
    printed: put the URL of the API before it.
    """
    smtp = smtp_settings(options.smtp_url, options.mail_from)

    async def work(opened: OpenDirectory) -> None:
        _check_organization(opened, organization_id)
        invitation, token = await InvitationCommands(*opened).invite(shell_context(organization_id), email, role)
        say(f"invited {email} as {invitation.id}, until {shown_time(invitation.expires_at_ms)}:", err=True)
        link = f"{(options.public_url or '').rstrip('/')}/console#/invitation/{token}"
        say(link)
        if smtp is None or options.public_url is None:
            return
        name = opened.view.state.organizations[organization_id].name
        status, reply = await Mailer(smtp).send(email, *invitation_mail(name, link))
        if status != OK:
            raise Unavailable(
                f"the mail server did not accept the mail with the invitation: {reply}; send the printed link to the "
                "person yourself"
            )
        say(f"the mail server took the mail to {email}", err=True)

    in_directory(options, work)


@command.command("invitations", epilog=examples("everput organizations invitations ORGANIZATION_ID"))
@click.argument("organization_id", type=Id())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@shared_options
def invitations(options: Options, organization_id: str, *, as_json: bool) -> None:
    """List the open invitations of an organization, oldest first."""

    async def rows(opened: OpenDirectory) -> list[_Invitation]:
        _check_organization(opened, organization_id)
        return [
            _Invitation(
                id=one.id,
                email=one.email,
                role=one.role,
                created_at=shown_time(one.created_at_ms),
                expires_at=shown_time(one.expires_at_ms),
                created_by=one.created_by,
            )
            for one in InvitationCommands(*opened).open(organization_id)
        ]

    columns = ("id", "email", "role", "created at", "expires at", "created by")
    show_all(in_directory(options, rows), {heading: heading.replace(" ", "_") for heading in columns}, as_json=as_json)


@command.command("revoke-invitation", epilog=examples("everput organizations revoke-invitation INVITATION_ID"))
@click.argument("invitation_id", type=Id())
@shared_options
def revoke_invitation(options: Options, invitation_id: str) -> None:
    """Revoke an invitation to any organization, so that nobody can accept it any more."""

    async def work(opened: OpenDirectory) -> None:
        found = opened.view.state.invitations.by_id.get(invitation_id)
        if found is None:
            raise NotFound(
                f"no open invitation has the ID {invitation_id}; `everput organizations invitations ORGANIZATION_ID` "
                "shows an organization's invitations"
            )
        await InvitationCommands(*opened).revoke(shell_context(found.organization_id), found.id)
        say(f"revoked the invitation of {found.email} to the organization {found.organization_id}")

    in_directory(options, work)


@command.command("revoke-key", epilog=examples("everput organizations revoke-key KEY_ID"))
@click.argument("key_id", type=Id())
@shared_options
def revoke(options: Options, key_id: str) -> None:
    """Revoke an API key of any organization. Each API process refuses requests with this key as soon as it has read the
    event, usually within a second.
    """

    async def work(opened: OpenDirectory) -> None:
        api_key = opened.view.state.keys.get(key_id)
        if api_key is None:
            raise NotFound(
                f"no API key has the ID {key_id}; `everput keys list` shows the keys of the organization whose API key "
                "it uses"
            )
        await revoke_key(opened.control, opened.view, shell_context(api_key.organization_id), api_key.id)
        say(f"revoked the key {api_key.name} of the organization {api_key.organization_id}")

    in_directory(options, work)


def _check_organization(opened: OpenDirectory, organization_id: str) -> None:
    if organization_id not in opened.view.state.organizations:
        raise NotFound(f"no organization has the ID {organization_id}; `everput organizations list` shows all")
