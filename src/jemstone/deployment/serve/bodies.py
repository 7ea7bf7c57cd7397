"""Bodies of requests, while they arrive: bounded in bytes, in time, and in what all of them hold together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from jemstone.deployment.serve.refusal import Refused, busy
from jemstone.deployment.serve.settings import ServeSettings

TOGETHER = 16
"""Bodies of the largest size that memory is held for."""


class Bodies:
    """Reads bodies. `held` are the bytes of all that are being read or decoded."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request, *types: str) -> AsyncIterator[bytes]:
        """The body of a request that has one of the content `types`, held until the block ends.

        Raises Refused for another type, for more than max_bytes, whether announced or not, after body_seconds, and
        where too much is held already.
        """
        settings = self.settings
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in types:
            raise Refused("unsupported_type", f"The content type is {kind[:80]!r}; it must be {' or '.join(types)}.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("unsupported_type", "The body has a content encoding: send it as it is.")
        too_large = Refused("too_large", f"The body has more than {settings.max_bytes:,} bytes, the most there may be.")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:18]) > settings.max_bytes:
            raise too_large
        body = bytearray()
        try:
            try:
                deadline = asyncio.get_running_loop().time() + settings.body_seconds
                chunks = request.stream()
                while True:
                    left = deadline - asyncio.get_running_loop().time()
                    chunk = await asyncio.wait_for(anext(chunks, None), max(left, 0))
                    if chunk is None:
                        break
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > settings.max_bytes:
                        raise too_large
                    if self.held > TOGETHER * settings.max_bytes:
                        raise busy("The bodies of other requests fill the memory that is set aside for them.", 1)
            except asyncio.TimeoutError:
                raise Refused("body_timeout", f"The body did not arrive within {settings.body_seconds:g} s.") from None
            yield bytes(body)
        finally:
            self.held -= len(body)
