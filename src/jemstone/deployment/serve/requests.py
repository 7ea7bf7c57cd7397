"""What clients may ask, as types: JSON is checked against them, and OpenAPI shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from jemstone.deployment.serve.refusal import Refused

TAGS = ("encoded", "vector", "rows", "planes", "number", "name")


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON Schema; "1" and true are none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else "no integer"


def _kind_of(value: Any) -> str:
    return "name" if isinstance(value, str) else "number"


WHOLE = BeforeValidator(_whole)
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1), WHOLE]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1, description="of the chains; drawn where it is missing"), WHOLE]
# Without fail_fast a body of millions of wrong numbers makes as many errors.
Row = Annotated[list[Number], Field(min_length=1, fail_fast=True)]
Rows = Annotated[list[Row], Field(min_length=1, fail_fast=True)]
Planes = Annotated[list[Rows], Field(min_length=1, fail_fast=True)]
TELLS = 3
"""Errors of one body that are told."""


def _form_of(value: Any) -> str | None:
    if isinstance(value, str):
        return "encoded"
    depth = 0
    while isinstance(value, list) and depth < 4:
        depth, value = depth + 1, value[0] if value else None
    return {1: "vector", 2: "rows", 3: "planes"}.get(depth)


Input = Annotated[
    Annotated[str, Tag("encoded"), Field(description="an image file in base64, bare or as data:image/png;base64,...")]
    | Annotated[Row, Tag("vector"), Field(description="a vector")]
    | Annotated[Rows, Tag("rows"), Field(description="a grey image (h, w)")]
    | Annotated[Planes, Tag("planes"), Field(description="an image (h, w, c) or (c, h, w)")],
    Discriminator(
        _form_of,
        custom_error_type="input",
        custom_error_message="Input should be a base64 string, or numbers nested 1 to 3 deep",
    ),
]
Scale = Annotated[
    Literal[1, 255],
    Field(
        description="what white is, in numbers; where it is missing, an image with any number above 1 goes to 255, and "
        "others to 1"
    ),
]
Label = Annotated[
    Annotated[int, Field(ge=0), WHOLE, Tag("number")] | Annotated[str, Field(max_length=200), Tag("name")],
    Discriminator(_kind_of),
    Field(description="a class, by number or by name"),
]


@dataclass(frozen=True)
class PredictRequest:
    """One input or many."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    inputs: Annotated[list[Input], Field(min_length=1, fail_fast=True)]
    scale: Scale | None = None
    images: Annotated[bool, Field(strict=True, description="answer with the images, too, as the model sees them")] = (
        False
    )


@dataclass(frozen=True)
class SampleRequest:
    """Fresh samples: of p(x), or with `labels` of p(x|y), sample i of label i modulo their number."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    labels: Annotated[list[Label], Field(min_length=1, fail_fast=True)] | None = None
    count: Annotated[Count, Field(description="8, or one for each label, where it is missing")] | None = None
    steps: Annotated[Count, Field(description="of a chain; as long as training chains live, where missing")] | None = (
        None
    )
    seed: Seed | None = None


@dataclass(frozen=True)
class CounterfactualRequest:
    """One image, moved toward each of `labels`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    input: Input
    labels: Annotated[list[Label], Field(min_length=1, fail_fast=True)]
    scale: Scale | None = None
    steps: Count | None = None
    radius: (
        Annotated[
            float,
            Field(
                strict=True, gt=0, le=1e6, allow_inf_nan=False, description="how far it may go, L2 of [-1, 1] pixels"
            ),
        ]
        | None
    ) = None
    seed: Seed | None = None


Asked = TypeVar("Asked", PredictRequest, SampleRequest, CounterfactualRequest)
ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (PredictRequest, SampleRequest, CounterfactualRequest)
}


def parse(body: bytes, kind: type[Asked]) -> Asked:
    """The JSON `body` as a request of `kind`. Raises Refused that says where it is none."""
    try:
        request: Asked = ADAPTERS[kind].validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise Refused("malformed", f"The body is not JSON: {found[0]['msg']}.") from None
        raise Refused("invalid_input", "; ".join(_told(one) for one in found[:TELLS]) + ".") from None
    return request


def _told(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in TAGS)
    return f"{where[:200]}: {error['msg']}" if where else f"The body: {error['msg']}"
