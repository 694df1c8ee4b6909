"""No text from outside takes more than linear time to parse, counted in instructions; and no parser is left out.

For: foreign_text.py under Callgrind, and its lists held against the code. Not for: what parsers answer."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from foreign_text import COVERED, OURS, SIZES

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("api", "broker", "cli", "everput", "projections")
MODULES: Final = {"re", "orjson", "json", "msgspec", "base64", "httptools", "datetime", "socket"}
# The functions of those modules that read a text; methods that do, whatever their object; functions with such a name.
ATTRIBUTES: Final = {
    *("loads", "convert", "decode", "b64decode", "urlsafe_b64decode", "inet_aton", "split", "sub", "subn", "findall"),
}
ANYWHERE: Final = {"fullmatch", "match", "search", "finditer", "feed_data", "fromisoformat", "strptime", "fromhex"}
NAMES: Final = {
    *("urlsplit", "urlparse", "parse_qsl", "parse_qs", "unquote", "parse_url", "ip_address", "ip_network"),
    *("parsedate_to_datetime", "cookie_parser"),
}
MORE: Final = {"cookie", "visible", "visible_json"}  # which call none of these, and still read foreign text
GROWTH_MAX: Final = 2.6  # 2 is linear, 4 quadratic
NOISE: Final = 1_000_000  # instructions


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def parses(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name):
            return name in NAMES
        case ast.Attribute(value=value, attr=attr):
            module = ast.unparse(value).split(".")[0].split("(")[0]
            return attr in ANYWHERE or (module in MODULES and attr in ATTRIBUTES and not isinstance(value, ast.Call))
    return False


def parsing_functions(node: ast.AST, within: tuple[str, ...] = ()) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from parsing_functions(child, (*within, child.name))
            continue
        if isinstance(child, ast.Call) and parses(child):
            yield ".".join(within)
        yield from parsing_functions(child, within)


def test_each_function_that_parses_is_run_with_hostile_texts_or_its_text_is_ours():
    found = {name for _, tree in modules() for name in parsing_functions(tree)} - {""} | MORE
    covered = {name for names in COVERED.values() for name in names.split()}
    assert sorted(found - covered - OURS.keys()) == [], "add them to foreign_text.py"
    assert sorted((covered | OURS.keys()) - found) == [], "they parse nothing any more"


def test_each_regular_expression_says_why_it_is_linear():
    unsaid = []
    for path, tree in modules():
        lines = path.read_text().splitlines()
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=attr)) if attr != "escape":
                    said = lines[node.lineno - 2 : node.lineno]
                    if not any(
                        say in line
                        for line in said
                        for say in ("# This regular expression takes ", "# Only our own text: ")
                    ):
                        unsaid.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert unsaid == []


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, which counts instructions, is not installed")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_parser_takes_more_than_linear_time(tmp_path: Path):
    here = Path(__file__).parent
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={tmp_path}/out"),
            *(sys.executable, str(here / "foreign_text.py")),
        ],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    names = done.stdout.splitlines()
    assert set(names) >= COVERED.keys()
    too_much = []
    for number, name in enumerate(names):
        first = number * (len(SIZES) + 1) + 2  # the dump before it is of what came between two parsers
        costs = [instructions(tmp_path / f"out.{first + run}") for run in range(len(SIZES))]
        steps = [after - before for before, after in pairwise(costs)]
        if any(after > GROWTH_MAX * max(before, 0) + NOISE for before, after in pairwise(steps)):
            too_much.append((name, costs))
    assert too_much == []


def instructions(dump: Path) -> int:
    """The instructions that a dump counted."""
    return next(int(line.split()[1]) for line in dump.read_text().splitlines() if line.startswith("totals:"))
