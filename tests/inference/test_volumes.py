"""The rule for volumes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from classifier_fixture import CLASSES, fake_classifier, level, volume
from input_files import seeds

from tumorlens.inference import predict as predicting
from tumorlens.inference.predict import PredictSettings, predict, predict_to
from tumorlens.inference.records import Record
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.inference.volumes import call_volumes, with_volumes
from tumorlens.readers import Unreadable


def call_volume(slices: list[Record], classes: tuple[str, ...]) -> Record:
    """The record of the only volume."""
    (found,) = call_volumes(slices, classes)
    return found


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


def write_series(folder: Path, files: list[tuple[str, dict[str, object]]]) -> None:
    """A DICOM series of one picture per file, whose grey level is its class for the fake classifier."""
    folder.mkdir(exist_ok=True)
    for k, (label, elements) in enumerate(files):
        pixels = np.full((32, 32, 3), level(label), np.uint8)
        chosen = {"SOPInstanceUID": f"1.2.3.{k + 1}", "InstanceNumber": k + 1} | elements
        (folder / f"{k:03}.dcm").write_bytes(seeds.dicom(pixels, photometric="RGB", **chosen))


def lies(z: float, **elements: object) -> dict[str, object]:
    return {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], **elements}


def wholes(folder: Path, **settings: int) -> list[tuple[str, str, str]]:
    found = predict([str(folder)], fake_classifier(), PredictSettings(**settings))
    return [(row.label, row.verdict, row.reason) for row in found if row.kind == "volume"]


class TestPlaces:
    """Tumour slices at 10, 15 and 20 mm of nine from 0 to 40."""

    def labels(self) -> list[tuple[str, float]]:
        return [("glioma" if z in (10, 15, 20) else "notumor", float(z)) for z in range(0, 45, 5)]

    @pytest.mark.case(1)
    @pytest.mark.parametrize("numbers", ["interleaved", "reversed", "none"])
    def test_neighbours_are_those_in_space(self, tmp_path, numbers):
        order = {"interleaved": [*range(0, 9, 2), *range(1, 9, 2)], "reversed": [*range(9)][::-1]}.get(
            numbers, [0, 4, 8, 2, 6, 1, 3, 5, 7]
        )
        more = {"InstanceNumber": None} if numbers == "none" else {}
        write_series(tmp_path, [(label, lies(z, **more)) for label, z in (self.labels()[i] for i in order)])
        assert wholes(tmp_path) == [("glioma", OK, "3 neighbours of 9 slices")]

    @pytest.mark.case(1)
    def test_consecutive_numbers_at_distant_places_are_no_neighbours(self, tmp_path):
        files = [
            ("glioma" if k in (3, 4, 5) else "notumor", lies([0, 20, 40, 5, 25, 45, 10, 30, 50][k])) for k in range(9)
        ]
        write_series(tmp_path, files)
        assert wholes(tmp_path) == [("notumor", OK, "6 of 9 slices")]

    @pytest.mark.case(1)
    def test_one_place_gives_one_vote(self, tmp_path):
        files = [("glioma", lies(10.0, DiffusionBValue=float(b))) for b in (0, 500, 1000)]
        write_series(tmp_path, files)
        assert wholes(tmp_path) == [
            ("", UNCERTAIN, "3 images of 3 volumes with a single place each (b-value 0, b-value 500, b-value 1000)")
        ]

    @pytest.mark.case(1)
    def test_each_echo_is_a_volume_with_a_result(self, tmp_path, caplog):
        files = [(label, lies(z, EchoNumbers=1, InstanceNumber=k + 1)) for k, (label, z) in enumerate(self.labels())]
        files += [("notumor", lies(z, EchoNumbers=2, InstanceNumber=k + 1)) for k, (_, z) in enumerate(self.labels())]
        write_series(tmp_path, files)
        with caplog.at_level("INFO", "tumorlens"):
            assert wholes(tmp_path) == [
                ("glioma", OK, "volume 1 of 2 (echo 1): 3 neighbours of 9 slices"),
                ("notumor", OK, "volume 2 of 2 (echo 2): 9 of 9 slices"),
            ]
        assert "series-1 holds 2 volumes (echo 1, echo 2)" in caplog.text
        assert wholes(tmp_path, volume=1) == [("glioma", OK, "3 neighbours of 9 slices")]
        assert wholes(tmp_path, volume=2) == [("notumor", OK, "9 of 9 slices")]
        assert "--volume 2: 9 DICOM images of other volumes are left out." in caplog.text
        assert wholes(tmp_path, volume=3) == []
        (row,) = predict([str(tmp_path)], fake_classifier(), PredictSettings(volume=3))
        assert (row.verdict, row.reason) == (
            "error: holds 2 volumes, so there is no volume 3", "Use --volume 1 to --volume 2.",
        )  # fmt: skip

    @pytest.mark.case(1)
    def test_a_missing_slice_ends_a_run(self, tmp_path):
        write_series(tmp_path, [("glioma", lies(float(z))) for z in (0, 5, 15, 20)])
        assert wholes(tmp_path) == [("", UNCERTAIN, "two neighbouring slices alone name one tumour class")]

    @pytest.mark.case(1)
    def test_copies_count_once(self, tmp_path):
        files = [("glioma", lies(float(z), SOPInstanceUID=f"1.2.{z}")) for z in (0, 5) for _ in range(3)]
        write_series(tmp_path, files)
        assert wholes(tmp_path) == [("", UNCERTAIN, "two neighbouring slices alone name one tumour class")]

    @pytest.mark.case(1)
    def test_without_positions_the_order_is_named(self, tmp_path):
        write_series(tmp_path, [("glioma", {}) for _ in range(3)])
        assert wholes(tmp_path) == [
            ("glioma", OK, "3 neighbours of 3 slices; in the order of their numbers, as the header has no positions")
        ]

    @pytest.mark.case(4)
    def test_another_modality_is_refused_as_a_whole(self, tmp_path):
        write_series(tmp_path, [("glioma", lies(5.0 * k, Modality="CT")) for k in range(3)])
        *rows, whole = predict([str(tmp_path)], fake_classifier())
        assert [(row.verdict, row.label, row.reason) for row in rows] == [
            (REFUSED, "", "modality CT in its header, not MR")
        ] * 3
        assert (whole.verdict, whole.label) == (REFUSED, "")

    @pytest.mark.parametrize("written", [3, 12, 18, 19])
    def test_an_interrupted_job_knows_the_places_again(self, tmp_path, written):
        files = [(label, lies(z, EchoNumbers=e)) for label, z in self.labels() for e in (1, 2)]
        write_series(tmp_path / "in", files)
        out = tmp_path / "rows.csv"
        predict_to([str(tmp_path / "in")], fake_classifier(), out=out)
        whole = out.read_text()
        assert whole.count("volume 1 of 2") == whole.count("volume 2 of 2") == 1
        out.write_text("".join(whole.splitlines(keepends=True)[: written + 1]))
        predict_to([str(tmp_path / "in")], fake_classifier(), out=out, resume=True)

        def without_seconds(text: str) -> list[list[str]]:
            return [[*row[:10], *row[11:]] for row in csv.reader(text.splitlines())]

        assert without_seconds(out.read_text()) == without_seconds(whole)
