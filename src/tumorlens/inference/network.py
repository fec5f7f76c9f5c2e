"""The exported network: an ONNX file opened with ONNX Runtime on the CPU, its input, and its outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import ConfigError, WeightsError
from tumorlens.inference.uncertainty.arrays import EXPORT_AGAIN

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "pixels"
OUTPUTS = ("logits", "features", "heatmap", "statistics")
BATCH = 32
IMAGES_PER_CORE = 4  # computed at once, if there are several cores

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Outputs:
    """The network's outputs for n images."""

    logits: Floats
    """float32 [n, K]."""
    features: Floats
    """float32 [n, 512], after global average pooling."""
    heatmap: Floats
    """float32 [n, K, 7, 7], class activation maps, signed (Zhou et al., CVPR 2016)."""
    statistics: Floats
    """float32 [n, 1024], mean and standard deviation of each channel after stem, layer1, layer2 and layer3."""

    @classmethod
    def joined(cls, batches: Sequence[Outputs]) -> Outputs:
        """The outputs for all images of the batches, in their order."""
        return cls(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in OUTPUTS))


def open_session(model: Path | bytes, threads: int | None = None) -> InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises
    ------
    WeightsError
        ONNX Runtime cannot open the model.
    ConfigError
        `threads` is below 1.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads} is below 1.", cure="Use 1 or more.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1  # the graph is a chain
    # A memory plan is kept for every batch size ever seen: half as much memory again, and no faster.
    options.enable_mem_pattern = False
    # Threads spin while they wait for each other within a run, which saves a single image a tenth of its time. They
    # stop after the run: they would take the cores from decoding, and from other programs when idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only, which come as exceptions; users can do nothing about the warnings
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the only base that ONNX Runtime's exceptions share
        name = "The model" if isinstance(model, bytes) else str(model)
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{name} cannot be opened as an ONNX model ({reason}).", cure=EXPORT_AGAIN) from None


def metadata_of(session: InferenceSession) -> dict[str, str]:
    """The entries of the model's metadata."""
    return dict(session.get_modelmeta().custom_metadata_map)
