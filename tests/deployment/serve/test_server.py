"""The command: a real server in a process of its own, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from jemstone.cli import main
from jemstone.deployment.serve.server import bound, is_loopback, read_token
from jemstone.errors import ConfigError

BODY = b'{"inputs": [[[0.5]]]}'


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


def accepted(address) -> socket.socket:
    """A request whose head the server has read: it asks for the body now."""
    talking = socket.create_connection(address, timeout=60)
    head = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\nExpect: 100-continue\r\n"
    talking.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n{head}\r\n".encode())
    assert talking.recv(4096).startswith(b"HTTP/1.1 100")
    return talking


def everything(talking: socket.socket) -> bytes:
    said = b""
    while part := talking.recv(4096):
        said += part
    talking.close()
    return said


def refuses(address) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it came to the queue of connections that is being given up
        return False
    return False


def test_it_says_what_it_serves_hangs_up_on_dawdlers_and_loses_no_accepted_request(digits_run, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    options = ["--token", str(tmp_path / "token"), "--rejection", "0.5", "--head_seconds", "0.5"]
    with command(digits_run.path, *options) as (process, client):
        assert f"Serving {digits_run.path} (jem-small, step 60, 1x8x8)" in process.said
        assert "-H 'Authorization: Bearer TOKEN'" in process.said
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/v1/model").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/model").json()["policy"]["rejection"] == 0.5
        address = (client.base_url.host, client.base_url.port)

        for start in (b"", b"POST /v1/predict HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
            talking = socket.create_connection(address, timeout=60)
            talking.sendall(start)
            assert everything(talking).count(b"HTTP/1.1 200 OK") == (b"\r\n\r\n" in start)

        waiting = [accepted(address) for _ in range(20)]
        process.send_signal(signal.SIGTERM)
        while not refuses(address):  # not without a pause: a flood of connections is what the server would be busy with
            time.sleep(0.02)
        for talking in waiting:
            talking.sendall(BODY)
        answers = [everything(talking) for talking in waiting]
        assert all(answer.startswith(b"HTTP/1.1 200 OK") and b"log_density" in answer for answer in answers)
        out, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert out.endswith("Stopped.\n")
        assert log.count("POST /v1/predict 200") == 20
        assert "Traceback" not in log


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "nowhere", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"Cannot listen at 127.0.0.1, port {port}: Address already in use" in said
    assert "--port" in said


def test_an_extra_that_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "nowhere"]) == 1
    assert "pip install 'jemstone[serve]'" in capsys.readouterr().err


def test_addresses():
    with bound("127.0.0.1", 0) as own:
        assert is_loopback(own)
    with bound("0.0.0.0", 0) as own:
        assert not is_loopback(own)
    for host, port in (("no.such.host.invalid", 80), ("127.0.0.1", 70_000)):
        with pytest.raises(ConfigError, match="Cannot listen at"):
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
