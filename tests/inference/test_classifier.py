"""Opening exported files: what is refused, with which words; no torch; nothing spins when idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
from classifier_fixture import CARD, CLASSES, write_classifier
from threadpoolctl import threadpool_info, threadpool_limits

from tumorlens import load_classifier
from tumorlens.core.errors import (
    ConfigError,
    RunError,
    TumorlensError,
    WeightsError,
)
from tumorlens.inference.classifier import CARD_KEY, UNCERTAINTY_KEY
from tumorlens.inference.predict import predict
from tumorlens.inference.records import Predictions
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN, UncertaintyModel


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "classifier.onnx")


@pytest.fixture(scope="module")
def classifier(path: Path):
    return load_classifier(path, 1)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


def with_metadata(path: Path, target: Path, **changes: str | None) -> Path:
    """A copy whose metadata are changed; None takes an entry out."""
    model = onnx.load(path)
    entries = {p.key: p.value for p in model.metadata_props} | changes
    del model.metadata_props[:]
    for key, value in entries.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    onnx.save(model, target)
    return target


def test_a_runs_folder_with_the_int8_file_alone_can_be_named(path, tmp_path):
    (tmp_path / "classifier-int8.onnx").write_bytes(path.read_bytes())
    assert load_classifier(tmp_path, 1).path.name == "classifier-int8.onnx"
    (tmp_path / "classifier.onnx").write_bytes(path.read_bytes())
    assert load_classifier(tmp_path, 1).path.name == "classifier.onnx"


def test_a_runs_folder_or_its_file_can_be_named(path, classifier):
    assert load_classifier(path.parent, 1).classes == classifier.classes == CLASSES
    assert classifier.card["configuration"] == "finetuned"


def test_no_plan_of_memory_is_kept_for_every_size_of_batch(classifier):
    # With plans a service's memory grew by a fifth under load (docs/lab-notes.md).
    assert not classifier.session.get_session_options().enable_mem_pattern


def test_an_answer_has_the_documented_shapes(classifier, pixels):
    found = classifier.run(pixels)
    assert [a.shape for a in (found.logits, found.features, found.heatmap, found.statistics)] == [
        (2, 4), (2, 512), (2, 4, 7, 7), (2, 1024),
    ]  # fmt: skip
    assert {a.dtype for a in (found.logits, found.features, found.heatmap, found.statistics)} == {np.dtype("f4")}
    result = classifier.classify(pixels, coverage=0.9)
    assert result.probabilities.shape == result.sets.shape == (2, 4)
    assert set(result.verdicts) <= {OK, UNCERTAIN}
    temperature = classifier.uncertainty.temperature
    p = np.exp(found.logits / temperature)
    np.testing.assert_allclose(result.probabilities, p / p.sum(1, keepdims=True), rtol=1e-4)


def test_matrices_take_one_core_while_verdicts_are_made(classifier, pixels, monkeypatch):
    def cores() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    def recorded(trust: UncertaintyModel, *arguments: Any, **more: Any) -> Any:
        within.append(cores())
        return judge(trust, *arguments, **more)

    within: list[set[int]] = []
    judge = UncertaintyModel.assess
    monkeypatch.setattr(UncertaintyModel, "assess", recorded)
    with threadpool_limits(2, user_api="blas"):
        before = cores()
        classifier.classify(pixels)
        assert cores() == before
    assert within == [{1}]


def test_no_images_give_no_answers(classifier, pixels):
    assert classifier.run(pixels[:0]).heatmap.shape == (0, 4, 7, 7)
    assert classifier.classify(pixels[:0]).verdicts == []


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 224, 224, 3), np.float32), np.zeros((224, 224, 3), np.uint8), np.zeros((1, 3, 224, 224), np.uint8)],
)
def test_other_pixels_are_refused_not_reinterpreted(classifier, wrong):
    with pytest.raises(ConfigError, match="got pixels"):
        classifier.run(wrong)


def test_a_missing_model_is_an_error(tmp_path):
    with pytest.raises(RunError, match="holds no") as caught:
        load_classifier(tmp_path)
    assert "tumorlens export" in caught.value.cure
    with pytest.raises(RunError, match="does not exist"):
        load_classifier(tmp_path / "absent.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" * 400])
def test_a_file_that_is_no_model_is_an_error(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be opened"):
        load_classifier(tmp_path / "a.onnx")


def test_a_cut_file_is_an_error(path, tmp_path):
    (tmp_path / "a.onnx").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError):
        load_classifier(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (CARD_KEY, None, "without the entry"),
        (UNCERTAINTY_KEY, None, "without the entry"),
        (CARD_KEY, "{", "damaged"),
        (CARD_KEY, "[]", "damaged"),
        (CARD_KEY, json.dumps(CARD | {"classes": ["a", "a"]}), "damaged"),
        (CARD_KEY, json.dumps(CARD | {"classes": "ab"}), "damaged"),
        (CARD_KEY, json.dumps(CARD | {"format": 99}), "format 99"),
        (CARD_KEY, json.dumps(CARD | {"preprocessing": {"mean": [0.4] * 3}}), "preprocessing"),
        (CARD_KEY, json.dumps(CARD | {"classes": ["a", "b"]}), "inputs and outputs"),
        (CARD_KEY, json.dumps(CARD | {"classes": list(CLASSES)[::-1]}), "uncertainty model for"),
        (UNCERTAINTY_KEY, "{}", "damaged"),
        (UNCERTAINTY_KEY, "7", "damaged"),
    ],
)
def test_a_file_without_sound_metadata_is_refused(path, tmp_path, key, value, words):
    changed = with_metadata(path, tmp_path / "a.onnx", **{key: value})
    with pytest.raises(TumorlensError, match=words) as caught:
        load_classifier(changed)
    assert str(changed) in caught.value.what
    assert "tumorlens export" in caught.value.cure


def test_predict_works_where_torch_and_the_studys_libraries_are_missing(path, tmp_path):
    from PIL import Image

    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'onnx', 'scipy', 'sklearn', 'matplotlib'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from tumorlens.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["predict", str(tmp_path / "a.png"), "--model", str(path), "--format", "json", "--heatmaps", str(tmp_path)]
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["verdict"] in (OK, UNCERTAIN)
    assert len(list(tmp_path.glob("a.png-*.png"))) == 1


def test_there_must_be_a_thread(path):
    with pytest.raises(ConfigError, match="--threads 0"):
        load_classifier(path, 0)


@pytest.mark.parametrize("n", [2, 3, 19, 40])
def test_each_core_computes_images_of_its_own(path, classifier, n):
    pixels = np.random.default_rng(n).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    apart, together = load_classifier(path, 2), classifier.run(pixels)
    found = apart.run(pixels)
    assert apart._each_core is not None
    for name in ("logits", "features", "heatmap", "statistics"):
        np.testing.assert_allclose(getattr(found, name), getattr(together, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("then", ["another", "damaged", "gone"])
def test_a_model_file_that_changes_in_use_does_not_change_answers(path, pixels, tmp_path, then):
    file = with_metadata(path, tmp_path / "model.onnx")
    classifier = load_classifier(file, 2)
    card = json.dumps(classifier.card | {"configuration": "another"})
    if then == "another":
        with_metadata(path, file, **{CARD_KEY: card})
    elif then == "damaged":
        file.write_bytes(b"no model")
    else:
        file.unlink()
    assert classifier._each_core is None
    logits = load_classifier(path, 1).run(pixels).logits
    np.testing.assert_allclose(classifier.run(pixels).logits, logits, rtol=1e-5, atol=1e-5)


def test_threads_sleep_between_calls(path, pixels):
    classifier = load_classifier(path, 2)
    classifier.run(pixels[:1])  # by all threads
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


def test_onnx_runtime_reports_nothing_home() -> None:
    code = "import os, tumorlens.export.quantize; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    plain = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


class TestPredict:
    def test_records_are_those_of_the_predict_job(self, classifier, folder, monkeypatch, capsys):
        nifti = folder / "v.nii.gz"
        volume = np.zeros((16, 16, 3), np.uint8)
        volume[4:12, 4:12] = 200
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), nifti)
        found = classifier.predict(str(folder / "a.png"), nifti, folder / "absent.png")
        assert isinstance(found, Predictions)
        assert [record.kind for record in found] == ["image", "slice", "slice", "slice", "image", "volume"]
        assert [record.failed for record in found] == [False] * 4 + [True, False]
        assert found[0].file == str(folder / "a.png")
        assert found[0].model.endswith(" axial 0.95")
        assert set(found[0].probabilities) == set(CLASSES)
        assert sum(found[0].probabilities.values()) == pytest.approx(1)
        same = predict([str(folder / "a.png"), str(nifti), str(folder / "absent.png")], classifier)
        assert [replace(a, seconds=0) for a in found] == [replace(b, seconds=0) for b in same]
        assert len(found.to_pandas()) == 6
        assert capsys.readouterr() == ("", "")

    def test_options_are_passed_on_and_checked(self, classifier, folder):
        (record,) = classifier.predict(folder / "a.png", coverage=0.5, plane="coronal", batch=1)
        assert record.model.endswith(" coronal 0.5")
        with pytest.raises(ConfigError, match="coverage"):
            classifier.predict(folder / "a.png", coverage=1.5)

    @pytest.mark.parametrize("wrong", [["a.png"], np.zeros((1, 224, 224, 3), np.uint8), None])
    def test_what_is_not_a_path_is_an_error_with_a_cure(self, classifier, wrong):
        with pytest.raises(ConfigError, match="got an input of type") as caught:
            classifier.predict("a.png", wrong)
        assert "predict(*paths)" in caught.value.cure
        assert "classify(pixels)" in caught.value.cure

    def test_no_inputs_give_no_records(self, classifier):
        assert classifier.predict() == []


def test_a_path_may_be_text(path):
    assert load_classifier(str(path.parent), 1).path == path


def test_an_export_of_the_first_release_still_loads(path, tmp_path):
    """Its metadata as stored then: keys and fields must not be renamed."""
    entries = json.loads((Path(__file__).parent / "metadata-format-1.json").read_text())
    classifier = load_classifier(with_metadata(path, tmp_path / "old.onnx", **entries), 1)
    assert classifier.card["configuration"] == "finetuned"
    assert classifier.uncertainty.temperature == 1.25
    assert classifier.uncertainty.appearance.rest == 0.5
    found = classifier.classify(np.zeros((1, 224, 224, 3), np.uint8))
    assert found.verdicts == [REFUSED]
    assert found.scores[0] > classifier.uncertainty.refuse_above
