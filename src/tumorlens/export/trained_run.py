"""A trained configuration of a run: its weights, its images, and what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.core.files import Json, cache_dir, read_json
from tumorlens.core.prefetch import prefetch
from tumorlens.core.progress import Bar
from tumorlens.core.run_folder import Run
from tumorlens.data.fetch import fetch
from tumorlens.data.index import ImageRecord, read_index
from tumorlens.inference.network import BATCH
from tumorlens.readers.pixels import Pixels
from tumorlens.readers.single import read_single
from tumorlens.training.state_dicts import read_state_dict

_MEASURED = ("n", "correct", "accuracy", "accuracy_interval", "frozen_lists")


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A trained configuration of a run, with its images; made by `open_trained_run`."""

    run: Run
    configuration: str
    classes: tuple[str, ...]
    rows: tuple[ImageRecord, ...]
    root: Path
    """Folder that the rows' paths are relative to."""
    checkpoint: Path
    sha256: str
    """SHA-256 of the checkpoint, hex."""

    def split(self, name: str) -> list[ImageRecord]:
        """Rows of `train`, `validation` or `test`."""
        return [row for row in self.rows if row.split == name]

    def labels(self, rows: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
        """int64 [n], indices into `classes`."""
        return np.array([self.classes.index(row.label) for row in rows], np.int64)

    def state(self) -> dict[str, Tensor]:
        """The checkpoint's state dict, on the CPU."""
        return read_state_dict(self.checkpoint, len(self.classes))

    def batches(self, rows: Sequence[ImageRecord], title: str) -> Iterator[Pixels]:
        """uint8 [n, 224, 224, 3] in order, decoded in the background, with a progress bar.

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

    def _pixels(self, row: ImageRecord) -> Pixels:
        path = self.root / row.path
        cure = "Name the data of this run with --data, or restore the file."
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
                raise DataError(f"{path} is not the file that {self.run.root} was trained with.", cure=cure)
            return read_single(path)[0]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).", cure=cure) from None
        except ImageError as error:
            raise DataError(f"{path}: {error.what}.", cure=cure) from None

    def measured(self) -> Json | None:
        """Accuracy with interval by split and subset of the test images; None if this checkpoint was not evaluated."""
        path = self.run.metrics(self.configuration)
        metrics = read_json(path) if path.exists() else {}
        if metrics.get("checkpoint_sha256") != self.sha256:
            return None
        found = {name: metrics["parts"][name] for name in ("validation", "test") if name in metrics["parts"]}
        leak = read_json(self.run.comparison).get("leakage", {}) if self.run.comparison.exists() else {}
        for name in ("twin_free", "below_0.95", "other_patients"):
            if scores := leak.get("parts", {}).get(name, {}).get("configurations", {}).get(self.configuration):
                version = leak.get("frozen_lists") if name != "other_patients" else None
                lists = {"frozen_lists": version} if version else {}
                found[name] = scores | {"accuracy_interval": scores["interval"]} | lists
        if folds := self.run.read_study().get("cross_validation", {}).get(self.configuration):
            found["cross_validation"] = folds | {"accuracy_interval": folds["interval"]}
        return {name: {key: scores[key] for key in _MEASURED if key in scores} for name, scores in found.items()}


def open_trained_run(root: Path, configuration: str, data: str | None = None) -> TrainedRun:
    """Find a trained configuration and its images.

    Parameters
    ----------
    root
        Folder of the run.
    data
        The data set if it was moved since the run: a folder, a zip, phantom or kaggle.

    Raises
    ------
    RunError
        The configuration is not trained in this run, its final weights were trained on the validation images, its
        checkpoint is not the one that was trained, or the images are missing.
    """
    run = Run(root)
    if run.final.study.exists():  # of a cross-validation
        run = run.final
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
            f"The final weights of {configuration} were trained on the validation images, too, on which temperature, "
            "prediction sets and thresholds are fitted: their guarantees would not hold.",
            cure="Name another configuration with --configuration, such as initial_lbfgs.",
        )
    checkpoint = run.checkpoint(configuration)
    folder = Path(record["dataset"]["root"])
    if data is not None:
        table = record["config"].get("table")
        folder = fetch(data, cache=cache_dir(), seed=record["config"]["seed"], table=table and Path(table)).root
    elif not folder.is_dir():
        raise RunError(f"The run's images are no longer in {folder}.", cure="Name the data set with --data.")
    classes, rows = tuple(record["classes"]), read_index(run.index)
    return TrainedRun(run, configuration, classes, rows, folder, checkpoint, summary["checkpoint_sha256"])
