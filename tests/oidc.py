"""A real OpenID Connect provider on loopback: metadata, keys, authorization codes with PKCE, ID tokens.

It signs everybody in as `person` without asking. A test changes what it signs, and so makes a hostile provider of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

import orjson
import uvicorn
from joserfc import jws
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from broker.settings import OidcSettings

CLIENT_ID = "everput-test"
CLIENT_SECRET = "a secret + of: 100% symbols"


@dataclass
class TestProvider:
    """`claims` replace those of the ID token. `algorithm` and `key` sign it. `down` answers every request with 500."""

    __test__ = False

    port: int = 0
    back: str = ""  # the server that it sends browsers back to, if it has another URL than the redirect URI
    person: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1", "use": "sig"}))
    published: RSAKey | None = None  # the key that it shows, if it is another one
    metadata: dict[str, Any] = field(default_factory=dict)
    keys: Any = None  # what it shows instead of its keys
    answer: Response | None = None  # what the token endpoint answers instead
    down: bool = False
    asked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **more: Any) -> OidcSettings:
        return OidcSettings(
            issuer=self.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, name="Acme & Co", **more
        )

    async def serve(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        if self.down:
            return Response(status_code=500)
        ways = {
            "/.well-known/openid-configuration": self._metadata,
            "/keys": self._keys,
            "/authorize": self._authorize,
            "/token": self._token,
        }
        return await ways[request.url.path](request)

    async def _metadata(self, _request: Request) -> Response:
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        found = {"issuer": self.issuer} | {name: f"{self.issuer}/{path}" for name, path in endpoints.items()}
        return JSONResponse(found | self.metadata)

    async def _keys(self, _request: Request) -> Response:
        if self.keys is not None:
            return JSONResponse(self.keys)
        return JSONResponse({"keys": [(self.published or self.key).as_dict(private=False)]})

    async def _authorize(self, request: Request) -> Response:
        given = dict(request.query_params)
        assert (given["response_type"], given["client_id"]) == ("code", CLIENT_ID)
        assert given["scope"].split() == ["openid", "email"]
        assert given["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe()
        self.codes[code] = given
        back = self.back + urlsplit(given["redirect_uri"]).path if self.back else given["redirect_uri"]
        return RedirectResponse(f"{back}?{urlencode({'code': code, 'state': given['state']})}", 302)

    async def _token(self, request: Request) -> Response:
        if self.answer is not None:
            return self.answer
        form = dict(parse_qsl((await request.body()).decode()))
        client = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode().split(":")
        given = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if (
            given is None
            or [unquote_plus(part) for part in client] != [CLIENT_ID, CLIENT_SECRET]
            or form["redirect_uri"] != given["redirect_uri"]
            or base64.urlsafe_b64encode(digest).decode().rstrip("=") != given["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = self.signed(given["nonce"])
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": token})

    def signed(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        claims = {name: value for name, value in (claims | self.person | self.claims).items() if value is not None}
        header = {"alg": self.algorithm, "kid": "1"}
        if self.algorithm in ("none", "HS256"):
            parts = [base64.urlsafe_b64encode(orjson.dumps(part)).decode().rstrip("=") for part in (header, claims)]
            # HS256 signs with the public key, as if it were a shared secret.
            signed = hmac.digest(self.key.as_pem(private=False), ".".join(parts).encode(), "sha256")
            signature = "" if self.algorithm == "none" else base64.urlsafe_b64encode(signed).decode().rstrip("=")
            return ".".join([*parts, signature])
        return jws.serialize_compact(header, json.dumps(claims).encode(), self.key, algorithms=[self.algorithm])


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[TestProvider]:
    """Serve a provider that signs in ann@example.com, whose address is verified."""
    made = TestProvider(person={"sub": "ann-at-acme", "email": "ann@example.com", "email_verified": True})
    app = Starlette(routes=[Route("/{path:path}", made.serve, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    made.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.should_exit = True
        await serving
