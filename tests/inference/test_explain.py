"""Pictures of where a class is seen: colours, opacity, captions, secondary captures; and how well maps point."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from classifier_fixture import CLASSES, arrays, fake_classifier, grey, level, network
from phantom_files import write_dicom
from PIL import Image
from pointing_game import Case, centre_blob, heat_inside, measure_pointing, phantom_cases, pointing_game
from scipy.ndimage import zoom
from scipy.stats import spearmanr

from tumorlens.cli.main import main
from tumorlens.core.errors import ConfigError, RunError
from tumorlens.export.onnx_graph import build_graph
from tumorlens.inference.explain import (
    PictureOptions,
    explain_all,
    heat_and_caption,
    picture_name,
    picture_writer,
)
from tumorlens.inference.heatmap import (
    class_heatmap,
    colormap,
    overlay,
    picture,
    upsample,
)
from tumorlens.inference.network import open_session
from tumorlens.inference.predict import PredictSettings, predict_to
from tumorlens.inference.records import Record
from tumorlens.inference.secondary_capture import SecondaryCaptures
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN
from tumorlens.readers import read_inputs

ROW = Record(
    "image", "a.png", label="glioma", probabilities=dict(zip(CLASSES, (0.9, 0.06, 0.03, 0.01), strict=True)),
    set=("glioma",), verdict=OK, score=0.1, seconds=0.01,
)  # fmt: skip


def linear(rgb: np.ndarray) -> np.ndarray:
    c = rgb / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """From Ottosson's forward matrices, which the module does not use."""
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
              [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
              [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear(rgb) @ np.array(to_lms).T) @ np.array(to_lab).T


class TestColours:
    def test_steps_are_even(self):
        lab = oklab(colormap().astype(float))
        steps = np.linalg.norm(lab[8::8] - lab[:-8:8], axis=1)  # of 8, as 8 bits round single ones
        assert steps.max() / steps.min() < 1.2

    def test_lightness_rises_all_the_way(self):
        lightness = oklab(colormap().astype(float))[:, 0]
        assert (np.diff(lightness[::4]) > 0).all()
        assert lightness[-1] - lightness[0] > 0.6

    @pytest.mark.parametrize(
        "seen",
        [
            # Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009, severity 1: protanopia, deuteranopia, tritanopia
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ],
    )
    def test_the_colour_blind_see_the_same_order(self, seen):
        luminance = np.clip(linear(colormap()) @ np.array(seen).T, 0, 1) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance[::8]) > 0).all()


class TestHeat:
    @pytest.fixture
    def heatmap(self) -> np.ndarray:
        found = np.zeros((4, 7, 7), np.float32)
        found[0, 1, 5], found[0, 4, 4], found[1, 1, 5] = 3, -5, 3
        return found

    def test_it_is_from_0_to_1_and_hottest_where_the_map_is(self, heatmap):
        heat = class_heatmap(heatmap, 0)
        assert heat.shape == (224, 224)
        assert (heat.min(), heat.max()) == (0, 1)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert (y // 32, x // 32) == (1, 5)
        assert heat[4 * 32 + 16, 4 * 32 + 16] == 0  # negative evidence is no heat

    def test_a_contrast_takes_away_what_both_share(self, heatmap):
        heatmap[0, 6, 0] = 1
        heat = class_heatmap(heatmap, 0, 1)
        assert heat[48, 176] == 0
        assert heat[-1, 0] == 1

    def test_nothing_is_nothing(self):
        assert not class_heatmap(np.full((2, 7, 7), -1, np.float32), 0).any()

    def test_enlarging_is_bilinear_between_centres(self):
        small = np.random.default_rng(0).random((7, 7)).astype(np.float32)
        wanted = zoom(small, 32, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(upsample(small), wanted, atol=1e-5)

    def test_opacity(self, heatmap):
        pixels = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        heat = class_heatmap(heatmap, 0)
        np.testing.assert_array_equal(overlay(pixels, heat, 0), pixels)
        full = overlay(pixels, heat, 1)
        np.testing.assert_array_equal(full[heat == 1], np.broadcast_to(colormap()[255], full[heat == 1].shape))
        np.testing.assert_array_equal(full[heat == 0], pixels[heat == 0])
        for wrong in (-0.1, 1.1, float("nan")):
            with pytest.raises(ConfigError, match="--opacity"):
                overlay(pixels, heat, wrong)


class TestPicture:
    def test_the_slice_stands_beside_its_overlay(self):
        pixels = np.full((224, 224, 3), 90, np.uint8)
        heat = np.zeros((224, 224), np.float32)
        heat[100:120, 100:120] = 1
        image = np.asarray(picture(pixels, heat, ["glioma 90.0%"], 1.0))
        assert (image[:448, :448] == 90).all()
        assert (image[220, 456 + 220] == colormap()[255]).all()
        assert image[456:].any()  # text

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

    def test_an_unknown_contrast_is_told_before_anything_is_read(self, tmp_path):
        with pytest.raises(ConfigError, match=r"is not a class of fake\.onnx") as caught:
            picture_writer(fake_classifier(), tmp_path, PictureOptions(contrast="tumour"))
        assert "glioma" in caught.value.cure

    def test_names_keep_apart_what_is_different(self):
        names = {picture_name(*of) for of in [("a/b.png", None), ("a_b.png", None), ("c/b.png", None), ("c/b.png", 3)]}
        assert len(names) == 4
        assert picture_name("../../ä <x>.png", 2).replace("-", "_").replace(".", "").replace("_", "").isalnum()

    def test_explain_writes_one_a_slice_and_tells_the_bad(self, tmp_path, capsys):
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


class TestSecondaryCapture:
    def test_it_is_whole_and_carries_nothing_of_the_patient(self, tmp_path: Path):
        (source, *_) = write_dicom(tmp_path / "in", 0, "glioma", 0)
        original = pydicom.dcmread(source)
        names = {"PatientName": "Doe^Jane", "PatientID": "ID4711", "InstitutionName": "Hospital X",
                 "AccessionNumber": "ACC99", "PatientBirthDate": "19700102",
                 "StudyDescription": "Brain of Doe"}  # fmt: skip
        for key, value in names.items():
            setattr(original, key, value)
        secret = tmp_path / "in" / "s.dcm"
        original.save_as(secret)
        explain_all([str(secret)], fake_classifier(), tmp_path / "out", dicom=True)
        (written,) = (tmp_path / "out").glob("*.dcm")
        content = written.read_bytes()
        for value in (*names.values(), str(original.StudyInstanceUID), str(original.SOPInstanceUID)):
            assert value.encode() not in content
        found = pydicom.dcmread(written)
        assert found.SOPClassUID.name == "Secondary Capture Image Storage"
        assert (found.PatientName, found.PatientID) == ("", "")
        assert "PatientIdentityRemoved" not in found
        (png,) = (tmp_path / "out").glob("*.png")
        np.testing.assert_array_equal(found.pixel_array, np.asarray(Image.open(png)))

    def test_a_series_stays_together(self):
        captures, files = SecondaryCaptures(), [io.BytesIO() for _ in range(3)]
        for file, series, index in zip(files, ("a", "a", "b"), (0, 1, None), strict=True):
            captures.write(file, np.zeros((3, 3, 3), np.uint8), series, index)
        one, two, other = (pydicom.dcmread(io.BytesIO(file.getvalue())) for file in files)
        assert one.SeriesInstanceUID == two.SeriesInstanceUID != other.SeriesInstanceUID
        assert one.SOPInstanceUID != two.SOPInstanceUID
        assert (one.InstanceNumber, two.InstanceNumber) == (1, 2)

    def test_other_formats_get_none(self, tmp_path):
        grey("glioma").save(tmp_path / "a.png")
        explain_all([str(tmp_path / "a.png")], fake_classifier(), tmp_path / "out", PredictSettings(), dicom=True)
        assert not list((tmp_path / "out").glob("*.dcm"))


class TestPointing:
    @pytest.fixture
    def mask(self) -> np.ndarray:
        found = np.zeros((224, 224), bool)
        found[32:64, 64:96] = True  # cell (1, 2)
        return found

    def test_a_map_on_the_lesion_hits(self, mask):
        heat = np.zeros((7, 7))
        heat[1, 2] = 1
        assert pointing_game(heat, mask, 0)
        heat[5, 5] = 2
        assert not pointing_game(heat, mask)

    def test_tolerance_is_a_distance_in_pixels(self, mask):
        heat = np.zeros((224, 224))
        heat[78, 70] = 1  # 15 below row 63
        assert pointing_game(heat, mask, 15)
        assert not pointing_game(heat, mask, 14)

    def test_share_of_heat_counts_the_positive_alone(self, mask):
        heat = np.full((224, 224), -1.0)
        heat[40, 70], heat[0, 0] = 3, 1
        assert heat_inside(heat, mask) == pytest.approx(0.75)
        assert heat_inside(np.ones((224, 224)), mask) == pytest.approx(mask.mean())
        assert heat_inside(-np.ones((7, 7)), mask) == 0

    def test_a_mask_without_a_lesion_is_refused(self):
        for wrong in (np.zeros((224, 224), bool), np.ones((7, 7), bool), np.ones((224, 224), np.uint8)):
            with pytest.raises(ConfigError, match="mask"):
                pointing_game(np.zeros((7, 7)), wrong)

    def test_the_baseline_looks_at_the_centre(self):
        blob = centre_blob()
        assert {int(v) for v in np.unravel_index(blob.argmax(), blob.shape)} <= {111, 112}

    def test_measuring_counts_what_it_says(self, mask):
        """The fake's map is hot in cell (2, 5), whatever it sees."""
        hit = np.zeros((224, 224), bool)
        hit[64:96, 160:192] = True
        cases = [Case(np.full((224, 224, 3), level("glioma"), np.uint8), m, "glioma") for m in (hit, hit, hit, mask)]
        found = measure_pointing(fake_classifier(), cases)
        assert (found["n"], found["correct"]) == (4, 4)
        assert found["heatmap"]["rate"] == 0.75
        assert found["centre_blob"]["rate"] == 0
        assert found["heatmap"]["inside"] > found["centre_blob"]["inside"]

    def test_phantom_cases_show_the_lesion_where_the_mask_says(self):
        cases = list(phantom_cases(6))
        assert {case.label for case in cases} == {"glioma", "meningioma", "pituitary"}
        assert all(case.mask.any() and case.mask.mean() < 0.3 for case in cases)
        again = next(phantom_cases(1))
        np.testing.assert_array_equal(again.pixels, cases[0].pixels)


def test_random_weights_change_the_map():
    """The sanity check of Adebayo et al., NeurIPS 2018: a map must depend on what the network has learned.

    From the last stage downwards weights are heat_and_caption anew; the rank correlation with the map before must fall.
    """
    torch.manual_seed(0)
    pixels = np.stack([case.pixels for case in phantom_cases(4)])

    def maps(model) -> np.ndarray:
        session = open_session(build_graph(arrays(model), 4, plain=True).SerializeToString(), 1)
        return session.run(["heatmap"], {"pixels": pixels})[0]

    model, other = network(0), network(1)
    before = maps(model)
    assert spearmanr(before.ravel(), maps(network(0)).ravel()).statistic == pytest.approx(1)
    correlations = []
    for stages in (("fc",), ("fc", "layer4"), ("fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1")):
        for stage in stages:
            getattr(model, stage).load_state_dict(getattr(other, stage).state_dict())
        after = maps(model)
        each = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(before, after, strict=True)]
        correlations.append(float(np.mean(np.abs(each))))
    assert max(correlations) < 0.7, correlations


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
