"""What gives each image a value, its split or its patient: CSV files, and patterns of file names."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from tumorlens.core.errors import ConfigError, DataError
from tumorlens.core.progress import log
from tumorlens.core.text import listed

SPLITS = ("train", "validation", "test")
#: Accepted names of columns, the preferred one first; case, and spaces or hyphens for underscores, do not matter.
IMAGES = (
    "path", "file", "filename", "file_name", "image", "image_path", "file_path", "filepath", "name", "stem", "image_id",
)  # fmt: skip
VALUES = {
    "split": ("split",),
    "group": ("group", "patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id"),
}

_NOBODY = ("nan", "na", "n/a", "none", "null", "unknown", "?", "-")  # how programs write that a patient is not known


def read_column(file: Path, column: Literal["split", "group"]) -> dict[str, str]:
    """Image → split or group from a CSV file with these two columns, such as an earlier run's index.csv.

    Columns may be separated by commas, semicolons or tabs. Images are returned in Unicode's form NFC, with forward
    slashes and without a leading `./`. Blank lines are ignored.

    Raises
    ------
    DataError
        The file cannot be read or lacks a column, or a line has no image, contradicts another, or names an
        unknown split. A group may be empty.
    """
    named = f"--{'groups' if column == 'group' else column} {file}"
    found: dict[str, str] = {}
    names, lines = read_cells(file, named)
    places = [next((names.index(name) for name in known if name in names), -1) for known in (IMAGES, VALUES[column])]
    if -1 in places:
        raise DataError(
            f"{named} lacks the columns 'path' and {column!r} (it has {names}).",
            cure="Name a CSV with both, such as a run's index.csv; paths are relative to the data set's root. "
            f"Also understood: {', '.join(IMAGES[1:])} for path"
            + (f"; {', '.join(VALUES[column][1:])} for {column}." if len(VALUES[column]) > 1 else "."),
        )
    if unused := [name for name in names if name in VALUES[column] and name != names[places[1]]]:
        log.info(f"{named}: the column {names[places[1]]!r} is used, not {listed([*map(repr, unused)])}.")
    for line, cells in lines:
        path, value = (cells[i] if i < len(cells) else "" for i in places)
        path = path.replace("\\", "/").removeprefix("./")
        value = "" if column == "group" and value.casefold() in _NOBODY else value
        if column == "split" and value and value not in SPLITS:  # empty: left out
            raise DataError(f"{named}, line {line}: split is {value!r}.", cure=f"Write one of {', '.join(SPLITS)}.")
        if not path or found.setdefault(path, value) != value:
            what = f"{path!r} was {found[path]!r} before, not {value!r}" if path else "there is no path"
            raise DataError(f"{named}, line {line}: {what}.", cure=f"Give each path one {column}.")
    return found


def read_cells(file: Path, named: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, in lower case with underscores, and the number and cells of every line that is not blank.

    Columns may be separated by commas, semicolons or tabs. Cells are in Unicode's form NFC, without outer spaces.

    Parameters
    ----------
    named
        The option and its file, for messages.

    Raises
    ------
    DataError
        The file cannot be read, or a line has more cells than there are columns.
    """
    try:
        content = file.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # spreadsheets write a mark
        text = content.decode(encoding)
        separator = max(",;\t", key=text.split("\n", 1)[0].count)
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
        names = [name.strip().casefold().replace(" ", "_").replace("-", "_") for name in next(reader, [])]
        cleaned = ((reader.line_num, list(map(_clean, cells))) for cells in reader)
        filled = [(number, cells) for number, cells in cleaned if any(cells)]
    except UnicodeDecodeError:
        raise DataError(f"{named} is not UTF-8 text.", cure="Save it as CSV in UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{named} cannot be read ({error}).", cure="Check the path and the file.") from None
    if longer := [number for number, cells in filled if any(cells[len(names) :])]:
        raise DataError(
            f"{named}: {len(longer):,} line(s) have more cells than the first line, first line {longer[0]}.",
            cure=f'Put quotes (") around cells that hold the separator, which is {separator!r}.',
        )
    return names, filled


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def match_paths(paths: Sequence[str], listed: Mapping[str, str], named: str) -> tuple[dict[str, str], list[str]]:
    """Value of each image that a CSV file lists, and what in the file names no image.

    An image is listed by its path, by the end of its path (such as its file name), by a longer path that ends with
    its path, or by one of these without the suffix.

    Parameters
    ----------
    paths
        Of the images, relative to the data set's root.
    listed
        From `read_column`.
    named
        The option and its file, for messages.

    Raises
    ------
    DataError
        A line fits several images, or two lines give one image different values.
    """
    by_name: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in paths:
        normal = unicodedata.normalize("NFC", path)
        for form in dict.fromkeys((normal, str(PurePosixPath(normal).with_suffix("")))):
            by_name[form.rsplit("/", 1)[-1]].append((form, path))
    found: dict[str, str] = {}
    unknown = []
    for key, value in listed.items():
        candidates = by_name.get(key.rsplit("/", 1)[-1], ())
        fits = {path for form, path in candidates if form == key} or {
            path for form, path in candidates if f"/{form}".endswith(f"/{key}") or f"/{key}".endswith(f"/{form}")
        }
        if len(fits) > 1:
            raise DataError(
                f"{named}: {key!r} fits {len(fits)} images, such as {min(fits)!r} and {max(fits)!r}.",
                cure="Give paths relative to the data set's root.",
            )
        unknown += [] if fits else [key]
        for path in fits:
            if found.setdefault(path, value) != value:
                raise DataError(
                    f"{named} gives {path!r} two values: {found[path]!r} and {value!r}.", cure="Give each image one."
                )
    return found, unknown


def check_pattern(pattern: str) -> re.Pattern[str]:
    """Compile the value of --group-pattern.

    Raises
    ------
    ConfigError
        It is no regular expression, or does not have exactly one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--group-pattern '{pattern}' is not a regular expression ({error}).",
            cure="Use one such as '^(P[0-9]+)_', whose part in brackets is the patient.",
        ) from None
    if compiled.groups != 1:
        raise ConfigError(
            f"--group-pattern '{pattern}' has {compiled.groups} groups in brackets, not one.",
            cure="Put brackets around the patient alone, as in '^(P[0-9]+)_'; (?:…) groups without being one.",
        )
    return compiled
