"""`everput keys`: list, create, show and revoke API keys. Not for: requests and output (api_commands.py)."""

from __future__ import annotations

import click

import everput
from broker.core.keys import SCOPES
from cli.api_commands import asks, find_queue, show, show_all
from cli.groups import Group, examples
from cli.short_ids import Id
from cli.times import Time
from everput import Client


def _own(client: Client) -> str:
    """Return the id of the API key's organization."""
    return client.send(everput.list_organizations()).organizations[0].id


@click.group("keys", cls=Group)
def command() -> None:
    """List, create, show and revoke the API keys of your organization. Your own key needs the scope `keys`."""


@command.command("list", epilog=examples("everput keys list"))
@asks
def list_(client: Client, *, as_json: bool) -> None:
    """List API keys, oldest first."""
    pages = client.pages(everput.list_keys(_own(client)))
    columns = {"id": "id", "name": "name", "starts with": "prefix", "scopes": "scopes", "queues": "queues"}
    columns |= {"expires": "expires_at", "last used": "last_used_at"}
    show_all((key for page in pages for key in page.keys), columns, as_json=as_json)


@command.command(
    "create",
    epilog=examples(
        "everput keys create checkout --scope messages:put --queue orders", "everput keys create ci --expires 30d"
    ),
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=f"Scope of the key: {', '.join(SCOPES)}. Default: queues and messages. May be repeated.",
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    help="Restrict the key to this queue, by name or ID. Default: all queues. May be repeated.",
)
@click.option(
    "--expires",
    type=Time(ahead=True),
    help="Refuse the key from this time on: 2026-12-31, or 30d from now. Default: never.",
)
@asks
def create(
    client: Client, *, name: str, scopes: tuple[str, ...], queues: tuple[str, ...], expires: str | None, as_json: bool
) -> None:
    """Create an API key and show it. The key is shown only once.

    The new key can have only scopes that your own key has, and can't be valid for longer than your own key.
    """
    ids = [find_queue(client, queue) for queue in queues] or None
    request = everput.create_key(_own(client), name, scopes or None, queues=ids, expires_at=expires)
    show(client.send(request).key, as_json=as_json)


@command.command("get", epilog=examples("everput keys get KEY_ID"))
@click.argument("key_id", type=Id())
@asks
def get(client: Client, *, key_id: str, as_json: bool) -> None:
    """Show an API key, without its secret."""
    show(client.send(everput.get_key(_own(client), key_id)).key, as_json=as_json)


@command.command("revoke", epilog=examples("everput keys revoke KEY_ID"))
@click.argument("key_id", type=Id())
@click.confirmation_option(prompt="Requests with this key are refused at once. Revoke it?")
@asks
def revoke(client: Client, *, key_id: str, as_json: bool) -> None:
    """Revoke an API key. Each API process refuses requests with this key as soon as it has read the event, usually
    within a second.
    """
    show(client.send(everput.revoke_key(_own(client), key_id)).key, as_json=as_json)
