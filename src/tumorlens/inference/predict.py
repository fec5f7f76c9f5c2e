"""The predict job: inputs → rows, streamed in constant memory, with decoding ahead of inference."""

from __future__ import annotations

import io
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import disk_error
from tumorlens.core.prefetch import batched, prefetch
from tumorlens.core.progress import Bar
from tumorlens.inference.classifier import BATCH, Classifier, Outputs
from tumorlens.inference.records import (
    ERROR,
    REFUSED,
    Format,
    Kind,
    Row,
    header,
    line,
)
from tumorlens.inference.resume import (
    Finished,
    Item,
    finished,
    unfinished,
)
from tumorlens.inference.uncertainty import Judgement
from tumorlens.inference.volumes import with_volumes
from tumorlens.readers import (
    Plane,
    ReadLimits,
    Slice,
    Unreadable,
    count_inputs,
    read_inputs,
    standard_input,
)
from tumorlens.readers.pixels import SIZE, Pixels

#: Called with each slice that was read, its row, and its heatmap, float32 [K, 7, 7].
OnSlice = Callable[[Slice, Row, npt.NDArray[np.float32]], None]


@dataclass(frozen=True)
class Job:
    """How inputs are read and judged."""

    batch: int = BATCH
    """Images through the network at once. Where they are fewer than the cores, several batches at the same time."""
    plane: Plane = "axial"
    """Of a NIfTI volume's slices."""
    coverage: float = 0.95
    """Share of prediction sets that hold the true class, over images like the training data's."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is below 1.", cure="Say 1 or more.")
        if not 0 < self.coverage < 1:
            raise ConfigError(f"--coverage {self.coverage} is out of range.", cure="Say between 0 and 1, such as 0.95.")


# Items whose answers are judged at once, at least, where each is a batch: judging reads 2 MB, which the network pushes
# out of the caches each time.
_TOGETHER = 8
_DEFAULT, _NOTHING = Job(), Finished()
_SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}


def predict(
    inputs: Sequence[str],
    classifier: Classifier,
    job: Job = _DEFAULT,
    *,
    stdin: BinaryIO | None = None,
    before: Finished = _NOTHING,
    on_slice: OnSlice | None = None,
    written: Sequence[Path] = (),
) -> Iterator[Row]:
    """Classify everything that the inputs hold, in their order; an unreadable file is a row too.

    Rows of images and slices come batch by batch, of batches smaller than 8 for 8 images together, and are not held,
    except that each slice of a volume or series is remembered (some 500 bytes) for the row of the whole.

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
    written
        Files and folders that this job writes, which are not read.

    Raises
    ------
    RunError
        The inputs are not those that `before` was made from.
    ConfigError
        A folder is read and written to.
    """
    for name in inputs:
        if any(folder.is_dir() and folder.resolve() == Path(name).resolve() for folder in written):
            raise ConfigError(
                f"Pictures would be written into {name}, among the images that are read.", cure="Name another folder."
            )
    if "-" in inputs and stdin is None:
        # Read here: an interrupted thread that waits for standard input could not be ended.
        stdin = io.BytesIO(standard_input().read(ReadLimits().bytes + 1))
    items = unfinished(read_inputs(inputs, plane=job.plane, stdin=stdin, written=written), before)
    rows = _answers(prefetch(items, 2 * max(job.batch, classifier.threads)), classifier, job, on_slice)
    return with_volumes(rows, classifier.classes, before.slices)


@dataclass(frozen=True, eq=False)
class _Computed:
    """Items, those of them that are slices, and what the network says of these."""

    group: list[Item]
    slices: list[Slice]
    pixels: Pixels
    outputs: Outputs
    seconds: float
    """That the network took."""


def _answers(items: Iterator[Item], classifier: Classifier, job: Job, on_slice: OnSlice | None) -> Iterator[Row]:
    for computed in prefetch(_computed(items, classifier, job.batch), 1):  # judged while the next ones are computed
        rows = _classified(computed, classifier, job, on_slice)
        for item in computed.group:
            yield next(rows) if isinstance(item, Slice) else failed_row(item)


def _computed(items: Iterator[Item], classifier: Classifier, batch: int) -> Iterator[_Computed]:
    error: Exception | None = None

    def readable() -> Iterator[Item]:
        nonlocal error
        try:
            yield from items
        except Exception as what:  # raised when what was read before is answered
            error = what

    groups = batched(readable(), batch)
    first = list(islice(groups, 2)) if batch < classifier.threads else []
    if len(first) == 2:
        beside = _beside(chain(first, groups), classifier, classifier.at_once(batch))
        yield from map(_joined, batched(beside, math.ceil(_TOGETHER / batch)))
    else:
        yield from (_run(group, classifier) for group in chain(first, groups))
    if error:
        raise error


def _beside(groups: Iterator[list[Item]], classifier: Classifier, at_once: int) -> Iterator[_Computed]:
    """Each group's answers in order, `at_once` of them computed at the same time."""
    running: deque[Future[_Computed]] = deque()
    with ThreadPoolExecutor(at_once, "tumorlens-batch") as pool:
        try:
            for group in groups:
                running.append(pool.submit(_run, group, classifier, alone=False))
                while running and (len(running) > at_once or running[0].done()):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _joined(several: Sequence[_Computed]) -> _Computed:
    return _Computed(
        [item for one in several for item in one.group],
        [item for one in several for item in one.slices],
        np.concatenate([one.pixels for one in several]),
        Outputs.joined([one.outputs for one in several]),
        sum(one.seconds for one in several),
    )


def _run(group: list[Item], classifier: Classifier, *, alone: bool = True) -> _Computed:
    began = time.perf_counter()
    slices = [item for item in group if isinstance(item, Slice)]
    pixels = np.stack([item.pixels for item in slices]) if slices else np.zeros((0, SIZE, SIZE, 3), np.uint8)
    outputs = classifier.run(pixels, alone=alone)
    return _Computed(group, slices, pixels, outputs, time.perf_counter() - began)


def _classified(
    computed: _Computed, classifier: Classifier, job: Job, on_slice: OnSlice | None
) -> Iterator[Row]:  # fmt: skip
    slices, outputs = computed.slices, computed.outputs
    if not slices:
        return
    began = time.perf_counter()
    judged = classifier.judge(outputs, computed.pixels, coverage=job.coverage)
    seconds = (computed.seconds + time.perf_counter() - began) / len(slices)
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
    form: Format | None = None,
    out: Path | None = None,
    resume: bool = False,
    stdin: BinaryIO | None = None,
    on_slice: OnSlice | None = None,
    pictures: Path | None = None,
) -> Report:
    """Classify inputs and write the rows as they come, to standard output or a file.

    Parameters
    ----------
    form
        `table` to read, `json` (one object a line) or `csv`; what the suffix of `out` says where absent, else a table.
    out
        A new file; standard output where absent.
    resume
        Go on with `out` where an interrupted run left it: its rows are kept, failed ones too, and a line that
        was cut off is made anew. The inputs are read again from the start, as series are told by that.
    pictures
        The folder that `on_slice` writes to. Neither it nor `out` is read as an input.

    Raises
    ------
    ConfigError
        `resume` without a file, or with a table.
    RunError
        The file is there and `resume` is not asked for, or it holds other rows; or it cannot be written.
    """
    form = form or form_of(out)
    if resume and (out is None or form == "table"):
        raise ConfigError("--resume needs a file to go on with.", cure="Say --out FILE with --format json or csv.")
    if out is not None and out.exists() and not resume:
        raise RunError(
            f"--out {out} is already there.",
            cure="Add --resume to the same command to go on with it, or name another file.",
        )
    # Rows of another plane or coverage must not be gone on with either.
    model = f"{model_name(classifier)} {job.plane} {job.coverage:g}"
    kept = finished(out, form, classifier.classes, model) if out and resume and out.exists() else _NOTHING
    written = [path for path in (out, pictures) if path is not None]
    rows = predict(inputs, classifier, job, stdin=stdin, before=kept, on_slice=on_slice, written=written)
    n, failed = kept.rows, kept.failed
    with ExitStack() as stack:
        # The stream is taken before the bar starts, which redirects sys.stdout to the terminal.
        write = _writer(stack, out, kept.bytes, "" if form == "table" else " with --resume")
        total = count_inputs(inputs, written) if out is not None or not sys.stdout.isatty() else None
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


def form_of(out: Path | None) -> Format:
    """The format of a file by its suffix; a table where that tells none, and on standard output."""
    return _SUFFIXES.get(out.suffix.lower(), "table") if out else "table"


def _writer(stack: ExitStack, out: Path | None, keep: int, again: str) -> Callable[[str], None]:
    """A function that writes a line at once, to standard output or to `out` after its first `keep` bytes; `again` is
    what the same command needs to go on after an error."""
    if out is None:
        stream = sys.stdout

        def show(text: str) -> None:
            try:
                stream.write(text)
                stream.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise RunError(
                    f"Standard output cannot be written ({error.strerror}).", cure="Free some space, or use --out FILE."
                ) from None

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
            more = f"run the same command again{again}" if again else "name another file"
            raise disk_error(error, out, more) from None

    return append


def model_name(classifier: Classifier) -> str:
    """Which classifier answers, as it stands in rows: configuration, precision, and the checkpoint's first digits."""
    card = classifier.card
    return f"{card.get('configuration')}-{card.get('precision')}-{str(card.get('checkpoint_sha256'))[:8]}"
