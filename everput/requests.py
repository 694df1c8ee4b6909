"""Every request that the client can make, and the type of its answer.

For: paths, bodies and headers. Not for: sending (client.py), the answers' shapes (everput/answers).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from everput import answers

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """A request to Everput's API. `answer` is the class to which the body of the answer is decoded."""

    method: str
    path: str
    answer: type[T]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    # True if the request may be sent again when nobody knows whether the server has carried it out.
    repeatable: bool = True
    # The ID of the queue, if the request puts one message without the caller's own idempotency key. Otherwise None.
    # AsyncClient may send several puts of single messages to the same queue in one batch.
    joins: str | None = None


def list_queues(
    *, name: str | None = None, health: bool = False, backlog: bool = False
) -> Request[answers.QueuesAnswer]:
    """List the queues, or only the queue with this name. With `health`, the answer has the health of each queue's
    listeners. With `backlog`, it has the number of messages that wait for the listeners.
    """
    query = {} if name is None else {"name": name}
    if health:
        query["health"] = "true"
    if backlog:
        query["backlog"] = "true"
    return Request(method="GET", path="/v1/queues", answer=answers.QueuesAnswer, query=query)


def create_queue(name: str) -> Request[answers.QueueAnswer]:
    return Request(method="PUT", path="/v1/queues", answer=answers.QueueAnswer, body={"name": name}, repeatable=False)


def get_queue(queue_id: str) -> Request[answers.QueueAnswer]:
    return Request(method="GET", path=_queue(queue_id), answer=answers.QueueAnswer)


def rename_queue(queue_id: str, name: str, *, if_match: str | None = None) -> Request[answers.QueueAnswer]:
    return Request(
        method="PUT", path=_queue(queue_id), answer=answers.QueueAnswer, body={"name": name}, **_condition(if_match)
    )


def set_queue_alerts(
    queue_id: str, thresholds: Mapping[str, int] | None = None, *, if_match: str | None = None
) -> Request[answers.QueueAnswer]:
    """Set the thresholds for alerts about a queue's listeners. `thresholds` maps a name from the API, such as `parked`,
    to a number. A threshold that is left out gets its default.
    """
    body = {"alerts": dict(thresholds or {})}
    return Request(method="PUT", path=_queue(queue_id), answer=answers.QueueAnswer, body=body, **_condition(if_match))


def delete_queue(queue_id: str, *, if_match: str | None = None) -> Request[answers.QueueAnswer]:
    """Delete a queue and its listeners."""
    return Request(
        method="DELETE", path=_queue(queue_id), answer=answers.QueueAnswer, **{**_condition(if_match), **_ONCE}
    )


def list_listeners(queue_id: str) -> Request[answers.ListenersAnswer]:
    return Request(method="GET", path=_queue(queue_id, "listeners"), answer=answers.ListenersAnswer)


def create_listener(
    queue_id: str, *, name: str, notify_url: str, liveness_url: str, **settings: Any
) -> Request[answers.NewListenerAnswer]:
    """Create a listener. `settings` are further fields of the API's request, such as `secret`, `max_in_flight`,
    `rate_per_s`, `headers` or `batch`. The API's field `from` is called `begin` here, because `from` is a Python
    keyword. With `batch={}`, a request to the listener carries up to 100 messages.
    """
    if "begin" in settings:
        settings["from"] = settings.pop("begin")
    body = {"name": name, "notify_url": notify_url, "liveness_url": liveness_url, **settings}
    path = _queue(queue_id, "listeners")
    return Request(method="PUT", path=path, answer=answers.NewListenerAnswer, body=body, repeatable=False)


def get_listener(queue_id: str, listener_id: str) -> Request[answers.ListenerNowAnswer]:
    return Request(method="GET", path=_listener(queue_id, listener_id), answer=answers.ListenerNowAnswer)


def update_listener(
    queue_id: str, listener_id: str, *, if_match: str | None = None, **changes: Any
) -> Request[answers.ListenerAnswer]:
    """Update the given fields of a listener. With `batch=None`, each request to the listener carries one message from
    now on.
    """
    path = _listener(queue_id, listener_id)
    return Request(method="PUT", path=path, answer=answers.ListenerAnswer, body=changes, **_condition(if_match))


def delete_listener(queue_id: str, listener_id: str, *, if_match: str | None = None) -> Request[answers.ListenerAnswer]:
    path = _listener(queue_id, listener_id)
    return Request(method="DELETE", path=path, answer=answers.ListenerAnswer, **{**_condition(if_match), **_ONCE})


def pause_listener(queue_id: str, listener_id: str) -> Request[answers.ListenerAnswer]:
    """Send the listener no messages until it is resumed."""
    return Request(method="POST", path=_listener(queue_id, listener_id, "pause"), answer=answers.ListenerAnswer)


def resume_listener(queue_id: str, listener_id: str) -> Request[answers.ListenerAnswer]:
    """Send messages to a paused listener again."""
    return Request(method="POST", path=_listener(queue_id, listener_id, "resume"), answer=answers.ListenerAnswer)


def send_test(queue_id: str, listener_id: str) -> Request[answers.ListenerTestAnswer]:
    """Send the listener a test message now."""
    return Request(method="POST", path=_listener(queue_id, listener_id, "test"), answer=answers.ListenerTestAnswer)


def get_secret(queue_id: str, listener_id: str) -> Request[answers.SecretAnswer]:
    return Request(method="GET", path=_listener(queue_id, listener_id, "secret"), answer=answers.SecretAnswer)


def rotate_secret(
    queue_id: str, listener_id: str, *, secret: str | None = None, overlap_s: int | None = None
) -> Request[answers.SecretAnswer]:
    """Replace the listener's signing secret. `secret` is the new secret; with None, the server creates it. For
    `overlap_s` seconds (by default a day), requests are also signed with the previous secret.
    """
    said = {"secret": secret, "overlap_s": overlap_s}
    return Request(
        method="POST",
        path=_listener(queue_id, listener_id, "secret", "rotate"),
        answer=answers.SecretAnswer,
        body={name: value for name, value in said.items() if value is not None},
        repeatable=False,
    )


def list_deliveries(queue_id: str, listener_id: str, *, state: str | None = None) -> Request[answers.DeliveriesAnswer]:
    """List the pending, retrying and parked deliveries to a listener. `state` is one of these three words, or None for
    all three.

    A pending delivery is not attempted yet, for example because of the message's `deliver_at`. A retrying delivery
    waits for its next attempt. A parked delivery is usually not attempted again until it is redriven. The list leaves
    out most deliveries that have failed for less than a minute, and most messages of the listener's backlog.
    """
    # For each page, the server reads at least one partition of `outstanding` to its end. So request large pages.
    query = {"limit": "1000"} | ({} if state is None else {"state": state})
    path = _listener(queue_id, listener_id, "deliveries")
    return Request(method="GET", path=path, answer=answers.DeliveriesAnswer, query=query)


def get_queue_statistics(
    queue_id: str, *, begin: str | None = None, end: str | None = None, step: str | None = None
) -> Request[answers.StatisticsAnswer]:
    """Get a queue's statistics from `begin` to `end`, which are RFC 3339 times. They are counts for each period of the
    length `step`, such as `1m`, `6h` or `1d`.
    """
    path, query = _queue(queue_id, "statistics"), _span(begin, end, step)
    return Request(method="GET", path=path, answer=answers.StatisticsAnswer, query=query)


def get_listener_statistics(
    queue_id: str, listener_id: str, *, begin: str | None = None, end: str | None = None, step: str | None = None
) -> Request[answers.StatisticsAnswer]:
    """Get a listener's statistics from `begin` to `end`, which are RFC 3339 times. They are counts for each period of
    the length `step`, such as `1m`, `6h` or `1d`.
    """
    path, query = _listener(queue_id, listener_id, "statistics"), _span(begin, end, step)
    return Request(method="GET", path=path, answer=answers.StatisticsAnswer, query=query)


def get_overview(
    *, begin: str | None = None, end: str | None = None, step: str | None = None
) -> Request[answers.OverviewAnswer]:
    """Get the organization's statistics, and the listeners that need attention. `begin` and `end` are RFC 3339 times,
    and `step` is the length of the periods for which there are counts, such as `1h`.
    """
    return Request(method="GET", path="/v1/overview", answer=answers.OverviewAnswer, query=_span(begin, end, step))


def _span(begin: str | None, end: str | None, step: str | None) -> dict[str, str]:
    named = (("from", begin), ("to", end), ("step", step))
    return {name: value for name, value in named if value is not None}


def redrive_listener(
    queue_id: str, listener_id: str, message_ids: Sequence[str] | None = None
) -> Request[answers.RedriveAnswer]:
    """Retry the listener's retrying and parked deliveries now. If `message_ids` is given, retry only the deliveries of
    these messages. The API refuses an empty list.
    """
    body = {} if message_ids is None else {"messages": list(message_ids)}
    path = _listener(queue_id, listener_id, "redrive")
    return Request(method="POST", path=path, answer=answers.RedriveAnswer, body=body)


def cancel_redrives(queue_id: str, listener_id: str) -> Request[answers.RedriveAnswer]:
    """Cancel the listener's redrives. A redriven delivery that was not attempted since the redrive becomes parked or
    retrying again, as before the redrive.
    """
    return Request(method="DELETE", path=_listener(queue_id, listener_id, "redrive"), answer=answers.RedriveAnswer)


def start_replay(
    queue_id: str, listener_id: str, *, begin: str, end: str | None = None, **settings: Any
) -> Request[answers.ReplayBegunAnswer]:
    """Start a replay, which delivers a range of messages again. `begin` is an RFC 3339 time or `beginning`. `end` is an
    RFC 3339 time, or None for now. `settings` are further fields of the API, such as `dry_run`, `rate_per_s` or `only`.
    """
    body = {"from": begin, **({} if end is None else {"to": end}), **settings}
    path = _listener(queue_id, listener_id, "replay")
    return Request(method="POST", path=path, answer=answers.ReplayBegunAnswer, body=body, repeatable=False)


def list_replays(queue_id: str, listener_id: str) -> Request[answers.ReplaysAnswer]:
    return Request(method="GET", path=_listener(queue_id, listener_id, "replays"), answer=answers.ReplaysAnswer)


def get_replay(queue_id: str, listener_id: str, replay_id: str) -> Request[answers.ReplayAnswer]:
    path = _listener(queue_id, listener_id, "replays", replay_id)
    return Request(method="GET", path=path, answer=answers.ReplayAnswer)


def pause_replay(queue_id: str, listener_id: str, replay_id: str) -> Request[answers.ReplayAnswer]:
    path = _listener(queue_id, listener_id, "replays", replay_id, "pause")
    return Request(method="POST", path=path, answer=answers.ReplayAnswer)


def resume_replay(queue_id: str, listener_id: str, replay_id: str) -> Request[answers.ReplayAnswer]:
    path = _listener(queue_id, listener_id, "replays", replay_id, "resume")
    return Request(method="POST", path=path, answer=answers.ReplayAnswer)


def cancel_replay(queue_id: str, listener_id: str, replay_id: str) -> Request[answers.ReplayAnswer]:
    """End a replay before it is finished."""
    path = _listener(queue_id, listener_id, "replays", replay_id)
    return Request(method="DELETE", path=path, answer=answers.ReplayAnswer)


def put_message(
    queue_id: str,
    data: str,
    *,
    name: str | None = None,
    key: str | None = None,
    deliver_at: str | None = None,
    idempotency_key: str | None = None,
) -> Request[answers.PutAnswer]:
    """Put a message on a queue. `key` is the ordering key, and `deliver_at` the earliest time of delivery (RFC 3339).
    If a put is repeated with the same `idempotency_key` within 24 hours, its message is stored only once. If
    `idempotency_key` is None, the put gets a new random key.
    """
    said = {"name": name, "key": key, "deliver_at": deliver_at}
    body = {"data": data} | {field: value for field, value in said.items() if value is not None}
    path = _queue(queue_id, "messages")
    joins = queue_id if idempotency_key is None else None
    headers = _key(idempotency_key)
    return Request(method="PUT", path=path, answer=answers.PutAnswer, body=body, headers=headers, joins=joins)


def put_batch(
    queue_id: str, messages: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None
) -> Request[answers.BatchAnswer]:
    """Put up to 1,000 messages on a queue. If the server refuses one message, it stores none of the messages. Each
    message has `data`, and optionally `name`, `key` and `deliver_at`.
    """
    return Request(
        method="POST",
        path=_queue(queue_id, "messages", "batch"),
        answer=answers.BatchAnswer,
        body={"messages": list(messages)},
        headers=_key(idempotency_key),
    )


def list_messages(
    queue_id: str,
    *,
    begin: str | None = None,
    end: str | None = None,
    state: str | None = None,
    listener_id: str | None = None,
    name: str | None = None,
    key: str | None = None,
    text: str | None = None,
    deliveries: bool = False,
    data: bool = True,
) -> Request[answers.MessagesAnswer]:
    """List a queue's messages, newest first. Each parameter that is given restricts the list, except `deliveries` and
    `data`.

    `begin` and `end` are RFC 3339 times. `state` is the state of a delivery, and `listener_id` is the listener of that
    delivery. `name` is the exact name, and `key` the exact ordering key. `text` is a part of the name or of the
    ordering key, or the beginning of the ID. With `deliveries`, each message has the states of its deliveries. With
    `data=False`, the data of each message is empty.
    """
    said = {"from": begin, "to": end, "state": state, "listener": listener_id, "name": name, "key": key, "q": text}
    said |= {"deliveries": "true" if deliveries else None, "data": None if data else "false"}
    query = {name: value for name, value in said.items() if value is not None}
    return Request(method="GET", path=_queue(queue_id, "messages"), answer=answers.MessagesAnswer, query=query)


def get_message(queue_id: str, message_id: str) -> Request[answers.MessageAnswer]:
    return Request(method="GET", path=_queue(queue_id, "messages", message_id), answer=answers.MessageAnswer)


def update_message(
    queue_id: str, message_id: str, data: str, *, if_match: str | None = None
) -> Request[answers.ChangedMessageAnswer]:
    """Update a message's data. In the answer, a delivery has the state `delivered` if its listener already had the old
    data. The state is `unknown` if Everput does not know whether the listener had the old data.
    """
    path = _queue(queue_id, "messages", message_id)
    return Request(
        method="PUT", path=path, answer=answers.ChangedMessageAnswer, body={"data": data}, **_condition(if_match)
    )


def delete_message(
    queue_id: str, message_id: str, *, if_match: str | None = None
) -> Request[answers.ChangedMessageAnswer]:
    """Delete a message. In the answer, a delivery has the state `delivered` if its listener already had the message.
    The state is `unknown` if Everput does not know whether the listener had the message.
    """
    path = _queue(queue_id, "messages", message_id)
    return Request(method="DELETE", path=path, answer=answers.ChangedMessageAnswer, **{**_condition(if_match), **_ONCE})


def create_account(email: str, password: str) -> Request[answers.AccountAnswer]:
    return Request(
        method="PUT", path="/v1/accounts", answer=answers.AccountAnswer, body=_who(email, password), repeatable=False
    )


def change_password(password: str, new_password: str) -> Request[answers.AccountAnswer]:
    """Change the password of the signed-in account. The account's other sessions end. `password` is the current
    password.
    """
    body = {"password": password, "new_password": new_password}
    path = "/v1/accounts/password"
    return Request(method="POST", path=path, answer=answers.AccountAnswer, body=body, repeatable=False)


def unlink_identity(password: str) -> Request[answers.AccountAnswer]:
    """Unlink the signed-in account from its OpenID Connect provider. The next sign-in with the provider links the
    account again. The account's other sessions end. `password` is the account's password in Everput.
    """
    path = "/v1/accounts/unlink"
    return Request(
        method="POST", path=path, answer=answers.AccountAnswer, body={"password": password}, repeatable=False
    )


def ask_for_password_reset(email: str) -> Request[answers.ResetAskedAnswer]:
    """Request a mail to this e-mail address with a link that resets the account's password. If no account has this
    address, or if the account is blocked, no mail is sent.
    """
    path = "/v1/accounts/password-reset"
    return Request(method="POST", path=path, answer=answers.ResetAskedAnswer, body={"email": email}, repeatable=False)


def reset_password(token: str, new_password: str) -> Request[answers.AccountAnswer]:
    """Set a new password. `token` is in the link of the mail that was requested with ask_for_password_reset(). All
    sessions of the account end.
    """
    body = {"token": token, "new_password": new_password}
    path = "/v1/accounts/password-reset"
    return Request(method="PUT", path=path, answer=answers.AccountAnswer, body=body, repeatable=False)


def start_session(email: str, password: str) -> Request[answers.NewSessionAnswer]:
    """Sign in. Pass the answer's `session.token` to a client as its key."""
    return Request(
        method="POST",
        path="/v1/sessions",
        answer=answers.NewSessionAnswer,
        body=_who(email, password),
        repeatable=False,
    )


def get_session() -> Request[answers.SessionAnswer]:
    return Request(method="GET", path="/v1/sessions", answer=answers.SessionAnswer)


def end_session(which: str = "this") -> Request[answers.EndedSessionAnswer]:
    """End sessions. `which` is `this` (this request's session), `others` (the account's other sessions) or `all`."""
    query = {} if which == "this" else {"which": which}
    path = "/v1/sessions"
    return Request(method="DELETE", path=path, answer=answers.EndedSessionAnswer, query=query, repeatable=False)


def delete_account(password: str, *, even_if_last: bool = False) -> Request[answers.DeletedAccountAnswer]:
    """Delete the signed-in account. Set `even_if_last` to delete the account even if an organization then has no owner
    who can sign in.
    """
    body = {"password": password, "even_if_last": even_if_last}
    path = "/v1/accounts/delete"
    return Request(method="POST", path=path, answer=answers.DeletedAccountAnswer, body=body, repeatable=False)


def create_organization(name: str) -> Request[answers.OrganizationAnswer]:
    """Create an organization. This needs a session."""
    path = "/v1/organizations"
    return Request(method="PUT", path=path, answer=answers.OrganizationAnswer, body={"name": name}, repeatable=False)


def list_organizations() -> Request[answers.OrganizationsAnswer]:
    """List the organization of the API key, or the organizations of the signed-in account."""
    return Request(method="GET", path="/v1/organizations", answer=answers.OrganizationsAnswer)


def list_members(organization_id: str) -> Request[answers.MembersAnswer]:
    """List the members of an organization. This needs a session."""
    return Request(method="GET", path=_members(organization_id), answer=answers.MembersAnswer)


def remove_member(
    organization_id: str, account_id: str, *, even_if_last: bool = False
) -> Request[answers.MemberAnswer]:
    """Remove a member from an organization. This needs the session of an owner, or of the member who is to be removed.
    With `even_if_last`, the member is removed even if no owner who can sign in remains.
    """
    query = {"even_if_last": "true"} if even_if_last else {}
    path = _members(organization_id, account_id)
    return Request(method="DELETE", path=path, answer=answers.MemberAnswer, query=query, repeatable=False)


def change_member(organization_id: str, account_id: str, role: str) -> Request[answers.MemberAnswer]:
    """Give a member another role: `owner`, `developer`, `operator` or `auditor`. This needs the session of an owner."""
    path = _members(organization_id, account_id)
    return Request(method="PUT", path=path, answer=answers.MemberAnswer, body={"role": role})


def invite_member(organization_id: str, email: str, role: str | None = None) -> Request[answers.NewInvitationAnswer]:
    """Invite an e-mail address to an organization. Without `role`, the person becomes an owner. This needs the session
    of an owner. The answer holds the invitation's token. If the operator has set a public URL, the answer also holds
    the link. Later answers have neither the token nor the link.
    """
    path, body = _invitations(organization_id), {"email": email} | ({} if role is None else {"role": role})
    return Request(method="PUT", path=path, answer=answers.NewInvitationAnswer, body=body, repeatable=False)


def list_invitations(organization_id: str) -> Request[answers.InvitationsAnswer]:
    """List the open invitations of an organization. This needs the session of an owner."""
    return Request(method="GET", path=_invitations(organization_id), answer=answers.InvitationsAnswer)


def revoke_invitation(organization_id: str, invitation_id: str) -> Request[answers.InvitationAnswer]:
    """Revoke an invitation, so that nobody can accept it any more. This needs the session of an owner."""
    path = _invitations(organization_id, invitation_id)
    return Request(method="DELETE", path=path, answer=answers.InvitationAnswer, repeatable=False)


def accept_invitation(token: str) -> Request[answers.AcceptedInvitationAnswer]:
    """Accept an invitation by its `token`. The signed-in account becomes a member of the inviting organization."""
    path = "/v1/invitations/accept"
    body = {"token": token}
    return Request(method="POST", path=path, answer=answers.AcceptedInvitationAnswer, body=body, repeatable=False)


def register_invited(token: str, password: str) -> Request[answers.InvitedAccountAnswer]:
    """Register an account for the e-mail address that was invited. The account becomes a member of the organization.
    `token` is the token of the invitation.
    """
    path = "/v1/invitations/register"
    body = {"token": token, "password": password}
    return Request(method="POST", path=path, answer=answers.InvitedAccountAnswer, body=body, repeatable=False)


def list_keys(organization_id: str) -> Request[answers.KeysAnswer]:
    return Request(method="GET", path=_keys(organization_id), answer=answers.KeysAnswer)


def create_key(
    organization_id: str,
    name: str,
    scopes: Sequence[str] | None = None,
    *,
    queues: Sequence[str] | None = None,
    expires_at: str | None = None,
) -> Request[answers.NewKeyAnswer]:
    """Create an API key. `queues` are the ids of the queues that the key may use, or None for all queues. `expires_at`
    is an RFC 3339 time, or None for never.
    """
    said = {"scopes": scopes and list(scopes), "queues": queues and list(queues), "expires_at": expires_at}
    body = {"name": name, **{field: value for field, value in said.items() if value is not None}}
    return Request(method="PUT", path=_keys(organization_id), answer=answers.NewKeyAnswer, body=body, repeatable=False)


def get_key(organization_id: str, key_id: str) -> Request[answers.KeyAnswer]:
    return Request(method="GET", path=_keys(organization_id, key_id), answer=answers.KeyAnswer)


def revoke_key(organization_id: str, key_id: str) -> Request[answers.KeyAnswer]:
    return Request(method="DELETE", path=_keys(organization_id, key_id), answer=answers.KeyAnswer, repeatable=False)


def read_log(
    *,
    begin: str | None = None,
    end: str | None = None,
    types: Sequence[str] = (),
    queue: str | None = None,
    listener: str | None = None,
    message: str | None = None,
    actor: str | None = None,
    cursor: str | None = None,
    limit: int | None = None,
) -> Request[answers.LogLine]:
    """Read the log: pass this request to a client's lines(). `begin` and `end` are RFC 3339 times. `queue`, `listener`
    and `message` are ids. `limit` is the largest number of events. `cursor` comes from an earlier line of a request
    with the same filters.
    """
    said = {
        "from": begin,
        "to": end,
        "type": ",".join(types) or None,
        "queue": queue,
        "listener": listener,
        "message": message,
        "actor": actor,
        "cursor": cursor,
        "limit": None if limit is None else str(limit),
    }
    query = {name: value for name, value in said.items() if value is not None}
    return Request(method="GET", path="/v1/log", answer=answers.LogLine, query=query)


_ONCE: Mapping[str, Any] = {"repeatable": False}


def _who(email: str, password: str) -> dict[str, str]:
    return {"email": email, "password": password}


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _queue(*parts: str) -> str:
    return _path("queues", *parts)


def _listener(queue_id: str, *parts: str) -> str:
    return _queue(queue_id, "listeners", *parts)


def _members(organization_id: str, *parts: str) -> str:
    return _path("organizations", organization_id, "members", *parts)


def _invitations(organization_id: str, *parts: str) -> str:
    return _path("organizations", organization_id, "invitations", *parts)


def _keys(organization_id: str, *parts: str) -> str:
    return _path("organizations", organization_id, "keys", *parts)


def _condition(if_match: str | None) -> dict[str, Any]:
    """Return the arguments of Request for a request that has an effect only if the version is still `if_match`. Return
    an empty dict if `if_match` is None.

    A request with `if_match` is not repeatable: if the first try has changed the version, a second try would be
    refused.
    """
    return {} if if_match is None else {"headers": {"if-match": if_match}, "repeatable": False}


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {"idempotency-key": idempotency_key or str(uuid.uuid4())}
