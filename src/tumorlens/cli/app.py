"""The commands of a study and its stages, and the program itself: thin commands over the Python API.

Results go to stdout; progress and log go to stderr.

Exit codes: 0 done, 1 an error that the user can cure, 2 wrong usage, 3 done but some inputs could not be read,
130 interrupted, 141 output pipe closed.
"""

from __future__ import annotations

import io
import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from tumorlens.cli import inference
from tumorlens.cli.data import data
from tumorlens.cli.options import (
    ARGV,
    DATA,
    FILE,
    FOLDER,
    HARDWARE,
    OUTPUT,
    PRINTED,
    TRAINING,
    Printed,
    Run,
    in_groups,
    shown_default,
)
from tumorlens.cli.serve import serve
from tumorlens.cli.usage import UsageError, usage_error
from tumorlens.core.errors import Interrupted, MissingExtraError, RunError, TumorlensError
from tumorlens.core.files import disk_error, read_json
from tumorlens.core.progress import log, log_to_stderr
from tumorlens.core.streams import replace_closed_streams
from tumorlens.core.version import __version__
from tumorlens.study.options import Study
from tumorlens.training.distributed import is_rank0, launch_prefix, refuse_multiple_processes, silence_other_ranks

app = App(
    name="tumorlens",
    version=__version__,
    version_flags=["--version", "-v"],
    help="Classify brain-MRI slices with ResNet18, compare training strategies, and see how far to trust each number.",
    help_epilogue="Start with: tumorlens study phantom",
    help_format="plaintext",
    group_commands=Group("Options", sort_key=3),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative="", consume_multiple=True, show_default=shown_default),
)
STUDY, MODEL = Group("Study", sort_key=0), Group("Use a trained model", sort_key=1)
_GROUPS = {
    DATA: ("data", "table", "split", "protocol", "group_similarity", "groups", "group_pattern",
           "no_group_folders", "folds", "repeats", "fold", "final_model", "cache"),
    TRAINING: ("weights", "random_weights_if_unavailable", "configurations", "config", "finetuned_start",
               "head_solver", "max_epochs", "seed"),
    HARDWARE: ("device", "precision", "convolutions"),
    OUTPUT: ("out", "tensorboard"),
}  # fmt: skip


class StudyOptions(Study):
    """The fields of `Study`, in groups."""

    __annotations__ = in_groups(
        Study,
        _GROUPS,
        out={"alias": "-o"},
        groups={"validator": FILE},
        split={"validator": FILE},
        table={"validator": FILE},
    )


Options = Annotated[StudyOptions, Parameter(name="*")]
_DEFAULT = StudyOptions()


@app.command(
    group=STUDY,
    usage="Usage: tumorlens study [DATA] [OPTIONS]",
    help_epilogue="Example: tumorlens study phantom --weights none --max-epochs 3 --out runs/mine",
)
def study(options: Options = _DEFAULT, *, output: Printed = PRINTED) -> None:
    """Train, test and compare the configurations on one data set, and write a report.

    The same command again continues an interrupted run.
    """
    from tumorlens.evaluation.summary import summary_text
    from tumorlens.study.cross_validation import folds_text
    from tumorlens.study.run import run_study

    result = run_study(Study(**vars(options)), command=_command())
    text = folds_text(result.cross_validation) if result.cross_validation else summary_text(result.comparison or {})
    output.show(result.to_dict(), f"{text}\nReport: {result.report}")


@app.command(
    group=STUDY,
    usage="Usage: tumorlens train [DATA] [OPTIONS]",
    help_epilogue="Example: tumorlens train phantom --weights none --configurations initial --out runs/mine",
)
def train(options: Options = _DEFAULT, *, output: Printed = PRINTED) -> None:
    """Prepare the data and train the configurations, without testing them."""
    from tumorlens.study.run import train_study

    bench = train_study(Study(**vars(options)), command=_command())
    found = {c.name: read_json(bench.run.training(c.name)) for c in bench.configurations}
    lines = [f"{name}: {bench.run.folder(name) / summary['checkpoint']}" for name, summary in found.items()]
    output.show(found, "\n".join([*lines, f"Next: tumorlens evaluate {shlex.quote(str(bench.run.root))}"]))


@app.command(group=STUDY, help_epilogue="Example: tumorlens evaluate runs/mine")
def evaluate(run: Run, *, data: Annotated[str | None, Parameter(group=DATA)] = None, output: Printed = PRINTED) -> None:
    """Predict every image with a run's trained configurations; write predictions and metrics.

    Parameters
    ----------
    data
        The data set, if it was moved after the run: a folder, a zip, `phantom` or `kaggle`.
    """
    from tumorlens.study.stages import evaluate_run

    metrics = evaluate_run(run, data)
    lines = [
        f"{name}, {split}:\n{found['parts'][split]['text']}"
        for name, found in metrics.items()
        for split in (["test"] if "test" in found["parts"] else ["validation"])
    ]
    tested = all("test" in found["parts"] for found in metrics.values())
    command = f"compare {shlex.quote(str(run))}" if tested else f"export {shlex.quote(str(run))}"
    output.show(metrics, "\n".join([*lines, f"Next: tumorlens {command}"]))


@app.command(
    group=STUDY, help_epilogue="Example: tumorlens compare runs/kaggle-seed0 runs/kaggle-seed1 runs/kaggle-seed2"
)
def compare(
    runs: Annotated[tuple[Path, ...], Parameter(group=DATA, help="Folders of evaluated runs.")],
    /,
    *,
    output: Printed = PRINTED,
) -> None:
    """Compare the configurations of a run; given several runs, also summarise over them (seeds)."""
    from tumorlens.evaluation.summary import summary_text
    from tumorlens.study.stages import compare_run, sum_up

    compared = {str(run): compare_run(run) for run in runs}
    if len(runs) == 1:
        only = compared[str(runs[0])]
        output.show(only, summary_text(only))
        return
    summary, lines = sum_up(runs), []
    for name, found in summary.items():
        lines.append(
            f"{name}: test accuracy mean {found['mean']:.2%}, "
            f"range {found['min']:.2%} to {found['max']:.2%}, {found['n']} runs"
        )
        if (pair := found.get("against_first")) and pair["p_value"] is not None:
            lines.append(
                f"  {pair['mean_difference'] * 100:+.2f} points against {pair['first']} "
                f"(paired t-test over runs: p = {pair['p_value']:.3g})"
            )
    output.show({"runs": compared, "summary": summary}, "\n".join(lines))


@app.command(group=STUDY, help_epilogue="Example: tumorlens report runs/mine")
def report(
    run: Run,
    *,
    images: Annotated[Path | None, Parameter(group=DATA, validator=FOLDER)] = None,
    output: Printed = PRINTED,
) -> None:
    """Write the report of a compared run as one offline HTML file.

    Parameters
    ----------
    images
        Folder of the data set's images, if it was moved after the run.
    """
    from tumorlens.study.stages import report_run

    path = report_run(run, images=images)
    output.show({"report": str(path)}, str(path))


app.command(inference.export, group=MODEL, help_epilogue="Example: tumorlens export runs/mine")
app.command(
    inference.predict, group=MODEL, help_epilogue="Example: tumorlens predict head.nii.gz slices/ --model runs/mine"
)
app.command(
    inference.explain, group=MODEL, help_epilogue="Example: tumorlens explain a.png --model runs/mine --out pictures"
)
app.command(serve, group=MODEL, help_epilogue="Example: tumorlens serve --model runs/mine")
app.command(data)


def _command() -> str:
    """The command line that repeats this run."""
    return shlex.join([*launch_prefix(), "tumorlens", *ARGV])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    ARGV[:] = sys.argv[1:] if argv is None else argv
    replace_closed_streams()
    log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        refuse_multiple_processes(ARGV)
        with silence_other_ranks():
            code = _run()
        print(end="", flush=True)  # a closed pipe or a full disk raises here, not at exit
    except CycloptsError as error:
        return _failed(usage_error(error)) if is_rank0() else 0
    except TumorlensError as error:
        return _failed(error)
    except KeyboardInterrupt as stop:
        log.warning(f"\nInterrupted. {_how_to_continue(stop)}".rstrip())
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tumorlens"):
            raise
        return _failed(MissingExtraError(error.name or "?", "serve" if ARGV[:1] == ["serve"] else "study"))
    except BrokenPipeError:
        return 141  # 128 + SIGPIPE, as a shell reports it
    except OSError as error:
        if error.filename is not None:
            return _failed(disk_error(error, Path(str(error.filename))))
        where = f"on the disk of {tempfile.gettempdir()} and of the output"  # a temporary file, or standard output
        return _failed(RunError(f"Nothing more can be written ({error.strerror}).", cure=f"Free some space {where}."))
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # as rich ends the process, with exit code 1
            return 141
        raise
    return code if isinstance(code, int) else 0


def _run() -> Any:
    command, given, _ = app.parse_args(ARGV, exit_on_error=False, print_error=False)
    if any(getattr(options, "quiet", False) for options in given.arguments.values()):
        log.setLevel(logging.WARNING)
    return command(*given.args, **given.kwargs)


def _how_to_continue(stop: KeyboardInterrupt) -> str:
    if not isinstance(stop, Interrupted):
        stop = Interrupted("" if ARGV[:1] in (["study"], ["train"]) else None)
    if stop.more is None:
        return stop.advice
    return f"Finished parts are kept; this continues:\n  {_command()}{stop.more}"


def _failed(error: TumorlensError) -> int:
    """Print an error; returns the exit code."""
    log.error(f"Error: {error.what}" + (f"\n  → {error.cure}" if error.cure else ""))
    return 2 if isinstance(error, UsageError) else 1
