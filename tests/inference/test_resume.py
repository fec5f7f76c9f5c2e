"""Resuming an interrupted predict job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from classifier_fixture import CLASSES, fake_classifier, level, volume

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.inference import predict as predicting
from tumorlens.inference.predict import PredictSettings, predict_to
from tumorlens.inference.records import Record, header, parse_record
from tumorlens.inference.resume import read_previous
from tumorlens.readers import Slice


class TestResume:
    @pytest.fixture
    def stream(self, monkeypatch) -> None:
        """Two volumes and an image in place of files."""
        found = [*volume("glioma", "glioma", "glioma"), *volume("notumor", "!", series="series-2", file="w.nii"),
                 Slice("z.png", None, None, None, np.full((224, 224, 3), level("notumor"), np.uint8), {})]  # fmt: skip
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(found))
        monkeypatch.setattr(predicting, "count_inputs", lambda *_: 3)

    @staticmethod
    def rows(path: Path, form: str) -> list[Record]:
        lines = path.read_text().splitlines(keepends=True)[form == "csv" :]
        return [replace(parse_record(text, form, CLASSES), seconds=0) for text in lines]

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_cut_anywhere_it_ends_the_same(self, stream, tmp_path, form):
        out = tmp_path / "rows"
        whole = predict_to(["x"], fake_classifier(), PredictSettings(batch=2), form=form, out=out)
        assert (whole.records, whole.failed) == (8, 1)
        wanted, content = self.rows(out, form), out.read_bytes()
        for end in range(0, len(content) + 1, 23):
            out.write_bytes(content[:end])
            again = predict_to(["x"], fake_classifier(), PredictSettings(batch=2), form=form, out=out, resume=True)
            assert again == whole
            assert self.rows(out, form) == wanted
            kept = content[: content[:end].rfind(b"\n") + 1]
            assert out.read_bytes().startswith(kept)  # seconds and all

    def test_finished_slices_are_not_computed_again(self, stream, tmp_path, monkeypatch):
        out = tmp_path / "rows"
        predict_to(["x"], fake_classifier(), form="json", out=out)
        monkeypatch.setattr(predicting, "record_of", lambda *_: pytest.fail("computed"))
        assert predict_to(["x"], fake_classifier(), form="json", out=out, resume=True).records == 8

    def test_a_file_is_never_overwritten_without_being_asked(self, stream, tmp_path):
        (tmp_path / "rows").write_text("precious")
        with pytest.raises(RunError, match="already exists"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        (tmp_path / "rows").write_text("precious\n")
        with pytest.raises(RunError, match="is not a record of tumorlens"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows", resume=True)
        assert (tmp_path / "rows").read_text() == "precious\n"

    def test_another_model_or_format_is_not_mixed_in(self, stream, tmp_path):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        with pytest.raises(RunError, match="model, plane and coverage were") as raised:
            read_previous(tmp_path / "rows", "json", CLASSES, "initial-fp32-76543210")
        assert all(option in raised.value.cure for option in ("--format", "--model", "--plane", "--coverage"))
        with pytest.raises(RunError, match="columns"):
            read_previous(tmp_path / "rows", "csv", CLASSES, "any")

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_records_of_an_older_version_are_not_continued(self, stream, tmp_path, form):
        out = tmp_path / "rows"
        predict_to(["x"], fake_classifier(), form=form, out=out)
        older = out.read_text().replace(', "instance": null', "").replace("slice,instance,", "slice,")
        out.write_text(older)
        with pytest.raises(RunError, match="older version of tumorlens") as raised:
            predict_to(["x"], fake_classifier(), form=form, out=out, resume=True)
        assert "another file with --out" in raised.value.cure
        assert out.read_text() == older

    @pytest.mark.parametrize("other", [PredictSettings(plane="coronal"), PredictSettings(coverage=0.9)])
    def test_rows_of_another_plane_or_coverage_are_not_gone_on_with(self, other, stream, tmp_path):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        with pytest.raises(RunError, match="axial"):
            predict_to(["x"], fake_classifier(), other, form="json", out=tmp_path / "rows", resume=True)

    def test_other_inputs_are_an_error(self, stream, tmp_path, monkeypatch):
        predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows")
        changed = volume("glioma", series="series-9")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(changed))
        with pytest.raises(RunError, match="does not belong to the series"):
            predict_to(["x"], fake_classifier(), form="json", out=tmp_path / "rows", resume=True)

    @pytest.mark.parametrize("whole", [True, False])
    def test_two_patients_do_not_become_one_volume(self, tmp_path, monkeypatch, whole):
        out = tmp_path / "rows.json"
        alice = volume("glioma", "glioma", "glioma", file="alice.nii")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(alice))
        predict_to(["x"], fake_classifier(), out=out)
        if not whole:
            out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
        before = out.read_bytes()
        bob = volume("notumor", "notumor", file="bob.nii")
        monkeypatch.setattr(predicting, "read_inputs", lambda *_, **__: iter(bob))
        with pytest.raises(RunError, match=r"bob\.nii"):
            predict_to(["x"], fake_classifier(), out=out, resume=True)
        assert out.read_bytes() == before

    def test_what_is_named_twice_has_two_rows(self, folder, tmp_path):
        out, twice = tmp_path / "rows.json", [str(folder / "a.png")] * 2
        assert predict_to(twice, fake_classifier(), out=out).records == 2
        content = out.read_bytes()
        for kept in (0, 1, 2):
            out.write_bytes(b"".join(content.splitlines(keepends=True)[:kept]))
            assert predict_to(twice, fake_classifier(), out=out, resume=True).records == 2
            assert out.read_bytes().count(b"\n") == 2

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_a_line_that_is_cut_off_must_be_ours(self, folder, tmp_path, form):
        out = tmp_path / "notes"
        out.write_text('{"patients": 3}')
        with pytest.raises(RunError, match="it begins differently"):
            predict_to([str(folder / "a.png")], fake_classifier(), form=form, out=out, resume=True)
        assert out.read_text() == '{"patients": 3}'

    @pytest.mark.parametrize(("name", "form"), [("a.csv", "csv"), ("a.JSON", "json"), ("a", "table")])
    def test_the_suffix_decides_the_format(self, folder, tmp_path, name, form):
        out = tmp_path / name
        predict_to([str(folder / "a.png")], fake_classifier(), out=out)
        first = out.read_text().splitlines(keepends=True)[0]
        assert first == header(form, CLASSES) if form != "json" else json.loads(first)

    def test_a_table_cannot_be_gone_on_with(self, tmp_path):
        with pytest.raises(ConfigError, match="--resume"):
            predict_to(["x"], fake_classifier(), out=tmp_path / "rows", resume=True)
