"""The routes answer what the predictor says."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jemstone.data import load_dataset
from jemstone.data.images import to_uint8
from jemstone.deployment.drift import drift
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.energy import EnergyClassifier

DIGITS = to_uint8(load_dataset("digits").test.inputs[:4])[:, :, :, 0]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def encoded(array):
    return "data:image/png;base64," + base64.b64encode(png(array)).decode()


def same(answers, found):
    """Answers are the predictions, number by number."""
    assert len(answers) == len(found)
    for answer, one, row in zip(answers, found, found.probabilities, strict=True):
        assert answer["label"] == one.label
        assert answer["index"] == one.index
        assert answer["accepted"] == one.accepted
        assert answer["reason"] == one.reason
        assert answer["candidates"] == list(one.candidates)
        for name in ("probability", "log_density", "typicality"):
            assert answer[name] == pytest.approx(getattr(one, name), abs=1e-5)
        assert list(answer["probabilities"]) == list(found.class_names)
        np.testing.assert_allclose(list(answer["probabilities"].values()), row, atol=1e-6)
    return True


def test_json_and_forms_say_what_the_predictor_says(client, predictor):
    found = predictor(DIGITS)
    ways = [
        {"json": {"inputs": DIGITS.tolist()}},
        {"json": {"inputs": (DIGITS / 255).tolist()}},
        {"json": {"inputs": DIGITS[:, :, :, None].tolist()}},
        {"json": {"inputs": [encoded(one) for one in DIGITS]}},
        {"json": {"inputs": [encoded(one).partition(",")[2] for one in DIGITS]}},
        {"json": {"inputs": [encoded(DIGITS[0]), DIGITS[1].tolist(), *(DIGITS[2:] / 255).tolist()]}},
        {"files": [("file", (f"{i}.png", png(one))) for i, one in enumerate(DIGITS)]},
        {"files": {str(i): (f"{i}.png", png(one), "image/png") for i, one in enumerate(DIGITS)}},
    ]
    for way in ways:
        answer = client.post("/v1/predict", **way)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == {"name": predictor.trained.run.path.name, "step": 60}
        assert same(answer.json()["predictions"], found)


def test_white_is_as_the_scale_says(client, predictor):
    ones = np.ones((8, 8), dtype=np.uint8)
    for scale, image in ((None, ones * 255), (1, ones * 255), (255, ones)):
        answer = client.post("/v1/predict", json={"inputs": [ones.tolist()], "scale": scale})
        assert same(answer.json()["predictions"], predictor(image))


def test_what_is_no_number_is_null_and_never_accepted(predictor, serving):
    class Broken(Predictor):
        def predict(self, x):
            return self.predictions(torch.full((len(x), 10), torch.nan))

    broken = Broken(predictor.trained, predictor.calibration)
    answer = serving(broken).post("/v1/predict", json={"inputs": [[[0.5]]]})
    assert answer.status_code == 200

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    (one,) = json.loads(answer.text, parse_constant=no_constant)["predictions"]
    assert (one["log_density"], one["typicality"], one["probability"], one["accepted"]) == (None, None, None, False)
    assert set(one["probabilities"].values()) == {None}


def test_the_facts_of_the_model(client, predictor):
    facts = client.get("/v1/model").json()
    assert facts["classes"] == [str(i) for i in range(10)]
    assert (facts["kind"], facts["input_shape"], facts["generative"]) == ("images", [1, 8, 8], True)
    assert facts["policy"] == {"error": 0.05, "rejection": 0.05, "coverage": 0.95, "delta": 0.05}
    assert facts["thresholds"]["candidate"] == predictor.thresholds.candidate
    reference = facts["reference"]
    assert reference["count"] == sum(reference["counts"]) == len(predictor.calibration.reference)
    assert len(reference["edges"]) == len(reference["counts"]) + 1
    for low, high, count in zip(reference["edges"], reference["edges"][1:], reference["counts"], strict=False):
        inside = (predictor.calibration.reference >= low) & (predictor.calibration.reference < high)
        assert inside.sum() == count or high == reference["edges"][-1]
    assert facts["limits"]["max_inputs"] == ServeSettings.max_inputs
    assert str(predictor.trained.run.path.parent) not in json.dumps(facts)


def counters(client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def test_metrics_count_what_was_answered(serving, predictor):
    client = serving()
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    images = np.concatenate([DIGITS, noise])
    for _ in range(2):
        client.post("/v1/predict", json={"inputs": images.tolist()})
    client.post("/v1/predict", content=b"no")
    client.get("/nowhere/at/all")
    found = predictor(images)
    counted = counters(client)
    assert counted['jemstone_requests_total{route="/v1/predict",status="200"}'] == 2
    assert counted['jemstone_requests_total{route="/v1/predict",status="415"}'] == 1
    assert counted['jemstone_requests_total{route="other",status="404"}'] == 1
    assert counted['jemstone_request_seconds_count{route="/v1/predict"}'] == 3
    assert counted["jemstone_batch_inputs_count"] == 2
    assert counted["jemstone_batch_inputs_sum"] == 18
    assert counted["jemstone_queue_inputs"] == 0
    for verdict in ("accepted", "ambiguous", "foreign"):
        holds = getattr(found, verdict).sum()
        assert counted[f'jemstone_predictions_total{{verdict="{verdict}"}}'] == 2 * holds
    expected = drift(predictor.calibration.reference, np.tile(found.log_density, 2), predictor.thresholds.density)
    assert expected.n == 18
    for name, value in expected._asdict().items():
        assert counted[f'jemstone_drift{{statistic="{name}"}}'] == pytest.approx(value, rel=1e-4)
    assert counted['jemstone_drift{statistic="accepted"}'] == pytest.approx(found.accepted.mean())
    assert not any("nowhere" in name for name in counted)


def test_the_page_is_served_from_its_folder(serving, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>jemstone</title>")
    (tmp_path / "app.js").write_text("'use strict'")
    (tmp_path / "style.css").write_text("body {}")
    client = serving(web=tmp_path, token="secret")
    page = client.get("/")
    assert page.text.startswith("<!doctype html>")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "javascript" in client.get("/static/app.js").headers["content-type"]
    assert client.get("/static/style.css").headers["content-type"].startswith("text/css")
    for path in ("/static/none.js", "/static/../conftest.py", "/static/%2e%2e/conftest.py", "/static/"):
        answer = client.get(path)
        assert answer.status_code == 404 or answer.status_code == 401, path
        assert answer.json()["error"] in ("not_found", "unauthorized")


def test_without_a_page_the_rest_is_served(serving, tmp_path):
    client = serving(web=tmp_path / "none")
    assert client.get("/").json()["error"] == "not_found"
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_model_of_vectors(predictor, serving):
    moments = (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64))
    trained = replace(predictor.trained, model=EnergyClassifier(nn.Linear(2, 10)).eval(), input_shape=(2,))
    vectors = Predictor(trained, predictor.calibration, moments=moments)
    client = serving(vectors)
    rows = [[3.0, 6.0], [-700, 1e5]]
    assert same(client.post("/v1/predict", json={"inputs": rows}).json()["predictions"], vectors(np.array(rows)))
    for wrong in ([1.0], [[1.0, 2.0]] * 2, encoded(DIGITS[0])):
        answer = client.post("/v1/predict", json={"inputs": [[0.0, 0.0], wrong]})
        assert answer.status_code == 422
        assert answer.json()["message"].startswith("input 1 "), answer.text
    facts = client.get("/v1/model").json()
    assert (facts["kind"], facts["input_shape"], facts["generative"]) == ("vectors", [2], False)
    assert client.post("/v1/sample", json={}).status_code == 409
