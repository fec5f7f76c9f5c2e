"""The audit of a data set without a study: its record, its text and its page."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.environment import peak_memory_gb
from tumorlens.core.errors import ConfigError
from tumorlens.core.files import Json, probe_writable
from tumorlens.core.progress import Clock
from tumorlens.data.audit import audit
from tumorlens.data.baselines import baselines
from tumorlens.data.dataset import open_split_dataset
from tumorlens.data.protocols import SplitOptions
from tumorlens.training.configurations import check_seed


def run_audit(
    source: str,
    *,
    cache: Path,
    seed: int = 0,
    similarity: float = 0.99,
    weights: str | None = None,
    html: Path | None = None,
    table: Path | None = None,
) -> Json:
    """Audit a data set under the official protocol.

    Parameters
    ----------
    source
        `kaggle`, `phantom`, or the path of a zip or folder.
    cache
        Folder for decoded images and features.
    seed
        Seed of generated data and of the split.
    similarity
        Thumbnail cosine from which images form a group, 0.5 to 1.
    weights
        `imagenet`, `none` or a file, for label doubts; None omits them.
    html
        File for the page, if any.
    table
        CSV file of files and classes, as `Study.table`.

    Returns
    -------
    dict
        `dataset`, `audit` (as in audit.json), `baselines` (test accuracy by name), `test_images`, `timing`,
        `peak_memory_gb`.

    Raises
    ------
    TumorlensError
        An invalid value, or data or weights that cannot be used.
    """
    if not 0.5 <= similarity <= 1:
        raise ConfigError(f"--similarity {similarity} is out of range.", cure="Use 0.5 to 1.")
    check_seed(seed)
    if html is not None:
        if html.is_dir():
            raise ConfigError(f"--html {html} is a folder.", cure="Give the path of a file.")
        probe_writable(html.parent, "--html")
    if weights:  # checked before work that takes minutes
        from tumorlens.study.experiment import find_label_doubts
        from tumorlens.training.devices import resolve_compute
        from tumorlens.training.model import build_model
        from tumorlens.training.weights import find_weights

        model = build_model(find_weights(weights), 2, 0)
    clock = Clock()
    dataset = open_split_dataset(
        source, SplitOptions(similarity=similarity), cache=cache, seed=seed, clock=clock, table=table
    )
    rows = dataset.rows
    with clock.step("shortcuts_s"):
        found = dataset.audit_record() | audit(dataset.assignment, similarity, dataset.index.thumbnails)
        lines = baselines(rows, dataset.index.thumbnails)
    if weights:
        with clock.step("doubts_s"):
            found["label_doubts"] = find_label_doubts(model, rows, dataset.folder.root, cache, resolve_compute())
    result: Json = {
        "dataset": dataset.record(),
        "audit": found,
        "baselines": {
            name: sum(line[i] == line[1] for line in lines) / len(lines)
            for i, name in ((2, "nn"), (3, "nn_mirror"), (4, "file_facts"))
        },
        "test_images": len(lines),
    }
    if html is not None:
        from tumorlens.report.audit_page import write_audit_page

        with clock.step("page_s"):
            write_audit_page(html, result, dataset.folder.root)
    return result | {"timing": {**clock.steps, "total_s": clock.total}, "peak_memory_gb": peak_memory_gb()}


def audit_text(found: Json) -> str:
    """The result of `run_audit` as text for the terminal."""
    audited, twins, baseline = found["audit"], found["audit"]["twins"], found["baselines"]
    groups, size, conflicts = audited["groups"], audited["shortcuts"]["size"], audited["conflicts"]
    counts = ("n", "exact", "same_orientation", "direct_or_mirrored", "any", "none")
    heads = ("images", "copy", "same way", "or mirrored", "any way", "no twin")
    others = {"validation": "training images", "train": "the other training images"}
    doubts = audited.get("label_doubts")
    rule = f"{size['class']} or not, by size {'x'.join(map(str, size['size']))}"
    return "\n".join([
        f"{found['dataset']['name']}: test images with a twin among the training and validation images",
        f"  {'':<14}" + "".join(f"{head:>13}" for head in heads),
        *(
            f"  {name:<14}" + "".join(f"{row[count]:>13,}" for count in counts)
            for name, row in (*twins["classes"].items(), ("all", twins["all"]))
        ),
        *[f"Which test images have none: frozen lists {name}" for name in [twins["frozen_lists"]] if name],
        *(
            f"{row['any']:,} of {row['n']:,} {split} images have a twin among {among}."
            for split, among in others.items()
            for row in [twins["others"][split]["all"]]
        ),
        f"{groups['n']:,} groups at similarity {groups['similarity']:g}: {groups['alone']:,} single images; "
        f"the largest group has {groups['largest']:,}.",
        *[f"Groups that were too large and were cut at a higher similarity: {n:,}" for n in (groups["outgrown"],) if n],
        f"Twins with different labels: {len(conflicts)}",
        *(f"  {c['paths'][0]} ({c['labels'][0]}) and {c['paths'][1]} ({c['labels'][1]})" for c in conflicts[:10]),
        *([f"Labels that disagree with those of their neighbours: {len(doubts)}"] if doubts is not None else []),
        "Test accuracy without training a network:",
        f"  {'nearest thumbnail':<32} {baseline['nn']:.1%}",
        f"  {'nearest thumbnail, or mirrored':<32} {baseline['nn_mirror']:.1%}",
        f"  {'file properties':<32} {baseline['file_facts']:.1%}",
        *([f"  {rule:<32} {size['accuracy']:.1%}"] if size["accuracy"] is not None else []),
        *_sequence_lines(audited),
        f"Files that could not be read: {len(audited['unreadable'])}",
    ])  # fmt: skip


def _sequence_lines(audited: Json) -> list[str]:
    """Lines on what sequence and plane give away."""
    found, counts = audited.get("class_from_sequence"), audited.get("sequence_by_class", {})
    lines = ["MR sequences by class, as far as looks tell:"] if counts else []
    lines += [
        f"  {label:<14} " + ", ".join(f"{n:,} {name}" for name, n in row.items() if n) for label, row in counts.items()
    ]
    if found:
        also = found["tumour_or_not"]
        lines.append(
            f"Sequence and plane alone predict the class of {found['accuracy']:.1%} of the images (always the largest "
            f"class: {found['majority']:.1%})"
            + (f", and for {also['accuracy']:.1%} whether there is a tumour ({also['majority']:.1%})." if also else ".")
        )
    return lines
