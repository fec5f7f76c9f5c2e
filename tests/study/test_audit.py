"""The text of an audit."""

from __future__ import annotations

from tumorlens.study import audit as auditing


def test_an_audit_shows_how_many_groups_were_cut() -> None:
    counts = {"n": 1, "exact": 0, "same_orientation": 0, "direct_or_mirrored": 0, "any": 0, "none": 1}
    part = {"all": counts}
    found = {
        "dataset": {"name": "x"}, "baselines": {"nn": 0.5, "nn_mirror": 0.5, "file_facts": 0.5},
        "audit": {
            "twins": {"frozen_lists": "some/1", "classes": {}, "all": counts,
                      "others": {"validation": part, "train": part}},
            "groups": {"n": 5, "similarity": 0.99, "alone": 3, "largest": 7, "outgrown": 2},
            "conflicts": [], "unreadable": [], "shortcuts": {"size": {"accuracy": None, "class": "x", "size": [8, 8]}},
        },
    }  # fmt: skip
    assert "were cut at a higher similarity: 2" in auditing.audit_text(found)
    assert "frozen lists some/1" in auditing.audit_text(found)
    found["audit"]["groups"]["outgrown"] = 0
    assert "cut" not in auditing.audit_text(found)
    found["audit"] |= {
        "sequence_by_class": {"a": {"T1": 3, "T2": 0, "unknown": 1}},
        "class_from_sequence": {
            "accuracy": 0.5, "majority": 0.25, "tumour_or_not": {"accuracy": 0.95, "majority": 0.75}
        },
    }  # fmt: skip
    text = auditing.audit_text(found)
    assert "  a              3 T1, 1 unknown\n" in text
    assert "predict the class of 50.0% of the images (always the largest class: 25.0%), and for 95.0%" in text
