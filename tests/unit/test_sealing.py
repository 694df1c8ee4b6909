"""What is encrypted in the log, and the change of the key."""

from __future__ import annotations

import pytest

from broker.errors import ConfigurationError
from broker.sealing import Sealer, new_sealing_key

OLD, NEW = new_sealing_key(), new_sealing_key()


def test_what_was_sealed_is_opened_and_looks_different_each_time():
    sealer = Sealer(OLD)
    assert sealer.open(sealer.seal("größe")) == "größe"
    assert sealer.seal("x") != sealer.seal("x")


@pytest.mark.parametrize("keys", ["", "x", f"{OLD},", f"{OLD},x", OLD[:-2]])
def test_what_is_no_key_is_refused(keys):
    with pytest.raises(ConfigurationError, match="sealing key"):
        Sealer(keys)


def test_the_first_key_seals_and_any_opens():
    sealed = Sealer(OLD).seal("x")
    both = Sealer(f"{NEW}, {OLD}")
    assert both.open(sealed) == "x"
    assert Sealer(NEW).open(both.seal("y")) == "y"
    for alone in (Sealer(NEW), Sealer(new_sealing_key())):
        with pytest.raises(ConfigurationError, match="EVERPUT_SEALING_KEY"):
            alone.open(sealed)
        with pytest.raises(ConfigurationError):
            alone.check([sealed])


def test_only_what_another_key_has_sealed_is_sealed_anew():
    both = Sealer(f"{NEW},{OLD}")
    old, new = Sealer(OLD).seal("x"), both.seal("y")
    anew = both.reseal([old, new])
    assert list(anew) == [old]
    assert Sealer(NEW).open(anew[old]) == "x"
    assert both.reseal(anew.values()) == {}
