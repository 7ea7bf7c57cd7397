"""Where a server's patience ends: bytes, pixels, inputs, time; who may ask; what an error tells."""

import asyncio
import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.app import make_app
from jemstone.deployment.serve.batching import Batcher
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.errors import ConfigError

GOOD = {"inputs": [[[0.5]]]}
PREDICT = "/v1/predict"


def refused(answer, status, code, says):
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
    assert says in answer.json()["message"], answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    return True


def picture(width, height, form="PNG"):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, form)
    return file.getvalue()


def claiming(width, height):
    """A PNG whose head says so, and that holds one pixel."""
    content = bytearray(picture(1, 1))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ("{", 400, "malformed", "not JSON"),
        ("[" * 10_000, 400, "malformed", "recursion limit"),
        ("[]", 422, "invalid_input", "object"),
        ("{}", 422, "invalid_input", "inputs"),
        ('{"inputs": []}', 422, "invalid_input", "at least 1"),
        ('{"inputs": [[[[[1]]]]]}', 422, "invalid_input", "nested 1 to 3 deep"),
        ('{"inputs": [[[1, NaN]]]}', 422, "invalid_input", "inputs.0.0.1: Input should be a finite number"),
        ('{"inputs": [[[1, 1e999]]]}', 422, "invalid_input", "inputs.0.0.1: Input should be a finite number"),
        ('{"inputs": [[[true, true, true]]]}', 422, "invalid_input", "inputs.0.0.0: Input should be a valid number."),
        ('{"inputs": [[[1], [1, 2]]]}', 422, "invalid_input", "input 0 has rows of different lengths"),
        ('{"inputs": [[1, 2]]}', 422, "invalid_input", "input 0 has shape (2,)"),
        ('{"inputs": [[[[0.1, 0.2], [0, 0]], [[0, 0], [0, 0]]]]}', 422, "invalid_input", "shape (2, 2, 2)"),
        ('{"inputs": [[[1]], [[-1]]]}', 422, "invalid_input", "input 1 goes from -1 to -1"),
        ('{"inputs": [[[256]]]}', 422, "invalid_input", "from 0 to 255"),
        ('{"inputs": [[[1.5]]]}', 422, "invalid_input", "whole numbers"),
        ('{"inputs": [[[2]]], "scale": 1}', 422, "invalid_input", "numbers from 0 to 1"),
        ('{"inputs": [[[2]]], "scale": 2}', 422, "invalid_input", "scale"),
        ('{"inputs": [[[2]]], "more": 2}', 422, "invalid_input", "more"),
        ('{"inputs": ["/etc/passwd"]}', 422, "invalid_input", "input 0 is not base64"),
        ('{"inputs": ["http://x/y.png,"]}', 422, "invalid_input", "must begin with data:image"),
        ('{"inputs": ["aGVsbG8="]}', 422, "invalid_input", "input 0 cannot be read as an image"),
    ],
)
def test_json_that_is_wrong(client, body, status, code, says):
    assert refused(client.post(PREDICT, content=body, headers={"Content-Type": "application/json"}), status, code, says)


def test_what_is_not_there_or_not_so(client):
    assert refused(client.get("/nothing"), 404, "not_found", "openapi.json")
    wrong = client.get(PREDICT)
    assert refused(wrong, 405, "method_not_allowed", "Allow")
    assert wrong.headers["allow"] == "POST"
    text = {"Content-Type": "text/plain"}
    assert refused(client.post(PREDICT, content="{}", headers=text), 415, "unsupported_type", "application/json or")
    zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert refused(client.post(PREDICT, content="{}", headers=zipped), 415, "unsupported_type", "encoding")
    form = client.post(PREDICT, data={"a": "b"}, files={"f": b""})
    assert refused(form, 422, "invalid_input", "input 0 cannot be read as an image")
    form = {"Content-Type": "multipart/form-data"}
    assert refused(client.post(PREDICT, content="{}", headers=form), 400, "malformed", "not a multipart form")


def test_bytes_are_counted_while_they_arrive(serving):
    client = serving(settings=ServeSettings(max_bytes=1000))
    head = {"Content-Type": "application/json"}
    assert refused(client.post(PREDICT, content=b" " * 1001, headers=head), 413, "too_large", "1,000 bytes")
    taken = []

    def endless():
        for i in range(20):
            taken.append(i)
            yield b" " * 100

    answer = client.post(PREDICT, content=endless(), headers=head)
    assert "content-length" not in answer.request.headers
    assert refused(answer, 413, "too_large", "1,000 bytes")
    assert client.post(PREDICT, json=GOOD).status_code == 200


def test_pixels_are_counted_before_any_is_decoded(serving, monkeypatch):
    client = serving(settings=ServeSettings(max_pixels=10_000))
    two = [("f", ("a.png", picture(100, 60))), ("f", ("b.png", picture(100, 60)))]
    assert client.post(PREDICT, files=two[:1]).status_code == 200
    monkeypatch.setattr(Predictor, "read", lambda *_: pytest.fail("decoded"))
    assert refused(client.post(PREDICT, files=two), 413, "too_large", "With input 1 the images have 12,000 pixels")
    assert refused(client.post(PREDICT, files={"f": claiming(60_000, 1000)}), 413, "too_large", "60,000,000 pixels")


def test_a_picture_that_claims_the_world_is_refused(client):
    assert refused(client.post(PREDICT, files={"f": claiming(20_000, 20_000)}), 422, "invalid_input", "more pixels")


def test_a_jpeg_of_endless_scans_is_refused(client):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(
        file, "JPEG", progressive=True
    )
    whole = file.getvalue()
    assert client.post(PREDICT, files={"f": whole}).status_code == 200
    last = whole.rindex(b"\xff\xda")
    bomb = whole[:last] + whole[last:-2] * 101 + whole[-2:]
    assert refused(client.post(PREDICT, files={"f": bomb}), 422, "invalid_input", "100 scans")


def test_inputs_are_counted(serving):
    client = serving(settings=ServeSettings(max_inputs=2))
    assert refused(client.post(PREDICT, json={"inputs": [[[0.5]]] * 3}), 422, "invalid_input", "more than 2 inputs")
    files = [("f", (f"{i}.png", picture(8, 8))) for i in range(3)]
    assert refused(client.post(PREDICT, files=files), 422, "invalid_input", "more than 2 inputs")
    assert len(client.post(PREDICT, files=files[:2]).json()["predictions"]) == 2


def test_a_token_is_asked_for(serving):
    client = serving(token="secret-ü")
    for given in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic secret"}, {"Authorization": "Bearer "}):
        for path in ("/v1/model", "/metrics", "/openapi.json", "/nothing"):
            answer = client.get(path, headers=given)
            assert refused(answer, 401, "unauthorized", "Authorization: Bearer TOKEN")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert refused(client.post(PREDICT, json=GOOD, headers=given), 401, "unauthorized", "token")
    right = {"Authorization": "Bearer secret-ü".encode()}
    assert client.post(PREDICT, json=GOOD, headers=right).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_nothing_is_shared_with_other_origins(client):
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert client.options(PREDICT, headers=asked).status_code == 405
    answer = client.post(PREDICT, json=GOOD, headers=asked)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_fault_of_ours_tells_the_log_and_not_the_client(predictor, serving, caplog):
    class Broken(Predictor):
        def predict(self, x):
            raise RuntimeError("/secret/path/of/the/server")

    client = serving(Broken(predictor.trained, predictor.calibration))
    answer = client.post(PREDICT, json=GOOD)
    assert refused(answer, 500, "internal", "request_id")
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert answer.json()["request_id"] in record.getMessage()
    assert "secret" in caplog.text


def test_the_log_has_a_line_for_each_request_and_no_body(client, caplog):
    caplog.set_level(logging.INFO, "jemstone.serve")
    client.post(PREDICT, json=GOOD)
    client.get("/a%0Aforged line")
    lines = [record.getMessage() for record in caplog.records if record.name == "jemstone.serve"]
    assert len(lines) == 2
    assert lines[0].startswith("POST /v1/predict 200 ")
    assert "\n" not in lines[1]
    assert "404" in lines[1]


@pytest.mark.parametrize(
    "wrong",
    [{"max_batch": 0}, {"max_wait_ms": -1}, {"queue": 3, "max_inputs": 4}, {"body_seconds": 0}, {"max_pixels": -1}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServeSettings(**wrong)


CHUNKED = (b"transfer-encoding", b"chunked")


def talk(app, messages, scenario=None, length=CHUNKED):
    """One POST to /v1/predict whose body is the `messages`; then the client is silent, or does as `scenario` says."""
    sent = []

    async def send(message):
        sent.append(message)

    async def conversation():
        queue = asyncio.Queue()
        for message in messages:
            queue.put_nowait(message)
        ready, stop = asyncio.Queue(), asyncio.Queue()
        lifespan = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        stop.put_nowait({"type": "lifespan.startup"})

        async def started(message):
            ready.put_nowait(message)

        living = asyncio.create_task(app(lifespan, stop.get, started))
        assert (await ready.get())["type"] == "lifespan.startup.complete"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": "POST",
            "path": PREDICT,
            "raw_path": PREDICT.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), length],
            "state": {},
        }
        asking = asyncio.create_task(app(scope, queue.get, send))
        if scenario is not None:
            await scenario(queue)
        await asking
        stop.put_nowait({"type": "lifespan.shutdown"})
        await living

    asyncio.run(conversation())
    return sent


def test_a_body_that_never_ends_is_not_waited_for(predictor):
    app = make_app(predictor, ServeSettings(body_seconds=0.05))
    start, end = talk(app, [{"type": "http.request", "body": b'{"inputs"', "more_body": True}])
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert b"did not arrive within 0.05 s" in end["body"]


def test_a_body_that_is_announced_too_large_is_not_waited_for(predictor, monkeypatch):
    monkeypatch.setattr("jemstone.deployment.serve.front.LINGER_SECONDS", 0.01)
    app = make_app(predictor, ServeSettings(body_seconds=0.05))
    start, _ = talk(app, [], length=(b"content-length", b"9" * 30))
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]


def test_a_client_that_left_is_not_computed_for(predictor, monkeypatch):
    happened = []

    async def submit(self, x):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            happened.append("given up")
            raise

    async def work(self):
        try:
            await asyncio.Event().wait()
        finally:
            happened.append("the server stopped")

    monkeypatch.setattr(Batcher, "submit", submit)
    monkeypatch.setattr(Batcher, "work", work)

    async def leave(queue):
        while not queue.empty():
            await asyncio.sleep(0)
        queue.put_nowait({"type": "http.disconnect"})

    body = {"type": "http.request", "body": b'{"inputs": [[[0.5]]]}', "more_body": False}
    (start, _) = talk(make_app(predictor), [body], leave)
    assert start["status"] == 499
    assert happened == ["given up", "the server stopped"]


def test_bodies_together_do_not_fill_the_memory(predictor, monkeypatch):
    monkeypatch.setattr("jemstone.deployment.serve.bodies.TOGETHER", 0)
    app = make_app(predictor)
    start, end = talk(app, [{"type": "http.request", "body": b"{}", "more_body": False}])
    assert start["status"] == 429
    assert any(name == b"retry-after" for name, _ in start["headers"])
    assert b"fill the memory" in end["body"]
