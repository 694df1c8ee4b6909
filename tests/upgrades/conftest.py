"""The dice of the tests that put load on two versions."""

from __future__ import annotations

from tests.scenarios.conftest import dice

__all__ = ["dice"]
