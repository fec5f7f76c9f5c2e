"""A tiny exported classifier for tests of the service, and the service in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from folders import CLASSES, draw
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tumorlens.inference.classifier import CARD_KEY, FORMAT, UNCERTAINTY_KEY, Classifier, load_classifier
from tumorlens.inference.network import OUTPUTS, Outputs, open_session
from tumorlens.inference.uncertainty.fitting import LabelledOutputs, TrainingOutputs, fit_uncertainty
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.readers.pixels import PREPROCESSING, SIZE, resized
from tumorlens.serve.app import create_app
from tumorlens.serve.settings import Settings

CARD_OF_TESTS = {
    "format": FORMAT, "classes": list(CLASSES), "preprocessing": PREPROCESSING, "configuration": "tiny",
    "precision": "fp32", "checkpoint_sha256": "0123456789abcdef", "intended_use": "Tests.",
    "dataset": {"name": "drawn", "fingerprint": "f00d"}, "measured": None,
}  # fmt: skip


TOKENS = ("first-token-of-the-test", "second-token-of-the-test")


def png(label: int = 0, number: int = 0) -> bytes:
    """A drawn head as a PNG file."""
    content = io.BytesIO()
    draw(label, number, SIZE).save(content, "PNG")
    return content.getvalue()


def noise() -> bytes:
    """Coloured noise, which is no brain."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def picture(url):
    """Pixels of a data URL."""
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def zipped(**files):
    """A zip; `__` in a name is a slash."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in files.items():
            archive.writestr(name.replace("__", "/"), body)
    return content.getvalue()


def problem_of(answer):
    """Status and type of a problem, which must be whole."""
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == answer.status_code
    assert set(content) == {"type", "title", "status", "detail", "cure"}
    assert all(content.values())
    assert content["type"].startswith("urn:tumorlens:problem:")
    return answer.status_code, content["type"].rsplit(":", 1)[1]


def write_model(path: Path) -> Path:
    """A linear classifier on a 7 x 7 picture, with the inputs, outputs and metadata of a real one."""
    labels = np.arange(120) % 4
    pixels = np.stack([resized(draw(int(label), i, SIZE)) for i, label in enumerate(labels)])
    grid = pixels.mean(3).reshape(-1, 7, 32, 7, 32).mean((2, 4)).reshape(-1, 49) / 255
    rng = np.random.default_rng(0)
    head = 8 * np.linalg.lstsq(grid, np.eye(4)[labels] - 0.25, rcond=None)[0]
    constants = {
        "head": head, "f": rng.normal(0, 1, (49, 512)), "s": rng.normal(0, 1, (49, 1024)),
        "cam": np.repeat([1, 1, -1, -1], 3).reshape(4, 3, 1, 1) / 3, "bias": [0, 0, 1, 1], "scale": np.float32(1 / 255),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["x0"], to=TensorProto.FLOAT),
        node("Transpose", ["x0"], ["x1"], perm=[0, 3, 1, 2]),
        node("Mul", ["x1", "scale"], ["x2"]),
        node("AveragePool", ["x2"], ["x3"], kernel_shape=[32, 32], strides=[32, 32]),
        node("Conv", ["x3", "cam", "bias"], ["heatmap"], kernel_shape=[1, 1]),
        node("ReduceMean", ["x3"], ["x4"], axes=[1], keepdims=0),
        node("Flatten", ["x4"], ["x5"], axis=1),
        *(node("MatMul", ["x5", of], [to]) for of, to in (("head", "logits"), ("f", "features"), ("s", "statistics"))),
    ]
    shapes = {"logits": [4], "features": [512], "heatmap": [4, 7, 7], "statistics": [1024]}
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *s]) for n, s in shapes.items()],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    out = Outputs(*open_session(model.SerializeToString(), 1).run(OUTPUTS, {"pixels": pixels}))
    uncertainty = fit_uncertainty(
        CLASSES,
        LabelledOutputs(labels, out.logits, out.features, out.statistics, pixels),
        TrainingOutputs(labels, out.features, out.statistics, appearance_features(pixels)),
    )
    for key, value in ((CARD_KEY, CARD_OF_TESTS), (UNCERTAINTY_KEY, uncertainty.to_json())):
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)
    return path


class Here:
    """The service in this process; answers come through httpx's ASGI transport."""

    def __init__(self, runner: asyncio.Runner, app: Any, client: httpx.AsyncClient) -> None:
        self.runner, self.app, self.client = runner, app, client

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.run(self.client.get(path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.run(self.client.post(path, **more))

    def predict(self, body: bytes, **query: Any) -> httpx.Response:
        return self.post("/v1/predict", content=body, params=query)


@contextmanager
def service(model: Path | Classifier, **settings: Any) -> Iterator[Here]:
    """The application, started and stopped."""
    classifier = load_classifier(model, 1) if isinstance(model, Path) else model
    app = create_app(classifier, Settings(model=classifier.path, quiet=True, **settings))
    with asyncio.Runner() as runner:
        context = app.router.lifespan_context(app)
        runner.run(context.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        try:
            yield Here(runner, app, client)
        finally:
            runner.run(client.aclose())
            runner.run(context.__aexit__(None, None, None))
