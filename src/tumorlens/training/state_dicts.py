"""Read the tensors of a ResNet18 from a file, without running any code from it, and say what else the file is."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import resnet18

from tumorlens.core.errors import WeightsError
from tumorlens.core.text import listed

_CURE = "Name a state dict of torchvision's resnet18: torch.save(model.state_dict(), path)."
_MARK = "layer1.0.conv1.weight"  # a tensor that every ResNet has, and few other networks
_HEADS = ("fc.", "head.", "classifier.", "linear.", "last_linear.")  # names of last layers, which are replaced anyway
_DEPTH = 3  # dictionaries within dictionaries that are searched


def read_state_dict(path: Path, classes: int = 1000) -> dict[str, Tensor]:
    """Read a ResNet18 state dict, head included.

    Parameters
    ----------
    path
        A `.pth`/`.pt` state dict with torchvision's names and floating-point tensors of any precision.
    classes
        Number of rows that `fc.weight` must have.

    Returns
    -------
    dict
        float32 tensors (int64 for BatchNorm's counters) on the CPU.

    Raises
    ------
    WeightsError
        The file contains code, other keys, other shapes, or NaN or infinity.
    """
    return _checked(path, _load(path), classes, tuple(_wanted(classes)))


def read_backbone(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read all of a ResNet18 but its head, from a checkpoint of any make.

    The state dict may lie within other dictionaries (such as under `state_dict` or `model`), its names may have a
    prefix (such as `module.` or `backbone.`), and its head may have any size or be missing.

    Returns
    -------
    tensors
        As from `read_state_dict`, without `fc`.
    note
        How they were found, such as "taken from 'state_dict', without the prefix 'module.'"; empty for a plain state
        dict.

    Raises
    ------
    WeightsError
        The file holds no ResNet18 or several, or it contains code, NaN or infinity.
    """
    loaded = _load(path)
    found = list(_candidates(loaded, ()))
    if not found:
        first = f" Its first keys are {listed([repr(key) for key in list(loaded)[:3]])}." if loaded else ""
        raise WeightsError(f"{path} holds no ResNet18: no tensor is called {_MARK}.{first}", cure=_CURE)
    if len(found) > 1:
        places = listed([repr(".".join((*where, prefix)).strip(".")) for _, where, prefix in found])
        raise WeightsError(
            f"{path} holds {len(found)} networks ({places}).",
            cure="Save the state dict of the one you mean: torch.save(state_dict, path).",
        )
    state, where, prefix = found[0]
    own = {str(key).removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    wanted = tuple(key for key in _wanted(1000) if not key.startswith("fc."))
    body = {key: value for key, value in own.items() if not key.startswith(_HEADS)}
    if larger := [name for key, name in _LARGER.items() if key in body]:
        raise WeightsError(f"{path} holds {larger[0]}, not a ResNet18.", cure=_CURE)
    note = [f"taken from {'.'.join(where)!r}"] if where else []
    note += [f"without the prefix {prefix!r}"] if prefix else []
    return _checked(path, body, 1000, wanted), ", ".join(note)


_LARGER = {"layer1.0.conv3.weight": "a ResNet50 or a deeper one", "layer1.2.conv1.weight": "a ResNet34"}


def _candidates(loaded: object, where: tuple[str, ...]) -> Iterator[tuple[Mapping[Any, Any], tuple[str, ...], str]]:
    """Each network in nested dictionaries: the dictionary with its tensors, the keys that lead there, its prefix."""
    if not isinstance(loaded, Mapping):
        return
    for key, value in loaded.items():
        if isinstance(value, Tensor) and str(key).endswith(_MARK):
            yield loaded, where, str(key).removesuffix(_MARK)
        elif len(where) < _DEPTH:
            yield from _candidates(value, (*where, str(key)))


def _load(path: Path) -> Mapping[Any, Any]:
    """The tensors and plain Python values that a PyTorch file holds."""
    if kind := _other_kind(path):
        raise WeightsError(f"{path} is {kind[0]}, not a state dict.", cure=kind[1])
    try:
        with warnings.catch_warnings():
            # torch warns about other pickle protocols; files that cannot be read raise an error below anyway.
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            if file.read(1) not in (b"P", b"\x80"):  # neither a zip nor a pickle
                raise WeightsError(
                    f"{path} is no PyTorch file (ONNX and TensorFlow are not read).", cure=_CURE
                ) from None
        raise WeightsError(
            f"{path} is not a plain state dict: it holds Python objects, such as a whole model, which could run code. "
            "It was not loaded.",
            cure=_CURE,
        ) from None
    except Exception as error:  # torch.load raises many kinds on damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(f"{path} cannot be read as weights ({reason}).", cure=_CURE) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict.", cure=_CURE)
    return loaded


_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf'\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")  # first bytes


def _other_kind(path: Path) -> tuple[str, str] | None:
    """What a file is that often lies where weights should, and what to do; None if it may be a PyTorch file."""
    with path.open("rb") as file:
        start = file.read(512)
    again = "Download the weights again, by a link to the file itself."
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file", again
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which stands for the file", "Fetch the file itself: git lfs pull."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, such as a login or an error page", again
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        convert = "torch.save(safetensors.torch.load_file('in.safetensors'), 'out.pth')"
        return "a safetensors file", f"Convert it: {convert}, and name out.pth."
    if start[257:262] == b"ustar" or start.startswith(_PACKED):
        return "an archive or a compressed file", "Unpack it, and name the file with the weights."
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras writes it", _CURE
    if start.startswith(b"\x93NUMPY"):
        return "a NumPy array", _CURE
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return (
                "a TorchScript file",
                "Save its state dict: torch.save(torch.jit.load('in.pt').state_dict(), 'out.pth').",
            )
        if any(name.endswith(".npy") for name in names):
            return "a NumPy archive", _CURE
        if not any(name.endswith("/data.pkl") for name in names):
            return "a zip archive", "Unpack it, and name the file with the weights."
    elif start.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "a text file", again
    return None


def _wanted(classes: int) -> dict[str, Tensor]:
    """The tensors of torchvision's ResNet18, without values."""
    with torch.device("meta"):
        found: dict[str, Tensor] = resnet18(num_classes=classes).state_dict()
    return found


def _checked(path: Path, state: Mapping[Any, Any], classes: int, keys: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors under `keys`, in float32, if there are no others and all have a ResNet18's shapes."""
    wanted = _wanted(classes)
    counters = {key for key in keys if key.endswith("num_batches_tracked")}  # missing in old files
    if missing := [key for key in keys if key not in state and key not in counters]:
        raise WeightsError(f"{path} lacks {len(missing)} of ResNet18's tensors, first {missing[0]!r}.", cure=_CURE)
    if extra := [str(key) for key in state if key not in keys]:
        raise WeightsError(f"{path} has {len(extra)} tensors that ResNet18 lacks, first {extra[0]!r}.", cure=_CURE)
    found: dict[str, Tensor] = {}
    for key in keys:
        value, like = state.get(key, torch.zeros((), dtype=torch.int64)), wanted[key]
        if not isinstance(value, Tensor) or value.shape != like.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise WeightsError(f"{path}: {key} has shape {shape}, not {list(like.shape)}.", cure=_CURE)
        found[key] = value.to(like.dtype)
        if not bool(torch.isfinite(found[key]).all()):
            raise WeightsError(f"{path}: {key} holds NaN or infinity.", cure="Use an undamaged file.")
    return found
