"""Uploads that are wrong in some way, the same ones for the same seed: what a server must refuse, and survive."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BOUNDARY = "----jemstone"


class Upload(NamedTuple):
    """A request to `path`; `kind` says what is wrong with it."""

    kind: str
    path: str
    content_type: str
    body: bytes


def uploads(count: int, seed: int) -> Iterator[Upload]:
    """`count` of them, of every kind in turn."""
    makers: tuple[Callable[[np.random.Generator], Upload], ...] = (
        *(_mutated(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")),
        *(_truncated, _bomb, _mutated_json, _mutated_form, _odd_json, _odd_base64, _nonsense, _odd_settings),
    )
    for i in range(count):
        yield makers[i % len(makers)](np.random.default_rng((seed, i)))


def _image(rng: np.random.Generator, form: str) -> bytes:
    file = io.BytesIO()
    size = (*rng.integers(1, 40, 2), 3)
    Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(file, form)
    return file.getvalue()


def _flipped(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes changed, left out or put in."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 12))):
        at = int(rng.integers(0, len(changed) + 1))
        what = rng.integers(0, 4)
        if what == 0:
            del changed[at : at + int(rng.integers(1, 20))]
        elif what == 1:
            changed[at:at] = rng.bytes(int(rng.integers(1, 20)))
        elif changed and at < len(changed):
            changed[at] = int(rng.integers(0, 256))
    return bytes(changed)


def _form(parts: list[bytes]) -> tuple[str, bytes]:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{i}.png"\r\n\r\n'.encode()
        + part
        + b"\r\n"
        for i, part in enumerate(parts)
    )
    return f"multipart/form-data; boundary={BOUNDARY}", body + f"--{BOUNDARY}--\r\n".encode()


def _mutated(form: str) -> Callable[[np.random.Generator], Upload]:
    def make(rng: np.random.Generator) -> Upload:
        return Upload(f"mutated {form}", "/v1/predict", *_form([_flipped(rng, _image(rng, form))]))

    return make


def _truncated(rng: np.random.Generator) -> Upload:
    content = _image(rng, str(rng.choice(["PNG", "JPEG", "GIF"])))
    return Upload("truncated image", "/v1/predict", *_form([content[: int(rng.integers(0, len(content)))]]))


def _bomb(rng: np.random.Generator) -> Upload:
    """A PNG of some hundred bytes that claims up to 2^31 x 2^31 pixels."""
    side = [int(2 ** rng.uniform(12, 31)) for _ in range(2)]
    head = struct.pack(">IIBBBBB", *side, 8, int(rng.choice([0, 2, 6])), 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return Upload("image bomb", "/v1/predict", *_form([content]))


def _valid(rng: np.random.Generator) -> bytes:
    content: dict[str, Any] = {"inputs": rng.integers(0, 256, (2, 8, 8)).tolist()}
    return json.dumps(content).encode()


def _mutated_json(rng: np.random.Generator) -> Upload:
    return Upload("mutated JSON", "/v1/predict", "application/json", _flipped(rng, _valid(rng)))


def _mutated_form(rng: np.random.Generator) -> Upload:
    content_type, body = _form([_image(rng, "PNG"), _image(rng, "JPEG")])
    head, rest = body[:120], body[120:]
    return Upload("mutated form", "/v1/predict", content_type, _flipped(rng, head) + rest)


def _odd_json(rng: np.random.Generator) -> Upload:
    odd = [
        b"[" * int(rng.integers(2, 50_000)),
        b'{"inputs": ' + b"[" * 150 + b"1" + b"]" * 150 + b"}",
        b'{"inputs": [[[NaN]]]}',
        b'{"inputs": [[[1e400]]]}',
        b'{"inputs": [[[-1]]]}',
        b'{"inputs": [[[1e300, 1e300]]]}',
        b'{"inputs": [[[' + b"9" * 5000 + b"]]]}",
        b'{"inputs": [[[true]]]}',
        b'{"inputs": [[[1], [2, 3]]]}',
        b'{"inputs": [[[[[1]]]]]}',
        b'{"inputs": [[[]]]}',
        b'{"inputs": []}',
        b'{"inputs": {}}',
        b'{"inputs": [null]}',
        b'{"inputs": [[[1, "1"]]]}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": [[[0.5]]], "scale": 7}',
        b'{"inputs": [[[0.5]]], "other": 1}',
        b"null",
        b"",
        b"\xff\xfe{\x00}\x00",
        json.dumps({"inputs": [[[0]]] * 1000}).encode(),
        json.dumps({"inputs": [[[0] * 3] * 3] * 3, "inputs ": 1}).encode(),
        json.dumps({"inputs": [[0.5] * 5000]}).encode(),
        json.dumps({"inputs": [[[[0.5] * 7] * 7] * 7]}).encode(),
    ]
    return Upload("odd JSON", "/v1/predict", "application/json", odd[int(rng.integers(len(odd)))])


def _odd_base64(rng: np.random.Generator) -> Upload:
    content = base64.b64encode(_flipped(rng, _image(rng, "PNG"))).decode()
    texts = ["", "data:,", "data:image/png;base64,", "data:image/png;base64," + content, content[:-1], "é" + content]
    return Upload(
        "odd base64",
        "/v1/predict",
        "application/json",
        json.dumps({"inputs": [texts[int(rng.integers(len(texts)))]]}).encode(),
    )


def _nonsense(rng: np.random.Generator) -> Upload:
    types = ["application/json", "multipart/form-data", f"multipart/form-data; boundary={BOUNDARY}", "text/plain", ""]
    types += ["multipart/form-data; boundary=", "application/json; charset=utf-16", "x" * 300]
    return Upload(
        "nonsense", "/v1/predict", types[int(rng.integers(len(types)))], rng.bytes(int(rng.integers(0, 3000)))
    )


def _odd_settings(rng: np.random.Generator) -> Upload:
    path = str(rng.choice(["/v1/sample", "/v1/counterfactual"]))
    content: dict[str, Any] = {} if path == "/v1/sample" else {"input": [[0.5]], "labels": [0]}
    odd = [-1, 0, 10**9, 10**400, 0.5, "1", None, [], {}, True, [10**6], ["no class"], [0.5], [[0]], 1e-9]
    content[str(rng.choice(["labels", "count", "steps", "seed", "radius", "input", "other"]))] = odd[
        int(rng.integers(len(odd)))
    ]
    if not rng.integers(3):
        content["steps"] = 1
    content.setdefault("steps", 2)
    return Upload("odd settings", path, "application/json", json.dumps(content).encode())
