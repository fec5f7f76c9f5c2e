"""The int8 graph against the fp32 one, and when it is refused."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from graphs import tensor
from onnx import numpy_helper

from tumorlens.core.errors import RunError
from tumorlens.export.onnx_graph import unquantized_nodes
from tumorlens.export.quantize import check_accuracy, quantize, weight_scales
from tumorlens.inference.network import open_session
from tumorlens.training.model import normalise


@pytest.fixture(scope="module")
def small(plain, pixels) -> onnx.ModelProto:
    return quantize(plain, pixels)


def test_convolutions_are_int8_and_the_head_is_not(plain, small, pixels, outputs):
    kept = unquantized_nodes(plain)
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


def test_pairs_of_weights_saturate_on_no_processor(small):
    stored = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    largest = 0
    for weights in (np.abs(w.astype(int)) for name, w in stored.items() if name.endswith(".weight_quantized")):
        for order in (weights, weights.transpose(0, 2, 3, 1)):
            flat = order.reshape(len(order), -1)
            assert (flat[:, 1:] + flat[:, :-1]).max(initial=0) <= 128
        largest = max(largest, weights.max())
    assert largest > 64  # where 7 bits end


def test_pixels_are_not_rounded_again(plain, small, pixels):
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


def test_every_channel_keeps_its_mean(plain, small, pixels):
    """Of what the convolutions give before ReLU, on the images that are calibrated on."""
    convolutions = [node.name for node in small.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert len(convolutions) == 20
    means = []
    for graph in (plain, small):
        graph = copy.deepcopy(graph)
        found = {node.name: node.output[0] for node in graph.graph.node if node.name in convolutions}
        graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(found[name]) for name in convolutions)
        values = open_session(graph.SerializeToString(), 1).run([found[n] for n in convolutions], {"pixels": pixels})
        means.append([value.mean((0, 2, 3), dtype=np.float64) for value in values])
    for name, wanted, found in zip(convolutions, *means, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max(), err_msg=name)


def test_a_channel_of_zeros_has_a_scale_too():
    weight = np.zeros((2, 3, 3, 3), np.float32)
    weight[1, 0, 0, 0] = 0.5
    np.testing.assert_allclose(weight_scales(weight), [1, 0.5 / 127])


def test_no_loss_is_accepted():
    labels = np.arange(1000) % 4
    before = np.eye(4)[labels]
    after = before.copy()
    after[:2] = after[:2, ::-1]  # two wrong of a thousand: 0.2 points
    found = check_accuracy(labels, before, after)
    assert found["accuracy_drop"] == pytest.approx(0.002)
    assert found["changed_decisions"] == 2


def test_more_than_a_fifth_of_a_point_is_refused():
    labels = np.arange(1000) % 4
    after = np.eye(4)[labels]
    after[:3] = after[:3, ::-1]
    with pytest.raises(RunError, match="not written"):
        check_accuracy(labels, np.eye(4)[labels], after)


def test_a_significant_difference_is_refused_even_with_a_small_drop():
    labels = np.zeros(10_000, int)
    before, after = np.eye(4)[labels], np.eye(4)[labels]
    after[:15] = after[:15, ::-1]  # 0.15 points, but all in one direction
    with pytest.raises(RunError, match="McNemar"):
        check_accuracy(labels, before, after)
