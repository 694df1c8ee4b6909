"""`everput completion`: the script that completes commands in a shell. Not for: completing (click, arguments.py)."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cli.groups import examples


@click.command("completion", epilog=examples('eval "$(everput completion bash)"', "everput completion fish | source"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, and names of queues and listeners."""
    everput, completion = context.find_root().command, get_completion_class(shell)
    if completion is not None:
        print(completion(everput, {}, "everput", "_EVERPUT_COMPLETE").source())
