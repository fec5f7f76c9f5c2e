"""A run's checkpoint → one ONNX file that holds its classes, its calibration and its provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torchvision.models import resnet18

from tumorlens.core.environment import environment
from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, probe_writable, writing
from tumorlens.core.progress import log
from tumorlens.core.run_folder import INTENDED_USE
from tumorlens.core.text import OTHER_TUMOURS
from tumorlens.data.index import ImageRecord
from tumorlens.export.onnx_graph import build_graph
from tumorlens.export.quantize import CALIBRATION, check_accuracy, quantize
from tumorlens.export.trained_run import TrainedRun, open_trained_run
from tumorlens.inference.classifier import CARD_KEY, FILE, FORMAT, INT8_FILE, UNCERTAINTY_KEY
from tumorlens.inference.network import INPUT, OUTPUTS, Outputs, open_session
from tumorlens.inference.uncertainty import UncertaintyModel
from tumorlens.inference.uncertainty.fitting import FEWEST, LabelledOutputs, TrainingOutputs, fit_uncertainty
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.readers.pixels import PREPROCESSING, Pixels
from tumorlens.training.model import forward

MAX_DIFFERENCE = 1e-4  # largest allowed difference of a probability from torch's


def export_run(
    root: Path,
    configuration: str = "finetuned",
    *,
    int8: bool = False,
    out: Path | None = None,
    data: str | None = None,
) -> Json:
    """Write a configuration's classifier as one self-contained ONNX file.

    The graph is checked against torch on the validation images; temperature, prediction sets and thresholds are
    fitted on its own outputs for validation, with the features of the training images. Test images are not read.

    Parameters
    ----------
    root
        Folder of a run in which the configuration is trained.
    int8
        Quantize the convolutions, calibrated on 256 training images that are drawn with the study's seed.
    out
        The file; default: classifier.onnx or classifier-int8.onnx in the run's folder.
    data
        The data set if it was moved since the run: a folder, a zip, phantom or kaggle.

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
    trained = open_trained_run(root, configuration, data)
    path = out or root / (INT8_FILE if int8 else FILE)
    if path.is_dir():  # checked now, not after minutes of work
        raise RunError(f"--out {path} is a folder.", cure=f"Name a file, such as {path / FILE}.")
    probe_writable(path.parent)
    validation, train = trained.split("validation"), trained.split("train")
    for name, rows in (("validation", validation), ("training", train)):  # now, not after the passes of all images
        if len(rows) < FEWEST:
            raise RunError(
                f"{trained.run.root} has {len(rows)} {name} images: too few to fit temperature, prediction sets and "
                f"thresholds, which need {FEWEST}.",
                cure=f"Train on more images, or choose {FEWEST} or more for {name} with --split FILE.csv.",
            )
    model = graph(trained)
    parity, outputs, pixels = compare_with_torch(trained, model, validation)
    if parity["max_probability_difference"] >= MAX_DIFFERENCE or parity["changed_decisions"]:
        raise RunError(
            f"The graph was not written: on {parity['n']:,} validation images its probabilities differ from "
            f"torch's by up to {parity['max_probability_difference']:.2g}, and "
            f"{parity['changed_decisions']} decisions.",
            cure="Report this with the versions of torch, onnx and onnxruntime.",
        )
    result: Json = {"parity": parity}
    labels = trained.labels(validation)
    if int8:
        model = quantize(graph(trained, plain=True), _calibration_images(trained, train))
        before = outputs
        outputs = Outputs.joined([batch for _, batch in _run(model, trained.batches(validation, "Validation, int8"))])
        result["int8"] = check_accuracy(labels, before.logits, outputs.logits)
    appearance, found = [], []
    for batch, its_outputs in _run(model, trained.batches(train, "Training images through the graph")):
        appearance.append(appearance_features(batch))
        found.append(its_outputs)
    train_outputs = Outputs.joined(found)
    log.info("Fitting temperature, prediction sets and thresholds on validation.")
    uncertainty = fit_uncertainty(
        trained.classes,
        LabelledOutputs(labels, outputs.logits, outputs.features, outputs.statistics, pixels),
        TrainingOutputs(
            trained.labels(train), train_outputs.features, train_outputs.statistics, np.concatenate(appearance)
        ),
    )
    card = _card(trained) | result | {"precision": "int8" if int8 else "fp32"}
    return {"file": str(path), "bytes": write_model(path, model, card, uncertainty)} | result


def write_model(path: Path, model: onnx.ModelProto, card: Json, uncertainty: UncertaintyModel) -> int:
    """Write a graph with its metadata, which `load_classifier` reads; returns the number of bytes."""
    del model.metadata_props[:]
    for key, value in ((CARD_KEY, card), (UNCERTAINTY_KEY, uncertainty.to_json())):
        model.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))
    content: bytes = model.SerializeToString()
    with writing(path) as file:
        file.write(content)
    return len(content)


def graph(trained: TrainedRun, *, plain: bool = False) -> onnx.ModelProto:
    """The configuration's network; `plain` as in `build_graph`."""
    state = {name: value.numpy() for name, value in trained.state().items()}
    return build_graph(state, len(trained.classes), plain=plain)


def _run(model: onnx.ModelProto, batches: Iterable[Pixels]) -> Iterator[tuple[Pixels, Outputs]]:
    """The graph's outputs, batch by batch, with the pixels."""
    session = open_session(model.SerializeToString())
    for pixels in batches:
        yield pixels, Outputs(*session.run(OUTPUTS, {INPUT: pixels}))


def compare_with_torch(
    trained: TrainedRun, model: onnx.ModelProto, rows: Sequence[ImageRecord]
) -> tuple[Json, Outputs, Pixels]:
    """Compare a graph with torch on the same images, in fp32 on the CPU.

    Returns
    -------
    dict, Outputs, uint8 [n, 224, 224, 3]
        `n`, `max_probability_difference` and `changed_decisions`; the graph's outputs; the images' pixels.
    """
    if not rows:
        raise RunError(f"{trained.run.root} has no images of that split.", cure="Use a run with a validation split.")
    network = resnet18(num_classes=len(trained.classes))
    network.load_state_dict(trained.state())
    network.eval()
    kept, found, difference, changed = [], [], 0.0, 0
    with torch.inference_mode():
        for pixels, batch in _run(model, trained.batches(rows, "Comparing the graph with torch")):
            expected = forward(network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
            p, q = (torch.softmax(logits.double(), 1) for logits in (torch.from_numpy(batch.logits), expected))
            difference = max(difference, float((p - q).abs().max()))
            changed += int((p.argmax(1) != q.argmax(1)).sum())
            kept.append(pixels)
            found.append(batch)
    parity = {"n": len(rows), "max_probability_difference": difference, "changed_decisions": changed}
    return parity, Outputs.joined(found), np.concatenate(kept)


def _calibration_images(trained: TrainedRun, train: Sequence[ImageRecord]) -> Pixels:
    rng = np.random.default_rng([trained.run.read_study()["config"]["seed"], 8])
    chosen = rng.choice(len(train), min(CALIBRATION, len(train)), replace=False)
    return np.concatenate(list(trained.batches([train[i] for i in sorted(chosen)], "Calibration images")))


def _card(trained: TrainedRun) -> Json:
    """Provenance for the file's metadata; measured figures are those of the run, of the weights in torch."""
    record = trained.run.read_study()
    dataset = record["dataset"]
    return {
        "format": FORMAT,
        "architecture": "torchvision resnet18, BatchNorm folded",
        "classes": list(trained.classes),
        "preprocessing": PREPROCESSING,
        "configuration": trained.configuration,
        "checkpoint_sha256": trained.sha256,
        "weights_origin": record["weights"],
        "dataset": {k: dataset[k] for k in ("name", "sheet", "fingerprint", "licence", "n_images")},
        "split": record["split"],
        "seed": record["config"]["seed"],
        "measured": trained.measured(),
        "measured_precision": record["device"]["precision"],  # bf16 differs from the file in a few predictions
        "licence": {"code": "MIT", "data": dataset["licence"] or "as the data set's owner says"},
        "intended_use": INTENDED_USE,
        "limits": [OTHER_TUMOURS],
        "environment": environment() | {"onnx": onnx.__version__},
        "tumorlens": record["tumorlens"],
    }
