"""Brain-MRI slice classification with ResNet18, and how far each number can be trusted.

from tumorlens import Study, run_study
result = run_study(Study(data="phantom", weights="none", max_epochs=5))
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Before anything imports ONNX Runtime, which from 1.29 on reports its use to its maker unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from tumorlens.classifier import Classifier, load_classifier
    from tumorlens.configurations import Configuration
    from tumorlens.errors import TumorlensError
    from tumorlens.options import Study
    from tumorlens.stages import compare_run, evaluate_run, report_run
    from tumorlens.study import run_study

__all__ = [
    "Classifier",
    "Configuration",
    "Study",
    "TumorlensError",
    "__version__",
    "compare_run",
    "evaluate_run",
    "load_classifier",
    "report_run",
    "run_study",
]

_HOMES = {
    "Classifier": "classifier",
    "Configuration": "configurations",
    "TumorlensError": "errors",
    "Study": "options",
    "compare_run": "stages",
    "evaluate_run": "stages",
    "load_classifier": "classifier",
    "report_run": "stages",
    "run_study": "study",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import tumorlens` costs milliseconds and needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"tumorlens.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tumorlens' has no attribute {name!r}")
