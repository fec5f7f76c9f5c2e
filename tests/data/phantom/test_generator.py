"""The generated slices: repeatable, complete, and without shortcuts."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thumbnails import unit_thumbnails

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.data.fetch import fetch
from tumorlens.data.phantom import generator as phantom
from tumorlens.data.phantom.generator import (
    LABELS,
    VIEWS,
    PhantomSlice,
    make_slice,
    write_dataset,
)

N = 160  # slices of `slices`


@pytest.fixture(scope="module")
def slices() -> list[PhantomSlice]:
    """Slices 0 of 160 patients, the classes in turn."""
    return [make_slice(1, LABELS[i % 4], i, 0) for i in range(N)]


def digest(made: PhantomSlice) -> str:
    return hashlib.sha256(made.pixels.tobytes() + made.mask.tobytes()).hexdigest()


def best_guess(values: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the best rule "class of the bin" with 5 quantile bins: what one number gives away."""
    bins = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values, side="right")
    return sum(max((labels[bins == b] == label).sum() for label in LABELS) for b in np.unique(bins)) / len(labels)


def jpeg_bytes(pixels: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return len(file.getvalue())


def test_a_slice_depends_on_its_arguments_alone() -> None:
    alone = digest(make_slice(3, "glioma", 5, 2))
    for patient in range(12):  # enough to turn over every cache
        make_slice(3, "notumor", patient, 0)
    assert digest(make_slice(3, "glioma", 5, 2)) == alone
    others = {digest(make_slice(*at)) for at in [(4, "glioma", 5, 2), (3, "glioma", 6, 2), (3, "glioma", 5, 1)]}
    assert len(others | {alone}) == 4


@pytest.mark.parametrize("label", LABELS)
def test_what_a_slice_is_like(label: str) -> None:
    made = make_slice(0, label, 7, 1)
    assert made.pixels.dtype == np.uint8
    assert made.mask.dtype == bool
    assert made.pixels.shape == made.mask.shape
    assert 208 <= min(made.pixels.shape) <= max(made.pixels.shape) <= 256
    assert made.label == label
    assert made.view in VIEWS


def test_all_views_occur_in_all_classes(slices: list[PhantomSlice]) -> None:
    assert {(made.label, made.view) for made in slices} == set(itertools.product(LABELS, VIEWS))


def test_no_single_number_tells_the_class(slices: list[PhantomSlice]) -> None:
    labels = np.array([made.label for made in slices])
    numbers = {
        "mean": [made.pixels.mean() for made in slices],
        "brightest": [np.quantile(made.pixels, 0.999) for made in slices],
        "spread": [made.pixels.std() for made in slices],
        "noise": [made.pixels[12:20, 12:20].std() for made in slices],
        "border": [(made.pixels == 0).mean() for made in slices],
        "file size": [jpeg_bytes(made.pixels) for made in slices],
        "pixels": [made.pixels.size for made in slices],
        "aspect": [made.pixels.shape[0] / made.pixels.shape[1] for made in slices],
        "view": [VIEWS.index(made.view) for made in slices],
    }
    # Chance is 0.25; the best of some dozen rules fitted to 160 slices comes to about 0.35.
    alone = {name: best_guess(np.array(values, float), labels) for name, values in numbers.items()}
    assert max(alone.values()) < 0.45, alone
    # The rule itself can see something: a number that does follow the class.
    assert best_guess(np.array([made.mask.sum() for made in slices], float), labels) > 0.45


def test_the_nearest_thumbnail_does_not_solve_it(slices: list[PhantomSlice]) -> None:
    flat = unit_thumbnails([made.pixels for made in slices])
    labels = np.array([made.label for made in slices])
    near = flat @ flat.T
    np.fill_diagonal(near, -1)
    assert (labels[near.argmax(1)] == labels).mean() < 0.90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, "cyst", 0, 0), "cyst"), ((-1, "glioma", 0, 0), "seed"), ((0, "glioma", -2, 0), "patient")],
)
def test_arguments_out_of_range(arguments: tuple[int, str, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_slice(*arguments)
    assert error.value.cure


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_data_set(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", n_train=24, n_test=8, seed=5)
    found = files(folder)
    images = sorted(name for name in found if name.endswith(".jpg"))
    assert len(images) == 32
    assert found.keys() - set(images) == {f"masks/{n[:-4]}.png" for n in images} | {"phantom.json"}
    per_class = {(part, label): 0 for part in ("Training", "Testing") for label in LABELS}
    patients: dict[str, set[str]] = {"Training": set(), "Testing": set()}
    for name in images:
        part, label, file = name.split("/")
        per_class[part, label] += 1
        tag, patient, number = file.removesuffix(".jpg").split("_")
        assert tag == f"{part[:2]}-{label[:2]}"
        patients[part].add(patient)
        made = make_slice(5, label, int(patient[1:]), int(number[1:]))
        with Image.open(folder / name) as image, Image.open(folder / f"masks/{name[:-4]}.png") as mask:
            assert image.mode == "L"
            assert np.abs(np.asarray(image, int) - made.pixels).mean() < 4
            assert np.array_equal(np.asarray(mask) > 0, made.mask)
    assert set(per_class.values()) == {6, 2}
    assert not patients["Training"] & patients["Testing"]
    assert list(tmp_path.iterdir()) == [folder]

    more = files(write_dataset(tmp_path / "more", n_train=28, n_test=8, seed=5))
    assert {name: more.get(name) for name in images} == {name: found[name] for name in images}


def test_a_data_set_repeats_and_records_what_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = files(write_dataset(tmp_path / "first", n_train=4, n_test=4))
    assert files(write_dataset(tmp_path / "again", n_train=4, n_test=4)) == first
    other = files(write_dataset(tmp_path / "other", n_train=4, n_test=8))
    assert len(other) == 25
    monkeypatch.setattr(phantom, "GENERATOR", phantom.GENERATOR + 1)
    later = files(write_dataset(tmp_path / "later", n_train=4, n_test=8))
    assert {name for name in later if later[name] != other[name]} == {"phantom.json"}
    assert json.loads(later["phantom.json"]) == {
        "generator": phantom.GENERATOR, "seed": 0, "n_train": 4, "n_test": 8
    }  # fmt: skip


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_stopped_half_way_nothing_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    monkeypatch.setattr(phantom.write_dataset, "__kwdefaults__", {"n_train": 8, "n_test": 8, "seed": 0})
    real, count = phantom._write_pair, itertools.count()

    def failing(root: Path, path: str, made: PhantomSlice) -> None:
        real(root, path, made)
        if next(count) == 5:
            raise stop

    monkeypatch.setattr(phantom, "_write_pair", failing)
    with pytest.raises(RunError if isinstance(stop, OSError) else KeyboardInterrupt):
        fetch("phantom", cache=tmp_path)
    assert files(tmp_path).keys() == {"phantom/.lock"}
    assert len(files(fetch("phantom", cache=tmp_path).root)) == 33  # not six or fewer: what was begun is removed


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty") as error:
        write_dataset(tmp_path, n_train=4, n_test=4)
    assert error.value.cure
    assert files(tmp_path) == {"thesis.tex": b"years of work"}


def test_an_empty_folder_is_filled_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(files(write_dataset(tmp_path / "empty", n_train=4, n_test=4))) == 17
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        write_dataset(tmp_path / "file", n_train=4, n_test=4)
