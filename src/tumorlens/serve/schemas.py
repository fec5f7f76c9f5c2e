"""Schemas of requests and responses, for the OpenAPI description and /docs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.serve.problems import MEDIA_TYPE, TYPES

_ROW_EXAMPLE: dict[str, Any] = {
    "kind": "image", "slice": None, "instance": None, "class": "glioma",
    "probabilities": {"glioma": 0.981, "meningioma": 0.012, "notumor": 0.002, "pituitary": 0.005},
    "set": ["glioma"], "verdict": "ok", "reason": "", "score": 0.21,
}  # fmt: skip
PREDICT_EXAMPLE: dict[str, Any] = {"model": "finetuned-int8-0a1b2c3d", "rows": [_ROW_EXAMPLE], "seconds": 0.019}
BATCH_EXAMPLE: dict[str, Any] = {"file": "study/a.png", "series": None} | _ROW_EXAMPLE


class Row(BaseModel):
    """The prediction for one image, slice or whole volume. If refused or failed, it has no class."""

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["image", "slice", "volume"]
    slice: int | None = Field(description="0-based, within its file.")
    instance: int | None = Field(description="InstanceNumber of a DICOM file with one frame.")
    label: str | None = Field(alias="class", description="The most probable class.")
    probabilities: dict[str, float] | None = Field(description="Calibrated probability of each class, 0 to 1.")
    set: list[str] = Field(description="Prediction set: contains the true class with the requested coverage.")
    verdict: str = Field(description="ok, uncertain, refused: not a brain MRI, or error: reason.")
    reason: str = Field(description="Why it is not ok; for an error, its cure.")
    score: float | None = Field(
        description="Distance from the training data, in standard deviations above the mean of validation images."
    )
    image: str | None = Field(None, description="With heatmap=png: the 224 px image that the network received.")
    heatmap: str | None = Field(None, description="With heatmap=png: a transparent overlay for the class, RGBA.")


class PredictResponse(BaseModel):
    """The predictions for one file."""

    model_config = ConfigDict(json_schema_extra={"examples": [PREDICT_EXAMPLE]})

    model: str = Field(description="Configuration, precision, and the first digits of the checkpoint's SHA-256.")
    rows: list[Row]
    seconds: float


class ProblemDetails(BaseModel):
    """Problem details (RFC 9457), extended by the cure."""

    type: str = Field(description="Stable: " + ", ".join(f"urn:tumorlens:problem:{name}" for name in TYPES))
    title: str
    status: int
    detail: str
    cure: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can return these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    titles = {s: "; ".join(title for status, title in TYPES.values() if status == s) for s in statuses}
    return {
        s: {"model": ProblemDetails, "description": titles[s], "content": {MEDIA_TYPE: {"schema": schema}}}
        for s in statuses
    }


def raw_body(*media_types: str, what: str) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {"requestBody": {"required": True, "description": what, "content": content}}


def is_guarded(path: str) -> bool:
    """Whether the path needs a token, if the service has tokens."""
    return path.startswith(("/v1/", "/metrics"))  # not ==: Starlette's route matches "/metrics\n" too
