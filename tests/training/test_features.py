"""Activations kept on disk: computed once, never stale, resumable."""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import CPU, EXACT, network
from learning import rows as rows  # a fixture
from torchvision.models import ResNet

from tumorlens.core.errors import DataError
from tumorlens.data.index import ImageRecord
from tumorlens.training import features
from tumorlens.training.devices import Compute
from tumorlens.training.features import InMemoryFeatures, extract_features
from tumorlens.training.model import forward, normalise


def test_one_pass_serves_every_boundary(rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path) -> None:
    model = network()
    first, computed = extract_features(model, ["layer2", "avgpool"], rows, small_folder, cache=tmp_path, compute=EXACT)
    assert computed == len({row.sha256 for row in rows})
    again, computed = extract_features(model, ["layer2", "avgpool"], rows, small_folder, cache=tmp_path, compute=EXACT)
    assert computed == 0
    hashes = [row.sha256 for row in rows][:5]
    for boundary in ("layer2", "avgpool"):
        assert torch.equal(first[boundary].rows(hashes), again[boundary].rows(hashes))
    assert first["layer2"].rows(hashes).shape == (5, 128, 28, 28)
    with torch.inference_mode():
        onward = forward(model, first["layer2"].rows(hashes), "layer2", "avgpool")
    assert torch.allclose(onward, first["avgpool"].rows(hashes), rtol=1e-4, atol=1e-5)


def test_stale_caches_are_never_read(rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path) -> None:
    model = network()
    args = (["layer1"], rows[:4], small_folder)
    assert extract_features(model, *args, cache=tmp_path, compute=EXACT)[1] == 4
    with torch.no_grad():
        model.layer2[0].conv1.weight.add_(1)  # after the boundary: the cache still holds
    assert extract_features(model, *args, cache=tmp_path, compute=EXACT)[1] == 0
    with torch.no_grad():
        model.layer1[0].bn1.running_mean.add_(0.1)  # a statistic counts as much as a weight
    assert extract_features(model, *args, cache=tmp_path, compute=EXACT)[1] == 4
    assert extract_features(model, ["layer1"], rows[1:5], small_folder, cache=tmp_path, compute=EXACT)[1] == 4
    assert extract_features(model, *args, cache=tmp_path, compute=Compute(CPU, torch.bfloat16))[1] == 4
    for file in (tmp_path / "features").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1])
    assert extract_features(model, *args, cache=tmp_path, compute=EXACT)[1] == 4


def test_an_interrupted_pass_goes_on(
    rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    whole, n = extract_features(
        model, ["layer2"], rows, small_folder, cache=tmp_path / "a", compute=EXACT, batch_size=4
    )
    real, calls = features._forward_all, []

    def stop_in_the_middle(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(features, "_SAVE_EVERY", 2)
    monkeypatch.setattr(features, "_forward_all", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        extract_features(model, ["layer2"], rows, small_folder, cache=tmp_path / "b", compute=EXACT, batch_size=4)
    monkeypatch.setattr(features, "_forward_all", real)
    rest, computed = extract_features(
        model, ["layer2"], rows, small_folder, cache=tmp_path / "b", compute=EXACT, batch_size=4
    )
    assert computed == n - 8
    hashes = [row.sha256 for row in rows]
    assert torch.equal(whole["layer2"].rows(hashes), rest["layer2"].rows(hashes))


def test_out_of_memory_halves_the_batch(
    rows: tuple[ImageRecord, ...],
    small_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = network()
    whole, _ = extract_features(model, ["avgpool"], rows, small_folder, cache=tmp_path / "a", compute=EXACT)
    real = features._forward_all

    def small_memory(model: ResNet, pixels: np.ndarray, *args: object) -> object:
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, pixels, *args)

    monkeypatch.setattr(features, "_forward_all", small_memory)
    found, computed = extract_features(
        model, ["avgpool"], rows, small_folder, cache=tmp_path / "b", compute=EXACT, batch_size=16
    )
    assert computed == len({r.sha256 for r in rows})
    assert "going on with 4" in capsys.readouterr().err
    hashes = [row.sha256 for row in rows]
    assert torch.allclose(found["avgpool"].rows(hashes), whole["avgpool"].rows(hashes), rtol=1e-4, atol=1e-5)

    def broken(*args: object) -> object:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(features, "_forward_all", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        extract_features(model, ["avgpool"], rows, small_folder, cache=tmp_path / "c", compute=EXACT)


def test_an_image_that_vanished_is_named(rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path) -> None:
    gone = dataclasses.replace(rows[0], path="Training/glioma/gone.png", sha256="0" * 64)
    with pytest.raises(DataError, match=r"gone\.png was readable"):
        extract_features(network(), ["avgpool"], [gone], small_folder, cache=tmp_path, compute=EXACT)


def test_folding_batchnorm_keeps_the_function() -> None:
    model = network()
    for module in model.modules():  # statistics and weights as training leaves them, not as they start
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        for stop in ("stem", "layer1", "layer2", "layer3", "avgpool"):
            wanted = forward(exact, normalise(pixels).double(), "image", stop)
            folded = forward(features._folded(model, stop, CPU), pixels, "image", stop).double()
            plain = forward(model, pixels, "image", stop).double()
            assert (folded - wanted).abs().max() < 3 * (plain - wanted).abs().max(), stop
            assert (folded - wanted).abs().max() < 1e-4 * wanted.abs().max(), stop


@pytest.mark.parametrize("boundary", ["avgpool", "layer2"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_is_held_in_memory_is_what_the_file_holds(
    rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path, boundary: str, precision: torch.dtype
) -> None:
    cached = extract_features(
        network(), [boundary], rows[:6], small_folder, cache=tmp_path, compute=Compute(CPU, precision)
    )
    source = cached[0][boundary]
    hashes = [row.sha256 for row in rows[:6]]
    held = InMemoryFeatures.load(source, hashes + hashes[:2], CPU)
    assert len(held.values) == len(set(hashes))
    asked = [hashes[4], hashes[0], hashes[4]]
    found, wanted = held.rows(asked), source.rows(asked)
    assert found.dtype == (torch.float32 if boundary == "avgpool" else precision)
    assert found.stride() == wanted.stride()
    assert torch.equal(found, wanted.to(found.dtype))
    assert source.row_bytes == wanted[0].numel() * wanted.element_size()


def test_two_studies_do_not_write_one_cache_at_once(
    rows: tuple[ImageRecord, ...], small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits, and then finds what the first has computed."""
    computed: list[int] = []

    def one() -> None:
        computed.append(extract_features(network(), ["avgpool"], rows, small_folder, cache=tmp_path, compute=EXACT)[1])

    begun, go_on = threading.Event(), threading.Event()
    whole = features._compute

    def slowly(*args: Any) -> int:
        begun.set()
        go_on.wait(30)
        return whole(*args)

    monkeypatch.setattr(features, "_compute", slowly)
    first, second = threading.Thread(target=one), threading.Thread(target=one)
    first.start()
    assert begun.wait(30)
    second.start()
    second.join(0.5)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert sorted(computed) == [0, len({row.sha256 for row in rows})]
