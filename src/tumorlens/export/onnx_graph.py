"""ResNet18's state dict → an ONNX graph, node by node.

Built here rather than traced by torch: PyTorch's current exporter needs a further package and its older one is
deprecated, while the network is twenty convolutions. Each BatchNorm is folded into the preceding convolution
(in float64, rounded once), so the plain graph consists of Conv, Relu, Add and pooling, which every runtime has fast
kernels for and static quantization supports.

In float32 the wide 3×3 convolutions of stride 1, most of the network's work, need about half the multiplications by
Winograd's minimal filtering (see `minimal_filtering`), in standard operators: tiles are rows of channels that one
Gather collects, and both transforms and the sums over channels are matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from tumorlens.inference.network import INPUT, OUTPUTS
from tumorlens.readers.pixels import MEAN, SIZE, STD
from tumorlens.training.kernels.minimal_filtering import matrices

OPSET, IR_VERSION = 17, 8  # supported by ONNX Runtime 1.20, the oldest version that we allow
HEAD_BIAS = "fc.bias"
_EPS = 1e-5  # of torchvision's BatchNorm layers
# By channels: side of the feature map, and of a tile's outputs. Larger tiles at 7×7 and 14×14 are faster on a batch,
# but slower on a single image, which has to read four times the weights; with 64 channels the transforms cost more
# than is saved.
_TILES = {128: (28, 4), 256: (14, 2), 512: (7, 2)}
# Channels from which each product is a node of its own, whose weights the runtime packs once, not in every run.
_SEPARATE = 512

Arrays = Mapping[str, npt.NDArray[np.float32]]


def build_graph(state: Arrays, n_classes: int, *, plain: bool = False) -> onnx.ModelProto:
    """The whole network, from stored pixels to all outputs.

    Parameters
    ----------
    state
        float32 arrays by torchvision's names for resnet18.
    n_classes
        K, rows of `fc.weight`.
    plain
        Keep every convolution a single node, as quantization requires.

    Returns
    -------
    ModelProto
        With the input `pixels`, uint8 [N, 224, 224, 3], RGB, and the outputs

        - `logits`, float32 [N, K];
        - `features`, float32 [N, 512], after global average pooling;
        - `heatmap`, float32 [N, K, 7, 7], the class activation map (Zhou et al., CVPR 2016, eq. 2): the activations
          of `layer4` summed with the class's weights. Signed; its mean plus the class's bias is the logit;
        - `statistics`, float32 [N, 1024], spatial mean and then (population) standard deviation of each channel
          after stem with its max-pooling (64), layer1 (64), layer2 (128) and layer3 (256).
    """
    graph = _Builder(plain)
    x = graph.add("Cast", INPUT, to=TensorProto.FLOAT)
    # Not folded into the first convolution, whose zero padding stands for 0 after normalisation.
    x = graph.add("Mul", x, graph.constant("scale", np.float32(1 / (255 * STD))))
    x = graph.add("Sub", x, graph.constant("shift", np.float32(MEAN / STD)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    x = graph.add("Relu", _convolution(graph, state, x, "conv1", "bn1", stride=2, padding=3))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    maps = [x]
    for stage in range(1, 5):
        for block in range(2):
            x = _basic_block(graph, state, x, f"layer{stage}.{block}", stride=2 if stage > 1 and block == 0 else 1)
        if stage < 4:
            maps.append(x)
    _statistics(graph, maps)
    pooled = graph.add("GlobalAveragePool", x)
    graph.add("Flatten", pooled, axis=1, output="features")
    weight, bias = state["fc.weight"], state["fc.bias"]
    graph.add("Gemm", "features", graph.constant("fc.weight", weight), graph.constant(HEAD_BIAS, bias),
              transB=1, output="logits")  # fmt: skip
    graph.add("Conv", x, graph.constant("cam.weight", weight[:, :, None, None]), kernel_shape=[1, 1], output="heatmap")
    return graph.model(n_classes)


def unquantized_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are not quantized: normalisation, pooled outputs and the head."""
    heavy = {"Conv", "Relu", "Add", "MaxPool"}
    outputs = set(OUTPUTS)
    return [n.name for n in model.graph.node if n.op_type not in heavy or outputs & set(n.output)]


def _basic_block(graph: _Builder, state: Arrays, x: str, name: str, *, stride: int) -> str:
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016, figure 2)."""
    y = graph.add("Relu", _convolution(graph, state, x, f"{name}.conv1", f"{name}.bn1", stride=stride, padding=1))
    y = _convolution(graph, state, y, f"{name}.conv2", f"{name}.bn2", stride=1, padding=1)
    if f"{name}.downsample.0.weight" in state:
        x = _convolution(graph, state, x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride, padding=0)
    return graph.add("Relu", graph.add("Add", y, x))


def _convolution(graph: _Builder, state: Arrays, x: str, conv: str, norm: str, *, stride: int, padding: int) -> str:
    weight, bias = fold(state, conv, norm)
    if not graph.plain and stride == 1 and weight.shape[0] in _TILES:
        return _filtering(graph, x, conv, weight, bias)
    return graph.add(
        "Conv", x, graph.constant(f"{conv}.weight", weight), graph.constant(f"{conv}.bias", bias),
        kernel_shape=list(weight.shape[2:]), strides=[stride, stride], pads=[padding] * 4,
    )  # fmt: skip


def _filtering(
    graph: _Builder, x: str, name: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> str:
    """A 3x3 convolution of stride 1 with zero padding, by minimal filtering; [N, C, side, side] → the same."""
    channels = weight.shape[0]
    side, outputs = _TILES[channels]
    inputs, across = outputs + 2, -(-side // outputs)  # inputs per tile, and tiles, along each side
    b, g, a = matrices(outputs)
    # Pixels are rows of N × C values; the row after the last is the zero padding.
    rows = np.full((outputs * across + 2,) * 2, side * side)
    rows[1 : side + 1, 1 : side + 1] = np.arange(side * side).reshape(side, side)
    tiles = sliding_window_view(rows, (inputs, inputs))[::outputs, ::outputs].transpose(2, 3, 0, 1)
    made = np.arange((outputs * across) ** 2).reshape(outputs, outputs, across, across).transpose(2, 0, 3, 1)
    pixels = made.reshape(outputs * across, outputs * across)[:side, :side]

    x = graph.reshape(graph.add("Transpose", x, perm=[2, 3, 0, 1]), side * side, -1, channels)
    x = graph.add("Pad", x, graph.constant("one row of zeros", np.array([0, 0, 0, 1, 0, 0])))
    x = graph.add("Gather", x, graph.constant(f"tiles.{side}", tiles.reshape(inputs**2, across**2)), axis=0)
    x = graph.add("MatMul", graph.constant(f"B.{outputs}", b.astype(np.float32)), graph.reshape(x, inputs**2, -1))
    x = graph.reshape(x, inputs**2, -1, channels)  # one row per tile and image
    kernels = np.einsum("ij,kcj->ick", g, weight.reshape(channels, channels, 9)).astype(np.float32)
    if channels < _SEPARATE:
        x = graph.add("MatMul", x, graph.constant(f"{name}.weight", kernels))
    else:
        products = [
            graph.add("MatMul", graph.add("Gather", x, graph.constant(f"index.{i}", np.array(i)), axis=0),
                      graph.constant(f"{name}.weight.{i}", kernels[i]))
            for i in range(inputs**2)
        ]  # fmt: skip
        x = graph.add("Concat", *products, axis=0)
    x = graph.add("MatMul", graph.constant(f"A.{outputs}", a.astype(np.float32)), graph.reshape(x, inputs**2, -1))
    x = graph.reshape(x, outputs**2 * across**2, -1, channels)
    x = graph.add("Gather", x, graph.constant(f"pixels.{side}", pixels), axis=0)
    x = graph.add("Add", x, graph.constant(f"{name}.bias", bias))
    return graph.add("Transpose", x, perm=[2, 3, 0, 1])


def fold(state: Arrays, conv: str, norm: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight [out, in, h, w] and bias [out] of a convolution that includes the BatchNorm after it, in eval mode."""
    gain = state[f"{norm}.weight"].astype(np.float64) / np.sqrt(state[f"{norm}.running_var"].astype(np.float64) + _EPS)
    weight = state[f"{conv}.weight"] * gain[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return weight.astype(np.float32), bias.astype(np.float32)


def _statistics(graph: _Builder, maps: Sequence[str]) -> None:
    """The output `statistics` of the feature maps after stem, layer1, layer2 and layer3."""
    if graph.plain:
        # Changes no value, as none is below 0; without it the runtime converts an 8-bit map to floats for every use.
        maps = [graph.add("Abs", x) for x in maps]
    squares = [graph.add("Mul", x, x) for x in maps]  # pooled: Pow and ReduceMean leave the fast blocked memory layout
    mean, square = (
        graph.add("Flatten", graph.add("Concat", *(graph.add("GlobalAveragePool", x) for x in some), axis=1), axis=1)
        for some in (maps, squares)
    )
    # Rounding can leave a variance a little below 0.
    variance = graph.add("Relu", graph.add("Sub", square, graph.add("Mul", mean, mean)))
    both = graph.add("Concat", mean, graph.add("Sqrt", variance), axis=1)
    channels = (64, 64, 128, 256)
    of_stage = np.split(np.arange(2 * sum(channels)).reshape(2, -1), np.cumsum(channels)[:-1], axis=1)
    order = np.concatenate([columns.ravel() for columns in of_stage])
    graph.add("Gather", both, graph.constant("order of statistics", order), axis=1, output="statistics")


class _Builder:
    """Collects nodes and constants; node names are numbered by position."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        name = f"{len(self._nodes):03d}.{kind}"
        self._nodes.append(helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: npt.NDArray[Any] | np.float32) -> str:
        """Store an array once per name; returns the name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(f"shape {shape}", np.array(shape)))

    def model(self, n_classes: int) -> onnx.ModelProto:
        shapes: dict[str, list[str | int]] = {
            "logits": ["N", n_classes], "features": ["N", 512],
            "heatmap": ["N", n_classes, 7, 7], "statistics": ["N", 1024],
        }  # fmt: skip
        pixels = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", SIZE, SIZE, 3])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in OUTPUTS]
        graph = helper.make_graph(self._nodes, "tumorlens", [pixels], outputs, [*self._constants.values()])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tumorlens"
        )
        onnx.checker.check_model(model, full_check=True)
        return model
