"""Compiled loops: every task once, on however many threads, and numbers stored as PyTorch stores them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tumorlens.training.kernels import jit as module
from tumorlens.training.kernels.jit import array, compiled, narrowed, run, signature_of, widened


@pytest.fixture
def _four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def counting() -> Any:
    @compiled(signature_of([(np.int64, 1)], 0), "counting")
    def loop(start, stop, seen):  # type: ignore[no-untyped-def]
        for t in range(start, stop):
            seen[t] += t + 1

    return loop


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("tasks", [0, 1, 5, 10_000])
def test_each_task_runs_once(threads: int, tasks: int) -> None:
    torch.set_num_threads(threads)
    seen = np.zeros(tasks + 8, dtype=np.int64)
    run(counting(), tasks, seen)
    assert seen[:tasks].tolist() == [*range(1, tasks + 1)]
    assert seen[tasks:].sum() == 0


@pytest.mark.usefixtures("_four_cores")
def test_tasks_run_on_all_threads() -> None:
    met = threading.Barrier(4)  # broken unless four of them run at once
    run(lambda *_: met.wait(60), 4)


def failing() -> Any:
    @compiled(signature_of([], 0), "failing")
    def loop(start, stop):  # type: ignore[no-untyped-def]
        if stop > 50:
            raise MemoryError

    return loop


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_loop_is_raised(threads: int) -> None:
    torch.set_num_threads(threads)
    with pytest.raises(MemoryError):
        run(failing(), 100)


def copying(read: Any, written: Any) -> Any:
    @compiled(signature_of([(read, 1), (written, 1)], 0), "copying", read, written)
    def loop(start, stop, source, found):  # type: ignore[no-untyped-def]
        for i in range(start, stop):
            found[i] = narrowed(widened(source[i]), found)

    return loop


def copied(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    found = torch.empty(len(values), dtype=kind)
    source, target = array(values), array(found)
    run(copying(source.dtype, target.dtype), len(values), source, target)
    return found


def test_bfloat16_is_rounded_as_pytorch_rounds_it() -> None:
    rng = np.random.default_rng(0)

    def of_bits(*bits: int) -> npt.NDArray[np.float32]:
        return np.array(bits, dtype=np.uint32).view(np.float32)

    ties = of_bits(0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F7FFF)
    rest = [0.0, -0.0, np.inf, -np.inf, 1e-40]
    drawn = rng.normal(size=1000) * 10.0 ** rng.integers(-30, 30, 1000)
    values = torch.from_numpy(np.concatenate([drawn, ties, rest]).astype(np.float32))
    assert torch.equal(copied(values, torch.bfloat16), values.bfloat16())
    assert torch.equal(copied(values.bfloat16(), torch.float32), values.bfloat16().float())
    nan = torch.from_numpy(of_bits(0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF))
    assert copied(nan, torch.bfloat16).isnan().all()


def test_memory_in_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not strides \(2,\)"):
        array(torch.zeros(8)[::2])


def test_each_kind_of_a_loop_has_a_cache_of_its_own() -> None:
    kinds = [copying(np.dtype(a), np.dtype(b)) for a, b in (("f4", "u2"), ("u2", "f4"))]
    names = {kind.py_func.__qualname__ for kind in kinds}
    assert len(names) == 2
    assert all(module._STAMP in name for name in names)  # else a change to jit.py would not be noticed


@pytest.mark.parametrize("error", [RuntimeError("no locator available for file 'x'"), OSError(28, "No space left")])
def test_where_no_cache_can_be_written_code_stays_in_the_process(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.njit

    def without(*words: Any, cache: bool = False, **more: Any) -> Any:
        if cache:
            raise error
        return real(*words, **more)

    monkeypatch.setattr(module, "njit", without)
    seen = np.zeros(8, dtype=np.int64)
    run(counting(), 2, seen)
    assert seen[:2].tolist() == [1, 2]
