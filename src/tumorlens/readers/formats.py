"""One file's content → slices. The format is recognized by the first bytes, never by the file's name."""

import io
from collections.abc import Iterator
from dataclasses import replace

from tumorlens.core.errors import ImageError
from tumorlens.core.text import shown
from tumorlens.readers.companions import is_companion
from tumorlens.readers.rasters import read_raster
from tumorlens.readers.signatures import GZIP, HEADER, ZIP, is_dicom, is_nifti, is_raster
from tumorlens.readers.types import ReadContext, Slice, Unreadable
from tumorlens.readers.zips import check_entry, entry_content, entry_path, open_zip, visible_files

#: All formats that are read, beside zips of such files.
FORMATS = "JPEG, PNG, TIFF, BMP, WebP, DICOM, NIfTI"


def read_stream(context: ReadContext, *, in_zip: bool = False) -> Iterator[Slice | Unreadable]:
    """Everything in one file; what cannot be read is an Unreadable.

    Parameters
    ----------
    in_zip
        Whether the file is an entry of a zip; a zip in a zip is not opened.
    """
    most = context.limits.bytes
    try:
        if isinstance(context.stream, io.BytesIO) and context.stream.getbuffer().nbytes > most:
            raise ImageError(f"longer than the limit of {most:,} bytes", cure="Split it, or name a file.")
        head = context.stream.read(HEADER)
        context.stream.seek(0)
        if head.startswith(ZIP):
            if in_zip:
                raise ImageError("a zip inside a zip", cure="Unpack the outer one and name the folder.")
            yield from _read_zip(context)
        elif is_dicom(head):  # before TIFF, whose signature may stand in a DICOM file's preamble
            from tumorlens.readers.dicom import read_dicom  # pydicom takes 0.2 s to import

            yield from read_dicom(context)
        elif context.survey:
            return
        elif head.startswith(GZIP) or is_nifti(head):
            from tumorlens.readers.nifti import read_nifti  # so does nibabel

            yield from read_nifti(context, compressed=head.startswith(GZIP))
        elif is_raster(head):
            yield from read_raster(context)
        elif not head:
            raise ImageError("empty file (0 bytes)", cure="Download or copy it again.")
        else:
            raise ImageError("of no format that is read", cure=f"These are read: {FORMATS} and zips of them.")
    except ImageError as error:
        yield Unreadable(context.source, None, error.what, error.cure)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or 'input/output error'})"
        yield Unreadable(context.source, None, reason, "Copy it again.")


def _read_zip(context: ReadContext) -> Iterator[Slice | Unreadable]:
    limits = context.limits
    with open_zip(context.stream, limits) as archive:
        entries = visible_files(archive)
        if len(entries) > limits.entries:
            raise ImageError(f"a zip of {len(entries):,} files, over the limit of {limits.entries:,}", cure="Split it.")
        if not entries:
            raise ImageError("a zip without files", cure="Leave it out.")
        pictures = False
        if context.skipped:
            for info in set(archive.infolist()).difference(entries):
                if info.filename[-1:] != "/":
                    context.skipped.add(f"{context.source}/{entry_path(info.filename)}")
        for info in entries:
            source = shown(f"{context.source}/{entry_path(info.filename)}")
            try:
                check_entry(info, limits)
                content = io.BytesIO(b"".join(entry_content(archive, info)))
            except ImageError as error:
                yield Unreadable(source, None, error.what, error.cure)
                pictures = True
                continue
            if context.skipped and is_companion(info.filename, content.getvalue()[:HEADER]):
                context.skipped.add(source)
                continue
            pictures = True
            yield from read_stream(replace(context, stream=content, source=source), in_zip=True)
        if not pictures:
            raise ImageError("a zip without pictures", cure="Leave it out.")
