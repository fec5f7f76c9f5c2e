"""int8: quantize a graph's convolutions to 8-bit integers, and check that its accuracy holds.

Static quantization in ONNX Runtime's QDQ format: weights as int8 with one scale per channel, activations as uint8 with
one scale per tensor (Jacob et al., CVPR 2018), whose range is the mean of the smallest and of the largest values of
batches of calibration images; pixels are the exception, they are taken as stored. Weights do not fill their 8 bits:
processors without VNNI add pairs of products in 16 bits and saturate silently, so that a file measured on one
processor would predict differently on another. A channel's scale is therefore such that no two adjacent weights
together exceed 128; the usual 7 bits, which are as safe, round in steps 1.2 to 1.5 times as wide. The mean shift that
rounding causes in a channel is subtracted in each convolution's bias and finally in the head's (bias correction;
Nagel et al., ICCV 2019, section 4.2, measured on images).

Private interfaces: none. `TensorQuantOverrides` and `CalibMovingAverage` are documented options of quantize_static.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json
from tumorlens.evaluation.statistics import mcnemar
from tumorlens.export.onnx_graph import HEAD_BIAS, unquantized_nodes
from tumorlens.inference.network import INPUT, open_session
from tumorlens.readers.pixels import MEAN, STD, Pixels

CALIBRATION = 256  # training images
_CORRECTION = 64  # of these, for the means of channels
MAX_DROP = 0.002  # largest allowed loss of validation accuracy
SIGNIFICANT = 0.05  # McNemar's p below which the two graphs count as different
_STEP = 16  # images per batch
_PAIR = 127  # limit of two weights before each is rounded by at most half a step: 255 × 128 is below 2¹⁵


def quantize(model: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """The same graph with int8 convolutions.

    Parameters
    ----------
    model
        From `build_graph`, plain.
    pixels
        uint8 [n, 224, 224, 3], calibration images: training images, never validation or test images.
    """
    add_pre_process_metadata(model)  # nothing is left to fuse in our graph; ONNX Runtime would warn otherwise
    with tempfile.TemporaryDirectory(prefix="tumorlens-int8-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, target, _Reader(pixels), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=unquantized_nodes(model),
            extra_options={"TensorQuantOverrides": _scales(model), "CalibMovingAverage": True},
        )  # fmt: skip
        quantized: onnx.ModelProto = onnx.load(target)
    _take_pixels_as_stored(quantized)
    _correct_convolutions(quantized, model, pixels[:: max(1, len(pixels) // _CORRECTION)])
    _correct_head(quantized, model, pixels)
    return quantized


def _scales(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """The weights' scales, one per channel, in the format of ONNX Runtime's `TensorQuantOverrides`."""
    excluded = unquantized_nodes(model)
    names = {n.input[1] for n in model.graph.node if n.op_type == "Conv" and n.name not in excluded}
    return {
        tensor.name: [
            {"axis": 0, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(0)}
            for scale in weight_scales(numpy_helper.to_array(tensor))
        ]
        for tensor in model.graph.initializer if tensor.name in names
    }  # fmt: skip


def weight_scales(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales float32 [out] by which weights [out, in, h, w] are divided before they are rounded to int8.

    The absolute values of any two adjacent weights of a channel, with input channels last (as they are multiplied) or
    first, then sum to at most 128.
    """
    sizes = np.abs(weight.astype(np.float64))
    orders = (sizes.reshape(len(sizes), -1), sizes.transpose(0, 2, 3, 1).reshape(len(sizes), -1))
    pairs = [(order + np.pad(order[:, 1:], ((0, 0), (0, 1)))).max(1) for order in orders]
    largest = np.maximum(*pairs)
    return np.where(largest > 0, largest / _PAIR, 1).astype(np.float32)


def _take_pixels_as_stored(model: onnx.ModelProto) -> None:
    """Feed the first convolution the stored 8-bit pixels instead of normalised ones that are quantized again.

    Normalised pixels lie halfway between the levels of a scale that is symmetric about 0, and rounding to these (halves
    to even) merges every second pair of neighbours. With the zero point at 128 all of them lie half a level too low
    instead, which the bias compensates; but the padding then stands for half a level above 0.
    """
    nodes, stored = model.graph.node, {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: node for node in nodes for name in node.output}
    convolution = next(node for node in nodes if node.op_type == "Conv")
    pixels, weight, bias = (made_by[name] for name in convolution.input)  # DequantizeLinear each
    chain = [made_by[pixels.input[0]]]
    while chain[-1].input[0] != INPUT:
        chain.append(made_by[chain[-1].input[0]])
    (transpose,) = (node for node in chain if node.op_type == "Transpose")
    chain.remove(transpose)
    weights, scales = (numpy_helper.to_array(stored[name]) for name in weight.input[:2])
    step, zero = np.float32(1 / (255 * STD)), np.uint8(np.ceil(255 * MEAN))
    units = step * scales.astype(np.float64)  # of the bias
    before = numpy_helper.to_array(stored[bias.input[0]]) * numpy_helper.to_array(stored[bias.input[1]]).astype(float)
    low = float(zero) - 255 * MEAN
    after = np.rint(before / units + low * weights.sum((1, 2, 3), dtype=np.int64)).astype(np.int32)
    for name, value in ((bias.input[0], after), (bias.input[1], units.astype(np.float32))):
        stored[name].CopyFrom(numpy_helper.from_array(value, name))
    transpose.input[0] = INPUT
    pixels.input[:] = [transpose.output[0], "pixels.step", "pixels.zero"]
    for node in chain:
        nodes.remove(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    kept += [
        numpy_helper.from_array(np.asarray(step), "pixels.step"),
        numpy_helper.from_array(np.asarray(zero), "pixels.zero"),
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]  # the old types, which are optional


def _correct_convolutions(quantized: onnx.ModelProto, model: onnx.ModelProto, pixels: Pixels) -> None:
    """Correct each convolution's bias, in order, so that its channels have the means that they have in `model`."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    # The heatmap's convolution is not quantized: its weights are an initializer, not the output of a node.
    found = [node for node in quantized.graph.node if node.op_type == "Conv" and node.input[1] in made_by]
    # By node name: if rounding to uint8 replaced the ReLU, the convolution's output has taken the ReLU's name.
    before = {node.name: node.output[0] for node in model.graph.node}
    wanted = _means(model, [before[node.name] for node in found], pixels)
    for node in found:
        (output,) = node.output
        shift = wanted[before[node.name]] - _means(quantized, [output], pixels)[output]
        bias, scale = (stored[name] for name in made_by[node.input[2]].input[:2])
        steps = np.rint(shift / numpy_helper.to_array(scale).astype(np.float64))
        corrected = (numpy_helper.to_array(bias) + steps).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _correct_head(quantized: onnx.ModelProto, model: onnx.ModelProto, pixels: Pixels) -> None:
    (bias,) = (tensor for tensor in quantized.graph.initializer if tensor.name == HEAD_BIAS)
    before, after = (_means(graph, ["logits"], pixels)["logits"] for graph in (model, quantized))
    corrected = (numpy_helper.to_array(bias) + before - after).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(corrected, HEAD_BIAS))


def _means(model: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels) -> dict[str, npt.NDArray[np.float64]]:
    """Mean of each channel, float64 [channels], of each tensor [n, channels, ...] over images and positions."""
    session = open_session(_up_to(model, tensors).SerializeToString())
    sums = [np.zeros(1)] * len(tensors)
    for i in range(0, len(pixels), _STEP):
        values = session.run(list(tensors), {INPUT: pixels[i : i + _STEP]})
        means = [v.reshape(*v.shape[:2], -1).mean(2, dtype=np.float64) for v in values]
        sums = [total + mean.sum(0) for total, mean in zip(sums, means, strict=True)]
    return {name: total / len(pixels) for name, total in zip(tensors, sums, strict=True)}


def _up_to(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The subgraph that computes these tensors, as outputs: ONNX Runtime runs every node it is given."""
    needed, nodes = set(tensors), []
    for node in reversed(model.graph.node):  # topologically sorted, as ONNX requires
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    graph = helper.make_graph(
        nodes[::-1], model.graph.name, model.graph.input,
        [helper.make_empty_tensor_value_info(name) for name in tensors],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def check_accuracy(labels: npt.NDArray[np.int64], before: npt.NDArray[Any], after: npt.NDArray[Any]) -> Json:
    """Compare both graphs on validation, and refuse an int8 graph that costs accuracy.

    Parameters
    ----------
    labels
        int64 [n], true classes.
    before, after
        [n, K], logits of the fp32 and of the int8 graph.

    Returns
    -------
    dict
        `n`, accuracy before and after, `accuracy_drop` (0 to 1; negative for a gain), `changed_decisions`,
        McNemar's `p_value`.

    Raises
    ------
    RunError
        Accuracy falls by more than 0.2 points, or McNemar's test finds a difference (p < 0.05).
    """
    first, second = before.argmax(1), after.argmax(1)
    right1, right2 = first == labels, second == labels
    drop = (int(right1.sum()) - int(right2.sum())) / len(labels)
    p_value = mcnemar(right1, right2)["p_value"]
    if drop > MAX_DROP or p_value < SIGNIFICANT:
        raise RunError(
            f"The int8 graph was not written: on {len(labels):,} validation images its accuracy is "
            f"{right2.mean():.2%} and the fp32 graph's {right1.mean():.2%} (McNemar p = {p_value:.3g}).",
            cure="Use the fp32 graph: tumorlens export without --int8.",
        )
    return {
        "n": len(labels),
        "accuracy_fp32": float(right1.mean()),
        "accuracy_int8": float(right2.mean()),
        "accuracy_drop": drop,
        "changed_decisions": int((first != second).sum()),
        "p_value": p_value,
    }


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, pixels: Pixels) -> None:
        self._batches: Iterator[Pixels] = (pixels[i : i + _STEP] for i in range(0, len(pixels), _STEP))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
