"""An organization sees no offsets in the ids of deliveries whose messages can't be read, and can redrive them."""

from __future__ import annotations

from api.damaged_ids import DamagedIds
from broker.core.catalogue import shown
from broker.core.events import ListenerRedriven
from broker.core.ids import damaged_id, message_id
from broker.sealing import Sealer, new_sealing_key

ID = message_id(at_ms=1, partition=2, random_bits=3)
RAW = damaged_id(7, 10, 2**63 - 1)


def test_a_damaged_id_is_sealed_for_its_organization_stays_the_same_and_other_ids_are_as_they_are():
    old, new = new_sealing_key(), new_sealing_key()
    ids = DamagedIds(Sealer(old))
    assert ids.shown(ID, "o") == ID
    sealed = ids.shown(RAW, "o")
    assert "7-10" not in sealed
    assert ids.shown(RAW, "o") == sealed != ids.shown(damaged_id(7, 10, 11), "o")
    assert len(ids.shown(damaged_id(0, 1, 1), "o")) == len(sealed)
    assert ids.opened(sealed, "o") == RAW
    assert DamagedIds(Sealer(f"{new},{old}")).opened(sealed, "o") == RAW
    assert DamagedIds(Sealer(new)).opened(sealed, "o") is None
    assert ids.opened(sealed, "p") is None


def test_nothing_else_is_opened():
    ids = DamagedIds(Sealer(new_sealing_key()))
    sealed = ids.shown(RAW, "o")
    for text in (
        RAW,
        ID,
        "",
        "damaged-",
        sealed[:-1],
        sealed + "A",
        sealed.replace("damaged-", ""),
        "damaged-" + "A" * 62,
    ):
        assert ids.opened(text, "o") is None


def test_readers_of_the_log_see_no_offsets_of_a_redrive():
    event = ListenerRedriven(at_ms=1, organization_id="o", actor="key:k", listener_id="l", message_ids=(ID, RAW))
    assert shown(event)["message_ids"] == [ID, "damaged"]
