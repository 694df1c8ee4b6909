"""`everput verify`: check that the log is consistent, and that running processes agree with it.

For: the command, its progress bar, its lines and its exit code. Not for: the rules (broker/core/checks.py).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from broker.audit.verify import State, Verifier
from broker.core.checks import Finding
from broker.core.digests import difference, fields_hash, state_hash
from broker.errors import ConfigurationError
from broker.kafka.embedded.indexes import wrong_indexes
from broker.kafka.topics import Topics, by_name
from cli import logs
from cli.groups import examples
from cli.operate import cluster
from cli.options import Options, shared_options
from cli.printing import say, stderr

SHOWN_MAX: Final = 100
_ASK_S: Final = 30.0

Lives = Mapping[str, Mapping[str, Any]]


@click.command("verify", epilog=examples("everput verify", "everput verify --admin http://127.0.0.1:9100"))
@click.option(
    "--admin",
    multiple=True,
    metavar="URL",
    help="Admin address whose processes to compare with the log. May be repeated.",
)
@shared_options
def command(options: Options, admin: Sequence[str]) -> None:
    """Read the whole log, and show each inconsistency in a line: at most 100 lines, and then the number of
    inconsistencies. The exit code is 1 if there is an inconsistency.

    The command checks that the ID of each message fits the message's partition and time. It checks that each item named
    by an event, such as a queue, a listener or a message, was created by another event. It checks versions, times, the
    results of attempts, and the committed offsets of listeners. It also checks that no offsets are missing, and that no
    broker's copy is damaged or incomplete.

    With --admin, the command compares the state of each running process with the log. Processes whose version of
    Everput has other fields are not compared. Without --kafka, it also checks the index files of the embedded Kafka.

    Some values, such as the data of a message, occur only once in the log. Only the checksum of their record batch can
    show that such a value was changed.
    """
    logs.set_up_quietly("verify", options.log_level)
    states = {f"{url} {name}".strip(): state for url in admin for name, state in _ask(url).items()}
    lives = {name: state for name, state in states.items() if state.get("fields") == fields_hash()}
    for name in states.keys() - lives.keys():
        say(f"{name} was not compared, because its version of Everput has other fields than this one", err=True)
    found = asyncio.run(_verify(options, lives))
    if found:
        say(f"{found:,} finding{'' if found == 1 else 's'}", err=True)
        sys.exit(1)


async def _verify(options: Options, lives: Lives) -> int:
    """Verify the log, print the first SHOWN_MAX inconsistencies, and return the number of all inconsistencies."""
    console = stderr()
    found = 0

    def tell(text: str) -> None:
        nonlocal found
        found += 1
        if found <= SHOWN_MAX:
            say(text)
        elif found == SHOWN_MAX + 1:
            say("and more")

    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    async with cluster(options) as (kafka, requests, table):
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("records", total=None)
            verifier = Verifier(kafka, requests, table, lambda count: bar.advance(task, count))
            size = await verifier.size()
            bar.update(task, total=size)
            left = dict(lives)
            async for one in verifier.findings({int(live["position"]) for live in lives.values()}):
                if isinstance(one, Finding):
                    if one.wrong:
                        tell(str(one))
                    else:
                        say(str(one), err=True)
                    continue
                for name in [name for name, live in left.items() if live["position"] == one.position]:
                    for text in differences(name, left.pop(name), one):
                        tell(text)
            for name, live in left.items():
                tell(f"{name} is at offset {live['position']} of control, which is not in the log")
            # A Kafka cluster's index files are usually on other machines. So check only those of the embedded Kafka.
            if options.kafka is None:
                for text in await asyncio.to_thread(wrong_files, options.data_dir / "kafka" / "kafka", table):
                    tell(text)
        say(f"{size:,} records, state {state_hash(verifier.control.state)}", err=True)
    return found


def wrong_files(log_dir: Path, table: Topics) -> list[str]:
    """Check Kafka's index files of these topics. Return a text for each index file that has a wrong entry, and for each
    time index that ends too early.
    """
    return [
        f"{name}/{one.partition} offset {one.offset}: {one}"
        for name, topic in by_name(table).items()
        for one in wrong_indexes(log_dir, topic.name, compacted="compact" in topic.config["cleanup.policy"])
    ]


def differences(name: str, live: Mapping[str, Any], state: State) -> Iterator[str]:
    """Yield a text if the state of a process differs from the state that was computed from the log. Otherwise, yield
    nothing.

    The text names the first different item, and the first field that differs. If only the order of the items differs,
    the text says that.
    """
    if live["sha256"] == state.sha256:
        return
    theirs = live["digests"]
    differing = sorted(thing for thing in {*theirs, *state.digests} if theirs.get(thing) != state.digests.get(thing))
    what = "the items are the same, but their order differs"
    if differing:
        first = differing[0]
        if first not in theirs:
            what = f"{first} is missing there"
        elif first not in state.digests:
            what = f"{first} is not in the log"
        else:
            field = difference(first, theirs[first], state.digests[first])
            where = "" if field is None else " in {}, with the hash {} and not {}".format(*field)
            what = f"{first} is another there{where}"
        what += f", and {len(differing) - 1} more differ" if differing[1:] else ""
    yield f"{name} differs from the log at offset {state.position} of control: {what}"


def _ask(url: str) -> dict[str, Mapping[str, Any]]:
    try:
        answer = httpx.get(f"{url.rstrip('/')}/state", timeout=_ASK_S, trust_env=False).raise_for_status()
        states: dict[str, Mapping[str, Any]] = answer.json()["states"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{url} did not answer with the state of an Everput process: {error}; check that it is the admin address "
            "of a process that is ready"
        ) from error
    return states
