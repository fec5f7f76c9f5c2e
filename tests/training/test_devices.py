"""Where to compute, and in which precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tumorlens.core.errors import ConfigError
from tumorlens.training import devices


def test_a_device_comes_with_a_reason() -> None:
    device, why = devices.choose_device("cpu")
    assert (device.type, "--device cpu" in why) == ("cpu", True)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="does not find a CUDA device"):
            devices.choose_device("cuda")


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_where_the_processor_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = dataclasses.replace(devices.BACKENDS["cpu"], has_bf16=lambda: native)
    monkeypatch.setitem(devices.BACKENDS, "cpu", cpu)
    found = {
        (wanted, begun): devices.choose_precision(wanted, torch.device("cpu"), begun)
        for wanted in ("auto", "fp32", "bf16") for begun in ("", "fp32", "bf16")
    }  # fmt: skip
    assert found["auto", ""][0] == (torch.bfloat16 if native else torch.float32)
    for begun in ("", "fp32", "bf16"):  # what is asked for holds, and prepare() refuses a run of the other
        assert found["fp32", begun] == (torch.float32, "requested with --precision fp32")
        assert found["bf16", begun][0] == torch.bfloat16
        assert ("SLOW" in found["bf16", begun][1]) != native
    assert found["auto", "fp32"] == (torch.float32, "the run began in it")
    assert found["auto", "bf16"][0] == torch.bfloat16


@pytest.mark.parametrize(("cores", "variable", "threads"), [(1, None, 1), (8, None, 2), (1, "2", 2)])
def test_pytorch_computes_on_the_cores_that_there_are(
    cores: int, variable: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads before; a container may have a share of one core, and OMP_NUM_THREADS may want them all the same."""
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (devices.limit_threads(), torch.get_num_threads()) == (threads, threads)
    finally:
        torch.set_num_threads(before)


def test_compute_is_resolved_from_options(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = dataclasses.replace(devices.BACKENDS["cpu"], title="a CUDA device", has_bf16=lambda: True)
    monkeypatch.setitem(devices.BACKENDS, "cuda", fake)
    on_cpu = {wanted: devices.resolve_compute("cpu", "fp32", wanted).convolutions for wanted in ("auto", "direct")}
    assert on_cpu == {"auto": "winograd", "direct": "direct"}
    compute = devices.resolve_compute("auto")
    assert (compute.device.type, compute.precision_name, compute.convolutions) == ("cuda", "bf16", "direct")
    assert "a CUDA device is available" in compute.device_reason
    record = devices.resolve_compute("cpu", "fp32").record()
    assert devices.resolve_compute("cpu", earlier=record).precision == torch.float32
    assert devices.resolve_compute("cuda", earlier=record).precision == torch.bfloat16  # of another device
