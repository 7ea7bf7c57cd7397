"""Clients that ask again as soon as they are answered; prints what they saw as JSON. Beside python it needs nothing.

python benchmarks/http_load.py HOST PORT CLIENTS SECONDS BODY.json
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path


async def client(host: str, port: int, request: bytes, until: float, seconds: list[float], seen: Counter[str]) -> None:
    """One connection, kept; what ends without an answer counts as lost."""
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            seen["lost"] += 1
            reader, writer = await asyncio.open_connection(host, port)
            continue
        seen[head.split()[1]] += 1
        seconds.append(time.perf_counter() - began)
    writer.close()


async def load(host: str, port: int, clients: int, duration: float, body: bytes) -> dict[str, object]:
    """All clients at once."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    seconds: list[float] = []
    seen: Counter[str] = Counter()
    began = time.perf_counter()
    await asyncio.gather(*(client(host, port, request, began + duration, seconds, seen) for _ in range(clients)))
    return {"wall": time.perf_counter() - began, "seconds": seconds, "seen": seen}


if __name__ == "__main__":
    host, port, clients, duration, body = sys.argv[1:]
    print(json.dumps(asyncio.run(load(host, int(port), int(clients), float(duration), Path(body).read_bytes()))))
