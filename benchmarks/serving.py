"""`jemstone serve` under load, and under attack.

    python benchmarks/serving.py --run RUN              60 s each with and without micro-batching, 32 clients
    python benchmarks/serving.py --run RUN --toy        a second of each, few of everything

Two servers of the same run, one that computes up to 64 inputs at once and one that computes them one by one, are loaded
in turns (A B A B) by clients of another process, each of which sends one image (PNG in base64) and waits. Then the
first server gets malformed uploads (malformed.py) and what schemathesis makes of its OpenAPI description. Writes

    machine, run, clients, body_bytes
    micro_batching, one_by_one   answered a second, latency in ms (p50, p99), statuses, inputs a batch, MiB resident
    ratio          micro_batching over one_by_one
    fuzz           statuses of malformed uploads, slowest in s, MiB resident before and after
    openapi        examples and failures of schemathesis
    healthy        whether the first server answers at the end as it did at the beginning
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import schemathesis
from common import write
from malformed import uploads
from PIL import Image
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode

SHORT_CHAINS = ("--max_steps", "20", "--max_samples", "8")
"""What schemathesis asks for is drawn in time."""
HERE = Path(__file__).parent
# An image that is no image cannot be told by a schema: 422 is an answer to what a schema allows.
LEFT_OUT = ("positive_data_acceptance",)


@contextmanager
def server(run: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`jemstone serve` on a free port, its log thrown away."""
    command = [sys.executable, "-m", "jemstone", "serve", run, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        said = ""
        while "Stop with" not in said:
            line = process.stdout.readline()
            assert line, "the server ended: start it by hand to see why"
            said += line
        found = re.search(r"at (http://\S+)", said)
        assert found is not None
        with httpx.Client(base_url=found[1], timeout=60) as client:
            while True:
                try:
                    client.get("/healthz")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield process, client
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def resident(process: subprocess.Popen[str]) -> float:
    """MiB."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return float("nan")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]


def picture(shape: list[int]) -> str:
    """A PNG of the model's size, in base64."""
    pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[2], shape[0]), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if shape[0] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def batches(client: httpx.Client) -> tuple[float, float]:
    """Batches and inputs so far."""
    text = client.get("/metrics").text
    return tuple(float(re.search(rf"jemstone_batch_inputs_{name} (\S+)", text)[1]) for name in ("count", "sum"))  # type: ignore[index,return-value]


def loaded(
    process: subprocess.Popen[str], client: httpx.Client, clients: int, seconds: float, body: Path
) -> dict[str, Any]:
    """One turn of the clients, in a process of their own."""
    before, memory = batches(client), resident(process)
    command = [sys.executable, str(HERE / "http_load.py"), client.base_url.host, str(client.base_url.port)]
    done = subprocess.run([*command, str(clients), str(seconds), str(body)], capture_output=True, text=True, check=True)
    after = batches(client)
    inputs, runs = after[1] - before[1], after[0] - before[0]
    return json.loads(done.stdout) | {
        "inputs": inputs,
        "runs": runs,
        "resident_before": memory,
        "resident_after": resident(process),
    }


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """All turns of one server."""
    seconds = np.concatenate([turn["seconds"] for turn in turns])
    seen: Counter[str] = sum((Counter(turn["seen"]) for turn in turns), Counter())
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return {
        "seconds": round(sum(turn["wall"] for turn in turns), 1),
        "per_second": round(len(seconds) / sum(turn["wall"] for turn in turns), 1),
        "per_second_by_turn": [round(len(turn["seconds"]) / turn["wall"], 1) for turn in turns],
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "slowest_ms": round(1000 * float(seconds.max()), 1),
        "statuses": dict(seen),
        "lost": seen["lost"],
        "inputs_a_batch": round(sum(turn["inputs"] for turn in turns) / sum(turn["runs"] for turn in turns), 2),
        "resident_mib": [round(turns[0]["resident_before"], 1), *(round(turn["resident_after"], 1) for turn in turns)],
    }


def fuzzed(process: subprocess.Popen[str], client: httpx.Client, count: int) -> dict[str, Any]:
    """`count` malformed uploads, one after another."""
    memory = resident(process)
    seen: Counter[str] = Counter()
    slowest = 0.0
    for upload in uploads(count, seed=0):
        began = time.perf_counter()
        answer = client.post(upload.path, content=upload.body, headers={"Content-Type": upload.content_type})
        slowest = max(slowest, time.perf_counter() - began)
        seen[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            print(upload.kind, answer.text)
    return {
        "uploads": count,
        "statuses": dict(sorted(seen.items())),
        "server_errors": sum(n for status, n in seen.items() if status >= "500"),
        "slowest_s": round(slowest, 2),
        "resident_mib": [round(memory, 1), round(resident(process), 1)],
    }


def generated(client: httpx.Client, examples: int) -> dict[str, Any]:
    """Requests that schemathesis makes of the description, right ones and wrong ones."""
    load_all_checks()
    checks = [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]
    schema = schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")))
    seen: Counter[str] = Counter()
    failures: list[str] = []
    for operation in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode == GenerationMode.NEGATIVE and operation.ok().method == "get":
                continue

            @hypothesis.settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
            def answered(case: Any) -> None:
                answer = case.call()
                seen[str(answer.status_code)] += 1
                try:
                    case.validate_response(answer, checks=checks)
                except (Exception, FailureGroup) as error:
                    failures.append(str(error)[:1000])

            answered()
    return {
        "examples": seen.total(),
        "statuses": dict(sorted(seen.items())),
        "failures": len(failures),
        "first": failures[:2],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="fashion-mnist", help="what to serve")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write, instead of results/serving.json")
    options = parser.parse_args()
    clients, seconds, turns, count, examples = (4, 0.5, 1, 42, 3) if options.toy else (32, 30.0, 2, 1000, 60)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    one_by_one = server(options.run, "--max_batch", "1")
    with server(options.run, *SHORT_CHAINS) as first, one_by_one as second, tempfile.TemporaryDirectory() as folder:
        facts = first[1].get("/v1/model").json()
        image = {"inputs": [picture(facts["input_shape"])]}
        body = Path(folder) / "body.json"
        body.write_text(json.dumps(image))
        expected = first[1].post("/v1/predict", json=image).json()
        second[1].post("/v1/predict", json=image)
        found: dict[str, list[dict[str, Any]]] = {"micro_batching": [], "one_by_one": []}
        for _ in range(turns):
            for name, (process, client) in zip(found, (first, second), strict=True):
                found[name].append(loaded(process, client, clients, seconds, body))
                print(name, f"{len(found[name][-1]['seconds']) / found[name][-1]['wall']:.0f} a second", flush=True)
        summaries = {name: summary(turns) for name, turns in found.items()}
        a, b = summaries["micro_batching"], summaries["one_by_one"]
        fuzz = fuzzed(*first, count)
        openapi = generated(first[1], examples)
        again = first[1].post("/v1/predict", json=image).json()
        same = np.isclose(again["predictions"][0]["log_density"], expected["predictions"][0]["log_density"], atol=1e-4)
        content = {
            "run": {name: facts[name] for name in ("recipe", "step", "input_shape")},
            "clients": clients,
            "body_bytes": body.stat().st_size,
            **summaries,
            "ratio": {name: round(a[name] / b[name], 3) for name in ("per_second", "p50_ms", "p99_ms")},
            "fuzz": fuzz,
            "openapi": openapi,
            "healthy": bool(same) and first[1].get("/healthz").status_code == 200,
        }
    print(json.dumps(content, indent=1))
    print(f"Written to {write('serving', content, options.json)}.")


if __name__ == "__main__":
    main()
