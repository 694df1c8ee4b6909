"""The pages of the problem types: `/problems` lists them, and each `type` of an error answer is the path of one page.

For: what each problem means, why it happens and what to do. Not for: which error has which type (problems.py,
broker/errors.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Final, NamedTuple

from starlette.routing import Route

from api.problems import TITLES
from api.static import static_route


class ProblemType(NamedTuple):
    """The text of the page about one type of problem. `status` is the HTTP status of the answers with this type."""

    status: int
    means: str
    why: str
    remedy: str


PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = {
    "bad-request": ProblemType(
        400,
        "The server could not read the request as HTTP.",
        "The request's first line, a header or the framing of its body is not valid, or the client asks for a "
        "WebSocket at a path that has none.",
        "Use an ordinary HTTP client. If a proxy is in between, check that it does not change the request.",
    ),
    "malformed": ProblemType(
        400,
        "The request's body or query could not be read.",
        "The body is not valid JSON in UTF-8, the query is not percent-encoded UTF-8, or the header Content-Length is "
        "no number.",
        "Read `detail`: it names the place. Create the body with a JSON library.",
    ),
    "unauthenticated": ProblemType(
        401,
        "The request has no valid API key or session.",
        "The header X-API-KEY is missing, the key was cut off while copying, it was revoked or has expired, or the "
        "session has ended.",
        "Send a valid key in the header X-API-KEY. Create a new key in the console under “API keys”, or with "
        "`everput keys create`. If a session has ended, sign in again.",
    ),
    "wrong-password": ProblemType(
        401,
        "No account has this e-mail address and password.",
        "One of the two is wrong, or a one-time password was used already or has expired. The answer does not say "
        "which, so that nobody can find out who has an account.",
        "Check both. If the installation can send mail, choose “Reset password” on the sign-in page. Otherwise ask the "
        "operator.",
    ),
    "forbidden": ProblemType(
        403,
        "The server knows who sends the request, but these credentials do not allow it.",
        "The API key lacks a scope, the member's role does not allow the operation, the key is restricted to some "
        "queues, or a page of another site sent the request.",
        "Read `detail`: it names what is missing. Use a key with the scope, or ask an owner of the organization.",
    ),
    "identity-refused": ProblemType(
        403,
        "The sign-in provider did not prove who the person is, or the person has no account here.",
        "The e-mail address is not verified, its domain may not sign in here, or the provider's answer is not valid.",
        "Sign in with another address, or ask the operator to allow the domain.",
    ),
    "account-blocked": ProblemType(
        403,
        "The account is blocked.",
        "The operator of the installation has blocked it.",
        "Ask the operator, who can unblock it with `everput accounts unblock`.",
    ),
    "not-found": ProblemType(
        404,
        "Nothing with this ID or path exists for these credentials.",
        "The resource was deleted, the ID is mistyped, it belongs to another organization, or the API key is "
        "restricted to other queues. The answer does not say which.",
        "Check the ID, and that the key belongs to the right organization. The API reference lists all paths.",
    ),
    "method-not-allowed": ProblemType(
        405,
        "The resource exists but does not support this HTTP method.",
        "Resources are created with PUT, and actions such as pausing are POST.",
        "Use one of the methods in the answer's header Allow.",
    ),
    "request-timeout": ProblemType(
        408,
        "The request did not arrive completely in time.",
        "The connection is too slow or was interrupted, or Content-Length is larger than the body.",
        "Send the request again. For puts, repeat the same Idempotency-Key.",
    ),
    "in-flight": ProblemType(
        409,
        "Another request with this Idempotency-Key is in progress.",
        "A request was repeated before the first one was answered.",
        "Wait for the seconds in Retry-After, and repeat the request with the same key. It then gets the first answer.",
    ),
    "precondition-failed": ProblemType(
        412,
        "The resource no longer has the version in If-Match, or you are no owner any more. Nothing was changed.",
        "Somebody else changed the resource, or your role, after you had read it.",
        "Read the resource again, apply your change to it, and send the new ETag in If-Match.",
    ),
    "too-large": ProblemType(
        413,
        "The request's body is too large.",
        "The message, or the batch, has more bytes than the server allows.",
        "Send less data in a message, or fewer messages in a batch. `detail` states the limit.",
    ),
    "uri-too-long": ProblemType(
        414,
        "The request's URL is too long.",
        "A filter or a cursor in the query was built wrongly.",
        "Follow the links in `_links` as they are, and shorten your own parameters.",
    ),
    "not-json": ProblemType(
        415,
        "The body is not announced as plain JSON.",
        "The header Content-Type is missing or names another type, or the body is compressed.",
        "Send `Content-Type: application/json` and an uncompressed body.",
    ),
    "misdirected-request": ProblemType(
        421,
        "The header Host names another server.",
        "The installation is reached by a name that it does not know. This check prevents attacks by DNS rebinding.",
        "The operator adds the name with `--allowed-host` or `--public-url`.",
    ),
    "refused": ProblemType(
        422,
        "The request was understood, but one of its values is not acceptable.",
        "A field is missing, unknown, of the wrong type or out of its range, or the change does not fit the resource's "
        "state.",
        "Read `errors`: each entry points to a field of the body and says what is expected.",
    ),
    "name-taken": ProblemType(
        422,
        "The name is already in use.",
        "Another queue of the organization, or another listener of the queue, has this name.",
        "Choose another name, or use the resource that has it. The lists of queues and listeners show names and IDs.",
    ),
    "email-taken": ProblemType(
        422,
        "Another account has this e-mail address already.",
        "The person registered earlier.",
        "Sign in instead.",
    ),
    "quota-reached": ProblemType(
        422,
        "The limit for this kind of resource is reached.",
        "The organization has as many queues, listeners, keys or other resources as it may.",
        "Read `detail`: it names the limit, and what you can do.",
    ),
    "idempotency-key-reused": ProblemType(
        422,
        "The Idempotency-Key belongs to another request.",
        "The same key was sent within 24 hours with another body or to another path.",
        "Create a new key, such as a UUID, for each put. Repeat a key only with the very same request.",
    ),
    "bad-parameter": ProblemType(
        422,
        "A parameter of the query is not acceptable.",
        "The operation has no such parameter, or its value is not valid.",
        "`errors` names the parameter. The API reference lists the parameters of each operation.",
    ),
    "bad-header": ProblemType(
        422,
        "A header of the request is not acceptable.",
        "The value of a header such as Idempotency-Key or If-Match is too long or has the wrong form.",
        "`errors` names the header and says what is expected.",
    ),
    "wrong-cursor": ProblemType(
        422,
        "The cursor does not belong to this request.",
        "The cursor was given for other filters, or by another installation.",
        "Start without a cursor, and follow `next` of `_links` without changing the filters.",
    ),
    "last-member": ProblemType(
        422,
        "After this change, no owner of an organization could sign in.",
        "The account is the last owner of an organization.",
        "Make another member an owner first. To delete the account or to remove the member all the same, set "
        "`even_if_last` to true.",
    ),
    "too-many-requests": ProblemType(
        429,
        "More requests arrive than the limit allows.",
        "For example, the keys of an organization, the sessions of an account or the clients of a network send too "
        "many requests or bytes.",
        "Wait for the seconds in Retry-After. The header RateLimit shows what is left. Put messages in batches.",
    ),
    "share-used": ProblemType(
        429,
        "The organization has used its share of a resource that all organizations share.",
        "The resource is free again when earlier uses expire.",
        "Wait for the seconds in Retry-After, then send the request again.",
    ),
    "request-header-fields-too-large": ProblemType(
        431,
        "The request's headers are too large.",
        "A client or a proxy adds large headers, such as many cookies.",
        "Send fewer or shorter headers.",
    ),
    "internal": ProblemType(
        500,
        "An error in the server prevented the answer.",
        "This is a fault of Everput. The server's log has the details.",
        "Give the operator the ID in the header X-Request-Id. Repeating a put with the same Idempotency-Key is safe.",
    ),
    "not-implemented": ProblemType(
        501,
        "The server does not support this way of sending a body.",
        "The header Transfer-Encoding names something other than `chunked`.",
        "Send the body with Content-Length, or chunked.",
    ),
    "unavailable": ProblemType(
        503,
        "Everput can't answer at the moment.",
        "The server is starting or stopping, or a part that it needs is not reachable.",
        "Wait for the seconds in Retry-After, and repeat the request. Repeat puts with the same Idempotency-Key.",
    ),
    "busy": ProblemType(
        503,
        "The server does as much of this work at once as it can.",
        "Many large requests, large reads or sign-ins run at the same time.",
        "Wait for the seconds in Retry-After, and repeat the request.",
    ),
    "log-unavailable": ProblemType(
        503,
        "Kafka can't be reached, or it does not answer in time. No message and no change was stored.",
        "Kafka restarts or is overloaded, or too few of its brokers are running.",
        "Repeat the request after Retry-After; repeat a put with the same Idempotency-Key. If it lasts, the operator "
        "finds the state with `everput status`.",
    ),
    "log-damaged": ProblemType(
        503,
        "Stored records that this request needs can't be read.",
        "A disk has altered or lost bytes on every broker that has a copy. Everput uses no data that fails its check.",
        "The operator finds the damaged range with `everput verify`.",
    ),
    "unreadable": ProblemType(
        503,
        "This server can't read the message.",
        "A newer version of Everput has written the message, and this server was not upgraded yet.",
        "The operator upgrades the server. Then repeat the request.",
    ),
    "offset-too-old": ProblemType(
        503,
        "The log no longer has the records that were to be read.",
        "Retention deleted them while the request was running.",
        "Repeat the request. It then begins with the oldest records that are left.",
    ),
    "disk-nearly-full": ProblemType(
        503,
        "The disk of the server is nearly full. Nothing was stored.",
        "Messages are kept longer than the disk has room for.",
        "The operator frees disk space or shortens the retention. Then repeat the request.",
    ),
    "in-doubt": ProblemType(
        503,
        "Kafka did not acknowledge in time. The message or the change may have been stored, or not.",
        "Kafka was overloaded or restarted during the request.",
        "Repeat a put with the same Idempotency-Key: it is then stored once. Read the resource before you repeat "
        "another change.",
    ),
    "view-behind": ProblemType(
        503,
        "This process has not yet read the newest part of the log.",
        "The process has just started, or Kafka is slow. An older answer would be wrong, so there is none.",
        "Repeat the request after Retry-After.",
    ),
    "storage-full": ProblemType(
        507,
        "The limit of stored bytes is reached. It is for all organizations of the account that created this "
        "organization. Nothing was stored.",
        "The messages are kept longer than the limit has room for.",
        "Ask the operator to raise the limit, or to have messages deleted earlier. Deleting queues frees no bytes.",
    ),
}
# If Starlette or the HTTP server refuses a request, the problem type of the answer is the name of the HTTP status.
# SAME_AS maps the name of a status, for example `unauthorized`, to the type in PROBLEM_TYPES that means the same.
SAME_AS: Final[Mapping[str, str]] = {
    "unauthorized": "unauthenticated",
    "conflict": "in-flight",
    "content-too-large": "too-large",
    "unsupported-media-type": "not-json",
    "unprocessable-entity": "refused",
    "internal-server-error": "internal",
    "service-unavailable": "unavailable",
    "insufficient-storage": "storage-full",
}
_FRAME: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} &ndash; Everput</title>
<link rel="stylesheet" href="{root}console/console.css">
<link rel="icon" href="{root}console/icon.svg" type="image/svg+xml">
<header id="top">
  <a class="brand" href="{root}console"><img src="{root}console/icon.svg" alt="" width="24" height="24"> Everput</a>
  <nav id="nav" aria-label="Pages">
    <a href="{root}problems">Problem types</a>
    <a href="{root}docs">API reference</a>
  </nav>
</header>
<main id="main">
{content}
</main>
</html>
"""


def problem_page_routes() -> list[Route]:
    """Return the routes of `/problems` and of the page of each problem type."""
    pages = {code: _page(code, one) for code, one in PROBLEM_TYPES.items()}
    pages |= {code: _page(code, PROBLEM_TYPES[other]) for code, other in SAME_AS.items()}
    routes = [static_route(f"/problems/{code}", "text/html", page) for code, page in pages.items()]
    return [static_route("/problems", "text/html", _list()), *routes]


def _page(code: str, one: ProblemType) -> bytes:
    sections = [("What it means", one.means), ("Why it happens", one.why), ("What to do", one.remedy)]
    content = [
        '<p class="way"><a href="../problems">Problem types</a> &rsaquo;</p>',
        f'<div class="title"><h1>{code}</h1></div>',
        f'<p class="quiet">HTTP status {one.status} {TITLES[one.status]} · <code>/problems/{code}</code></p>',
        *(f'<section class="panel"><h2>{title}</h2><p>{_text(text)}</p></section>' for title, text in sections),
    ]
    return _FRAME.format(title=code, root="../", content="\n".join(content)).encode()


def _list() -> bytes:
    rows = [
        f'<tr><td data-label="Status">{one.status}</td>'
        f'<td data-label="Type"><a class="name" href="problems/{code}">{code}</a></td>'
        f'<td data-label="Meaning">{_text(one.means)}</td></tr>'
        for code, one in PROBLEM_TYPES.items()
    ]
    about = _text(
        "An error answer is a JSON object of the type `application/problem+json` (RFC 9457). Its field `type` names "
        "one of these kinds. `detail` says what is wrong in this case, and `errors` names the fields, parameters or "
        "headers. Programs compare `type`."
    )
    content = [
        '<div class="title"><h1>Problem types</h1></div>',
        f"<p>{about}</p>",
        '<section class="panel flush"><table><caption class="unseen">Problem types</caption>',
        '<thead><tr><th scope="col">Status</th><th scope="col">Type</th><th scope="col">Meaning</th></tr></thead>',
        f"<tbody>{''.join(rows)}</tbody></table></section>",
    ]
    return _FRAME.format(title="Problem types", root="", content="\n".join(content)).encode()


def _text(text: str) -> str:
    """Return the text as HTML, with words between backticks as code."""
    return "".join(_pieces(escape(text)))


def _pieces(text: str) -> Iterator[str]:
    for number, piece in enumerate(text.split("`")):
        yield f"<code>{piece}</code>" if number % 2 else piece
