"""Training on cached features: the same result as without, resumable, frozen parts untouched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import CPU, EXACT, network, part
from learning import rows as rows  # a fixture
from torchvision.models import ResNet

from tumorlens.core.errors import RunError
from tumorlens.data.index import ImageRecord
from tumorlens.readers.pixels import read_image
from tumorlens.training import features
from tumorlens.training.configurations import Configuration
from tumorlens.training.features import InMemoryFeatures, extract_features
from tumorlens.training.fit import fit, predict_logits
from tumorlens.training.linear_probe import LBFGS_C
from tumorlens.training.model import forward, set_trainable
from tumorlens.training.steps import TrainingData

LAYER4 = Configuration("layer4", ("layer4", "fc"), learning_rate=1e-3, batch_size=16, max_epochs=2, patience=2)


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """The frozen layers run again for every batch, from the image files on."""

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
    recomputed = Recomputed("layer3", features._folded(start, "layer3", CPU), paths)
    ends = []
    for source in (cached, recomputed):
        model = network()
        fit(model, LAYER4, TrainingData(source, training, validation), EXACT, seed=0)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        # Convolutions of other batch shapes may sum in another order: relative 1e-3 after 6 steps.
        assert torch.allclose(value, ends[1][key], rtol=1e-3, atol=1e-4), key


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


def test_a_damaged_state_starts_again_and_a_foreign_one_is_kept(
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
