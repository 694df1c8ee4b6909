"""`everput completion`: the script that makes a shell complete the command. Not for: what is completed (click does)."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from broker.errors import ConfigurationError


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete the command, as in: eval "$(everput completion bash)"."""
    found = get_completion_class(shell)
    if found is None or context.parent is None:
        raise ConfigurationError(f"there is no completion for {shell}")
    print(found(context.parent.command, {}, "everput", "_EVERPUT_COMPLETE").source())
