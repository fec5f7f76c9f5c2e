"""The shapes of requests and answers, as the OpenAPI description and /docs tell them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.serve.problems import MEDIA_TYPE, TYPES

_ROW: dict[str, Any] = {
    "kind": "image", "slice": None, "class": "glioma",
    "probabilities": {"glioma": 0.981, "meningioma": 0.012, "notumor": 0.002, "pituitary": 0.005},
    "set": ["glioma"], "verdict": "ok", "reason": "", "score": 0.21,
}  # fmt: skip
ANSWER: dict[str, Any] = {"model": "finetuned-int8-0a1b2c3d", "rows": [_ROW], "seconds": 0.019}
LINE: dict[str, Any] = {"file": "study/a.png", "series": None} | _ROW


class Row(BaseModel):
    """One image, one slice, or the whole of a volume. Refused and failed ones name no class."""

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["image", "slice", "volume"]
    slice: int | None = Field(description="From 0 on, within its file.")
    label: str | None = Field(alias="class", description="The most probable class.")
    probabilities: dict[str, float] | None = Field(description="Calibrated, from 0 to 1, of each class.")
    set: list[str] = Field(description="Prediction set: holds the true class with the coverage asked for.")
    verdict: str = Field(description="ok, uncertain, refused: not a brain MRI, or error: why.")
    reason: str = Field(description="Why it is not ok, or the cure of an error.")
    score: float | None = Field(
        description="Distance from the training data, in standard deviations above the mean of validation images."
    )
    image: str | None = Field(None, description="With heatmap=png: the 224 px picture as the network saw it.")
    heatmap: str | None = Field(None, description="With heatmap=png: a transparent overlay of the class, RGBA.")


class Answer(BaseModel):
    """What is said of one file."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER]})

    model: str = Field(description="Configuration, precision, and the checkpoint's first digits.")
    rows: list[Row]
    seconds: float


class ProblemDetails(BaseModel):
    """RFC 9457, with the cure as an extension."""

    type: str = Field(description="Stable: " + ", ".join(f"urn:tumorlens:problem:{name}" for name in TYPES))
    title: str
    status: int
    detail: str
    cure: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    titles = {s: "; ".join(title for status, title in TYPES.values() if status == s) for s in statuses}
    return {
        s: {"model": ProblemDetails, "description": titles[s], "content": {MEDIA_TYPE: {"schema": schema}}}
        for s in statuses
    }


def raw_body(*media_types: str, what: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes a file as its body."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {"requestBody": {"required": True, "description": what, "content": content}}


def is_guarded(path: str) -> bool:
    """Whether a token is needed there, where there are tokens."""
    return path.startswith(("/v1/", "/metrics"))  # not ==: Starlette's route takes "/metrics\n" too


def ask_for_tokens(description: dict[str, Any]) -> None:
    """Say in an OpenAPI description, in place, that guarded routes need a bearer token."""
    description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in description["paths"].items():
        if is_guarded(path):
            for operation in operations.values():
                operation["security"] = [{"token": []}]
