"""The graph against torch and captum, the file and what stands in it, and when nothing is written."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from captum.attr import LayerGradCam
from classifier_fixture import CLASSES, arrays, network
from folders import write_folder
from onnx import numpy_helper
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tumorlens import Study, run_study
from tumorlens.cli.main import main
from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import read_json
from tumorlens.export import export
from tumorlens.export.export import export_run, parity
from tumorlens.export.onnx_graph import build_graph, fold, unquantised_nodes
from tumorlens.export.quantize import accept, quantise, weight_scales
from tumorlens.inference.classifier import (
    OUTPUTS,
    Outputs,
    load_classifier,
    open_session,
)
from tumorlens.readers.pixels import read_image
from tumorlens.training.model import forward, normalise


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def graph(model) -> onnx.ModelProto:
    return build_graph(arrays(model), 4)


@pytest.fixture(scope="module")
def plain(model) -> onnx.ModelProto:
    return build_graph(arrays(model), 4, plain=True)


def run(graph: onnx.ModelProto, pixels: np.ndarray) -> Outputs:
    return Outputs(*open_session(graph.SerializeToString(), 1).run(OUTPUTS, {"pixels": pixels}))


@pytest.fixture(scope="module")
def outputs(graph, pixels) -> Outputs:
    return run(graph, pixels)


@pytest.fixture(scope="module")
def small(plain, pixels) -> onnx.ModelProto:
    return quantise(plain, pixels)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class TestGraph:
    @torch.inference_mode()
    def test_logits_and_features_are_torchs(self, model, pixels, outputs):
        np.testing.assert_allclose(outputs.logits, forward(model, tensor(pixels)), atol=1e-4, rtol=1e-4)
        features = forward(model, tensor(pixels), stop="avgpool")
        np.testing.assert_allclose(outputs.features, features, atol=1e-4, rtol=1e-4)

    @torch.inference_mode()
    def test_statistics_are_mean_then_deviation_stage_by_stage(self, model, pixels, outputs):
        wanted = []
        for stage in ("stem", "layer1", "layer2", "layer3"):
            found = forward(model, tensor(pixels), stop=stage)
            wanted += [found.mean((2, 3)), found.std((2, 3), correction=0)]
        np.testing.assert_allclose(outputs.statistics, torch.cat(wanted, 1), atol=1e-4, rtol=1e-3)

    def test_heatmap_is_captums_grad_cam_times_49(self, model, pixels, outputs):
        x = normalise(tensor(pixels))
        for target in range(4):
            # without captum's ReLU: ours is signed, and cut off at 0 when it is drawn
            found = LayerGradCam(model, model.layer4).attribute(x, target, relu_attributions=False)
            wanted = 49 * found.detach().numpy()[:, 0]
            np.testing.assert_allclose(outputs.heatmap[:, target], wanted, atol=1e-4, rtol=1e-3)

    def test_mean_of_the_heatmap_and_the_bias_is_the_logit(self, model, outputs):
        total = outputs.heatmap.mean((2, 3)) + model.fc.bias.detach().numpy()
        np.testing.assert_allclose(total, outputs.logits, atol=1e-4)

    def test_folding_is_torchs(self, model):
        fused = fuse_conv_bn_eval(model.layer2[0].conv1, model.layer2[0].bn1)
        weight, bias = fold(arrays(model), "layer2.0.conv1", "layer2.0.bn1")
        np.testing.assert_allclose(weight, fused.weight.detach(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(bias, fused.bias.detach(), rtol=1e-5, atol=1e-6)

    def test_minimal_filtering_replaces_nine_convolutions_and_gives_what_they_give(self, graph, plain, pixels, outputs):
        kinds = [[node.op_type for node in g.graph.node].count("Conv") for g in (plain, graph)]
        assert kinds == [21, 12]  # the head's heatmap is one of them
        exact = run(plain, pixels)
        for name in OUTPUTS:
            one, other = getattr(exact, name), getattr(outputs, name)
            assert np.abs(one - other).max() < 2e-5 * np.abs(one).max(), name
        assert not np.array_equal(exact.logits, outputs.logits)

    def test_any_batch_gives_the_same(self, graph, pixels, outputs):
        session = open_session(graph.SerializeToString(), 1)
        alone = session.run(["logits"], {"pixels": pixels[1:2]})[0]
        np.testing.assert_allclose(alone[0], outputs.logits[1], atol=1e-5)


class TestInt8:
    def test_convolutions_are_int8_and_the_head_is_not(self, plain, small, pixels, outputs):
        kept = unquantised_nodes(plain)
        assert sum(node.op_type == "Conv" for node in small.graph.node if node.name not in kept) == 20
        kinds = {t.name: t.data_type for t in small.graph.initializer}
        weights = [kind for name, kind in kinds.items() if name.endswith(".weight_quantized")]
        assert len(weights) == 20
        assert set(weights) == {onnx.TensorProto.INT8}
        found = open_session(small.SerializeToString(), 1).run(["logits"], {"pixels": pixels})[0]
        assert np.corrcoef(found.ravel(), outputs.logits.ravel())[0, 1] > 0.95
        assert np.abs(found - outputs.logits).max() > 0
        # on the images that it was calibrated on the mean is given back
        np.testing.assert_allclose(found.mean(0), outputs.logits.mean(0), atol=1e-3)

    def test_pairs_of_weights_saturate_on_no_processor(self, small):
        stored = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
        largest = 0
        for weights in (np.abs(w.astype(int)) for name, w in stored.items() if name.endswith(".weight_quantized")):
            for order in (weights, weights.transpose(0, 2, 3, 1)):
                flat = order.reshape(len(order), -1)
                assert (flat[:, 1:] + flat[:, :-1]).max(initial=0) <= 128
            largest = max(largest, weights.max())
        assert largest > 64  # where 7 bits end

    def test_pixels_are_not_rounded_again(self, plain, small, pixels):
        small = copy.deepcopy(small)
        kinds = [node.op_type for node in small.graph.node]
        assert "Cast" not in kinds
        first = small.graph.node[kinds.index("Conv")]
        stored = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
        made_by = {node.output[0]: node for node in small.graph.node}
        integers, scales = (stored[name] for name in made_by[first.input[1]].input[:2])
        (bias,) = (t for t in plain.graph.initializer if t.name == "conv1.bias")
        bias = torch.from_numpy(numpy_helper.to_array(bias).copy())
        # the runtime's fused convolution takes the bias to be in these units
        units = stored[made_by[first.input[2]].input[1]]
        np.testing.assert_allclose(units, stored["pixels.step"] * scales, rtol=1e-6)
        weight = torch.from_numpy(integers * scales[:, None, None, None])
        wanted = torch.nn.functional.conv2d(normalise(tensor(pixels)), weight, bias, stride=2, padding=3).numpy()
        small.graph.output.append(onnx.helper.make_tensor_value_info(first.output[0], onnx.TensorProto.FLOAT, None))
        found = open_session(small.SerializeToString(), 1).run([first.output[0]], {"pixels": pixels})[0]
        level = float(weight.abs().sum((1, 2, 3)).max()) / 127.5  # at most, of one more everywhere
        inside = np.abs(found - wanted)[:, :, 2:-2, 2:-2].max()
        assert inside < 0.01 * level
        assert inside < np.abs(found - wanted).max() < 0.5 * level  # the padding is half a level off

    def test_every_channel_keeps_its_mean(self, plain, small, pixels):
        """Of what the convolutions give before ReLU, on the images that are calibrated on."""
        convolutions = [node.name for node in small.graph.node if node.op_type == "Conv" and len(node.input) == 3]
        assert len(convolutions) == 20
        means = []
        for graph in (plain, small):
            graph = copy.deepcopy(graph)
            found = {node.name: node.output[0] for node in graph.graph.node if node.name in convolutions}
            graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(found[name]) for name in convolutions)
            values = open_session(graph.SerializeToString(), 1).run(
                [found[n] for n in convolutions], {"pixels": pixels}
            )
            means.append([value.mean((0, 2, 3), dtype=np.float64) for value in values])
        for name, wanted, found in zip(convolutions, *means, strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max(), err_msg=name)

    def test_a_channel_of_zeros_has_a_scale_too(self):
        weight = np.zeros((2, 3, 3, 3), np.float32)
        weight[1, 0, 0, 0] = 0.5
        np.testing.assert_allclose(weight_scales(weight), [1, 0.5 / 127])

    def test_no_loss_is_accepted(self):
        labels = np.arange(1000) % 4
        before = np.eye(4)[labels]
        after = before.copy()
        after[:2] = after[:2, ::-1]  # two wrong of a thousand: 0.2 points
        found = accept(labels, before, after)
        assert found["accuracy_drop"] == pytest.approx(0.002)
        assert found["changed_decisions"] == 2

    def test_more_than_a_fifth_of_a_point_is_refused(self):
        labels = np.arange(1000) % 4
        after = np.eye(4)[labels]
        after[:3] = after[:3, ::-1]
        with pytest.raises(RunError, match="not written"):
            accept(labels, np.eye(4)[labels], after)

    def test_a_significant_difference_is_refused_even_with_a_small_drop(self):
        labels = np.zeros(10_000, int)
        before, after = np.eye(4)[labels], np.eye(4)[labels]
        after[:15] = after[:15, ::-1]  # 0.15 points, but all in one direction
        with pytest.raises(RunError, match="McNemar"):
            accept(labels, before, after)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """A run, its data, and what export said. The test images are gone before, so that they cannot be looked at."""
    root = tmp_path_factory.mktemp("export")
    data = write_folder(root / "data", train=34, test=1)
    run_study(Study(data=str(data), weights="none", out=root / "run", cache=root / "cache", max_epochs=1,
                    configurations=("initial",), device="cpu", precision="fp32"))  # fmt: skip
    shutil.rmtree(data / "Testing")
    return root / "run", data, export_run(root / "run", "initial")


class TestExport:
    def test_the_file_tells_where_it_comes_from(self, exported):
        run, _, found = exported
        classifier = load_classifier(run, 1)
        card = classifier.card
        assert found["file"] == str(run / "classifier.onnx")
        assert found["bytes"] == (run / "classifier.onnx").stat().st_size
        assert card["classes"] == list(CLASSES)
        assert card["dataset"]["fingerprint"] == read_json(run / "study.json")["dataset"]["fingerprint"]
        measured = read_json(run / "initial" / "metrics.json")["parts"]
        assert card["measured"]["test"]["accuracy"] == measured["test"]["accuracy"]
        assert card["measured"]["validation"]["n"] == 20
        assert card["weights_origin"]["kind"] == "none"
        assert card["licence"]["code"] == "MIT"
        assert "Not for diagnosis" in card["intended_use"]
        assert classifier.trust.classes == CLASSES

    def test_it_agrees_with_the_runs_own_predictions(self, exported):
        run, data, found = exported
        assert found["parity"]["n"] == 20
        assert found["parity"]["max_probability_difference"] < 1e-4
        rows = (run / "initial" / "predictions.csv").read_text().splitlines()
        path, *_, probability = next(row for row in rows if "Training" in row).split(",")
        logits = load_classifier(run, 1).run(read_image(data / path)[0][None]).logits[0].astype(float)
        assert np.exp(logits[-1]) / np.exp(logits).sum() == pytest.approx(float(probability), abs=1e-4)

    def test_a_graph_that_disagrees_is_not_written(self, exported, tmp_path, monkeypatch):
        def wrong(state, k):
            return build_graph(state | {"fc.bias": state["fc.bias"] + np.float32([0.1, 0, 0, 0])}, k)

        monkeypatch.setattr(export, "build_graph", wrong)
        with pytest.raises(RunError, match="differ from torch"):
            export_run(exported[0], "initial", out=tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()

    def test_int8_that_costs_accuracy_exits_with_1_and_leaves_no_file(self, exported, tmp_path, monkeypatch, capsys):
        def broken(model, pixels):
            assert [node.op_type for node in model.graph.node].count("Conv") == 21, "not the plain graph"
            return build_graph(arrays(network(5)), 4)

        monkeypatch.setattr(export, "quantise", broken)
        monkeypatch.setattr("tumorlens.export.quantize.MAX_DROP", -1.0)
        out = tmp_path / "a.onnx"
        assert main(["export", str(exported[0]), "--configuration", "initial", "--int8", "--out", str(out)]) == 1
        assert "int8 graph was not written" in capsys.readouterr().err
        assert not out.exists()

    def test_the_command_prints_what_was_measured(self, exported, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(export, "_fit", lambda *_: load_classifier(exported[0], 1).trust)
        out = tmp_path / "b.onnx"
        assert main(["export", str(exported[0]), "--configuration", "initial", "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parity"]["changed_decisions"] == 0
        assert load_classifier(out, 1).card["precision"] == "fp32"

    def test_what_learned_from_validation_is_not_calibrated_on_it(self, exported, tmp_path):
        run = Path(shutil.copytree(exported[0], tmp_path / "run"))
        record = read_json(run / "initial" / "training.json")
        record["configuration"]["refit"] = True
        (run / "initial" / "training.json").write_text(json.dumps(record))
        with pytest.raises(RunError, match="learned from the validation images"):
            export_run(run, "initial")

    def test_what_is_not_trained_cannot_be_exported(self, exported):
        with pytest.raises(RunError, match="no finished training of 'finetuned'") as caught:
            export_run(exported[0])
        assert "initial" in caught.value.cure

    def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(self, exported, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "build_graph", lambda *_: pytest.fail("computed"))
        (tmp_path / "file").touch()
        for out, told in ((tmp_path, "is a folder"), (tmp_path / "file" / "m.onnx", "is a file")):
            with pytest.raises(RunError, match=told):
                export_run(exported[0], "initial", out=out)

    def test_moved_and_changed_images_are_told(self, exported, tmp_path):
        run, data, _ = exported
        moved = tmp_path / "moved"
        shutil.move(data, moved)
        try:
            with pytest.raises(RunError, match="not in") as caught:
                parity(run, "initial", split="validation")
            assert "--data" in caught.value.cure
            assert parity(run, "initial", split="validation", data=str(moved))["n"] == 20
            shutil.copytree(moved, data)
            for path in (data / "Training").rglob("*.png"):
                path.write_bytes(path.read_bytes() + b"x")
            with pytest.raises(DataError, match="is not the file"):
                parity(run, "initial", split="validation")
        finally:
            shutil.rmtree(data, ignore_errors=True)
            shutil.move(moved, data)
