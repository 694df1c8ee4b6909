"""`everput init`: an account, an organization and a key, from the shell.

For: an existing Kafka, where no `everput serve` makes them, and that of a running `everput serve`, for one more account
or organization. It needs no session: whoever reaches Kafka may do everything.
Not for: how they are made (cli/processes/first_start.py)."""

from __future__ import annotations

import contextlib
from typing import Final

import click

from broker.commands.accounts import AccountBlocked, WrongPassword
from broker.core.directory import Organization
from broker.errors import ConfigurationError, NotFound, Refused
from broker.kafka.admin import ensure_topics
from broker.kafka.topics import topics
from cli import files
from cli.directory import directory, run_quietly
from cli.operate import cluster
from cli.options import Options, shared_options
from cli.printing import say
from cli.processes.first_start import new_key

PASSWORD: Final = "EVERPUT_PASSWORD"  # noqa: S105 - the variable's name


@click.command("init")
@click.option("--organization", metavar="ID", help="Make the key for this organization, whoever made it.")
@click.option("--name", metavar="NAME", help="The name of the operator's organization.  [default: default]")
@click.option("--email", metavar="ADDRESS", help="An account that is to be a member; it is made if it is missing.")
@shared_options
def command(options: Options, organization: str | None, name: str | None, email: str | None) -> None:
    """Make an organization and a key with all scopes, and print the key. Until then nobody can register over HTTP.

    With --kafka the topics are made, too; without it, the Kafka is that of the `everput serve` on --data-dir. The key
    is nowhere else: keep it. The organization's name and id are shown on stderr. With --email, the account is made or,
    if it is there, its password is checked, and it becomes a member of the organization; the password comes by
    EVERPUT_PASSWORD or EVERPUT_PASSWORD_FILE, or is asked for.

    To repeat the command is safe: it makes one more key for the organization that it made before, with the same --email
    and --name if these are given. It never takes an organization that was registered over HTTP, unless --organization
    says its id.
    """
    if organization is not None and name is not None:
        raise ConfigurationError("give --organization, the id of one that is there, or --name, but not both")
    owner = None if email is None else (email, _password())
    try:
        api_key, made_for = run_quietly("init", options, _make(options, organization, name, owner))
    except (Refused, NotFound, WrongPassword, AccountBlocked) as error:
        raise ConfigurationError(str(error)) from error
    say(f"organization: {made_for.name} {made_for.id}", err=True)
    say(api_key)


def _password() -> str:
    given = files.secret_setting(PASSWORD)
    return click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True) if given is None else given


async def _make(
    options: Options, organization_id: str | None, name: str | None, owner: tuple[str, str] | None
) -> tuple[str, Organization]:
    async with contextlib.AsyncExitStack() as stack:
        if options.kafka is None:  # that of an `everput serve`, which has made the topics
            kafka = (await stack.enter_async_context(cluster(options))).kafka
        else:
            kafka = options.kafka_settings()
            await ensure_topics(kafka, topics(kafka))
        opened = await stack.enter_async_context(directory(kafka))
        return await new_key(*opened, organization_id=organization_id, name=name, owner=owner)
