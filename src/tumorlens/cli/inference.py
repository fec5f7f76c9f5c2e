"""Commands that use a trained model: export, predict, explain. Registered in `cli`; light to import."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tumorlens.core.errors import Interrupted
from tumorlens.core.progress import log

FAILED = 3  # exit code: some inputs could not be read, all others were classified

# What commands share is described here; `-` is standard input.
_INPUTS = "Files, folders or zips; - for standard input; @list.txt for a list of names, one a line."
_MODEL = "An exported .onnx file, or the folder of an exported run: its classifier.onnx, else classifier-int8.onnx."
Inputs = Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, help=_INPUTS)]
Model = Annotated[Path, Parameter(help=_MODEL)]
Plane = Annotated[Literal["axial", "coronal", "sagittal"], Parameter(help="Of the slices of NIfTI volumes.")]
_HERE = Path("classifier.onnx")


def export(
    run: Path,
    *,
    configuration: str = "finetuned",
    int8: bool = False,
    out: Path | None = None,
    data: str | None = None,
    json: bool = False,
) -> None:
    """Write a run's classifier as one ONNX file that is used without torch.

    The graph must agree with torch on the validation images. Calibration, prediction
    sets and refusal are fitted on validation; test images are not looked at.

    Parameters
    ----------
    run
        Folder of the run.
    configuration
        Which of its trained configurations.
    int8
        Compute convolutions with 8-bit integers: faster, and written only if validation shows no loss.
    out
        The file; RUN/classifier.onnx or RUN/classifier-int8.onnx where absent.
    data
        The data set, where it moved since the run: a folder, a zip, phantom or kaggle.
    json
        Print what was measured as JSON.
    """
    from tumorlens.core.run_folder import Run

    Run(run).read_study()  # a wrong folder is told before torch, which takes seconds to import
    from tumorlens.export.export import export_run

    found = export_run(run, configuration, int8=int8, out=out, data=data)
    if json:
        print(json_module.dumps(found, indent=2))
        return
    parity = found["parity"]
    print(f"{found['file']}: {found['bytes'] / 1e6:.1f} MB")
    print(
        f"Against torch on {parity['n']:,} validation images: probabilities differ by at most "
        f"{parity['max_probability_difference']:.2g}, {parity['changed_decisions']} decisions changed."
    )
    if int8:
        small = found["int8"]
        print(
            f"int8 against fp32: validation accuracy {small['accuracy_int8']:.2%} and {small['accuracy_fp32']:.2%} "
            f"(McNemar p = {small['p_value']:.3g})."
        )


def predict(
    inputs: Inputs,
    /,
    *,
    model: Model = _HERE,
    heatmaps: Path | None = None,
    format: Literal["table", "json", "csv"] | None = None,
    batch: int = 32,
    plane: Plane = "axial",
    coverage: float = 0.95,
    out: Path | None = None,
    resume: bool = False,
    threads: int | None = None,
) -> int:
    """Classify images, DICOM files, NIfTI volumes, folders and zips; a row for each image or slice.

    A row tells class, calibrated probabilities, prediction set, and a verdict: ok,
    uncertain, refused: not a brain MRI, or error. A refused image gets no class.

    A volume or series of two slices or more, one of them readable, also gets a row
    for the whole, after all slices: refused where over half of the readable slices
    are; else uncertain where the model has no class notumor; else the tumour class
    that at least 3 neighbouring slices name, each ok with a probability of 0.9 or
    more; else notumor where no 2 neighbours name one so and over half of the slices,
    unreadable ones counted and refused ones not, say notumor with ok; else uncertain.

    Exit code 3: some inputs could not be read, the others were classified. Of a 4-D
    NIfTI the first volume is classified, and a row of error tells of the others.

    Parameters
    ----------
    heatmaps
        Also write a picture for each image or slice into this folder; with --resume for new rows alone.
    format
        A table to read, JSON (an object a line), or CSV, in which | parts the classes of a set; where absent
        the suffix of --out tells, and else it is a table.
    batch
        Images through the network at once; of batches smaller than the cores are many, several run side by side.
    coverage
        Share of prediction sets that hold the true class, for images like the training data.
    out
        Write the rows into this new file.
    resume
        Go on with --out FILE.csv or FILE.json, the same inputs, --model, --plane and --coverage; its rows are kept.
    threads
        Of the network; all usable cores where absent.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tumorlens.inference.classifier import load_classifier

    with ThreadPoolExecutor(1) as pool:  # ONNX Runtime opens the file while Python imports the rest
        opening = pool.submit(load_classifier, model, threads)
        from tumorlens.inference.predict import Job, form_of, predict_to

        job = Job(batch, plane, coverage)
        classifier = opening.result()
    on_slice = None
    if heatmaps is not None:
        from tumorlens.inference.explain import pictures

        on_slice = pictures(classifier, heatmaps)
    form = format or form_of(out)
    try:
        report = predict_to(
            inputs, classifier, job, form=form, out=out, resume=resume, on_slice=on_slice, pictures=heatmaps
        )
    except KeyboardInterrupt:
        if out is not None and form != "table":
            raise Interrupted("" if resume else " --resume") from None
        raise Interrupted(advice="With --out FILE.csv or FILE.json, --resume would go on from there.") from None
    return _code(report.rows, report.failed, "their rows tell why")


def explain(
    inputs: Inputs,
    /,
    *,
    out: Path,
    model: Model = _HERE,
    opacity: float = 0.6,
    contrast: str | None = None,
    dicom: bool = False,
    plane: Plane = "axial",
) -> int:
    """Draw where the network sees a class: a picture for each image or slice, beside the original.

    Colours tell where evidence for the class lies, on a grid of 7 x 7 cells; they do
    not outline a tumour. Refused images get no heat.

    Exit code 3: some inputs could not be read, as stderr tells; the others were drawn.

    Parameters
    ----------
    out
        Folder of the pictures.
    opacity
        Of the hottest place, 0 to 1.
    contrast
        Show what speaks for the called class rather than for this one.
    dicom
        For DICOM input also write secondary captures, which carry nothing of its header.
    """
    from tumorlens.inference.classifier import load_classifier
    from tumorlens.inference.explain import Look, explain_all
    from tumorlens.inference.predict import Job

    look = Look(opacity, contrast)
    report = explain_all(inputs, load_classifier(model), out, Job(plane=plane), look, dicom=dicom)
    print(f"{report.rows - report.failed:,} pictures: {out}")
    return _code(report.rows, report.failed, "the lines above tell why")


def _code(rows: int, failed: int, where: str) -> int:
    if failed:
        log.info(f"{failed:,} of {rows:,} could not be read; {where}.")
    return FAILED if failed else 0
