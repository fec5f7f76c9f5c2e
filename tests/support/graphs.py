"""ONNX graphs at work in tests."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from tumorlens.inference.network import OUTPUTS, Outputs, open_session


def run(graph: onnx.ModelProto, pixels: np.ndarray) -> Outputs:
    return Outputs(*open_session(graph.SerializeToString(), 1).run(OUTPUTS, {"pixels": pixels}))


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
