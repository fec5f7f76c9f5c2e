"""Weights from checkpoints of any make, and files that are no weights."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50

from tumorlens.core.errors import WeightsError
from tumorlens.training.model import build_model
from tumorlens.training.state_dicts import read_backbone
from tumorlens.training.weights import find_weights

pytestmark = pytest.mark.case(13)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return resnet18(num_classes=4).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda s: s, ""),  # a head of four classes, as `tumorlens train` writes it
        (lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")}, ""),
        (lambda s: {k.replace("fc.", "fc.0."): v for k, v in s.items()}, ""),
        (lambda s: {"state_dict": s, "epoch": 3}, "taken from 'state_dict'"),
        (lambda s: {"checkpoint": {"model": s, "optimizer": {"state": {}}}}, "taken from 'checkpoint.model'"),
        (lambda s: prefixed(s, "module."), "without the prefix 'module.'"),
        (lambda s: prefixed(s, "_orig_mod.") | {"loss.weight": torch.ones(4)}, "without the prefix '_orig_mod.'"),
        (
            lambda s: {"model_state_dict": prefixed(s, "module.encoder."), "epoch": 1},
            "taken from 'model_state_dict', without the prefix 'module.encoder.'",
        ),
    ],
)
def test_checkpoints_of_any_make(
    tmp_path: Path, state: State, make: Callable[[State], object], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.pth"
    torch.save(make(state), path)
    weights = find_weights(str(path))
    assert note in weights.note
    assert (f"Weights of some.pth: {note}." in capsys.readouterr().err) == bool(note)
    found = build_model(weights, 3, seed=0).state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items() if not key.startswith("fc."))
    assert found["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize(
    ("content", "what", "cure"),
    [
        (b"", "an empty file", "Download"),
        (b"\n <!DOCTYPE html><title>Log in</title>", "a web page", "Download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46830571\n",
            "a Git LFS pointer",
            "lfs pull",
        ),
        (b"404: Not Found\n", "a text file", "Download"),
        ((40).to_bytes(8, "little") + b'{"conv1.weight":{"dtype":"F32"}}', "a safetensors file", "load_file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file", "torch.save"),
        (b"\x1f\x8b\x08" + bytes(600), "a compressed file", "Unpack"),
        (b"weights.pth" + bytes(246) + b"ustar\x0000" + bytes(600), "an archive", "Unpack"),
        (b"\x93NUMPY\x01\x00" + bytes(600), "a NumPy array", "torch.save"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:" + bytes(600), r"no PyTorch file \(ONNX", "torch.save"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes, what: str, cure: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=what) as caught:
        find_weights(str(tmp_path / "w.pth"))
    assert cure in str(caught.value.cure)


def test_other_networks_and_archives_are_named(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"

    def refused(content: object = None) -> str:
        if content is not None:
            torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            read_backbone(path)
        return caught.value.what

    with torch.device("meta"):
        deeper, deep = resnet50(), resnet34()
    assert "holds a ResNet50 or a deeper one" in refused({k: torch.zeros(1) for k in deeper.state_dict()})
    assert "holds a ResNet34" in refused({k: torch.zeros(1) for k in deep.state_dict()})
    assert "no tensor is called layer1.0.conv1.weight. Its first keys are 'a' and 'b'." in refused({"a": 1, "b": 2})
    assert "holds 2 networks ('ema' and 'model')" in refused({"ema": state, "model": state})
    assert "it holds Python objects, such as a whole model" in refused(nn.Linear(1, 1))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", b"x")
    assert "is a zip archive" in refused()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conv1.weight.npy", b"x")
    assert "is a NumPy archive" in refused()
    with zipfile.ZipFile(path, "w") as archive:  # the files of a TorchScript archive that tell it apart
        archive.writestr("net/data.pkl", b"x")
        archive.writestr("net/constants.pkl", b"x")
    assert "is a TorchScript file" in refused()
