"""Commands on data sets: data fetch, data check, data audit. Light to import."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from tumorlens.cli.options import DATA, FILE, OUTPUT, PRINTED, Printed
from tumorlens.cli.usage import UsageError
from tumorlens.core.files import cache_dir, probe_writable
from tumorlens.core.progress import log

data = App(
    name="data",
    group=Group("Data sets", sort_key=2),
    group_commands=Group("Commands"),
    help="Fetch, check or audit a data set.",
    help_epilogue="Start with: tumorlens data check phantom",
    help_format="plaintext",
)

_SOURCE = "`kaggle` (version 1, pinned), `phantom` (generated slices), a zip as Kaggle ships it, or a folder."
_CACHE = Parameter(
    group=DATA,
    help="Folder for extracted and generated data.",
    show_default="$TUMORLENS_CACHE, else the user's cache folder",
)
Source = Annotated[str, Parameter(alias="--data", group=DATA, help=_SOURCE)]
Table = Annotated[
    Path | None,
    Parameter(group=DATA, validator=FILE, help="CSV file of files or series and their classes, as `study` takes it."),
]
MaybeSource = Annotated[str | None, Parameter(alias="--data", group=DATA, help=f"{_SOURCE} Needed without --table.")]
Cache = Annotated[Path | None, _CACHE]
Seed = Annotated[int, Parameter(group=DATA, help="Seed of generated slices, and of any split that is drawn.")]


@data.command(help_epilogue="Example: tumorlens data fetch phantom")
def fetch(
    source: Source = "kaggle", *, table: Table = None, cache: Cache = None, seed: Seed = 0, output: Printed = PRINTED
) -> None:
    """Get a data set as a verified folder of images and print its path."""
    from tumorlens.data.fetch import fetch as fetch_data

    folder = fetch_data(source, cache=cache or cache_dir(), seed=seed, table=table)
    for note in folder.notes:
        log.warning(f"Note: {note}")
    found = {"root": str(folder.root), "classes": list(folder.classes), "source": folder.source, "notes": folder.notes}
    output.show(found, str(folder.root))


@data.command(help_epilogue="Example: tumorlens data check phantom")
def check(
    source: MaybeSource = None, *, table: Table = None, cache: Cache = None, seed: Seed = 0, output: Printed = PRINTED
) -> None:
    """Read every file of a data set; identify it, and list unreadable files and exact copies."""
    from tumorlens.data.dataset import open_dataset
    from tumorlens.data.datasheets import TESTING, VALIDATION
    from tumorlens.data.patients import find_patients, in_both_parts

    opened = open_dataset(_named(source, table), cache=_writable(cache), seed=seed, table=table)
    dataset, audit = opened.record(), opened.audit_record()
    patients = find_patients(opened.index)
    dataset["patients"] = patients and patients.record()
    unreadable = audit["unreadable"]
    reasons = "; ".join(f"{n:,} {why}" for why, n in Counter(item["reason"] for item in unreadable).most_common(5))
    lines = [
        f"{dataset['name']}: {dataset['n_images']:,} images in {dataset['root']}",
        *(f"  Note: {note}" for note in opened.notes),
        *(f"  {part} ({dataset['folders'][part]}): " + ", ".join(f"{label} {n:,}" for label, n in counts.items())
          for part, counts in dataset["counts"].items()),
        *(f"  {part}: no folder; a study splits its images off Training"
          for part in (VALIDATION, TESTING) if part not in dataset["counts"]),
        *([*patients.lines(), *in_both_parts(opened.index.rows, patients)] if patients else []),
        *opened.identity.notes,
        f"Fingerprint: {dataset['fingerprint']}",
        f"Groups of identical files: {len(audit['same_content'])}",
        f"Unreadable files: {len(unreadable)}" + (f" ({reasons})" if unreadable else ""),
        *(f"  {item['path']}: {item['reason']}" for item in unreadable[:20]),
        *([f"  and {len(unreadable) - 20} more, which --json lists"] if len(unreadable) > 20 else []),
    ]  # fmt: skip
    output.show({"dataset": dataset, "audit": audit}, "\n".join(lines))


@data.command(help_epilogue="Example: tumorlens data audit phantom --html audit.html")
def audit(
    source: MaybeSource = None,
    *,
    table: Table = None,
    weights: Annotated[str | None, Parameter(group=DATA)] = None,
    similarity: Annotated[float, Parameter(group=DATA)] = 0.99,
    cache: Cache = None,
    seed: Seed = 0,
    html: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    output: Printed = PRINTED,
) -> None:
    """Find what inflates test accuracy: near-duplicates of test images, conflicting labels, shortcuts.

    Parameters
    ----------
    weights
        `imagenet` or a ResNet18 state-dict file: also list labels that disagree with neighbours in its features.
    similarity
        Cosine similarity of thumbnails from which two images count as near-duplicates.
    html
        Also write a page with the worst leaks as pairs of pictures.
    """
    from tumorlens.study.audit import audit_text, run_audit

    found = run_audit(
        _named(source, table),
        cache=_writable(cache),
        seed=seed,
        similarity=similarity,
        weights=weights,
        html=html,
        table=table,
    )
    output.show(found, audit_text(found) + (f"\nPage: {html}" if html else ""))


def _named(source: str | None, table: Path | None) -> str:
    if source is None and table is None:
        raise UsageError("This command needs a data set.", cure="Name kaggle, phantom, a zip or folder, or a --table.")
    return source or "kaggle"  # of which nothing is used with a table


def _writable(named: Path | None) -> Path:
    folder = named or cache_dir()
    probe_writable(folder, "--cache")
    return folder
