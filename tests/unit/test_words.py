"""What `make check` refuses in docstrings and documents (tests/words.py)."""

from __future__ import annotations

import ast

import pytest

from tests.words import WORDS_MAX, long_sentences, objection


def node(kind: str) -> ast.ClassDef | ast.FunctionDef:
    found = ast.parse(f"{kind} thing: ..." if kind == "class" else f"{kind} thing(): ...").body[0]
    assert isinstance(found, ast.ClassDef | ast.FunctionDef)
    return found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("class", "Of one process."),
        ("class", "What a worker knows."),
        ("class", "Who uses a connection."),
        ("class", "offset: in its partition."),
        ("class", "topic, partition: where it is."),
        ("def", "The records from an offset on."),
        ("def", "Nor is anything tried."),
        ("def", "Without it nothing works."),
    ],
)
def test_a_docstring_that_does_not_name_its_subject_is_refused(kind, text):
    assert objection(node(kind), text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("class", "A listener of a queue.\n\noffset: in its partition."),
        ("class", "The state folded from `control`."),
        ("def", "Return the records from an offset on."),
        ("def", "Whether the listener is up."),
    ],
)
def test_a_docstring_that_names_its_subject_is_taken(kind, text):
    assert objection(node(kind), text) is None


def test_a_sentence_of_more_than_forty_words_is_found_and_a_table_and_a_sample_are_not_sentences():
    long = " ".join(["Word"] * (WORDS_MAX + 1)) + "."
    short = " ".join(["Word"] * WORDS_MAX) + "."
    assert list(long_sentences(f"{short} {short}\n\n{long}\n")) == [long]
    assert list(long_sentences(f"| {short} | {short} |\n\n```text\n{long}\n```\n\n    {long}\n")) == []
