"""Documents from measurements: every figure that they quote comes from JSON that a run or benchmark left.

python docs/build.py collect RUN NAME    keep a run's numbers as docs/results/NAME.json (no images, no paths)
python docs/build.py                     write docs/figures.json, the generated pages and plots, and quoted figures
python docs/build.py --check             fail where these are not what the command would write
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import jinja2
import performance
import trust_plots
from cli_reference import cli_reference
from collect import RESULTS, collect, collect_folds, read

from tumorlens.core.text import OTHER_TUMOURS
from tumorlens.data import frozen
from tumorlens.evaluation.leakage import same_mix
from tumorlens.evaluation.seeds import paired_seeds, summarise_seeds
from tumorlens.inference import volumes

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent / "benchmarks" / "results"
#: Runs that the figures come from, by the names under which they were collected: in the precision that `auto` takes,
#: but for the folds, which are of earlier code, in fp32.
SEEDS = ("v1-bf16-seed0-compiled", "v1-bf16-seed1-compiled", "v1-bf16-seed2-compiled")
FIRST, TWIN_FREE_TRAIN = SEEDS[0], "v1-bf16-seed0-twin-free-train-compiled"
FOLDS = {"0.99": "v1-folds-0.99", "0.95": "v1-folds-0.95"}


def results() -> dict[str, Any]:
    """All collected runs by name."""
    return {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}


def benchmarks() -> dict[str, Any]:
    """All benchmarks by name."""
    return {path.stem: read(path) for path in sorted(BENCHMARKS.glob("*.json"))}


def accuracy(run: Any, configuration: str) -> float:
    """Accuracy on the official test images."""
    return float(run["configurations"][configuration]["metrics"]["parts"]["test"]["accuracy"])


def of(run: Any) -> Any:
    """Configurations of a run; none where it was not collected."""
    return run["configurations"] if run else {}


def over_seeds(found: dict[str, Any]) -> dict[str, Any]:
    """Spread of each configuration over three seeds, and the difference of the two main ones."""
    runs = [found.get(name) for name in SEEDS]
    names = [c for c in ("initial", "finetuned") if all(c in of(run) for run in runs)]
    values = {c: [accuracy(run, c) for run in runs] for c in names}
    paired = paired_seeds(values["initial"], values["finetuned"]) if len(names) == 2 else None
    return {"sd": {c: summarise_seeds(v)["sd"] for c, v in values.items()}, "paired": paired}


def leak_figures(found: dict[str, Any]) -> dict[str, float]:
    """What is left of both configurations without the leak."""
    flat: dict[str, float] = {}
    run = found.get(FIRST, {})
    if "audit" in run:
        table = run["audit"]["twins"]["all"]
        flat["twins.exact"], flat["twins.same_orientation"] = table["exact"], table["same_orientation"]
        flat["twins.any"], flat["twins.free"] = table["direct_or_mirrored"], table["none"]
        flat["twins.any_orientation"] = table["any"]
        flat["shortcut.size.accuracy"] = run["audit"]["shortcuts"]["size"]["accuracy"]
        flat["shortcut.tree.accuracy"] = run["audit"]["shortcuts"]["tree"]["accuracy"]
    parts = run.get("comparison", {}).get("leakage", {}).get("parts")
    if parts:
        for name in ("nn", "nn_mirror", "file_facts"):
            for part in ("official", "twin_free"):
                flat[f"{name}.{part}.accuracy"] = parts[part]["baselines"][name]["accuracy"]
        for name in parts["official"]["configurations"]:
            flat[f"{name}.twin_free.accuracy"] = parts["twin_free"]["configurations"][name]["accuracy"]
            flat[f"{name}.twin_free.macro_f1"] = parts["twin_free"]["configurations"][name]["macro_f1"]
            flat[f"{name}.twin_free.same_mix_accuracy"] = same_mix(run["comparison"]["leakage"], "twin_free", name)
            flat[f"{name}.below_0.95.accuracy"] = parts["below_0.95"]["configurations"][name]["accuracy"]
    for name in of(found.get(TWIN_FREE_TRAIN)):
        flat[f"{name}.twin_free_train.accuracy"] = accuracy(found[TWIN_FREE_TRAIN], name)
    for similarity, key in FOLDS.items():
        cv = found.get(key, {}).get("cv")
        if cv and len(cv["done"]) == cv["of"]:  # unfinished folds are no result yet
            for name, one in cv["configurations"].items():
                flat[f"{name}.grouped_cv_{similarity}.accuracy"] = one["pooled"]["accuracy"]
    return flat


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The flat table of docs/figures.json; a figure whose run was not collected is left out."""
    flat: dict[str, float] = {}
    for configuration in ("initial", "initial_lbfgs", "initial_lbfgs_refit", "finetuned"):
        values = [accuracy(found[name], configuration) for name in SEEDS if configuration in of(found.get(name))]
        if configuration in of(found.get(FIRST)):
            flat[f"{configuration}.official.accuracy"] = accuracy(found[FIRST], configuration)
        if len(values) == len(SEEDS):
            flat[f"{configuration}.official.accuracy.mean3"] = sum(values) / len(values)
            flat[f"{configuration}.official.accuracy.min3"] = min(values)
            flat[f"{configuration}.official.accuracy.max3"] = max(values)
    if "v1-bf16-seed0-fresh-head" in found:
        fresh = found["v1-bf16-seed0-fresh-head"]
        flat["finetuned_fresh_head.official.accuracy"] = accuracy(fresh, "finetuned_fresh_head")
    if "v1-warm-initial" in found:
        flat["study.warm_initial_s"] = found["v1-warm-initial"]["study"]["timing"]["total_s"]
    if "phantom-seed0" in found:
        flat["phantom.finetuned.accuracy"] = accuracy(found["phantom-seed0"], "finetuned")
    flat |= leak_figures(found) | {f"frozen.{name}": n for name, n in frozen.sizes().items()}
    if "bench-coverage" in found:
        flat["interval.group_bootstrap.coverage"] = found["bench-coverage"]["group_bootstrap_coverage"]
        flat["interval.naive.coverage"] = found["bench-coverage"]["naive_wilson_coverage"]
    for name in ("bench-cli", "bench-phantom", "bench-audit", "bench-sequences"):
        flat |= found.get(name, {}).get("figures", {})
    return flat


def results_page(found: dict[str, Any], measured: dict[str, Any], flat: dict[str, float]) -> str:
    """docs/results.md."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pc"] = lambda value: f"{value * 100:.2f} %"
    pages = []
    for name in ("results.md.j2", "leak.md.j2", "trust.md.j2"):
        template = environment.from_string((HERE / name).read_text())
        page = template.render(
            runs=found,
            figures=flat,
            first=FIRST,
            seeds=SEEDS,
            same_mix=same_mix,
            twin_free_train=TWIN_FREE_TRAIN,
            folds=FOLDS,
            lists=frozen.VERSION,
            over_seeds=over_seeds(found),
            coverage=found.get("bench-coverage"),
            trust_run=run_of(found, measured.get("trust")),
            trust_int8=measured.get("trust-int8"),
            **{name: measured.get(name) for name in ("trust", "pointing", "sanity", "fuzz", "precision")},
        )
        pages.append(page.strip())
    return "\n\n".join(page for page in pages if page) + "\n"


def run_of(found: dict[str, Any], trust: dict[str, Any] | None) -> str:
    """The collected run whose checkpoint trust was measured on; empty where none of them is."""
    sha256 = trust["model"]["checkpoint_sha256"] if trust else None
    names = [
        name for name, run in found.items()
        for one in run.get("configurations", {}).values() if one["training"]["checkpoint_sha256"] == sha256
    ]  # fmt: skip
    return min(names, key=len, default="")  # a run may be collected again once configurations are added to it


def audit_page(found: dict[str, Any]) -> str:
    """docs/audit.md."""
    bench = found["bench-audit"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((HERE / "audit.md.j2").read_text())
    why = (HERE / "why-0.99.md").read_text().strip()
    page = template.render(
        recall=bench["recall"], real=bench.get("real"), scale=bench.get("scale"), machine=bench["machine"], why=why,
        lists=frozen.VERSION, sizes=frozen.sizes(), bytes=frozen.FILE.stat().st_size,
        looks=found.get("bench-sequences"),
    )  # fmt: skip
    return page.strip() + "\n"


def quoted(page: Path, flat: dict[str, float]) -> str:
    """A page with its figures renewed: `<!-- figure NAME FORMAT -->text<!-- /figure -->`."""

    def renew(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        if name not in flat:
            sys.exit(f"{page}: no figure {name!r}. Collect the run that it comes from.")
        value = flat[name] * 100 if form.endswith("%") else flat[name]
        text = f"{value:.{form[0]}f}" + (" %" if form.endswith("%") else "")
        return f"<!-- figure {name} {form} -->{text}<!-- /figure -->"

    return re.sub(r"<!-- figure (\S+) (\S+) -->.*?<!-- /figure -->", renew, page.read_text(), flags=re.S)


def readme(flat: dict[str, float]) -> str:
    """README.md with its block of results rendered from the figures."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((HERE / "readme-results.md.j2").read_text(encoding="utf-8"))
    page = (HERE.parent / "README.md").read_text(encoding="utf-8")
    page = with_block(page, "results", template.render(figures=flat, lists=frozen.VERSION).strip())
    return with_block(page, "limits", limit())


def limit() -> str:
    """The limit of every classifier as an item of a list."""
    return textwrap.fill(OTHER_TUMOURS, 120, initial_indent="- ", subsequent_indent="  ")


def with_block(page: str, name: str, text: str) -> str:
    """A page with the text of its generated block `name`."""
    begin, end = f"<!-- {name}: written by `make figures` -->\n", f"<!-- /{name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}{text}\n{end}{rest.split(end, 1)[1]}"


def main(words: list[str]) -> int:
    """Collect, write or check; returns the exit code."""
    if words[:1] == ["collect"] and len(words) == 3:
        root = Path(words[1])
        (collect_folds if (root / "cv.json").exists() else collect)(root, words[2])
        return 0
    if words not in ([], ["--check"]):
        print(__doc__)
        return 2
    found, measured = results(), benchmarks()
    flat = figures(found) | performance.figures(measured)
    wanted = {
        HERE / "figures.json": json.dumps({k: round(v, 6) for k, v in flat.items()}, indent=2) + "\n",
        HERE / "results.md": results_page(found, measured, flat),
        HERE / "cli.md": cli_reference(),
        HERE / "performance.md": performance.page(measured, flat),
        **{
            HERE / "img" / name: text
            for one in (performance, trust_plots)
            for name, text in one.plots(measured).items()
        },
    }
    if "bench-audit" in found:
        wanted[HERE / "audit.md"] = audit_page(found)
    wanted[HERE.parent / "README.md"] = readme(flat)
    rule = (volumes.__doc__ or "").split("\n\n", 1)[1].strip()
    using = with_block((HERE / "using.md").read_text(encoding="utf-8"), "volumes", rule)
    wanted[HERE / "using.md"] = with_block(using, "limits", limit())
    wanted[HERE / "lab-notes.md"] = quoted(HERE / "lab-notes.md", flat)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if words == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(HERE.parent)} is stale: run `make figures`.")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
