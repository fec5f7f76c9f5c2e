"""A network with random weights as graphs, and its outputs on three images of noise; one of each per session."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from classifier_fixture import arrays, network
from graphs import run
from torchvision.models import ResNet

from tumorlens.export.onnx_graph import build_graph
from tumorlens.inference.network import Outputs


@pytest.fixture(scope="session")
def model() -> ResNet:
    return network()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def graph(model) -> onnx.ModelProto:
    return build_graph(arrays(model), 4)


@pytest.fixture(scope="session")
def plain(model) -> onnx.ModelProto:
    return build_graph(arrays(model), 4, plain=True)


@pytest.fixture(scope="session")
def outputs(graph, pixels) -> Outputs:
    return run(graph, pixels)
