"""The explain job: pictures, captions and file names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from classifier_fixture import CLASSES, fake_classifier, grey, level
from phantom_files import write_dicom
from PIL import Image

from tumorlens.cli.app import main
from tumorlens.core.errors import ConfigError, RunError
from tumorlens.inference.explain import (
    PictureOptions,
    explain_all,
    heat_and_caption,
    picture_name,
    picture_writer,
)
from tumorlens.inference.heatmap import (
    picture,
)
from tumorlens.inference.predict import predict_to
from tumorlens.inference.records import Record
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.readers import read_inputs

ROW = Record(
    "image", "a.png", label="glioma", probabilities=dict(zip(CLASSES, (0.9, 0.06, 0.03, 0.01), strict=True)),
    set=("glioma",), verdict=OK, score=0.1, seconds=0.01,
)  # fmt: skip


class TestPicture:
    def test_the_caption_says_class_probability_and_verdict(self):
        heatmap = np.ones((4, 7, 7), np.float32)
        assert heat_and_caption(ROW, heatmap, CLASSES)[1][0] == "glioma 90.0%"
        assert (
            heat_and_caption(
                replace(ROW, probabilities=dict(zip(CLASSES, (1.0, 0, 0, 0), strict=True))), heatmap, CLASSES
            )[1][0]
            == "glioma > 99.9%"
        )
        assert heat_and_caption(replace(ROW, verdict=UNCERTAIN), heatmap, CLASSES)[1][0] == "glioma 90.0% (uncertain)"

    def test_a_refused_image_gets_neither_heat_nor_class(self):
        refused = replace(ROW, label="", probabilities={}, set=(), verdict=REFUSED)
        heat, caption = heat_and_caption(refused, np.ones((4, 7, 7), np.float32), CLASSES)
        assert heat is None
        assert caption[0] == REFUSED
        assert picture(np.zeros((224, 224, 3), np.uint8), heat, caption).width == 448

    def test_contrast_of_the_called_class_is_the_runner_up(self):
        heatmap = np.zeros((4, 7, 7), np.float32)
        assert heat_and_caption(ROW, heatmap, CLASSES, "pituitary")[1][1] == "glioma rather than pituitary"
        assert heat_and_caption(ROW, heatmap, CLASSES, "glioma")[1][1] == "glioma rather than meningioma"

    def test_an_unknown_contrast_is_an_error_before_anything_is_read(self, tmp_path):
        with pytest.raises(ConfigError, match=r"is not a class of fake\.onnx") as caught:
            picture_writer(fake_classifier(), tmp_path, PictureOptions(contrast="tumour"))
        assert "glioma" in caught.value.cure

    def test_names_keep_apart_what_is_different(self):
        names = {picture_name(*of) for of in [("a/b.png", None), ("a_b.png", None), ("c/b.png", None), ("c/b.png", 3)]}
        assert len(names) == 4
        assert picture_name("../../ä <x>.png", 2).replace("-", "_").replace(".", "").replace("_", "").isalnum()

    def test_explain_writes_one_per_slice_and_reports_the_bad(self, tmp_path, capsys):
        grey("glioma").save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"no")
        report = explain_all([str(tmp_path)], fake_classifier(), tmp_path / "out")
        assert (report.records, report.failed) == (2, 1)
        assert "b.png: error" in capsys.readouterr().err
        (found,) = (tmp_path / "out").iterdir()
        image = np.asarray(Image.open(found))
        # the fake's heat lies in cell (2, 5), twice 32 pixels a side, in the right-hand picture
        assert (image[2 * 64 + 32, 456 + 5 * 64 + 32] != image[32, 456 + 32]).any()
        assert (image[:448, :448] == level("glioma")).all()

    def test_predict_draws_with_heatmaps(self, tmp_path):
        grey("glioma").save(tmp_path / "a.png")
        draw = picture_writer(fake_classifier(), tmp_path / "maps")
        predict_to([str(tmp_path / "a.png")], fake_classifier(), form="json", out=tmp_path / "r", on_slice=draw)
        assert len(list((tmp_path / "maps").glob("a.png-*.png"))) == 1

    def test_a_file_in_the_place_of_the_folder_is_named(self, tmp_path):
        grey("glioma").save(tmp_path / "a.png")
        with pytest.raises(RunError, match=r"cannot be written \(.*a\.png is a file\)"):
            explain_all([str(tmp_path / "a.png")], fake_classifier(), tmp_path / "a.png")

    def test_wrong_options_exit_with_1(self, tmp_path, capsys):
        grey("glioma").save(tmp_path / "a.png")
        words = ["explain", str(tmp_path / "a.png"), "--out", str(tmp_path), "--model", str(tmp_path / "absent")]
        assert main(words) == 1
        assert "Error" in capsys.readouterr().err


def test_its_own_pictures_are_not_read(tmp_path):
    grey("glioma").save(tmp_path / "a.png")
    for _ in range(2):
        assert explain_all([str(tmp_path)], fake_classifier(), tmp_path / "out").records == 1
    with pytest.raises(ConfigError, match="which is also an input"):
        explain_all([str(tmp_path)], fake_classifier(), tmp_path)


def test_a_dicom_and_its_picture_agree_on_the_slice(tmp_path):
    (source, *_) = write_dicom(tmp_path / "in", 0, "glioma", 0)
    (item,) = read_inputs([str(source)])
    explain_all([str(source)], fake_classifier(), tmp_path / "out")
    (png,) = (tmp_path / "out").iterdir()
    small = np.asarray(Image.open(png))[:448:2, :448:2].astype(int)
    assert np.corrcoef(small.ravel(), item.pixels.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_an_opacity_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="--opacity"):
        PictureOptions(opacity=wrong)
