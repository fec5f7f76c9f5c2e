"""docs/performance.md and its plots, from what the benchmarks left in benchmarks/results/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).resolve().parent
#: Goals of the project, as rows of the table: figure, what it is, goal, form of the number.
GOALS = (
    ("speedup.initial_50_epochs", "`initial`, 50 epochs, cache included", "≥ 50×", "%.0f×"),
    ("speedup.initial_further_epoch", "`initial`, a further epoch", "≥ 500×", "%.0f×"),
    ("speedup.finetuned_epoch_fp32", "`finetuned`, an epoch, fp32", "≥ 3×", "%.2f×"),
    ("speedup.finetuned_epoch_bf16", "`finetuned`, an epoch, bf16", "≥ 6×", "%.2f×"),
    ("speedup.study", "whole study, cold, same epochs (bf16, what `auto` takes here)", "≥ 15×", "%.1f×"),
    ("study.cold_minutes", "the same study, in minutes", "≤ 10", "%.1f"),
    ("speedup.study_fp32", "whole study with `--precision fp32`, cold, same epochs", "≥ 15×", "%.1f×"),
    ("study.cold_minutes_fp32", "the same study, in minutes", "≤ 10", "%.1f"),
    ("prefix.over_bare_convolutions", "frozen layers over their convolutions alone", "≤ 1.3", "%.2f"),
    ("decode.images_per_s_core", "images decoded and resized a second and core", "≥ 600", "%.0f"),
    ("memory.growth_8k_to_64k", "peak memory from 8,000 to 64,000 images", "≤ +0.10", "%+.3f"),
    ("folds.cost_over_one", "five folds over one", "≤ 5", "%.2f"),
    ("predict.first_answer_s", "`predict`, first answer of a fresh process, seconds", "< 1", "%.2f"),
    ("predict.speedup_fp32_batch32", "`predict` over torch, fp32, batches of 32", "≥ 1.6×", "%.2f×"),
    ("predict.speedup_int8_batch32", "`predict` over torch, int8, batches of 32", "≥ 4×", "%.2f×"),
    ("predict.speedup_int8_batch1", "`predict` over torch, int8, one by one", "≥ 4×", "%.2f×"),
    ("predict.speedup_int8_alone", "`predict` over torch, int8, a lone image from file to row", "≥ 4×", "%.2f×"),
    ("serve.throughput_over_plain", "`serve` over a plain torch service", "≥ 4×", "%.2f×"),
    ("serve.lost", "answers lost under load", "0", "%.0f"),
    ("serve.wrong", "wrong answers under load", "0", "%.0f"),
    ("serve.memory_growth", "memory of the service under load and faults", "≤ +0.10", "%+.3f"),
    ("page.axe_violations", "violations that axe finds on the page", "0", "%.0f"),
    ("fuzz.crashes", "crashes of the readers on mutated files", "0", "%.0f"),
    ("gpu.study_s", "study on one GPU, decoding apart, seconds", "≤ 30", "%.1f"),
    ("gpu.finetuned_images_per_s", "`finetuned` on one GPU, images/s", "≥ 15,000", "%.0f"),
    ("gpu.speedup_over_naive", "an epoch of `finetuned` over the notebook's on the same GPU", "≥ 8×", "%.1f×"),
)
STUDIES = ("study_bf16", "study_fp32")  # parts of speed.json; the first is what `auto` takes on a processor with bf16
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#1f2933}.q{fill:#52606d}.a{fill:#9aa5b1}.b{fill:#2b6cb0}"
    "line{stroke:#cbd2d9}@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.q{fill:#9aa5b1}}</style>"
)


def bars(title: str, rows: Sequence[tuple[str, float, str, str]]) -> str:
    """A bar a row as SVG: name, length, text beside it, and class `a` (baseline) or `b` (ours)."""
    left, width, step = 190, 700, 26
    longest = max((value for _, value, _, _ in rows), default=1.0) or 1.0
    parts = [f'<text x="0" y="16" font-weight="600">{title}</text>']
    for i, (name, value, text, kind) in enumerate(rows):
        y = 30 + i * step
        length = max(1.0, (width - left - 90) * value / longest)
        parts += [
            f'<text class="q" x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
            f'<rect class="{kind}" x="{left}" y="{y + 2}" width="{length:.1f}" height="16" rx="2"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 14}">{text}</text>',
        ]
    height = 36 + len(rows) * step
    label = f"{title}: " + "; ".join(f"{name} {text}" for name, _, text, _ in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{_STYLE}{''.join(parts)}</svg>\n"
    )


def plots(found: dict[str, Any]) -> dict[str, str]:
    """File name → SVG, for what was measured."""
    drawn = {}
    speed = found.get("speed", {})
    if "epochs" in speed:
        rows = [
            (name, one["median"], f"{one['median']:.3g} s", "a" if name.startswith("baseline") else "b")
            for name, one in speed["epochs"]["epoch_seconds"].items()
        ]
        drawn["epochs.svg"] = bars("Seconds an epoch", rows)
    for name in [name for name in STUDIES if name in speed]:
        steps = {k: v for k, v in speed[name]["steps"].items() if k != "total_s"}
        rows = [(k[:-2].replace("_", " "), v, f"{v:.1f} s", "b") for k, v in steps.items()]
        drawn[f"{name}.svg"] = bars(f"Where a cold study in {speed[name]['precision']} spends its time", rows)
    if "memory" in found:
        rows = []
        for one in found["memory"]["curve"]:
            text = f"{one['peak_memory_gb']:.2f} GB, {one['seconds']:.0f} s"
            rows.append((f"{one['images']:,} images", one["peak_memory_gb"], text, "b"))
        drawn["memory.svg"] = bars("Peak memory", rows)
    return drawn


def figures(found: dict[str, Any]) -> dict[str, float]:
    """Figures of all full benchmarks; quick and small ones carry none that are quoted."""
    flat: dict[str, float] = {}
    for name, one in found.items():
        if not name.endswith(("-quick", "-small")):
            flat |= one.get("figures", {})
    for name in [name for name in STUDIES if name in found.get("speed", {})]:
        study, suffix = found["speed"][name], name.removeprefix("study").removeprefix("_bf16")
        flat |= {
            f"speedup.study{suffix}": flat.pop(f"speedup.{name}"),
            f"study.cold_minutes{suffix}": study["seconds"] / 60,
            f"study.peak_gb{suffix}": study["peak_memory_gb"],
        }
    return flat


def met(goal: str, value: float) -> bool:
    """Whether a figure reaches a goal as the table words it: "≥ 3×", "< 1", "≤ +0.10", "0"."""
    sign, number = re.fullmatch(r"([≥≤<]?) ?\+?([\d.,]+)×?", goal).groups()  # type: ignore[union-attr]
    bound = float(number.replace(",", ""))
    return {"≥": value >= bound, "≤": value <= bound, "<": value < bound, "": value == bound}[sign]


def page(found: dict[str, Any], flat: dict[str, float]) -> str:
    """docs/performance.md."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FileSystemLoader(HERE)
    )
    goals = [dict(zip(("name", "what", "goal", "form"), row, strict=True)) for row in GOALS]
    for one in goals:
        one["met"] = one["name"] in flat and met(one["goal"], flat[one["name"]])
    known = {name: one for name, one in found.items() if "-" not in name}
    if "gpu" in known:
        known["gpu"] = dict.fromkeys(("epochs", "study")) | known["gpu"]
    if "speed" in known:
        known["speed"] = dict.fromkeys(("commands", "epochs", "prefix", "decode", *STUDIES, "folds")) | known["speed"]
    text = environment.get_template("performance.md.j2").render(studies=STUDIES, figures=flat, goals=goals, **known)
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip() + "\n"
