"""Tells which Pythons have known security faults."""

from __future__ import annotations

import pytest

from cli.processes.python_version import outdated


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 11, 7), "3.11.10"),
        ((3, 11, 10), None),
        ((3, 12, 5), "3.12.6"),
        ((3, 12, 6), None),
        ((3, 13, 0), None),
        ((3, 14, 0), None),
    ],
)
def test_a_python_before_the_security_fixes_is_outdated(version, sound):
    assert outdated(version) == sound
