"""What every request passes, whichever route it takes: a name, the token, the log, and errors told as JSON."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jemstone.deployment.serve.answers import ErrorAnswer
from jemstone.deployment.serve.metrics import Metrics
from jemstone.deployment.serve.refusal import STATUS, Refused

LOG = logging.getLogger("jemstone.serve")
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read and thrown away, so that the client comes to read why."""
GONE = 499
"""The status in log and metrics of a request whose client has left."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
_CODES = {status: code for code, status in STATUS.items()}


def json_answer(content: object, status: int = 200, headers: MutableMapping[str, str] | None = None) -> Response:
    """A dataclass as JSON; NaN and infinity, which JSON has no words for, as null."""
    return Response(to_json(content, inf_nan_mode="null"), status, headers, "application/json")


def guarded(app: App, *, token: str | None, is_open: Callable[[str], bool], metrics: Metrics) -> App:
    """`app` behind all that: paths of which `is_open` holds ask for no token."""

    async def guard(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began = time.monotonic()
        name = secrets.token_hex(8)
        scope["state"]["request_id"] = name
        whole = False  # has the body arrived?
        status = 0
        headers = dict(scope["headers"])

        async def receiving() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*HEADERS, (b"x-request-id", name.encode())]
                if not whole and _has_body(headers):
                    extra.append((b"connection", b"close"))
                    if b"expect" not in headers and status != STATUS["body_timeout"]:
                        await _linger(receiving)
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            if token is not None and not is_open(scope["path"]):
                _authorise(headers.get(b"authorization", b""), token)
            await app(scope, receiving, sending)
        except Refused as error:
            await _refusal(error, name)(scope, receiving, sending)
        except Exception:  # answered by `internal_error` already
            LOG.exception("%s failed", name)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", None) or "other"
            metrics.answered(route, status or GONE, seconds)
            path = route if route != "other" else ascii(scope["path"][:80])
            LOG.info("%s %s %d %.1f ms %s", scope["method"][:10], path, status or GONE, 1000 * seconds, name)

    return guard


async def http_error(request: Request, error: Exception) -> Response:
    """Errors that the framework makes, for unknown paths and methods, in our words."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "malformed")
    messages = {
        "not_found": "There is nothing here. GET /openapi.json lists what there is.",
        "method_not_allowed": "This path takes another method: see the header Allow.",
    }
    refused = Refused(code, messages.get(code, str(error.detail)), dict(error.headers or {}))
    return _refusal(refused, request.state.request_id)


async def refused_answer(request: Request, error: Exception) -> Response:
    """Our own errors."""
    assert isinstance(error, Refused)
    return _refusal(error, request.state.request_id)


async def internal_error(request: Request, error: Exception) -> Response:
    """What nobody foresaw: told to the log alone."""
    refused = Refused("internal", "Something broke in the server; its log has it under the request_id.")
    return _refusal(refused, request.state.request_id)


async def client_gone(request: Request, error: Exception) -> Response:
    """For the log, as nobody is there to read it."""
    return Response(status_code=GONE)


def _refusal(error: Refused, name: str) -> Response:
    return json_answer(ErrorAnswer(error.code, error.message, name), error.status, error.headers)


def _authorise(given: bytes, token: str) -> None:
    kind, _, value = given.partition(b" ")
    if kind.lower() != b"bearer" or not hmac.compare_digest(value.strip(), token.encode()):
        raise Refused(
            "unauthorized",
            "This server wants its token, as the header Authorization: Bearer TOKEN.",
            {"WWW-Authenticate": "Bearer"},
        )


def _has_body(headers: MutableMapping[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _linger(receive: Receive) -> None:
    """Read the rest of a body, for a while."""

    async def rest() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
            pass

    try:
        await asyncio.wait_for(rest(), LINGER_SECONDS)
    except asyncio.TimeoutError:
        return
