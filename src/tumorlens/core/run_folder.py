"""The layout of a run folder."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json
from tumorlens.core.version import __version__

FORMAT = 1  # of a run folder, in study.json; runs of earlier versions have none and are read like format 1
INTENDED_USE = "Research and teaching. Not for diagnosis."


class Run:
    """The paths of the files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.study = root / "study.json"
        self.index = root / "index.csv"
        self.audit = root / "audit.json"
        self.baselines = root / "baselines.csv"  # predictions without training, for each test image
        self.comparison = root / "comparison.json"
        self.report = root / "report.html"

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

    def checkpoint(self, configuration: str) -> Path:
        """The best weights of a finished training, which are those that training.json records.

        Raises
        ------
        RunError
            The training is not finished, the file is missing, or its SHA-256 is not the recorded one.
        """
        if not self.training(configuration).exists():
            raise RunError(
                f"{self.root} has no finished training of {configuration!r}.",
                cure=f"Train it first: tumorlens train --configurations {configuration} with the same --out.",
            )
        summary = read_json(self.training(configuration))
        path: Path = self.folder(configuration) / summary["checkpoint"]
        command = self.read_study().get("command") or "the study"
        root = self.root.parent if re.fullmatch(r"fold-\d+|final", self.root.name) else self.root
        where = f"--out {shlex.quote(str(root))}"  # the run may have been moved or copied
        command = re.sub(r"(?<= )(--out|-o)[ =]('[^']*'|\S+)", lambda _: where, command)
        again = f"delete {self.folder(configuration)} and train it again: {command}"
        if not path.is_file():
            raise RunError(f"{path} is missing, although the training is finished.", cure=f"Restore it, or {again}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != (recorded := summary["checkpoint_sha256"]):
            raise RunError(
                f"{path} is not the checkpoint that was trained here: its SHA-256 is {found}, "
                f"{self.training(configuration)} records {recorded}.",
                cure=f"Restore the file, or {again}",
            )
        return path

    @property
    def final(self) -> Run:
        """The run of a cross-validation's final model."""
        return Run(self.root / "final")

    def last(self, configuration: str) -> Path:
        """Checkpoint to resume training from; removed once the training is finished."""
        return self.folder(configuration) / "last.pt"
