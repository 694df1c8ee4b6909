"""The tests themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_every_test_file_has_a_name_of_its_own():
    """pytest can't tell two modules of one name apart, and then runs nothing at all."""
    names = Counter(path.name for path in Path(__file__).parent.parent.glob("*/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
