"""Activations of the frozen layers, computed once per image and kept on disk.

The published pipeline has no augmentation, so the activations of frozen layers for an image never change. A cache is a
`.npy` file with a JSON file next to it that holds its key: the hashes of the images and of the layers' weights, the
preprocessing, the boundary and the precision. Rows are read by seeking in the file rather than through a memory map:
mapped pages would count as memory of the process, whereas this way its memory does not grow with the number of images.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet

from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.core.files import disk_error, locked
from tumorlens.core.progress import Bar, log
from tumorlens.data.index import ImageRecord
from tumorlens.readers.pixels import READERS, Pixels, suppress_warnings
from tumorlens.readers.single import read_single
from tumorlens.training.architecture import BOUNDARIES, SHAPES, STAGES
from tumorlens.training.devices import Compute, deterministic
from tumorlens.training.feature_cache import CacheFile
from tumorlens.training.model import forward

_SAVE_EVERY = 16  # batches between saves of the progress
_CPU_BATCH = 8  # images per core, so that activations stay in its cache; the fastest of 8, 16 and 32
_READ = 1024  # rows read at once


@dataclass(frozen=True)
class CachedFeatures:
    """Rows of a finished cache.

    `boundary` is their position in the network; `row_of` maps an image's SHA-256 to its row; `seconds` is how long
    computing them took, including decoding.
    """

    boundary: str
    path: Path
    offset: int
    dtype: np.dtype[Any]
    row_of: dict[str, int]
    seconds: float

    @property
    def kind(self) -> torch.dtype:
        """Data type of the tensors that `rows` returns."""
        return torch.bfloat16 if self.dtype == np.int16 else torch.from_numpy(np.empty(0, self.dtype)).dtype

    @property
    def row_bytes(self) -> int:
        """Bytes per row, that is, per image."""
        return int(np.prod(SHAPES[self.boundary])) * self.dtype.itemsize

    def rows(self, hashes: Sequence[str]) -> Tensor:
        """Read the rows of some images.

        Returns
        -------
        Tensor
            [n, 512] at `avgpool`, otherwise [n, c, h, w] with channels-last strides; uint8 at `image`, otherwise
            float32 or bfloat16 as stored.
        """
        shape = SHAPES[self.boundary]
        out = np.empty((len(hashes), *shape), self.dtype)
        size = out[0].nbytes if len(hashes) else 0
        with self.path.open("rb", buffering=0) as file:
            for i, sha256 in enumerate(hashes):
                file.seek(self.offset + self.row_of[sha256] * size)
                if file.readinto(out[i]) != size:
                    raise RunError(
                        f"The cache {self.path} is truncated.", cure="Delete it and run the same command again."
                    )
        tensor = torch.from_numpy(out)
        if self.dtype == np.int16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


@dataclass(frozen=True)
class InMemoryFeatures:
    """Activations held in memory.

    Used for small activations, which take longer to read than to train on, and on a GPU, which would wait for every
    read.
    """

    boundary: str
    values: Tensor
    """[n, 512], or [n, h, w, c] as stored."""
    row_of: dict[str, int]

    @classmethod
    def load(cls, source: CachedFeatures, hashes: Sequence[str], device: torch.device) -> InMemoryFeatures:
        """Read the rows of some images once: `avgpool` as float32, others as stored."""
        row_of = {sha256: i for i, sha256 in enumerate(dict.fromkeys(hashes))}
        kind = torch.float32 if source.boundary == "avgpool" else source.kind
        values = torch.empty((len(row_of), *SHAPES[source.boundary]), dtype=kind, device=device)
        names = list(row_of)
        for start in range(0, len(names), _READ):
            rows = source.rows(names[start : start + _READ])
            values[start : start + _READ] = rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows
        return cls(source.boundary, values, row_of)

    def rows(self, hashes: Sequence[str]) -> Tensor:
        """Return the same as `CachedFeatures.rows`, on the device."""
        return self.at(torch.tensor([self.row_of[sha256] for sha256 in hashes], device=self.values.device))

    def at(self, places: Tensor) -> Tensor:
        """Return the rows at indices into `values`, int64 [n] on its device."""
        found = self.values.index_select(0, places)
        return found.permute(0, 3, 1, 2) if found.ndim == 4 else found


@deterministic()
def extract_features(
    model: ResNet,
    boundaries: Sequence[str],
    rows: Sequence[ImageRecord],
    root: Path,
    *,
    cache: Path,
    compute: Compute,
    batch_size: int = 64,
) -> tuple[dict[str, CachedFeatures], int]:
    """Return activations of `model`'s frozen stages for every image, from the cache or from one pass.

    Parameters
    ----------
    model
        The network in eval mode; all stages before the last boundary must be frozen.
    boundaries
        Where to store activations, keys of SHAPES. All missing ones are computed in a single pass.
    rows
        Images; identical files (by SHA-256) are computed once.
    root
        Folder to which the paths in `rows` are relative.
    cache
        Folder for caches.
    compute
        Where and how to compute. Features are stored in its precision.
    batch_size
        Images per forward pass; halved until they fit in memory.

    Returns
    -------
    caches
        One cache per boundary.
    computed
        Number of images that went through the network; 0 if all were cached.

    Raises
    ------
    RunError
        The cache cannot be written.
    DataError
        An image was changed or deleted since it was indexed.
    """
    unique = {row.sha256: row.path for row in sorted(rows, key=lambda row: (row.sha256, row.path))}
    row_of = {sha256: i for i, sha256 in enumerate(unique)}
    files = {b: CacheFile.of(model, b, unique, cache, compute) for b in boundaries}
    computed = 0
    with ExitStack() as held:  # if two studies wrote a cache at once, it would be corrupt: the second waits
        unfinished = sorted((file for file in files.values() if file.done < file.n), key=lambda file: file.path)
        try:
            for file in unfinished:
                held.enter_context(locked(file.path.with_suffix(".lock")))
            if missing := {file.boundary: file for file in unfinished if file.refresh().done < file.n}:
                computed = _compute(model, missing, list(unique.values()), root, compute, batch_size)
        except OSError as error:
            raise disk_error(error, unfinished[0].path) from None
    return {
        b: CachedFeatures(b, f.path, f.offset, f.dtype, row_of, round(f.seconds, 2)) for b, f in files.items()
    }, computed


def _compute(
    model: ResNet,
    files: dict[str, CacheFile],
    paths: Sequence[str],
    root: Path,
    compute: Compute,
    batch_size: int,
) -> int:
    """Compute the images that are missing in any of the files, in one pass; return their number."""
    for file in files.values():
        file.start()
    first = done = min(file.done for file in files.values())
    boundaries = sorted(files, key=list(SHAPES).index)
    network = _Network(_folded(model, boundaries[-1], compute.device), boundaries, compute, batch_size)
    title = "Decoding images" if boundaries == ["image"] else "Frozen layers, once per image"
    with Bar(title, len(paths) - first) as bar:
        began = time.perf_counter()
        for i, found in enumerate(_found_batches(network, paths[first:], root), start=1):
            for boundary, values in found.items():
                files[boundary].append(done, values)
            done += len(values)
            bar.advance(len(values))
            if i % _SAVE_EVERY == 0 or done == len(paths):
                for file in files.values():
                    file.note_done(done, time.perf_counter() - began)
                began = time.perf_counter()
    return len(paths) - first


def _folded(model: ResNet, stop: str, device: torch.device) -> ResNet:
    """Return a copy with the BatchNorm layers up to a boundary folded into the convolutions.

    It computes the same function up to rounding (Jacob et al. 2018, section 3.2), with one pass over memory less per
    layer.
    """
    copied: Any = copy.deepcopy(model).eval()
    pairs = [(copied, "conv1", "bn1")] if BOUNDARIES[stop] > 0 else []
    for stage in STAGES[1 : min(BOUNDARIES[stop], len(STAGES) - 1)]:
        for block in getattr(copied, stage):
            pairs += [(block, "conv1", "bn1"), (block, "conv2", "bn2")]
            if block.downsample is not None:
                pairs.append((block.downsample, "0", "1"))
    for module, convolution, norm in pairs:
        setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    return copied.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return]


@dataclass
class _Network:
    """The frozen layers, and the number of images that fit in memory at once."""

    model: ResNet
    boundaries: Sequence[str]
    compute: Compute
    batch_size: int

    def run(self, pixels: Pixels) -> dict[str, npt.NDArray[Any]]:
        """Compute activations of uint8 [n, 224, 224, 3] at each boundary, as arrays [n, *SHAPES[boundary]]."""
        found: list[dict[str, npt.NDArray[Any]]] = []
        done = 0
        while done < len(pixels):
            part = pixels[done : done + self.batch_size]
            try:
                with torch.inference_mode():
                    found.append(_forward_all(self.model, part, self.boundaries, self.compute))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self.batch_size = _smaller(len(part), error)
                continue
            done += len(part)
        return {b: np.concatenate([f[b] for f in found]) if len(found) > 1 else found[0][b] for b in self.boundaries}


def _smaller(batch_size: int, error: BaseException) -> int:
    """Halve the batch size after an out-of-memory error; raise any other error again."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "memory" not in str(error).lower():
        raise error
    if batch_size == 1:
        raise RunError("Memory does not suffice for a single image.", cure="Close other programs, or use --device cpu.")
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    log.info(f"Out of memory with {batch_size} images at once: going on with {batch_size // 2}.")
    return batch_size // 2


def _forward_all(
    model: ResNet, pixels: Pixels, boundaries: Sequence[str], compute: Compute
) -> dict[str, npt.NDArray[Any]]:
    """Compute activations of one batch at each boundary, as arrays [n, *SHAPES[boundary]]."""
    found: dict[str, npt.NDArray[Any]] = {}
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(compute.device)  # (B, 3, 224, 224) uint8, channels last
    at = "image"
    for boundary in boundaries:
        if boundary == "image":
            found["image"] = pixels
            continue
        with compute.autocast():
            x = forward(model, x, at, boundary)
        at = boundary
        kept = x.to(compute.precision).cpu()
        kept = kept.permute(0, 2, 3, 1).contiguous() if kept.ndim == 4 else kept.contiguous()
        found[boundary] = kept.view(torch.int16).numpy() if kept.dtype == torch.bfloat16 else kept.numpy()
    return found


def _found_batches(network: _Network, paths: Sequence[str], root: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the activations of each batch, in order.

    On the CPU, each core decodes and computes its own small batches, which fit in its cache; if several cores shared a
    batch, they would wait for each other. On a GPU, threads decode images ahead.
    """
    on_cpu = network.compute.device.type == "cpu"
    threads = torch.get_num_threads()
    workers = threads if on_cpu else READERS
    size = min(network.batch_size, _CPU_BATCH) if on_cpu else network.batch_size

    def work(start: int) -> Any:
        pixels = np.stack([_pixels(root / path) for path in paths[start : start + size]])
        return network.run(pixels) if on_cpu else pixels

    with (
        suppress_warnings(),
        ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1 if on_cpu else threads)) as pool,
    ):
        jobs = (pool.submit(work, start) for start in range(0, len(paths), size))
        ahead = deque(islice(jobs, 2 * workers + 1))
        try:
            while ahead:
                found = ahead.popleft().result()
                yield found if on_cpu else network.run(found)
                ahead.extend(islice(jobs, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)


def _pixels(path: Path) -> Pixels:
    try:
        return read_single(path)[0]
    except ImageError as error:
        raise DataError(
            f"{path} was readable when it was indexed and is no more: {error.what}.",
            cure="Restore it and run the same command again.",
        ) from None
