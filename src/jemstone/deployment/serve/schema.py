"""The OpenAPI description, complete: bodies that are read by hand, errors and security included."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from jemstone.deployment.serve.answers import ErrorAnswer
from jemstone.deployment.serve.facts import ModelFacts
from jemstone.deployment.serve.refusal import STATUS
from jemstone.deployment.serve.requests import ADAPTERS

MEANINGS = {
    "malformed": "The body is not what its content type says.",
    "unauthorized": "The token is missing or wrong.",
    "body_timeout": "The body arrived too slowly.",
    "not_generative": "The model has no density of images.",
    "too_large": "Too many bytes, or pixels.",
    "unsupported_type": "Another content type, or a content encoding.",
    "invalid_input": "An input, a label or a setting is wrong; the message says which.",
    "busy": "Too much waits already; Retry-After says when to come again.",
    "internal": "A fault of the server.",
}
_REF = "#/components/schemas/{model}"
_FORM = {
    "type": "object",
    "additionalProperties": {"type": "string", "format": "binary"},
    "minProperties": 1,
    "description": "Files, whatever their fields are called.",
}


def documented(
    answer: type, body: type | None = None, *, form: bool = False, png: bool = False, chains: bool = False
) -> dict[str, Any]:
    """Arguments of a route: what it takes, answers, and refuses."""
    codes = [code for code in MEANINGS if body is not None or code in ("unauthorized", "internal")]
    codes = [code for code in codes if chains or code != "not_generative"]
    responses: dict[int | str, dict[str, Any]] = {
        STATUS[code]: {"model": ErrorAnswer, "description": MEANINGS[code]} for code in codes
    }
    if body is not None:
        retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds", "required": True}}
        responses[STATUS["busy"]]["headers"] = retry
    responses[200] = {"model": answer, "description": (answer.__doc__ or "").strip()}
    if png:
        responses[200]["content"] = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    arguments: dict[str, Any] = {"responses": responses}
    if body is not None:
        content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
        if form:
            content["multipart/form-data"] = {"schema": _FORM}
        arguments["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return arguments


def describe(app: FastAPI, facts: ModelFacts, *, protected: bool) -> None:
    """Complete what the framework says of `app`, with the classes and limits of what it serves.

    `protected`, it asks for a token everywhere but at /healthz.
    """
    document = app.openapi()
    parts = document.setdefault("components", {})
    for kind, adapter in ADAPTERS.items():
        schema = adapter.json_schema(ref_template=_REF)
        parts["schemas"].update(schema.pop("$defs", {}))
        parts["schemas"][kind.__name__] = schema
    _bound(parts["schemas"], facts)
    if protected:
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path == "/healthz" else [{"token": []}]
    app.openapi_schema = document


def _bound(schemas: dict[str, Any], facts: ModelFacts) -> None:
    """What depends on the model and the settings, and so on no type."""
    limits = facts.limits
    label = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": len(facts.classes) - 1}, {"enum": facts.classes}]}
    for kind, name, bounds in (
        ("PredictRequest", "inputs", {"maxItems": limits.max_inputs}),
        ("SampleRequest", "count", {"maximum": limits.max_samples}),
        ("SampleRequest", "steps", {"maximum": limits.max_steps}),
        ("SampleRequest", "labels", {"items": label, "maxItems": limits.max_samples}),
        ("CounterfactualRequest", "steps", {"maximum": limits.max_steps}),
        ("CounterfactualRequest", "labels", {"items": label, "maxItems": limits.max_samples}),
    ):
        schema = schemas[kind]["properties"][name]
        schema.get("anyOf", [schema])[0].update(bounds)  # the other one is null
