"""Get a data set from `kaggle`, `phantom`, a zip or a folder, as an image folder of known layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tumorlens.core.errors import DataError
from tumorlens.core.files import expanded
from tumorlens.core.progress import log
from tumorlens.data.archives import cached_folder, extract_zip
from tumorlens.data.kaggle import download_v1
from tumorlens.readers.pixels import SUFFIXES

_TRAINING_NAMES = frozenset({"training", "train"})
_TESTING_NAMES = frozenset({"testing", "test"})
_MAX_FOLDERS = 50_000  # searched before giving up: the user may have named a whole disk
_LAYOUT = (
    "Name a folder or zip that holds Training/<class>/ and, if there is one, Testing/<class>/, with two or more "
    "classes; or a folder that directly holds one folder of images per class."
)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images with one subfolder per class."""

    root: Path
    """What paths in the index are relative to: the folder that holds Training and Testing."""
    training: Path
    """Holds the class folders."""
    testing: Path | None
    """None if test images must be split off Training."""
    source: str
    """Where it came from, as a phrase for the report."""
    classes: tuple[str, ...]
    """Names of the class folders of `training`, sorted."""
    generated: bool = False
    """Whether this package generated the images."""


def fetch(data: str, *, cache: Path, seed: int = 0, download: Callable[[], Path] = download_v1) -> ImageFolder:
    """Get a data set as an image folder.

    Parameters
    ----------
    data
        `kaggle` (version 1, pinned), `phantom` (generated slices), or the path of a zip or folder.
    cache
        Folder for extracted and generated images. Kaggle's go into kagglehub's own cache.
    seed
        Seed of generated slices.
    download
        Returns the folder of Kaggle's data set.

    Raises
    ------
    DataError
        The path does not exist, is damaged, or has no class folders.
    FetchError
        The download failed.
    RunError
        The cache cannot be written.
    MissingExtraError
        kagglehub is not installed.
    """
    if data == "kaggle":
        return find_image_folder(download(), source="Kaggle, masoudnickparvar/brain-tumor-mri-dataset, version 1")
    if data == "phantom":
        return find_image_folder(_phantom(cache, seed), source=f"generated, seed {seed}", generated=True)
    path = named_path(data)
    if path.is_file():
        folder = extract_zip(path, cache)
        return find_image_folder(folder, source=f"zip {path.name}, sha256 {folder.name}…")
    return find_image_folder(path, source=f"folder {path}")


def named_path(data: str) -> Path:
    """The file or folder that `--data` names if it is neither `kaggle` nor `phantom`.

    Raises
    ------
    DataError
        There is no such file or folder.
    """
    path = expanded(data)
    try:
        usable, there = path.is_file() or path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError) as error:  # a path that is too long, or holds a NUL
        raise DataError(f"--data {data!r} is not a usable path ({error}).", cure="Check the path.") from None
    if usable and data:
        return path
    raise DataError(
        f"--data {data!r} is {'neither a zip nor a folder' if there and data else 'not found'}.",
        cure="Use kaggle, phantom, or the path of a zip or folder.",
    )


def _phantom(cache: Path, seed: int) -> Path:
    from tumorlens.data.phantom.generator import GENERATOR, write_dataset

    # The generator's number is in the name: slices of an older generator are never used as this one's.
    return cached_folder(
        cache / "phantom" / f"v{GENERATOR}-seed{seed}",
        lambda folder: write_dataset(folder, seed=seed),
        lambda folder: (folder / "phantom.json").is_file(),
    )


def find_image_folder(root: Path, *, source: str, generated: bool = False) -> ImageFolder:
    """Find training and test images below a folder, and check that their classes agree.

    `Training/` (or `train`, in any case) nearest to the root counts, then a test folder beside it, else the
    nearest one elsewhere. Without a training folder, the nearest folder that directly holds two or more
    folders of images is used. Hidden folders are ignored; links to folders are followed once.

    Raises
    ------
    DataError
        No folder fits, two fit equally well, or classes are too few or do not agree.
    """
    training = _nearest(root, _TRAINING_NAMES)
    if training is None:
        return _class_folders_only(root, source)
    beside = _nearest(training.parent, _TESTING_NAMES, depth=1)
    testing = beside or _nearest(root, _TESTING_NAMES, avoid=training)
    classes = _classes_of(training)
    if testing is not None:
        in_testing = {label for label in _visible_folders(testing) if _holds_image(testing / label)}
        if not in_testing:
            raise DataError(
                f"{testing} holds no class folder with images.",
                cure="Fill it, or remove it: without a test folder, test images are split off Training.",
            )
        if unknown := sorted(in_testing - set(classes)):
            raise DataError(
                f"{testing} has the class {unknown[0]!r}, which {training} lacks (it has {', '.join(classes)}).",
                cure="Give both the same class folders; upper and lower case matter.",
            )
        if lacking := [label for label in classes if label not in in_testing]:
            log.warning(f"Note: {testing} has no images of {', '.join(lacking)}: nothing is measured there.")
    for top in (training, testing):
        if top is not None and (loose := sum(_is_image(e) for e in _entries(top) if not _is_folder(e))):
            log.warning(f"Note: {loose:,} image(s) directly in {top}, outside the class folders, are left out.")
    together = training.parent if beside or testing is None else root
    return ImageFolder(together, training, testing, source, classes, generated)


def _class_folders_only(root: Path, source: str) -> ImageFolder:
    if testing := _nearest(root, _TESTING_NAMES):
        raise DataError(f"{root} has a test folder ({testing}) but no training folder.", cure=_LAYOUT)
    single: Path | None = None
    for level in _levels(root):
        holding = {f: [name for name in _visible_folders(f) if _directly_holds_image(f / name)] for f in level}
        best = [folder for folder, labels in holding.items() if len(labels) >= 2]
        if len(best) > 1:
            raise _ambiguous(best, "folders of class folders")
        if best:
            return ImageFolder(best[0], best[0], None, source, _classes_of(best[0]))
        single = single or next((folder / labels[0] for folder, labels in holding.items() if labels), None)
    if single is not None:
        raise DataError(f"{root} has only one class folder: {single}.", cure=_LAYOUT)
    what = "images, but no class folders" if _holds_image(root) else "no images"
    raise DataError(f"{root} holds {what}.", cure=_LAYOUT)


def _classes_of(training: Path) -> tuple[str, ...]:
    labels = _visible_folders(training)
    if empty := [label for label in labels if not _holds_image(training / label)]:
        raise DataError(
            f"The class folder {training / empty[0]} holds no image.",
            cure=f"Add images ({', '.join(sorted(SUFFIXES))}), or remove the folder.",
        )
    if len(labels) < 2:
        have = f"only one class folder: {labels[0]!r}" if labels else "no class folder"
        raise DataError(f"{training} holds {have}.", cure=_LAYOUT)
    return tuple(labels)


def _nearest(root: Path, names: frozenset[str], *, depth: int | None = None, avoid: Path | None = None) -> Path | None:
    """The folder of one of these names that is nearest to `root`; an error if two are equally near."""
    for level in islice(_levels(root, avoid), depth):
        found = [f / name for f in level for name in _visible_folders(f) if name.casefold() in names]
        found = [folder for folder in found if folder != avoid]
        if len(found) > 1:
            raise _ambiguous(found, "folders of that kind")
        if found:
            return found[0]
    return None


def _levels(root: Path, avoid: Path | None = None) -> Iterator[list[Path]]:
    """Visible folders by depth, the root first. A folder that is reached twice, as through a link, counts once."""
    seen: set[tuple[int, int]] = set()
    level = [root]
    while level:
        fresh = []
        for folder in level:
            identity = folder.stat()
            if (identity.st_dev, identity.st_ino) not in seen and folder != avoid:
                seen.add((identity.st_dev, identity.st_ino))
                fresh.append(folder)
        if len(seen) > _MAX_FOLDERS:
            raise DataError(f"{root} holds over {_MAX_FOLDERS:,} folders and no data set yet.", cure=_LAYOUT)
        yield fresh
        level = [folder / name for folder in fresh for name in _visible_folders(folder)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: e.name
            )
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror or error}).", cure="Check the path and its permissions."
        ) from None


def _visible_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in SUFFIXES


def _directly_holds_image(folder: Path) -> bool:
    return any(_is_image(entry) and not _is_folder(entry) for entry in _entries(folder))


def _holds_image(folder: Path) -> bool:
    """Whether a file with the suffix of an image lies in it at any depth; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif _is_image(entry) and not _is_folder(entry):
                return True
    return False


def _ambiguous(found: list[Path], what: str) -> DataError:
    return DataError(
        f"Two {what} are equally near: {found[0]} and {found[1]}.", cure="Name the one you mean, or its parent."
    )
