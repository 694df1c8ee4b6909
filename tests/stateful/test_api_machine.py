"""The API against a small model: two organizations, two API processes that fold the log at their own pace, restarts.

Each process is the real application over the real projection; only Kafka is in memory. Requests come one by one
through either process, or two at once through both: with keys, some of them for one queue, and in members' sessions.
Not here: deliveries, Idempotency-Key (the machine beside this), passwords (sessions are put into the log).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.clock import now_ms
from broker.commands.organizations import SCOPES, create_key, create_organization
from broker.core import events as ev
from broker.core.codec import decode, encode
from broker.core.digests import state_hash
from broker.core.keys import SESSION_PREFIX, key_sha256, key_text
from broker.ports import DirectoryView
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings, Settings
from projections.directory import DirectoryProjection
from tests.apps import app_of
from tests.unit.memory import MemoryLog

SETTINGS = Settings(kafka=KafkaSettings(bootstrap="unused", partitions=2), sealing_key=new_sealing_key())
URLS = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
NOWHERE = "0b57b1a2-6b8b-4b0e-9d4e-3a2f8f2b7a11"


class SharedControl:
    """ports.ControlLog that any number of processes follow."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.grown: list[asyncio.Event] = []

    async def append(self, event: Any) -> int:
        await asyncio.sleep(0)
        self.records.append(encode(event))
        for one in self.grown:
            one.set()
        offset = len(self.records) - 1
        await asyncio.sleep(0)
        return offset

    async def end_offset(self) -> int:
        await asyncio.sleep(0)
        return len(self.records)


class Process:
    """One API process. lag: turns of the event loop between two events that it folds."""

    def __init__(self, log: MemoryLog, lag: int) -> None:
        control: Any = log.control
        self._control = control
        self._lag = lag
        self._grown = asyncio.Event()
        self._grown.set()
        control.grown.append(self._grown)
        self.projection = DirectoryProjection(control)
        view: DirectoryView = self.projection
        app = app_of(SETTINGS, log=log, view=view)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api")
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await self._grown.wait()
            self._grown.clear()
            while self.projection.position < len(self._control.records):
                for _ in range(self._lag):
                    await asyncio.sleep(0)
                at = self.projection.position
                self.projection.fold(at, decode(self._control.records[at]))

    async def end(self) -> None:
        self._control.grown.remove(self._grown)
        self._following.cancel()
        await self.client.aclose()


class Queue:
    """What the model knows of a queue: its listeners by id, with their names and whether they are paused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[str, tuple[str, bool]] = {}
        self.messages: dict[str, str] = {}


class Organization:
    def __init__(self, organization_id: str, key: str) -> None:
        self.id = organization_id
        self.key = key
        self.keys: dict[str, tuple[str, str | None]] = {}  # by id the key itself, and its queue if it is for one
        self.members: list[str] = []  # account ids
        self.queues: dict[str, Queue] = {}


whose = st.integers(0, 1)
through = st.integers(0, 1)
names = st.sampled_from(["a", "b", "c"])
which = st.integers(0, 3)  # one of the queues, or of the listeners, there are; beyond them an id that is none


class ApiMachine(RuleBasedStateMachine):
    @initialize(lags=st.tuples(st.integers(0, 4), st.integers(0, 4)))
    def start(self, lags: tuple[int, int]) -> None:
        self.loop = asyncio.new_event_loop()
        self.lags = lags
        self.loop.run_until_complete(self._start())
        for name in ("a", "b"):  # for one machine uses some of the rules only
            self.put_a_queue(0, 0, name)
            self.an_account_joins_and_signs_in(0)
        self.make_a_key_for_a_queue(0, 0, 0)

    async def _start(self) -> None:
        self.log = MemoryLog()
        self.log.control = SharedControl()
        self.processes = [Process(self.log, lag) for lag in self.lags]
        self.organizations = []
        self.revoked: list[str] = []
        self.sessions: dict[str, str] = {}  # by account id the token, also of one that has ended
        self.signed_in: set[str] = set()  # account ids
        view = self.processes[0].projection
        for name in ("acme", "other"):
            made = await create_organization(self.log.control, view, name=name)
            _, key = await create_key(self.log.control, view, organization_id=made.id, name="first", scopes=SCOPES)
            self.organizations.append(Organization(made.id, key))

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for process in self.processes:
                self.loop.run_until_complete(process.end())
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    async def request(self, at: int, who: int, method: str, path: str, body: Any = None) -> httpx.Response:
        sent = {} if body is None else {"json": body}
        headers = {"x-api-key": self.organizations[who].key}
        return await self.processes[at].client.request(method, path, headers=headers, **sent)

    def ask(self, at: int, who: int, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = self.loop.run_until_complete(self.request(at, who, method, path, body))
        assert answer.status_code < 500, answer.text
        return answer

    def some_queue(self, who: int, which: int) -> tuple[str, Queue | None]:
        """One of this organization's; beyond them another's, or nobody's."""
        mine, theirs = (list(self.organizations[one].queues) for one in (who, 1 - who))
        if which < len(mine):
            return mine[which], self.organizations[who].queues[mine[which]]
        return (theirs[which - len(mine)] if which - len(mine) < len(theirs) else NOWHERE), None

    def some_listener(self, queue: Queue | None, which: int) -> str:
        """One of the queue's; beyond them one of any other queue's, or nobody's."""
        own = [] if queue is None else list(queue.listeners)
        others = [
            listener
            for organization in self.organizations
            for one in organization.queues.values()
            for listener in one.listeners
            if listener not in own
        ]
        return ([*own, *others][which : which + 1] or [NOWHERE])[0]

    # Queues

    @rule(at=through, who=whose, name=names)
    def put_a_queue(self, at, who, name):
        answer = self.ask(at, who, "PUT", "/v1/queues", {"name": name})
        queues = self.organizations[who].queues
        if any(queue.name == name for queue in queues.values()):
            assert answer.status_code == 422
        else:
            queues[answer.json()["queue"]["id"]] = Queue(name)

    @rule(who=whose, name=names)
    def put_one_queue_through_both_at_once(self, who, name):
        both = (self.request(at, who, "PUT", "/v1/queues", {"name": name}) for at in (0, 1))

        async def together() -> list[httpx.Response]:
            return await asyncio.gather(*both)

        answers = self.loop.run_until_complete(together())
        queues = self.organizations[who].queues
        taken = any(queue.name == name for queue in queues.values())
        assert sorted(answer.status_code for answer in answers) == ([422, 422] if taken else [200, 422])
        for answer in answers:
            if answer.status_code == 200:
                queues[answer.json()["queue"]["id"]] = Queue(name)

    @rule(at=through, who=whose, which=which, name=names)
    def rename_a_queue(self, at, who, which, name):
        queue_id, queue = self.some_queue(who, which)
        answer = self.ask(at, who, "PUT", f"/v1/queues/{queue_id}", {"name": name})
        others = [one.name for one in self.organizations[who].queues.values() if one is not queue]
        if queue is None:
            assert answer.status_code == 404
        elif name in others:
            assert answer.status_code == 422
        else:
            assert answer.json()["queue"]["name"] == name
            queue.name = name

    @rule(at=through, who=whose, which=which)
    def delete_a_queue(self, at, who, which):
        queue_id, queue = self.some_queue(who, which)
        answer = self.ask(at, who, "DELETE", f"/v1/queues/{queue_id}")
        assert answer.status_code == (404 if queue is None else 200)
        self.organizations[who].queues.pop(queue_id, None)

    @rule(who=whose, which=which)
    def delete_one_queue_through_both_while_it_gets_a_listener(self, who, which):
        queue_id, queue = self.some_queue(who, which)
        path = f"/v1/queues/{queue_id}"

        async def together() -> list[httpx.Response]:
            return await asyncio.gather(
                self.request(0, who, "DELETE", path),
                self.request(1, who, "DELETE", path),
                self.request(1, who, "PUT", f"{path}/listeners", {"name": "late", **URLS}),
            )

        first, second, listener = self.loop.run_until_complete(together())
        assert sorted([first.status_code, second.status_code]) == ([404, 404] if queue is None else [200, 404])
        assert listener.status_code in ((404,) if queue is None else (200, 404))
        self.organizations[who].queues.pop(queue_id, None)

    # Listeners

    @rule(at=through, who=whose, which=which, name=names)
    def put_a_listener(self, at, who, which, name):
        queue_id, queue = self.some_queue(who, which)
        answer = self.ask(at, who, "PUT", f"/v1/queues/{queue_id}/listeners", {"name": name, **URLS})
        if queue is None:
            assert answer.status_code == 404
        elif name in [known for known, _ in queue.listeners.values()]:
            assert answer.status_code == 422
        else:
            queue.listeners[answer.json()["listener"]["id"]] = (name, False)

    @rule(at=through, who=whose, which=which, listener=which, name=names)
    def rename_a_listener(self, at, who, which, listener, name):
        queue_id, queue = self.some_queue(who, which)
        listener_id = self.some_listener(queue, listener)
        answer = self.ask(at, who, "PUT", f"/v1/queues/{queue_id}/listeners/{listener_id}", {"name": name})
        if queue is None or listener_id not in queue.listeners:
            assert answer.status_code == 404
        elif name in [known for one, (known, _) in queue.listeners.items() if one != listener_id]:
            assert answer.status_code == 422
        else:
            assert answer.status_code == 200
            queue.listeners[listener_id] = (name, queue.listeners[listener_id][1])

    @rule(at=through, who=whose, which=which, listener=which, paused=st.booleans())
    def pause_or_resume_a_listener(self, at, who, which, listener, paused):
        queue_id, queue = self.some_queue(who, which)
        listener_id = self.some_listener(queue, listener)
        verb = "pause" if paused else "resume"
        answer = self.ask(at, who, "POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/{verb}")
        if queue is None or listener_id not in queue.listeners:
            assert answer.status_code == 404
        else:
            assert (answer.json()["listener"]["paused"] is not None) == paused
            queue.listeners[listener_id] = (queue.listeners[listener_id][0], paused)

    @rule(at=through, who=whose, which=which, listener=which)
    def delete_a_listener(self, at, who, which, listener):
        queue_id, queue = self.some_queue(who, which)
        listener_id = self.some_listener(queue, listener)
        answer = self.ask(at, who, "DELETE", f"/v1/queues/{queue_id}/listeners/{listener_id}")
        known = queue is not None and listener_id in queue.listeners
        assert answer.status_code == (200 if known else 404)
        if queue is not None:
            queue.listeners.pop(listener_id, None)

    # Messages

    @rule(at=through, who=whose, which=which, data=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
    def put_a_message(self, at, who, which, data):
        queue_id, queue = self.some_queue(who, which)
        answer = self.ask(at, who, "PUT", f"/v1/queues/{queue_id}/messages", {"data": data})
        if queue is None:
            assert answer.status_code == 404
        else:
            queue.messages[answer.json()["message"]["id"]] = data

    @rule(at=through, who=whose, which=which, reader=whose)
    def get_the_messages(self, at, who, which, reader):
        queue_id, queue = self.some_queue(who, which)
        for message_id, data in (queue.messages if queue is not None else {NOWHERE: ""}).items():
            answer = self.ask(at, reader, "GET", f"/v1/queues/{queue_id}/messages/{message_id}")
            if queue is None or reader != who:
                assert answer.status_code == 404
            else:
                assert answer.json()["message"]["data"] == data

    # Keys and processes

    @rule(at=through, who=whose)
    def make_a_key(self, at, who):
        organization = self.organizations[who]
        made = self.ask(at, who, "PUT", f"/v1/organizations/{organization.id}/keys", {"name": "key"}).json()["key"]
        organization.keys[made["id"]] = made["secret"], None

    @rule(at=through, who=whose, which=which)
    def make_a_key_for_a_queue(self, at, who, which):
        organization = self.organizations[who]
        queue_id, queue = self.some_queue(who, which)
        body = {"name": "narrow", "queues": [queue_id]}
        answer = self.ask(at, who, "PUT", f"/v1/organizations/{organization.id}/keys", body)
        assert answer.status_code == (422 if queue is None else 200)
        if queue is not None:
            made = answer.json()["key"]
            organization.keys[made["id"]] = made["secret"], queue_id

    # Members

    def happens(self, event: Any) -> None:
        self.loop.run_until_complete(self.log.control.append(event))

    @rule(who=whose)
    def an_account_joins_and_signs_in(self, who):
        account_id = f"account-{len(self.sessions)}"
        token = key_text(len(self.sessions).to_bytes(32), prefix=SESSION_PREFIX)
        fields = {"at_ms": 1, "organization_id": "", "actor": "shell", "account_id": account_id}
        self.happens(ev.AccountCreated(**fields, email=f"{account_id}@example.com", password_hash="none"))
        self.happens(ev.OrganizationJoined(**{**fields, "organization_id": self.organizations[who].id}))
        expires_at_ms = now_ms() + 3_600_000
        session = {"session_id": account_id, "token_sha256": key_sha256(token), "expires_at_ms": expires_at_ms}
        self.happens(ev.SessionCreated(**fields, **session))
        self.sessions[account_id] = token
        self.signed_in.add(account_id)
        self.organizations[who].members.append(account_id)

    async def as_member(self, at: int, account_id: str, method: str, path: str, organization: str) -> int:
        headers = {"authorization": f"Bearer {self.sessions[account_id]}", "everput-organization": organization}
        return (await self.processes[at].client.request(method, path, headers=headers)).status_code

    @precondition(lambda self: any(one.members for one in self.organizations))
    @rule(at=through, who=whose, which=which, even_if_last=st.booleans())
    def a_member_is_removed(self, at, who, which, even_if_last):
        """By the first account of either organization that is signed in, which may be itself."""
        owner = next(one for one in self.organizations if one.members)
        asker = next((one for one in self.organizations[who].members if one in self.signed_in), None)
        if asker is None:
            return
        account_id = owner.members[which % len(owner.members)]
        path = f"/v1/organizations/{owner.id}/members/{account_id}?even_if_last={str(even_if_last).lower()}"
        status = self.loop.run_until_complete(self.as_member(at, asker, "DELETE", path, owner.id))
        others = [one for one in owner.members if one != account_id and one not in self.blocked()]
        if owner is not self.organizations[who]:
            assert status == 404
        elif not others and not even_if_last:
            assert status == 422
        else:
            assert status == 200
            owner.members.remove(account_id)

    def blocked(self) -> set[str]:
        return set(self.sessions) - self.signed_in

    @precondition(lambda self: self.signed_in)
    @rule()
    def an_account_is_blocked(self):
        account_id = min(self.signed_in)
        self.happens(ev.AccountBlocked(at_ms=1, organization_id="", actor="shell", account_id=account_id))
        self.signed_in.remove(account_id)

    @invariant()
    def members_are_let_in_where_they_are_members_and_nowhere_else(self):
        if not hasattr(self, "loop"):
            return
        for account_id in self.sessions:
            for organization in self.organizations:
                inside = 200 if account_id in organization.members else 404
                wanted = inside if account_id in self.signed_in else 401
                for at in (0, 1):
                    asking = self.as_member(at, account_id, "GET", "/v1/queues", organization.id)
                    assert self.loop.run_until_complete(asking) == wanted

    @precondition(lambda self: any(one.keys for one in self.organizations))
    @rule(at=through, who=whose)
    def revoke_a_key(self, at, who):
        owner = next(one for one in self.organizations if one.keys)
        key_id = next(iter(owner.keys))
        mine = self.organizations[who] is owner
        path = f"/v1/organizations/{self.organizations[who].id}/keys/{key_id}"
        assert self.ask(at, who, "DELETE", path).status_code == (200 if mine else 404)
        if mine:
            self.revoked.append(owner.keys.pop(key_id)[0])

    @rule(at=through, lag=st.integers(0, 4))
    def restart_a_process(self, at, lag):
        async def restart() -> None:
            await self.processes[at].end()
            self.processes[at] = Process(self.log, lag)

        self.loop.run_until_complete(restart())

    @invariant()
    def both_processes_show_each_organization_its_own_and_nothing_else(self):
        if not hasattr(self, "loop"):
            return
        for who, organization in enumerate(self.organizations):
            wanted = {(queue_id, queue.name): queue.listeners for queue_id, queue in organization.queues.items()}
            for at in (0, 1):
                listed = self.ask(at, who, "GET", "/v1/queues").json()["queues"]
                assert {
                    (queue["id"], queue["name"]): {one["id"]: one["name"] for one in queue["listeners"]}
                    for queue in listed
                } == {key: {one: name for one, (name, _) in found.items()} for key, found in wanted.items()}

    @invariant()
    def a_key_works_until_its_revocation_is_folded_and_never_after(self):
        if not hasattr(self, "loop"):
            return
        for process in self.processes:
            self.loop.run_until_complete(process.projection.caught_up())

        def ask(at: int, key: str, path: str = "/v1/queues") -> httpx.Response:
            asking = self.processes[at].client.get(path, headers={"x-api-key": key})
            return self.loop.run_until_complete(asking)

        for at in (0, 1):
            for organization in self.organizations:
                for key, only in organization.keys.values():
                    seen = {queue["id"] for queue in ask(at, key).json()["queues"]}
                    assert seen == set(organization.queues) & ({only} if only else set(organization.queues))
                    for queue_id in organization.queues:
                        status = ask(at, key, f"/v1/queues/{queue_id}").status_code
                        assert status == (200 if only in (None, queue_id) else 404)
            for key in self.revoked:
                assert ask(at, key).status_code == 401

    @invariant()
    def the_processes_folds_are_one(self):
        if hasattr(self, "loop"):
            for process in self.processes:
                self.loop.run_until_complete(process.projection.caught_up())
            one, other = (state_hash(process.projection.state) for process in self.processes)
            assert one == other


ApiMachine.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=25, deadline=None)
test_two_processes_and_two_organizations_are_as_a_small_model_says = ApiMachine.TestCase
