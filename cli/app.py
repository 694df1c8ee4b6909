"""The `everput` command.

For: the commands in their sections, the module of each, and how an error is shown. Not for: what a command does.
A command's module is imported when the command is called, so that `everput put` need not import Kafka's client."""

from __future__ import annotations

import gc
import logging
from importlib import import_module
from typing import IO, Any, Final

import click
from click.shell_completion import CompletionItem

from broker.errors import BrokerError, ConfigurationError
from cli.groups import Group, examples

# The commands by section, in the order in which `--help` shows them.
# The commands' short help is here, so that `everput --help` need not import the commands.
SECTIONS: Final = {
    "Start": {
        "serve": ("cli.processes.serve", "Run everything on this machine: Kafka, the API and the workers."),
        "demo": ("cli.demo.demo", "Show a failing listener and a killed worker, and that no message is lost."),
        "login": ("cli.commands.login", "Save a server's URL and an API key as a profile."),
        "profiles": ("cli.commands.profiles", "List, choose and remove profiles."),
        "completion": ("cli.commands.completion", "Print the script that completes commands in a shell."),
    },
    "Queues, listeners and messages": {
        "queues": ("cli.commands.queues", "List, show, create, rename and delete queues."),
        "listeners": ("cli.commands.listeners", "List, create, change, pause, test and delete listeners."),
        "messages": ("cli.commands.messages", "Put, list, show, change and delete messages."),
        "put": ("cli.commands.put", "Put each line of a file on a queue."),
        "listen": ("cli.listen.listen", "Deliver the messages of a queue to this machine, through a tunnel."),
        "show": ("cli.commands.show", "Show a queue and its listeners, now or at a past time."),
        "keys": ("cli.commands.keys", "List, create, show and revoke API keys."),
    },
    "Deliveries": {
        "status": ("cli.commands.status", "Show the state of every listener, and what is wrong."),
        "stats": ("cli.commands.stats", "Show the counts of a queue or a listener over time."),
        "parked": ("cli.commands.parked", "Show the parked deliveries of a listener."),
        "redrive": ("cli.commands.redrive", "Retry parked and retrying deliveries now, or cancel that."),
        "replay": ("cli.commands.replay", "Deliver the messages of a time range again."),
        "replays": ("cli.commands.replays", "Show, pause, resume and cancel replays."),
    },
    "The log": {
        "log": ("cli.commands.log", "Show the organization's events, or those of one message."),
        "export": ("cli.exports.export", "Write the organization's events to files."),
        "check": ("cli.exports.check", "Compare the files of an export with its manifest."),
        "events": ("cli.commands.events", "Print the catalog of events."),
    },
    "Operators: these commands need access to Kafka or to the data directory": {
        "init": ("cli.commands.init", "Create an organization and an API key, and print the key."),
        "api": ("cli.processes.api", "Run one API process against an existing Kafka."),
        "worker": ("cli.processes.worker", "Run one worker against an existing Kafka."),
        "accounts": ("cli.commands.accounts", "List, block and delete accounts, reset passwords, end sessions."),
        "organizations": ("cli.commands.organizations", "List organizations, invite and remove members, revoke keys."),
        "verify": ("cli.commands.verify", "Check the whole log against itself and the running processes."),
        "mend": ("cli.commands.mend", "Put damaged records back from an export, or give them up."),
        "export-all": ("cli.exports.export_all", "Back up the whole log and the cursors to files."),
        "import": ("cli.exports.restore", "Restore an installation from a backup of export-all."),
        "rotate-sealing-key": ("cli.commands.rotate", "Encrypt the secrets in the log with a new sealing key."),
    },
}
_COMMANDS: Final = {name: text for section in SECTIONS.values() for name, text in section.items()}


class _OneLine(click.ClickException):
    """An error whose message is all that the user needs to see. It is shown without a traceback."""

    def __init__(self, error: BrokerError) -> None:
        super().__init__(str(error))
        self.exit_code = 2 if isinstance(error, ConfigurationError) else 1

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's signature
        from cli.printing import say_error

        # Write the log lines that wait to be written, so that the error is the last line on the screen.
        logging.shutdown()
        say_error(f"everput: {self.message}")


class _Commands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        # Switch the garbage collector off during the import: this saves a tenth of the import's time.
        gc.disable()
        try:
            command: click.Command = import_module(_COMMANDS[cmd_name][0]).command
        finally:
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        width = max(map(len, _COMMANDS))  # the same width in all sections
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), words) for name, (_, words) in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command, without importing every command."""
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


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples("everput serve", "everput put orders orders.jsonl --create", "everput listen orders --to 3000"),
)
@click.version_option(package_name="everput", message="%(package)s %(version)s")
def everput() -> None:
    """Everput is a message broker: put a message on a queue, and every listener of the queue gets the message by HTTP
    POST.
    """


def main() -> None:
    """Run the command `everput`. This function is the entry point of the console script."""
    everput(prog_name="everput")


if __name__ == "__main__":
    main()
