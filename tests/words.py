"""The check of words in `make check`: docstrings that name their subject, and sentences of at most 40 words.

For: the rules that a program can tell. A class docstring begins with a noun phrase, a function's with a verb. A
document has no sentence of more than 40 words. Not for: whether a sentence is true or understood, which readers judge.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = ("broker", "api", "cli", "projections", "everput")
WORDS_MAX: Final = 40

# First words that leave the subject open, for classes and functions alike.
_OPEN: Final = re.compile(
    r"(and|as|at|because|before|beside|but|by|for|from|he|how|if|in|it|like|likewise|nor|of|on|one|or|out|she|so|such|than"
    r"|that|their|them|then|there|these|they|this|those|to|until|we|what|when|where|which|while|who|whoever|whom|whose|why"
    r"|with|within|without|you)\b",
    re.IGNORECASE,
)
# First words of a noun phrase. A function's docstring begins with a verb; a property's may be a noun phrase.
_DETERMINER: Final = re.compile(r"(a|an|the|all|any|both|each|every|its|most|no|some)\b", re.IGNORECASE)
_FIELD: Final = re.compile(r"[a-z_]\w*(?:, [a-z_]\w*)*(?: and [a-z_]\w*)?:(?!:)")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?:;])[)*_\"”]*\s+(?=[\"(*_`“]*[A-Z0-9`])|(?<=[.!?:;])$")

Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def objection(node: Node, text: str) -> str | None:
    """Say what is wrong with the first words of a docstring; None if nothing is."""
    first = text.partition(" ")[0]
    if _FIELD.match(text):
        return "begins with a field"
    if _OPEN.match(text):
        return f"begins with {first!r}"
    if not isinstance(node, ast.ClassDef) and not _is_property(node) and _DETERMINER.match(text):
        return f"is a function's and begins with {first!r}, not with a verb"
    return None


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        "property" in ast.unparse(decorator) or "fixture" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def _is_problem(node: Node) -> bool:
    """Return whether a class is an error with a code: its docstring is the detail that a client gets."""
    return isinstance(node, ast.ClassDef) and any(
        isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "code" for statement in node.body
    )


def docstrings(path: Path) -> Iterator[tuple[Node, str]]:
    """Yield the classes and functions of a module that have a docstring, with it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def long_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a document that have more than WORDS_MAX words. In a table, each item of a cell counts."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)  # samples
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |#|\|))", text):
        for cell in re.split(r"\||; ", block) if block.lstrip().startswith("|") else [block]:
            for sentence in _SENTENCE_END.split(" ".join(cell.split())):
                if len(re.findall(r"\S*\w\S*", sentence)) > WORDS_MAX:
                    yield sentence


def objections() -> Iterator[str]:
    """Yield a line for each text that breaks a rule."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node, text in docstrings(path):
                why = None if _is_problem(node) else objection(node, text)
                if why:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: the docstring of {node.name} {why}"
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]):
        for sentence in long_sentences(path.read_text()):
            yield f"{path.relative_to(ROOT)}: a sentence of more than {WORDS_MAX} words: {sentence[:80]}…"


if __name__ == "__main__":
    found = list(objections())
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))
