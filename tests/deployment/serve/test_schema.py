"""The description is complete, and what is generated from it is answered as it says."""

from collections import Counter

import hypothesis
import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.python.asgi import get_client
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


def find(part, name):
    """Every value of a key `name`, however deep."""
    if isinstance(part, dict):
        yield from ([part[name]] if name in part else [])
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from find(inner, name)


def test_every_answer_is_described(client):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {one.rpartition("/")[2] for one in find(document, "$ref")} <= set(schemas)
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
    assert schemas["PredictRequest"]["properties"]["inputs"]["maxItems"] == 64
    for name in ("SampleRequest", "CounterfactualRequest"):
        assert [str(i) for i in range(10)] in find(schemas[name], "enum")
        assert 2000 in find(schemas[name], "maximum")


def test_a_token_is_described(serving):
    client = serving(token="secret")
    document = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/v1/predict"]["post"]["security"] == [{"token": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []


def test_what_is_generated_from_it_is_answered_as_it_says(predictor):
    load_all_checks()
    settings = ServeSettings(max_steps=3, max_samples=4)
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(predictor, settings))
    statuses = Counter()
    with get_client(make_app(predictor, settings)) as session:
        for operation in schema.get_all_operations():
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode == GenerationMode.NEGATIVE and operation.ok().method == "get":
                    continue  # there is nothing in them that could be wrong

                @hypothesis.settings(
                    max_examples=10,
                    derandomize=True,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
                def answered(case):
                    answer = case.call(session=session)
                    statuses[answer.status_code] += 1
                    case.validate_response(answer, checks=CHECKS)

                answered()
    assert statuses[200] > 10
    assert statuses[422] > 10
    assert max(statuses) < 500
