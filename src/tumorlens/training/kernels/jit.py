"""Compile loops with Numba and run them on as many threads as PyTorch uses."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import from_dtype, njit, types
from numba.extending import overload
from torch import Tensor

_STAMP = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # loops contain code of this file
_NO_CACHE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)  # Numba's, and of damaged files or full disks
_CHUNKS_PER_THREAD = 4  # so that a thread that other processes interrupt does not hold up the rest


def compiled(signature: Any, *key: object) -> Callable[[Callable[..., None]], Any]:
    """Compile a loop `(start, stop, *arguments)` over tasks for `run`.

    Products and sums may be reordered or fused for vectorisation. The code is cached in the `__pycache__` beside the
    loop's module, or in the user's cache folder, or only in the process if neither can be written.

    Parameters
    ----------
    signature
        Numba types of the arguments; see `signature_of`.
    key
        Everything that the code depends on beside its module, such as values of its closure: each gets its own cache
        file, as two processes may write one at once.
    """

    def compiler(loop: Callable[..., None]) -> Any:
        loop.__qualname__ = "_".join([loop.__qualname__, *map(str, key), _STAMP])
        options: dict[str, Any] = {
            "nogil": True, "error_model": "numpy", "fastmath": {"nsz", "contract", "reassoc"},
        }  # fmt: skip
        try:
            return njit(signature, cache=True, **options)(loop)
        except _NO_CACHE:
            return njit(signature, **options)(loop)

    return compiler


def signature_of(arrays: list[tuple[Any, int]], numbers: int) -> Any:
    """Signature of a loop over C-contiguous arrays, each (dtype, dimensions), followed by so many integers."""
    of_arrays = [types.Array(from_dtype(np.dtype(dtype)), n, "C") for dtype, n in arrays]
    return types.void(types.int64, types.int64, *of_arrays, *[types.int64] * numbers)


def run(loop: Any, tasks: int, *arguments: int | npt.NDArray[Any]) -> None:
    """Run a compiled loop over tasks 0 to `tasks` - 1, on all of PyTorch's threads."""
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        loop(0, tasks, *arguments)
        return
    bounds = np.linspace(0, tasks, min(tasks, _CHUNKS_PER_THREAD * threads) + 1).astype(int).tolist()
    pool = _threads(threads)
    futures = [pool.submit(loop, *chunk, *arguments) for chunk in pairwise(bounds)]
    wait(futures)
    for future in futures:
        future.result()


@lru_cache(maxsize=1)
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "loops")


def array(values: Tensor) -> npt.NDArray[Any]:
    """View a contiguous tensor as an array; bfloat16 becomes uint16, the upper half of a float32's bits."""
    if not values.is_contiguous():
        raise ValueError(f"a loop needs a contiguous tensor, not strides {values.stride()}")
    held = values.detach()
    found: npt.NDArray[Any] = (held.view(torch.uint16) if held.dtype == torch.bfloat16 else held).numpy()
    return found


def widened(value: Any) -> Any:
    """float32 of a stored number; only within a loop."""
    raise NotImplementedError


@overload(widened, inline="always")  # type: ignore[untyped-decorator]
def _compiled_widened(value: Any) -> Any:
    def upper_half(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    def itself(value: Any) -> Any:
        return value

    return upper_half if isinstance(value, types.Integer) else itself


def narrowed(value: Any, array: Any) -> Any:
    """A float32 as `array` stores it, rounded to nearest, ties to even; only within a loop."""
    raise NotImplementedError


@overload(narrowed, inline="always")  # type: ignore[untyped-decorator]
def _compiled_narrowed(value: Any, array: Any) -> Any:  # noqa: ARG001
    def upper_half(value: Any, array: Any) -> Any:  # noqa: ARG001
        bits = np.float32(value).view(np.uint32)
        up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + up) >> np.uint32(16)) if value == value else np.uint16(0x7FC0)  # NaN

    def itself(value: Any, array: Any) -> Any:  # noqa: ARG001
        return value

    return upper_half if isinstance(array.dtype, types.Integer) else itself
