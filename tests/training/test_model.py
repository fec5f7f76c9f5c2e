"""The network: weights that are what they say, freezing, and the way from boundary to boundary."""

from __future__ import annotations

import os
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from tumorlens.core.errors import ConfigError, FetchError, RunError, WeightsError
from tumorlens.core.files import user_cache
from tumorlens.training import model as rooms
from tumorlens.training import weights as weight_files
from tumorlens.training.configurations import BUILT_IN, Configuration


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 state dict stored in half precision."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.manual_seed(1)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in resnet18().state_dict().items()}, path)
    return path


def test_a_named_file_is_used_up_to_the_pooling(weights_file: Path) -> None:
    weights = weight_files.find_weights(str(weights_file))
    assert (weights.official, weights.kind, len(weights.sha256)) == (False, "file", 64)
    assert "resnet18.pt" in weights.note
    model = rooms.build_model(weights, 4, seed=0)
    stored = torch.load(weights_file, weights_only=True)
    assert torch.equal(model.layer4[1].conv2.weight, stored["layer4.1.conv2.weight"].float())
    assert model.fc.out_features == 4


def test_the_head_depends_on_the_seed_alone(weights_file: Path) -> None:
    weights = weight_files.find_weights(str(weights_file))
    before = torch.random.get_rng_state()
    first, again, other = (rooms.build_model(weights, 4, seed=s).fc.weight for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil-was-run",)


def test_wrong_weights_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = resnet18().state_dict()
    cases: dict[str, tuple[object, str]] = {
        "shape": ({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1.weight has shape \[64, 1, 7, 7\]"),
        "missing": ({k: v for k, v in state.items() if not k.startswith("layer4")}, "lacks .*layer4"),
        "extra": ({**state, "layer5.weight": torch.zeros(1)}, "layer5.weight"),
        "list": ([1, 2], "holds a list"),
        "nan": ({**state, "bn1.bias": torch.full((64,), float("nan"))}, "bn1.bias holds NaN"),
        "other": ({**state, "bn1.bias": "text"}, "bn1.bias has shape str"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=message) as caught:
            weight_files.find_weights(str(tmp_path / name))
        assert caught.value.cure
    (tmp_path / "pickle").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "zipped")
    for name in ("pickle", "zipped"):
        with pytest.raises(WeightsError, match="not a plain state dict"):
            weight_files.find_weights(str(tmp_path / name))
    assert not (tmp_path / "evil-was-run").exists()
    (tmp_path / "garbage").write_bytes(os.urandom(1000))
    with pytest.raises(WeightsError):
        weight_files.find_weights(str(tmp_path / "garbage"))
    with pytest.raises(WeightsError, match="is no file"):
        weight_files.find_weights(str(tmp_path / "absent"))


def test_weights_that_cannot_be_had_are_an_error_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FetchError, match="Name or service not known") as caught:
        weight_files.find_weights("imagenet")
    assert "--weights FILE" in caught.value.cure
    assert ResNet18_Weights.IMAGENET1K_V1.url in caught.value.what


def test_a_download_with_a_wrong_hash_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    served = tmp_path / "served"
    torch.save(resnet18().state_dict(), served)
    real = torch.hub.download_url_to_file

    def local(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        real(served.as_uri(), dst, hash_prefix, progress)

    monkeypatch.setattr(torch.hub, "download_url_to_file", local)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FetchError, match="invalid hash"):
        weight_files.find_weights("imagenet")
    assert not (tmp_path / "hub" / "checkpoints" / name).exists()


def test_another_file_in_the_official_ones_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir()
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(WeightsError, match="not torchvision's file") as caught:
        weight_files.find_weights("imagenet")
    assert "Delete it" in caught.value.cure


@pytest.mark.case(23)
@pytest.mark.parametrize("xdg", ["", "relative"])
def test_weights_go_to_the_users_cache_if_a_variable_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str
) -> None:
    asked = []

    def offline(url: str, dst: str, *_: object, **__: object) -> None:
        asked.append(Path(dst))
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FetchError):
        weight_files.find_weights("imagenet")
    assert [path.parent for path in asked] == [user_cache("") / "torch" / "hub" / "checkpoints"]
    assert asked[0].is_relative_to(tmp_path)
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ConfigError, match="no home folder") as caught:
        weight_files.find_weights("imagenet")
    assert "TORCH_HOME" in caught.value.cure


def test_random_weights_say_so() -> None:
    weights = weight_files.find_weights("none")
    assert weights.kind == "none"
    assert "RANDOM" in weights.note


@pytest.mark.parametrize("stop", ["stem", "layer1", "layer2", "layer3", "avgpool", "logits"])
def test_forward_in_two_steps_is_torchvisions_forward(stop: str) -> None:
    model = rooms.build_model(weight_files.find_weights("none"), 4, seed=0)
    x = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model((x.float() / 255 - 0.5) / 0.5)
        at = rooms.forward(model, x, "image", stop)
        ours = at if stop == "logits" else rooms.forward(model, at, stop)
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("learns", [("fc",), ("layer3", "layer4", "fc"), ("layer2", "fc"), ("all",)])
def test_frozen_means_frozen(learns: tuple[str, ...]) -> None:
    configuration = Configuration("x", learns, learning_rate=0.1)
    model = rooms.build_model(weight_files.find_weights("none"), 4, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rooms.set_trainable(model, configuration.learns, training=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.nn.functional.cross_entropy(rooms.forward(model, x), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    learning = tuple("conv1." if s == "stem" else f"{s}." for s in configuration.learns)
    learning += ("bn1.",) if "stem" in configuration.learns else ()
    for key, value in model.state_dict().items():
        same = torch.equal(value, before[key])
        assert same != key.startswith(learning), key


def test_learned_parameters_of_the_published_pair() -> None:
    model = rooms.build_model(weight_files.find_weights("none"), 4, seed=0)
    assert rooms.count_parameters(model, BUILT_IN["initial"]) == (2_052, 11_178_564)
    assert rooms.count_parameters(model, BUILT_IN["finetuned"]) == (10_495_492, 11_178_564)


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_a_clear_error(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "best.pth"
    path.write_bytes(b"an older one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            weight_files.save_checkpoint(resnet18(num_classes=4), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]
