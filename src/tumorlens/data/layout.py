"""Which folders of a data set hold training, validation and test images, and which classes it has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tumorlens.core.errors import DataError
from tumorlens.data.datasheets import TESTING, TRAINING, VALIDATION
from tumorlens.data.folders import (
    MAX_FOLDERS,
    directly_holds_image,
    entry_names,
    folder_names,
    holds_image,
    is_skipped,
    kinds_of_files,
    listed,
    normal,
    scan,
)
from tumorlens.readers.pixels import SUFFIXES

_LAYOUT = (
    "Name a folder or zip that holds Training/<class>/ and, if there is one, Testing/<class>/, with two or more "
    "classes; or a folder that directly holds one folder of images per class."
)
#: What folders of these images may be called, in any case: `valid`, `Training Set`, `test_data`.
_KINDS = {
    part: re.compile(rf"(\d+[ _.-]+)?{name}([ _.-]?(set|data|images|imgs|split))?", re.IGNORECASE)
    for part, name in ((TRAINING, "train(ing)?"), (VALIDATION, "val(id(ation)?)?"), (TESTING, "test(ing)?"))
}
_READ = "Class folders may hold JPEG, PNG, BMP, TIFF, WebP and DICOM of one slice, recognized by content."
_OUTPUTS = re.compile(
    r"(figures?|results?|outputs?|plots?|charts?|heatmaps?|overlays?|grad[ _-]?cams?|predictions?|explanations?|runs?|"
    r"reports?|logs?|checkpoints?|exports?|previews?|screenshots?|models?|weights|examples?|out|masks?|annotations?)"
    r"([ _-].*|\d+)?",
    re.IGNORECASE,
)
_OUTPUT_FILES = frozenset({"study.json", "comparison.json", "predictions.csv", "report.html", "metrics.json"})
_CLASS_WORDS = re.compile(
    r"(gliom|gliob|mening|pituit|metast|astrocyt|lymphom|schwann|oligodendr|ependym|medullobl)\w*([ _-]tumou?rs?)?|"
    r"(no|non|with|without)?[ _-]?(brain)?[ _-]?tumou?rs?|(ab)?normal|healthy|controls?|benign|malignant|cancer|"
    r"yes|no|pos(itive)?|neg(ative)?",
    re.IGNORECASE,
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
    """Names of the class folders of `training`, as stored, sorted."""
    generated: bool = False
    """Whether this package generated the images."""
    validation: Path | None = None
    """None if validation images must be split off Training."""
    notes: tuple[str, ...] = ()
    """What was decided and left out, one sentence each."""
    patients: Mapping[str, str] = field(default_factory=dict)
    """Patient of each image whose patient is known, by path relative to `root`."""

    def parts(self) -> dict[str, Path]:
        """`Training`, `Validation` and `Testing`, as far as they are there, and the folder of each."""
        found = {TRAINING: self.training, VALIDATION: self.validation, TESTING: self.testing}
        return {part: path for part, path in found.items() if path}

    def class_folders(self) -> Iterator[tuple[str, str, Path]]:
        """Part, class and path of every class folder. Names are compared in one Unicode form."""
        label_of = {normal(label): label for label in self.classes}
        for part, top in self.parts().items():
            for name in folder_names(top):
                if normal(name) in label_of:
                    yield part, label_of[normal(name)], top / name


def find_image_folder(root: Path, *, source: str, generated: bool = False) -> ImageFolder:
    """Find training, validation and test images below a folder, and check that their classes agree.

    `Training/` (or `train`, `Training set` and the like, in any case) nearest to the root counts, then a test folder
    beside it, else the nearest one elsewhere, and a validation folder beside it (`val`, `valid`, `validation`).
    Without a training folder, the nearest folder of class folders is used: one that directly holds two or more
    folders of images, or folders of patients below class folders. Folders of operating systems, outputs and copies of
    the class folders are no classes; links to folders are followed once.

    Raises
    ------
    DataError
        No folder fits, two fit equally well, or classes are too few or do not agree.
    """
    notes: list[str] = []
    training = _nearest(root, TRAINING)
    if training is None:
        training = _class_level(root)
        classes = _classes_of(training, notes, strict=False)
        _note_patients(training, classes, notes)
        folder = ImageFolder(training, training, None, source, classes)
    else:
        training = _unwrapped(training, TRAINING)
        classes = _classes_of(training, notes, strict=True)
        beside = {part: _nearest(training.parent, part, depth=1) for part in (VALIDATION, TESTING)}
        testing = beside[TESTING] or _nearest(root, TESTING, avoid=training)
        validation = beside[VALIDATION]
        if testing and not _check_classes(testing, training, classes, notes):
            raise DataError(
                f"{testing} holds no class folder with images.",
                cure="Fill it, or remove it: without a test folder, test images are split off Training.",
            )
        if validation and not _check_classes(validation, training, classes, notes):
            notes.append(f"{validation} holds no class folder with images and is not used.")
            validation = None
        if validation:
            notes.append(
                f"{validation.name}/ is the validation split of the official protocol: none is drawn from "
                f"{training.name}/."
            )
        together = training.parent if beside[TESTING] or testing is None else root
        folder = ImageFolder(together, training, testing, source, classes, generated, validation)
    notes += [] if generated else _left_out(root, {path for *_, path in folder.class_folders()})
    return replace(folder, notes=tuple(notes))


def _check_classes(top: Path, training: Path, classes: tuple[str, ...], notes: list[str]) -> bool:
    """Whether class folders of `top` hold images; DataError if they are not those of training."""
    known = {normal(label) for label in classes}
    found = {normal(label): label for label in folder_names(top) if holds_image(top / label)}
    if unknown := sorted(found.keys() - known):
        raise DataError(
            f"{top} has the class {found[unknown[0]]!r}, which {training} lacks (it has {', '.join(classes)}).",
            cure="Give both the same class folders; upper and lower case matter.",
        )
    if found and (lacking := [label for label in classes if normal(label) not in found]):
        notes.append(f"{top} has no images of {', '.join(lacking)}: nothing is measured there.")
    return bool(found)


def _classes_of(top: Path, notes: list[str], *, strict: bool) -> tuple[str, ...]:
    """Names of the class folders; with `strict`, an error if a folder holds no image."""
    labels = folder_names(top)
    empty = [label for label in labels if not holds_image(top / label)]
    if empty and (strict or any(_medical(kinds_of_files(top / label)) for label in empty)):
        found = kinds_of_files(top / empty[0])
        raise DataError(
            f"The class folder {top / empty[0]} holds no image{_found(found)}.",
            cure=_cure(found) or f"{_READ} Add such files, or remove the folder.",
        )
    labels = list({normal(label): label for label in labels if label not in empty}.values())
    if empty:
        notes.append(f"No class: {listed(empty)} in {top}, without images.")
    others = [label for label in labels if not _holds_classes(top / label, labels)]
    outputs = [label for label in others if _OUTPUTS.fullmatch(label) or _OUTPUT_FILES & set(entry_names(top / label))]
    if len(others) >= 2 and len(others) < len(labels):
        notes.append(f"No class: {listed(set(labels) - set(others))} in {top}, with folders named like the classes.")
        labels = others
    if outputs and len(set(labels) - set(outputs)) >= 2:
        notes.append(f"No class: {listed(outputs)} in {top}, which look like outputs or masks.")
        labels = [label for label in labels if label not in outputs]
    if len(labels) < 2:
        have = f"only one class folder: {labels[0]!r}" if labels else "no class folder"
        raise DataError(f"{top} holds {have}.", cure=_LAYOUT)
    return tuple(labels)


def _holds_classes(folder: Path, labels: list[str]) -> bool:
    """Whether all that a folder holds are folders named like its siblings."""
    inner = {normal(name) for name in folder_names(folder)} - {normal(folder.name)}
    return bool(inner) and inner <= set(map(normal, labels)) and not directly_holds_image(folder)


def _note_patients(training: Path, classes: tuple[str, ...], notes: list[str]) -> None:
    """Note classes whose names look like those of patients: the user may have named a class folder."""
    if any(map(_CLASS_WORDS.fullmatch, classes)):
        return
    numbered = len({re.sub(r"\d+", "#", label) for label in classes}) == 1  # names differ by a number alone
    if numbered or _CLASS_WORDS.fullmatch(training.resolve().name):
        notes.append(
            f"The {len(classes)} classes look like patients: {listed(classes)}. If they are, name the folder above, "
            f"{training.resolve().parent}, so that its folders are the classes."
        )


def _class_level(root: Path) -> Path:
    """The nearest folder of class folders; DataError if there is none, or two."""
    if testing := _nearest(root, TESTING):
        raise DataError(f"{root} has a test folder ({testing}) but no training folder.", cure=_LAYOUT)
    single: Path | None = None
    for level in _levels(root):
        best = [folder for folder in level if _holds_class_folders(folder)]
        if len(best) > 1:
            raise DataError(
                f"Two folders of class folders are equally near: {best[0]} and {best[1]}.",
                cure="Name the one you mean. If their folders are patients, move the class folders into Training/.",
            )
        if best:
            return best[0]
        single = single or next(
            (f / name for f in level for name in folder_names(f) if directly_holds_image(f / name)), None
        )
    if single is not None:
        raise DataError(f"{root} has only one class folder: {single}.", cure=_LAYOUT)
    found = kinds_of_files(root)
    if holds_image(root):
        raise DataError(f"{root} holds images, but no class folders.", cure=_LAYOUT)
    raise DataError(f"{root} holds no images{_found(found)}.", cure=_cure(found) or f"{_READ} {_LAYOUT}")


def _holds_class_folders(folder: Path) -> bool:
    """Whether the folders in this one are classes, rather than patients, or data sets that hold classes."""
    names = folder_names(folder)
    direct = [name for name in names if directly_holds_image(folder / name)]
    if len(names) < 2 or len(direct) >= 2:
        return len(direct) >= 2
    labels = [name for name in names if name in direct or holds_image(folder / name)]
    below = [inner for name in labels for inner in folder_names(folder / name)]
    upper, lower = (any(map(_CLASS_WORDS.fullmatch, some)) for some in (labels, below))
    if len(labels) < 2 or upper != lower:
        return len(labels) >= 2 and upper
    numbered = sum(any(map(str.isdigit, name)) for name in below)  # as patients and series are
    return 2 * numbered > len(below) and not all(any(map(str.isdigit, name)) for name in labels)


def _nearest(root: Path, part: str, *, depth: int | None = None, avoid: Path | None = None) -> Path | None:
    """The folder of this part that is nearest to `root`; an error if two are equally near."""
    for i, level in enumerate(_levels(root, avoid)):
        if i == depth:
            break
        found = [f / name for f in level for name in folder_names(f) if _KINDS[part].fullmatch(name)]
        found = [folder for folder in found if folder != avoid]
        if len(found) > 1:
            raise DataError(
                f"Two folders of that kind are equally near: {found[0]} and {found[1]}.",
                cure="Rename or remove one of them."
                if found[0].parent == found[1].parent
                else "Name the folder that holds the one you mean.",
            )
        if found:
            return found[0]
    return None


def _unwrapped(top: Path, part: str) -> Path:
    """`train/train` for `train`, if it holds nothing else."""
    names = folder_names(top)
    inner = len(names) == 1 and _KINDS[part].fullmatch(names[0]) and not directly_holds_image(top)
    return _unwrapped(top / names[0], part) if inner else top


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
        if len(seen) > MAX_FOLDERS:
            raise DataError(f"{root} holds over {MAX_FOLDERS:,} folders and no data set yet.", cure=_LAYOUT)
        yield fresh
        level = [folder / name for folder in fresh for name in folder_names(folder)]


def _found(found: Counter[str]) -> str:
    return ": it has " + ", ".join(f"{n:,} {kind}" for kind, n in found.most_common(5)) if found else ""


def _medical(found: Counter[str]) -> bool:
    return found["DICOM"] + found["NIfTI"] > 0


def _cure(found: Counter[str]) -> str:
    """The way to train on volumes, or to unpack archives, if there are any."""
    if _medical(found):
        return f"{_READ} Name volumes, and their slices that show the class, in a table (--table labels.csv)."
    archives = [kind for kind in found if kind in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar")]
    return f"Unpack the {archives[0]} inside, and name its folder." if archives else ""


def _left_out(root: Path, used: set[Path]) -> list[str]:
    """One sentence each on images outside the class folders, and in hidden or system folders."""
    outside, system = Counter[str](), Counter[str]()
    waiting: list[tuple[Path, Counter[str] | None, str]] = [(root, outside, "")]
    for _ in range(MAX_FOLDERS):
        if not waiting:
            break
        folder, counter, place = waiting.pop()
        try:
            entries = scan(folder)
        except DataError:  # not needed for training
            continue
        for entry in entries:
            path = folder / entry.name
            into = system if is_skipped(entry.name) else None if path in used else counter
            if entry.is_dir(follow_symlinks=False):
                inside = place if counter is system else f"{path.relative_to(root).as_posix()}/"
                waiting.append((path, into, inside))
            elif into is not None and Path(entry.name).suffix.lower() in SUFFIXES:
                into[place] += 1
    return [
        f"{counts.total():,} image(s) left out, {where}: "
        + listed([f"{place or 'loose in the folder named'} ({n:,})" for place, n in sorted(counts.items())])
        + "."
        for counts, where in ((outside, "outside the class folders"), (system, "hidden or in system folders"))
        if counts
    ]
