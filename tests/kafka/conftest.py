"""What all tests on a real Kafka in the test's own process share: patience."""

from __future__ import annotations

from tests.patience import patient

__all__ = ["patient"]
