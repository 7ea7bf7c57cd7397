"""The command: a real server in a process of its own, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from jemstone.deployment.serve.server import bound, is_loopback, read_token
from jemstone.errors import ConfigError

GOOD = {"inputs": [[[0.5]]]}


@contextmanager
def command(run, *arguments, **environment):
    """`jemstone serve` on a free port: the process, and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jemstone", "serve", str(run), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        said = ""
        while "Try: curl" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        process.said = said
        address = re.search(r"at (http://\S+)", said)[1]
        with httpx.Client(base_url=address, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def test_it_says_what_it_serves_and_loses_no_accepted_request(digits_run, tmp_path):
    """Twenty requests wait in a batch that waits for more; then the process is told to stop."""
    (tmp_path / "token").write_text("secret\n")
    options = ["--max_wait_ms", "1500", "--token", str(tmp_path / "token"), "--rejection", "0.5"]
    with command(digits_run.path, *options) as (process, client):
        assert str(digits_run.path) in process.said
        assert "conv-8" in process.said or "jem-small" in process.said
        assert "-H 'Authorization: Bearer TOKEN'" in process.said
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/v1/model").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/model").json()["policy"]["rejection"] == 0.5
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(client.post, "/v1/predict", json=GOOD) for _ in range(20)]
            while "jemstone_queue_inputs 20.0" not in client.get("/metrics").text:
                assert not all(one.done() for one in asked), "the batch went before it was complete: a slow machine"
            process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in asked]
        assert [one.status_code for one in answers] == [200] * 20
        out, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert out.endswith("Stopped.\n")
        assert log.count("POST /v1/predict 200") == 20
        assert "Traceback" not in log
        with pytest.raises(httpx.ConnectError):
            client.get("/healthz")


def test_a_client_that_dawdles_is_hung_up_on(digits_run):
    with command(digits_run.path, "--body_seconds", "0.5") as (_, client):
        address = (client.base_url.host, client.base_url.port)
        for start in (b"", b"POST /v1/predict HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
            with socket.create_connection(address, timeout=60) as talking:
                talking.sendall(start)
                said = b""
                while part := talking.recv(4096):
                    said += part
            assert said.count(b"HTTP/1.1 200 OK") == (b"\r\n\r\n" in start)
        assert client.post("/v1/predict", json=GOOD).status_code == 200


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "jemstone", "serve", "nowhere", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert f"Cannot listen at 127.0.0.1, port {port}: Address already in use" in done.stderr
    assert "--port" in done.stderr


def test_addresses(monkeypatch):
    with bound("127.0.0.1", 0) as own:
        assert is_loopback(own)
    with bound("0.0.0.0", 0) as own:
        assert not is_loopback(own)
    for host, port in (("no.such.host.invalid", 80), ("127.0.0.1", 70_000)):
        with pytest.raises(ConfigError, match="Cannot listen"):
            bound(host, port)


def test_tokens(monkeypatch, tmp_path):
    monkeypatch.setenv("THE_TOKEN", " secret ")
    assert read_token("THE_TOKEN") == "secret"
    (tmp_path / "token").write_text("other\n")
    assert read_token(str(tmp_path / "token")) == "other"
    (tmp_path / "empty").write_text("\n")
    for wrong, says in ((str(tmp_path / "none"), "neither"), (str(tmp_path / "empty"), "empty")):
        with pytest.raises(ConfigError, match=says):
            read_token(wrong)
