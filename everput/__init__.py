"""A client of Everput's REST API.

    with Client("http://127.0.0.1:8080", key) as client:
        queue = client.send(create_queue("orders")).queue
        client.send(put_message(queue.id, "first"))

AsyncClient is the same with `await`. verify() checks what a listener got. Imports no other package of this project.
"""

from everput.client import AsyncClient, Client
from everput.errors import EverputError, InvalidSignature, NoAnswer, Problem
from everput.requests import (
    Request,
    create_key,
    create_listener,
    create_queue,
    delete_listener,
    delete_message,
    delete_queue,
    get_key,
    get_listener,
    get_message,
    get_queue,
    get_secret,
    list_deliveries,
    list_keys,
    list_listeners,
    list_messages,
    list_organizations,
    list_queues,
    pause_listener,
    put_batch,
    put_message,
    redrive_listener,
    rename_queue,
    resume_listener,
    revoke_key,
    rotate_secret,
    send_test,
    update_listener,
    update_message,
)
from everput.signatures import verify

__all__ = [
    "AsyncClient",
    "Client",
    "EverputError",
    "InvalidSignature",
    "NoAnswer",
    "Problem",
    "Request",
    "create_key",
    "create_listener",
    "create_queue",
    "delete_listener",
    "delete_message",
    "delete_queue",
    "get_key",
    "get_listener",
    "get_message",
    "get_queue",
    "get_secret",
    "list_deliveries",
    "list_keys",
    "list_listeners",
    "list_messages",
    "list_organizations",
    "list_queues",
    "pause_listener",
    "put_batch",
    "put_message",
    "redrive_listener",
    "rename_queue",
    "resume_listener",
    "revoke_key",
    "rotate_secret",
    "send_test",
    "update_listener",
    "update_message",
    "verify",
]
