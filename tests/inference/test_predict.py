"""Predict: rows and their order, the rule for volumes, resuming, exit codes, memory."""

from __future__ import annotations

import csv
import errno
import gc
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from classifier_fixture import CLASSES, FakeSession, fake_classifier, grey, level, write_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import seeds

from tumorlens.cli.main import main
from tumorlens.core.errors import ConfigError, RunError
from tumorlens.inference import predict as predicting
from tumorlens.inference.classifier import Classifier, load_classifier
from tumorlens.inference.predict import Job, predict, predict_to
from tumorlens.inference.records import (
    Row,
    header,
    line,
    parse,
)
from tumorlens.inference.resume import finished
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.inference.volumes import call_volume, with_volumes
from tumorlens.readers import Slice, Unreadable

MODEL = "finetuned-fp32-01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classifier(tmp_path_factory.mktemp("model") / "classifier.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files: ok, uncertain, refused, unreadable, ok."""
    root = tmp_path / "in"
    root.mkdir()
    grey("glioma").save(root / "a.png")
    grey("meningioma", UNCERTAIN).save(root / "b.png")
    grey("pituitary", REFUSED).save(root / "c.png")
    (root / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    grey("notumor").save(root / "e.png")
    return root


def slices(*labels: str, series: str = "series-1", file: str = "v.nii") -> list[Slice | Unreadable]:
    """Slices of a volume that say what is named: `glioma`, `glioma?` (uncertain), `x` (refused) or `!` (unreadable)."""
    found: list[Slice | Unreadable] = []
    for i, text in enumerate(labels):
        if text == "!":
            found.append(Unreadable(file, i, f"frame {i + 1} cannot be decoded", "Export it again.", series))
            continue
        verdict = REFUSED if text == "x" else UNCERTAIN if text.endswith("?") else OK
        value = level("notumor" if text == "x" else text.rstrip("?"), verdict)
        found.append(Slice(file, i, len(labels), series, np.full((224, 224, 3), value, np.uint8), {}))
    return found


def said(*labels: str) -> list[Row]:
    """Rows of a series that say so, each surely."""
    return [
        Row("slice", f"{i}.dcm", "series-1", i, label, tuple(0.97 if c == label else 0.01 for c in CLASSES), (), OK, "",
            0, 0) for i, label in enumerate(labels)
    ]  # fmt: skip


class Meeting:
    """A session in whose runs two threads must meet; the first image takes longest."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)

    def run(self, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.barrier.wait()
        if feed["pixels"][0, 0, 0, 0] == level("glioma"):
            time.sleep(0.1)
        return FakeSession().run(names, feed)


class Unwanted:
    def run(self, *_: object) -> list[np.ndarray]:
        raise AssertionError("not this session")


class TestFewerThanCores:
    @staticmethod
    def classifier(alone: object, each_core: object) -> Classifier:
        made = replace(fake_classifier(), session=alone, threads=2)
        made.__dict__["_each_core"] = ThreadPoolExecutor(2), each_core
        return made

    def test_images_one_by_one_are_computed_beside_one_another_and_told_in_order(self, folder):
        (folder / "d.png").unlink()
        rows = list(predict([str(folder)], self.classifier(Unwanted(), Meeting()), Job(batch=1)))
        assert [Path(row.file).name for row in rows] == ["a.png", "b.png", "c.png", "e.png"]
        assert [row.label for row in rows] == ["glioma", "meningioma", "", "notumor"]

    def test_answers_are_judged_together_and_told_in_order(self, monkeypatch, tmp_path):
        names = ["glioma", "meningioma", "notumor"] * 7
        for i, name in enumerate(names):
            grey(name).save(tmp_path / f"{i:02}.png")
        (tmp_path / "05.png").write_bytes(b"no picture")
        judged, judge = [], Classifier.judge
        monkeypatch.setattr(Classifier, "judge", lambda *a, **k: judged.append(len(a[2])) or judge(*a, **k))
        rows = list(predict([str(tmp_path)], self.classifier(Unwanted(), FakeSession()), Job(batch=1)))
        assert [Path(row.file).stem for row in rows] == [f"{i:02}" for i in range(21)]
        assert [row.label for row in rows] == [*names[:5], "", *names[6:]]
        assert rows[5].failed
        assert sum(judged) == 20
        assert len(judged) <= 3

    def test_what_was_computed_before_an_error_of_the_network_is_answered(self, tmp_path):
        for i in range(12):
            grey("glioma" if i < 10 else "notumor").save(tmp_path / f"{i:02}.png")

        class Failing:
            def run(self, names, feed):
                if feed["pixels"][0, 0, 0, 0] == level("notumor"):
                    raise MemoryError
                return FakeSession().run(names, feed)

        rows, found = predict([str(tmp_path)], self.classifier(Unwanted(), Failing()), Job(batch=1)), []
        with pytest.raises(MemoryError):
            found.extend(row.label for row in rows)
        assert found == ["glioma"] * 10

    def test_a_lone_image_gets_every_core(self, folder):
        rows = list(predict([str(folder / "a.png")], self.classifier(FakeSession(), Unwanted()), Job(batch=1)))
        assert [row.label for row in rows] == ["glioma"]

    def test_a_reader_that_goes_away_leaves_no_thread(self, folder):
        rows = predict([str(folder)], self.classifier(Unwanted(), FakeSession()), Job(batch=1))
        next(rows)
        rows.close()
        gc.collect()
        assert not [t.name for t in threading.enumerate() if t.name.startswith(("tumorlens-batch", "ahead"))]

    @pytest.mark.parametrize(("threads", "batch"), [(2, 1), (1, 8)])
    def test_what_was_read_before_an_error_is_answered(self, monkeypatch, threads, batch):
        def two_and_an_error(*_: object, **__: object) -> Iterator[Slice]:
            yield from (replace(item, series=None) for item in slices("glioma", "notumor"))
            raise RunError("The disk is gone.", cure="Find it.")

        monkeypatch.setattr(predicting, "read_inputs", two_and_an_error)
        classifier = self.classifier(Unwanted(), FakeSession()) if threads == 2 else fake_classifier()
        rows, found = predict(["x"], classifier, Job(batch)), []
        with pytest.raises(RunError, match="disk is gone"):
            found.extend(row.label for row in rows)
        assert found == ["glioma", "notumor"]

    def test_an_error_of_the_network_is_raised(self, folder):
        with pytest.raises(AssertionError, match="not this session"):
            list(predict([str(folder)], self.classifier(FakeSession(), Unwanted()), Job(batch=1)))

    def test_answers_are_those_of_larger_batches(self, model, folder):
        classifier = load_classifier(Path(model), 2)
        one, many = (list(predict([str(folder)], classifier, Job(batch=n))) for n in (1, 8))
        assert [(row.file, row.label, row.verdict) for row in one] == [(r.file, r.label, r.verdict) for r in many]
        for a, b in zip(one, many, strict=True):
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


class TestRows:
    def test_one_bad_file_stops_nothing_and_order_is_kept(self, folder):
        rows = list(predict([str(folder)], fake_classifier(), Job(batch=2)))
        assert [Path(row.file).name for row in rows] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
        assert [row.verdict for row in rows][:3] == [OK, UNCERTAIN, REFUSED]
        assert [row.label for row in rows] == ["glioma", "meningioma", "", "", "notumor"]
        assert rows[3].verdict.startswith("error: ")
        assert rows[3].reason
        assert rows[0].set == ("glioma",)
        assert sum(rows[0].probabilities) == pytest.approx(1)

    def test_a_refused_image_shows_nothing_that_reads_as_an_answer(self, folder):
        row = list(predict([str(folder)], fake_classifier()))[2]
        assert (row.label, row.probabilities, row.set) == ("", (), ())
        assert "pituitary" not in line(row, "table", CLASSES, MODEL)
        assert json.loads(line(row, "json", CLASSES, MODEL))["probabilities"] is None

    def test_the_batch_changes_nothing(self, folder):
        both = [[replace(r, seconds=0) for r in predict([str(folder)], fake_classifier(), Job(b))] for b in (1, 32)]
        assert both[0] == both[1]

    @settings(max_examples=50, deadline=None)
    @given(
        st.text(min_size=1).filter(lambda t: t.isprintable()), st.sampled_from([None, 0, 7]),
        st.floats(0, 1), st.sampled_from(["json", "csv"]), st.booleans(),
    )  # fmt: skip
    def test_what_is_written_can_be_read(self, name, number, p, form, refused):
        row = Row("slice", name, "series-2", number, "" if refused else "glioma", () if refused else (p, 1 - p, 0, 0),
                  () if refused else ("glioma", "notumor"), REFUSED if refused else OK, "", 0.5, 0.01)  # fmt: skip
        back, model = parse(line(row, form, CLASSES, MODEL), form, CLASSES)
        assert model == MODEL
        assert replace(back, probabilities=()) == replace(row, probabilities=())
        assert back.probabilities == pytest.approx(row.probabilities, abs=1e-5)

    @pytest.mark.parametrize("chosen", [(), ("no tumour",), ("no tumour", "glial tumour")])
    def test_names_of_classes_may_hold_spaces(self, chosen):
        names = ("glial tumour", "no tumour")
        row = Row("image", "a.png", None, None, "no tumour", (0.4, 0.6), chosen, OK, "", 0.5, 0.01)
        written = line(row, "csv", names, MODEL)
        assert next(csv.DictReader([header("csv", names), written]))["set"] == "|".join(chosen)
        assert parse(written, "csv", names)[0] == row

    @pytest.mark.parametrize("name", ["=1+1.png", "-x.png", "@x", "'=x", "''+x", "\tx"])
    def test_no_name_is_a_formula_in_csv(self, name):
        row = Row("image", name, None, None, "", (), (), "error: x", "", -0.5, 0.1)
        text = line(row, "csv", CLASSES, "m")
        cells = next(csv.reader([text]))
        assert cells[1] == f"'{name}"
        assert cells[8] == "-0.5", "a number is none"
        assert parse(text, "csv", CLASSES)[0] == row

    def test_csv_has_a_column_for_each_probability(self, folder, tmp_path):
        predict_to([str(folder)], fake_classifier(), form="csv", out=tmp_path / "rows.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
        assert float(rows[0]["p_glioma"]) > 0.9
        assert rows[2]["p_glioma"] == rows[2]["class"] == ""

    @pytest.mark.parametrize("job", [{"batch": 0}, {"coverage": 0.0}, {"coverage": 1.0}])
    def test_wrong_options_are_told(self, job):
        with pytest.raises(ConfigError):
            Job(**job)


class TestVolumes:
    @pytest.mark.parametrize(
        ("said", "label", "verdict"),
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
    def test_the_rule(self, monkeypatch, said, label, verdict):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(slices(*said)))
        *rows, whole = predict(["v.nii"], fake_classifier())
        assert len(rows) == len(said)
        assert all(row.kind == "slice" for row in rows)
        assert (whole.kind, whole.label, whole.verdict) == ("volume", label, verdict)
        assert whole.series == "series-1"

    @pytest.mark.parametrize(
        ("said", "label", "verdict"),
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
    def test_slices_that_cannot_be_read_do_not_say_that_there_is_no_tumour(self, monkeypatch, said, label, verdict):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(slices(*said)))
        *_, whole = predict(["v.dcm"], fake_classifier())
        assert (whole.kind, whole.label, whole.verdict) == ("volume", label, verdict)
        assert whole.reason.endswith(f"; {said.count('!')} of {len(said)} cannot be read")

    def test_a_row_for_all_frames_that_are_missing_counts_for_each(self, monkeypatch):
        cut = [*slices(*["notumor"] * 5), Unreadable("v.nii", 9, "promises 10 frames and holds 5", "", "series-1")]
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(cut))
        *_, whole = predict(["v.dcm"], fake_classifier())
        assert whole.verdict == UNCERTAIN
        assert whole.reason.endswith("; 5 of 10 cannot be read")

    def test_a_volume_without_a_readable_slice_has_no_whole(self, monkeypatch):
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(slices("!", "!")))
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
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(slices(*["glioma"] * 5)))
        *rows, _ = predict(["v.nii"], fake_classifier())
        whole = call_volume(rows, ("glioma", "healthy"))
        assert (whole.label, whole.verdict) == ("", UNCERTAIN)
        assert "no class 'notumor'" in whole.reason

    def test_low_probability_is_no_vote(self):
        row = Row("slice", "v", "series-1", 0, "glioma", (0.89, 0.11, 0, 0), (), OK, "", 0, 0)
        weak = [replace(row, slice=i) for i in range(5)]
        assert call_volume(weak, CLASSES).verdict == UNCERTAIN
        strong = [replace(r, probabilities=(0.9, 0.1, 0, 0)) for r in weak]
        assert call_volume(strong, CLASSES).label == "glioma"

    def test_order_of_reading_does_not_matter_and_gaps_end_a_run(self):
        row = Row("slice", "d/1.dcm", "series-1", 0, "glioma", (0.95, 0.05, 0, 0), (), OK, "", 0, 0)
        rows = [replace(row, slice=i, file=f"d/{i}.dcm") for i in (4, 2, 3)]
        assert call_volume(rows, CLASSES).label == "glioma"
        assert call_volume(rows, CLASSES).file == "d"
        assert call_volume([rows[0], rows[1], replace(row, slice=0)], CLASSES).label == ""

    def test_a_number_that_comes_twice_counts_once(self):
        whole = said("glioma", "glioma", "glioma", "notumor")
        assert call_volume([row for row in whole for _ in range(2)], CLASSES).label == "glioma"
        pair = said("glioma", "glioma", "notumor")
        assert call_volume([row for row in pair for _ in range(3)], CLASSES).label == ""

    def test_copies_decide_nothing(self):
        gliomas, meningiomas = said(*["glioma"] * 3), said(*["notumor"] * 10, *["meningioma"] * 4)[10:]
        copied = [row for row in gliomas for _ in range(2)] + meningiomas
        called = call_volume(copied, CLASSES)
        assert (called.label, called.reason) == ("meningioma", "4 neighbours of 7 slices")
        first, *rest = said("notumor", *["glioma"] * 4)
        doubted = [replace(row, verdict="uncertain") for row in rest]
        assert call_volume([first] * 6 + doubted, CLASSES).verdict == "uncertain"

    def test_of_two_images_of_one_number_the_tumour_counts(self):
        whole = said("glioma", "glioma", "glioma", "notumor")
        others = [replace(row, label="notumor", probabilities=(0, 0, 1, 0)) for row in whole[:3]]
        refused = [replace(row, label="", probabilities=(), verdict=REFUSED) for row in whole[:3]]
        for second in (others, refused):
            for mixed in ([*second, *whole], [*whole, *second]):
                assert call_volume(mixed, CLASSES).label == "glioma"

    def test_a_slice_without_a_number_does_not_scatter_the_others(self):
        whole = said("glioma", "glioma", "glioma", "notumor")
        mixed = [whole[2], replace(whole[3], slice=None), whole[0], whole[1]]
        called = call_volume(mixed, CLASSES)
        assert (called.label, called.reason) == ("glioma", "3 neighbours of 4 slices")
        first, second, third = said("glioma", "glioma", "glioma")
        assert call_volume([first, replace(second, slice=None), third], CLASSES).label == ""

    def test_series_may_be_mixed_and_a_single_slice_has_no_whole(self):
        row = Row("slice", "f", "series-1", 0, "glioma", (1, 0, 0, 0), (), OK, "", 0, 0)
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


class TestResume:
    @pytest.fixture
    def stream(self, monkeypatch) -> None:
        """Two volumes and an image in place of files."""
        found = [*slices("glioma", "glioma", "glioma"), *slices("notumor", "!", series="series-2", file="w.nii"),
                 Slice("z.png", None, None, None, np.full((224, 224, 3), level("notumor"), np.uint8), {})]  # fmt: skip
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(found))
        monkeypatch.setattr(predicting, "count_inputs", lambda *_: 3)

    @staticmethod
    def rows(path: Path, form: str) -> list[Row]:
        lines = path.read_text().splitlines(keepends=True)[form == "csv" :]
        return [replace(parse(text, form, CLASSES)[0], seconds=0) for text in lines]

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_cut_anywhere_it_ends_the_same(self, stream, tmp_path, form):
        out = tmp_path / "rows"
        whole = predict_to(["x"], fake_classifier(), Job(batch=2), form=form, out=out)
        assert (whole.rows, whole.failed) == (8, 1)
        wanted, content = self.rows(out, form), out.read_bytes()
        for end in range(0, len(content) + 1, 23):
            out.write_bytes(content[:end])
            again = predict_to(["x"], fake_classifier(), Job(batch=2), form=form, out=out, resume=True)
            assert again == whole
            assert self.rows(out, form) == wanted
            kept = content[: content[:end].rfind(b"\n") + 1]
            assert out.read_bytes().startswith(kept)  # seconds and all

    def test_finished_slices_are_not_computed_again(self, stream, tmp_path, monkeypatch):
        out = tmp_path / "rows"
        predict_to(["x"], fake_classifier(), form="json", out=out)
        monkeypatch.setattr(predicting, "_classified", lambda *_: pytest.fail("computed"))
        assert predict_to(["x"], fake_classifier(), form="json", out=out, resume=True).rows == 8

    def test_a_file_is_never_overwritten_without_being_asked(self, stream, tmp_path):
        (tmp_path / "rows").write_text("precious")
        with pytest.raises(RunError, match="already there"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        (tmp_path / "rows").write_text("precious\n")
        with pytest.raises(RunError, match="no row of ours"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows", resume=True)
        assert (tmp_path / "rows").read_text() == "precious\n"

    def test_another_model_or_format_is_not_mixed_in(self, stream, tmp_path):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        with pytest.raises(RunError, match="model, plane and coverage were") as raised:
            finished(tmp_path / "rows", "json", CLASSES, "initial-fp32-76543210")
        assert all(option in raised.value.cure for option in ("--format", "--model", "--plane", "--coverage"))
        with pytest.raises(RunError, match="columns"):
            finished(tmp_path / "rows", "csv", CLASSES, MODEL)

    @pytest.mark.parametrize("other", [Job(plane="coronal"), Job(coverage=0.9)])
    def test_rows_of_another_plane_or_coverage_are_not_gone_on_with(self, other, stream, tmp_path):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        with pytest.raises(RunError, match="axial"):
            predict_to(["x"], fake_classifier(), other, form="json", out=tmp_path / "rows", resume=True)

    def test_other_inputs_are_told(self, stream, tmp_path, monkeypatch):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        changed = slices("glioma", series="series-9")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(changed))
        with pytest.raises(RunError, match="does not belong to the series"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows", resume=True)

    @pytest.mark.parametrize("whole", [True, False])
    def test_two_patients_do_not_become_one_volume(self, tmp_path, monkeypatch, whole):
        out = tmp_path / "rows.json"
        alice = slices("glioma", "glioma", "glioma", file="alice.nii")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(alice))
        predict_to(["x"], fake_classifier(), out=out)
        if not whole:
            out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
        before = out.read_bytes()
        bob = slices("notumor", "notumor", file="bob.nii")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(bob))
        with pytest.raises(RunError, match=r"bob\.nii"):
            predict_to(["x"], fake_classifier(), out=out, resume=True)
        assert out.read_bytes() == before

    def test_what_is_named_twice_has_two_rows(self, folder, tmp_path):
        out, twice = tmp_path / "rows.json", [str(folder / "a.png")] * 2
        assert predict_to(twice, fake_classifier(), out=out).rows == 2
        content = out.read_bytes()
        for kept in (0, 1, 2):
            out.write_bytes(b"".join(content.splitlines(keepends=True)[:kept]))
            assert predict_to(twice, fake_classifier(), out=out, resume=True).rows == 2
            assert out.read_bytes().count(b"\n") == 2

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_a_line_that_is_cut_off_must_be_ours(self, folder, tmp_path, form):
        out = tmp_path / "notes"
        out.write_text('{"patients": 3}')
        with pytest.raises(RunError, match="another beginning"):
            predict_to([str(folder / "a.png")], fake_classifier(), form=form, out=out, resume=True)
        assert out.read_text() == '{"patients": 3}'

    @pytest.mark.parametrize(("name", "form"), [("a.csv", "csv"), ("a.JSON", "json"), ("a", "table")])
    def test_the_suffix_tells_the_format(self, folder, tmp_path, name, form):
        out = tmp_path / name
        predict_to([str(folder / "a.png")], fake_classifier(), out=out)
        first = out.read_text().splitlines(keepends=True)[0]
        assert first == header(form, CLASSES) if form != "json" else json.loads(first)

    def test_a_table_cannot_be_gone_on_with(self, tmp_path):
        with pytest.raises(ConfigError, match="--resume"):
            predict_to(["x"], fake_classifier(), out=tmp_path / "rows", resume=True)


class TestCommand:
    def test_its_own_results_are_not_read(self, folder, model, capsys):
        maps, out = folder / "maps", folder / "rows.csv"
        words = ["predict", str(folder), "--model", model, "--out", str(out), "--heatmaps", str(maps)]
        assert main(words) == 3
        rows = list(csv.DictReader(out.read_text().splitlines()))
        assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
        assert len(list(maps.iterdir())) == 4
        assert main([*words, "--resume"]) == 3  # the pictures of the first time lie there now
        assert len(out.read_text().splitlines()) == 6
        assert main(["predict", str(folder), "--model", model, "--heatmaps", str(folder / ".")]) == 1
        assert "among the images that are read" in capsys.readouterr().err

    def test_exit_code_3_says_that_some_failed(self, folder, model, capsys):
        assert main(["predict", str(folder), "--model", model, "--format", "json", "--batch", "2"]) == 3
        out, err = capsys.readouterr()
        rows = [json.loads(text) for text in out.splitlines()]
        assert len(rows) == 5
        assert sum(row["verdict"].startswith("error") for row in rows) == 1
        assert "1 of 5 could not be read" in err

    def test_of_a_4d_nifti_the_volumes_that_are_not_read_are_told(self, model, tmp_path, capsys):
        path = tmp_path / "fmri.nii"
        path.write_bytes(seeds.nifti(np.random.default_rng(0).integers(0, 500, (16, 16, 4, 3), dtype=np.int16)))
        assert main(["predict", str(path), "--model", model, "--format", "json"]) == 3
        rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
        assert [row["kind"] for row in rows] == ["slice"] * 4 + ["image", "volume"]
        assert rows[4]["verdict"] == "error: holds 3 volumes, of which the first alone was read"
        assert "cannot be read" not in rows[5]["reason"]
        assert main(["explain", str(path), "--model", model, "--out", str(tmp_path / "p")]) == 3
        out, err = capsys.readouterr()
        assert out.startswith("4 pictures")
        assert "1 of 5 could not be read; the lines above say why" in err
        assert "holds 3 volumes" in err

    def test_a_table_is_for_reading(self, folder, model, capsys):
        assert main(["predict", str(folder / "a.png"), "--model", model, "--threads", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["file", "slice", "class", "prob.", "set", "verdict"]
        assert len(lines) == 2

    def test_standard_input(self, model, monkeypatch, capsys):
        content = io.BytesIO()
        grey("glioma").save(content, "PNG")
        content.seek(0)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
        assert main(["predict", "-", "--model", model, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["file"] == "-"

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (["--out", "{}/rows.csv"], "Finished parts are kept; this continues:\n"),
            (["--out", "{}/rows.txt"], "--resume can continue it"),
            ([], "--resume can continue it"),
        ],
    )
    def test_an_interrupted_one_says_what_goes_on(self, folder, tmp_path, model, monkeypatch, capsys, more, told):
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        words = ["predict", str(folder), "--model", model, *(word.format(tmp_path) for word in more)]
        with monkeypatch.context() as patch:
            patch.setattr(predicting, "_classified", interrupted)
            assert main(words) == 130
        err = capsys.readouterr().err
        assert told in err
        if "this continues" in told:
            assert main([*words, "--resume"]) == 3
            assert " --resume" in err

    @pytest.mark.parametrize(("name", "cure"), [("rows.csv", "again with --resume"), ("rows.txt", "another file")])
    def test_a_full_disk_says_what_goes_on(self, folder, model, tmp_path, monkeypatch, capsys, name, cure):
        class Full(io.BytesIO):
            def write(self, _: object) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        real = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full() if path.name == name else real(path, *a, **k))
        assert main(["predict", str(folder), "--model", model, "--out", str(tmp_path / name)]) == 1
        assert cure in capsys.readouterr().err

    def test_a_full_disk_behind_standard_output_is_told(self, folder, model):
        words = [sys.executable, "-m", "tumorlens", "predict", str(folder), "--model", model]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1
        assert "Standard output cannot be written (No space left on device)" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("content", [None, b"\0" * (1 << 21)])
    def test_an_endless_file_is_not_gone_on_with(self, folder, model, tmp_path, capsys, content):
        out = Path("/dev/zero")
        if content is not None:
            out = tmp_path / "rows"
            out.write_bytes(content)
        assert main(["predict", str(folder), "--model", model, "--out", str(out), "--format", "csv", "--resume"]) == 1
        assert "no regular file" in (err := capsys.readouterr().err) or "a long line" in err

    def test_names_are_shown_where_the_terminal_has_no_letters_for_them(self, folder, model, monkeypatch):
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="latin-1", write_through=True))
        name = folder / f"{'long' * 20}.png"
        (folder / "a.png").rename(name)
        assert main(["predict", str(name), "--model", model]) == 0
        assert b"\\u2026" in out.getvalue()

    def test_closed_standard_input_is_told(self, model, monkeypatch, capsys):
        monkeypatch.setattr("sys.stdin", None)
        for name in ("-", "@-"):
            assert main(["predict", name, "--model", model]) == 1
            assert "Standard input is closed" in capsys.readouterr().err

    def test_ctrl_c_while_names_are_awaited(self, model):
        words = [sys.executable, "-m", "tumorlens", "predict", "@-", "--model", model, "--format", "csv"]
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"kind,file")
            process.send_signal(signal.SIGINT)
            process.wait(30)
            assert process.returncode == 130
            assert b"Fatal" not in process.stderr.read()  # type: ignore[union-attr]

    def test_a_missing_model_is_told(self, folder, tmp_path, capsys):
        assert main(["predict", str(folder), "--model", str(tmp_path / "absent.onnx")]) == 1
        assert "Name an .onnx file" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow_with_the_number_of_files(tmp_path, threads):
    grey("glioma").save(tmp_path / "0.png")
    for i in range(1, 1500):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    classifier = fake_classifier() if threads == 1 else TestFewerThanCores.classifier(FakeSession(), FakeSession())
    rows = predict([str(tmp_path)], classifier, Job(batch=16 if threads == 1 else 1))
    assert sum(1 for _ in itertools.islice(rows, 200)) == 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in rows) == 1300
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 20, "1,300 decoded images are 196 MB"


def test_header_of_json_is_empty():
    assert header("json", CLASSES) == ""
