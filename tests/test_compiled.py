"""Compiled loops: every task once, on however many threads, and numbers stored as PyTorch stores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numba import carray

from tumorlens import compiled as module
from tumorlens.compiled import array, compiled, narrowed, next_task, pointer, run, widened


@pytest.fixture
def _four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def counting() -> Any:
    @compiled
    def loop(address: Any) -> None:
        job = carray(address, (4,), np.int64)
        seen = carray(pointer(job[2]), (job[3],), np.int64)
        while True:
            t = next_task(job)
            if t >= job[1]:
                break
            seen[t] += t + 1

    return loop


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize("threads", ["PyTorch's", "our own", "one"])
@pytest.mark.parametrize("tasks", [1, 3, 10_000])
def test_each_task_runs_once(threads: str, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if threads == "our own":
        monkeypatch.setattr(module, "_openmp", lambda: None)
    elif threads == "one":
        torch.set_num_threads(1)
    elif module._openmp() is None:
        pytest.skip("PyTorch does not compute with GCC's OpenMP here")
    seen = np.zeros(tasks + 1, dtype=np.int64)
    run(counting(), tasks, seen, len(seen))
    assert seen.tolist() == [*range(1, tasks + 1), 0]


def copying() -> Any:
    @compiled
    def loop(address: Any) -> None:
        job = carray(address, (5,), np.int64)
        read, written = (
            carray(pointer(job[2]), (job[4],), np.float32),
            carray(pointer(job[3]), (job[4],), np.uint16),
        )
        while next_task(job) < job[1]:
            for i in range(job[4]):
                written[i] = narrowed(widened(read[i]), written)

    return loop


def widening() -> Any:
    @compiled
    def loop(address: Any) -> None:
        job = carray(address, (5,), np.int64)
        read, written = (
            carray(pointer(job[2]), (job[4],), np.uint16),
            carray(pointer(job[3]), (job[4],), np.float32),
        )
        while next_task(job) < job[1]:
            for i in range(job[4]):
                written[i] = narrowed(widened(read[i]), written)

    return loop


def test_bfloat16_is_rounded_as_pytorch_rounds_it() -> None:
    rng = np.random.default_rng(0)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F7FFF], dtype=np.uint32).view(np.float32)
    values = torch.from_numpy(
        np.concatenate([rng.normal(size=1000) * 10.0 ** rng.integers(-30, 30, 1000), ties, [0, -0.0, np.inf, -np.inf]])
    ).float()
    found, back = torch.empty(len(values), dtype=torch.bfloat16), torch.empty(len(values))
    run(copying(), 1, array(values), array(found), len(values))
    run(widening(), 1, array(found), array(back), len(values))
    assert torch.equal(found, values.bfloat16())
    assert torch.equal(back, values.bfloat16().float())


def test_memory_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not strides \(2,\)"):
        array(torch.zeros(8)[::2])


def test_where_no_cache_can_be_written_code_stays_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.cfunc

    def without(*words: Any, cache: bool = False, **more: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'loop': no locator available for file 'x'")
        return real(*words, **more)

    monkeypatch.setattr(module, "cfunc", without)
    seen = np.zeros(3, dtype=np.int64)
    run(counting(), 2, seen, 3)
    assert seen.tolist() == [1, 2, 0]
