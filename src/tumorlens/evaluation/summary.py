"""The comparison in words: the summary's rows, the verdict, and both as a table for terminals.

Every text is derived from measurements, and each row says by which rule.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tumorlens.core.files import Json
from tumorlens.core.text import (
    SIGNIFICANT,
    bound,
    duration,
    p_value_text,
    percent,
    points,
    span,
)
from tumorlens.evaluation.predictions import PARTS
from tumorlens.evaluation.statistics import newcombe

LOW_GAP, MODERATE_GAP = 0.01, 0.03  # largest accuracy gap that still counts as low, as moderate risk
CONFUSIONS = 3  # named in the summary
_NOT_HELD_OUT = "not measured: the validation images were learned from, too"
_WIDTH, _NARROWEST = 100, 24  # columns of the text table, and of one configuration in it


@dataclass(frozen=True)
class Facts:
    """What the summary's texts on one configuration are made from."""

    name: str
    training: Json
    parts: Mapping[str, Json]  # of metrics.json
    classes: Sequence[str]
    published: float | None
    against: Json | None  # the pair with the first configuration; None for the first itself


def summary_text(comparison: Json) -> str:
    """The summary as a plain-text table, at most 100 columns wide, with the verdict below.

    Where the configurations do not fit side by side they stand below each other.
    """
    names, rows = comparison["configurations"], comparison["summary"]
    title_width = max(len(row["title"]) for row in rows)
    width = (_WIDTH - title_width - 2 * len(names)) // len(names)
    lines: list[str] = []
    if width < _NARROWEST:
        for row in rows:
            lines.append(row["title"])
            for name in names:
                first, *more = _wrapped(f"{name}: {row['values'][name]}", _WIDTH - 4)
                lines += [f"  {first}", *(f"    {line}" for line in more)]
    else:
        table = [("", {name: name for name in names})] + [(row["title"], row["values"]) for row in rows]
        for i, (title, values) in enumerate(table):
            cells = [_wrapped(values[name], width) for name in names]
            for j in range(max(map(len, cells))):
                line = [title.ljust(title_width) if j == 0 else " " * title_width]
                line += [(cell[j] if j < len(cell) else "").ljust(width) for cell in cells]
                lines.append("  ".join(line).rstrip())
            if i == 0:
                lines.append("  ".join(["─" * title_width, *("─" * width for _ in names)]))
    return "\n".join([*lines, "", *_wrapped(comparison["verdict"], _WIDTH)])


# ---- the rows of the summary -----------------------------------------------------------------


def _training_scope(f: Facts) -> str:
    t = f.training
    stages, learned, total = list(t["learns"]), t["learned_parameters"], t["total_parameters"]
    if learned == total:
        which = "all layers trained jointly"
    else:
        which = f"{stages[0]} only" if len(stages) == 1 else f"{', '.join(stages)} trained jointly"
    share = percent(learned / total, 2 if learned < 0.01 * total else 1)
    start = "" if t["start"] == "imagenet" else f"; starts from {t['start']}"
    return f"{which}: {learned:,} of {total:,} parameters ({share}){start}"


def _test_accuracy(f: Facts) -> str:
    test = f.parts["test"]
    low, high = test["accuracy_interval"]
    return f"{percent(test['accuracy'])} ({test['correct']:,} of {test['n']:,}; 95 % interval {span(low, high)})"


def _overfitting_risk(f: Facts) -> str:
    if missing := [part for part in PARTS if part not in f.parts]:
        return f"not measured: no {missing[0]} part"
    if _refit(f):
        return _NOT_HELD_OUT
    shown = ", ".join(f"{part} {percent(f.parts[part]['accuracy'])}" for part in PARTS)
    gaps = {(a, b): f.parts[a]["accuracy"] - f.parts[b]["accuracy"] for a, b in pairwise(PARTS)}
    (high_part, low_part), gap = max(gaps.items(), key=lambda item: item[1])
    if gap <= 0:
        return f"low: no gap ({shown})"
    gap = round(gap, 4)  # as it is shown, so that the word fits the number
    level = "low" if gap <= LOW_GAP else "moderate" if gap <= MODERATE_GAP else "high"
    low, high = _difference_interval(f, high_part, low_part)
    chance = f"; chance alone can explain it, 95 % interval {points(low)} to {points(high)}" if low <= 0 else ""
    return f"{level}: largest gap {points(gap, 2)} points, {high_part} − {low_part} ({shown}){chance}"


def _generalization(f: Facts) -> str:
    if "validation" not in f.parts:
        return "not measured: no validation part"
    if _refit(f):
        return _NOT_HELD_OUT
    test, validation = f.parts["test"]["accuracy"], f.parts["validation"]["accuracy"]
    low, high = _difference_interval(f, "test", "validation")
    where = "below" if high < 0 else "above" if low > 0 else "within chance of"
    return (
        f"test {percent(test)} is {where} validation {percent(validation)}: test − validation "
        f"{points(test - validation, 2, sign=True)} points, 95 % interval {points(low, sign=True)} to "
        f"{points(high, sign=True)}"
    )


def _refit(f: Facts) -> bool:
    """Whether the kept weights learned from the validation images, too."""
    return bool(f.training.get("configuration", {}).get("refit"))


def _training_time(f: Facts) -> str:
    t = f.training
    prefix, train = t["prefix_seconds"], t["train_seconds"]
    work = "decoding" if t["frozen_prefix"] in ("image", "none") else "the frozen layers"
    text = f"{duration(prefix + train)} cold ({duration(prefix)} for {work}, once); {duration(train)} training alone"
    return text if t["start"] == "imagenet" else f"{text}; without {t['start']}'s training, from which it starts"


def _improvement_areas(f: Facts) -> str:
    confusion = np.array(f.parts["test"]["confusion"])
    rows = [
        (-int(confusion[i, j]), i, j)
        for i in range(len(f.classes))
        for j in range(len(f.classes))
        if i != j and confusion[i, j]
    ]
    found = [
        f"{f.classes[i]} → {f.classes[j]} {-n:,} of {int(confusion[i].sum()):,}"
        for n, i, j in sorted(rows)[:CONFUSIONS]
    ]
    text = "; ".join(found) or "no test image is misclassified"
    if f.against is None:
        return text
    changes = _changes(f.against)
    return f"{text}. {changes[0].upper()}{changes[1:]}"


def _epochs(f: Facts) -> str:
    t = f.training
    if t["solver"] == "lbfgs":
        return f"no epochs: {t['stopped']}"
    return f"{t['epochs_run']} of at most {t['max_epochs']}; {t['stopped']}"


def _best_epoch(f: Facts) -> str:
    t = f.training
    which = f"strength {t['best_epoch']} of {t['epochs_run']}" if t["solver"] == "lbfgs" else f"{t['best_epoch']}"
    if t["solver"] != "lbfgs" and t["best_epoch"] == t["max_epochs"]:
        which += ", the last one allowed, so more may help"
    accuracy = percent(t["best_validation_accuracy"])
    before = "before it was solved again: " if _refit(f) else ""
    return f"{which} ({before}validation loss {t['best_validation_loss']:.4f}, accuracy {accuracy})"


def _published(f: Facts) -> str:
    if f.published is None:
        return "does not compare"
    test = f.parts["test"]
    low, high = test["accuracy_interval"]
    inside = "inside" if low <= f.published <= high else "outside"
    return (
        f"{percent(f.published)} published, {percent(test['accuracy'])} here: "
        f"{points(_above_published(f, f.published), 2, sign=True)} points; the published figure lies {inside} "
        f"the 95 % interval of ours"
    )


#: key, title, rule, and what makes the text of one configuration.
ROWS: tuple[tuple[str, str, str, Callable[[Facts], str]], ...] = (
    ("training_scope", "Training scope", "Stages whose weights change, and their number of parameters.",
     _training_scope),
    ("test_accuracy", "Test accuracy", "Right answers among all test images, with Wilson's 95 % interval, which takes "
     "images as independent.",
     _test_accuracy),
    ("overfitting_risk", "Overfitting risk",
     "The larger of two accuracy gaps, train − validation and validation − test; a negative gap counts as 0. "
     "Low: at most 1 point; moderate: at most 3; high: above. Chance can explain a gap whose 95 % interval "
     "(Newcombe, images independent) holds 0.", _overfitting_risk),
    ("generalization", "Generalization",
     "Test accuracy beside validation accuracy: below or above where the 95 % interval of the difference (Newcombe, "
     "images independent) leaves out 0. Validation chose the epoch; both parts come from one data set, so this says "
     "nothing about other scanners or patients.", _generalization),
    ("training_time", "Training time",
     "Wall-clock time of the epochs, validation included; cold adds the one pass of all images through the frozen "
     "layers, which configurations may share.", _training_time),
    ("improvement_areas", "Improvement areas",
     f"The {CONFUSIONS} most frequent confusions on the test part (true → predicted, of the true class), and for "
     "later configurations the errors of the first that are corrected and the new ones that are made.",
     _improvement_areas),
    ("learned_parameters", "Learned parameters", "Number of weights that change in training.",
     lambda f: f"{f.training['learned_parameters']:,}"),
    ("epochs", "Epochs run", "Passes over the training images, and why training stopped.", _epochs),
    ("best_epoch", "Best epoch", "The epoch with the lowest validation loss, whose weights are kept.", _best_epoch),
    ("published", "Published",
     "Test accuracy of the published study beside ours, both to 0.01 %; it does not compare where the data set or "
     "the configuration is another one.", _published),
)  # fmt: skip


# ---- sentences and numbers -------------------------------------------------------------------


def verdict(facts: Sequence[Facts]) -> str:
    """One sentence on who is right how often, and one on the published figures where they compare."""
    first, *later = facts
    pairs = [f.against for f in later if f.against]
    of_n = f"of {first.parts['test']['n']:,} test images"
    scores = {f.name: f"{f.parts['test']['correct']:,}" for f in facts}
    shares = {f.name: f"({percent(f.parts['test']['accuracy'], 1)})" for f in facts}
    if not pairs:
        interval = span(*first.parts["test"]["accuracy_interval"])
        share = shares[first.name].strip("()")
        text = f"{first.name} is right on {scores[first.name]} {of_n} ({share}; 95 % interval {interval})."
    elif len(pairs) > 1:
        ranking = ", ".join(f"{f.name} on {scores[f.name]} {shares[f.name]}" for f in later)
        changes = "; ".join(f"{pair['second']} {_changes(pair)}{_significance(pair)}" for pair in pairs)
        text = f"{first.name} is right on {scores[first.name]} {of_n} {shares[first.name]}, {ranking}: {changes}."
        text += " p-values are corrected for the number of comparisons (Holm)."
    else:
        text = _verdict_of_two(pairs[0], scores, shares, of_n)
    compared = [f"{f.name} {_against_published(f, f.published)}" for f in facts if f.published is not None]
    return f"{text} {'; '.join(compared)}." if compared else text


def _verdict_of_two(pair: Json, scores: Mapping[str, str], shares: Mapping[str, str], of_n: str) -> str:
    first, second = pair["first"], pair["second"]
    if not pair["corrected"] + pair["introduced"]:
        return f"{first} and {second} are right on the same {scores[second]} {of_n} {shares[second]}."
    ours = f"{second} is right on {scores[second]} {of_n} {shares[second]}"
    theirs = {1: f"{first} on", 0: f"as many as {first} with", -1: f"fewer than {first} with"}[
        int(np.sign(pair["corrected"] - pair["introduced"]))
    ]
    changes = f"{_changes(pair)}{_significance(pair)}"
    return f"{ours}, {theirs} {scores[first]} {shares[first]}: it {changes}."


def _changes(pair: Json) -> str:
    """What the second does to the first's answers: `corrects 85 of initial's 96 errors and makes 6 new ones`."""
    first, errors = pair["first"], pair["first_errors"]
    corrected, introduced = pair["corrected"], pair["introduced"]
    if not corrected + introduced:
        same = f"the same {errors:,} images" if errors > 1 else "the same image"
        return f"is wrong on {same} as {first}" if errors else f"makes no error, like {first}"
    if errors == 0:
        found = f"has no errors of {first} to correct"
    elif errors == 1:
        found = f"{'corrects' if corrected else 'does not correct'} {first}'s only error"
    else:
        how_many = f"{corrected:,} of" if corrected else "none of"
        all_of = f"corrects all {errors:,} of {first}'s errors"
        found = all_of if corrected == errors else f"corrects {how_many} {first}'s {errors:,} errors"
    new = "no new ones" if not introduced else "1 new one" if introduced == 1 else f"{introduced:,} new ones"
    return f"{found} {'but' if introduced > corrected else 'and'} makes {new}"


def _significance(pair: Json) -> str:
    if not pair["corrected"] + pair["introduced"]:
        return ""
    p = pair["mcnemar"].get("p_holm", pair["mcnemar"]["p_value"])
    between = pair.get("accuracy_difference_group_interval")
    chance = ""
    if pair["accuracy_difference"] and p >= SIGNIFICANT:
        chance = ", a difference that chance alone can explain"
    elif pair["accuracy_difference"] and between and between[0] <= 0 <= between[1]:
        # McNemar takes near-duplicates, or slices of one patient, for so many independent images
        chance = ", but with whole groups of images drawn chance alone can explain the difference"
    return f" (McNemar {p_value_text(p)}{chance})"


def _above_published(f: Facts, published: float) -> float:
    """Ours minus the published accuracy, both to the four digits in which it was published."""
    return round(round(float(f.parts["test"]["accuracy"]), 4) - round(published, 4), 4)


def _against_published(f: Facts, published: float) -> str:
    above, figure = _above_published(f, published), f"the published {percent(published)}"
    if above == 0:
        return f"meets {figure}"
    return f"{'exceeds' if above > 0 else 'falls short of'} {figure} by {abs(100 * above):.2f} points"


def _difference_interval(f: Facts, first: str, second: str) -> tuple[float, float]:
    """Interval of the accuracy of one part minus that of another."""
    one, two = f.parts[first], f.parts[second]
    return newcombe(one["correct"], one["n"], two["correct"], two["n"])


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; a number stays with its unit."""
    # Class names are folder names, which may hold what a terminal would obey.
    clean = "".join(c if c.isprintable() else "�" for c in text)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(bound(clean), width)] or [""]
