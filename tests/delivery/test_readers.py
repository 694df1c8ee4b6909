"""The readers alone, without sockets: who is told, who is served when. What they read is made up here."""

from __future__ import annotations

from types import SimpleNamespace

from broker.delivery.readers import Partition


class CountsComparisons(SimpleNamespace):
    """A courier as far as a partition looks at it that keeps up."""

    compared = 0
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        CountsComparisons.compared += 1
        return self is other


def test_a_queues_thousandth_listener_is_placed_and_dismissed_without_a_look_at_the_others():
    partition = Partition(0, 0)
    listener = SimpleNamespace(queue_id="q-1", replay=None)
    couriers = [CountsComparisons(listener=listener, streams={}) for _ in range(1_000)]
    for courier in (*couriers, *couriers):
        partition.place(courier)
    for courier in couriers:
        partition.dismiss(courier)
    assert CountsComparisons.compared < 1_000  # of equal hashes, if there are any
    assert not any(partition.placed(courier) for courier in couriers)
