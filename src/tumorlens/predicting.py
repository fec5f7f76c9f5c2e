"""The predict job: inputs → rows, streamed in constant memory, with decoding ahead of inference."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from tumorlens.ahead import ahead
from tumorlens.classifier import BATCH, Classifier
from tumorlens.errors import ConfigError, RunError
from tumorlens.inputs import Limits, Plane, Slice, Unreadable, count_inputs, read_inputs
from tumorlens.progress import Bar
from tumorlens.rows import ERROR, REFUSED, Format, Kind, Row, header, line, parse
from tumorlens.runs import disk_error
from tumorlens.trust import Judgement
from tumorlens.volumes import with_volumes

Item: TypeAlias = Slice | Unreadable
#: Called with each slice that was read, its row, and its heatmap, float32 [K, 7, 7].
OnSlice = Callable[[Slice, Row, npt.NDArray[np.float32]], None]


@dataclass(frozen=True)
class Job:
    """How inputs are read and judged."""

    batch: int = BATCH
    """Images through the network at once."""
    plane: Plane = "axial"
    """Of a NIfTI volume's slices."""
    coverage: float = 0.95
    """Share of prediction sets that hold the true class, over images like the training data's."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is below 1.", cure="Say 1 or more.")
        if not 0 < self.coverage < 1:
            raise ConfigError(f"--coverage {self.coverage} is out of range.", cure="Say between 0 and 1, such as 0.95.")


@dataclass(frozen=True)
class Finished:
    """What an interrupted run left in its file."""

    series_of: dict[int, str | None] = field(default_factory=dict)
    """Of each slice or image, by the hash of its file and number."""
    slices: dict[str, list[Row]] = field(default_factory=dict)
    """By series, unreadable ones too; an empty list where the row for the whole is there."""
    bytes: int = 0
    """Length of the file without a line that was cut off."""
    files: int = 0
    rows: int = 0
    failed: int = 0


_DEFAULT, _NOTHING = Job(), Finished()


def predict(
    inputs: Sequence[str],
    classifier: Classifier,
    job: Job = _DEFAULT,
    *,
    stdin: BinaryIO | None = None,
    before: Finished = _NOTHING,
    on_slice: OnSlice | None = None,
) -> Iterator[Row]:
    """Classify everything that the inputs hold, in their order; an unreadable file is a row too.

    Rows of images and slices come at once and are not held, except that each slice of a volume or series is
    remembered (some 500 bytes) for the row of the whole.

    Parameters
    ----------
    inputs
        Files, folders, zips, lists of files, or `-`; as `inputs.read_inputs` takes them.
    stdin
        What `-` stands for.
    before
        Rows that are not made again.
    on_slice
        Called with each readable slice.

    Raises
    ------
    RunError
        The inputs are not those that `before` was made from.
    """
    if "-" in inputs and stdin is None:
        # Read here: an interrupted thread that waits for standard input could not be ended.
        stdin = io.BytesIO(sys.stdin.buffer.read(Limits().bytes + 1))
    items = _new(read_inputs(inputs, plane=job.plane, stdin=stdin), before)
    rows = _answers(ahead(items, 2 * job.batch), classifier, job, on_slice)
    return with_volumes(rows, classifier.classes, before.slices)


def _new(items: Iterator[Item], before: Finished) -> Iterator[Item]:
    for item in items:
        key = _key(item.source, item.index)
        if key not in before.series_of:
            yield item
        elif isinstance(item, Slice) and before.series_of[key] not in (None, item.series):
            raise RunError(
                f"{item.source} was in another series when the file to go on with was written.",
                cure="Name another file with --out, as the inputs changed.",
            )


def _key(file: str, number: int | None) -> int:
    return hash((file, number))


def _answers(items: Iterator[Item], classifier: Classifier, job: Job, on_slice: OnSlice | None) -> Iterator[Row]:
    while group := list(islice(items, job.batch)):
        rows = _classified([item for item in group if isinstance(item, Slice)], classifier, job, on_slice)
        for item in group:
            yield next(rows) if isinstance(item, Slice) else failed_row(item)


def _classified(
    slices: Sequence[Slice], classifier: Classifier, job: Job, on_slice: OnSlice | None
) -> Iterator[Row]:  # fmt: skip
    if not slices:
        return
    began = time.perf_counter()
    pixels = np.stack([item.pixels for item in slices])
    outputs = classifier.run(pixels)
    judged = classifier.judge(outputs, pixels, coverage=job.coverage)
    seconds = (time.perf_counter() - began) / len(slices)
    for i, item in enumerate(slices):
        row = row_of(item, i, judged, classifier.classes, seconds)
        if on_slice is not None:
            on_slice(item, row, outputs.heatmap[i])
        yield row


def row_of(item: Slice, i: int, judged: Judgement, classes: Sequence[str], seconds: float) -> Row:
    """The row of slice `i` of those judged; `seconds` is its share of their time."""
    verdict, reason, score = judged.verdicts[i], judged.reasons[i], float(judged.scores[i])
    kind: Kind = "image" if item.series is None else "slice"
    if verdict.startswith(REFUSED):  # a class that is shown is read as an answer, whatever stands beside it
        return Row(kind, item.source, item.series, item.index, "", (), (), verdict, reason, score, seconds)
    probabilities = tuple(judged.probabilities[i].tolist())
    chosen = tuple(name for name, inside in zip(classes, judged.sets[i], strict=True) if inside)
    label = classes[int(np.argmax(probabilities))]
    return Row(
        kind, item.source, item.series, item.index, label, probabilities, chosen, verdict, reason, score, seconds
    )


def failed_row(item: Unreadable) -> Row:
    """The row of what cannot be read."""
    kind: Kind = "image" if item.index is None and item.series is None else "slice"
    return Row(kind, item.source, item.series, item.index, "", (), (), f"{ERROR}: {item.reason}", item.cure, None, 0.0)


@dataclass(frozen=True)
class Report:
    """How a job went."""

    rows: int
    failed: int
    """Of them; rows that an earlier run left count too."""


def predict_to(
    inputs: Sequence[str],
    classifier: Classifier,
    job: Job = _DEFAULT,
    *,
    form: Format = "table",
    out: Path | None = None,
    resume: bool = False,
    stdin: BinaryIO | None = None,
    on_slice: OnSlice | None = None,
) -> Report:
    """Classify inputs and write the rows as they come, to standard output or a file.

    Parameters
    ----------
    form
        `table` to read, `json` (one object a line) or `csv`.
    out
        A new file; standard output where absent.
    resume
        Go on with `out` where an interrupted run left it: its rows are kept, failed ones too, and a line that
        was cut off is made anew. The inputs are read again from the start, as series are told by that.

    Raises
    ------
    ConfigError
        `resume` without a file, or with a table.
    RunError
        The file is there and `resume` is not asked for, or it holds other rows; or it cannot be written.
    """
    if resume and (out is None or form == "table"):
        raise ConfigError("--resume needs a file to go on with.", cure="Say --out FILE with --format json or csv.")
    if out is not None and out.exists() and not resume:
        raise RunError(f"--out {out} is already there.", cure="Add --resume to go on with it, or name another file.")
    # Rows of another plane or coverage must not be gone on with either.
    model = f"{model_name(classifier)} {job.plane} {job.coverage:g}"
    kept = finished(out, form, classifier.classes, model) if out and resume and out.exists() else _NOTHING
    rows = predict(inputs, classifier, job, stdin=stdin, before=kept, on_slice=on_slice)
    n, failed = kept.rows, kept.failed
    with ExitStack() as stack:
        # The stream is taken before the bar starts, which redirects sys.stdout to the terminal.
        write = _writer(stack, out, kept.bytes)
        total = count_inputs(inputs) if out is not None or not sys.stdout.isatty() else None
        bar = None if total is None else stack.enter_context(Bar("Classifying", max(0, total - kept.files), "files"))
        if not kept.bytes:
            write(header(form, classifier.classes))
        file = None
        for row in rows:
            write(line(row, form, classifier.classes, model))
            n, failed = n + 1, failed + row.failed
            if bar and row.kind != "volume" and row.file != file:
                bar.advance()
                file = row.file
    return Report(n, failed)


def _writer(stack: ExitStack, out: Path | None, keep: int) -> Callable[[str], None]:
    """A function that writes a line at once, to standard output or to `out` after its first `keep` bytes."""
    if out is None:
        stream = sys.stdout

        def show(text: str) -> None:
            stream.write(text)
            stream.flush()

        return show
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(out.open("r+b" if keep else "wb", buffering=0))
        file.truncate(keep)
        file.seek(keep)
    except OSError as error:
        raise disk_error(error, out) from None

    def append(text: str) -> None:
        content = text.encode()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            raise disk_error(error, out) from None

    return append


def model_name(classifier: Classifier) -> str:
    """Which classifier answers, as it stands in rows: configuration, precision, and the checkpoint's first digits."""
    card = classifier.card
    return f"{card.get('configuration')}-{card.get('precision')}-{str(card.get('checkpoint_sha256'))[:8]}"


def finished(path: Path, form: Format, classes: Sequence[str], model: str) -> Finished:
    """Read the rows of an interrupted run.

    Raises
    ------
    RunError
        The file cannot be read, or was written in another format, with other classes or another model.
    """
    series_of: dict[int, str | None] = {}
    slices: dict[str, list[Row]] = {}
    end = files = rows = failed = number = 0
    last = None
    cure = "Go on with the same --format and --model, or name another file."
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, 1):
                if not content.endswith(b"\n"):
                    break  # cut off while it was written
                end += len(content)
                text = content.decode()
                if number == 1 and form == "csv":
                    if text != header(form, classes):
                        raise RunError(f"{path} has the columns {text.strip()!r}.", cure=cure)
                    continue
                row, by = parse(text, form, classes)
                if by != model:
                    raise RunError(f"{path}, line {number}: the model was {by}, and is {model} now.", cure=cure)
                rows, failed = rows + 1, failed + row.failed
                if row.kind == "volume":
                    slices[str(row.series)] = []
                    continue
                files, last = files + (row.file != last), row.file
                series_of[_key(row.file, row.slice)] = row.series
                if row.series is not None:
                    slices.setdefault(row.series, []).append(row)
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path}, line {number}, is no row of ours ({error}).", cure=cure) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None
    return Finished(series_of, slices, end, files, rows, failed)
