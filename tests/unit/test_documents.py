"""Every link, heading and file that a document names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("broker", "api", "cli", "projections", "everput")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_it_names_files_that_exist(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:tests|broker|api|cli|everput|docs|projections|benchmarks)/[\w/.-]+)`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


DECISIONS = {path.name[:4]: path for path in ROOT.glob("docs/decisions/[0-9]*.md")}


def test_every_decision_has_at_most_300_words_and_is_in_the_index():
    index = (ROOT / "docs/decisions/README.md").read_text()
    for path in DECISIONS.values():
        prose = [line for line in path.read_text().splitlines() if not line.startswith(("#", "|"))]
        assert len(re.findall(r"\S*\w\S*", " ".join(prose))) <= 300, path.name
        assert f"({path.name})" in index


def test_every_decision_that_is_named_exists():
    files = [path for folder in (*SOURCES, "docs", "benchmarks", "tests") for path in (ROOT / folder).rglob("*")]
    named = {
        (str(path.relative_to(ROOT)), number)
        for path in [*files, *DOCUMENTS]
        if path.suffix in {".py", ".md"}
        for numbers in re.findall(r"decisions?[ /]((?:\d{4}(?:, | and )?)+)", path.read_text())
        for number in re.findall(r"\d{4}", numbers)
    }
    named |= {
        (path.name, number) for path in DECISIONS.values() for number in re.findall(r"\((0\d{3})\)", path.read_text())
    }
    assert len(named) > 40
    assert sorted((where, number) for where, number in named if number not in DECISIONS) == []
