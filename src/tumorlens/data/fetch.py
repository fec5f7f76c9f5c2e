"""Get a data set from `kaggle`, `phantom`, a zip or a folder, as an image folder of known layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tumorlens.core.errors import DataError
from tumorlens.core.files import expanded
from tumorlens.data.archives import cached_folder, extract_zip
from tumorlens.data.kaggle import download_v1
from tumorlens.data.layout import ImageFolder, find_image_folder


def fetch(
    data: str,
    *,
    cache: Path,
    seed: int = 0,
    download: Callable[[], Path] = download_v1,
    table: Path | None = None,
) -> ImageFolder:
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
    table
        CSV file of files and classes, as `read_table` takes it; `data` is then the folder of the files, if a path.

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
    if table:
        from tumorlens.data.table import read_table

        return read_table(table, data=None if data in ("kaggle", "phantom") else named_path(data), cache=cache)
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
