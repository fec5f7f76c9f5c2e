"""The head solved by L-BFGS."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from learning import CPU, EXACT, features_of, network, part
from learning import rows as rows  # a fixture

from tumorlens.data.index import ImageRecord
from tumorlens.training.configurations import Configuration
from tumorlens.training.features import InMemoryFeatures
from tumorlens.training.fit import predict_logits
from tumorlens.training.linear_probe import fit_linear_probe
from tumorlens.training.steps import TrainingData


def test_lbfgs_solves_the_head(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    model = network()
    cached = features_of(model, "avgpool", rows, small_folder, small_cache)
    training, validation = part(rows, "train"), part(rows, "validation")
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    configuration = Configuration("initial_lbfgs", ("fc",), learning_rate=1e-3, head_solver="lbfgs")
    history, _ = fit_linear_probe(model, configuration, TrainingData(source, training, validation))
    best = min(history, key=lambda r: r["validation_loss"])
    oracle = LogisticRegression(C=best["c"], max_iter=20_000).fit(source.rows(training.hashes), training.labels)
    logits = predict_logits(model, source, validation.hashes, EXACT)
    wanted = oracle.predict_proba(source.rows(validation.hashes))
    assert np.allclose(torch.softmax(logits, 1), wanted, atol=1e-3)


@dataclasses.dataclass(frozen=True)
class Halved:
    """What a file in bf16 gives, where there are more images than are held in memory."""

    whole: InMemoryFeatures
    boundary: str = "avgpool"

    def rows(self, hashes: Sequence[str]) -> torch.Tensor:
        return self.whole.rows(hashes).bfloat16()


def test_lbfgs_takes_what_is_kept_in_bf16(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    model, training, validation = network(), part(rows, "train"), part(rows, "validation")
    cached = features_of(model, "avgpool", rows, small_folder, small_cache)
    source = Halved(InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU))
    configuration = Configuration("initial_lbfgs", ("fc",), learning_rate=1e-3, head_solver="lbfgs")
    history, _ = fit_linear_probe(model, configuration, TrainingData(source, training, validation))
    assert min(record["validation_loss"] for record in history) < np.log(4)
