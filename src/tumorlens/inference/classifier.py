"""An exported classifier: NumPy and ONNX Runtime, no torch.

from tumorlens import load_classifier

classifier = load_classifier("runs/mine")
for record in classifier.predict("slice.png", "dicoms/"):
    print(record.file, record.label, record.verdict)
"""

from __future__ import annotations

import json
import math
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.core.cpu import single_threaded_blas, usable_cores
from tumorlens.core.errors import ConfigError, RunError, TumorlensError, WeightsError
from tumorlens.core.files import NO_FINAL_MODEL
from tumorlens.inference.network import BATCH, IMAGES_PER_CORE, INPUT, OUTPUTS, Outputs, metadata_of, open_session
from tumorlens.inference.uncertainty import Classification, UncertaintyModel
from tumorlens.inference.uncertainty.arrays import EXPORT_AGAIN
from tumorlens.readers.pixels import PREPROCESSING, SIZE, Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from tumorlens.inference.records import Predictions
    from tumorlens.readers import Plane

FORMAT = 1  # of the metadata; raised when older readers would misread it
CARD_KEY, UNCERTAINTY_KEY = "tumorlens.card", "tumorlens.trust"  # metadata entries, JSON each
FILE, INT8_FILE = "classifier.onnx", "classifier-int8.onnx"


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with its calibration and its uncertainty model; made by `load_classifier`."""

    path: Path
    classes: tuple[str, ...]
    """K names, in the order of logits and heatmaps."""
    card: dict[str, Any]
    """Provenance: configuration, fingerprint of the training data, measured accuracy, versions, license, use."""
    uncertainty: UncertaintyModel
    session: InferenceSession
    threads: int = 1
    """Cores to compute on."""

    def predict(
        self,
        *inputs: str | os.PathLike[str],
        batch: int = BATCH,
        plane: Plane = "axial",
        coverage: float = 0.95,
        volume: int | None = None,
    ) -> Predictions:
        """Classify files, as `tumorlens predict` does. Nothing is printed.

        Parameters
        ----------
        inputs
            Files (JPEG, PNG, TIFF, BMP, WebP, DICOM, NIfTI), folders or zips; `@list.txt` for a file of names, one
            per line; `-` for standard input.
        batch
            Images per batch, 1 or more.
        plane
            Slice plane of NIfTI volumes: `axial`, `coronal` or `sagittal`.
        coverage
            Target coverage of the prediction sets, more than 0 and less than 1.
        volume
            Which volume is read of a NIfTI file or DICOM series with several, from 1; by default the first of a NIfTI
            file, and all of a DICOM series.

        Returns
        -------
        Predictions
            A list of `Record`: one per image or slice, in the order of the inputs, then one per volume or series with
            two or more slices. A file that is missing or cannot be read gets a record with `failed` true, its reason
            in `verdict` and a cure in `reason`. `to_pandas()` makes a data frame of it.

        Raises
        ------
        ConfigError
            An input is not a path, `batch`, `coverage` or `volume` is out of range, or standard input is closed.
        """
        from tumorlens.inference.predict import PredictSettings, predict
        from tumorlens.inference.records import Predictions

        if wrong := [name for name in inputs if not isinstance(name, str | os.PathLike)]:
            raise ConfigError(
                f"predict() got an input of type {type(wrong[0]).__name__}.",
                cure="Pass paths one by one, as in predict(*paths); for pixels use classify(pixels).",
            )
        settings = PredictSettings(batch, plane, coverage, volume)
        return Predictions(predict([os.fspath(name) for name in inputs], self, settings))

    def classify(self, pixels: Pixels, *, coverage: float = 0.95) -> Classification:
        """Classify images that are already decoded.

        Parameters
        ----------
        pixels
            uint8 [n, 224, 224, 3], RGB, 0 to 255, as `readers.pixels.read_image` returns them; n may be 0.
        coverage
            Target coverage of the prediction sets, more than 0 and less than 1.

        Returns
        -------
        Classification
            `probabilities` float64 [n, K], `sets` bool [n, K], `verdicts` and `reasons` (n strings), `scores`
            float64 [n].

        Raises
        ------
        ConfigError
            The pixels have another shape or dtype, or the coverage is out of range.
        """
        return self.assess(self.run(pixels), pixels, coverage=coverage)

    def run(self, pixels: Pixels, *, per_core: int = IMAGES_PER_CORE) -> Outputs:
        """Run the network.

        Parameters
        ----------
        pixels
            uint8 [n, 224, 224, 3], RGB, 0 to 255; n may be 0.
        per_core
            Images that a core computes at once, if there are several cores. A single image gets all cores.

        Raises
        ------
        ConfigError
            The pixels have another shape or dtype, which would give wrong predictions.
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
        chunks = np.array_split(pixels, min(len(pixels), rounds * self.threads))
        return Outputs.joined(list(pool.map(lambda chunk: Outputs(*session.run(OUTPUTS, {INPUT: chunk})), chunks)))

    @cached_property
    def _each_core(self) -> tuple[ThreadPoolExecutor, InferenceSession] | None:
        """Threads that compute images of their own, and a session for them: cores that share a batch wait for each
        other after every layer. None for one core, or if the file has changed since it was opened."""
        if self.threads == 1:
            return None
        try:
            session = open_session(self.path, 1)
        except WeightsError:
            return None
        if metadata_of(session) != metadata_of(self.session):
            return None
        return ThreadPoolExecutor(self.threads, "tumorlens-infer"), session

    def assess(self, outputs: Outputs, pixels: Pixels, *, coverage: float = 0.95) -> Classification:
        """Calibrated probabilities, prediction sets and verdicts for the outputs of `run(pixels)`."""
        with single_threaded_blas():
            return self.uncertainty.assess(
                outputs.logits, outputs.features, outputs.statistics, pixels, coverage=coverage
            )


def load_classifier(path: str | os.PathLike[str], threads: int | None = None) -> Classifier:
    """Open an exported classifier.

    Parameters
    ----------
    path
        An .onnx file that `tumorlens export` wrote, or a run folder that holds one: classifier.onnx, or
        classifier-int8.onnx if it is the only one.
    threads
        Threads of the network, by default the number of usable cores. They sleep between calls.

    Raises
    ------
    RunError
        The file does not exist, or the run is not exported.
    WeightsError
        The file is not an ONNX model of tumorlens, has another format or preprocessing, or damaged metadata.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (FILE, INT8_FILE) if (path / name).exists()]
        if not found and (path / "cv.json").exists() and not (path / "final").exists():
            raise RunError(
                f"{path} holds a cross-validation, which has no model to use.", cure=f"Make one: {NO_FINAL_MODEL}"
            )
        if not found:
            raise RunError(f"{path} holds no {FILE}.", cure=f"Write it: tumorlens export {shlex.quote(str(path))}")
        path = found[0]
    if not path.is_file():
        raise RunError(f"--model {path} does not exist.", cure="Name an .onnx file or the folder of an exported run.")
    threads = usable_cores() if threads is None else threads
    session = open_session(path, threads)
    card, uncertainty = _read_metadata(path, session)
    classes = tuple(card["classes"])
    shapes = {value.name: list(value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}
    k = len(classes)
    expected = {INPUT: [SIZE, SIZE, 3], "logits": [k], "features": [512], "heatmap": [k, 7, 7], "statistics": [1024]}
    if shapes != expected:
        raise WeightsError(f"{path} has inputs and outputs {shapes}, not {expected}.", cure=EXPORT_AGAIN)
    if uncertainty.classes != classes:
        raise WeightsError(
            f"{path} has the classes {classes}, but an uncertainty model for {uncertainty.classes}.", cure=EXPORT_AGAIN
        )
    return Classifier(path, classes, card, uncertainty, session, threads)


def _read_metadata(path: Path, session: InferenceSession) -> tuple[dict[str, Any], UncertaintyModel]:
    entries = metadata_of(session)
    if missing := [key for key in (CARD_KEY, UNCERTAINTY_KEY) if key not in entries]:
        raise WeightsError(
            f"{path} is an ONNX model without the entry {missing[0]!r}: its classes, preprocessing and thresholds "
            "are unknown.",
            cure=EXPORT_AGAIN,
        )
    try:
        card, record = json.loads(entries[CARD_KEY]), json.loads(entries[UNCERTAINTY_KEY])
        version, classes, preprocessing = card["format"], card["classes"], card["preprocessing"]
        distinct = isinstance(classes, list) and len(set(classes)) == len(classes) >= 2
        if not distinct or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"classes {classes!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error!r}).", cure=EXPORT_AGAIN) from None
    if version != FORMAT:
        raise WeightsError(f"{path} has format {version}; this version reads format {FORMAT}.", cure=EXPORT_AGAIN)
    if preprocessing != PREPROCESSING:
        raise WeightsError(
            f"{path} was trained with the preprocessing {preprocessing}, not with {PREPROCESSING}.", cure=EXPORT_AGAIN
        )
    try:
        return card, UncertaintyModel.from_json(record)
    except TumorlensError as error:
        raise WeightsError(f"{path} has damaged metadata: {error.what}", cure=EXPORT_AGAIN) from None
