"""The Starlette application of the REST API: which path leads to which resource.

For: the routes, and the errors for unknown paths. All parts are passed in, so that tests run the application without a
server. Not for: creating these parts, or serving the application (cli/processes/api.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from api.accounts import DEFAULT_LIMITS, AccountLimits, Accounts
from api.auth import ApiKeys, Members, Sessions
from api.bodies import BYTES_MAX, Bodies
from api.browsers import Browsers
from api.calls import Call, Handler, Method, Resource, Service, answer_problem
from api.changes import ChangeLimits
from api.clients import Clients
from api.console import console_routes
from api.damaged_ids import DamagedIds
from api.deliveries import OutstandingDeliveries
from api.direct_puts import DirectPuts
from api.docs import Reference, docs_routes
from api.invitations import Invitations
from api.keys import OrganizationKeys
from api.listeners import Listeners
from api.log import EventLog
from api.members import OrganizationMembers
from api.messages import BATCH_TIMES_BYTES_MAX, Messages
from api.oidc import PATH as OIDC_PATH
from api.oidc import OidcSignIn
from api.overview import Overview
from api.page_tokens import PageTokens
from api.password_resets import PasswordResets
from api.past import Views
from api.problem_pages import problem_page_routes
from api.problems import MEDIA_TYPE, NoSuchPath, Problem, framework_problem, problem
from api.queues import Queues
from api.reference import parameters
from api.replays import Replays
from api.request_counts import RequestCounts
from api.secrets import Secrets
from api.statistics import StatisticsOf
from api.tunnel import Listen, Tunnels, deny
from api.volume import Volume
from api.watch import Watch
from broker.audit.reader import LogReader
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.idempotency import Idempotency
from broker.commands.identities import IdentityCommands
from broker.commands.invitations import InvitationCommands
from broker.commands.listeners import ListenerCommands
from broker.commands.queues import QueueCommands
from broker.commands.replays import ReplayCommands
from broker.commands.secrets import SecretCommands
from broker.outbound.addresses import Resolver
from broker.outbound.dns import Ask, ask_system
from broker.outbound.mail import Mailer
from broker.passwords import Passwords
from broker.ports import Cursors, Deliveries, DirectoryView, ListenerStatus, Log, Outstanding, Statistics, Tracing
from broker.sealing import Sealer
from broker.settings import OidcSettings, Settings
from broker.volume import StoredBytes

if TYPE_CHECKING:
    from broker.outbound.oidc import Provider

_LOG: Final = b"/v1/log"
_PUT_BEFORE: Final = b"/v1/queues/"
_PUT_AFTER: Final = b"/messages"
_PUT_SLASHES: Final = 4


def _may_mail(settings: Settings, view: DirectoryView, organization_id: str) -> bool:
    """Return whether Everput may send e-mail for an organization.

    If registration is open, Everput sends e-mail only for organizations that the operator created. Otherwise, strangers
    could register and send e-mail through the operator's mail server. Without a mail server, return False.
    """
    organization = view.state.organizations.get(organization_id)
    by_operator = organization is not None and organization.by_shell
    return settings.smtp is not None and (by_operator or not settings.registration)


def _provider(settings: OidcSettings | None) -> Provider | None:
    if settings is None:
        return None
    # Import the module here: only a server with an OpenID Connect provider needs it and its libraries.
    from broker.outbound.oidc import Provider

    return Provider(settings)


def make_app(
    settings: Settings,
    *,
    log: Log,
    view: DirectoryView,
    sealer: Sealer,
    deliveries: Deliveries,
    status: ListenerStatus,
    reader: LogReader,
    outstanding: Outstanding,
    cursors: Cursors,
    tunnels: Tunnels,
    stored: StoredBytes,
    statistics: Statistics,
    passwords: Passwords,
    tracing: Tracing | None,
    account_limits: AccountLimits = DEFAULT_LIMITS,
    bodies_bytes_max: int = BYTES_MAX,
    dns: Ask = ask_system,
    clock: Callable[[], int] = now_ms,
) -> Starlette:
    """Create the Starlette application of the REST API. The event log (`log`) and the state (`view`) must be started
    already.
    """
    mailer = None if settings.smtp is None else Mailer(settings.smtp)
    may_mail = partial(_may_mail, settings, view)
    listener_commands = ListenerCommands(
        log,
        view,
        sealer,
        allow_networks=settings.allow_networks,
        listeners_max=settings.listeners_max,
        mail_for=may_mail,
    )
    views = Views(view, reader.past)
    queues = Queues(QueueCommands(log.control, view, queues_max=settings.queues_max), view, status, views)
    listeners = Listeners(listener_commands, view, status, views)
    idempotency = Idempotency(
        log.claims,
        log.messages,
        append_timeout_ms=settings.append_timeout_ms,
        check_room=stored.check,
        count=stored.add,
    )
    tokens = PageTokens(sealer)
    messages = Messages(log, idempotency, view, deliveries, stored, tokens, tracing)
    public_url = None if settings.public_url is None else settings.public_url.rstrip("/")
    limit = settings.requests_per_s
    keys = ApiKeys(view, log.control, stored, requests_per_s=limit)
    changes = ChangeLimits(settings.changes_per_min, stored)
    sessions = Sessions(view, public_url)
    account_commands = AccountCommands(log.control, view, passwords)
    clients = Clients(settings.trusted_proxies, behind_proxy=public_url is not None)
    browsers = Browsers(sealer.derived_keys("known browsers"))
    accounts = Accounts(
        account_commands,
        view,
        keys,
        sessions,
        stored,
        clients,
        browsers,
        registration=settings.registration,
        limits=account_limits,
    )
    secrets = Secrets(
        SecretCommands(log.control, view, sealer),
        log.tests,
        view,
        sealer,
        Resolver(settings.allow_networks, dns, mailer=mailer),
        stored,
    )
    organization_keys = OrganizationKeys(log.control, view, sessions, views, changes)
    organization_members = OrganizationMembers(account_commands.members, view, sessions, changes)
    invitations = Invitations(
        InvitationCommands(log.control, view, account_commands),
        view,
        sessions,
        clients,
        mailer=mailer,
        may_mail=may_mail,
        public_url=public_url,
    )
    service = Service(
        keys,
        Members(view, sessions, requests_per_s=limit),
        view,
        public_url,
        settings.body_bytes_max,
        Bodies(bodies_bytes_max),
        RequestCounts(),
    )

    def changing(handler: Handler, scope: str = "queues") -> Method:
        return Method(changes.before(handler), scope)

    def resource(path: str, **methods: Method) -> Resource:
        return Resource(service, path, methods, {name: parameters(name, path) for name in methods})

    def at(path: str, **methods: Method) -> Route:
        return Route(path, resource(path, **methods))

    queue, listener = "/v1/queues/{queue_id}", "/v1/queues/{queue_id}/listeners/{listener_id}"
    stores: list[Handler] = [messages.put, messages.put_batch, messages.update]
    volume = None
    if settings.bytes_per_s is not None:
        volume = Volume(settings.bytes_per_s, bytes_max=settings.body_bytes_max * BATCH_TIMES_BYTES_MAX)
        stores = [volume.before(handler) for handler in stores]
    put, put_batch, update = stores
    puts = resource(f"{queue}/messages", PUT=Method(put, "messages:put"), GET=Method(messages.list, "messages:read"))
    resets = PasswordResets(account_commands, view, tokens, clients, mailer=mailer, public_url=public_url)
    oidc = OidcSignIn(
        _provider(settings.oidc),
        IdentityCommands(log.control, view),
        InvitationCommands(log.control, view, account_commands),
        account_commands,
        sessions,
        browsers,
        clients,
        tokens,
        public_url=public_url,
        may_create=settings.registration or (settings.oidc is not None and bool(settings.oidc.domains)),
    )
    outstanding_deliveries = OutstandingDeliveries(
        listener_commands, view, log.messages, cursors, outstanding, tokens, DamagedIds(sealer)
    )
    counted = StatisticsOf(view, statistics, status, clock)
    replays = Replays(
        ReplayCommands(log, view, outstanding, cursors, allow_networks=settings.allow_networks), view, changes.take_more
    )
    elsewhere = _Elsewhere(service)
    app = _App(
        puts,
        reader.others.came,
        routes=[
            Route(f"{queue}/messages", puts),
            at(f"{queue}/messages/batch", POST=Method(put_batch, "messages:put")),
            at(
                f"{queue}/messages/{{message_id}}",
                GET=Method(messages.get, "messages:read"),
                PUT=Method(update, "messages"),
                DELETE=Method(messages.delete, "messages"),
            ),
            at("/v1/queues", GET=Method(queues.list, "queues:read", narrows=True), PUT=changing(queues.create)),
            at(
                queue,
                GET=Method(queues.get, "queues:read"),
                PUT=changing(queues.change),
                DELETE=Method(queues.delete, "queues"),
            ),
            at(
                f"{queue}/listeners",
                GET=Method(listeners.list, "queues:read"),
                PUT=changing(listeners.create),
            ),
            at(
                listener,
                GET=Method(listeners.get, "queues:read"),
                PUT=changing(listeners.update),
                DELETE=Method(listeners.delete, "queues"),
            ),
            at("/v1/accounts", PUT=Method(accounts.register, None)),
            at("/v1/accounts/password", POST=Method(accounts.change_password, None)),
            at("/v1/accounts/password-reset", POST=Method(resets.ask, None), PUT=Method(resets.set, None)),
            at("/v1/accounts/unlink", POST=Method(accounts.unlink, None)),
            at("/v1/accounts/delete", POST=Method(accounts.delete, None)),
            at(
                "/v1/sessions",
                GET=Method(accounts.session, None),
                POST=Method(accounts.start_session, None),
                DELETE=Method(accounts.end_session, None),
            ),
            at("/v1/sessions/oidc", POST=Method(oidc.start, None)),
            at(
                "/v1/organizations",
                GET=Method(accounts.list_organizations, None),
                PUT=Method(accounts.create_organization, None),
            ),
            at("/v1/organizations/{organization_id}/members", GET=Method(organization_members.list, None)),
            at(
                "/v1/organizations/{organization_id}/members/{account_id}",
                PUT=Method(organization_members.change, None),
                DELETE=Method(organization_members.remove, None),
            ),
            at(
                "/v1/organizations/{organization_id}/invitations",
                GET=Method(invitations.list, None),
                PUT=Method(invitations.create, None),
            ),
            at(
                "/v1/organizations/{organization_id}/invitations/{invitation_id}",
                DELETE=Method(invitations.revoke, None),
            ),
            at("/v1/invitations/accept", POST=Method(invitations.accept, None)),
            at("/v1/invitations/register", POST=Method(invitations.register, None)),
            at(
                "/v1/organizations/{organization_id}/keys",
                GET=Method(organization_keys.list, None),
                PUT=Method(organization_keys.create, None),
            ),
            at(
                "/v1/organizations/{organization_id}/keys/{key_id}",
                GET=Method(organization_keys.get, None),
                DELETE=Method(organization_keys.revoke, None),
            ),
            at(f"{listener}/secret", GET=Method(secrets.get, "queues")),
            at(f"{listener}/secret/rotate", POST=changing(secrets.rotate)),
            at(f"{listener}/test", POST=changing(secrets.test, "queues:operate")),
            at(f"{listener}/pause", POST=Method(listeners.pause, "queues:operate")),
            at(f"{listener}/resume", POST=changing(listeners.resume, "queues:operate")),
            WebSocketRoute(f"{queue}/listen", Listen(service, listener_commands, view, tunnels, changes).serve),
            at("/v1/log", GET=Method(EventLog(reader, log.messages, tokens).read, "audit")),
            at("/v1/changes", GET=Method(Watch(reader.feed, view).watch, "queues:read", narrows=True)),
            at(f"{listener}/deliveries", GET=Method(outstanding_deliveries.list, "queues:read")),
            at(
                f"{listener}/redrive",
                POST=changing(outstanding_deliveries.redrive, "queues:operate"),
                DELETE=Method(outstanding_deliveries.cancel_redrives, "queues:operate"),
            ),
            at("/v1/overview", GET=Method(Overview(view, statistics, status, clock).get, "queues:read", narrows=True)),
            at(f"{queue}/statistics", GET=Method(counted.queue, "queues:read")),
            at(f"{listener}/statistics", GET=Method(counted.listener, "queues:read")),
            at(f"{listener}/replay", POST=changing(replays.start, "queues:operate")),
            at(f"{listener}/replays", GET=Method(replays.list, "queues:read")),
            at(
                f"{listener}/replays/{{replay_id}}",
                GET=Method(replays.get, "queues:read"),
                DELETE=Method(replays.cancel, "queues:operate"),
            ),
            at(f"{listener}/replays/{{replay_id}}/pause", POST=Method(replays.pause, "queues:operate")),
            at(f"{listener}/replays/{{replay_id}}/resume", POST=changing(replays.resume, "queues:operate")),
        ],
        exception_handlers={HTTPException: elsewhere.refused, Exception: elsewhere.failed},
    )
    reference = Reference(lambda: operations(app))
    app.router.routes += [
        at("/v1/openapi.json", GET=Method(reference.get, None)),
        *docs_routes(reference),
        *problem_page_routes(),
        *console_routes(
            registration=settings.registration,
            mail=mailer is not None and public_url is not None,
            oidc="" if settings.oidc is None else settings.oidc.name,
        ),
        Route(OIDC_PATH, oidc.finish, methods=["GET"]),
    ]
    # Answer 404 to an unknown path such as `/v1/queues/`. Starlette would redirect it to `/v1/queues`.
    app.router.redirect_slashes = False
    app.router.default = elsewhere
    app.state.requests = service.requests
    app.state.direct_puts = None  # The general way traces puts.
    if tracing is None:
        app.state.direct_puts = DirectPuts(service, log.messages, stored, volume=volume, came=reader.others.came)
    return app


def operations(app: Starlette) -> Iterator[tuple[str, str, str | None]]:
    """Yield the HTTP method, the path and the required scope of each operation that the OpenAPI document describes. The
    scope is None if the handler itself checks the caller, or if anybody may call the operation.
    """
    for route in app.routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource) and route.path != "/v1/openapi.json":
            for method, scope in route.endpoint.scopes.items():
                yield method, route.path, scope


class _App(Starlette):
    """The Starlette application of the REST API, which handles puts of messages faster. A PUT on
    `/v1/queues/{queue_id}/messages` skips Starlette's middleware and routing, which would take a third of the put's
    processor time.
    """

    def __init__(self, puts: Resource, came: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._puts = puts
        self._came = came

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # Compare the path as the client sent it, without decoding `%`. No path of this API has a percent sign.
            path = scope["raw_path"]
            if path != _LOG:
                self._came()
            if (
                scope["method"] == "PUT"
                and path.endswith(_PUT_AFTER)
                and path.startswith(_PUT_BEFORE)
                and path.count(b"/") == _PUT_SLASHES
            ):
                scope["path_params"] = {"queue_id": path[len(_PUT_BEFORE) : -len(_PUT_AFTER)].decode("latin-1")}
                await self._puts(scope, receive, send)
                return
            if b"%" in path:
                await self.router.default(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _Elsewhere:
    """The ASGI application that answers 404 to requests with an unknown path. It also turns errors outside of the API's
    handlers into problem details (RFC 9457).
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await deny(WebSocket(scope, receive, send), NoSuchPath("Nothing is at this path."))
            return
        begun_s = perf_counter()
        request_id = Call(scope, receive, self._service).request_id
        status = await answer_problem(send, scope, NoSuchPath("Nothing is at this path."), request_id)
        self._service.requests.add("other", "other", status, begun_s)

    async def refused(self, request: Request, error: Exception) -> Response:
        """Answer a request with the status of Starlette's HTTPException. Keep the headers of the exception, such as
        `Allow` for the status 405.
        """
        status, more = (error.status_code, error.headers) if isinstance(error, HTTPException) else (400, None)
        return self._response(request, framework_problem(status, str(getattr(error, "detail", ""))), more or {})

    async def failed(self, request: Request, error: Exception) -> Response:
        return self._response(request, problem(error), {})

    def _response(self, request: Request, answer: Problem, more: Mapping[str, str]) -> Response:
        headers = {name.decode(): value.decode() for name, value in answer.headers} | dict(more)
        headers["x-request-id"] = Call(request.scope, request.receive, self._service).request_id.decode()
        return Response(answer.body, answer.status, headers, media_type=MEDIA_TYPE.decode())
