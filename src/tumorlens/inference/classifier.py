"""The exported classifier at work: NumPy and ONNX Runtime, no torch.

from tumorlens import load_classifier
from tumorlens.readers.pixels import read_image

classifier = load_classifier(Path("runs/mine"))
pixels, _ = read_image(Path("slice.png"))
print(classifier.classify(pixels[None]).verdicts)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.cpu import single_threaded_blas, usable_cores
from tumorlens.core.errors import (
    ConfigError,
    RunError,
    TumorlensError,
    WeightsError,
)
from tumorlens.inference.uncertainty import Judgement, Trust
from tumorlens.readers.pixels import PREPROCESSING, SIZE, Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1  # of the metadata; raised when a reader of the old one would go wrong
CARD, TRUST = "tumorlens.card", "tumorlens.trust"  # keys of the metadata, JSON each
FILE, INT8_FILE = "classifier.onnx", "classifier-int8.onnx"
INPUT = "pixels"
OUTPUTS = ("logits", "features", "heatmap", "statistics")
BATCH = 32
IMAGES_PER_CORE = 4  # computed at once, if there are several cores

Floats = npt.NDArray[np.float32]
_AGAIN = "Export it anew: tumorlens export RUN"


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network gives for n images."""

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
        """What the network gives for all images of the batches, in their order."""
        return cls(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in OUTPUTS))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with its calibration and its refusal; made by `load_classifier`."""

    path: Path
    classes: tuple[str, ...]
    """K names, in the order of logits and heatmaps."""
    card: dict[str, Any]
    """Provenance: configuration, training data's fingerprint, measured accuracy, versions, licence, intended use."""
    trust: Trust
    session: InferenceSession
    threads: int = 1
    """Cores to compute with."""

    def run(self, pixels: Pixels, *, per_core: int = IMAGES_PER_CORE) -> Outputs:
        """Run the network.

        Parameters
        ----------
        pixels
            uint8 [n, 224, 224, 3], RGB, as `images.read_image` and `inputs.read_inputs` give them; n may be 0.
        per_core
            Images that a core computes at once, if there are several cores. A single image gets all cores.

        Raises
        ------
        ConfigError
            Another shape or type, which would give a wrong answer.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIZE, SIZE, 3):
            raise ConfigError(
                f"The classifier got pixels {pixels.dtype} {list(pixels.shape)}.",
                cure=f"Pass uint8 [n, {SIZE}, {SIZE}, 3], RGB, values 0 to 255.",
            )
        if not len(pixels):
            k = len(self.classes)
            return Outputs(*(np.zeros((0, *s), np.float32) for s in ((k,), (512,), (k, 7, 7), (1024,))))
        if len(pixels) == 1 or self._each_core is None:
            return Outputs(*self.session.run(OUTPUTS, {INPUT: pixels}))
        pool, session = self._each_core
        rounds = math.ceil(len(pixels) / (self.threads * per_core))
        parts = np.array_split(pixels, min(len(pixels), rounds * self.threads))
        return Outputs.joined(list(pool.map(lambda part: Outputs(*session.run(OUTPUTS, {INPUT: part})), parts)))

    @cached_property
    def _each_core(self) -> tuple[ThreadPoolExecutor, InferenceSession] | None:
        """Threads with images of their own, and a session for them: several cores at one batch wait for each other at
        the end of every layer. None for one core, and where the file is another one by now."""
        if self.threads == 1:
            return None
        try:
            session = open_session(self.path, 1)
        except WeightsError:
            return None
        if _entries(session) != _entries(self.session):
            return None
        return ThreadPoolExecutor(self.threads, "tumorlens-infer"), session

    def judge(self, outputs: Outputs, pixels: Pixels, *, coverage: float = 0.95) -> Judgement:
        """Calibrated probabilities, prediction sets and verdicts of what `run` gave for `pixels`."""
        with single_threaded_blas():
            return self.trust.judge(outputs.logits, outputs.features, outputs.statistics, pixels, coverage=coverage)

    def classify(self, pixels: Pixels, *, coverage: float = 0.95) -> Judgement:
        """Run the network and judge its answers; `coverage` is the share of sets that hold the true class."""
        return self.judge(self.run(pixels), pixels, coverage=coverage)


def load_classifier(path: Path, threads: int | None = None) -> Classifier:
    """Open an exported classifier.

    Parameters
    ----------
    path
        An .onnx file that `tumorlens export` wrote, or the folder of a run that holds one: classifier.onnx, or
        classifier-int8.onnx where it is the only one.
    threads
        For one image or batch; the number of usable cores where absent. They sleep between calls.

    Raises
    ------
    RunError
        There is no such file, or the run is not exported.
    WeightsError
        It is no ONNX model, not one of ours, of another version or preprocessing, or its metadata is damaged.
    """
    path = Path(path)
    if path.is_dir():
        there = [path / name for name in (FILE, INT8_FILE) if (path / name).exists()]
        if not there:
            raise RunError(f"{path} holds no {FILE}.", cure=f"Write it: tumorlens export {path}")
        path = there[0]
    if not path.is_file():
        raise RunError(f"--model {path} is not there.", cure="Name an .onnx file or the folder of an exported run.")
    threads = usable_cores() if threads is None else threads
    session = open_session(path, threads)
    card, trust = _metadata(path, session)
    classes = tuple(card["classes"])
    shapes = {value.name: list(value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}
    k = len(classes)
    wanted = {INPUT: [SIZE, SIZE, 3], "logits": [k], "features": [512], "heatmap": [k, 7, 7], "statistics": [1024]}
    if shapes != wanted:
        raise WeightsError(f"{path} has inputs and outputs {shapes}, not {wanted}.", cure=_AGAIN)
    if trust.classes != classes:
        raise WeightsError(f"{path} knows the classes {classes} but judges {trust.classes}.", cure=_AGAIN)
    return Classifier(path, classes, card, trust, session, threads)


def open_session(model: Path | bytes, threads: int | None = None) -> InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises
    ------
    WeightsError
        It is no model that ONNX Runtime can open.
    ConfigError
        No thread is to compute.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads} is below 1.", cure="Say 1 or more.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1  # the graph is a chain
    # A plan of memory is kept for every size of batch that ever came: half as much again, and no faster.
    options.enable_mem_pattern = False
    # Threads spin while they wait for each other within a run, which spares a lone image a tenth of its time; but not
    # after it, when they would take the cores from decoding, and from everybody else when idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only: they come as exceptions, and warnings are none of the user's
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
        name = "The model" if isinstance(model, bytes) else str(model)
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{name} cannot be opened as an ONNX model ({reason}).", cure=_AGAIN) from None


def _entries(session: InferenceSession) -> dict[str, str]:
    """The model's metadata as stored."""
    return dict(session.get_modelmeta().custom_metadata_map)


def _metadata(path: Path, session: InferenceSession) -> tuple[dict[str, Any], Trust]:
    entries = _entries(session)
    if missing := [key for key in (CARD, TRUST) if key not in entries]:
        raise WeightsError(
            f"{path} is an ONNX model without the entry {missing[0]!r}: its classes, preprocessing and thresholds "
            "are unknown.",
            cure=_AGAIN,
        )
    try:
        card, record = json.loads(entries[CARD]), json.loads(entries[TRUST])
        version, classes, preprocessing = card["format"], card["classes"], card["preprocessing"]
        named = isinstance(classes, list) and len(set(classes)) == len(classes) >= 2
        if not named or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"classes {classes!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error!r}).", cure=_AGAIN) from None
    if version != FORMAT:
        raise WeightsError(f"{path} is of format {version}, and this version reads format {FORMAT}.", cure=_AGAIN)
    if preprocessing != PREPROCESSING:
        raise WeightsError(
            f"{path} was trained with the preprocessing {preprocessing}, not with {PREPROCESSING}.", cure=_AGAIN
        )
    try:
        return card, Trust.from_json(record)
    except TumorlensError as error:
        raise WeightsError(f"{path} has damaged metadata: {error.what}", cure=_AGAIN) from None
