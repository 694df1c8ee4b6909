"""`everput events`: the catalog of events, as Markdown.

For: docs/events.md (`make events`), and readers of the topics with another Kafka client. Not for: the meaning of a
field (broker/core/catalogue.py).
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Final, Union, get_args, get_origin

import click
import msgspec

from broker.core.catalogue import FIELDS, FORMER, INTERNAL, PASSING, SECRET, TOPIC_OF, TOPICS, struct_of
from broker.core.codec import CLASSES, VERSIONS
from broker.core.events import Event
from cli.groups import examples

_COMMON: Final = ("type", "v", "at_ms", "organization_id", "actor", "request_id")
_JSON: Final = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
_HEAD: Final = """\
# The events

Made by `make events` from the program itself; don't edit it.

Every event is one JSON object, the value of one Kafka record. This page has a section for each Kafka topic. The
section's title is the name of the topic without its prefix (`--topic-prefix`, by default `everput.`). The titles inside
a section are the names of events, with their versions.

Ignore fields that you do not know, because new versions of Everput may add fields.

If a change would break programs that read an event, the event gets a new version.

Events of earlier versions stay in the topics, so this page describes them below the current version.

Fields marked *secret* or *internal* are stored in Kafka, but `GET /v1/log` and `everput export` leave them out.
Internal fields hold offsets of Kafka partitions. All organizations share these partitions, so no organization
may see the offsets.

The topic `claims` keeps its records for two days, and the topic `statistics` for 30 days. The topic `outstanding` is
compacted.

`GET /v1/log` reads all topics except `claims`, `statistics` and `outstanding`.

Every event has
"""


@click.command("events", epilog=examples("everput events > events.md"))
def command() -> None:
    """Print every type of event with its topic and fields, in all versions, as Markdown."""
    print(catalogue(), end="")


def catalogue() -> str:
    """Return the text of docs/events.md."""
    lines = [_HEAD, *_table([(name, _json_type(_type_of(name)), FIELDS[name]) for name in _COMMON])]
    for topic in (*TOPICS, *PASSING):
        found = [name for name, where in TOPIC_OF.items() if where == topic]
        if found:
            lines += ["", f"## `{topic}`"]
        for name in found:
            rows = list(_rows(CLASSES[name], ""))
            lines += _version(f"### `{name}`, version {VERSIONS[name]}", rows)
            for version in range(VERSIONS[name] - 1, 0, -1):
                former = FORMER[name, version]
                rows = [row for row in rows if row[0] not in former.lacks]
                lines += _version(f"#### `{name}`, version {version}", rows)
                former_text = f"Everput no longer writes version {version} of `{name}`."
                former_text += " The log may still have events of this version."
                lines += ["", f"{former_text} Such an event means: {former.read_as}."]
    return "\n".join(lines) + "\n"


def _version(heading: str, rows: list[tuple[str, str, str]]) -> list[str]:
    return ["", heading, *(["", *_table(rows)] if rows else [])]


def _rows(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, str, str]]:
    for field in msgspec.structs.fields(kind):
        if field.name in _COMMON and not path:
            continue
        mark = " *secret*" if field.name in SECRET else " *internal*" if field.name in INTERNAL else ""
        yield path + field.name, _json_type(field.type), FIELDS[field.name] + mark
        nested = struct_of(field.type)
        if nested is not None:
            yield from _rows(nested, f"{path}{field.name}.")


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    yield "| field | JSON | |"
    yield "|---|---|---|"
    for name, kind, words in rows:
        yield f"| `{name}` | {kind} | {words} |"


def _type_of(name: str) -> Any:
    return next((field.type for field in msgspec.structs.fields(Event) if field.name == name), str)


def _json_type(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("absent" if one is msgspec.UnsetType else _json_type(one) for one in get_args(kind))
    if origin is tuple:
        return f"array of {_json_type(get_args(kind)[0])}" if get_args(kind)[-1] is ... else "array"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return "object"
    return _JSON[kind]
