"""Brain-MRI slice classification with ResNet18, and how far to trust each number.

from tumorlens import Study, run_study

result = run_study(Study(data="phantom", weights="none", max_epochs=5))
print(result.metrics["finetuned"].test.accuracy, result.report)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tumorlens.core.version import __version__

# Before anything imports ONNX Runtime, which from 1.29 on sends telemetry by default.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from tumorlens.core.errors import TumorlensError
    from tumorlens.inference.classifier import Classifier, load_classifier
    from tumorlens.inference.records import Predictions, Record
    from tumorlens.study.options import Study
    from tumorlens.study.result import StudyResult
    from tumorlens.study.run import run_study
    from tumorlens.study.stages import compare_run, evaluate_run, report_run
    from tumorlens.training.configurations import Configuration

__all__ = [
    "Classifier",
    "Configuration",
    "Predictions",
    "Record",
    "Study",
    "StudyResult",
    "TumorlensError",
    "__version__",
    "compare_run",
    "evaluate_run",
    "load_classifier",
    "report_run",
    "run_study",
]

_HOMES = {
    "Classifier": "inference.classifier",
    "Configuration": "training.configurations",
    "Predictions": "inference.records",
    "Record": "inference.records",
    "TumorlensError": "core.errors",
    "Study": "study.options",
    "StudyResult": "study.result",
    "compare_run": "study.stages",
    "evaluate_run": "study.stages",
    "load_classifier": "inference.classifier",
    "report_run": "study.stages",
    "run_study": "study.run",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import tumorlens` takes milliseconds and needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"tumorlens.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tumorlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
