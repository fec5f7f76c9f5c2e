"""A table of files, series and volumes with their classes → a folder of the slices that show them, as pictures.

The slices are what `predict` classifies, written once as lossless PNG of 224 x 224 pixels to a folder in the cache
whose name depends on the contents of the table and of all its files. Everything else reads that folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from PIL import Image

from tumorlens.core.errors import DataError, ImageError
from tumorlens.core.files import Json, expanded, read_json, writing
from tumorlens.core.progress import Bar
from tumorlens.core.version import __version__
from tumorlens.data.archives import cached_folder
from tumorlens.data.columns import IMAGES, SPLITS, VALUES, read_cells
from tumorlens.data.datasheets import TESTING, TRAINING, VALIDATION
from tumorlens.data.folders import is_skipped, listed
from tumorlens.data.layout import ImageFolder
from tumorlens.readers.pixels import grey_band
from tumorlens.readers.signatures import HEADER, is_dicom
from tumorlens.readers.sources import read_inputs
from tumorlens.readers.types import Plane, Slice, Unreadable

MASK_VOXELS = 20  # of a mask that make a slice show the lesion
HEAD_SHARE = 0.3  # of the picture that the head fills in slices taken from volumes without a lesion
HEAD_LEVEL = 25  # grey level, 0 to 255, above which a pixel belongs to the head
#: Classes whose volumes have no lesion that a mask or a range could show.
LESION_FREE = re.compile(
    r"(no|non|without)[ _-]?(brain)?[ _-]?tumou?rs?|normal|healthy|controls?|no|neg(ative)?", re.IGNORECASE
)
_COLUMNS = {
    "path": IMAGES,
    "series": ("series", "seriesinstanceuid", "series_instance_uid", "series_uid"),
    "class": ("class", "label"),
    **VALUES,
    **{name: (name,) for name in ("mask", "first_slice", "last_slice", "volume", "plane")},
}
_PARTS = dict(zip(SPLITS, (TRAINING, VALIDATION, TESTING), strict=True))
_NO_RANGE = (
    "Name a mask of the lesion, or the range that shows it, in the columns first_slice and last_slice (counted from 0, "
    "as the column slice of `predict`)."
)
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class TableRow:
    """One line of the table, checked as far as is possible without reading pictures."""

    line: int
    name: str
    """Path or series as written."""
    inputs: tuple[Path, ...]
    """The file or folder, or the files of the series."""
    label: str
    group: str
    part: str
    """`Training`, `Validation` or `Testing`; empty if the table has no column split."""
    plane: Plane
    volume: int | None
    mask: Path | None
    first_last: tuple[int, int] | None
    """First and last slice that show the lesion."""


def list_rows(table: Path, data: Path | None = None) -> list[TableRow]:
    """The lines of a table, with the files that they name; no picture is read.

    Parameters
    ----------
    table
        CSV file with the columns `class` and `path` or `series`, and any of `group`, `split`, `volume`, `plane`,
        `mask`, `first_slice` and `last_slice`.
    data
        Folder to which paths are relative that do not exist below the table's folder, and in which series are searched.

    Raises
    ------
    DataError
        The table cannot be read, has an unknown column, lacks one, or has lines that cannot be used.
    """
    named = f"--table {table}"
    names, lines = read_cells(table, named)
    known = {alias: column for column, aliases in _COLUMNS.items() for alias in aliases}
    columns = [known.get(name, "") for name in names]
    if unknown := [name for name, column in zip(names, columns, strict=True) if not column]:
        raise DataError(
            f"{named} has {len(unknown)} unknown column(s): {listed(unknown)}.",
            cure=f"Remove or rename them. These are known: {', '.join(_COLUMNS)}.",
        )
    repeated = [column for column, n in Counter(columns).items() if n > 1]
    if repeated or "class" not in columns or not {"path", "series"} & set(columns) or not lines:
        what = f"has two columns for {repeated[0]!r}" if repeated else "lacks a column or has no lines"
        raise DataError(f"{named} {what} (it has {names}).", cure="Give it the columns path (or series) and class.")
    places = [table.absolute().parent, *([data.absolute()] if data else [])]
    series = _series_files(places[-1]) if "series" in columns else {}

    def parse(item: tuple[int, list[str]]) -> TableRow:
        cells = dict.fromkeys(_COLUMNS, "") | dict(zip(columns, item[1], strict=False))
        return _parse(item[0], cells, places, series, split="split" in columns)

    rows = _each(named, lines, parse, lambda item: f"line {item[0]}")
    labels = {row.label for row in rows if row.part in ("", TRAINING)}
    if lacking := {row.label for row in rows} - labels:
        raise DataError(f"{named} has no line to train on for {listed(lacking)}.", cure="Give each class split train.")
    if len({label.casefold() for label in labels}) < max(2, len(labels)):
        raise DataError(
            f"{named} has the classes {listed(labels)} to train on.",
            cure="Give two or more classes, which differ in more than upper and lower case.",
        )
    return rows


def _series_files(folder: Path) -> dict[str, list[Path]]:
    """Files of every DICOM series below a folder, by SeriesInstanceUID."""
    from tumorlens.readers.dicom import series_uid

    found: dict[str, list[Path]] = defaultdict(list)
    for path in _files([folder]):
        with suppress(OSError, ImageError), path.open("rb") as file:  # what cannot be read is of no series
            if is_dicom(file.read(HEADER)):
                found[series_uid(file)].append(path)
    return found


def _parse(
    line: int, cells: dict[str, str], places: list[Path], series: dict[str, list[Path]], *, split: bool
) -> TableRow:
    path, uid, label = cells["path"], cells["series"], cells["class"]
    plane = next((name for name in get_args(Plane) if name == (cells["plane"] or "axial")), None)
    if bool(path) == bool(uid):
        raise DataError("gives not one of path and series", cure="Give each line a path or a series.")
    if not label or label in (".", "..") or is_skipped(label) or re.search(r'[/\\:*?"<>|\x00-\x1f]', label):
        raise DataError(f"has the class {label!r}", cure="Use names that a folder may have.")
    if split and cells["split"] not in SPLITS:
        raise DataError(
            f"has the split {cells['split']!r}", cure=f"Write one of {', '.join(SPLITS)}, or leave the column out."
        )
    if plane is None:
        raise DataError(f"has the plane {cells['plane']!r}", cure=f"Write one of {', '.join(get_args(Plane))}.")
    numbers = [cells[name] for name in ("volume", "first_slice", "last_slice")]
    if wrong := [n for n in numbers if n and not re.fullmatch("[0-9]{1,9}", n)] or [n for n in numbers[:1] if n == "0"]:
        raise DataError(f"has the number {wrong[0]!r}", cure="Count volumes from 1, slices from 0.")
    volume, first, last = (int(n) if n else None for n in numbers)
    if (first is None) != (last is None) or (cells["mask"] and first is not None):
        raise DataError("gives half a range, or a mask and a range", cure="Give a mask, or first_slice and last_slice.")
    inputs = tuple(series.get(uid, ())) if uid else (_found(path, places),)
    if not inputs:
        raise DataError(f"names the series {uid}, of which {places[-1]} holds no file", cure="Name it with --data.")
    return TableRow(
        line, path or uid, inputs, label, cells["group"], _PARTS[cells["split"]] if split else "", plane,
        volume, _found(cells["mask"], places) if cells["mask"] else None,
        None if first is None or last is None else (first, last),
    )  # fmt: skip


def _found(path: str, places: list[Path]) -> Path:
    tried = [place / expanded(path.replace("\\", "/")) for place in places]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        raise DataError(
            f"names {path!r}, which is not there",
            cure="Give paths relative to the table's folder, or name their folder with --data.",
        )
    return found.resolve()


def _each(named: str, items: Sequence[T], work: Callable[[T], U], place: Callable[[T], str]) -> list[U]:
    """`work` on every line; DataError with the number of lines that it refuses, and the first three."""
    done, refused, cure = [], [], ""
    for item in items:
        try:
            done.append(work(item))
        except DataError as error:
            refused.append(f"{place(item)} {error.what}")
            cure = cure or error.cure or ""
    if refused:
        more = f"; and {len(refused) - 3:,} more" if len(refused) > 3 else ""
        raise DataError(
            f"{named}: {len(refused):,} of {len(items):,} line(s) cannot be used: {'; '.join(refused[:3])}{more}.",
            cure=cure,
        )
    return done


def read_table(table: Path, *, data: Path | None = None, cache: Path) -> ImageFolder:
    """Write the slices that a table names to a folder in the cache, unless they are there; return it with its patients.

    Of a volume of a tumour class, the slices are taken in which its mask covers at least `MASK_VOXELS` voxels, or those
    of its range. Of a volume without a lesion, those are taken in which the head fills at least `HEAD_SHARE` of the
    picture. Slices of a volume without a group belong together.

    Parameters
    ----------
    table, data
        As `list_rows` takes them.
    cache
        The folder is made below it.

    Raises
    ------
    DataError
        As `list_rows`; a volume has neither mask nor range; a mask or range does not fit; nothing can be read; or two
        lines give one slice different values.
    RunError
        The cache cannot be written.
    """
    rows = list_rows(table, data)
    with Bar("Hashing the files of the table", len(rows), "lines") as bar:
        digest = hashlib.sha256(f"table 1 {__version__} {MASK_VOXELS} {HEAD_SHARE}\n".encode())
        for row in rows:
            digest.update(f"{row}\n".encode(errors="replace"))
            for path in (*_files(row.inputs), *([row.mask] if row.mask else [])):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            bar.advance()
    root = cached_folder(
        cache / "tables" / f"{_safe(table.stem)}-{digest.hexdigest()[:16]}",
        lambda folder: _write(folder, rows, f"--table {table}"),
        lambda folder: (folder / "table.json").is_file(),
    )
    found = read_json(root / "table.json")
    parts: dict[str, Any] = {part: root / part if (root / part).is_dir() else None for part in _PARTS.values()}
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    return ImageFolder(
        root, parts[TRAINING] or root, parts[TESTING] if rows[0].part else None, f"table {table.name}, sha256 {sha256}",
        tuple(found["classes"]), validation=parts[VALIDATION] if rows[0].part else None, notes=tuple(found["notes"]),
        patients=found["patients"],
    )  # fmt: skip


def _files(inputs: Sequence[Path]) -> Iterator[Path]:
    for path in inputs:
        yield from sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]


def _write(folder: Path, rows: list[TableRow], named: str) -> None:
    """Fill a folder with the slices of all lines, and table.json with their patients and what is to be noted."""
    names: dict[tuple[Any, ...], str] = {}
    given: dict[tuple[Any, ...], tuple[TableRow, tuple[str, ...]]] = {}
    used, patients, counts, skipped = Counter[str](), dict[str, str](), Counter[str](), list[str]()

    def write(row: TableRow) -> None:
        bar.advance()
        slices, unreadable = _slices(row)
        counts["other"] += sum(item.header_verdict is not None for item in slices)
        skipped.extend(f"{Path(item.source).name}: {item.reason}" for item in unreadable)
        sizes = Counter(_stack(item) for item in slices)
        for item in _chosen(row, slices, counts):
            group = row.group or (row.name if sizes[_stack(item)] > 1 else "")
            key, value = (item.source, item.index, row.volume, row.plane), (row.label, row.part, group)
            before, earlier = given.setdefault(key, (row, value))
            if earlier != value:
                raise DataError(
                    f"({row.name}) and line {before.line} give one picture {value} and {earlier}",
                    cure="Give each picture one class, group and split.",
                )
            counts["repeated"] += key in names
            if key not in names:
                place = "" if item.index is None else f"__{item.index}"
                stem = "__".join(filter(None, (_safe(group), _safe(Path(item.source).name)))) + place
                target = "/".join(filter(None, (row.part, row.label, stem)))
                used[target.casefold()] += 1
                names[key] = target + (f"-{n}" if (n := used[target.casefold()]) > 1 else "") + ".png"
                image = Image.fromarray(item.pixels)
                with writing(folder / names[key]) as file:
                    (grey_band(image) or image).save(file, "PNG")
                patients.update({names[key]: group} if group else {})

    with Bar("Reading the table", len(rows), "lines") as bar:
        _each(named, rows, write, lambda row: f"line {row.line}")
    notes = {
        f"{counts['mask']:,} slices taken in which a mask covers {MASK_VOXELS} voxels or more.": counts["mask"],
        f"{counts['range']:,} slices taken by first_slice and last_slice.": counts["range"],
        f"{counts['head']:,} of {counts['free']:,} slices of volumes without a lesion taken: those in which the head "
        f"fills {HEAD_SHARE:.0%} of the picture or more.": counts["free"],
        f"{counts['other']:,} slice(s) whose header says that they are no slices of a brain MRI.": counts["other"],
        f"{counts['repeated']:,} slice(s) named twice, used once.": counts["repeated"],
        f"{len(skipped):,} file(s) or slice(s) left out, first {'; '.join(skipped[:3])}.": len(skipped),
    }
    record: Json = {
        "classes": sorted({row.label for row in rows}),
        "notes": [note for note, n in notes.items() if n],
        "patients": patients,
    }
    with writing(folder / "table.json") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode())


def _slices(row: TableRow) -> tuple[list[Slice], list[Unreadable]]:
    """All that a line names, as `predict` reads it; ImageError if nothing can be read."""
    found = list(read_inputs([str(path) for path in row.inputs], plane=row.plane, volume=row.volume))
    slices = [item for item in found if isinstance(item, Slice)]
    unreadable = [item for item in found if isinstance(item, Unreadable)]
    if not slices:
        cure = re.sub("--(plane|volume) ", r"\1 ", unreadable[0].cure)  # columns here
        raise ImageError(f"({row.name}) cannot be used: {unreadable[0].reason}", cure=cure)
    return slices, unreadable


def _stack(item: Slice) -> tuple[str | None, str | None]:
    """What slices of one volume have in common."""
    return (item.series, None) if item.series else (None, item.source)


def _chosen(row: TableRow, slices: list[Slice], counts: Counter[str]) -> list[Slice]:
    """The slices of a line that show its class; DataError if that is unknown or there are none."""
    sizes = Counter(map(_stack, slices))
    numbers = [item.index for item in slices if item.index is not None]
    if row.mask or row.first_last:
        if len(sizes) > 1 or len(numbers) < len(slices):
            raise DataError(
                f"({row.name}) names {len(sizes)} volumes or pictures for one mask or range",
                cure="Give each volume a line of its own; a picture needs no range.",
            )
        if row.mask:
            if slices[0].metadata["format"] != "NIfTI":
                raise DataError(
                    f"({row.name}) has a mask, but is no NIfTI volume", cure="Give first_slice and last_slice."
                )
            from tumorlens.readers.nifti import mask_voxels

            covered = mask_voxels(Path(slices[0].source), row.mask, row.plane)
            chosen, kind = [item for item in slices if covered[item.index or 0] >= MASK_VOXELS], "mask"
        else:
            first, last = row.first_last or (0, 0)
            if not min(numbers) <= first <= last <= max(numbers):
                raise DataError(
                    f"({row.name}) has the range {first} to {last}, but slices {min(numbers)} to {max(numbers)}",
                    cure="Count slices from 0, as the column slice of `predict` shows them.",
                )
            chosen, kind = [item for item in slices if first <= (item.index or 0) <= last], "range"
        counts[kind] += len(chosen)
    elif not (volumes := [stack for stack, n in sizes.items() if n > 1]):
        return slices
    elif LESION_FREE.fullmatch(row.label):
        chosen = [s for s in slices if sizes[_stack(s)] == 1 or np.mean(s.pixels[..., 0] > HEAD_LEVEL) >= HEAD_SHARE]
        counts["free"] += len(slices)
        counts["head"] += len(chosen)
    else:
        raise DataError(
            f"({row.name}) is a volume of {sizes[volumes[0]]} slices of class {row.label!r} without a mask or range: "
            "slices without lesion are no tumours",
            cure=_NO_RANGE,
        )
    if not chosen:
        raise DataError(f"({row.name}) has no slice that shows its class", cure=_NO_RANGE)
    return chosen


def _safe(text: str) -> str:
    """A part of a file name: letters, digits and `_ . -` of ASCII."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII)[:80].strip("._-")
