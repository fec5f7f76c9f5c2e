"""The layout of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json
from tumorlens.core.version import __version__

FORMAT = 1  # of a run folder, in study.json; runs of earlier versions have none and are read like format 1
INTENDED_USE = "Research and teaching. Not for diagnosis."


@dataclass(frozen=True)
class Run:
    """The paths of the files of one run."""

    root: Path

    @property
    def study(self) -> Path:
        return self.root / "study.json"

    def read_study(self) -> Json:
        """Content of study.json.

        Raises
        ------
        RunError
            It is missing or damaged, or a newer version of tumorlens wrote the run folder.
        """
        record: Json = read_json(self.study)
        if (found := record.get("format", 1)) > FORMAT:
            raise RunError(
                f"{self.root} has format {found}, written by tumorlens {record.get('tumorlens')}; "
                f"this is tumorlens {__version__}, which reads formats up to {FORMAT}.",
                cure="Install that version of tumorlens or a later one, or choose another folder.",
            )
        return record

    @property
    def index(self) -> Path:
        return self.root / "index.csv"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def baselines(self) -> Path:
        """Predictions of the baselines without training, for each test image."""
        return self.root / "baselines.csv"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def folder(self, configuration: str) -> Path:
        """Subfolder of one configuration."""
        return self.root / configuration

    def metrics(self, configuration: str) -> Path:
        return self.folder(configuration) / "metrics.json"

    def predictions(self, configuration: str) -> Path:
        return self.folder(configuration) / "predictions.csv"

    def history(self, configuration: str) -> Path:
        return self.folder(configuration) / "history.jsonl"

    def training(self, configuration: str) -> Path:
        """Summary of a finished training; it exists only once the training is finished."""
        return self.folder(configuration) / "training.json"

    def last(self, configuration: str) -> Path:
        """Checkpoint to resume training from; removed once the training is finished."""
        return self.folder(configuration) / "last.pt"
