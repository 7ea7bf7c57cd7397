"""What nobody should send: each is refused in words, and the server is as it was."""

import importlib.util
import sys
from pathlib import Path

import pytest

from jemstone.deployment.serve.refusal import STATUS


@pytest.fixture(scope="module")
def uploads():
    path = Path(__file__).parents[3] / "benchmarks" / "malformed.py"
    spec = importlib.util.spec_from_file_location("malformed", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["malformed"] = module
    spec.loader.exec_module(module)
    return module.uploads


def test_malformed_uploads_are_refused_in_words(client, uploads, caplog):
    good = {"inputs": [[[0.0, 0.5], [0.25, 1.0]]]}
    before = client.post("/v1/predict", json=good).json()
    refused = 0
    for upload in uploads(200, seed=1):
        answer = client.post(upload.path, content=upload.body, headers={"Content-Type": upload.content_type})
        assert answer.status_code < 500, (upload.kind, upload.body[:200], answer.text)
        if answer.status_code >= 400:
            refused += 1
            told = answer.json()
            assert told.keys() == {"error", "message", "request_id"}
            assert STATUS[told["error"]] == answer.status_code
            assert len(told["message"]) < 700
            assert "/src/" not in answer.text
            assert "Traceback" not in answer.text
    assert refused > 120, "some mutations leave an image that can be read"
    assert not [record for record in caplog.records if record.exc_info]
    assert client.post("/v1/predict", json=good).json() == before


def test_the_uploads_are_the_same_for_the_same_seed(uploads):
    assert list(uploads(28, seed=3)) == list(uploads(28, seed=3))
    assert len({upload.kind for upload in uploads(28, seed=3)}) == 14
