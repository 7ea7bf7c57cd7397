"""A socket, a server on it, and how both end."""

from __future__ import annotations

import os
import signal
import socket
from asyncio import TimerHandle, Transport
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jemstone.deployment.serve.front import App
from jemstone.errors import ConfigError

STOP_SECONDS = 60
"""After which requests that were accepted before the stop are given up."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at `host` and `port`, not listening yet. ConfigError where it cannot be had."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"Cannot listen at {host}, port {port}: ports go from 0, any that is free, to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot listen at {host}, port {port}: {reason}. Choose others: --host, --port.") from None
    return own


def is_loopback(own: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    host = str(own.getsockname()[0])
    return host == "::1" or host.startswith("127.")


def read_token(source: str) -> str:
    """The token in the environment variable, or else in the file, that `source` names."""
    text = os.environ.get(source)
    if text is None:
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ConfigError(
                f"--token is {source!r}, which is neither an environment variable nor a file that can be read."
            ) from None
    if not text.strip():
        raise ConfigError(f"The token in {source!r} is empty.")
    return text.strip()


def run_server(app: App, own: socket.socket, *, head_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and return."""

    class Impatient(H11Protocol):  # type: ignore[misc]
        """Hangs up on clients that take longer than `head_seconds` for the head of a request."""

        hanging: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, error: Exception | None) -> None:
            if self.hanging is not None:
                self.hanging.cancel()
            super().connection_lost(error)

        def _watch(self) -> None:
            incomplete = self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0])
            if incomplete and self.hanging is None:
                self.hanging = self.loop.call_later(head_seconds, self.transport.close)
            elif not incomplete and self.hanging is not None:
                self.hanging.cancel()
                self.hanging = None

    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    # uvicorn raises the signal that ended it again, for the handler of before: this one lets the process end in peace.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        server.run(sockets=[own])
    finally:
        signal.signal(signal.SIGTERM, before)
