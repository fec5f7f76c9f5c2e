"""Activations kept on disk, and training on them: the same result as without, resumable, frozen parts untouched."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import network, part
from learning import rows as rows  # a fixture
from torchvision.models import ResNet

from tumorlens.core.errors import DataError, RunError
from tumorlens.data.index import ImageRecord
from tumorlens.readers.pixels import read_image
from tumorlens.training import features
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.features import InMemoryFeatures, extract_features
from tumorlens.training.fit import fit, predict_logits
from tumorlens.training.linear_probe import LBFGS_C, fit_linear_probe
from tumorlens.training.model import forward, normalise, set_trainable
from tumorlens.training.steps import TrainingData

CPU = torch.device("cpu")
EXACT = Compute(CPU, torch.float32, "winograd")
LAYER4 = Configuration("layer4", ("layer4", "fc"), learning_rate=1e-3, batch_size=16, max_epochs=2, patience=2)


def features_of(
    model: ResNet, boundary: str, rows: tuple[ImageRecord, ...], folder: Path, cache: Path
) -> features.CachedFeatures:
    return extract_features(model, [boundary], rows, folder, cache=cache, compute=EXACT)[0][boundary]


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


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """The frozen layers run anew for every batch, from the image files on."""

    boundary: str
    network: ResNet
    path_of: dict[str, Path]

    def rows(self, hashes: Sequence[str]) -> torch.Tensor:
        pixels = np.stack([read_image(self.path_of[h])[0] for h in hashes])
        with torch.no_grad():
            return forward(self.network, torch.from_numpy(pixels).permute(0, 3, 1, 2), "image", self.boundary)


def test_cached_and_recomputed_training_end_in_the_same_weights(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path
) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    start = network()
    cached = extract_features(start, ["layer3"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["layer3"]
    paths = {row.sha256: small_folder / row.path for row in rows}
    anew = Recomputed("layer3", features._folded(start, "layer3", CPU), paths)
    ends = []
    for source in (cached, anew):
        model = network()
        fit(model, LAYER4, TrainingData(source, training, validation), EXACT, seed=0)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        # Convolutions of other batch shapes may sum in another order: relative 1e-3 after 6 steps.
        assert torch.allclose(value, ends[1][key], rtol=1e-3, atol=1e-4), key


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


def test_frozen_parts_stay_bit_identical_and_learning_ones_change(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path
) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # From images, so that frozen BatchNorm runs in every step.
    source = extract_features(model, ["image"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["image"]
    history, _ = fit(model, LAYER4, TrainingData(source, part(rows, "train"), part(rows, "validation")), EXACT, seed=0)
    assert any(record["best"] for record in history)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith(("layer4.", "fc.")), key


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


def test_the_head_learns_and_stops_early(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    model = network()
    cached = extract_features(model, ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["avgpool"]
    training, validation = part(rows, "train"), part(rows, "validation")
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    quick = Configuration("initial", ("fc",), learning_rate=0.001, max_epochs=200, patience=5)
    history, stopped = fit(model, quick, TrainingData(source, training, validation), EXACT, seed=0)
    best = min(history, key=lambda r: r["validation_loss"])
    assert "early stopping" in stopped
    assert len(history) == best["epoch"] + 5
    assert [r["epoch"] for r in history if r["best"]][-1] == best["epoch"]
    # The model is left with the best epoch's weights, not the last one's.
    logits = predict_logits(model, source, validation.hashes, EXACT)
    loss = float(torch.nn.functional.cross_entropy(logits, validation.labels))
    assert loss == pytest.approx(best["validation_loss"], rel=1e-6)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_lbfgs_solves_the_head(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    model = network()
    cached = extract_features(model, ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["avgpool"]
    training, validation = part(rows, "train"), part(rows, "validation")
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    configuration = Configuration("initial_lbfgs", ("fc",), learning_rate=1e-3, head_solver="lbfgs")
    history, _ = fit_linear_probe(model, configuration, TrainingData(source, training, validation))
    best = min(history, key=lambda r: r["validation_loss"])
    oracle = LogisticRegression(C=best["c"], max_iter=20_000).fit(source.rows(training.hashes), training.labels)
    logits = predict_logits(model, source, validation.hashes, EXACT)
    wanted = oracle.predict_proba(source.rows(validation.hashes))
    assert np.allclose(torch.softmax(logits, 1), wanted, atol=1e-3)


@dataclasses.dataclass(frozen=True)
class Halved:
    """What a file in bf16 gives, where there are more images than are held in memory."""

    whole: InMemoryFeatures
    boundary: str = "avgpool"

    def rows(self, hashes: Sequence[str]) -> torch.Tensor:
        return self.whole.rows(hashes).bfloat16()


def test_lbfgs_takes_what_is_kept_in_bf16(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    model, training, validation = network(), part(rows, "train"), part(rows, "validation")
    cached = extract_features(model, ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["avgpool"]
    source = Halved(InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU))
    configuration = Configuration("initial_lbfgs", ("fc",), learning_rate=1e-3, head_solver="lbfgs")
    history, _ = fit_linear_probe(model, configuration, TrainingData(source, training, validation))
    assert min(record["validation_loss"] for record in history) < np.log(4)


def test_resuming_ends_where_an_uninterrupted_run_does(
    rows: tuple[ImageRecord, ...],
    small_folder: Path,
    small_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    source = extract_features(network(), ["layer3"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["layer3"]
    configuration = dataclasses.replace(LAYER4, max_epochs=3, patience=3)
    whole = network()
    history, _ = fit(whole, configuration, TrainingData(source, training, validation), EXACT, seed=0)

    def stop_after_two(record: dict[str, object]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    last = tmp_path / "last.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(),
            configuration,
            TrainingData(source, training, validation),
            EXACT,
            seed=0,
            last=last,
            on_epoch=stop_after_two,
        )
    seen: list[int] = []
    resumed = network()
    again, _ = fit(
        resumed, configuration, TrainingData(source, training, validation), EXACT, seed=0,
        last=last, on_epoch=lambda r: seen.append(r["epoch"]),
    )  # fmt: skip
    assert seen == [1, 2, 3]
    assert "resuming after epoch 2" in capsys.readouterr().err
    for a, b in zip(history, again, strict=True):
        assert {k: v for k, v in a.items() if k not in ("seconds", "images_per_s")} == {
            k: v for k, v in b.items() if k not in ("seconds", "images_per_s")
        }
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_state_that_cannot_be_written_ends_the_training(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path, tmp_path: Path
) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    cached = extract_features(network(), ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0][
        "avgpool"
    ]
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    (tmp_path / "file").touch()
    epochs: list[int] = []
    for most in (4, 1):  # in the middle, and where no epoch follows
        configuration = Configuration("initial", ("fc",), learning_rate=0.01, max_epochs=most, patience=most)
        epochs.clear()
        with pytest.raises(RunError, match=r"last\.pt"):
            fit(
                network(), configuration, TrainingData(source, training, validation), EXACT, seed=0,
                last=tmp_path / "file" / "last.pt", on_epoch=lambda r: epochs.append(r["epoch"]),
            )  # fmt: skip
        assert epochs == [1]


def test_a_damaged_state_starts_anew_and_a_foreign_one_is_kept(
    rows: tuple[ImageRecord, ...],
    small_folder: Path,
    small_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    cached = extract_features(network(), ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0][
        "avgpool"
    ]
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    configuration = Configuration("initial", ("fc",), learning_rate=0.01, max_epochs=2)
    last = tmp_path / "last.pt"
    last.write_bytes(b"no state")
    fit(network(), configuration, TrainingData(source, training, validation), EXACT, seed=0, last=last)
    assert "damaged" in capsys.readouterr().err
    before = last.read_bytes()
    with pytest.raises(RunError, match="unfinished training of initial with other values"):
        fit(network(), configuration, TrainingData(source, training, validation), EXACT, seed=1, last=last)
    assert last.read_bytes() == before  # hours may lie in it


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


def test_a_diverging_loss_is_an_error(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    cached = extract_features(network(), ["avgpool"], rows, small_folder, cache=small_cache, compute=EXACT)[0][
        "avgpool"
    ]
    source = InMemoryFeatures.load(cached, training.hashes + validation.hashes, CPU)
    wild = Configuration("wild", ("fc",), learning_rate=1e38, optimizer="sgd", max_epochs=3)
    with pytest.raises(RunError, match="diverged"):
        fit(network(), wild, TrainingData(source, training, validation), EXACT, seed=0)


def test_the_last_batch_is_never_a_single_image(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path
) -> None:
    training, validation = part(rows, "train"), part(rows, "validation")
    assert len(training) == 27
    source = extract_features(network(), ["layer3"], rows, small_folder, cache=small_cache, compute=EXACT)[0]["layer3"]
    sizes: list[int] = []

    @dataclasses.dataclass
    class Counting:
        boundary: str = "layer3"

        def rows(self, hashes: list[str]) -> torch.Tensor:
            sizes.append(len(hashes))
            return source.rows(hashes)

    odd = dataclasses.replace(LAYER4, batch_size=13, max_epochs=1)  # 27 = 13 + 13 + 1
    fit(network(), odd, TrainingData(Counting(), training, validation), EXACT, seed=0)
    assert sizes[:2] == [13, 14]


def test_frozen_layers_are_in_eval_mode_while_others_train() -> None:
    model = network()
    set_trainable(model, ("layer4", "fc"), training=True)
    assert not model.layer3.training
    assert not model.bn1.training
    assert model.layer4[0].bn1.training
    assert not any(p.requires_grad for p in model.layer3.parameters())
    assert json.dumps(LBFGS_C)  # plain numbers, as they stand in history.jsonl
