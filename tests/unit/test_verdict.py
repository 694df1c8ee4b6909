"""The history checker itself: a good run passes, and each planted lie is found and called by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.scenarios.verdict import Attempt, Crash, Put, Record, Taken, Update, violations


def good() -> Record:
    """Ten puts, one a second from 10 on, half of them of one key; a crash at 15.5 repeats two; `late` began at 14.5.
    m8 has a time, m9 is updated before anybody has it."""
    puts = [Put(f"m{n}", "k" if n % 2 else None, 10.0 + n, 10.1 + n, f"id{n}") for n in range(10)]
    puts[8] = replace(puts[8], due_at=18.15)
    puts.append(Put("doubt", None, 16.2, 17.0, None))
    taken = [Taken(put.data, put.message_id or "id-doubt", put.sent_at + 0.2) for put in puts]
    taken[9] = replace(taken[9], update=1)
    again = [replace(taken[number], at=16.1) for number in (4, 5)]
    at = dict(enumerate(taken))
    return Record(
        puts=puts,
        listeners={"all": (1.0, 2.0), "late": (14.4, 14.6)},
        taken={
            "all": [*(at[n] for n in range(6)), *again, *(at[n] for n in range(6, 11))],
            "late": [at[n] for n in (5, 6, 7, 8, 10, 9)],
        },
        updates=[Update("m9", 1, 19.11, 19.15, frozenset({"all", "late"}))],
        attempts={"all": [Attempt(one.data, one.at, one.at + 1.9) for one in taken if one.data != "m6"]},
        crashes=[Crash(15.5, 15.5, 14.1, 1)],
    )


def test_a_good_run_has_no_violation():
    assert violations(good()) == []


def test_what_is_visibly_waiting_is_not_lost():
    record = good()
    del record.taken["all"][0]
    assert violations(record) == ["lost: m0 (all)"]
    record.waiting.add(("all", "m0"))
    assert violations(record) == []


def test_what_was_parked_comes_after_later_ones_of_its_key_and_those_keep_their_order():
    record = good()
    record.taken["all"].append(replace(record.taken["all"].pop(1), at=30.0))
    assert violations(record)[0].startswith("out of order: m3 before")
    record.parked.add(("all", "m1"))
    assert violations(record) == []
    record.taken["all"].insert(0, record.taken["all"].pop(4))
    assert [one.partition(":")[0] for one in violations(record)] == ["out of order"]


def test_what_is_deleted_has_no_order_any_more():
    record = good()
    record.taken["all"].append(replace(record.taken["all"].pop(1), at=15.6))
    assert violations(record)[0].startswith("out of order: m3 before")
    record.deleted.add("m1")
    assert violations(record) == []


def test_what_is_deleted_may_come_or_not_and_to_whom_it_was_denied_only_from_one_who_was_gone():
    record = good()
    record.taken["all"].remove(next(one for one in record.taken["all"] if one.data == "m8"))
    assert violations(record) == ["lost: m8 (all)"]
    record.deleted.add("m8")
    assert violations(record) == []
    record.cancelled = {("all", "m8"): 18.3, ("late", "m7"): 15.5}
    assert violations(record) == []
    record.cancelled = {("late", "m8"): 18.1, ("late", "m7"): 17.3}
    assert [one.partition(":")[0] for one in violations(record)] == ["deleted", "deleted"]


def test_after_an_update_in_doubt_and_around_a_crash_either_data_may_come():
    record = good()
    record.updates.append(Update("m6", 1, 15.9))
    record.updates.append(Update("m5", 1, 15.1, 15.15, frozenset({"all", "late"})))
    record.crashes = [Crash(15.15, 16.1, 14.1, 1)]
    assert violations(record) == []
    record.crashes = [Crash(12.0, 14.0, 12.0, 2)]
    assert {one for one in violations(record) if one.startswith("outdated")} == {
        "outdated: m5 was delivered +0.050 s after its update 1 (all)",
        "outdated: m5 was delivered +0.950 s after its update 1 (all)",
        "outdated: m5 was delivered +0.050 s after its update 1 (late)",
    }


def test_who_is_not_said_to_get_an_update_may_be_sent_what_was_before_at_that_moment_and_not_clearly_later():
    record = good()
    record.updates.append(Update("m8", 1, 17.9, 18.0))
    assert [one.partition(":")[0] for one in violations(record)] == ["outdated", "outdated"]
    record.slack_s = 0.3
    assert violations(record) == []


def test_around_a_crash_two_of_a_key_may_be_under_way():
    record = good()
    record.attempts["all"].append(Attempt("m5", 15.6, 15.7))
    assert violations(record) == []
    record.crashes[0] = replace(record.crashes[0], ended=14.0, began=14.0)
    assert "at once" in {one.partition(":")[0] for one in violations(record)}


def test_a_put_in_doubt_may_come_or_not():
    record = good()
    record.taken["all"] = [one for one in record.taken["all"] if one.data != "doubt"]
    assert violations(record) == []


def test_a_put_while_the_listener_was_being_made_may_come_or_not():
    record = good()
    record.listeners["late"] = (14.05, 15.05)
    assert violations(record) == []
    record.taken["late"].insert(0, Taken("m4", "id4", 14.2))
    assert violations(record) == []


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("lost", lambda r: r.taken["late"].pop(2)),
        ("lost", lambda r: r.taken.pop("late")),
        ("phantom", lambda r: r.taken["all"].append(Taken("nobody's", "id", 20.0))),
        ("phantom", lambda r: r.taken["all"].__setitem__(0, replace(r.taken["all"][0], at=9.0))),
        ("phantom", lambda r: r.taken["all"].__setitem__(0, replace(r.taken["all"][0], message_id="id1"))),
        ("phantom", lambda r: r.taken["all"].append(Taken("doubt", "id-other", 20.0))),
        ("too early", lambda r: r.taken["late"].insert(0, Taken("m3", "id3", 15.0))),
        ("before its time", lambda r: r.puts.__setitem__(8, replace(r.puts[8], due_at=19.0))),
        ("at once", lambda r: r.attempts["all"].append(Attempt("m3", 12.0, 12.1))),
        ("at once", lambda r: r.attempts["all"].append(Attempt("m3", 12.0, 30.0))),
        ("deleted", lambda r: r.cancelled.update({("all", "m9"): 19.1})),
        ("outdated", lambda r: r.updates.append(Update("m8", 1, 17.2, 17.3))),
        ("outdated", lambda r: r.updates.append(Update("m8", 1, 18.2, 18.3, frozenset({"late"})))),
        ("outdated", lambda r: r.updates.append(Update("m9", 2, 19.15, 19.18, frozenset({"all"})))),
        ("phantom", lambda r: r.taken["late"].__setitem__(-1, replace(r.taken["late"][-1], update=2))),
        ("phantom", lambda r: r.updates.__setitem__(0, replace(r.updates[0], sent_at=19.3))),
        ("out of order", lambda r: r.taken["all"].insert(1, r.taken["all"].pop(3))),
        ("out of order", lambda r: r.taken["late"].insert(0, r.taken["late"].pop(2))),
        ("repeated", lambda r: r.taken["all"].append(Taken("m9", "id9", 30.0, 1))),
        ("repeated", lambda r: r.crashes.clear()),
        ("repeated", lambda r: r.taken["all"].extend(Taken(f"m{n}", f"id{n}", 30.0) for n in range(4))),
    ],
)
def test_a_planted_lie_is_found(kind: str, plant):
    record = good()
    plant(record)
    found = violations(record)
    assert kind in {one.partition(":")[0] for one in found}, found


def test_a_crash_explains_what_was_settled_since_the_checkpoint_and_what_was_in_flight_and_no_more():
    record = good()
    record.crashes = [Crash(15.5, 15.5, 14.8, 0)]  # m5 alone was settled since
    assert violations(record) == ["repeated: m5 once more than crashes explain (1, 0) (all)"]
    record.crashes = [Crash(15.5, 15.5, 14.8, 1)]
    assert violations(record) == []


def test_a_crash_explains_more_of_who_gives_way_and_of_nobody_else():
    record = good()
    record.crashes = [Crash(15.5, 15.5, 15.4, 1, since_of_slow=14.8)]
    assert violations(record) == ["repeated: m5 once more than crashes explain (0, 1) (all)"]
    record.slow = {"all"}
    assert violations(record) == []


def test_what_was_put_after_a_worker_was_gone_another_one_has_settled_for_good():
    record = good()
    record.crashes = [Crash(13.9, 15.5, 13.1, 0, puts_until=13.9)]  # m3 alone may be repeated
    assert violations(record)[1:] == ["repeated: m5 once more than crashes explain (0) (all)"]
    record.crashes = [Crash(13.9, 15.5, 13.1, 1, puts_until=13.9)]  # or one that was in flight
    assert [one.partition(" once")[0] for one in violations(record)] == ["repeated: m5"]
    record.crashes = [Crash(13.9, 15.5, 13.1, 0)]
    assert violations(record) == []


def test_a_lost_answer_explains_one_repeat():
    record = good()
    record.taken["all"].append(Taken("m9", "id9", 30.0, 1))
    record.lost_answers = 1
    assert violations(record) == []
    record.taken["all"].append(Taken("m8", "id8", 31.0))
    assert violations(record) == ["repeated: m9 without a crash (all)", "repeated: m8 without a crash (all)"]
