"""An audit of a data set alone, without a study: its record, its text and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.core.environment import peak_memory_gb
from tumorlens.core.errors import ConfigError
from tumorlens.core.files import Json, probe_writable
from tumorlens.core.progress import Clock
from tumorlens.data.audit import audit
from tumorlens.data.baselines import baselines
from tumorlens.data.dataset import open_split_dataset
from tumorlens.data.protocols import SplitOptions
from tumorlens.training.configurations import check_seed

if TYPE_CHECKING:
    from tumorlens.training.weights import Weights


def run_audit(
    source: str,
    *,
    cache: Path,
    seed: int = 0,
    similarity: float = 0.99,
    weights: str | None = None,
    html: Path | None = None,
) -> Json:
    """Audit a data set under the official protocol.

    Parameters
    ----------
    source
        As `fetch` takes it.
    cache
        Folder of caches.
    seed
        Of generated data and of the split.
    similarity
        Thumbnail cosine from which images belong together, 0.5 to 1.
    weights
        As `find_weights` takes it, for doubts about labels; None leaves them out.
    html
        Where to write a page.

    Returns
    -------
    dict
        `dataset`, `audit` (as in audit.json), `baselines` (accuracy on test by name), `timing`, `peak_memory_gb`.
    """
    if not 0.5 <= similarity <= 1:
        raise ConfigError(f"--similarity {similarity} is out of range.", cure="Say 0.5 to 1.")
    check_seed(seed)
    if html is not None:
        if html.is_dir():
            raise ConfigError(f"--html {html} is a folder.", cure="Name a file.")
        probe_writable(html.parent, "--html")
    start: Weights | None = None
    if weights:  # what can fail at once comes before work that takes minutes
        from tumorlens.training.weights import find_weights

        start = find_weights(weights)
    clock = Clock()
    dataset = open_split_dataset(source, SplitOptions(similarity=similarity), cache=cache, seed=seed, clock=clock)
    rows = dataset.rows
    with clock.step("shortcuts_s"):
        found = dataset.audit_record() | audit(dataset.assignment, similarity)
        lines = baselines(rows, dataset.index.thumbnails)
    if start is not None:
        from tumorlens.study.experiment import find_label_doubts
        from tumorlens.training.devices import resolve_compute
        from tumorlens.training.model import build_model

        with clock.step("doubts_s"):
            model = build_model(start, 2, 0)
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
    """The audit as lines for the terminal."""
    audited, twins = found["audit"], found["audit"]["twins"]
    titles = ("n", "exact", "same_orientation", "direct_or_mirrored", "any", "none")
    heads = ("images", "copy", "same way", "or mirrored", "any way", "no twin")
    lines = [f"{found['dataset']['name']}: test images with a twin among the images to learn from"]
    lines.append(f"  {'':<14}" + "".join(f"{head:>13}" for head in heads))
    for name, counts in (*twins["classes"].items(), ("all", twins["all"])):
        lines.append(f"  {name:<14}" + "".join(f"{counts[title]:>13,}" for title in titles))
    for part, among in (("validation", "those of training"), ("train", "the others of training")):
        counts = twins["others"][part]["all"]
        lines.append(f"Of {counts['n']:,} {part} images {counts['any']:,} have a twin among {among}.")
    groups = audited["groups"]
    lines.append(
        f"{groups['n']:,} groups at similarity {groups['similarity']:g}; {groups['alone']:,} images stand alone; "
        f"the largest group has {groups['largest']:,}."
    )
    if n := groups["outgrown"]:
        lines.append(f"Groups that had chained too many images and were cut at a higher similarity: {n:,}")
    lines.append(f"Twins with different labels: {len(audited['conflicts'])}")
    for c in audited["conflicts"][:10]:
        lines.append(f"  {c['paths'][0]} ({c['labels'][0]}) and {c['paths'][1]} ({c['labels'][1]})")
    if "label_doubts" in audited:
        lines.append(f"Labels that neighbours doubt: {len(audited['label_doubts'])}")
    lines.append("Without learning, accuracy on the test images:")
    for name, title in (
        ("nn", "nearest thumbnail"),
        ("nn_mirror", "nearest thumbnail, mirrored too"),
        ("file_facts", "facts of the file"),
    ):
        lines.append(f"  {title:<32} {found['baselines'][name]:.1%}")
    size = audited["shortcuts"]["size"]
    if size["accuracy"] is not None:
        what = f"{size['size'][0]}x{size['size'][1]} or not tells {size['class']}"
        lines.append(f"  {what:<32} {size['accuracy']:.1%}")
    lines.append(f"Unreadable files: {len(audited['unreadable'])}")
    return "\n".join(lines)
