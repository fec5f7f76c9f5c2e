"""int8: a graph whose convolutions compute with 8-bit integers, and whether it is as good as before.

Static quantisation in ONNX Runtime's QDQ format: weights as int8 with a scale a channel, activations as uint8 with
one scale a tensor (Jacob et al., CVPR 2018), whose range is the mean of the smallest and of the largest values of
batches of calibration images, but for pixels, which are taken as they are stored. Weights do not fill their 8 bits:
processors without VNNI add pairs of products in 16 bits and saturate silently, so that a file measured on one
processor would answer differently on another. A channel's scale is therefore such that no two weights beside one
another are together above 128; the usual 7 bits, which are as safe, round in steps 1.2 to 1.5 times as wide. What
rounding shifts a channel by, on average, is given back in each convolution's bias and at last in the head's (bias
correction; Nagel et al., ICCV 2019, section 4.2, measured on images).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json
from tumorlens.evaluation.statistics import mcnemar
from tumorlens.export.onnx_graph import HEAD_BIAS, unquantised_nodes
from tumorlens.inference.classifier import INPUT, open_session
from tumorlens.readers.pixels import MEAN, STD, Pixels

CALIBRATION = 256  # images of Training
_CORRECTION = 64  # of these, for the means of channels
MAX_DROP = 0.002  # of validation accuracy
SIGNIFICANT = 0.05  # McNemar's p under which the two graphs count as different
_STEP = 16  # images at once
_PAIR = 127  # of two weights before they are rounded, by half a step each at most: 255 × 128 is below 2¹⁵


def quantise(model: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """The same graph with int8 convolutions.

    Parameters
    ----------
    model
        From `build_graph`, plain.
    pixels
        uint8 [n, 224, 224, 3], images to calibrate on: of Training, never of validation or test.
    """
    with tempfile.TemporaryDirectory(prefix="tumorlens-int8-") as folder, _quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, target, _Reader(pixels), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=unquantised_nodes(model),
            extra_options={"TensorQuantOverrides": _scales(model), "CalibMovingAverage": True},
        )  # fmt: skip
        quantised: onnx.ModelProto = onnx.load(target)
    _take_pixels(quantised)
    _correct_convolutions(quantised, model, pixels[:: max(1, len(pixels) // _CORRECTION)])
    _correct_head(quantised, model, pixels)
    return quantised


def _scales(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """The weights' scales, a channel each, as ONNX Runtime wants to be told them."""
    left_alone = unquantised_nodes(model)
    names = {n.input[1] for n in model.graph.node if n.op_type == "Conv" and n.name not in left_alone}
    return {
        tensor.name: [
            {"axis": 0, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(0)}
            for scale in weight_scales(numpy_helper.to_array(tensor))
        ]
        for tensor in model.graph.initializer if tensor.name in names
    }  # fmt: skip


def weight_scales(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [out], by which weights [out, in, h, w] are divided and rounded to int8.

    The sizes of any two of a channel that follow each other, with input channels last (as they are multiplied) or
    first, then sum to 128 at most.
    """
    sizes = np.abs(weight.astype(np.float64))
    orders = (sizes.reshape(len(sizes), -1), sizes.transpose(0, 2, 3, 1).reshape(len(sizes), -1))
    pairs = [(order + np.pad(order[:, 1:], ((0, 0), (0, 1)))).max(1) for order in orders]
    largest = np.maximum(*pairs)
    return np.where(largest > 0, largest / _PAIR, 1).astype(np.float32)


def _take_pixels(model: onnx.ModelProto) -> None:
    """Give the first convolution the pixels as they are stored, in 8 bits already.

    Normalised they lie halfway between the levels of a scale that is symmetric about 0, and rounded to these (halves to
    even) every second pair of neighbours falls together. With the zero point at 128 all of them lie half a level too
    low instead, which the bias makes good; but the padding then stands for half a level above 0.
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
    del model.graph.value_info[:]  # types of before, which are optional


def _correct_convolutions(quantised: onnx.ModelProto, model: onnx.ModelProto, pixels: Pixels) -> None:
    """Give each quantised convolution, the first ones first, the means that its channels have in `model`."""
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    # The heatmap's convolution is not quantised: no node makes its weights.
    found = [node for node in quantised.graph.node if node.op_type == "Conv" and node.input[1] in made_by]
    # By the nodes' names: where ReLU is left to the rounding to uint8, the convolution's output has taken its name.
    before = {node.name: node.output[0] for node in model.graph.node}
    wanted = _means(model, [before[node.name] for node in found], pixels)
    for node in found:
        (output,) = node.output
        shift = wanted[before[node.name]] - _means(quantised, [output], pixels)[output]
        bias, scale = (stored[name] for name in made_by[node.input[2]].input[:2])
        steps = np.rint(shift / numpy_helper.to_array(scale).astype(np.float64))
        corrected = (numpy_helper.to_array(bias) + steps).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _correct_head(quantised: onnx.ModelProto, model: onnx.ModelProto, pixels: Pixels) -> None:
    (bias,) = (tensor for tensor in quantised.graph.initializer if tensor.name == HEAD_BIAS)
    before, after = (_means(graph, ["logits"], pixels)["logits"] for graph in (model, quantised))
    corrected = (numpy_helper.to_array(bias) + before - after).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(corrected, HEAD_BIAS))


def _means(model: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels) -> dict[str, npt.NDArray[np.float64]]:
    """float64 [channels] of each tensor [n, channels, ...], over images and places."""
    session = open_session(_up_to(model, tensors).SerializeToString())
    sums = [np.zeros(1)] * len(tensors)
    for i in range(0, len(pixels), _STEP):
        values = session.run(list(tensors), {INPUT: pixels[i : i + _STEP]})
        places = [v.reshape(*v.shape[:2], -1).mean(2, dtype=np.float64) for v in values]
        sums = [total + p.sum(0) for total, p in zip(sums, places, strict=True)]
    return {name: total / len(pixels) for name, total in zip(tensors, sums, strict=True)}


def _up_to(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """What leads to these tensors, as outputs: ONNX Runtime computes all that it is given."""
    needed, nodes = set(tensors), []
    for node in reversed(model.graph.node):  # sorted, as ONNX demands
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    graph = helper.make_graph(
        nodes[::-1], model.graph.name, model.graph.input,
        [helper.make_empty_tensor_value_info(name) for name in tensors],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def accept(labels: npt.NDArray[np.int64], before: npt.NDArray[Any], after: npt.NDArray[Any]) -> Json:
    """Compare both graphs on validation.

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
    right, still = first == labels, second == labels
    drop = (int(right.sum()) - int(still.sum())) / len(labels)
    p_value = mcnemar(right, still)["p_value"]
    if drop > MAX_DROP or p_value < SIGNIFICANT:
        raise RunError(
            f"The int8 graph was not written: on {len(labels):,} validation images its accuracy is "
            f"{still.mean():.2%} and the fp32 graph's {right.mean():.2%} (McNemar p = {p_value:.3g}).",
            cure="Use the fp32 graph: tumorlens export without --int8.",
        )
    return {
        "n": len(labels),
        "accuracy_fp32": float(right.mean()),
        "accuracy_int8": float(still.mean()),
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice to preprocess the graph from the log: nothing is left to fuse in ours."""
    root = logging.getLogger()
    root.addFilter(_no_advice)
    try:
        yield
    finally:
        root.removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()
