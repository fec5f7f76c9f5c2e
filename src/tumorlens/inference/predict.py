"""The predict job: inputs → records, streamed in constant memory; decoding runs ahead of inference."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import disk_error
from tumorlens.core.prefetch import batched, prefetch
from tumorlens.core.progress import Bar
from tumorlens.inference.network import BATCH, IMAGES_PER_CORE, Outputs
from tumorlens.inference.records import ERROR, REFUSED, Counts, Format, Record, format_record, header
from tumorlens.inference.resume import Item, PreviousRecords, read_previous, skip_finished
from tumorlens.inference.uncertainty import UNCERTAIN, Classification
from tumorlens.inference.volumes import with_volumes
from tumorlens.readers import Plane, ReadLimits, Slice, Unreadable, count_inputs, read_inputs, standard_input
from tumorlens.readers.pixels import SIZE, Pixels

if TYPE_CHECKING:
    from tumorlens.inference.classifier import Classifier

#: Called with each slice that was read, its record, and its heatmap, float32 [K, 7, 7].
OnSlice = Callable[[Slice, Record, npt.NDArray[np.float32]], None]


@dataclass(frozen=True)
class PredictSettings:
    """How inputs are read and classified."""

    batch: int = BATCH
    """Images per batch. If it is below the number of cores, each core computes one image at a time."""
    plane: Plane = "axial"
    """Slice plane of NIfTI volumes."""
    coverage: float = 0.95
    """Target coverage: the share of prediction sets that contain the true class, on images like the training data."""
    volume: int | None = None
    """Which volume is read of a file or DICOM series with several, from 1; None for the first of a NIfTI file, and all
    of a DICOM series."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is below 1.", cure="Use 1 or more.")
        if self.volume is not None and self.volume < 1:
            raise ConfigError(f"--volume {self.volume} is below 1.", cure="Use 1 for the first volume.")
        if not 0 < self.coverage < 1:
            raise ConfigError(
                f"--coverage {self.coverage} is out of range.", cure="Use a number between 0 and 1, such as 0.95."
            )


_GROUP = 8  # images that get their verdicts together, at least: each time reads 2 MB, no longer in the CPU's caches
_DEFAULT, _NOTHING = PredictSettings(), PreviousRecords()
_SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}


def predict(
    inputs: Sequence[str],
    classifier: Classifier,
    settings: PredictSettings = _DEFAULT,
    *,
    previous: PreviousRecords = _NOTHING,
    on_slice: OnSlice | None = None,
    written: Sequence[Path] = (),
) -> Iterator[Record]:
    """Classify everything that the inputs hold, in their order; a file that cannot be read gets a record too.

    Records are yielded batch by batch and not kept, except that about 500 bytes per slice of a volume or series are
    kept for the record of the volume.

    Parameters
    ----------
    inputs
        Files, folders, zips, `@list.txt`, or `-` for standard input, as `readers.read_inputs` takes them.
    previous
        Records of an interrupted run, which are not computed again.
    on_slice
        Called with each readable slice.
    written
        Files and folders that this job writes, which are not read.

    Raises
    ------
    RunError
        The inputs are not those of `previous`.
    ConfigError
        Pictures would be written into a folder that is itself an input.
    """
    for name in inputs:
        if any(folder.is_dir() and folder.resolve() == Path(name).resolve() for folder in written):
            raise ConfigError(
                f"Pictures would be written into {name}, which is also an input.", cure="Name another folder."
            )
    # Standard input is read here: a thread that waits for it could not be interrupted.
    stdin = io.BytesIO(standard_input().read(ReadLimits().bytes + 1)) if "-" in inputs else None
    found = read_inputs(inputs, plane=settings.plane, stdin=stdin, written=written, volume=settings.volume)
    items = skip_finished(found, previous)
    records = _classified(items, classifier, settings, on_slice)
    return with_volumes(records, classifier.classes, previous)


def group_size(batch: int, threads: int) -> int:
    """Images that are computed before their records are yielded: several batches if one is smaller than the cores."""
    return batch if batch >= threads else max(_GROUP, 2 * threads)


def _classified(
    items: Iterator[Item], classifier: Classifier, settings: PredictSettings, on_slice: OnSlice | None
) -> Iterator[Record]:
    model = model_id(classifier, settings)
    size = group_size(settings.batch, classifier.threads)
    per_core = IMAGES_PER_CORE if size == settings.batch else 1
    groups = _computed(prefetch(items, 2 * size), classifier, size, per_core)
    for group, outputs, seconds in prefetch(groups, 1):  # verdicts on one group while the next is computed
        began = time.perf_counter()
        slices = [item for item in group if isinstance(item, Slice)]
        verdicts = classifier.assess(outputs, _pixels(slices), coverage=settings.coverage)
        seconds += time.perf_counter() - began
        position = 0
        for item in group:
            if isinstance(item, Unreadable):
                yield failed_record(item, model)
                continue
            record = record_of(item, verdicts, position, classifier.classes, seconds / len(slices), model)
            if on_slice is not None:
                on_slice(item, record, outputs.heatmap[position])
            position += 1
            yield record


def _computed(
    items: Iterator[Item], classifier: Classifier, size: int, per_core: int
) -> Iterator[tuple[list[Item], Outputs, float]]:
    """Groups of items, the network's outputs for their slices, and the seconds that it took."""
    for group in batched(items, size):
        began = time.perf_counter()
        outputs = classifier.run(_pixels(group), per_core=per_core)
        yield group, outputs, time.perf_counter() - began


def _pixels(items: Sequence[Item]) -> Pixels:
    """uint8 [n, 224, 224, 3] of the slices among the items."""
    pixels = [item.pixels for item in items if isinstance(item, Slice)]
    return np.stack(pixels) if pixels else np.zeros((0, SIZE, SIZE, 3), np.uint8)


def record_of(
    item: Slice, verdicts: Classification, i: int, classes: Sequence[str], seconds: float, model: str = ""
) -> Record:
    """The record of a slice, which is image `i` of those classified; `seconds` is its share of their time."""
    # A refused image gets no class: whatever is shown would be read as a prediction.
    verdict, reason = verdicts.verdicts[i], verdicts.reasons[i]
    if item.header_verdict and not (verdict.startswith(REFUSED) and item.header_verdict[0] == UNCERTAIN):
        verdict, reason = item.header_verdict
    accepted = classes if not verdict.startswith(REFUSED) else ()
    probabilities = dict(zip(accepted, verdicts.probabilities[i].tolist(), strict=False))
    return Record(
        "image" if item.series is None else "slice", item.source, series=item.series, slice=item.index,
        instance=item.instance, label=max(probabilities, key=probabilities.__getitem__, default=""),
        probabilities=probabilities, set=tuple(compress(accepted, verdicts.sets[i])), verdict=verdict, reason=reason,
        score=float(verdicts.scores[i]), seconds=seconds, model=model, place=item.place,
    )  # fmt: skip


def failed_record(item: Unreadable, model: str = "") -> Record:
    """The record of a file or slice that could not be read."""
    return Record(
        "image" if item.index is None and item.series is None else "slice", item.source, series=item.series,
        slice=item.index, instance=item.instance, verdict=f"{ERROR}: {item.reason}", reason=item.cure, model=model,
        place=item.place,
    )  # fmt: skip


def predict_to(
    inputs: Sequence[str],
    classifier: Classifier,
    settings: PredictSettings = _DEFAULT,
    *,
    form: Format | None = None,
    out: Path | None = None,
    resume: bool = False,
    on_slice: OnSlice | None = None,
    pictures: Path | None = None,
) -> Counts:
    """Classify inputs and write each record as soon as it is there, to standard output or a file.

    Parameters
    ----------
    form
        `table` to read, `json` (one object per line) or `csv`; by default what the suffix of `out` says, else a table.
    out
        A new file; by default standard output.
    resume
        Continue `out` where an interrupted run left it. Its records are kept, failed ones too. The inputs are read
        again from the start, as the names of series depend on their order.
    pictures
        The folder that `on_slice` writes to. Neither it nor `out` is read as an input.

    Raises
    ------
    ConfigError
        `resume` is set without a file, or with a table.
    RunError
        The file exists and `resume` is not set; it holds other records; or it cannot be written.
    """
    form = form or format_for(out)
    if resume and (out is None or form == "table"):
        raise ConfigError(
            "--resume needs a file to continue.", cure="Use --out FILE.csv or --out FILE.json, or add --format."
        )
    if out is not None and out.exists() and not resume:
        raise RunError(
            f"--out {out} already exists.", cure="Add --resume to continue it, or name another file with --out."
        )
    previous = PreviousRecords()
    if out and resume and out.exists():
        previous = read_previous(out, form, classifier.classes, model_id(classifier, settings))
    written = [path for path in (out, pictures) if path is not None]
    records = predict(inputs, classifier, settings, previous=previous, on_slice=on_slice, written=written)
    counts = previous.counts
    with ExitStack() as stack:
        # The stream is taken before the bar starts, which redirects sys.stdout to the terminal.
        write = _file_writer(stack, out, previous.bytes, form) if out else _stdout_writer()
        total = count_inputs(inputs, written) if out is not None or not sys.stdout.isatty() else None
        bar = total and stack.enter_context(Bar("Classifying", max(0, total - counts.files), "files"))
        if not previous.bytes:
            write(header(form, classifier.classes))
        for record in records:
            write(format_record(record, form, classifier.classes))
            before = counts.files
            counts.add(record)
            if bar and counts.files > before:
                bar.advance()
    return counts


def format_for(out: Path | None) -> Format:
    """The format of a file by its suffix; a table for other suffixes and for standard output."""
    return _SUFFIXES.get(out.suffix.lower(), "table") if out else "table"


def _stdout_writer() -> Callable[[str], None]:
    stream = sys.stdout

    def write(text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(
                f"Standard output cannot be written ({error.strerror}).", cure="Free some space, or use --out FILE."
            ) from None

    return write


def _file_writer(stack: ExitStack, out: Path, keep: int, form: Format) -> Callable[[str], None]:
    """A function that appends text to `out` after its first `keep` bytes, unbuffered."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(out.open("r+b" if keep else "wb", buffering=0))
        file.truncate(keep)
        file.seek(keep)
    except OSError as error:
        raise disk_error(error, out) from None

    def write(text: str) -> None:
        content = text.encode()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            again = "name another file" if form == "table" else "run the same command again with --resume"
            raise disk_error(error, out, again) from None

    return write


def model_name(classifier: Classifier) -> str:
    """Configuration, precision, and first digits of the checkpoint's SHA-256: `finetuned-fp32-0a1b2c3d`."""
    card = classifier.card
    return f"{card.get('configuration')}-{card.get('precision')}-{str(card.get('checkpoint_sha256'))[:8]}"


def model_id(classifier: Classifier, settings: PredictSettings) -> str:
    """The column `model`: records of another plane, coverage or volume must not be continued either."""
    volume = "" if settings.volume is None else f" volume {settings.volume}"
    return f"{model_name(classifier)} {settings.plane} {settings.coverage:g}{volume}"
