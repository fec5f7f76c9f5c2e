"""Any bytes give slices or a reason: formats are recognized by content, bad files reported."""

from __future__ import annotations

import subprocess
import sys

import fuzz
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import reason, seeds

from tumorlens.readers import ReadLimits, Slice, Unreadable, read_bytes

PNG = seeds.raster("PNG")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "empty file"),
        (b"hello " * 200, "of no format that is read"),
        (seeds.raster("GIF"), "of no format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + b" " * 600, "of no format that is read"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (seeds.raster("PNG", seeds.picture(4, 4)), "only 4x4 pixels"),
        (seeds.raster("TIFF", np.full((40, 40), np.nan, np.float32)), "holds values that are no numbers"),
    ],
)  # fmt: skip
def test_each_bad_file_has_its_reason(content: bytes, wanted: str) -> None:
    assert wanted in reason(read_bytes(content, "x"))


def test_limits_on_pictures() -> None:
    assert "over the limit of 1,000" in reason(read_bytes(PNG, "x", limits=ReadLimits(pixels=1000)))
    assert "longer than the limit" in reason(read_bytes(PNG, "x", limits=ReadLimits(bytes=100)))


def test_pydicom_nibabel_and_torch_stay_out_until_they_are_needed() -> None:
    code = (
        "import sys, tumorlens.readers as i; list(i.read_bytes(sys.stdin.buffer.read(), 'x'));"
        "print([m for m in ('pydicom', 'nibabel', 'torch', 'scipy') if m in sys.modules])"
    )

    def loaded(content: bytes) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode()

    assert loaded(PNG).strip() == "[]"
    assert loaded(seeds.dicom(seeds.picture())).strip() == "['pydicom']"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([name for name in seeds.seeds() if name != "DICOM JPEG-LS"]))
def test_any_bytes_after_a_true_beginning_give_slices_or_reasons(tail: bytes, name: str) -> None:
    for content in (tail, seeds.seeds()[name][0][:200] + tail):
        for one in read_bytes(content, "x"):
            assert isinstance(one, (Slice, Unreadable))


@pytest.mark.parametrize("name", list(seeds.seeds()))
def test_mutants_give_slices_or_reasons(name: str) -> None:
    """The short version of benchmarks/fuzz.py; any exception and any warning fails."""
    random = np.random.default_rng(1)
    kinds = set()
    originals = seeds.seeds()[name]
    for content in (*originals, *(fuzz.mutate(random, originals, name) for _ in range(200))):
        found = list(read_bytes(content, "x"))
        assert found
        kinds |= {type(one) for one in found}
        assert all(one.pixels.shape == (224, 224, 3) if isinstance(one, Slice) else one.reason for one in found)
    assert kinds == {Slice, Unreadable}
