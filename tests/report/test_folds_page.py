"""The page of a cross-validation, and its text for the terminal: what opens them, and the lists that they quote."""

from __future__ import annotations

import numpy as np
from report_fixture import build_run
from report_page import parse

from tumorlens.evaluation.leakage import as_good_as
from tumorlens.evaluation.summary import baseline_opening
from tumorlens.report import write_folds_page
from tumorlens.study.cross_validation import fold_predictions, folds_text, pool_folds


def test_a_baseline_as_good_as_the_network_opens_page_and_text(tmp_path):
    run = build_run(tmp_path, images=False)
    study = run.read_study()
    folds, _ = fold_predictions(run, ["initial", "finetuned"], study["classes"])
    labels = folds["initial"][0]
    assert all(np.array_equal(fold[0], labels) for fold in folds.values())  # paired image by image
    as_good = as_good_as(labels, {name: fold[1] for name, fold in folds.items()}, {"nn": labels})
    pooled = {name: pool_folds([fold, fold], study["classes"]) for name, fold in folds.items()}
    cv = {
        "done": [1, 3], "of": 5, "folds": 5, "group_similarity": 0.95, "groups_from": "twins", "groups": 10,
        "largest_group": 4, "outgrown": 0, "cut_pairs": 0, "copies_dropped": 2, "unfinished": [],
        "frozen_lists": "tumorlens-v1/1", "configurations": pooled, "baselines": {"nn": pooled["initial"]},
        "as_good": as_good, "openings": baseline_opening(as_good, "held-out images"),
    }  # fmt: skip
    opening = "A baseline that knows nothing about brains is as good as initial and finetuned"
    assert folds_text(cv).startswith(opening)
    page = parse(write_folds_page(tmp_path, cv, study))
    verdict = next(e for e in page.walk() if e.attributes.get("class") == "verdict")
    assert verdict.text.replace("\N{NO-BREAK SPACE}", " ").startswith(opening)
    assert "100.00 % of the held-out images" in verdict.text.replace("\N{NO-BREAK SPACE}", " ")
    groups = next(e for e in page.walk() if e.attributes.get("id") == "groups")
    assert "Groups, and the first five folds, are those of the frozen lists tumorlens-v1/1" in groups.text
