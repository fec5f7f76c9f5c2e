"""The rule for volumes."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from classifier_fixture import CLASSES, fake_classifier, level, volume
from input_files import seeds

from tumorlens.inference import predict as predicting
from tumorlens.inference.predict import predict
from tumorlens.inference.records import Record
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.inference.volumes import call_volume, with_volumes
from tumorlens.readers import Unreadable


def confident(*labels: str) -> list[Record]:
    """Rows of a series that say so, each surely."""
    return [
        Record("slice", f"{i}.dcm", series="series-1", slice=i, label=label, verdict=OK,
               probabilities={c: 0.97 if c == label else 0.01 for c in CLASSES}) for i, label in enumerate(labels)
    ]  # fmt: skip


def glioma(p: float, file: str = "v") -> Record:
    """A slice of a series with this probability of glioma, the rest meningioma."""
    probabilities = dict(zip(CLASSES, (p, 1 - p, 0.0, 0.0), strict=True))
    return Record(
        "slice", file, series="series-1", slice=0, label="glioma", probabilities=probabilities, verdict=OK, score=0.0
    )


class TestVolumes:
    @pytest.mark.parametrize(
        ("slices", "label", "verdict"),
        [
            (["glioma"] * 3, "glioma", OK),
            (["notumor"] * 9 + ["glioma"] * 3, "glioma", OK),
            (["notumor"] * 9 + ["glioma"] * 2, "", UNCERTAIN),
            (["notumor"] * 9 + ["glioma", "notumor", "glioma"], "notumor", OK),
            (["glioma", "glioma", "x", "glioma"], "", UNCERTAIN),
            (["glioma", "glioma?", "glioma"], "", UNCERTAIN),
            (["glioma"] * 3 + ["pituitary"] * 4, "pituitary", OK),
            (["notumor", "notumor", "notumor?"], "notumor", OK),
            (["notumor", "notumor?"], "", UNCERTAIN),
            (["notumor", "notumor?", "notumor?"], "", UNCERTAIN),
            (["x", "x", "notumor"], "", REFUSED),
            (["x", "notumor"], "notumor", OK),
        ],
    )
    def test_the_rule(self, monkeypatch, slices, label, verdict):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(volume(*slices)))
        *rows, whole = predict(["v.nii"], fake_classifier())
        assert len(rows) == len(slices)
        assert all(row.kind == "slice" for row in rows)
        assert (whole.kind, whole.label, whole.verdict) == ("volume", label, verdict)
        assert whole.series == "series-1"

    @pytest.mark.parametrize(
        ("slices", "label", "verdict"),
        [
            (["notumor", "!", "notumor"], "notumor", OK),
            (["notumor", "!"] * 5, "", UNCERTAIN),
            (["notumor"] + ["!"] * 9, "", UNCERTAIN),
            (["notumor", "notumor", "x", "x", "!", "!"], "", UNCERTAIN),
            (["x", "x", "notumor"] + ["!"] * 9, "", REFUSED),
            (["glioma"] * 3 + ["!"] * 9, "glioma", OK),
            (["glioma", "glioma", "!", "glioma"], "", UNCERTAIN),
        ],
    )
    def test_slices_that_cannot_be_read_do_not_say_that_there_is_no_tumour(self, monkeypatch, slices, label, verdict):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(volume(*slices)))
        *_, whole = predict(["v.dcm"], fake_classifier())
        assert (whole.kind, whole.label, whole.verdict) == ("volume", label, verdict)
        assert whole.reason.endswith(f"; {slices.count('!')} of {len(slices)} cannot be read")

    def test_a_row_for_all_frames_that_are_missing_counts_for_each(self, monkeypatch):
        cut = [*volume(*["notumor"] * 5), Unreadable("v.nii", 9, "promises 10 frames and holds 5", "", "series-1")]
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(cut))
        *_, whole = predict(["v.dcm"], fake_classifier())
        assert whole.verdict == UNCERTAIN
        assert whole.reason.endswith("; 5 of 10 cannot be read")

    def test_a_volume_without_a_readable_slice_has_no_whole(self, monkeypatch):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(volume("!", "!")))
        assert [row.kind for row in predict(["v.dcm"], fake_classifier())] == ["slice", "slice"]

    def test_damaged_files_of_a_dicom_series_count(self, tmp_path):
        uid = "1.2.826.0.1.3680043.8.498.1"
        for i in range(6):
            content = seeds.dicom(np.full((32, 32, 3), level("notumor"), np.uint8), photometric="RGB",
                                  SeriesInstanceUID=uid, InstanceNumber=i + 1)  # fmt: skip
            (tmp_path / f"{i}.dcm").write_bytes(content if i % 2 else content[:-1000])
        *rows, whole = predict([str(tmp_path)], fake_classifier())
        assert [(row.kind, row.slice, row.series, row.failed) for row in rows] == [
            ("slice", i, "series-1", i % 2 == 0) for i in range(6)
        ]
        assert (whole.verdict, whole.series) == (UNCERTAIN, "series-1")
        assert whole.reason.endswith("; 3 of 6 cannot be read")

    def test_a_model_without_the_healthy_class_calls_no_volume(self, monkeypatch):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(volume(*["glioma"] * 5)))
        *rows, _ = predict(["v.nii"], fake_classifier())
        whole = call_volume(rows, ("glioma", "healthy"))
        assert (whole.label, whole.verdict) == ("", UNCERTAIN)
        assert "no class 'notumor'" in whole.reason

    def test_low_probability_is_no_vote(self):
        weak = [replace(glioma(0.89), slice=i) for i in range(5)]
        assert call_volume(weak, CLASSES).verdict == UNCERTAIN
        strong = [replace(r, probabilities=glioma(0.9).probabilities) for r in weak]
        assert call_volume(strong, CLASSES).label == "glioma"

    def test_order_of_reading_does_not_matter_and_gaps_end_a_run(self):
        row = glioma(0.95, "d/1.dcm")
        rows = [replace(row, slice=i, file=f"d/{i}.dcm") for i in (4, 2, 3)]
        assert call_volume(rows, CLASSES).label == "glioma"
        assert call_volume(rows, CLASSES).file == "d"
        assert call_volume([rows[0], rows[1], replace(row, slice=0)], CLASSES).label == ""

    def test_a_number_that_comes_twice_counts_once(self):
        whole = confident("glioma", "glioma", "glioma", "notumor")
        assert call_volume([row for row in whole for _ in range(2)], CLASSES).label == "glioma"
        pair = confident("glioma", "glioma", "notumor")
        assert call_volume([row for row in pair for _ in range(3)], CLASSES).label == ""

    def test_copies_decide_nothing(self):
        gliomas, meningiomas = confident(*["glioma"] * 3), confident(*["notumor"] * 10, *["meningioma"] * 4)[10:]
        copied = [row for row in gliomas for _ in range(2)] + meningiomas
        called = call_volume(copied, CLASSES)
        assert (called.label, called.reason) == ("meningioma", "4 neighbours of 7 slices")
        first, *rest = confident("notumor", *["glioma"] * 4)
        doubted = [replace(row, verdict="uncertain") for row in rest]
        assert call_volume([first] * 6 + doubted, CLASSES).verdict == "uncertain"

    def test_of_two_images_of_one_number_the_tumour_counts(self):
        whole = confident("glioma", "glioma", "glioma", "notumor")
        others = [
            replace(row, label="notumor", probabilities=dict(zip(CLASSES, (0, 0, 1, 0), strict=True)))
            for row in whole[:3]
        ]
        refused = [replace(row, label="", probabilities={}, verdict=REFUSED) for row in whole[:3]]
        for second in (others, refused):
            for mixed in ([*second, *whole], [*whole, *second]):
                assert call_volume(mixed, CLASSES).label == "glioma"

    def test_a_slice_without_a_number_does_not_scatter_the_others(self):
        whole = confident("glioma", "glioma", "glioma", "notumor")
        mixed = [whole[2], replace(whole[3], slice=None), whole[0], whole[1]]
        called = call_volume(mixed, CLASSES)
        assert (called.label, called.reason) == ("glioma", "3 neighbours of 4 slices")
        first, second, third = confident("glioma", "glioma", "glioma")
        assert call_volume([first, replace(second, slice=None), third], CLASSES).label == ""

    def test_series_may_be_mixed_and_a_single_slice_has_no_whole(self):
        row = glioma(1.0)
        mixed = [replace(row, series=s, slice=i) for i, s in enumerate(["a", "b", "a", "b", "a", "c"])]
        found = [r for r in with_volumes(mixed, CLASSES) if r.kind == "volume"]
        assert [r.series for r in found] == ["a", "b"]

    def test_a_nifti_volume_goes_through(self, tmp_path):
        volume = np.zeros((16, 16, 5), np.uint8)
        volume[4:12, 4:12] = 200
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
        rows = list(predict([str(tmp_path / "v.nii.gz")], fake_classifier()))
        assert [row.kind for row in rows] == ["slice"] * 5 + ["volume"]
        assert [row.slice for row in rows[:5]] == list(range(5))
