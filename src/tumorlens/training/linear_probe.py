"""Solve the head alone to convergence on frozen features."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.core.files import Json
from tumorlens.training.configurations import Configuration
from tumorlens.training.model import set_trainable
from tumorlens.training.steps import TrainingData

#: Inverse regularisation strengths that are tried; validation loss chooses one.
LBFGS_C = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_ITERATIONS = 20_000  # limit; a few hundred are usually enough


def fit_linear_probe(model: ResNet, configuration: Configuration, data: TrainingData) -> tuple[list[Json], str]:
    """Solve the head on frozen features to convergence, in place.

    Fits scikit-learn's multinomial logistic regression with an L2 penalty by L-BFGS (Liu and Nocedal, Mathematical
    Programming 45, 1989) and keeps the strength with the lowest validation loss.
    """
    from sklearn.linear_model import LogisticRegression

    source, train, validation = data.source, data.train, data.validation
    x, y = source.rows(train.hashes).cpu().double().numpy(), train.labels.numpy()
    x_validation, y_validation = source.rows(validation.hashes).cpu().float(), validation.labels
    history: list[Json] = []
    best: tuple[float, float, Tensor, Tensor] | None = None  # loss, strength, weight, bias

    def solver(strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=_ITERATIONS, tol=1e-4)  # type: ignore[no-untyped-call]

    for i, strength in enumerate(LBFGS_C, start=1):
        began = time.perf_counter()
        solved = solver(strength).fit(x, y)
        seconds = time.perf_counter() - began
        weight, bias = _both_rows(solved.coef_, solved.intercept_)
        record: Json = {"epoch": i, "c": strength, "iterations": int(solved.n_iter_[0])}
        for part, features, labels in (
            ("train", torch.from_numpy(x).float(), train.labels),
            ("validation", x_validation, y_validation),
        ):
            logits = features @ weight.T + bias
            record[f"{part}_loss"] = float(nn.functional.cross_entropy(logits, labels))
            record[f"{part}_accuracy"] = float((logits.argmax(1) == labels).double().mean())
        loss = record["validation_loss"]
        record |= {"seconds": round(seconds, 3), "images_per_s": round(len(train) / seconds, 1)}
        record["best"] = best is None or loss < best[0]
        if record["best"]:
            best = (loss, strength, weight, bias)
        history.append(record)
    assert best is not None
    _, chosen, weight, bias = best
    converged = sum(record["iterations"] < _ITERATIONS for record in history)
    stopped = f"converged for {converged} of {len(LBFGS_C)} strengths; C chosen on validation"
    if configuration.refit:
        x = np.concatenate([x, x_validation.double().numpy()])
        solved = solver(chosen).fit(x, np.concatenate([y, y_validation.numpy()]))
        weight, bias = _both_rows(solved.coef_, solved.intercept_)
        stopped += ", then solved again with the validation images, whose figures are training figures"
    with torch.no_grad():
        model.fc.weight.copy_(weight)
        model.fc.bias.copy_(bias)
    set_trainable(model, (), training=False)
    return history, stopped


def _both_rows(coefficients: Any, intercepts: Any) -> tuple[Tensor, Tensor]:
    """Add the first class's row of zeros: for two classes, scikit-learn returns only the second against the first."""
    if len(coefficients) == 1:
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.append(0.0, intercepts)
    return torch.from_numpy(coefficients).float(), torch.from_numpy(intercepts).float()
