"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz) → the slices of one plane, in radiological orientation.

Orientation comes from the affine (sform before qform, NIfTI-1 standard 2003; a qform in place of a damaged sform), to
the nearest axes; an oblique volume is not resampled. Slices are oriented as radiologists see them and as most of the
training images are: axial with anterior up and the patient's right on the left, coronal with superior up and the
patient's right on the left, sagittal with superior up and the face to the left.

One contrast range applies to the whole volume, so that slices keep their relative brightness. Of a 4-D file the first
volume is read, and an Unreadable reports the others. A volume is held in memory once, in its stored type.
"""

import gzip
import io
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tumorlens.core.errors import ImageError
from tumorlens.core.progress import log
from tumorlens.readers.pixels import plausible_spacing
from tumorlens.readers.places import no_such_volume
from tumorlens.readers.scaling import Values, contrast_range, to_uint8
from tumorlens.readers.signatures import GZIP, HEADER, is_nifti
from tumorlens.readers.types import Metadata, Plane, ReadContext, Slice, Unreadable, fit_square

_CHUNK = 1 << 20
_LABELS = 100  # different values of a mask; images of 8 bits have up to 256
_LONGEST = 2.5  # long over short side of a slice through a head, if all voxel sizes are equal
_SILENT = logging.Logger("nibabel", level=1000)  # nibabel's messages quote values
_MAX_OFFSET = 64_000_000  # bytes; header extensions lie before the voxels
_CONVERT = "Save the volume again as .nii.gz from a program that reads it."
_AGAIN = "Download or copy it again."

# Per plane the axes of an RAS volume: through the plane, down the picture (reversed), across it (reversed).
_AXES: dict[Plane, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def read_nifti(context: ReadContext, *, compressed: bool) -> Iterator[Slice | Unreadable]:
    """The slices of a volume in stored order; of a 4-D file those of the first volume, and an Unreadable for the rest.

    Parameters
    ----------
    compressed
        Whether the stream is gzip.

    Raises
    ------
    ImageError
        Not a volume, damaged, over a limit, or of a data type that is not supported.
    """
    limits, plane = context.limits, context.plane
    try:
        values, header = _read_volume(context, compressed=compressed)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ImageError("damaged within its compressed data", cure=_AGAIN) from None
    affine, recorded = _affine(header)
    slices, spacing = _orient(values, affine, plane)
    count, height, width = slices.shape
    if min(height, width) < 8:
        large = [name for name in _AXES if min(_orient(values, affine, name)[0].shape[1:]) >= 8]
        raise ImageError(
            f"only {width}x{height} voxels in each {plane} slice",
            cure=f"Use --plane {large[0]}." if large else "Leave it out.",
        )
    if count > limits.frames or height * width > limits.pixels:
        raise ImageError(
            f"has {count:,} {plane} slices of {width}x{height} voxels, over the limits of {limits.frames:,} slices "
            f"and {limits.pixels:,} voxels a slice",
            cure="Resample it.",
        )
    # All that matters of the slope when scaling to percentiles.
    sign = -1.0 if float(header["scl_slope"]) < 0 else 1.0
    low, high = sorted(sign * edge for edge in contrast_range(values))
    series = context.series.new()
    metadata: Metadata = {"format": "NIfTI", "width": width, "height": height, "plane": plane}
    if not recorded:
        metadata["orientation"] = "not recorded, taken as nibabel does"
    if spacing is None:
        metadata["spacing"] = "not plausible, ignored"
        sizes = "x".join(f"{size:g}" for size in nib.affines.voxel_sizes(affine))  # type: ignore[no-untyped-call]
        log.info(f"{context.source}: voxels of {sizes} mm would make {plane} slices stripes; their size is ignored.")
    for index in range(count):
        with np.errstate(invalid="ignore"):  # signalling NaN, which becomes black
            picture = to_uint8(slices[index] * sign, low, high)
        yield Slice(context.source, index, count, series, fit_square(picture, spacing), dict(metadata))
    volumes = math.prod(_layout(header)[0][3:])
    if volumes > 1 and context.volume is None:  # of no series: the first volume's result does not depend on the others
        reason = f"holds {volumes:,} volumes, of which the first alone was read"
        yield Unreadable(context.source, None, reason, f"Choose one with --volume 1 to --volume {volumes}.")


def mask_voxels(volume: Path, mask: Path, plane: Plane) -> list[int]:
    """Voxels of a mask that are above 0 in each slice of a volume, in the order in which `read_nifti` yields slices.

    Raises
    ------
    ImageError
        A file cannot be read, the mask has another shape or orientation than the volume, or it holds more different
        values than labels of regions, as an image does.
    """
    (values, header), (covered, own) = (_open_volume(path) for path in (volume, mask))
    shape = _layout(own)[0]
    if values.shape != covered.shape or math.prod(shape[3:]) > 1:
        sizes = ["x".join(map(str, found)) for found in (shape, values.shape)]
        raise ImageError(
            f"its mask {mask.name} has {sizes[0]} voxels, the volume {sizes[1]}",
            cure="Resample the mask to the voxels of the volume.",
        )
    if (different := len(np.unique(covered))) > _LABELS:
        raise ImageError(
            f"its mask {mask.name} holds {different:,} different values, as an image does",
            cure="Name the file that marks the lesion: 0 outside of it.",
        )
    (affine, _), (lies, recorded) = _affine(header), _affine(own)
    runs = [nib.aff2axcodes(found) for found in (lies, affine)]  # type: ignore[no-untyped-call]
    if recorded and runs[0] != runs[1]:
        raise ImageError(
            f"its mask {mask.name} is stored in the orientation {''.join(runs[0])}, the volume in {''.join(runs[1])}",
            cure="Save both with nibabel.as_closest_canonical.",
        )
    return [int(np.count_nonzero(part > 0)) for part in _orient(covered, affine, plane)[0]]


def _open_volume(path: Path) -> tuple[Values, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
            if not head.startswith(GZIP) and not is_nifti(head):
                raise ImageError("not a NIfTI volume", cure="Name a .nii or .nii.gz file.")
            return _read_volume(ReadContext(file, path.name), compressed=head.startswith(GZIP))
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path.name} cannot be read ({error})", cure=_AGAIN) from None
    except ImageError as error:
        raise ImageError(f"{path.name} cannot be used ({error.what})", cure=error.cure) from None


def _read_volume(context: ReadContext, *, compressed: bool) -> tuple[Values, Any]:
    """The first volume or the chosen one, [i, j, k] in its stored type, and nibabel's header.

    No voxel is read or decompressed before the header's sizes are within the limits.
    """
    stream, limits, number = context.stream, context.limits, context.volume or 1
    stored = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    plain: Any = gzip.GzipFile(fileobj=stream) if compressed else stream
    head = plain.read(HEADER)
    if compressed and not is_nifti(head):
        raise ImageError("a gzip file without a NIfTI volume in it", cure="Unpack it and name what was inside.")
    header = _parse_header(head)
    shape, dtype = _layout(header)
    inflates = ImageError(f"inflates to over {limits.ratio:g} times its size", cure="Unpack it yourself.")
    wanted = math.prod(shape[:3]) * dtype.itemsize
    if wanted > limits.bytes:
        raise ImageError(
            f"a volume of {'x'.join(map(str, shape[:3]))} voxels takes {wanted:,} bytes, over the limit of "
            f"{limits.bytes:,}",
            cure="Resample it, or save it with 8 or 16 bits a voxel.",
        )
    if number > (volumes := math.prod(shape[3:])):
        raise no_such_volume(volumes, number)
    if compressed and limits.is_bomb(number * wanted, stored):
        raise inflates
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= _MAX_OFFSET:
        raise ImageError("its header places the voxels where they cannot be", cure=_AGAIN)
    content = np.empty(wanted, np.uint8)
    done = 0
    plain.seek(int(offset) + (number - 1) * wanted)
    while done < wanted and (n := plain.readinto(content.data[done : done + _CHUNK])):
        done += n
        if compressed and limits.is_bomb(done, stream.tell()):
            raise inflates  # although the file is longer: something else follows
    if compressed and done == wanted:
        plain.read(1)  # at the end of a 3-D file this verifies its checksum
    if done < wanted:
        raise ImageError(f"cut off: {done:,} of {wanted:,} bytes of voxels are there", cure=_AGAIN)
    return content.view(dtype).reshape(shape[:3], order="F"), header


def _parse_header(head: bytes) -> Any:
    """nibabel's header, not yet checked: its checks would repair what is refused here."""
    kind = head[344:348] if head[344:348] in (b"n+1\0", b"ni1\0") else head[4:8]
    if kind.startswith(b"ni"):
        raise ImageError(
            "the header of a NIfTI pair, whose voxels lie in another file", cure="Save the pair as one .nii file."
        )
    header, size = (nib.Nifti1Header, 348) if kind == b"n+1\0" else (nib.Nifti2Header, 540)
    if len(head) < size:
        raise ImageError("cut off within its header", cure=_AGAIN)
    return header(head[:size], check=False)  # type: ignore[no-untyped-call]


def _layout(header: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of 3 or more dimensions, and the dtype of a voxel."""
    dim = [int(n) for n in header["dim"]]
    if not 2 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ImageError("its header tells no sizes that a volume could have", cure=_AGAIN)
    shape = (*dim[1 : dim[0] + 1], 1)[: max(3, dim[0])]
    try:
        dtype = header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError):  # an undefined code
        dtype = np.dtype("V1")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageError("holds colours, complex or unknown numbers, not grey values", cure=_CONVERT)
    return shape, dtype


def _affine(header: Any) -> tuple[Values, bool]:
    """[4, 4], voxel indices → mm in RAS, and whether the file records it or it is nibabel's default."""
    header.check_fix(_SILENT, error_level=100)  # as nibabel.load: a factor of 0 is 1, an unknown code is none, ...
    affine = _sound(header.get_best_affine)
    if affine is None and header["sform_code"] > 0 and header["qform_code"] > 0:
        affine = _sound(header.get_qform)
    if affine is None:
        raise ImageError("its affine does not tell how the volume lies", cure=_CONVERT)
    return affine, bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _sound(read: Callable[[], Any]) -> Values | None:
    """The affine that a header's method returns; None if it does not tell how the volume lies."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(read(), np.float64)
    except (nib.spatialimages.HeaderDataError, ValueError):  # not a quaternion
        return None
    # Compared before squaring: values of a damaged header may overflow.
    lengths = np.linalg.norm(affine[:3, :3], axis=0) if np.abs(affine).max() < 1e6 else np.zeros(3)
    # Cosines between axes; a determinant near 0 means that two axes coincide.
    if lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return None
    return affine


def _orient(values: Values, affine: Values, plane: Plane) -> tuple[Values, tuple[float, float] | None]:
    """Slices as a view [slice, row, column] in stored order, and the distance between rows and columns in mm.

    The distance is None if it is not plausible: programs that lose voxel sizes write 1 x 1 x 1 mm, which makes a stripe
    of a coronal slice through 24 axial ones.
    """
    # For each stored axis its nearest RAS axis, and whether it runs with (1) or against it (-1).
    runs = np.asarray(nib.orientations.io_orientation(affine))  # type: ignore[no-untyped-call]
    stored = {int(axis): (i, direction > 0) for i, (axis, direction) in enumerate(runs)}
    (through, _), (down, down_with), (across, across_with) = (stored[axis] for axis in _AXES[plane])
    slices = values.transpose(through, down, across)
    # Rows run towards posterior or inferior, columns towards the patient's left or posterior: all against RAS.
    slices = slices[:, :: -1 if down_with else 1, :: -1 if across_with else 1]
    sizes = nib.affines.voxel_sizes(affine)  # type: ignore[no-untyped-call]
    height, width = slices.shape[1:]
    if np.allclose(sizes, sizes[0], 1e-3) and not 1 / _LONGEST <= height / width <= _LONGEST:
        return slices, None
    return slices, plausible_spacing((height, width), (float(sizes[down]), float(sizes[across])))
