"""Commands that use a trained model: export, predict, explain. Light to import."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import ArgumentCollection, Parameter, Token, UnknownOptionError

from tumorlens.cli.options import ARGV, DATA, HARDWARE, MODEL, OUTPUT, PRINTED, Log, Model, Plane, Printed, Run, Volume
from tumorlens.cli.usage import UsageError
from tumorlens.core.errors import Interrupted
from tumorlens.core.files import probe_writable
from tumorlens.core.progress import log

if TYPE_CHECKING:
    from tumorlens.inference.records import Counts

FAILED = 3  # exit code: some inputs could not be read, all others were classified


def _no_options(_: Any, inputs: Sequence[str]) -> None:
    # `-` begins with a hyphen too, so cyclopts must accept that, and then passes every unknown option as an input.
    after_dashes = len(ARGV) - ARGV.index("--") - 1 if "--" in ARGV else 0
    for name in inputs[: len(inputs) - after_dashes]:
        if name.startswith("-") and name != "-":
            token, known = Token(keyword=name, source="cli"), ArgumentCollection()  # type: ignore[no-untyped-call]
            raise UnknownOptionError(token=token, argument_collection=known)


Inputs = Annotated[
    tuple[str, ...],
    Parameter(
        allow_leading_hyphen=True,
        validator=_no_options,
        group=DATA,
        help="Files, folders or zips; - for standard input; @list.txt for a list of names, one per line.",
    ),
]


def export(
    run: Run,
    *,
    configuration: Annotated[str, Parameter(group=DATA)] = "finetuned",
    data: Annotated[str | None, Parameter(group=DATA)] = None,
    int8: Annotated[bool, Parameter(group=OUTPUT)] = False,
    out: Annotated[
        Path | None,
        Parameter(alias="-o", group=OUTPUT, show_default="RUN/classifier.onnx or RUN/classifier-int8.onnx"),
    ] = None,
    output: Printed = PRINTED,
) -> None:
    """Write a run's classifier as one ONNX file, which runs without PyTorch.

    The exported graph is checked against PyTorch on the validation images.
    Calibration, prediction sets and the out-of-distribution threshold are fitted
    on validation images; test images are not used.

    Parameters
    ----------
    configuration
        Trained configuration to export.
    data
        The data set, if it was moved after the run: a folder, a zip, `phantom` or `kaggle`.
    int8
        Quantize convolutions to 8-bit integers, which is faster; refused if validation accuracy drops.
    out
        File to write.
    """
    from tumorlens.core.run_folder import Run as RunFolder

    folder = RunFolder(run)
    (folder.final if folder.final.study.exists() else folder).read_study()  # before torch, which is slow to import
    from tumorlens.export.export import export_run

    found = export_run(run, configuration, int8=int8, out=out, data=data)
    parity = found["parity"]
    text = (
        f"{found['file']}: {found['bytes'] / 1e6:.1f} MB\n"
        f"Compared with PyTorch on {parity['n']:,} validation images: probabilities differ by at most "
        f"{parity['max_probability_difference']:.2g}, {parity['changed_decisions']} decisions changed."
    )
    if int8:
        small = found["int8"]
        text += (
            f"\nValidation accuracy: int8 {small['accuracy_int8']:.2%}, fp32 {small['accuracy_fp32']:.2%} "
            f"(McNemar p = {small['p_value']:.3g})."
        )
    output.show(found, text)


@dataclass(frozen=True)
class PredictOptions(Log):
    """Options of `predict`."""

    model: Model = MODEL
    plane: Plane = "axial"
    volume: Volume = None
    coverage: Annotated[float, Parameter(group=DATA)] = 0.95
    """Fraction of prediction sets that contain the true class, on images like the training data."""
    out: Annotated[Path | None, Parameter(alias="-o", group=OUTPUT)] = None
    """Write the rows to this new file: .csv, .json, .jsonl, .ndjson, or .txt for a table."""
    format: Annotated[
        Literal["table", "json", "csv"] | None,
        Parameter(group=OUTPUT, show_default="by the suffix of --out, else table"),
    ] = None
    """A table for the terminal, one JSON object per line, or CSV."""
    heatmaps: Annotated[Path | None, Parameter(group=OUTPUT)] = None
    """Also write a heatmap of each image or slice to this folder."""
    resume: Annotated[bool, Parameter(group=OUTPUT)] = False
    """Continue an interrupted --out FILE.csv or FILE.json with the same inputs, model, plane and coverage."""
    batch: Annotated[int, Parameter(group=HARDWARE)] = 32
    """Images per batch; batches smaller than the number of cores run in parallel."""
    threads: Annotated[int | None, Parameter(group=HARDWARE, show_default="all usable cores")] = None
    """Threads that compute the network."""


_PREDICT = PredictOptions()


def predict(inputs: Inputs, /, *, options: Annotated[PredictOptions, Parameter(name="*")] = _PREDICT) -> int:
    """Classify images, DICOM files, NIfTI volumes, folders and zips; one row per image or slice.

    A row holds the class, calibrated probabilities, the prediction set and a
    verdict: ok, uncertain, refused: not a brain MRI, or error. A refused image
    gets no class.

    A volume or series with two or more slices, at least one of them readable,
    also gets one row for the whole, after all slices, by the rule in
    docs/using.md, "Volume-level results". A series of several volumes (echoes,
    b-values, orientations) gets one row for each; --volume chooses one.

    Exit code 3: some inputs could not be read, the others were classified. Of a
    4-D NIfTI file the first volume is classified, and an error row reports the
    others.
    """
    if options.format is None and options.out and options.out.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"--out {options.out}: rows cannot be written as {options.out.suffix or 'a file without a suffix'}.",
            cure="Use --out FILE.csv or FILE.json, or name the format: --format csv.",
        )
    if options.heatmaps:
        probe_writable(options.heatmaps, "--heatmaps")
    began = time.monotonic()
    from concurrent.futures import ThreadPoolExecutor

    from tumorlens.inference.classifier import load_classifier

    with ThreadPoolExecutor(1) as pool:  # ONNX Runtime opens the file while Python imports the rest
        opening = pool.submit(load_classifier, options.model, options.threads)
        from tumorlens.inference.predict import PredictSettings, format_for, predict_to

        settings = PredictSettings(options.batch, options.plane, options.coverage, options.volume)
        classifier = opening.result()
    on_slice = None
    if options.heatmaps:
        from tumorlens.inference.explain import picture_writer

        on_slice = picture_writer(classifier, options.heatmaps)
    form = options.format or format_for(options.out)
    try:
        counts = predict_to(
            inputs, classifier, settings, form=form, out=options.out, resume=options.resume, on_slice=on_slice,
            pictures=options.heatmaps,
        )  # fmt: skip
    except KeyboardInterrupt:
        more = None if options.out is None or form == "table" else "" if options.resume else " --resume"
        raise Interrupted(more, "With --out FILE.csv or FILE.json, --resume can continue it.") from None
    verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.verdicts.most_common())
    images = f"Images and slices: {counts.verdicts.total():,} ({verdicts or 'none'})."
    log.info(f"Files: {counts.files:,}. {images} Time: {time.monotonic() - began:,.1f} s.")
    return _code(counts, "their rows say why")


_SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True)
class ExplainOptions(Log):
    """Options of `explain`."""

    model: Model = MODEL
    plane: Plane = "axial"
    volume: Volume = None
    opacity: Annotated[float, Parameter(group=OUTPUT)] = 0.6
    """Opacity of the heatmap at its maximum, 0 to 1."""
    contrast: Annotated[str | None, Parameter(group=OUTPUT)] = None
    """Show the evidence for the predicted class over this one."""
    dicom: Annotated[bool, Parameter(group=OUTPUT)] = False
    """For DICOM input also write secondary captures, which hold nothing of the original header."""


_EXPLAIN = ExplainOptions()


def explain(
    inputs: Inputs,
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o", group=OUTPUT)],
    options: Annotated[ExplainOptions, Parameter(name="*")] = _EXPLAIN,
) -> int:
    """Draw a heatmap of the evidence for the predicted class beside each image or slice.

    Colours show where the evidence lies, on a grid of 7 x 7 cells; they do not
    outline a tumour. Refused images get no heatmap.

    Exit code 3: some inputs could not be read, and stderr says why; the others were
    drawn.

    Parameters
    ----------
    out
        Folder for the pictures.
    """
    probe_writable(out)
    from tumorlens.inference.classifier import load_classifier
    from tumorlens.inference.explain import PictureOptions, explain_all
    from tumorlens.inference.predict import PredictSettings

    counts = explain_all(
        inputs, load_classifier(options.model), out, PredictSettings(plane=options.plane, volume=options.volume),
        PictureOptions(options.opacity, options.contrast), dicom=options.dicom,
    )  # fmt: skip
    print(f"Pictures in {out}: {counts.records - counts.failed:,}")
    return _code(counts, "the lines above say why")


def _code(counts: Counts, where: str) -> int:
    if counts.failed:
        log.warning(f"{counts.failed:,} of {counts.records:,} could not be read; {where}.")
    return FAILED if counts.failed else 0
