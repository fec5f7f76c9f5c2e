"""The predict job: records and their order, cores, exit codes, memory."""

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

import numpy as np
import pytest
from classifier_fixture import CLASSES, FakeSession, fake_classifier, grey, level, volume
from input_files import seeds

from tumorlens.cli.app import main
from tumorlens.core.errors import ConfigError, RunError
from tumorlens.inference import predict as predicting
from tumorlens.inference.classifier import Classifier, load_classifier
from tumorlens.inference.predict import PredictSettings, group_size, predict, predict_to
from tumorlens.inference.records import format_record
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.readers import Slice


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

    def test_single_images_are_computed_in_parallel_and_yielded_in_order(self, folder):
        (folder / "d.png").unlink()
        rows = list(predict([str(folder)], self.classifier(Unwanted(), Meeting()), PredictSettings(batch=1)))
        assert [Path(row.file).name for row in rows] == ["a.png", "b.png", "c.png", "e.png"]
        assert [row.label for row in rows] == ["glioma", "meningioma", "", "notumor"]

    def test_verdicts_are_made_in_groups_and_yielded_in_order(self, monkeypatch, tmp_path):
        names = ["glioma", "meningioma", "notumor"] * 7
        for i, name in enumerate(names):
            grey(name).save(tmp_path / f"{i:02}.png")
        (tmp_path / "05.png").write_bytes(b"no picture")
        sizes, assess = [], Classifier.assess
        monkeypatch.setattr(Classifier, "assess", lambda *a, **k: sizes.append(len(a[2])) or assess(*a, **k))
        rows = list(predict([str(tmp_path)], self.classifier(Unwanted(), FakeSession()), PredictSettings(batch=1)))
        assert [Path(row.file).stem for row in rows] == [f"{i:02}" for i in range(21)]
        assert [row.label for row in rows] == [*names[:5], "", *names[6:]]
        assert rows[5].failed
        assert sum(sizes) == 20
        assert len(sizes) <= 3

    def test_what_was_computed_before_an_error_of_the_network_is_answered(self, tmp_path):
        for i in range(12):
            grey("glioma" if i < 10 else "notumor").save(tmp_path / f"{i:02}.png")

        class Failing:
            def run(self, names, feed):
                if feed["pixels"][0, 0, 0, 0] == level("notumor"):
                    raise MemoryError
                return FakeSession().run(names, feed)

        rows, found = predict([str(tmp_path)], self.classifier(Unwanted(), Failing()), PredictSettings(batch=1)), []
        with pytest.raises(MemoryError):
            found.extend(row.label for row in rows)
        assert found == ["glioma"] * 8  # the group before

    def test_groups_are_larger_than_batches_that_would_leave_cores_idle(self):
        assert [group_size(batch, 8) for batch in (1, 3, 4, 8, 32)] == [16, 16, 16, 8, 32]
        assert [group_size(batch, 2) for batch in (1, 2)] == [8, 2]
        assert group_size(1, 1) == 1

    def test_a_lone_image_gets_every_core(self, folder):
        rows = list(
            predict([str(folder / "a.png")], self.classifier(FakeSession(), Unwanted()), PredictSettings(batch=1))
        )
        assert [row.label for row in rows] == ["glioma"]

    def test_a_reader_that_goes_away_leaves_no_thread(self, folder):
        rows = predict([str(folder)], self.classifier(Unwanted(), FakeSession()), PredictSettings(batch=1))
        next(rows)
        rows.close()
        gc.collect()
        assert not [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]

    @pytest.mark.parametrize(("threads", "batch"), [(2, 1), (1, 8)])
    def test_what_was_read_before_an_error_is_answered(self, monkeypatch, threads, batch):
        def two_and_an_error(*_: object, **__: object) -> Iterator[Slice]:
            yield from (replace(item, series=None) for item in volume("glioma", "notumor"))
            raise RunError("The disk is gone.", cure="Find it.")

        monkeypatch.setattr(predicting, "read_inputs", two_and_an_error)
        classifier = self.classifier(Unwanted(), FakeSession()) if threads == 2 else fake_classifier()
        rows, found = predict(["x"], classifier, PredictSettings(batch)), []
        with pytest.raises(RunError, match="disk is gone"):
            found.extend(row.label for row in rows)
        assert found == ["glioma", "notumor"]

    def test_an_error_of_the_network_is_raised(self, folder):
        with pytest.raises(AssertionError, match="not this session"):
            list(predict([str(folder)], self.classifier(FakeSession(), Unwanted()), PredictSettings(batch=1)))

    def test_answers_are_those_of_larger_batches(self, model, folder):
        classifier = load_classifier(Path(model), 2)
        one, many = (list(predict([str(folder)], classifier, PredictSettings(batch=n))) for n in (1, 8))
        assert [(row.file, row.label, row.verdict) for row in one] == [(r.file, r.label, r.verdict) for r in many]
        for a, b in zip(one, many, strict=True):
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


class TestRows:
    def test_one_bad_file_stops_nothing_and_order_is_kept(self, folder):
        rows = list(predict([str(folder)], fake_classifier(), PredictSettings(batch=2)))
        assert [Path(row.file).name for row in rows] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
        assert [row.verdict for row in rows][:3] == [OK, UNCERTAIN, REFUSED]
        assert [row.label for row in rows] == ["glioma", "meningioma", "", "", "notumor"]
        assert rows[3].verdict.startswith("error: ")
        assert rows[3].reason
        assert rows[0].set == ("glioma",)
        assert sum(rows[0].probabilities.values()) == pytest.approx(1)

    def test_a_refused_image_shows_nothing_that_reads_as_an_answer(self, folder):
        row = list(predict([str(folder)], fake_classifier()))[2]
        assert (row.label, row.probabilities, row.set) == ("", {}, ())
        assert "pituitary" not in format_record(row, "table", CLASSES)
        assert json.loads(format_record(row, "json", CLASSES))["probabilities"] is None

    def test_the_batch_changes_nothing(self, folder):
        both = [
            [replace(r, seconds=0) for r in predict([str(folder)], fake_classifier(), PredictSettings(b))]
            for b in (1, 32)
        ]
        assert both[0] == both[1]

    def test_csv_has_a_column_for_each_probability(self, folder, tmp_path):
        predict_to([str(folder)], fake_classifier(), form="csv", out=tmp_path / "rows.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
        assert float(rows[0]["p_glioma"]) > 0.9
        assert rows[2]["p_glioma"] == rows[2]["class"] == ""

    @pytest.mark.parametrize("job", [{"batch": 0}, {"coverage": 0.0}, {"coverage": 1.0}])
    def test_wrong_options_are_errors(self, job):
        with pytest.raises(ConfigError):
            PredictSettings(**job)


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
        assert "which is also an input" in capsys.readouterr().err

    def test_exit_code_3_says_that_some_failed(self, folder, model, capsys):
        assert main(["predict", str(folder), "--model", model, "--format", "json", "--batch", "2"]) == 3
        out, err = capsys.readouterr()
        rows = [json.loads(text) for text in out.splitlines()]
        assert len(rows) == 5
        assert sum(row["verdict"].startswith("error") for row in rows) == 1
        assert "1 of 5 could not be read" in err

    def test_volumes_of_a_4d_nifti_that_are_not_read_are_reported(self, model, tmp_path, capsys):
        path = tmp_path / "fmri.nii"
        path.write_bytes(seeds.nifti(np.random.default_rng(0).integers(0, 500, (16, 16, 4, 3), dtype=np.int16)))
        assert main(["predict", str(path), "--model", model, "--format", "json"]) == 3
        rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
        assert [row["kind"] for row in rows] == ["slice"] * 4 + ["image", "volume"]
        assert rows[4]["verdict"] == "error: holds 3 volumes, of which the first alone was read"
        assert "cannot be read" not in rows[5]["reason"]
        assert main(["explain", str(path), "--model", model, "--out", str(tmp_path / "p")]) == 3
        out, err = capsys.readouterr()
        assert out == f"Pictures in {tmp_path / 'p'}: 4\n"
        assert "1 of 5 could not be read; the lines above say why" in err
        assert "holds 3 volumes" in err

    def test_a_table_is_for_reading(self, folder, model, capsys):
        assert main(["predict", str(folder / "a.png"), "--model", model, "--threads", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["file", "slice", "inst.", "class", "prob.", "verdict", "set"]
        assert len(lines) == 3
        assert lines[2].startswith("    ")  # the reason

    def test_standard_input(self, model, monkeypatch, capsys):
        content = io.BytesIO()
        grey("glioma").save(content, "PNG")
        content.seek(0)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
        assert main(["predict", "-", "--model", model, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["file"] == "-"

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            (["--out", "{}/rows.csv"], "Finished parts are kept; this continues:\n"),
            (["--out", "{}/rows.txt"], "--resume can continue it"),
            ([], "--resume can continue it"),
        ],
    )
    def test_an_interrupted_job_reports_its_cure(self, folder, tmp_path, model, monkeypatch, capsys, more, expected):
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        words = ["predict", str(folder), "--model", model, *(word.format(tmp_path) for word in more)]
        with monkeypatch.context() as patch:
            patch.setattr(predicting, "record_of", interrupted)
            assert main(words) == 130
        err = capsys.readouterr().err
        assert expected in err
        if "this continues" in expected:
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

    def test_a_full_disk_behind_standard_output_is_an_error(self, folder, model):
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
        assert "not a regular file" in (err := capsys.readouterr().err) or "the line is too long" in err

    def test_names_are_shown_where_the_terminal_has_no_letters_for_them(self, folder, model, monkeypatch):
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="latin-1", write_through=True))
        name = folder / f"{'long' * 20}.png"
        (folder / "a.png").rename(name)
        assert main(["predict", str(name), "--model", model]) == 0
        assert b"\\u2026" in out.getvalue()

    def test_closed_standard_input_is_an_error(self, model, monkeypatch, capsys):
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

    def test_a_missing_model_is_an_error(self, folder, tmp_path, capsys):
        assert main(["predict", str(folder), "--model", str(tmp_path / "absent.onnx")]) == 1
        assert "Name an .onnx file" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow_with_the_number_of_files(tmp_path, threads):
    grey("glioma").save(tmp_path / "0.png")
    for i in range(1, 1500):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    classifier = fake_classifier() if threads == 1 else TestFewerThanCores.classifier(FakeSession(), FakeSession())
    rows = predict([str(tmp_path)], classifier, PredictSettings(batch=16 if threads == 1 else 1))
    assert sum(1 for _ in itertools.islice(rows, 200)) == 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in rows) == 1300
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 20, "1,300 decoded images are 196 MB"
