"""What a server does not do, and why: every error that is meant to reach a client."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed": 400,
        "unauthorized": 401,
        "not_found": 404,
        "method_not_allowed": 405,
        "body_timeout": 408,
        "not_generative": 409,
        "too_large": 413,
        "unsupported_type": 415,
        "invalid_input": 422,
        "busy": 429,
        "internal": 500,
    }
)
"""Every code of an error answer, and its HTTP status."""


class Refused(Exception):
    """A request is answered with an error: `code` is one of `STATUS`, `message` says what was wrong and what to do."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """Of HTTP."""
        return STATUS[self.code]


def busy(message: str, seconds: int) -> Refused:
    """Too much at once; `seconds` is when to try again."""
    return Refused("busy", f"{message} Try again in {seconds} s.", {"Retry-After": str(seconds)})
