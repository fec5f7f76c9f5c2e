"""What `run_study` returns: the run folder, its report, and the accuracy of each configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tumorlens.core.files import Json
from tumorlens.core.text import percent, span


@dataclass(frozen=True)
class SplitMetrics:
    """Metrics of one configuration on one split.

    Parameters
    ----------
    n
        Number of images.
    accuracy
        Fraction of correct predictions, 0 to 1.
    interval
        95 % confidence interval of the accuracy: Wilson's; for folds, from resampling whole groups of images.
    macro_f1
        Mean over the classes of the F1 score, 0 to 1.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float


@dataclass(frozen=True)
class Metrics:
    """Metrics of one configuration on each split; None for a split without images.

    For folds, `test` pools the out-of-fold predictions, and the other two are None.
    """

    test: SplitMetrics
    validation: SplitMetrics | None = None
    train: SplitMetrics | None = None


@dataclass(frozen=True, repr=False)
class StudyResult:
    """Result of a study. Printing it shows a small table, in notebooks as HTML.

    Parameters
    ----------
    folder
        The run folder.
    report
        The report in it, one offline HTML file.
    metrics
        Metrics by name of the configuration, such as `result.metrics["finetuned"].test.accuracy`.
    comparison
        Content of comparison.json; None for folds.
    cross_validation
        Content of cv.json for the protocol grouped-cv; otherwise None.
    """

    folder: Path
    report: Path
    metrics: Mapping[str, Metrics]
    comparison: Json | None = None
    cross_validation: Json | None = None

    @classmethod
    def of_run(cls, folder: Path, report: Path, comparison: Json, metrics: Mapping[str, Json]) -> StudyResult:
        """From comparison.json and, for each configuration, metrics.json."""
        found = {
            name: Metrics(**{
                split: SplitMetrics(m["n"], m["accuracy"], tuple(m["accuracy_interval"]), m["macro"]["f1"])
                for split, m in record["parts"].items()
            })
            for name, record in metrics.items()
        }  # fmt: skip
        return cls(folder, report, found, comparison=comparison)

    @classmethod
    def of_folds(cls, folder: Path, report: Path, cv: Json) -> StudyResult:
        """From cv.json."""
        found = {
            name: Metrics(SplitMetrics(m["n"], m["accuracy"], tuple(m["interval"]), m["macro_f1"]))
            for name, m in ((name, one["pooled"]) for name, one in cv["configurations"].items())
        }
        return cls(folder, report, found, cross_validation=cv)

    def to_dict(self) -> dict[str, Any]:
        """As `tumorlens study --json` prints it."""
        paths = {"run": str(self.folder), "report": str(self.report)}
        if self.cross_validation is not None:
            pooled = {name: m.test.accuracy for name, m in self.metrics.items()}
            return {**paths, "cv": self.cross_validation, "accuracy": pooled}
        accuracy = {
            name: {split: found.accuracy for split in ("train", "validation", "test") if (found := getattr(m, split))}
            for name, m in self.metrics.items()
        }
        return {**paths, "accuracy": accuracy, "comparison": self.comparison}

    def _table(self) -> list[tuple[str, ...]]:
        rows = [
            (name, percent(m.test.accuracy), span(*m.test.interval), f"{m.test.macro_f1:.3f}", f"{m.test.n:,}")
            for name, m in self.metrics.items()
        ]
        return [("configuration", "test accuracy", "95 % interval", "macro F1", "test images"), *rows]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._table(), strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self._table()]
        return "\n".join([*lines, f"Report: {self.report}"])

    def _repr_html_(self) -> str:
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._table()]
        rows[0] = rows[0].replace("td>", "th>")
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>{table}</table><p>Report: {escape(str(self.report))}</p>"
