"""The state from which a training resumes: weights, optimiser state, history and the best weights so far."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, writing
from tumorlens.core.progress import log
from tumorlens.training.architecture import STAGES, parameter_prefixes
from tumorlens.training.configurations import Configuration


def trainable_state(model: ResNet, configuration: Configuration) -> dict[str, Tensor]:
    """Return a copy, on the CPU, of the trainable stages' parameters and BatchNorm statistics."""
    prefixes = parameter_prefixes(configuration.learns)
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items() if k.startswith(prefixes)}


def restore_state(model: ResNet, state: dict[str, Tensor]) -> None:
    """Load the tensors from `trainable_state` into the model.

    Raises
    ------
    RunError
        A tensor has an unknown name.
    """
    if unexpected := model.load_state_dict(state, strict=False).unexpected_keys:
        raise RunError(f"The resume state has unknown tensors: {unexpected[:3]}.", cure="Delete last.pt.")


@dataclass
class ResumeState:
    """History and best weights of a training; `save` writes them with weights and optimiser state to a file.

    Used as a context manager, it waits on exit until the file is written.
    """

    configuration: Configuration
    seed: int
    history: list[Json] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._written, self._cost = 0.0, 0.0  # time of the last write, and how many seconds it took
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> ResumeState:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until the file is written. An error that ended the training takes precedence over a write error."""
        try:
            self.wait()
        except RunError as error:
            if kind is None:
                raise
            log.info(error.what)

    @property
    def key(self) -> str:
        """Values that must match those in a file for training to resume from it, as JSON."""
        values = {"configuration": asdict(self.configuration), "seed": self.seed, "stages": STAGES}
        return json.dumps(values, sort_keys=True)

    def is_due(self) -> bool:
        """Whether at least four times the duration of the last write has passed since then."""
        done = self._writing is None or self._writing.done()
        return done and time.perf_counter() - self._written >= 4 * self._cost

    def read(self, path: Path) -> Json | None:
        """Read a state file of this training; return None if it does not exist or is damaged.

        Raises
        ------
        RunError
            The file is of a training with other values.
        """
        if not path.exists():
            return None
        name = self.configuration.name
        try:
            saved: Json = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds on damaged files
            log.info(f"{path} is damaged ({type(error).__name__}): {name} starts from the beginning.")
            return None
        if saved.get("key") != self.key:
            raise RunError(
                f"{path} holds an unfinished training of {name} with other values.",
                cure="Use the same options as then to resume it, name another folder with --out, or delete that file.",
            )
        return saved

    def resume(self, saved: Json, model: ResNet, optimizer: torch.optim.Optimizer) -> None:
        """Restore model, optimiser, history and best weights from a saved state."""
        restore_state(model, saved["weights"])
        # The optimiser's implementation (fused, capturable) depends on this device, not the one that saved the state.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
        self.history, self.best = json.loads(saved["history"]), saved["best"]
        log.info(f"{self.configuration.name}: resuming after epoch {len(self.history)}.")

    def save(self, path: Path, model: ResNet, optimizer: torch.optim.Optimizer) -> None:
        """Copy the current state and write it in a background thread, as writing takes longer than copying."""
        self.wait()
        began = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(
            {
                "key": self.key,
                "weights": trainable_state(model, self.configuration),
                "best": self.best,
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(self.history),
            },
            buffer,
        )
        self._writing = self._thread.submit(self._write, path, buffer, began)

    def _write(self, path: Path, buffer: io.BytesIO, began: float) -> None:
        with writing(path) as file:
            file.write(buffer.getbuffer())
        self._written = time.perf_counter()
        self._cost = self._written - began

    def wait(self) -> None:
        """Wait until the file is written.

        Raises
        ------
        RunError
            The file could not be written.
        """
        if self._writing:
            try:
                self._writing.result()
            finally:  # Ctrl-C may interrupt the wait but not the write
                if self._writing.done():
                    self._writing = None
