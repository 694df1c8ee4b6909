"""A listener that fails everything is told of now and then."""

from __future__ import annotations

from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.tuning import TUNED

LINES_MAX = TUNED.log_lines_per_s


def test_a_few_lines_a_second_and_the_next_one_says_how_many_were_left_out():
    lines = LogRateLimit()
    assert [lines.left_out(5_000 + number) for number in range(100)] == [0] * LINES_MAX + [None] * (100 - LINES_MAX)
    assert lines.left_out(6_000) == 100 - LINES_MAX
    assert lines.left_out(6_001) == 0
