"""The graph against torch and captum."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import LayerGradCam
from classifier_fixture import arrays
from graphs import run, tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tumorlens.export.onnx_graph import fold
from tumorlens.inference.network import OUTPUTS, open_session
from tumorlens.training.model import forward, normalise


@torch.inference_mode()
def test_logits_and_features_are_torchs(model, pixels, outputs):
    np.testing.assert_allclose(outputs.logits, forward(model, tensor(pixels)), atol=1e-4, rtol=1e-4)
    features = forward(model, tensor(pixels), stop="avgpool")
    np.testing.assert_allclose(outputs.features, features, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_statistics_are_mean_then_deviation_stage_by_stage(model, pixels, outputs):
    wanted = []
    for stage in ("stem", "layer1", "layer2", "layer3"):
        found = forward(model, tensor(pixels), stop=stage)
        wanted += [found.mean((2, 3)), found.std((2, 3), correction=0)]
    np.testing.assert_allclose(outputs.statistics, torch.cat(wanted, 1), atol=1e-4, rtol=1e-3)


def test_heatmap_is_captums_grad_cam_times_49(model, pixels, outputs):
    x = normalise(tensor(pixels))
    for target in range(4):
        # without captum's ReLU: ours is signed, and cut off at 0 when it is drawn
        found = LayerGradCam(model, model.layer4).attribute(x, target, relu_attributions=False)
        wanted = 49 * found.detach().numpy()[:, 0]
        np.testing.assert_allclose(outputs.heatmap[:, target], wanted, atol=1e-4, rtol=1e-3)


def test_mean_of_the_heatmap_and_the_bias_is_the_logit(model, outputs):
    total = outputs.heatmap.mean((2, 3)) + model.fc.bias.detach().numpy()
    np.testing.assert_allclose(total, outputs.logits, atol=1e-4)


def test_folding_is_torchs(model):
    fused = fuse_conv_bn_eval(model.layer2[0].conv1, model.layer2[0].bn1)
    weight, bias = fold(arrays(model), "layer2.0.conv1", "layer2.0.bn1")
    np.testing.assert_allclose(weight, fused.weight.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bias, fused.bias.detach(), rtol=1e-5, atol=1e-6)


def test_minimal_filtering_replaces_nine_convolutions_and_gives_what_they_give(graph, plain, pixels, outputs):
    kinds = [[node.op_type for node in g.graph.node].count("Conv") for g in (plain, graph)]
    assert kinds == [21, 12]  # the head's heatmap is one of them
    exact = run(plain, pixels)
    for name in OUTPUTS:
        one, other = getattr(exact, name), getattr(outputs, name)
        assert np.abs(one - other).max() < 2e-5 * np.abs(one).max(), name
    assert not np.array_equal(exact.logits, outputs.logits)


def test_any_batch_gives_the_same(graph, pixels, outputs):
    session = open_session(graph.SerializeToString(), 1)
    alone = session.run(["logits"], {"pixels": pixels[1:2]})[0]
    np.testing.assert_allclose(alone[0], outputs.logits[1], atol=1e-5)
