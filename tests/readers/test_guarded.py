"""Frames decoded in another process: one whose decoding does not end is stopped, and the others are read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from input_files import seeds, slices
from pydicom.encaps import encapsulate, generate_frames

from tumorlens.readers import Unreadable, guarded, read_bytes

dicom = seeds.dicom
GREY = seeds.picture()
DEEP = GREY.astype(np.uint16) * 16


HEADER = {
    "Rows": 40, "Columns": 32, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
    "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
}  # fmt: skip

# CharLS counts to 2**31 on this frame of 40 x 32 pixels; fuzzing found it.
ENDLESS = bytes.fromhex(
    "ffd8fff7000b100028002001011100fff8000d01ffff0012004301140040ffda0008010100000000063f87f1763b9666f559"
    "9d465f4dabc9a7c5a3c19fbd9bb997b593b18faf8ddb2f5c98ff041086208864121904864143414341434143414341434187"
    "061c187061c1861047f81020408102040810204081020408104104"
)


def test_a_frame_that_would_not_end_is_ended() -> None:
    content = dicom(np.stack([DEEP] * 3), syntax=seeds.JPEG_LS)
    data = pydicom.dcmread(io.BytesIO(content))
    whole = next(generate_frames(data.PixelData, number_of_frames=3))
    data.PixelData = encapsulate([whole] + [ENDLESS] * 5)
    data.NumberOfFrames = 6
    file = io.BytesIO()
    data.save_as(file)
    began = os.times()
    found = list(read_bytes(file.getvalue(), "x"))
    ended = os.times()
    if sys.platform != "win32":  # where times of children are not counted
        spent = ended.children_user + ended.children_system - began.children_user - began.children_system
        assert 1 < spent < 9  # seconds of the workers' processor time
    reasons = [one.reason for one in found if isinstance(one, Unreadable)]
    assert reasons == [
        "frame 2 cannot be decoded",
        "frame 3 cannot be decoded",
        "frame 4 cannot be decoded",
        "frames 5 to 6 were left out after 3 whose decoding would not end",
    ]
    assert len(slices(read_bytes(content, "x"))) == 3  # another worker was started


def test_the_worker_replies_and_ends_itself_without_interval_timers() -> None:
    """As on Windows: the time limit then counts wall-clock time."""
    data = pydicom.dcmread(io.BytesIO(dicom(DEEP, syntax=seeds.JPEG_LS)))
    whole = next(generate_frames(data.PixelData, number_of_frames=1))
    code = (
        "import runpy, signal, sys; del signal.setitimer, signal.ITIMER_PROF;"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    settings = {"syntax": seeds.JPEG_LS, "plugin": "pyjpegls", **HEADER}
    requests = [(whole, 9.0), (whole[:60], 9.0), (ENDLESS, 0.05), (whole, 9.0)]
    sent = b"".join(guarded.request(frame, settings, seconds) for frame, seconds in requests)
    done = subprocess.run([sys.executable, "-c", code, str(guarded._WORKER)], input=sent, capture_output=True)
    length = int.from_bytes(done.stdout[:8], "little")
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout[8 : 8 + length])), DEEP)
    assert done.stdout[8 + length :] == bytes(8)
    assert done.returncode == 1


@pytest.mark.case(16)
@pytest.mark.parametrize("process", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("pixels", [GREY, DEEP, DEEP.astype(np.int16) - 2000], ids=["8 bits", "16 bits", "signed"])
def test_jpeg_lossless_is_decoded(process: str, pixels: np.ndarray, tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    plain = tmp_path / "plain.dcm"
    plain.write_bytes(dicom(pixels))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    content = (tmp_path / "lossless.dcm").read_bytes()
    (wanted,), (found,) = slices(read_bytes(plain.read_bytes(), "x")), slices(read_bytes(content, "x"))
    assert str(found.metadata["transfer_syntax"]).startswith("JPEG Lossless")
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    damaged = bytearray(content)
    at = damaged.index(b"\xff\xda") + 20
    damaged[at : at + 400] = bytes(len(damaged[at : at + 400]))
    list(read_bytes(bytes(damaged), "x"))  # pixels or a reason, but no crash
