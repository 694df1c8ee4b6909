"""A client of Everput's REST API.

    with Client("http://127.0.0.1:8080", key) as client:
        queue = client.send(create_queue("orders")).queue
        client.send(put_message(queue.id, "first"))

AsyncClient does the same with `await`. verify() and verify_batch() check a request that a listener got. This package
imports no other one of the project.
"""

from typing import TYPE_CHECKING, Any

from everput.errors import EverputError, InvalidSignature, NoAnswer, NotReached, Problem
from everput.requests import (
    Request,
    accept_invitation,
    ask_for_password_reset,
    cancel_redrives,
    cancel_replay,
    change_member,
    change_password,
    create_account,
    create_key,
    create_listener,
    create_organization,
    create_queue,
    delete_account,
    delete_listener,
    delete_message,
    delete_queue,
    end_session,
    get_key,
    get_listener,
    get_listener_statistics,
    get_message,
    get_overview,
    get_queue,
    get_queue_statistics,
    get_replay,
    get_secret,
    get_session,
    invite_member,
    list_deliveries,
    list_invitations,
    list_keys,
    list_listeners,
    list_members,
    list_messages,
    list_organizations,
    list_queues,
    list_replays,
    pause_listener,
    pause_replay,
    put_batch,
    put_message,
    read_log,
    redrive_listener,
    register_invited,
    remove_member,
    rename_queue,
    reset_password,
    resume_listener,
    resume_replay,
    revoke_invitation,
    revoke_key,
    rotate_secret,
    send_test,
    set_queue_alerts,
    start_replay,
    start_session,
    unlink_identity,
    update_listener,
    update_message,
)
from everput.signatures import BatchMessage, verify, verify_batch

if TYPE_CHECKING:
    from everput.client import AsyncClient, Client
else:

    def __getattr__(name: str) -> Any:
        """Import the classes Client and AsyncClient only when one of them is first used, because both need httpx, which
        takes 7 MiB of memory.
        """
        if name not in {"AsyncClient", "Client"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from everput import client

        globals()[name] = found = getattr(client, name)
        return found


__all__ = [
    "AsyncClient",
    "BatchMessage",
    "Client",
    "EverputError",
    "InvalidSignature",
    "NoAnswer",
    "NotReached",
    "Problem",
    "Request",
    "accept_invitation",
    "ask_for_password_reset",
    "cancel_redrives",
    "cancel_replay",
    "change_member",
    "change_password",
    "create_account",
    "create_key",
    "create_listener",
    "create_organization",
    "create_queue",
    "delete_account",
    "delete_listener",
    "delete_message",
    "delete_queue",
    "end_session",
    "get_key",
    "get_listener",
    "get_listener_statistics",
    "get_message",
    "get_overview",
    "get_queue",
    "get_queue_statistics",
    "get_replay",
    "get_secret",
    "get_session",
    "invite_member",
    "list_deliveries",
    "list_invitations",
    "list_keys",
    "list_listeners",
    "list_members",
    "list_messages",
    "list_organizations",
    "list_queues",
    "list_replays",
    "pause_listener",
    "pause_replay",
    "put_batch",
    "put_message",
    "read_log",
    "redrive_listener",
    "register_invited",
    "remove_member",
    "rename_queue",
    "reset_password",
    "resume_listener",
    "resume_replay",
    "revoke_invitation",
    "revoke_key",
    "rotate_secret",
    "send_test",
    "set_queue_alerts",
    "start_replay",
    "start_session",
    "unlink_identity",
    "update_listener",
    "update_message",
    "verify",
    "verify_batch",
]
