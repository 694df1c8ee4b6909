"""The fold of the directory: whatever is in the log, in whatever order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from broker.core import events as ev
from broker.core.accounts import SESSIONS_MAX
from broker.core.codec import decode, encode
from broker.core.digests import difference, digests, state_hash
from broker.core.directory import Directory
from broker.core.events import Event

# Few of each, so that events meet: the same name, an id that is gone, another organization's id.
organizations = st.sampled_from(["o1", "o2"])
queue_ids = st.sampled_from(["q1", "q2", "q3"])
listener_ids = st.sampled_from(["l1", "l2", "l3"])
key_ids = st.sampled_from(["k1", "k2"])
replay_ids = st.sampled_from(["r1", "r2"])
names = st.sampled_from(["a", "b"])
at = st.integers(0, 5)


def of(kind: type[Event], **fields) -> st.SearchStrategy[Event]:
    return st.builds(kind, at_ms=at, organization_id=organizations, **fields)


urls = {"notify_url": st.just("https://n.example"), "liveness_url": st.just("https://l.example")}
versions = st.sampled_from([UNSET, 1, 2, 3])
seals = st.sampled_from(["sealed", "sealed too", "sealed anew"])
account_ids = st.sampled_from(["a1", "a2", "a3"])
invitation_ids = st.sampled_from(["i1", "i2"])
session_ids = st.sampled_from(["s1", "s2", "s3"])
control_events = st.one_of(
    of(
        ev.AccountCreated,
        account_id=account_ids,
        email=st.sampled_from(["A@b.c", "a@b.c", "d@b.c"]),
        password_hash=st.just("hash"),
    ),
    of(
        ev.AccountPasswordChanged,
        account_id=account_ids,
        session_id=session_ids,
        password_hash=st.sampled_from(["another", "a third"]),
    ),
    of(
        ev.AccountPasswordReset,
        account_id=account_ids,
        password_hash=st.just("one-time"),
        expires_at_ms=st.integers(0, 8),
    ),
    of(ev.AccountSessionsEnded, account_id=account_ids, kept_session_id=session_ids | st.just("")),
    of(ev.AccountBlocked, account_id=account_ids),
    of(ev.AccountUnblocked, account_id=account_ids),
    of(ev.AccountDeleted, account_id=account_ids, even_if_last=st.booleans()),
    of(ev.OrganizationLeft, account_id=account_ids, even_if_last=st.booleans()),
    of(
        ev.SessionCreated,
        session_id=session_ids,
        account_id=account_ids,
        token_sha256=st.sampled_from(["t1", "t2", "t3"]),
        expires_at_ms=st.integers(3, 8),
    ),
    of(ev.SessionEnded, session_id=session_ids),
    of(ev.OrganizationCreated, name=names),
    of(ev.OrganizationJoined, account_id=account_ids),
    of(
        ev.InvitationCreated,
        actor=st.just("shell") | st.builds("account:{}".format, account_ids),
        invitation_id=invitation_ids,
        email=st.just("e@b.c"),
        token_sha256=st.sampled_from(["t1", "t2"]),
        expires_at_ms=st.integers(3, 8),
    ),
    of(ev.InvitationRevoked, invitation_id=invitation_ids),
    of(ev.InvitationAccepted, invitation_id=invitation_ids, account_id=account_ids),
    of(
        ev.KeyCreated,
        key_id=key_ids,
        name=names,
        prefix=names,
        secret_sha256=st.sampled_from(["s1", "s2"]),
        scopes=st.just(("queues",)),
        queue_ids=st.none() | st.just(("q1",)),
        expires_at_ms=st.none() | at,
    ),
    of(
        ev.ReplayStarted,
        replay_id=replay_ids,
        listener_id=listener_ids,
        from_ms=at,
        to_ms=at,
        only=st.just("all"),
        rate_per_s=st.none(),
        start_offsets=st.just((0, 0)),
        end_offsets=st.just((1, 2)),
        before_offsets=st.just((1, 2)),
        after_offsets=st.just((1, 2)),
        picked=st.none(),
        count=st.just(3),
        counted_all=st.booleans(),
        **{name: st.none() | url for name, url in urls.items()},
    ),
    of(ev.ReplayAdvanced, replay_id=replay_ids, partitions=st.sampled_from([(0,), (1,), (0, 1)])),
    of(ev.ReplayPaused, replay_id=replay_ids, reason=names),
    of(ev.ReplayResumed, replay_id=replay_ids),
    of(ev.ReplayCancelled, replay_id=replay_ids),
    of(ev.KeyRevoked, key_id=key_ids),
    of(ev.KeyUsed, key_id=key_ids),
    of(ev.QueueCreated, queue_id=queue_ids, name=names),
    of(ev.QueueRenamed, queue_id=queue_ids, name=names, if_version=versions),
    of(ev.QueueDeleted, queue_id=queue_ids, if_version=versions),
    of(ev.QueueAlertsSet, queue_id=queue_ids, if_version=versions, alerts=st.builds(ev.AlertThresholds)),
    of(ev.AlertRaised, alert=st.just("listener.down"), alert_id=names, listener_id=listener_ids),
    of(ev.AlertCleared, alert=st.just("listener.down"), alert_id=names, listener_id=listener_ids),
    of(ev.AlertTold, alert_id=names, message_id=names),
    of(
        ev.ListenerCreated,
        listener_id=listener_ids,
        queue_id=queue_ids,
        name=names,
        sealed_secret=seals,
        start_offsets=st.just((0, 1)),
        **urls,
    ),
    of(
        ev.ListenerUpdated,
        listener_id=listener_ids,
        name=names,
        settings=st.just(ev.ListenerSettings()),
        if_version=versions,
        **urls,
    ),
    of(ev.ListenerSecretRotated, listener_id=listener_ids, sealed_secret=seals, former_end_at_ms=st.integers(0, 9)),
    of(ev.ListenerResealed, listener_id=listener_ids, sealed=st.dictionaries(seals, seals, max_size=2)),
    of(ev.ListenerPaused, listener_id=listener_ids, reason=names),
    of(ev.ListenerResumed, listener_id=listener_ids),
    of(ev.ListenerRedriven, listener_id=listener_ids, message_ids=st.sampled_from([(), ("m1",), ("m1", "m2")])),
    of(ev.ListenerRedrivesCancelled, listener_id=listener_ids),
    of(ev.ListenerDeleted, listener_id=listener_ids, if_version=versions),
)
logs = st.lists(control_events, max_size=60)


def fold(log: list[Event]) -> Directory:
    directory = Directory()
    for event in log:
        directory.apply(event)
    return directory


def seen_by(directory: Directory, organization_id: str) -> object:
    """All that belongs to one organization."""
    return (
        directory.organizations.get(organization_id),
        [key for key in directory.keys.values() if key.organization_id == organization_id],
        [
            (queue.id, queue.name, queue.created_at_ms, queue.version, list(queue.listeners.values()))
            for queue in directory.queues_of(organization_id)
        ],
        [one for one in directory.replays.everything() if one.organization_id == organization_id],
        {one.id: one for one in directory.listeners.values() if one.organization_id == organization_id},
    )


@given(logs)
def test_folding_the_log_again_gives_the_same_state(log):
    assert state_hash(fold(log)) == state_hash(fold([decode(encode(event)) for event in log]))


@given(logs)
def test_a_name_is_there_once_in_an_organization_and_once_in_a_queue(log):
    directory = fold(log)
    queues = Counter((queue.organization_id, queue.name) for queue in directory.queues.values())
    listeners = Counter((one.queue_id, one.name) for one in directory.listeners.values() if one.replay is None)
    assert all(count == 1 for count in [*queues.values(), *listeners.values()])


@given(logs)
def test_every_index_says_the_same(log):
    directory = fold(log)
    queues = directory.queues.values()
    listeners = [one for one in directory.listeners.values() if one.replay is None]
    assert {(queue.organization_id, queue.name): queue for queue in queues} == directory.queues_by_name
    assert {(one.queue_id, one.name): one for one in listeners} == directory.listeners_by_name
    assert {one.id: one for queue in queues for one in queue.listeners.values()} == {one.id: one for one in listeners}
    assert {key.secret_sha256: key for key in directory.keys.values()} == directory.keys_by_sha256
    assert {key.id: key for each in ("o1", "o2") for key in directory.keys_of(each)} == directory.keys
    joined = {(each.id, member) for each in directory.organizations.values() for member in each.members}
    of_accounts = {(each.id, one) for one in ("a1", "a2", "a3") for each in directory.organizations_of(one)}
    assert joined == of_accounts
    of_organizations = [queue.id for organization in ("o1", "o2") for queue in directory.queues_of(organization)]
    assert sorted(of_organizations) == sorted(directory.queues)


@given(logs, control_events.filter(lambda event: not isinstance(event, ev.AccountDeleted)))  # that is no organization's
def test_an_event_of_one_organization_changes_nothing_of_another(log, event):
    directory = fold(log)
    other = "o2" if event.organization_id == "o1" else "o1"
    before = seen_by(directory, other)
    directory.apply(event)
    assert seen_by(directory, other) == before


@given(logs, control_events)
def test_an_event_that_was_passed_over_changed_nothing(log, event):
    directory = fold(log)
    before = state_hash(directory)
    if not directory.apply(event):
        assert state_hash(directory) == before


@given(logs)
def test_the_same_events_in_another_process_are_passed_over_alike(log):
    one, other = Directory(), Directory()
    assert [one.apply(event) for event in log] == [other.apply(event) for event in log]


def test_of_two_queues_that_want_one_name_the_first_in_the_log_has_it():
    directory = Directory()
    assert directory.apply(ev.QueueCreated(at_ms=2, organization_id="o", queue_id="first", name="orders"))
    assert not directory.apply(ev.QueueCreated(at_ms=1, organization_id="o", queue_id="second", name="orders"))
    assert list(directory.queues) == ["first"]


@given(logs)
def test_an_e_mail_address_has_one_account_in_whatever_case(log):
    accounts = fold(log).accounts
    emails = [account.email.lower() for account in accounts.by_id.values()]
    assert len(emails) == len(set(emails))
    assert all(accounts.account(account.email.upper()) is account for account in accounts.by_id.values())


@given(logs)
def test_a_session_is_found_by_its_token_and_is_an_accounts(log):
    accounts = fold(log).accounts
    assert {one.token_sha256: one for one in accounts.sessions.values()} == accounts.sessions_by_sha256
    assert {one.account_id for one in accounts.sessions.values()} <= set(accounts.by_id)


def test_an_account_holds_so_many_sessions_and_the_oldest_leaves_first():
    directory = Directory()
    directory.apply(ev.AccountCreated(at_ms=0, organization_id="", account_id="a", email="a@b.c", password_hash="h"))
    for number in range(SESSIONS_MAX + 1):
        fields = {"session_id": f"s{number}", "token_sha256": f"t{number}", "expires_at_ms": 1000}
        directory.apply(ev.SessionCreated(at_ms=number, organization_id="", account_id="a", **fields))
    assert list(directory.accounts.sessions) == [f"s{number}" for number in range(1, SESSIONS_MAX + 1)]
    fields = {"session_id": "new", "token_sha256": "new", "expires_at_ms": 3000}
    directory.apply(ev.SessionCreated(at_ms=1000, organization_id="", account_id="a", **fields))
    assert list(directory.accounts.sessions) == ["new"]


@given(logs)
def test_a_blocked_account_has_no_session_and_a_deleted_one_is_nowhere(log):
    directory = fold(log)
    accounts = directory.accounts
    assert not {one.id for one in accounts.by_id.values() if one.blocked} & {
        session.account_id for session in accounts.sessions.values()
    }
    assert {member for one in directory.organizations.values() for member in one.members} <= set(accounts.by_id)


def members_of_one_organization(*account_ids: str) -> Directory:
    directory = Directory()
    directory.apply(ev.OrganizationCreated(at_ms=0, organization_id="o", name="acme"))
    for account_id in account_ids:
        email = f"{account_id}@b.c"
        directory.apply(
            ev.AccountCreated(at_ms=0, organization_id="", account_id=account_id, email=email, password_hash="h")
        )
        directory.apply(ev.OrganizationJoined(at_ms=0, organization_id="o", account_id=account_id))
    return directory


def test_the_last_member_who_can_sign_in_leaves_only_when_that_is_meant():
    directory = members_of_one_organization("a", "b", "c")
    blocked = {"at_ms": 1, "organization_id": ""}
    assert directory.apply(ev.AccountBlocked(**blocked, account_id="b"))
    left = {"at_ms": 2, "organization_id": "o"}
    assert directory.apply(ev.OrganizationLeft(**left, account_id="c"))
    assert not directory.apply(ev.OrganizationLeft(**left, account_id="a")), "b is blocked"
    assert not directory.apply(ev.AccountDeleted(**blocked, account_id="a"))
    assert not directory.apply(ev.OrganizationLeft(**left, account_id="c")), "it has left"
    assert directory.organizations["o"].members == ("a", "b")
    assert directory.apply(ev.OrganizationLeft(**left, account_id="a", even_if_last=True))
    assert directory.apply(ev.AccountDeleted(**blocked, account_id="b", even_if_last=True))
    assert directory.organizations["o"].members == ()
    assert list(directory.accounts.by_id) == ["a", "c"]


def session(number: int, at_ms: int = 5) -> Event:
    fields = {"session_id": f"s{number}", "token_sha256": f"t{number}", "expires_at_ms": 1000}
    return ev.SessionCreated(at_ms=at_ms, organization_id="", account_id="a", **fields)


def test_a_one_time_password_opens_one_session_before_its_time_and_a_change_makes_it_an_ordinary_one():
    directory = members_of_one_organization("a")
    assert directory.apply(session(1))
    reset = ev.AccountPasswordReset(at_ms=4, organization_id="", account_id="a", password_hash="1", expires_at_ms=10)
    assert directory.apply(reset)
    assert not directory.accounts.sessions
    assert not directory.apply(session(2, at_ms=10)), "too late"
    assert directory.apply(session(3))
    assert not directory.apply(session(4)), "used"
    change = {"account_id": "a", "session_id": "s3", "password_hash": "own"}
    assert directory.apply(ev.AccountPasswordChanged(at_ms=6, organization_id="", **change))
    assert directory.apply(session(5))


def test_a_name_is_free_again_after_a_rename_and_after_a_deletion():
    directory = Directory()
    directory.apply(ev.QueueCreated(at_ms=1, organization_id="o", queue_id="1", name="orders"))
    directory.apply(ev.QueueRenamed(at_ms=2, organization_id="o", queue_id="1", name="old-orders"))
    assert directory.apply(ev.QueueCreated(at_ms=3, organization_id="o", queue_id="2", name="orders"))
    directory.apply(ev.QueueDeleted(at_ms=4, organization_id="o", queue_id="2"))
    assert directory.apply(ev.QueueCreated(at_ms=5, organization_id="o", queue_id="3", name="orders"))


def test_the_hash_of_a_given_log_never_changes():
    directory = Directory()
    directory.apply(ev.OrganizationCreated(at_ms=1, organization_id="o", name="acme"))
    directory.apply(ev.QueueCreated(at_ms=2, organization_id="o", queue_id="q", name="orders"))
    assert state_hash(directory) == "cc8cf04876308e4ed04dbe057b98e5b8204ba1570ba7381b6235e68bd24b60c8"


def listening(*, at_ms: int = 0, **settings) -> Directory:
    directory = Directory()
    directory.apply(ev.QueueCreated(at_ms=0, organization_id="o", queue_id="q", name="orders"))
    directory.apply(
        ev.ListenerCreated(
            at_ms=at_ms,
            organization_id="o",
            queue_id="q",
            listener_id="l",
            name="l",
            notify_url="",
            liveness_url="",
            sealed_secret="first",
            start_offsets=(0,),
            settings=ev.ListenerSettings(**settings),
        )
    )
    return directory


def rotated(at_ms: int, sealed: str, until_ms: int) -> Event:
    fields = {"listener_id": "l", "sealed_secret": sealed, "former_end_at_ms": until_ms}
    return ev.ListenerSecretRotated(at_ms=at_ms, organization_id="o", **fields)


def test_former_secrets_stay_until_their_time_and_no_rotation_makes_it_longer():
    directory = listening()
    directory.apply(rotated(10, "second", 100))
    directory.apply(rotated(20, "third", 50))
    listener = directory.listeners["l"]
    assert (listener.sealed_secret, listener.former_secrets) == ("third", (("first", 50), ("second", 50)))
    directory.apply(rotated(60, "fourth", 200))
    assert directory.listeners["l"].former_secrets == (("third", 200),)
    directory.apply(rotated(70, "fifth", 70))
    assert directory.listeners["l"].former_secrets == ()


def test_what_was_changed_meanwhile_is_not_undone_by_a_new_sealing_key():
    directory = listening(sealed_headers={"x": "x1", "y": "y1"})
    directory.apply(rotated(10, "second", 100))
    sealed = {"first": "first'", "x1": "x1'", "gone": "gone'"}
    assert directory.apply(ev.ListenerResealed(at_ms=11, organization_id="o", listener_id="l", sealed=sealed))
    listener = directory.listeners["l"]
    assert (listener.sealed_secret, listener.former_secrets) == ("second", (("first'", 100),))
    assert listener.settings.sealed_headers == {"x": "x1'", "y": "y1"}
    assert not directory.apply(ev.ListenerResealed(at_ms=12, organization_id="o", listener_id="l", sealed=sealed))


def test_what_an_organization_stores_is_a_part_of_the_state_s_hash_and_digests():
    def folded(*sizes: int) -> Directory:
        directory = Directory()
        directory.apply(ev.OrganizationCreated(at_ms=1, organization_id="o", name="n"))
        for day, size in enumerate(sizes):
            directory.apply(ev.VolumeRecorded(at_ms=day * 86_400_000, organization_id="o", bytes=size))
        return directory

    assert state_hash(folded(5, 6)) == state_hash(folded(5, 6)) != state_hash(folded(5, 7))
    one, other = (digests(folded(*sizes))["organization o"] for sizes in ((5, 6), (5, 7)))
    assert difference("organization o", one, other)[0] == "bytes_by_day"


def test_an_invitation_counts_once_before_its_end_and_in_its_own_organization():
    def accept(at_ms: int, organization_id: str, account_id: str) -> bool:
        fields = {"at_ms": at_ms, "organization_id": organization_id, "account_id": account_id}
        return directory.apply(ev.InvitationAccepted(**fields, invitation_id="i"))

    directory = Directory()
    for account_id in ("a", "b"):
        email = f"{account_id}@b.c"
        directory.apply(
            ev.AccountCreated(at_ms=0, organization_id="", account_id=account_id, email=email, password_hash="hash")
        )
    for organization_id in ("o", "p"):
        directory.apply(ev.OrganizationCreated(at_ms=0, organization_id=organization_id, actor="shell", name="n"))
    made = {"at_ms": 0, "actor": "shell", "email": "e@b.c", "expires_at_ms": 10}
    invited = ev.InvitationCreated(organization_id="o", invitation_id="i", token_sha256="t", **made)
    assert directory.apply(invited)
    assert not directory.apply(invited)
    hash_before = state_hash(directory)
    refused = [accept(10, "o", "a"), accept(9, "p", "a"), accept(9, "o", "nobody")]
    assert (refused, state_hash(directory)) == ([False] * 3, hash_before)
    assert accept(9, "o", "a")
    assert not accept(9, "o", "b")
    assert directory.organizations["o"].members == ("a",)
    assert directory.organizations["p"].members == ()


def test_expired_invitations_are_forgotten_when_the_organization_invites_again():
    directory = Directory()
    directory.apply(ev.OrganizationCreated(at_ms=0, organization_id="o", actor="shell", name="n"))
    for number, at_ms in enumerate((0, 9, 10)):
        fields = {"at_ms": at_ms, "organization_id": "o", "actor": "shell", "expires_at_ms": at_ms + 10}
        directory.apply(
            ev.InvitationCreated(**fields, invitation_id=f"i{number}", token_sha256=f"t{number}", email="e@b.c")
        )
    assert list(directory.invitations.by_id) == ["i1", "i2"]
    assert list(directory.invitations.by_sha256) == ["t1", "t2"]
