"""The comparison in words: the rows of the summary, the verdict, and both as a table for terminals.

Every text is derived from measurements, and each row states the rule behind it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np

from tumorlens.core.files import Json
from tumorlens.core.text import SIGNIFICANT, bound, duration, listed, p_value_text, percent, points, span
from tumorlens.evaluation.predictions import SPLITS
from tumorlens.evaluation.statistics import newcombe

LOW_GAP, MODERATE_GAP = 0.01, 0.03  # largest accuracy gaps that count as low and as moderate risk
CONFUSIONS = 3  # named in the summary
_NOT_HELD_OUT = "not measured: the final weights were trained on the validation images, too"
#: What each baseline predicts.
BASELINES = {
    "nn": "the label of the most similar training thumbnail",
    "nn_mirror": "the label of the most similar training thumbnail, mirrored ones included,",
    "file_facts": "a small decision tree on the file's size, format, border and brightness",
    "largest_class": "the largest class, whatever the image,",
}
_WIDTH, _NARROWEST = 100, 24  # columns of the text table, and of one configuration in it


@dataclass(frozen=True)
class Facts:
    """What the texts on one configuration are derived from."""

    name: str
    training: Json
    splits: Mapping[str, Json]
    """Metrics by split."""
    classes: Sequence[str]
    published: float | None
    """Published test accuracy, 0 to 1; None if it is not comparable."""
    against: Json | None
    """The pair with the first configuration; None for the first itself."""

    @property
    def refit(self) -> bool:
        """Whether the final weights were trained on the validation images, too."""
        return bool(self.training.get("configuration", {}).get("refit"))

    def difference_interval(self, first: str, second: str) -> tuple[float, float]:
        """Interval (95 %) of the accuracy on one split minus that on another."""
        one, two = self.splits[first], self.splits[second]
        return newcombe(one["correct"], one["n"], two["correct"], two["n"])


def summary_text(comparison: Json) -> str:
    """The summary as a plain-text table, at most 100 columns wide, with the verdict below.

    Configurations are columns, or stand below each other if they do not fit side by side.
    """
    names, rows = comparison["configurations"], comparison["summary"]
    title_width = max(len(row["title"]) for row in rows)
    width = (_WIDTH - title_width - 2 * len(names)) // len(names)
    lines: list[str] = []
    if width < _NARROWEST:
        for row in rows:
            lines.append(row["title"])
            for name in names:
                lines += _wrapped(f"{name}: {row['values'][name]}", _WIDTH, "  ")
    else:
        table = [("", names), ("─" * title_width, ["─" * width] * len(names))]
        table += [(row["title"], [row["values"][name] for name in names]) for row in rows]
        for title, texts in table:
            for first, *cells in zip_longest([title], *(_wrapped(text, width) for text in texts), fillvalue=""):
                line = [first.ljust(title_width), *(cell.ljust(width) for cell in cells)]
                lines.append("  ".join(line).rstrip())
    return "\n".join([*lines, "", *_wrapped(comparison["verdict"], _WIDTH)])


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` characters; a number stays with its unit."""
    # Class names are folder names, which may hold terminal control sequences.
    clean = "".join(c if c.isprintable() else "�" for c in text)
    lines = textwrap.wrap(bound(clean), width, initial_indent=indent, subsequent_indent=2 * indent)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]


# ---- the rows of the summary -----------------------------------------------------------------


def _training_scope(f: Facts) -> str:
    t = f.training
    stages, trainable, total = list(t["learns"]), t["learned_parameters"], t["total_parameters"]
    which = f"{stages[0]} only" if len(stages) == 1 else f"{', '.join(stages)} trained jointly"
    if trainable == total:
        which = "all layers trained jointly"
    share = percent(trainable / total, 2 if trainable < 0.01 * total else 1)
    start = "" if t["start"] == "imagenet" else f"; starts from {t['start']}"
    return f"{which}: {trainable:,} of {total:,} parameters ({share}){start}"


def _test_accuracy(f: Facts) -> str:
    test = f.splits["test"]
    interval = span(*test["accuracy_interval"])
    return f"{percent(test['accuracy'])} ({test['correct']:,} of {test['n']:,}; 95 % interval {interval})"


def _overfitting_risk(f: Facts) -> str:
    if missing := [split for split in SPLITS if split not in f.splits]:
        return f"not measured: there is no {missing[0]} split"
    if f.refit:
        return _NOT_HELD_OUT
    accuracy = {split: f.splits[split]["accuracy"] for split in SPLITS}
    shown = ", ".join(f"{split} {percent(accuracy[split])}" for split in SPLITS)
    high, low = max(pairwise(SPLITS), key=lambda pair: accuracy[pair[0]] - accuracy[pair[1]])
    gap = round(accuracy[high] - accuracy[low], 4)  # as it is shown, so that the word matches the number
    if accuracy[high] <= accuracy[low]:
        return f"low: no gap ({shown})"
    level = "low" if gap <= LOW_GAP else "moderate" if gap <= MODERATE_GAP else "high"
    least, most = f.difference_interval(high, low)
    chance = f"; chance alone can explain it, 95 % interval {points(least)} to {points(most)}" if least <= 0 else ""
    return f"{level}: largest gap {points(gap, 2)} points, {high} − {low} ({shown}){chance}"


def _generalization(f: Facts) -> str:
    if "validation" not in f.splits:
        return "not measured: there is no validation split"
    if f.refit:
        return _NOT_HELD_OUT
    test, validation = f.splits["test"]["accuracy"], f.splits["validation"]["accuracy"]
    low, high = f.difference_interval("test", "validation")
    where = "below" if high < 0 else "above" if low > 0 else "within chance of"
    return (
        f"test {percent(test)} is {where} validation {percent(validation)}: test − validation "
        f"{points(test - validation, 2, sign=True)} points, 95 % interval {points(low, sign=True)} to "
        f"{points(high, sign=True)}"
    )


def _training_time(f: Facts) -> str:
    t = f.training
    prefix, train = t["prefix_seconds"], t["train_seconds"]
    work = "decoding" if t["frozen_prefix"] in ("image", "none") else "the frozen layers"
    text = f"{duration(prefix + train)} in all ({duration(prefix)} for {work}, once; {duration(train)} for the epochs)"
    return text if t["start"] == "imagenet" else f"{text}, without the training of {t['start']}, from which it starts"


def _improvement_areas(f: Facts) -> str:
    confusion = np.array(f.splits["test"]["confusion"])
    errors = np.argwhere(confusion * (1 - np.eye(len(confusion), dtype=int)))
    most = sorted(errors.tolist(), key=lambda cell: -confusion[tuple(cell)])[:CONFUSIONS]
    named = [f"{f.classes[i]} → {f.classes[j]} {confusion[i, j]:,} of {confusion[i].sum():,}" for i, j in most]
    text = "; ".join(named) or "no test image is misclassified"
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
    if t["solver"] == "lbfgs":
        which = f"regularisation strength {t['best_epoch']} of {t['epochs_run']}"
    else:
        which = f"{t['best_epoch']}"
        if t["best_epoch"] == t["max_epochs"]:
            which += ", the last one allowed, so more may help"
    before = "before refitting: " if f.refit else ""
    accuracy = percent(t["best_validation_accuracy"])
    return f"{which} ({before}validation loss {t['best_validation_loss']:.4f}, accuracy {accuracy})"


def _published(f: Facts) -> str:
    if f.published is None:
        return "not comparable"
    test = f.splits["test"]
    low, high = test["accuracy_interval"]
    where = "inside" if low <= f.published <= high else "outside"
    above = points(_above(test["accuracy"], f.published), 2, sign=True)
    return (
        f"{percent(f.published)} published, {percent(test['accuracy'])} here: {above} points; the published figure "
        f"lies {where} our 95 % interval"
    )


#: key, title, rule, and the function that writes the text of one configuration.
ROWS: tuple[tuple[str, str, str, Callable[[Facts], str]], ...] = (
    ("training_scope", "Training scope", "Stages whose weights are trained, and their number of parameters.",
     _training_scope),
    ("test_accuracy", "Test accuracy", "Share of test images classified correctly, with Wilson's 95 % interval, which "
     "takes images as independent.", _test_accuracy),
    ("overfitting_risk", "Overfitting risk",
     "The larger of two accuracy gaps, train − validation and validation − test; a negative gap counts as 0. "
     "Low: at most 1 point; moderate: at most 3; high: above. Chance can explain a gap whose 95 % interval "
     "(Newcombe, images independent) contains 0.", _overfitting_risk),
    ("generalization", "Generalization",
     "Test accuracy compared with validation accuracy: below or above if the 95 % interval of the difference "
     "(Newcombe, images independent) excludes 0. Validation chose the epoch; both splits come from one data set, so "
     "this says nothing about other scanners or patients.", _generalization),
    ("training_time", "Training time",
     "Wall-clock time of the epochs, validation included, and of the one pass of all images through the frozen "
     "layers, which configurations may share.", _training_time),
    ("improvement_areas", "Improvement areas",
     f"The {CONFUSIONS} most frequent confusions on the test split (true → predicted, of the images of the true "
     "class), and for later configurations how many errors of the first they correct and how many they add.",
     _improvement_areas),
    ("learned_parameters", "Trainable parameters", "Number of weights that training changes.",
     lambda f: f"{f.training['learned_parameters']:,}"),
    ("epochs", "Epochs run", "Passes over the training images, and why training stopped.", _epochs),
    ("best_epoch", "Best epoch", "The epoch with the lowest validation loss, whose weights are kept.", _best_epoch),
    ("published", "Published",
     "Test accuracy of the published study and ours, both to 0.01 %; not comparable if the data set or the "
     "configuration differs.", _published),
)  # fmt: skip


# ---- the verdict -----------------------------------------------------------------------------


def verdict(facts: Sequence[Facts]) -> str:
    """One sentence on the test accuracies and errors, and one on the published figures if they are comparable."""
    first, *later = facts
    test = first.splits["test"]
    interval = "" if later else f"; 95 % interval {span(*test['accuracy_interval'])}"
    scores = f"{test['correct']:,} of {test['n']:,} test images correctly ({percent(test['accuracy'], 1)}{interval})"
    changes = []
    for f in later:
        scores += f", {f.name} {f.splits['test']['correct']:,} ({percent(f.splits['test']['accuracy'], 1)})"
        if f.against:
            changes.append(f"{f.name} {_changes(f.against)}{_significance(f.against)}")
    text = f"{first.name} classifies {scores}{': ' if changes else ''}{'; '.join(changes)}."
    if len(later) > 1:
        text += " p-values are adjusted for multiple comparisons (Holm)."
    compared = [f"{f.name} {_against_published(f, f.published)}" for f in facts if f.published is not None]
    return f"{text} {'; '.join(compared)}." if compared else text


def baseline_opening(as_good: Sequence[Json], images: str = "test images") -> list[str]:
    """The sentence that opens a verdict if a baseline is as good as a network; empty if none is.

    Parameters
    ----------
    as_good
        From `leakage.as_good_as`; the best baseline is named.
    images
        What was classified.
    """
    if not as_good:
        return []
    best = max(as_good, key=lambda pair: pair["baseline_accuracy"])
    networks = [pair for pair in as_good if pair["baseline"] == best["baseline"]]
    each = [
        f"{pair['network']} for {percent(pair['network_accuracy'])} ({p_value_text(pair['p_value'])})"
        for pair in networks
    ]
    return [
        f"A baseline that knows nothing about brains is as good as {listed([pair['network'] for pair in networks])}: "
        f"{BASELINES[best['baseline']]} is correct for {percent(best['baseline_accuracy'])} of the {images}, "
        f"{listed(each)} (McNemar)."
    ]


def _changes(pair: Json) -> str:
    """The second configuration's errors relative to the first's, such as `corrects 85 of initial's 96 errors …`."""
    first, errors, corrected, introduced = (pair[k] for k in ("first", "first_errors", "corrected", "introduced"))
    of_first = f"{first}'s {errors:,} error{'' if errors == 1 else 's'}"
    if not corrected + introduced:
        return f"misclassifies the same images as {first}" if errors else f"makes no errors, like {first}"
    corrects = f"corrects {f'{corrected:,}' if corrected else 'none'} of {of_first}" if errors else "corrects no errors"
    return f"{corrects} and makes {f'{introduced:,}' if introduced else 'no'} new one{'' if introduced == 1 else 's'}"


def _significance(pair: Json) -> str:
    if not pair["corrected"] + pair["introduced"]:
        return ""
    p = pair["mcnemar"].get("p_holm", pair["mcnemar"]["p_value"])
    interval = pair.get("accuracy_difference_group_interval")
    chance = ""
    if pair["accuracy_difference"] and p >= SIGNIFICANT:
        chance = ", a difference that chance alone can explain"
    elif pair["accuracy_difference"] and interval and interval[0] <= 0 <= interval[1]:
        # McNemar's test counts near-duplicates, or slices of one patient, as independent images.
        chance = ", but if whole groups are resampled chance alone can explain the difference"
    return f" (McNemar {p_value_text(p)}{chance})"


def _against_published(f: Facts, published: float) -> str:
    above, figure = _above(f.splits["test"]["accuracy"], published), f"the published {percent(published)}"
    if above == 0:
        return f"meets {figure}"
    return f"{'exceeds' if above > 0 else 'falls short of'} {figure} by {abs(100 * above):.2f} points"


def _above(accuracy: float, published: float) -> float:
    """Our accuracy minus the published one, both to the four digits in which it was published."""
    return round(round(float(accuracy), 4) - round(published, 4), 4)
