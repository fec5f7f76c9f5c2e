"""A run's checkpoint → one ONNX file that knows its classes, its limits and where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torchvision.models import resnet18

from tumorlens.core.environment import environment
from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.core.files import (
    Json,
    cache_dir,
    probe_writable,
    read_json,
    writing,
)
from tumorlens.core.prefetch import prefetch
from tumorlens.core.progress import Bar, log
from tumorlens.core.run_folder import INTENDED_USE, Run
from tumorlens.data.fetch import fetch
from tumorlens.data.index import Row, read_index
from tumorlens.export.onnx_graph import build_graph
from tumorlens.export.quantize import CALIBRATION, accept, quantise
from tumorlens.inference.classifier import (
    BATCH,
    CARD,
    FILE,
    FORMAT,
    INPUT,
    INT8_FILE,
    OUTPUTS,
    TRUST,
    Outputs,
    open_session,
)
from tumorlens.inference.uncertainty import Learned, Trust, fit_trust
from tumorlens.inference.uncertainty.ood import image_facts
from tumorlens.readers.pixels import PREPROCESSING, Pixels, read_image
from tumorlens.training.model import forward
from tumorlens.training.weights import read_state

MAX_DIFFERENCE = 1e-4  # of a probability, against torch


@dataclass(frozen=True, eq=False)
class Source:
    """A trained configuration of a run, with its images."""

    run: Run
    configuration: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    root: Path
    """Folder of the rows' paths."""
    checkpoint: Path
    sha256: str
    """Of the checkpoint."""

    def part(self, split: str) -> list[Row]:
        """Rows of `train`, `validation` or `test`."""
        return [row for row in self.rows if row.split == split]

    def labels(self, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
        """int64 [n], indices into `classes`."""
        return np.array([self.classes.index(row.label) for row in rows], np.int64)

    def batches(self, rows: Sequence[Row], title: str) -> Iterator[Pixels]:
        """uint8 [n, 224, 224, 3] in order, decoded ahead of their use, with a progress bar.

        Raises
        ------
        DataError
            An image is missing or is not the one that the run was trained with.
        """
        made = (np.stack([self._pixels(r) for r in rows[i : i + BATCH]]) for i in range(0, len(rows), BATCH))
        with Bar(title, len(rows)) as bar:
            for pixels in prefetch(made, 3):
                yield pixels
                bar.advance(len(pixels))

    def _pixels(self, row: Row) -> Pixels:
        path = self.root / row.path
        cure = "Name the data of this run with --data, or restore the file."
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
                raise DataError(f"{path} is not the file that {self.run.root} was trained with.", cure=cure)
            return read_image(path)[0]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).", cure=cure) from None
        except ImageError as error:
            raise DataError(f"{path}: {error.what}.", cure=cure) from None


def export_run(
    root: Path,
    configuration: str = "finetuned",
    *,
    int8: bool = False,
    out: Path | None = None,
    data: str | None = None,
) -> Json:
    """Write a configuration's classifier as an ONNX file with all that its use needs.

    The graph is checked against torch on the validation images; temperature, prediction sets and refusal are
    fitted on its own outputs for validation, with the Training images' features. Test images are not looked at.

    Parameters
    ----------
    root
        Folder of a run in which the configuration is trained.
    int8
        Quantise the convolutions, calibrated on 256 images of Training drawn with the study's seed.
    out
        The file; classifier.onnx or classifier-int8.onnx in the run's folder where absent.
    data
        The data set, where it moved since the run: a folder, a zip, phantom or kaggle.

    Returns
    -------
    dict
        `file`, `bytes`, `parity` and, for int8, `int8`.

    Raises
    ------
    RunError
        The configuration is not trained, the graph disagrees with torch, or int8 costs accuracy; nothing is written.
    DataError
        An image is missing or changed.
    """
    source = open_source(root, configuration, data)
    path = out or source.run.root / (INT8_FILE if int8 else FILE)
    if path.is_dir():  # told now, not after minutes of work
        raise RunError(f"--out {path} is a folder.", cure=f"Name a file, such as {path / FILE}.")
    probe_writable(path.parent)
    state = {k: v.numpy() for k, v in read_state(source.checkpoint, len(source.classes)).items()}
    model = build_graph(state, len(source.classes))
    validation, train = source.part("validation"), source.part("train")
    labels = source.labels(validation)
    agreement, outputs, pixels = _against_torch(source, model, validation)
    if agreement["max_probability_difference"] >= MAX_DIFFERENCE or agreement["changed_decisions"]:
        raise RunError(
            f"The graph was not written: on {agreement['n']:,} validation images its probabilities differ from "
            f"torch's by up to {agreement['max_probability_difference']:.2g}, and "
            f"{agreement['changed_decisions']} decisions.",
            cure="Report this with the versions of torch, onnx and onnxruntime.",
        )
    card = _card(source) | {"parity": agreement}
    if int8:
        model = quantise(build_graph(state, len(source.classes), plain=True), _calibration(source, train))
        before, outputs = outputs, _run(source, model, validation, "Validation, int8")
        card["int8"] = accept(labels, before.logits, outputs.logits)
    card["precision"] = "int8" if int8 else "fp32"
    trust = _fit(source, model, labels, outputs, pixels, train)
    size = write_model(path, model, card, trust)
    return {"file": str(path), "bytes": size, "parity": agreement} | ({"int8": card["int8"]} if int8 else {})


def write_model(path: Path, model: onnx.ModelProto, card: Json, trust: Trust) -> int:
    """Write a graph with its metadata, which `load_classifier` reads; returns the number of bytes."""
    del model.metadata_props[:]
    for key, value in ((CARD, card), (TRUST, trust.to_json())):
        model.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))
    content: bytes = model.SerializeToString()
    with writing(path) as file:
        file.write(content)
    return len(content)


def open_source(root: Path, configuration: str, data: str | None = None) -> Source:
    """Find a trained configuration and its images.

    Raises
    ------
    RunError
        The configuration is not trained in this run or learned from its validation images, or the images are gone.
    """
    run = Run(root)
    record = run.read_study()
    trained = [c["name"] for c in record["configurations"] if run.training(c["name"]).exists()]
    if configuration not in trained:
        raise RunError(
            f"{root} has no finished training of {configuration!r}.",
            cure=f"Name one of: {', '.join(trained)}."
            if trained
            else "Run `tumorlens train` with the same --out first.",
        )
    summary = read_json(run.training(configuration))
    if summary["configuration"].get("refit"):
        raise RunError(
            f"{configuration} learned from the validation images too, on which temperature, prediction sets and "
            "refusal are fitted: they would promise too much.",
            cure="Name another configuration with --configuration, such as initial_lbfgs.",
        )
    checkpoint = run.folder(configuration) / summary["checkpoint"]
    if not checkpoint.exists():
        raise RunError(f"{checkpoint} is missing, though the training is finished.", cure="Restore it.")
    folder = Path(record["dataset"]["root"])
    if data is not None:
        folder = fetch(data, cache=cache_dir(), seed=record["config"]["seed"]).root
    elif not folder.is_dir():
        raise RunError(f"The run's images are not in {folder} any more.", cure="Name the data set with --data.")
    rows = read_index(run.index)
    return Source(run, configuration, tuple(record["classes"]), rows, folder, checkpoint, summary["checkpoint_sha256"])


def parity(root: Path, configuration: str = "finetuned", *, split: str = "test", data: str | None = None) -> Json:
    """How far the fp32 graph is from torch on one part: `n`, `max_probability_difference`, `changed_decisions`."""
    source = open_source(root, configuration, data)
    state = {k: v.numpy() for k, v in read_state(source.checkpoint, len(source.classes)).items()}
    return _against_torch(source, build_graph(state, len(source.classes)), source.part(split))[0]


def _against_torch(source: Source, model: onnx.ModelProto, rows: Sequence[Row]) -> tuple[Json, Outputs, Pixels]:
    """Both on the same images, in fp32 on the CPU; also the graph's outputs and the pixels."""
    if not rows:
        raise RunError(f"{source.run.root} has no images of that part.", cure="Use a run with a validation part.")
    network = resnet18(num_classes=len(source.classes))
    network.load_state_dict(read_state(source.checkpoint, len(source.classes)))
    network.eval()
    session = open_session(model.SerializeToString())
    found, kept, difference, changed = [], [], 0.0, 0
    with torch.inference_mode():
        for pixels in source.batches(rows, "Comparing the graph with torch"):
            batch = Outputs(*session.run(OUTPUTS, {INPUT: pixels}))
            theirs = forward(network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
            p, q = (torch.softmax(logits.double(), 1) for logits in (torch.from_numpy(batch.logits), theirs))
            difference = max(difference, float((p - q).abs().max()))
            changed += int((p.argmax(1) != q.argmax(1)).sum())
            found.append(batch)
            kept.append(pixels)
    record = {"n": len(rows), "max_probability_difference": difference, "changed_decisions": changed}
    return record, Outputs.joined(found), np.concatenate(kept)


def _run(source: Source, model: onnx.ModelProto, rows: Sequence[Row], title: str) -> Outputs:
    session = open_session(model.SerializeToString())
    batches = source.batches(rows, title)
    return Outputs.joined([Outputs(*session.run(OUTPUTS, {INPUT: pixels})) for pixels in batches])


def _calibration(source: Source, train: Sequence[Row]) -> Pixels:
    rng = np.random.default_rng([source.run.read_study()["config"]["seed"], 8])
    chosen = rng.choice(len(train), min(CALIBRATION, len(train)), replace=False)
    return np.concatenate(list(source.batches([train[i] for i in sorted(chosen)], "Images to calibrate on")))


def _fit(
    source: Source,
    model: onnx.ModelProto,
    labels: npt.NDArray[np.int64],
    outputs: Outputs,
    pixels: Pixels,
    train: Sequence[Row],
) -> Trust:
    session = open_session(model.SerializeToString())
    found, looks = [], []
    for batch in source.batches(train, "Training images through the graph"):
        found.append(Outputs(*session.run(OUTPUTS, {INPUT: batch})))
        looks.append(image_facts(batch))
    learned = Outputs.joined(found)
    log.info("Fitting temperature, prediction sets and refusal on validation.")
    return fit_trust(
        source.classes, labels, outputs.logits, outputs.features, outputs.statistics, pixels,
        train=Learned(source.labels(train), learned.features, learned.statistics, np.concatenate(looks)),
    )  # fmt: skip


def _card(source: Source) -> Json:
    """What the file says of itself; measured figures are those of the run, of the weights in torch."""
    record = source.run.read_study()
    dataset = record["dataset"]
    return {
        "format": FORMAT,
        "architecture": "torchvision resnet18, BatchNorm folded",
        "classes": list(source.classes),
        "preprocessing": PREPROCESSING,
        "configuration": source.configuration,
        "checkpoint_sha256": source.sha256,
        "weights_origin": record["weights"],
        "dataset": {k: dataset[k] for k in ("name", "sheet", "fingerprint", "licence", "n_images")},
        "split": record["split"],
        "seed": record["config"]["seed"],
        "measured": _measured(source),
        "measured_precision": record["device"]["precision"],  # bf16 differs from the file in a few answers
        "licence": {"code": "MIT", "data": dataset["licence"] or "as the data set's owner says"},
        "intended_use": INTENDED_USE,
        "environment": environment() | {"onnx": onnx.__version__},
        "tumorlens": record["tumorlens"],
    }


def _measured(source: Source) -> Json | None:
    """Accuracy with interval by part, where this very checkpoint was evaluated."""
    run, name = source.run, source.configuration
    if not run.metrics(name).exists():
        return None
    metrics = read_json(run.metrics(name))
    if metrics.get("checkpoint_sha256") != source.sha256:
        return None
    keys = ("n", "correct", "accuracy", "accuracy_interval")
    found = {part: {k: metrics["parts"][part][k] for k in keys} for part in ("validation", "test")
             if part in metrics["parts"]}  # fmt: skip
    if run.comparison.exists():
        parts = read_json(run.comparison).get("leakage", {}).get("parts", {})
        for part in ("twin_free", "below_0.95"):
            if measured := parts.get(part, {}).get("configurations", {}).get(name):
                found[part] = {"n": measured["n"], "correct": measured["correct"], "accuracy": measured["accuracy"],
                               "accuracy_interval": measured["interval"]}  # fmt: skip
    return found
