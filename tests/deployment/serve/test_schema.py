"""The description is complete, and what is generated from it is answered as it says."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from jemstone.deployment.serve.app import make_app
from jemstone.deployment.serve.settings import ServeSettings

CHECKS = (
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)


def references(part):
    if isinstance(part, dict):
        yield from ([part["$ref"]] if "$ref" in part else [])
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_every_answer_is_described(client):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {one.rpartition("/")[2] for one in references(document)} <= set(schemas)
    assert {"PredictRequest", "SampleRequest", "CounterfactualRequest", "ErrorAnswer", "ModelFacts"} <= set(schemas)
    assert set(document["paths"]) == {"/v1/predict", "/v1/sample", "/v1/counterfactual", "/v1/model", "/healthz"}
    posts = [path["post"] for path in document["paths"].values() if "post" in path]
    assert len(posts) == 3
    for post in posts:
        assert {"200", "400", "401", "408", "413", "415", "422", "429", "500"} <= set(post["responses"])
        assert post["requestBody"]["required"]
    forms = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(forms) == {"application/json", "multipart/form-data"}
    assert schemas["PredictRequest"]["additionalProperties"] is False
    assert "security" not in posts[0]


def test_a_token_is_described(serving):
    client = serving(token="secret")
    document = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/v1/predict"]["post"]["security"] == [{"token": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []


@pytest.fixture(scope="module")
def described(predictor):
    load_all_checks()
    app = make_app(predictor, ServeSettings(max_steps=3, max_samples=4))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@hypothesis.settings(
    max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_what_is_generated_from_it_is_answered_as_it_says(case):
    case.validate_response(case.call(), checks=CHECKS)
