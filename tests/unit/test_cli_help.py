"""What `everput` says about itself: sections, examples that can be typed, suggestions for what was mistyped."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from cli import app
from cli.app import everput
from cli.short_ids import Id


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group, **everput.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(everput))
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def example_lines(command: click.Command) -> list[str]:
    return [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_command_has_an_example_that_names_it_with_options_that_it_has(path):
    typed = [line[line.index("everput ") :] for line in example_lines(LEAVES[path])]
    assert typed
    for line in typed:
        words = shlex.split(line.split(" > ")[0].split(" < ")[0].split(" | ")[0].removesuffix(')"'))[1:]
        assert tuple(words[: len(path)]) == path
        LEAVES[path].make_parser(click.Context(LEAVES[path], **everput.context_settings)).parse_args(words[len(path) :])


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_commands_help_is_shown_by_h_and_each_option_is_described(path):
    result = CliRunner().invoke(everput, [*path, "-h"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    undescribed = [one.name for one in LEAVES[path].params if isinstance(one, click.Option) and not one.help]
    assert undescribed == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_help_begins_with_a_verb_and_ends_as_a_sentence(path):
    first = (COMMANDS[path].help or "").split("\n\n")[0].strip()
    assert first.endswith(".")
    assert first.split()[0].rstrip(",") in VERBS


VERBS = {
    *("Back", "Cancel", "Check", "Compare", "Create", "Delete", "Deliver", "Encrypt", "End", "Find", "Forget", "Let"),
    *("List", "Pause", "Print", "Put", "Read", "Remove", "Rename", "Replace", "Restore", "Resume", "Retry", "Revoke"),
    *("Run", "Save", "Send", "Show", "Use", "Write", "Change", "Block"),
}


def test_the_commands_are_in_sections_and_their_modules_have_them():
    shown = CliRunner().invoke(everput, ["--help"]).stdout
    for title, section in app.SECTIONS.items():
        assert f"{title}:" in " ".join(shown.split()) or title.split(":")[0] in shown
        for name, (module, words) in section.items():
            assert import_module(module).command.name == name
            assert words.endswith(".")
    assert "everput serve" in shown


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["qeues"], "'queues'"),
        (["queues", "lst"], "'list'"),
        (["queues", "ls"], "'list'"),
        (["listeners", "rm", "a", "b"], "'delete'"),
        (["queues", "list", "--jsn"], "--json"),
    ],
)
def test_what_was_mistyped_is_answered_with_what_was_meant(typed: list[str], meant: str):
    result = CliRunner().invoke(everput, typed)
    assert result.exit_code == 2
    assert f"Did you mean {meant}" in result.stderr


def test_nothing_is_suggested_for_what_resembles_nothing():
    result = CliRunner().invoke(everput, ["xyzzy"])
    assert (result.exit_code, "Did you mean" in result.stderr) == (2, False)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_id_can_be_given_as_the_short_one_that_a_terminal_shows(path):
    ids = [one for one in LEAVES[path].params if (one.name or "").endswith("_id") or one.metavar == "ID"]
    ids = [one for one in ids if one.name != "oidc_client_id"]  # the provider's
    assert [one.name for one in ids if not isinstance(one.type, Id)] == []


@pytest.mark.parametrize("other", ["--export", "--log-dir"])
def test_what_mend_gives_up_is_in_no_export_and_no_other_folder(tmp_path, other):
    result = CliRunner().invoke(everput, ["mend", "--give-up", "control/0:1-2", other, str(tmp_path)])
    assert result.exit_code == 2
    assert "can't be combined" in " ".join(result.stderr.split())
