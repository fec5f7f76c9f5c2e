"""A study whose data, weights and device are resolved: trains and evaluates its configurations."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torchvision.models import ResNet

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json, write_json, writing
from tumorlens.core.progress import Clock, log
from tumorlens.core.run_folder import INTENDED_USE, Run
from tumorlens.core.version import __version__
from tumorlens.data.audit import label_doubts
from tumorlens.data.index import ImageRecord
from tumorlens.data.patients import parted, shared_test_images
from tumorlens.evaluation.leakage import of_other_patients
from tumorlens.evaluation.metrics import evaluate_predictions
from tumorlens.evaluation.predictions import Predictions, write_predictions
from tumorlens.study.checks import is_trained
from tumorlens.study.options import Study
from tumorlens.training.architecture import BOUNDARIES
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.features import CachedFeatures, InMemoryFeatures, extract_features
from tumorlens.training.fit import fit, predict_logits, trainable_convolutions
from tumorlens.training.linear_probe import fit_linear_probe
from tumorlens.training.model import build_model, count_parameters
from tumorlens.training.state_dicts import read_state_dict
from tumorlens.training.steps import FeatureSource, Subset, TrainingData
from tumorlens.training.weights import Weights, checkpoint_card, save_checkpoint
from tumorlens.training.world import SINGLE_PROCESS, World

_IN_MEMORY = 16_384  # images; 32 MB of features
OnEpoch = Callable[[Json], None]


@dataclass(frozen=True)
class Experiment:
    """A study with its data set, weights and device."""

    study: Study
    configurations: tuple[Configuration, ...]
    """What to train, in order."""
    root: Path
    """Folder that the paths of `rows` are relative to."""
    classes: tuple[str, ...]
    rows: tuple[ImageRecord, ...]
    """All images, with their splits."""
    weights: Weights
    compute: Compute
    """Of a single process; `train` adds the others."""

    @property
    def run(self) -> Run:
        """The run folder."""
        return self.study.run

    def seed(self, configuration: Configuration) -> int:
        """The configuration's own seed, else the study's."""
        return self.study.seed if configuration.seed is None else configuration.seed

    def subset(self, split: str) -> Subset:
        """Hashes and labels of the images of one split."""
        rows = [row for row in self.rows if row.split == split]
        labels = torch.tensor([self.classes.index(row.label) for row in rows], dtype=torch.int64)
        return Subset(tuple(row.sha256 for row in rows), labels)

    def compute_features(self, clock: Clock) -> None:
        """Run the frozen layers once for all configurations that start from the study's weights."""
        untrained = [c for c in self.configurations if not is_trained(self.run, c) and self._has_initial_prefix(c)]
        wanted = {c.frozen_prefix for c in untrained}
        wanted -= {"image"} if wanted != {"image"} else set()
        if not wanted:
            return
        model = build_model(self.weights, len(self.classes), self.study.seed)
        with clock.step("prefix_s"):
            _, computed = self._features(model, sorted(wanted))
        if not computed:
            log.info("Features of the frozen layers come from the cache.")

    def _has_initial_prefix(self, configuration: Configuration) -> bool:
        """Whether its frozen stages have the study's weights: no configuration that it starts from trains them."""
        named = {c.name: c for c in self.configurations}
        start = configuration.start
        while start in named and BOUNDARIES[named[start].frozen_prefix] >= BOUNDARIES[configuration.frozen_prefix]:
            start = named[start].start
        return start not in named

    def doubt_labels(self) -> None:
        """Add label doubts to audit.json if a configuration uses the 512 features of the last frozen layer."""
        if not any(c.frozen_prefix == "avgpool" for c in self.configurations):
            return
        model = build_model(self.weights, len(self.classes), self.study.seed)
        doubts = find_label_doubts(model, self.rows, self.root, self.study.cache_folder, self.compute)
        write_json(self.run.audit, read_json(self.run.audit) | {"label_doubts": doubts})
        log.info(f"{len(doubts):,} labels disagree with those of their neighbours; {self.run.audit} lists them.")

    def _features(self, model: ResNet, boundaries: Sequence[str]) -> tuple[dict[str, CachedFeatures], int]:
        return extract_features(
            model, boundaries, self.rows, self.root, cache=self.study.cache_folder, compute=self.compute
        )

    def initial_model(self, configuration: Configuration) -> ResNet:
        """The network at the start of a configuration's training.

        Raises
        ------
        RunError
            The configuration that it starts from is not trained yet.
        """
        if configuration.start != "imagenet":
            return self.trained_model(configuration.start)
        return build_model(self.weights, len(self.classes), self.seed(configuration))

    def trained_model(self, name: str) -> ResNet:
        """The network with the best weights of a configuration.

        Raises
        ------
        RunError
            It is not trained yet, or its checkpoint is missing or another one.
        """
        path = self.run.checkpoint(name)
        model = build_model(self.weights, len(self.classes), self.study.seed)
        model.load_state_dict(read_state_dict(path, len(self.classes)))
        return model

    def train(
        self, configuration: Configuration, world: World = SINGLE_PROCESS, on_epoch: OnEpoch | None = None
    ) -> None:
        """Train one configuration, or resume its training; returns at once if it is finished.

        All processes of `world` take part; only rank 0 reads and writes the run folder and calls `on_epoch`.
        """
        if world.run_on_rank0(is_trained, self.run, configuration):
            there = (self.run.folder(configuration.name) / configuration.checkpoint).exists()
            missing = f", but {configuration.checkpoint} is missing: it cannot be evaluated again or exported"
            log.info(f"{configuration.name}: already trained{'' if there else missing}.")
            return
        name = configuration.name
        model, cached = world.run_on_rank0(self._inputs, configuration)
        train, validation = self.subset("train"), self.subset("validation")
        compute = dataclasses.replace(self.compute, world=world)
        data = TrainingData(load_source(cached, (train, validation), compute), train, validation)
        trainable, total = count_parameters(model, configuration)
        log.info(f"{name}: {', '.join(configuration.learns)} trainable ({trainable:,} of {total:,} parameters).")
        listeners = [_log_epoch, *([on_epoch] if on_epoch is not None and world.is_rank0 else [])]

        def notify(record: Json) -> None:
            for listener in listeners:
                listener({"configuration": name, **record})

        if configuration.head_solver == "lbfgs":
            history, stopped = world.run_on_rank0(fit_linear_probe, model, configuration, data)
            for record in history:
                notify(record)
        else:
            # Steps of the head alone are so small that a second thread costs more than it saves, and under other
            # load, waiting for it can make an epoch a hundred times slower.
            alone = configuration.frozen_prefix == "avgpool" and compute.device.type == "cpu"
            with ExitStack() as stack:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1 if alone else torch.get_num_threads())
                if self.study.tensorboard and world.is_rank0:
                    listeners.append(stack.enter_context(_tensorboard(self.run.folder(name))))
                history, stopped = fit(
                    model, configuration, data, compute,
                    seed=self.seed(configuration), last=self.run.last(name), on_epoch=notify,
                )  # fmt: skip
        del data  # frees memory for writing the weights
        world.run_on_rank0(self._save, configuration, model, cached, history, stopped, world.size)
        world.resume_hint[:] = [f"it resumes after {name}"]

    def _inputs(self, configuration: Configuration) -> tuple[ResNet, CachedFeatures]:
        """The network at the start of training, and the features to train on."""
        model = self.initial_model(configuration)
        return model, self._features(model, [configuration.frozen_prefix])[0][configuration.frozen_prefix]

    def _save(
        self, configuration: Configuration, model: ResNet, cached: CachedFeatures, history: list[Json], stopped: str,
        processes: int,
    ) -> None:  # fmt: skip
        """Write checkpoint, history and summary of a finished training."""
        name, folder, n = configuration.name, self.run.folder(configuration.name), len(self.subset("train"))
        learned, total = count_parameters(model, configuration)
        best = max((r for r in history if r["best"]), key=lambda r: r["epoch"])
        sha256 = save_checkpoint(model.to("cpu"), folder / configuration.checkpoint)
        write_json(
            (folder / configuration.checkpoint).with_suffix(".json"),
            checkpoint_card(configuration, self.classes, sha256, self._provenance()),
        )
        with writing(self.run.history(name)) as file:
            file.write("".join(json.dumps(record) + "\n" for record in history).encode())
        seconds = sum(record["seconds"] for record in history)
        rates = [max(r["images_per_s"], 0.05) for r in history]  # rounds to 0 if the machine was suspended
        summary: Json = {
            "name": name,
            "configuration": asdict(configuration),
            "learns": list(configuration.learns),
            "learned_parameters": learned,
            "total_parameters": total,
            "solver": "lbfgs" if configuration.head_solver == "lbfgs" else configuration.optimizer,
            "learning_rate": configuration.learning_rate,
            "batch_size": configuration.batch_size,
            "epochs_run": len(history),
            "max_epochs": configuration.max_epochs,
            "best_epoch": best["epoch"],
            "stopped": stopped,
            "best_validation_loss": best["validation_loss"],
            "best_validation_accuracy": best["validation_accuracy"],
            "train_seconds": round(seconds, 2),
            "prefix_seconds": cached.seconds,
            "images_per_s": round(n * len(history) / sum(n / rate for rate in rates), 1),
            "processes": processes,
            "frozen_prefix": configuration.frozen_prefix,
            "start": configuration.start,
            "checkpoint": configuration.checkpoint,
            "checkpoint_sha256": sha256,
        }
        write_json(self.run.training(name), summary)
        self.run.last(name).unlink(missing_ok=True)
        log.info(f"{name}: {stopped}; best epoch {best['epoch']} of {len(history)}, {seconds:.0f} s.")

    def evaluate(self, configuration: Configuration, *, again: bool = False) -> Json:
        """Predict every image with the best weights; writes predictions.csv and metrics.json.

        Existing metrics of the same checkpoint are returned unchanged, unless `again`.
        """
        name = configuration.name
        sha256 = read_json(self.run.training(name))["checkpoint_sha256"]
        if not again and self.run.metrics(name).exists() and self.run.predictions(name).exists():
            before: Json = read_json(self.run.metrics(name))
            if before.get("checkpoint_sha256") == sha256:
                return before
        model = self.trained_model(name)
        used = [row for row in self.rows if row.split]
        # equal files have equal predictions
        place = {sha256: i for i, sha256 in enumerate(dict.fromkeys(row.sha256 for row in used))}
        source = self._features(model, [configuration.frozen_prefix])[0][configuration.frozen_prefix]
        model.to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with trainable_convolutions(model, configuration, self.compute):
            computed = predict_logits(model, source, list(place), self.compute, title=f"{name}, predicting")
        logits = computed[[place[row.sha256] for row in used]]
        predictions = Predictions(
            paths=tuple(row.path for row in used),
            labels=torch.tensor([self.classes.index(row.label) for row in used]).numpy(),
            probabilities=torch.softmax(logits.double(), 1).numpy(),
            splits=tuple(row.split for row in used),
            classes=self.classes,
        )
        write_predictions(self.run.predictions(name), predictions)
        metrics = evaluate_predictions(predictions, name) | {"checkpoint_sha256": sha256}
        if shared := shared_test_images(used):
            metrics["patients"] = parted(used) | {"test_of_others": of_other_patients(predictions, shared)}
        write_json(self.run.metrics(name), metrics)
        split = "test" if "test" in metrics["parts"] else "validation"  # a final model has no test images
        found = metrics["parts"][split]
        log.info(f"{name}: {split} accuracy {found['accuracy']:.2%} ({found['correct']:,} of {found['n']:,}).")
        return metrics

    def _provenance(self) -> Json:
        record = self.run.read_study()
        return {
            "tumorlens": __version__,
            "weights": self.weights.record(),
            "dataset": {k: record["dataset"][k] for k in ("name", "sheet", "fingerprint", "licence", "n_images")},
            "split": record["split"],
            "device": record["device"],
            "environment": record["environment"],
            "git": record["git"],
            "intended_use": INTENDED_USE,
        }


def find_label_doubts(
    model: ResNet, rows: Sequence[ImageRecord], root: Path, cache: Path, compute: Compute
) -> list[Json]:
    """Images whose label disagrees with those of their neighbours in the model's 512 features (`label_doubts`)."""
    features = extract_features(model, ["avgpool"], rows, root, cache=cache, compute=compute)[0]["avgpool"]
    return label_doubts(features.rows([row.sha256 for row in rows]).float().numpy(), rows)


def load_source(source: CachedFeatures, subsets: Sequence[Subset], compute: Compute) -> FeatureSource:
    """The features in memory if they fit, otherwise as they are: read from the cache batch by batch.

    On a GPU they may take half of the free memory; on the CPU only a moderate number of 512-vectors is loaded.

    Raises
    ------
    RunError
        This host does not see the cache that rank 0 has opened.
    """
    if not source.path.exists():
        raise RunError(
            f"{platform.node()} does not see the cache {source.path}.",
            cure="Put --cache and --out on a file system that all hosts share.",
        )
    hashes = [sha256 for subset in subsets for sha256 in subset.hashes]
    fits = (
        source.boundary == "avgpool" and len(hashes) <= _IN_MEMORY
        if compute.device.type == "cpu"
        else len(hashes) * source.row_bytes <= compute.backend.free_memory() / 2
    )
    return InMemoryFeatures.load(source, hashes, compute.device) if fits else source


def _log_epoch(record: Json) -> None:
    if "c" in record:  # a regularisation strength of L-BFGS
        log.info(f"  C {record['c']:<6g} validation loss {record['validation_loss']:.4f}")
        return
    log.info(
        f"  {record['configuration']} epoch {record['epoch']:>2}: loss {record['train_loss']:.4f}, validation "
        f"loss {record['validation_loss']:.4f}, validation accuracy {record['validation_accuracy']:.2%}, "
        f"{record['images_per_s']:,.0f} images/s{'  *' if record['best'] else ''}"
    )


@contextmanager
def _tensorboard(folder: Path) -> Iterator[OnEpoch]:
    """A function that writes an epoch's record as TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter

    def write(record: Json) -> None:
        for key in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            writer.add_scalar(key.replace("_", "/", 1), record[key], record["epoch"])

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield write
