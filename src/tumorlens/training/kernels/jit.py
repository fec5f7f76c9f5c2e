"""Compile loops with Numba and run them on PyTorch's threads.

PyTorch's threads spin for milliseconds after each operation, and other threads would have to share the cores with them.
Therefore each loop is compiled for a single core and takes its tasks from a shared counter, and all of PyTorch's OpenMP
threads run it at the same time until no task is left.

This module contains all use of interfaces that may change without notice: GOMP_parallel through ctypes, and LLVM's
prefetch and non-temporal stores through llvmlite. Public alternatives (plain Numba functions on a thread pool) would
cost a fifth of a training step. Numba therefore has an upper bound in pyproject.toml, and this module's tests fail if
one of these interfaces changes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils, errors
from numba.extending import intrinsic, overload
from torch import Tensor

_Loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_STAMP = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # this file: compiled loops inline code from it
_NO_CACHE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)  # from Numba, damaged files or a full disk


def compiled(*key: object) -> Callable[[Callable[[Any], None]], Any]:
    """Compile a loop for `run`: it takes the address of a job, and calls `next_task` until no task is left.

    Products and sums may be reordered or fused for vectorisation. The compiled code is cached in the `__pycache__` next
    to the loop's module, or in the user's cache folder, or only in memory if neither is writable. `key` is everything
    else that the code depends on, such as values from its closure. Each key gets its own cache file, because two
    processes may write at the same time.
    """

    def compiler(loop: Callable[[Any], None]) -> Any:
        loop.__qualname__ = "_".join([loop.__qualname__, *map(str, key), _STAMP])
        words: dict[str, Any] = {"error_model": "numpy", "fastmath": {"nsz", "contract", "reassoc"}}
        try:
            code = cfunc(types.void(types.voidptr), cache=True, **words)(loop)
        except _NO_CACHE:
            code = cfunc(types.void(types.voidptr), **words)(loop)
        found = _Loop(code.address)
        found.code = code  # type: ignore[attr-defined]  # keeps the code alive as long as the function that calls it
        return found

    return compiler


def run(loop: Any, tasks: int, *words: int | npt.NDArray[Any]) -> None:
    """Run a loop on all threads. Its job holds the task counter, the number of tasks and `words`, numbers or addresses.

    Raises
    ------
    MemoryError
        A loop could not allocate its tiles.
    """
    job = np.array([0, tasks, *(w if isinstance(w, int) else w.ctypes.data for w in words)], dtype=np.int64)
    cores = torch.get_num_threads()
    if cores == 1 or tasks <= 1:
        loop(job.ctypes.data)
    elif openmp := _openmp():
        openmp(loop, job.ctypes.data, 0, 0)  # 0: reuse PyTorch's team, with as many threads
    else:
        others = [_threads().submit(_on_a_thread, loop, job, words) for _ in range(min(cores, tasks) - 1)]
        loop(job.ctypes.data)
        wait(others)
    if job[0] < tasks:  # exceptions raised inside a loop are lost
        raise MemoryError(f"a loop did {job[0]} of {tasks} tasks")


def _on_a_thread(loop: Any, job: npt.NDArray[np.int64], _held: Any) -> None:
    """Run a loop, keeping the arrays that the job points to alive until it ends, even if Ctrl-C interrupts the wait."""
    loop(job.ctypes.data)


@lru_cache
def _openmp() -> Any:
    """Return GCC's function that runs another on each thread of a team; None if libgomp is not loaded (not Linux)."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        found = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.restype, found.argtypes = None, [_Loop, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return found


@lru_cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1))


def array(values: Tensor) -> npt.NDArray[Any]:
    """View a contiguous tensor as an array; bfloat16 becomes uint16, the upper 16 bits of a float32."""
    if not values.is_contiguous():
        raise ValueError(f"a loop needs a contiguous tensor, not strides {values.stride()}")
    held = values.detach()
    found: npt.NDArray[Any] = (held.view(torch.uint16) if held.dtype == torch.bfloat16 else held).numpy()
    return found


@intrinsic  # type: ignore[untyped-decorator]
def next_task(_: Any, job: Any) -> Any:
    """Take the next task: return the counter, the first value of a job, int64 [.], and increment it atomically."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, values[0])
        return builder.atomic_rmw("add", held.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(job), code


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_: Any, address: Any) -> Any:
    """Convert an address in a job to a pointer for `carray`."""

    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(address), code


_LINE = 64  # bytes per cache line


def _place(context: Any, builder: Any, kind: Any, rows: Any, row: Any, column: Any) -> tuple[Any, int]:
    """Return the address of one element of an array of rows, and the size of an element in bytes."""
    held = context.make_array(kind)(context, builder, rows)
    at = builder.add(builder.mul(row, builder.extract_value(held.shape, 1)), column)
    return builder.bitcast(builder.gep(held.data, [at]), cgutils.voidptr_t), kind.dtype.bitwidth // 8


def _lines(builder: Any, begin: Any, size: int) -> Iterator[Any]:
    """Yield the address of each cache line in `size` bytes."""
    for past in range(0, size, _LINE):
        yield builder.gep(begin, [ir.Constant(ir.IntType(64), past)])


@intrinsic  # type: ignore[untyped-decorator]
def ask_ahead(_: Any, rows: Any, row: Any, column: Any, count: Any) -> Any:
    """Prefetch `count` (a constant) numbers of `rows` [., .], starting at a row and column, into the core's L2 cache.

    The hardware prefetcher does not predict reads that jump from row to row.
    """
    if not isinstance(count, types.IntegerLiteral):
        raise errors.RequireLiteralValue("count")

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at, size = _place(context, builder, signature.args[0], *values[:3])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        for line in _lines(builder, at, count.literal_value * size):
            builder.call(ask, [line, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(rows, row, column, count), code


@intrinsic  # type: ignore[untyped-decorator]
def write_past_caches(_: Any, values: Any, rows: Any, row: Any, column: Any, count: Any) -> Any:
    """Write the first `count` (a constant) of `values` [.] into `rows` [., .], starting at a row and column.

    They must fill whole cache lines of 64 bytes. Unlike an ordinary store, this does not read the line first. On x86,
    the next increment of the task counter, a locked instruction, waits until everything is written.
    """
    if not isinstance(count, types.IntegerLiteral):
        raise errors.RequireLiteralValue("count")
    if values.dtype != rows.dtype or count.literal_value * rows.dtype.bitwidth % (8 * _LINE):
        raise errors.TypingError(f"{count.literal_value} of {values.dtype} are no whole cache lines of {rows.dtype}")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, size = _place(context, builder, signature.args[1], *arguments[1:4])
        held = builder.bitcast(context.make_array(signature.args[0])(context, builder, arguments[0]).data, at.type)
        line = ir.VectorType(ir.IntType(8), _LINE).as_pointer()
        lines = (_lines(builder, begin, count.literal_value * size) for begin in (held, at))
        for source, target in zip(*lines, strict=True):
            found = builder.load(builder.bitcast(source, line))
            found.align = size
            written = builder.store(found, builder.bitcast(target, line))
            written.align = _LINE
            written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(values, rows, row, column, count), code


def widened(value: Any) -> Any:
    """Convert a stored number to float32; only callable inside a compiled loop."""
    raise NotImplementedError


@overload(widened, inline="always")  # type: ignore[untyped-decorator]
def _compiled_widened(value: Any) -> Any:
    def upper_half(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    def itself(value: Any) -> Any:
        return value

    return upper_half if isinstance(value, types.Integer) else itself


def narrowed(value: Any, array: Any) -> Any:
    """Round a float32 to the type that `array` stores (nearest, ties to even); only callable inside a compiled loop."""
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
