"""Samples of a request in curl, JavaScript, Python and Go.

For: `x-codeSamples` of the API reference (openapi.py). Not for: the requests themselves (reference.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def samples(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """Return the samples as OpenAPI's `x-codeSamples` expects them."""
    sent = [*headers, *([] if body is None else [("Content-Type", "application/json")])]
    text = None if body is None else json.dumps(body, ensure_ascii=False)
    sources = {
        "curl": ("Shell", _curl(method, url, sent, text)),
        "JavaScript": ("JavaScript", _javascript(method, url, sent, body)),
        "Python": ("Python", _python(method, url, headers, body)),
        "Go": ("Go", _go(method, url, sent, text)),
    }
    return [{"lang": lang, "label": label, "source": "\n".join(lines)} for label, (lang, lines) in sources.items()]


def _curl(method: str, url: str, headers: Sequence[tuple[str, str]], body: str | None) -> Iterator[str]:
    parts = [f"curl -X {method} {shlex.quote(url)}"]
    parts += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers]
    if body is not None:
        parts.append(f"-d {shlex.quote(body)}")
    yield " \\\n  ".join(parts)


def _javascript(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: Mapping[str, Any] | None
) -> Iterator[str]:
    yield f"const response = await fetch({json.dumps(url)}, {{"
    yield f"  method: {json.dumps(method)},"
    if headers:
        yield f"  headers: {json.dumps(dict(headers))},"
    if body is not None:
        yield f"  body: JSON.stringify({json.dumps(body, ensure_ascii=False)}),"
    yield "});"
    yield "console.log(response.status, await response.text());"


def _python(method: str, url: str, headers: Sequence[tuple[str, str]], body: Mapping[str, Any] | None) -> Iterator[str]:
    yield "import httpx"
    yield ""
    yield "response = httpx.request("
    yield f"    {method!r},"
    yield f"    {url!r},"
    if headers:
        yield f"    headers={dict(headers)!r},"
    if body is not None:
        yield f"    json={body!r},"
    yield ")"
    yield "print(response.status_code, response.text)"


def _go(method: str, url: str, headers: Sequence[tuple[str, str]], body: str | None) -> Iterator[str]:
    yield "package main"
    yield ""
    yield "import ("
    yield from (f'\t"{name}"' for name in ("fmt", "io", "net/http", *(["strings"] if body is not None else [])))
    yield ")"
    yield ""
    yield "func main() {"
    sent = "nil" if body is None else f"strings.NewReader({json.dumps(body)})"
    yield f"\treq, err := http.NewRequest({json.dumps(method)}, {json.dumps(url)}, {sent})"
    yield "\tif err != nil {"
    yield "\t\tpanic(err)"
    yield "\t}"
    yield from (f"\treq.Header.Set({json.dumps(name)}, {json.dumps(value)})" for name, value in headers)
    yield "\tresp, err := http.DefaultClient.Do(req)"
    yield "\tif err != nil {"
    yield "\t\tpanic(err)"
    yield "\t}"
    yield "\tdefer resp.Body.Close()"
    yield "\tbody, err := io.ReadAll(resp.Body)"
    yield "\tfmt.Println(resp.StatusCode, string(body), err)"
    yield "}\n"
