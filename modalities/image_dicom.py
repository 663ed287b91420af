"""DICOM: its pixels, by pydicom, and nothing else of a file."""

import io
from typing import Literal

import numpy as np

from triptych.modalities.base import BadSample
from triptych.modalities.image_levels import Raw
from triptych.modalities.image_values import NoReader, check_size, plain_values

# All that is read of a DICOM file. Nothing of a person, a place or a date is among it.
TAGS = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation RescaleIntercept RescaleSlope ModalityLUTSequence PixelData FloatPixelData "
    "DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths PixelPaddingValue "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData"
).split()
Pages = Literal["first", "channels"]


def of_dicom(source: bytes, pages: Pages, max_pixels: int) -> Raw:
    """Stored values by slope and intercept, or by the file's table; palettes and YBR are RGB.

    Of several frames the first, or, as `channels`, all. What is said of a file that cannot be read holds nothing of
    its fields.
    """
    try:
        import pydicom
    except ImportError:
        raise NoReader("DICOM, which pydicom reads: pip install pydicom") from None
    known = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # it would print what is in a field
    try:
        return decoded(pydicom.dcmread(io.BytesIO(source), force=True, specific_tags=TAGS), pages, max_pixels)
    except BadSample:
        raise
    except Exception as error:
        raise BadSample(f"DICOM that cannot be read ({type(error).__name__})") from None
    finally:
        pydicom.config.settings.reading_validation_mode = known


def frames_of(source: bytes) -> int:
    """How many frames a DICOM file says that it has."""
    import pydicom

    data = pydicom.dcmread(io.BytesIO(source), force=True, specific_tags=["NumberOfFrames"], stop_before_pixels=True)
    return int(data.get("NumberOfFrames") or 1)


def decoded(data, pages: Pages, max_pixels: int) -> Raw:
    """The pixels of a `pydicom.Dataset`."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
    from pydicom.uid import ImplicitVRLittleEndian

    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadSample("DICOM without a picture")
    frames = int(data.get("NumberOfFrames") or 1) if pages == "channels" else 1
    check_size(data.Columns, data.Rows, max_pixels, frames)
    if "TransferSyntaxUID" not in data.file_meta:  # of before there were heads
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    try:
        values = pixel_array(data, index=None if frames > 1 else 0)
    except (NotImplementedError, RuntimeError):
        if not data.file_meta.TransferSyntaxUID.is_compressed:
            raise
        raise NoReader(
            f"DICOM, compressed by {data.file_meta.TransferSyntaxUID.name}: pip install pylibjpeg pylibjpeg-libjpeg "
            "pylibjpeg-openjpeg"
        ) from None
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, data)
        values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    elif data.BitsAllocated == 1:
        values = values * np.uint8(255)
    elif "ModalityLUTSequence" in data or (data.get("RescaleSlope", 1), data.get("RescaleIntercept", 0)) != (1, 0):
        values = apply_modality_lut(values, data)
        values = values.astype(np.int32) if values.dtype.kind == "f" and (values == np.rint(values)).all() else values
    if frames > 1 and values.ndim == 4:
        raise BadSample("DICOM of several frames in colour: modality.pages channels is for grey ones")
    values = np.moveaxis(values, 2, 0) if values.ndim == 3 and frames == 1 else values
    return Raw(plain_values(values if values.ndim == 3 else values[None]), inverted=kind == "MONOCHROME1")
