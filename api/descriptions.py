"""The descriptions of the operations in the API reference, by operationId.

For: whole sentences about what an operation does, when it fails, and what to do then. Not for: bodies, parameters and
examples (reference.py), scopes (app.py; openapi.py adds a sentence about them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "createQueue": (
        "Creates a queue. The name must be unique in the organization; a name that is taken is refused with 422. "
        "Save the ID: all other requests use it."
    ),
    "listQueues": (
        "Lists the organization's queues, oldest first. To find the ID of a queue, pass its exact name, for example"
        " `?name=orders`. Follow `_links.next` until it is missing to read all pages. With `at`, the answer shows "
        "the state at that time, for example `?at=2026-01-31T12:00:00Z`. With `?health=true`, each queue has the "
        "health of its listeners, with `?backlog=true` their backlog. A page then ends early if its queues have more "
        "than 1,000 listeners together."
    ),
    "getQueue": (
        "Returns a queue and its listeners. With `at`, the answer shows the state at that time, for example "
        "`?at=2026-01-31T12:00:00Z`."
    ),
    "renameQueue": (
        "Changes a queue's name, or its alert thresholds. Its ID, messages and listeners stay. New attempts carry the "
        "new name. With `If-Match`, the request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "deleteQueue": (
        "Deletes a queue and its listeners, and cancels all undelivered messages. The log keeps what happened. With"
        " `If-Match`, the request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "createListener": (
        "Creates a listener, which gets every message of the queue by HTTP POST. By default it gets the messages put "
        'from now on; with `"from": "beginning"` it also gets all older messages that are still stored. The answer '
        "holds the secret that signs the requests. A URL whose address is not allowed is refused with 422."
    ),
    "listListeners": (
        "Lists a queue's listeners, oldest first. Follow `_links.next` until it is missing to read all pages. With "
        "`at`, the answer shows the state at that time, for example `?at=2026-01-31T12:00:00Z`."
    ),
    "getListener": (
        "Returns a listener with its settings and its current state, backlog and last error. With `at`, the answer "
        "shows the state at that time, for example `?at=2026-01-31T12:00:00Z`."
    ),
    "updateListener": (
        "Changes the fields in the body and keeps all others. Pending deliveries go to the new URL. With `If-"
        "Match`, the request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "deleteListener": (
        "Deletes a listener and cancels its pending deliveries. The log keeps what happened. With `If-Match`, the "
        "request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "pauseListener": (
        "Pauses a listener: no message is delivered to it until it is resumed. Its messages wait, and use up no "
        "attempts. Pausing a paused listener changes nothing."
    ),
    "resumeListener": "Resumes a paused listener. Its waiting messages are sent to it.",
    "getSecret": (
        "Returns the secret that signs the requests to a listener (Standard Webhooks), and until when previous "
        "secrets sign, too."
    ),
    "rotateSecret": (
        "Replaces a listener's signing secret. For `overlap_s` seconds (24 hours by default) requests carry the "
        "signatures of the new and the previous secret, so give the listener the new one in that time. At most "
        "three previous secrets sign at a time."
    ),
    "testListener": (
        "Sends a listener one marked message and returns what it answered. The message bypasses the queue: it is not "
        "stored and not retried. The answer is 200 whatever the listener answered; see `test.status`."
    ),
    "listDeliveries": (
        "Lists a listener's parked and retrying deliveries, and those that wait for their `deliver_at`. A delivery "
        "is listed once it has failed for a minute. Filter with `state`, for example `?state=parked`. A page may be"
        " short, or empty, while there is a next one."
    ),
    "getOverview": (
        "Gets the counts of all queues together over time, the number of listeners by health, and the listeners that "
        "need attention: those that are down, failing or paused, and those with parked deliveries. It lists at most "
        "100 of these, the worst first. The health and the backlog are those of at most 1,000 listeners. The counts "
        "are those of `getQueueStatistics`."
    ),
    "getQueueStatistics": (
        "Gets a queue's counts over time: messages put, deliveries by all of its listeners, failed attempts by answer, "
        "parked deliveries, and the times from put to delivered. Counts are written once a minute and kept for 30 "
        "days; `counted_at` is the time at which a worker last wrote counts."
    ),
    "getListenerStatistics": (
        "Gets a listener's counts over time, with the messages put on its queue and its backlog. Attempts count in the "
        "minute in which they ended; a delivery that repeats after a crash counts twice. Replays count only in their "
        "queue."
    ),
    "redriveListener": (
        "Retries parked and retrying deliveries now: those of the messages in the body, or all. Each starts again "
        "with all its attempts. Deliveries in their first minute of failures are attempted now, too, but their "
        "attempts so far still count. Without messages in the body, the answer's `count` leaves these deliveries out."
    ),
    "cancelRedrives": (
        "Cancels the retries that were asked for with `redriveListener`. Deliveries that were not attempted since are "
        "parked or retrying as before. Attempts that are under way continue. The answer has the number of deliveries "
        "that are not retried now."
    ),
    "replayToListener": (
        'Starts a replay: the messages of a time range are delivered to the listener again. With `"dry_run": true` '
        "the messages are only counted. At most 10 replays of a listener and 100 of an organization run at a time."
    ),
    "listReplays": (
        "Lists a listener's replays, oldest first. Follow `_links.next` until it is missing to read all pages."
    ),
    "getReplay": "Returns a replay with its state and progress.",
    "cancelReplay": "Cancels a replay. Its remaining messages are not delivered.",
    "pauseReplay": "Pauses a replay. Nothing of it is delivered until it is resumed.",
    "resumeReplay": "Resumes a paused replay.",
    "putMessage": (
        "Puts a message on a queue. Every listener of the queue gets it. The answer 200 means that the message is "
        "stored on disk by Kafka. After a 503 or no answer the message may be stored; send an `Idempotency-Key` "
        "with each put, and repeat the request with the same key until it succeeds."
    ),
    "putBatch": (
        "Puts up to 1,000 messages. If one is refused, none is stored. An `Idempotency-Key` counts for the whole batch."
    ),
    "listMessages": (
        "Lists a queue's messages, newest first, without deleted ones. Choose a time range with `from` and `to`, "
        "for example `?from=2026-01-31T12:00:00Z`, and the state of a delivery with `state`, for example "
        "`?state=parked`. With `deliveries=true`, the answer has the state of each delivery, but of at most "
        "20,000. A page may be short, or empty, while there is a next one. Follow `_links.next` until it is missing to "
        "read all pages."
    ),
    "getMessage": "Returns a message and, for each listener, the state of its delivery and all attempts.",
    "updateMessage": (
        "Changes a message's data. Deliveries that are not made yet get the new data. In the answer, the state is "
        "`delivered` for listeners that had the old data already, and `unknown` for those that may have it. With "
        "`If-Match`, the request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "deleteMessage": (
        "Deletes a message and cancels the deliveries that are not made yet. In the answer, the state is `delivered` "
        "for listeners that had the message already, and `unknown` for those that may have it. The log keeps what "
        "happened. With `If-Match`, the request is refused with 412 if somebody else has changed it in the meantime."
    ),
    "createAccount": (
        "Registers an account with an e-mail address and a password. If registration is closed, the answer is 403; "
        "ask a member of an organization for an invitation, or the operator for an account."
    ),
    "askForPasswordReset": (
        "Sends a mail with a link that works for an hour, and once. The answer is the same if no such account exists. "
        "The status is 403 if the operator has set no mail server or no public URL."
    ),
    "resetPassword": "Sets the password with the token in the link of the mail, and ends all sessions of the account.",
    "changePassword": "Changes the password of the signed-in account. Its other sessions end.",
    "unlinkIdentity": (
        "Unlinks the signed-in account from its OpenID Connect provider. The person then signs in with the password. "
        "The next sign-in with the provider links the account again. The account's other sessions end. The account "
        "must have a password, and `identity` of the account says whether it has."
    ),
    "deleteAccount": (
        "Deletes the signed-in account. API keys stay, because they belong to organizations. If an organization "
        "would be left with no owner who can sign in, the request is refused with 422 unless `even_if_last` is "
        "true; the answer then names these organizations. The account leaves its organizations one by one before it "
        "is deleted, so after an error it may have left some already: repeat the request."
    ),
    "startSession": (
        "Signs in and starts a session. Programs send the token as `Authorization: Bearer evs_…`; browsers get it "
        "as a cookie. After too many attempts the answer is 429; wait as long as `Retry-After` says."
    ),
    "startOidc": (
        "Begins to sign in with the OpenID Connect provider that the operator has set. Only the console's own pages "
        "can use it: send the browser to the URL. The cookie binds the sign-in to this browser. The status is 403 if "
        "there is no provider, and 503 if it does not answer."
    ),
    "getSession": "Returns the session of the request and its account.",
    "endSession": "Signs out: ends this session, the account's others, or all, for example `?which=others`.",
    "createOrganization": "Creates an organization. The signed-in account becomes its first owner.",
    "listOrganizations": ("Lists the organizations of the signed-in account, or the one that the API key belongs to."),
    "listMembers": "Lists the members of an organization and their roles.",
    "changeMember": (
        "Gives a member another role: `owner`, `developer`, `operator` or `auditor`. The last owner who can sign in "
        "stays an owner: the answer is then 422. If the member was an owner, their open invitations end."
    ),
    "removeMember": (
        "Removes a member from an organization. To leave, remove your own account: every role may. API keys stay, "
        "because they belong to the organization. If no owner who can sign in would be left, the request is refused "
        "with 422 unless `even_if_last` is true."
    ),
    "createInvitation": (
        "Invites a person to an organization. Only this answer holds the token and the link, which work once, within "
        "seven days. A mail with the link is sent if the operator has set a mail server and a public URL, and either "
        "the operator has created the organization or registration is closed. If the member who invites is removed or "
        "blocked, the invitation ends."
    ),
    "listInvitations": "Lists the open invitations of an organization, oldest first, without their tokens.",
    "revokeInvitation": "Revokes an invitation, so that nobody can accept it any more.",
    "acceptInvitation": (
        "Makes the signed-in account a member of the organization that the token of an invitation is for. The token is "
        "used up, unless the account is a member already. The error is the same for a token that is unknown, used, "
        "revoked or expired."
    ),
    "registerInvited": (
        "Registers an account with the token of an invitation, even if registration is closed. The account gets the "
        "e-mail address that was invited and becomes a member of the organization. If this address has an account "
        "already, sign in and accept the invitation."
    ),
    "createKey": (
        "Creates an API key. Only this answer holds the key itself: save it. A key can give another key only scopes"
        " that it has itself, and no longer life than its own."
    ),
    "listKeys": (
        "Lists an organization's API keys, oldest first, without their secrets. Follow `_links.next` until it is "
        "missing to read all pages. With `at`, the answer shows the state at that time, for example "
        "`?at=2026-01-31T12:00:00Z`."
    ),
    "getKey": (
        "Returns an API key without its secret. With `at`, the answer shows the state at that time, for example "
        "`?at=2026-01-31T12:00:00Z`."
    ),
    "revokeKey": "Revokes an API key. Within a second, requests with it are refused with 401. This can't be undone.",
    "watchChanges": (
        "Streams server-sent events, one whenever something in the organization has changed, at most one a second. The"
        " `data` of an event is JSON: which queues, listeners, messages, deliveries and replays changed, without their"
        " values. The stream ends after 15 minutes, and as soon as the key is revoked: connect again, with"
        " `Last-Event-ID`."
    ),
    "readLog": (
        "Streams the organization's events in the order of the log, one JSON object a line. The last line has a "
        "`cursor`: pass it to read on from there, for example after a broken connection. Choose events with `type`,"
        " for example `?type=queue,message.put`."
    ),
}
