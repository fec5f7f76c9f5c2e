"""Compiled loops: every task once, on however many threads, and numbers stored as PyTorch stores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba import carray
from numba.core.errors import TypingError

from tumorlens.training.kernels import jit as module
from tumorlens.training.kernels.jit import (
    array,
    ask_ahead,
    compiled,
    narrowed,
    next_task,
    pointer,
    run,
    widened,
    write_past_caches,
)


@pytest.fixture
def _four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def counting() -> Any:
    """Counts a task where it belongs; a thread that finds none left marks a place of its own behind them."""

    @compiled("counting")
    def loop(address: Any) -> None:
        job = carray(address, (4,), np.int64)
        seen = carray(pointer(job[2]), (job[3],), np.int64)
        while True:
            t = next_task(job)
            if t >= job[1]:
                seen[t] = 1
                break
            seen[t] += t + 1

    return loop


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize(("threads", "came"), [("PyTorch's", 4), ("our own", 4), ("one", 1)])
@pytest.mark.parametrize("tasks", [1, 5, 10_000])
def test_each_task_runs_once(threads: str, came: int, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if threads == "our own":
        monkeypatch.setattr(module, "_openmp", lambda: None)
    elif threads == "one":
        torch.set_num_threads(1)
    elif module._openmp() is None:
        pytest.skip("GCC's OpenMP is not loaded here")
    seen = np.zeros(tasks + 8, dtype=np.int64)
    run(counting(), tasks, seen, len(seen))
    assert seen[:tasks].tolist() == [*range(1, tasks + 1)]
    assert seen[tasks:].sum() == (came if tasks > 1 else 1)  # each thread asks once more than there is to do


def failing() -> Any:
    @compiled("failing")
    def loop(address: Any) -> None:
        job = carray(address, (2,), np.int64)
        next_task(job)
        raise MemoryError

    return loop


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_fails_is_noticed() -> None:
    with pytest.raises(MemoryError, match="of 100 tasks"):
        run(failing(), 100)


def copying(read: Any, written: Any) -> Any:
    @compiled("copying", read, written)
    def loop(address: Any) -> None:
        job = carray(address, (5,), np.int64)
        source = carray(pointer(job[2]), (job[4],), read)
        found = carray(pointer(job[3]), (job[4],), written)
        while next_task(job) < job[1]:
            for i in range(job[4]):
                found[i] = narrowed(widened(source[i]), found)

    return loop


def copied(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    found = torch.empty(len(values), dtype=kind)
    source, target = array(values), array(found)
    run(copying(source.dtype, target.dtype), 1, source, target, len(values))
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
    names = {kind.code._cache._impl.filename_base for kind in kinds}
    assert len(names) == 2
    assert all(module._STAMP in name for name in names)  # else a change to jit.py would not be noticed


@pytest.mark.parametrize("error", [RuntimeError("no locator available for file 'x'"), OSError(28, "No space left")])
def test_where_no_cache_can_be_written_code_stays_in_the_process(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.cfunc

    def without(*words: Any, cache: bool = False, **more: Any) -> Any:
        if cache:
            raise error
        return real(*words, **more)

    monkeypatch.setattr(module, "cfunc", without)
    seen = np.zeros(8, dtype=np.int64)
    run(counting(), 2, seen, 8)
    assert seen[:2].tolist() == [1, 2]


def streaming(kind: Any) -> Any:
    """Writes its task's number, and what follows it, into the 128 numbers from a row's 64th on."""

    @compiled("streaming", kind)
    def loop(address: Any) -> None:
        job = carray(address, (4,), np.int64)
        found, line = carray(pointer(job[2]), (job[1], job[3]), kind), np.empty(128, kind)
        while True:
            t = next_task(job)
            if t >= job[1]:
                break
            ask_ahead(found, t + 1, 64, 128)  # of the last row, beyond the end: nothing is read
            for k in range(128):
                line[k] = t + k
            write_past_caches(line, found, t, 64, 128)

    return loop


@pytest.mark.parametrize("kind", [torch.float32, torch.int16])
def test_what_is_written_past_caches_is_there_and_only_where_it_belongs(kind: torch.dtype) -> None:
    found = torch.full((1000, 256), -1, dtype=kind)  # PyTorch's memory begins at a cache line
    run(streaming(array(found).dtype), len(found), array(found), found.shape[1])
    true = torch.full_like(found, -1)
    true[:, 64:192] = torch.arange(1000)[:, None] + torch.arange(128)
    assert torch.equal(found, true)


@pytest.mark.parametrize(("kind", "count"), [(np.float32, 8), (np.int16, 128)])
def test_no_part_of_a_cache_line_and_no_other_numbers_are_written_past_caches(kind: Any, count: int) -> None:
    with pytest.raises(TypingError, match="no whole cache lines"):

        @compiled("wrong", kind, count)
        def loop(address: Any) -> None:
            job = carray(address, (4,), np.int64)
            found = carray(pointer(job[2]), (job[1], job[3]), np.float32)
            write_past_caches(np.zeros(128, kind), found, 0, 0, count)
