"""Predictions: what is refused, and predictions.csv with its damage."""

import errno
import os

import numpy as np
import pytest
from evaluation_cases import FOUR_CLASSES, random_case, random_predictions
from hypothesis import given, settings
from hypothesis import strategies as st

from tumorlens.core.errors import DataError, RunError
from tumorlens.evaluation.metrics import evaluate_predictions
from tumorlens.evaluation.predictions import Predictions, read_predictions, write_predictions


class TestPredictions:
    def test_refuses_a_path_twice(self):
        with pytest.raises(DataError, match=r"'a\.jpg' is predicted twice"):
            Predictions(("a.jpg", "a.jpg"), np.array([0, 1]), np.eye(2), ("test", "test"), ("x", "y"))

    def test_refuses_an_unknown_split(self):
        with pytest.raises(DataError, match="'exam' is unknown"):
            Predictions(("a.jpg",), np.array([0]), np.array([[1.0, 0.0]]), ("exam",), ("x", "y"))

    def test_refuses_other_lengths(self):
        with pytest.raises(DataError, match="2 paths, 1 splits and 2 labels"):
            Predictions(("a.jpg", "b.jpg"), np.array([0, 1]), np.eye(2), ("test",), ("x", "y"))


class TestFile:
    def test_round_trip(self, tmp_path):
        before = random_predictions()
        write_predictions(tmp_path / "initial" / "predictions.csv", before)
        after = read_predictions(tmp_path / "initial" / "predictions.csv")
        assert after.paths == before.paths
        assert after.splits == before.splits
        assert after.classes == FOUR_CLASSES
        assert after.labels.dtype == np.int64
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_array_equal(after.probabilities, before.probabilities)
        assert evaluate_predictions(after, "x") == evaluate_predictions(before, "x")

    def test_nine_digits(self, tmp_path):
        third = Predictions(('a,"b".jpg',), np.array([1]), np.array([[2e-9 / 3, 1 - 2e-9 / 3]]), ("test",), ("x", "y"))
        write_predictions(tmp_path / "predictions.csv", third)
        text = (tmp_path / "predictions.csv").read_text()
        assert text == 'path,label,predicted,split,p_x,p_y\n"a,""b"".jpg",y,y,test,6.66666667e-10,0.999999999\n'
        assert read_predictions(tmp_path / "predictions.csv").probabilities[0, 0] == 6.66666667e-10

    def test_close_call_reads_back(self, tmp_path):
        # The second class leads by less than 9 digits tell; both sides must then agree on the first.
        close = Predictions(("a",), np.array([1]), np.array([[0.5 - 1e-13, 0.5 + 1e-13]]), ("test",), ("x", "y"))
        write_predictions(tmp_path / "predictions.csv", close)
        assert read_predictions(tmp_path / "predictions.csv").predicted == close.predicted == [0]

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1),
                 min_size=1, max_size=6, unique=True),
        st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1),
                 min_size=2, max_size=4, unique=True),
        st.integers(0, 1000),
    )  # fmt: skip
    def test_any_names_round_trip(self, tmp_path_factory, paths, classes, seed):
        labels, p = random_case(len(paths), len(classes), seed)
        before = Predictions(tuple(paths), labels, p, ("test",) * len(paths), tuple(classes))
        path = tmp_path_factory.mktemp("names") / "predictions.csv"
        write_predictions(path, before)
        after = read_predictions(path)
        assert (after.paths, after.classes) == (before.paths, before.classes)
        np.testing.assert_array_equal(after.probabilities, before.probabilities)

    good = "path,label,predicted,split,p_x,p_y\na.jpg,x,x,test,0.75,0.25\nb.jpg,y,x,train,0.6,0.4\n"

    def test_the_good_one_reads(self, tmp_path):
        (tmp_path / "predictions.csv").write_text(self.good)
        assert len(read_predictions(tmp_path / "predictions.csv")) == 2

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (",split", "", "line 1: column 'split' is missing"),
            (",p_x,p_y", ",p_x,p_x", "line 1: a column appears twice"),
            ("p_x,p_y", "p_x,q_y", "line 1: there are fewer than two columns"),
            ("0.25", "many", "line 2: p_y is 'many'"),
            ("0.25", "nan", "line 2: the probabilities"),
            ("0.25", "0.2", "line 2: the probabilities"),
            ("0.75,0.25", "1.5,-0.5", "line 2: the probabilities"),
            ("0.75,0.25", "inf,0.25", "line 2: the probabilities"),
            ("b.jpg,y", "b.jpg,z", "line 3: label 'z'"),
            ("b.jpg,y,x", "b.jpg,y,y", "line 3: predicted is 'y', but 'x'"),
            ("train", "training", "line 3: split 'training'"),
            ("b.jpg", "a.jpg", r"line 3: image 'a\.jpg' appears twice"),
            (",0.6,0.4", ",0.6", "line 3: 5 values, but the header has 6"),
            (",0.6,0.4", ",0.6,0.4,0", "line 3: 7 values, but the header has 6"),
            ("b.jpg,y", 'b.jpg,"y', "line 3: "),
            (good, "", "line 0: column 'path' is missing"),
            ("a.jpg,x,x,test,0.75,0.25\nb.jpg,y,x,train,0.6,0.4\n", "", "has no rows"),
        ],
    )  # fmt: skip
    def test_damage_is_named_with_its_line(self, tmp_path, old, new, words):
        assert old in self.good
        path = tmp_path / "run" / "initial" / "predictions.csv"
        path.parent.mkdir(parents=True)
        path.write_text(self.good.replace(old, new))
        with pytest.raises(RunError, match=words) as caught:
            read_predictions(path)
        assert str(path) in caught.value.what
        assert caught.value.cure == f"Write it again: tumorlens evaluate {tmp_path / 'run'}"

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "predictions.csv").write_bytes(self.good.encode() + b"\xff\xfe\n")
        with pytest.raises(RunError, match="utf-8"):
            read_predictions(tmp_path / "predictions.csv")

    def test_missing_and_a_folder(self, tmp_path):
        with pytest.raises(RunError, match="is missing"):
            read_predictions(tmp_path / "predictions.csv")
        with pytest.raises(RunError, match="cannot be read"):
            read_predictions(tmp_path)

    def test_a_full_disk_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "predictions.csv"
        write_predictions(path, random_predictions())
        before = path.read_bytes()

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="disk is full"):
            write_predictions(path, random_predictions(seed=1))
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]
