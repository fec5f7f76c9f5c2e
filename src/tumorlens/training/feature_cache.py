"""A cache of activations on disk: its key, its header, and the progress of an interrupted pass."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.models import ResNet

from tumorlens.core.errors import RunError
from tumorlens.core.files import disk_error, locked, write_json
from tumorlens.readers.pixels import PREPROCESSING
from tumorlens.training.architecture import SHAPES
from tumorlens.training.devices import Compute
from tumorlens.training.model import state_hash

_VERSION = 3  # 2: BatchNorm folded into the convolutions; 3: pictures upright, on black, deep ones by percentiles
_KERNELS = {"cuda": "cuda, repeatable"}  # older ones, keyed "cuda", rounded float32 to TensorFloat-32


@dataclass
class CacheFile:
    """A `.npy` file with the rows of one boundary, and the JSON note next to it; `done` of `n` rows are computed."""

    boundary: str
    path: Path
    key: dict[str, Any]
    n: int
    dtype: np.dtype[Any]
    done: int
    offset: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        model: ResNet,
        boundary: str,
        unique: dict[str, str],
        cache: Path,
        compute: Compute,
    ) -> CacheFile:
        """Return the file for these images, weights and precision; rows from an interrupted pass count as done."""
        key = {
            "version": _VERSION,
            "boundary": boundary,
            "images": hashlib.sha256("\n".join(unique).encode()).hexdigest(),
            "n": len(unique),
            "weights": state_hash(model, boundary),
            "preprocessing": PREPROCESSING,
            "precision": "uint8" if boundary == "image" else str(compute.precision).removeprefix("torch."),
            "device": "any" if boundary == "image" else _KERNELS.get(compute.device.type, compute.device.type),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        dtype = np.dtype(
            np.uint8 if boundary == "image" else np.int16 if compute.precision == torch.bfloat16 else np.float32
        )
        found = cls(boundary, cache / "features" / f"{boundary}-{name}.npy", key, len(unique), dtype, 0)
        found.done = found._already()
        return found

    @property
    def complete(self) -> bool:
        return self.done == self.n

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other studies from writing this file inside a `with` block."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path.with_suffix(".lock")))
            except OSError as error:
                raise disk_error(error, self.path) from None
            yield

    def refreshed(self) -> bool:
        """Read the progress again, and return whether the file is complete."""
        self.done = self._already()
        return self.complete

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    def _already(self) -> int:
        """Return the number of rows from a finished or interrupted pass; 0 if in any doubt."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            with self.path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    return 0
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self.offset = file.tell()
                size = os.fstat(file.fileno()).st_size
        except (OSError, ValueError):
            return 0
        if note.get("key") != self.key or shape != (self.n, *SHAPES[self.boundary]) or dtype != self.dtype:
            return 0
        done, self.seconds = int(note.get("done", 0)), float(note.get("seconds", 0.0))
        return done if size >= self.offset + done * self._row_bytes() else 0

    def _row_bytes(self) -> int:
        return int(np.prod(SHAPES[self.boundary])) * self.dtype.itemsize

    def start(self) -> None:
        """Create the file, unless an interrupted pass can be continued."""
        if self.done:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.note.unlink(missing_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if free < self.n * self._row_bytes():
                raise RunError(
                    f"The cache needs {self.n * self._row_bytes() / 1e9:.1f} GB, but {self.path.parent} has "
                    f"{free / 1e9:.1f} GB free.",
                    cure="Free some space, or name another place with --cache DIR.",
                )
            with self.path.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
                          "shape": (self.n, *SHAPES[self.boundary])}  # fmt: skip
                np.lib.format.write_array_header_1_0(file, header)
                self.offset = file.tell()
        except OSError as error:
            raise disk_error(error, self.path) from None

    def append(self, first: int, values: npt.NDArray[Any]) -> None:
        """Write rows starting at row `first`."""
        try:
            with self.path.open("r+b") as file:  # buffered, because a raw write may be partial
                file.seek(self.offset + first * self._row_bytes())
                file.write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise disk_error(error, self.path) from None

    def note_done(self, done: int, seconds: float) -> None:
        """Record that all rows before `done` are on disk, and that computing them took another `seconds`."""
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from None
        self.seconds += seconds
        write_json(self.note, {"key": self.key, "done": done, "seconds": self.seconds})
        self.done = done
