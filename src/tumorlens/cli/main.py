"""Thin commands over the Python API. Results go to stdout; progress and log go to stderr.

Exit codes: 0 done, 1 an error that the user can cure, 2 wrong usage, 3 done but some inputs were unreadable,
130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import io
import json as json_module
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from tumorlens.cli import inference as cli_use
from tumorlens.cli import serve as cli_serve
from tumorlens.core.errors import (
    Interrupted,
    MissingExtraError,
    RunError,
    TumorlensError,
)
from tumorlens.core.files import cache_dir, disk_error, read_json
from tumorlens.core.progress import log, log_to_stderr
from tumorlens.core.version import __version__
from tumorlens.study.options import Study
from tumorlens.training.distributed import (
    launcher,
    leads,
    quiet_followers,
    refuse_several,
)

app = App(
    name="tumorlens",
    version=__version__,
    help="Classify brain-MRI slices with ResNet18, compare training strategies, and see how far each number goes.",
    help_epilogue="Start with: tumorlens study --data phantom",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    # All fields of Study are options but on_epoch, which is a function.
    default_parameter=Parameter(negative="", consume_multiple=True, parse=re.compile("^(?!on_epoch$)")),
)
data = App(name="data", help="Fetch a data set, or check one.", help_format="plaintext")
app.command(data)
app.command(cli_use.export, help_epilogue="Example: tumorlens export runs/mine")
app.command(cli_use.predict, help_epilogue="Example: tumorlens predict head.nii.gz slices/ --model runs/mine")
app.command(cli_use.explain, help_epilogue="Example: tumorlens explain a.png --model runs/mine --out pictures")
app.command(cli_serve.serve, help_epilogue="Example: tumorlens serve --model runs/mine")

Options = Annotated[Study, Parameter(name="*")]
_DEFAULT = Study()


@app.command(
    help_epilogue="Example: tumorlens study --data archive.zip --weights resnet18-f37072fd.pth --out runs/mine"
)
def study(options: Options = _DEFAULT, *, json: bool = False) -> None:
    """Train, test and compare the configurations on one data set, and write a report.

    The same command again goes on where an interrupted one stopped.

    Parameters
    ----------
    json
        Print the machine-readable result on stdout.
    """
    from tumorlens.study.run import run_study

    result = run_study(options, command=_command())
    if json:
        _print_json(result.to_dict())
    elif result.cross_validation is not None:
        from tumorlens.study.cross_validation import folds_text

        print(folds_text(result.cross_validation))
        print(f"Report: {result.report}")
    else:
        _print_summary(result.comparison)
        print(f"Report: {result.report}")


@app.command(help_epilogue="Example: tumorlens train --data phantom --configurations initial --out runs/mine")
def train(options: Options = _DEFAULT, *, json: bool = False) -> None:
    """Prepare the data and train the configurations, without testing them.

    Parameters
    ----------
    json
        Print a summary of each training on stdout.
    """
    from tumorlens.study.run import train_study

    bench = train_study(options, command=_command())
    found = {c.name: read_json(bench.run.training(c.name)) for c in bench.configurations}
    if json:
        _print_json(found)
        return
    for name, summary in found.items():
        print(f"{name}: {bench.run.folder(name) / summary['checkpoint']}")
    print(f"Next: tumorlens evaluate {shlex.quote(str(bench.run.root))}")


@app.command(help_epilogue="Example: tumorlens evaluate runs/mine")
def evaluate(run: Path, *, json: bool = False) -> None:
    """Predict every image with a run's trained configurations; write predictions and metrics.

    Parameters
    ----------
    run
        Folder of the run.
    json
        Print the metrics on stdout.
    """
    from tumorlens.study.stages import evaluate_run

    metrics = evaluate_run(run)
    if json:
        _print_json(metrics)
        return
    for name, found in metrics.items():
        print(f"{name}, test:\n{found['parts']['test']['text']}")
    print(f"Next: tumorlens compare {shlex.quote(str(run))}")


@app.command(help_epilogue="Example: tumorlens compare runs/kaggle-seed0 runs/kaggle-seed1 runs/kaggle-seed2")
def compare(runs: tuple[Path, ...], /, *, json: bool = False) -> None:
    """Compare the configurations of a run; with several runs, also sum up over them (seeds).

    Parameters
    ----------
    runs
        Folders of evaluated runs.
    json
        Print the comparison on stdout.
    """
    from tumorlens.study.stages import compare_run, sum_up

    if not runs:
        raise RunError("No run is named.", cure="Name a run's folder, such as runs/kaggle-seed0.")
    compared = {str(run): compare_run(run) for run in runs}
    if len(runs) == 1:
        only = compared[str(runs[0])]
        _print_json(only) if json else _print_summary(only)
        return
    summary = sum_up(runs)
    if json:
        _print_json({"runs": compared, "summary": summary})
        return
    for name, found in summary.items():
        print(
            f"{name}: test accuracy mean {found['mean']:.2%}, "
            f"range {found['min']:.2%} to {found['max']:.2%}, {found['n']} runs"
        )
        if (pair := found.get("against_first")) and pair["p_value"] is not None:
            print(
                f"  {pair['mean_difference'] * 100:+.2f} points against {pair['first']} "
                f"(paired t-test over runs: p = {pair['p_value']:.3g})"
            )


@app.command(help_epilogue="Example: tumorlens report runs/mine")
def report(run: Path, *, images: Path | None = None, json: bool = False) -> None:
    """Write the report of a compared run as one offline HTML file.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Folder of the data set's images, where it moved since the run.
    json
        Print the report's path as JSON.
    """
    from tumorlens.study.stages import report_run

    path = report_run(run, images=images)
    if json:
        _print_json({"report": str(path)})
    else:
        print(path)


@data.command(help_epilogue="Example: tumorlens data fetch kaggle")
def fetch(source: str = "kaggle", *, cache: Path | None = None, seed: int = 0, json: bool = False) -> None:
    """Get a data set as a verified folder of images and print where it is.

    Parameters
    ----------
    source
        kaggle (version 1, pinned), phantom (generated), a zip as Kaggle ships it, or a folder.
    cache
        Where extracted and generated data goes; $TUMORLENS_CACHE or the user's cache folder where absent.
    seed
        Seed of generated data.
    json
        Print folder, classes and source as JSON.
    """
    from tumorlens.data.fetch import fetch as fetch_data

    folder = fetch_data(source, cache=cache or cache_dir(), seed=seed)
    if json:
        _print_json({"root": str(folder.root), "classes": list(folder.classes), "source": folder.source})
    else:
        print(folder.root)


@data.command(help_epilogue="Example: tumorlens data check archive.zip")
def check(source: str, *, cache: Path | None = None, seed: int = 0, json: bool = False) -> None:
    """Look at every file of a data set: which data set it is, what is unreadable, missing or doubled.

    Parameters
    ----------
    source
        kaggle, phantom, a zip as Kaggle ships it, or a folder.
    cache
        Where extracted and generated data goes; $TUMORLENS_CACHE or the user's cache folder where absent.
    seed
        Seed of generated data.
    json
        Print the result as JSON.
    """
    from tumorlens.data.dataset import open_dataset

    opened = open_dataset(source, cache=cache or cache_dir(), seed=seed)
    dataset, audit = opened.record(), opened.audit_record()
    if json:
        _print_json({"dataset": dataset, "audit": audit})
        return
    print(f"{dataset['name']}: {dataset['n_images']:,} images in {dataset['root']}")
    for part, counts in dataset["counts"].items():
        print(f"  {part}: " + ", ".join(f"{label} {n:,}" for label, n in counts.items()))
    for note in dataset["notes"]:
        print(note)
    print(f"Fingerprint: {dataset['fingerprint']}")
    print(f"Files that differ only in name: {len(audit['same_content'])} groups")
    print(f"Unreadable files: {len(audit['unreadable'])}")
    for item in audit["unreadable"][:20]:
        print(f"  {item['path']}: {item['reason']}")
    if len(audit["unreadable"]) > 20:
        print(f"  and {len(audit['unreadable']) - 20} more; --json lists all")


@data.command(help_epilogue="Example: tumorlens data audit archive.zip --html audit.html")
def audit(
    source: str,
    *,
    html: Path | None = None,
    weights: str | None = None,
    similarity: float = 0.99,
    cache: Path | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Find what a data set gives away: twins of test images in Training, conflicting labels, shortcuts.

    Parameters
    ----------
    source
        kaggle, phantom, a zip as Kaggle ships it, or a folder.
    html
        Also write a page with the worst leaks as pairs of pictures.
    weights
        imagenet or a ResNet18 state-dict file: also list labels that neighbours in its features doubt.
    similarity
        Thumbnail cosine from which images belong together.
    cache
        Where extracted and generated data goes; $TUMORLENS_CACHE or the user's cache folder where absent.
    seed
        Seed of generated data, and of the split of a data set without a test folder.
    json
        Print the result as JSON.
    """
    from tumorlens.study.audit import audit_text, run_audit

    found = run_audit(source, cache=cache or cache_dir(), seed=seed, similarity=similarity, weights=weights, html=html)
    if json:
        _print_json(found)
        return
    print(audit_text(found))
    if html:
        print(f"Page: {html}")


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2, ensure_ascii=False))


def _print_summary(comparison: Any) -> None:
    from tumorlens.evaluation.summary import summary_text

    print(summary_text(comparison))


_argv: list[str] = []


def _command() -> str:
    """The command line that repeats this run."""
    return shlex.join([*launcher(), "tumorlens", *_argv])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _argv[:] = sys.argv[1:] if argv is None else argv
    log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal has no letters for is shown all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        refuse_several(_argv)
        with quiet_followers():
            code = app(_argv, exit_on_error=False, result_action="return_value")
        print(end="", flush=True)  # here a closed pipe and a full disk are told of
    except CycloptsError:
        return 2 if leads() else 0  # cyclopts has printed what is wrong
    except TumorlensError as error:
        _say_error(error)
        return 1
    except KeyboardInterrupt as stop:
        log.info(f"\nInterrupted. {_going_on(stop)}".rstrip())
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tumorlens"):
            raise
        _say_error(MissingExtraError(error.name or "?", "study"))
        return 1
    except BrokenPipeError:
        return 141  # as a shell tells of a closed pipe; what was not finished is not done
    except OSError as error:
        if error.filename is None:  # a temporary file, or standard output
            where = f"on the disk of {tempfile.gettempdir()} and where the output goes"
            _say_error(RunError(f"Nothing more can be written ({error.strerror}).", cure=f"Free some space {where}."))
        else:
            _say_error(disk_error(error, Path(str(error.filename))))
        return 1
    return code if isinstance(code, int) else 0


def _going_on(stop: KeyboardInterrupt) -> str:
    if not isinstance(stop, Interrupted):
        stop = Interrupted("" if _argv[:1] in (["study"], ["train"]) else None)
    if stop.more is None:
        return stop.advice
    return f"What was finished is kept; this goes on from there:\n  {_command()}{stop.more}"


def _say_error(error: TumorlensError) -> None:
    log.error(f"Error: {error.what}")
    if error.cure:
        log.error(f"  → {error.cure}")


if __name__ == "__main__":
    sys.exit(main())
