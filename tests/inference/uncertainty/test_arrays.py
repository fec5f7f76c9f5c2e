"""Softmax, arrays as JSON, and checked numbers."""

import json

import numpy as np
import pytest

from tumorlens.core.errors import WeightsError
from tumorlens.inference.uncertainty.arrays import number, pack_array, softmax, unpack_array


def test_softmax_by_hand_and_without_overflow():
    logits = np.log([[6.0, 2.0, 1.0, 1.0]])
    assert softmax(logits)[0] == pytest.approx([0.6, 0.2, 0.1, 0.1])
    assert softmax(2 * logits, 2.0)[0] == pytest.approx([0.6, 0.2, 0.1, 0.1])
    assert softmax([[2000.0, 0.0]]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_array_comes_back_as_stored(dtype):
    values = np.random.default_rng(0).normal(size=(3, 5))
    record = json.loads(json.dumps({"x": pack_array(values, dtype)}))
    found = unpack_array(record, "x", (None, 5))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "'f.x' of the uncertainty record is damaged"),
        ({}, "'f.x' of the uncertainty record is damaged"),
        ({"x": {**pack_array(np.zeros(4)), "dtype": "float64"}}, "damaged"),
        ({"x": {**pack_array(np.zeros(4)), "base64": "AAA"}}, "damaged"),
        ({"x": pack_array(np.zeros(3))}, r"has shape \[3\]"),
        ({"x": pack_array(np.zeros((4, 1)))}, r"has shape \[4, 1\]"),
        ({"x": pack_array([0, 0, 0, np.inf])}, "NaN or infinity"),
    ],
)
def test_a_damaged_array_is_an_error_with_a_cure(record, words):
    with pytest.raises(WeightsError, match=words) as caught:
        unpack_array(record, "x", (4,), "f")
    assert caught.value.cure == "Export the model again: tumorlens export RUN"


@pytest.mark.parametrize("value", [None, "1", True, -0.1, 1.1, float("nan")])
def test_a_number_is_checked(value):
    with pytest.raises(WeightsError, match=r"'f\.x' .*not a number from 0 to 1"):
        number({"x": value}, "x", 0, 1, "f")
    assert number({"x": 1}, "x", 0, 1) == 1.0
