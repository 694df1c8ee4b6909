"""No part of `broker` grows until only its authors can read it: the longest module, class and constructor.

Not for: which part may import which (pyproject.toml, import-linter)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BROKER = Path(__file__).parent.parent.parent / "broker"
MODULE_MAX, CLASS_MAX, CONSTRUCTOR_MAX = 450, 350, 40  # lines


def too_long(source: str) -> Iterator[tuple[str, int]]:
    if (lines := len(source.splitlines())) > MODULE_MAX:
        yield "module", lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > CLASS_MAX or (node.name == "__init__" and lines > CONSTRUCTOR_MAX):
                yield node.name, lines


@pytest.mark.parametrize("path", sorted(BROKER.rglob("*.py")), ids=lambda path: str(path.relative_to(BROKER)))
def test_a_part_of_broker_stays_readable(path: Path):
    assert list(too_long(path.read_text())) == []


def test_what_is_too_long_is_found():
    constructor = "    def __init__(self):\n" + "        a = 1\n" * CONSTRUCTOR_MAX
    assert list(too_long(f"class A:\n{constructor}")) == [("__init__", CONSTRUCTOR_MAX + 1)]
    assert list(too_long("class A:\n" + "    a = 1\n" * CLASS_MAX)) == [("A", CLASS_MAX + 1)]
    assert list(too_long("a = 1\n" * MODULE_MAX)) == []
    assert list(too_long("a = 1\n" * (MODULE_MAX + 1))) == [("module", MODULE_MAX + 1)]
