"""Fuzzes one parser of foreign text, guided by coverage: `fuzz.py NAME`, and libFuzzer's options.

For: test_fuzz.py. An error that a parser may raise for a bad text is none; any other one, a text that takes longer than
libFuzzer's -timeout, or memory beyond its -rss_limit_mb ends it with an exit code that is not 0."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["api", "broker", "cli", "everput"]):
    import click
    from foreign_text import text_parsers

    import everput
    from broker.errors import BrokerError

REFUSALS = (ValueError, BrokerError, click.UsageError, everput.InvalidSignature, everput.EverputError)


async def _main() -> None:
    parser = text_parsers()[sys.argv.pop(1)]

    def read(data: bytes) -> None:
        with suppress(*REFUSALS):
            parser.read(parser.before + data.decode(errors="replace"))

    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    asyncio.run(_main())
