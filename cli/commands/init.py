"""`everput init`: create an account, an organization and an API key from the shell.

For: an existing Kafka cluster, where no `everput serve` creates them, and one more account or organization on the Kafka
of a running `everput serve`. The command needs no session, because access to Kafka allows everything. Not for: how they
are created (cli/processes/first_start.py).
"""

from __future__ import annotations

from typing import Final

import click

from broker.commands.accounts import AccountBlocked, WrongPassword
from broker.core.entities import Organization
from broker.errors import ConfigurationError, NotFound, Refused
from broker.kafka.admin import ensure_topics
from broker.kafka.topics import topics
from broker.sealing import Sealer
from broker.settings import KafkaSettings
from cli import files
from cli.directory import directory, run_quietly
from cli.groups import examples
from cli.operate import cluster
from cli.options import Options, shared_options
from cli.printing import say
from cli.processes.first_start import new_key
from cli.short_ids import Id

PASSWORD: Final = "EVERPUT_PASSWORD"  # noqa: S105 - the variable's name


@click.command(
    "init",
    epilog=examples("everput init", "everput init --kafka kafka-1:9092 --email ann@shop.example --name shop"),
)
@click.option("--organization", metavar="ID", type=Id(), help="Create the key for this organization.")
@click.option("--name", metavar="NAME", help="Name of the operator's organization.  [default: default]")
@click.option(
    "--email", metavar="ADDRESS", help="Make this account a member of the organization. A missing account is created."
)
@shared_options
def command(options: Options, organization: str | None, name: str | None, email: str | None) -> None:
    """Create an organization and an API key with all scopes for it, and print the key. The organization's name and ID
    are shown on stderr. Save the key: it is not stored anywhere.

    If the operator has already created an organization, the command creates only another key, for the oldest such
    organization. With --name or --email, it chooses the oldest organization with this name or this member (with both
    options: both). If there is no such organization, the command creates one. For an organization that was registered
    over HTTP, give its ID with --organization.

    With --email, the account with this address becomes a member of the organization. If there is no such account, it is
    created. Give the account's password in EVERPUT_PASSWORD or EVERPUT_PASSWORD_FILE, or type it when asked. For an
    existing account, the password is checked.

    Without --kafka, the command uses the Kafka of the `everput serve` that runs on --data-dir. With --kafka, it also
    creates missing topics. Nobody can register over HTTP until this command, or the first start of `everput serve`, has
    created an organization.
    """
    if organization is not None and name is not None:
        raise ConfigurationError(
            "--organization (an existing organization's ID) and --name exclude each other; leave one out"
        )
    given = files.secret_setting(files.SEALING_KEY_VARIABLE)
    if given is not None:  # Refuse an invalid sealing key now, because API processes and workers would refuse it later.
        Sealer(given)
    # Ask for the password only after Kafka has answered, so that nobody types it in vain.
    kafka = run_quietly("init", options, _reach(options))
    owner = None if email is None else (email, _password())
    try:
        api_key, made_for = run_quietly("init", options, _make(kafka, organization, name, owner))
    except (Refused, NotFound, WrongPassword, AccountBlocked) as error:
        raise ConfigurationError(str(error)) from error
    say(f"organization: {made_for.name} {made_for.id}", err=True)
    say(api_key)


def _password() -> str:
    given = files.secret_setting(PASSWORD)
    return click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True) if given is None else given


async def _reach(options: Options) -> KafkaSettings:
    """Return the settings of the Kafka that the options name.

    With --kafka, create Everput's topics if they are missing. Without --kafka, raise ConfigurationError if the topics
    do not exist.
    """
    if options.kafka is None:  # cluster() raises ConfigurationError if Everput's topics do not exist.
        async with cluster(options) as found:
            return found.kafka
    kafka = options.kafka_settings()
    await ensure_topics(kafka, topics(kafka))
    return kafka


async def _make(
    kafka: KafkaSettings, organization_id: str | None, name: str | None, owner: tuple[str, str] | None
) -> tuple[str, Organization]:
    async with directory(kafka) as opened:
        return await new_key(*opened, organization_id=organization_id, name=name, owner=owner)
