"""The `everput` command.

For: the group, which command is in which module, and how an error is shown. Not for: what a command does.
A command's module is imported when it is called, so that `everput put` does not wait for Kafka's client."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import IO, Any, Final

import click
from click.shell_completion import CompletionItem

from broker.errors import BrokerError, ConfigurationError

# In the order in which `--help` shows them; the words are here so that it imports none of them.
_COMMANDS: Final = {
    "serve": ("cli.processes.serve", "Run everything on this machine: Kafka, the API and the workers."),
    "api": ("cli.processes.api", "Run one API process against an existing Kafka."),
    "worker": ("cli.processes.worker", "Run one worker against an existing Kafka."),
    "init": ("cli.commands.init", "Make an account, an organization and a key, and print the key."),
    "status": ("cli.commands.status", "Show how every listener stands, and what is wrong."),
    "rotate-sealing-key": ("cli.commands.rotate", "Encrypt the secrets in the log with another sealing key."),
    "queues": ("cli.commands.queues", "List, see, make, rename and delete queues."),
    "listeners": ("cli.commands.listeners", "See and change the listeners of a queue."),
    "messages": ("cli.commands.messages", "Put, list, see, change and delete messages."),
    "accounts": ("cli.commands.accounts", "List, block and delete accounts, reset a password, end sessions."),
    "organizations": ("cli.commands.organizations", "List organizations, remove a member, revoke a key."),
    "keys": ("cli.commands.keys", "List, make, see and revoke an organization's API keys."),
    "put": ("cli.commands.put", "Put each line of a file on a queue."),
    "listen": ("cli.listen.listen", "Make an address on this machine a listener, while it is connected."),
    "log": ("cli.commands.log", "Show what happened: an organization's events, or one message's story."),
    "show": ("cli.commands.show", "Show a queue and its listeners, now or as they were at any moment."),
    "verify": ("cli.commands.verify", "Fold the whole log again, and compare it with itself and with what runs."),
    "mend": ("cli.commands.mend", "Put damaged records back from an export, or give them up."),
    "export": ("cli.exports.export", "Write the organization's events to files."),
    "export-all": ("cli.exports.export_all", "Write the whole log and the cursors to files."),
    "check": ("cli.exports.check", "Compare an export's files with its manifest."),
    "import": ("cli.exports.restore", "Make an installation again from what export-all wrote."),
    "events": ("cli.commands.events", "Print the catalogue of events."),
    "parked": ("cli.commands.parked", "Show a listener's deliveries that have no attempt left."),
    "redrive": ("cli.commands.redrive", "Have a listener's parked and retrying deliveries tried now."),
    "replay": ("cli.commands.replay", "Deliver a stretch of a queue's messages to a listener once more."),
    "replays": ("cli.commands.replays", "Show a listener's replays; pause, resume or cancel one."),
    "completion": ("cli.commands.completion", "Print what makes a shell complete this command."),
    "demo": ("cli.demo.demo", "Show it all: messages put, listeners that fail, a worker that is killed."),
}


class _OneLine(click.ClickException):
    """An error whose message says all there is to say."""

    def __init__(self, error: BrokerError) -> None:
        super().__init__(str(error))
        self.exit_code = 2 if isinstance(error, ConfigurationError) else 1

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's signature
        from cli.printing import say_error

        logging.shutdown()  # this is the last line: what was logged before is written
        say_error(f"everput: {self.message}")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, but without importing what every command needs."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=words) for name, (_, words) in _COMMANDS.items() if name.startswith(incomplete)
        ]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokerError as error:
            raise _OneLine(error) from error


@click.command(cls=_Commands)
@click.version_option(package_name="everput", message="%(package)s %(version)s")
def everput() -> None:
    """Everput: put a message over REST; every listener of its queue gets it over HTTP; nothing is lost."""


def main() -> None:
    """The console script."""
    everput(prog_name="everput")


if __name__ == "__main__":
    main()
