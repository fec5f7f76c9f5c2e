"""A cache of activations on disk: its key, its header, and the progress of an interrupted pass."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.models import ResNet

from tumorlens.core.errors import RunError
from tumorlens.core.files import write_json
from tumorlens.readers.pixels import PREPROCESSING
from tumorlens.training.architecture import SHAPES
from tumorlens.training.devices import Compute
from tumorlens.training.model import state_hash

_VERSION = 3  # 2: BatchNorm folded into the convolutions; 3: pictures upright, on black, deep ones by percentiles
_KERNELS = {"cuda": "cuda, repeatable"}  # older ones, keyed "cuda", rounded float32 to TensorFloat-32


@dataclass
class CacheFile:
    """A `.npy` file with the rows of one boundary, and the JSON note next to it; `done` of `n` rows are computed.

    Its methods raise OSError if it cannot be written.
    """

    boundary: str
    path: Path
    key: dict[str, Any]
    n: int
    dtype: np.dtype[Any]
    done: int = 0
    offset: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, model: ResNet, boundary: str, unique: dict[str, str], cache: Path, compute: Compute) -> CacheFile:
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
        return cls(boundary, cache / "features" / f"{boundary}-{name}.npy", key, len(unique), dtype).refresh()

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    def refresh(self) -> CacheFile:
        """Count the rows from a finished or interrupted pass, 0 if in any doubt, as `done`; return the file itself."""
        self.done = 0
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self.offset = file.tell()
                rows = (os.fstat(file.fileno()).st_size - self.offset) // self.row_bytes
        except (OSError, ValueError):
            return self
        if (note.get("key"), shape, dtype) == (self.key, (self.n, *SHAPES[self.boundary]), self.dtype):
            self.seconds = float(note.get("seconds", 0.0))
            self.done = note["done"] if rows >= note.get("done", 0) else 0
        return self

    @property
    def row_bytes(self) -> int:
        return int(np.prod(SHAPES[self.boundary])) * self.dtype.itemsize

    def start(self) -> None:
        """Create the file, unless an interrupted pass can be continued."""
        if self.done:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note.unlink(missing_ok=True)
        free, needed = shutil.disk_usage(self.path.parent).free, self.n * self.row_bytes
        if free < needed:
            raise RunError(
                f"The cache needs {needed / 1e9:.1f} GB, but {self.path.parent} has {free / 1e9:.1f} GB free.",
                cure="Free some space, or name another place with --cache DIR.",
            )
        with self.path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
                      "shape": (self.n, *SHAPES[self.boundary])}  # fmt: skip
            np.lib.format.write_array_header_1_0(file, header)
            self.offset = file.tell()

    def append(self, first: int, values: npt.NDArray[Any]) -> None:
        """Write rows starting at row `first`."""
        with self.path.open("r+b") as file:  # buffered, because a raw write may be partial
            file.seek(self.offset + first * self.row_bytes)
            file.write(np.ascontiguousarray(values).data)

    def note_done(self, done: int, seconds: float) -> None:
        """Record that all rows before `done` are on disk, and that computing them took another `seconds`."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.seconds += seconds
        write_json(self.note, {"key": self.key, "done": done, "seconds": self.seconds})
        self.done = done
