"""What the readers of picture files share: values as arrays, sizes that are refused, and what an error becomes."""

from contextlib import contextmanager

import numpy as np

from triptych.modalities.base import BadSample


class NoReader(BadSample):
    """A file that a library could read that is not installed."""


@contextmanager
def readable(what: str = ""):
    """Within, whatever a reader stumbles over is a `BadSample`; `what` it was stands before the reason."""
    from PIL import Image as pillow

    try:
        yield
    except NoReader:
        raise
    except BadSample as error:
        raise (BadSample(f"{what}{error}") if what else error) from error.__cause__
    except FileNotFoundError as error:
        raise BadSample(f"{what}no such file: {error.filename}") from error
    except pillow.UnidentifiedImageError as error:
        reason = "not a readable picture: of no format that Pillow knows, or damaged at its head"
        raise BadSample(what + reason) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BadSample(f"{what}not a readable picture: {error}") from error


def plain_values(values: np.ndarray) -> np.ndarray:
    """Bytes, integers or floats, as this machine has them."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif":
        raise BadSample(f"an array of {values.dtype}: a picture is one of integers or floats")
    if values.dtype == np.int8:
        return values.astype(np.int16)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def check_size(width: int, height: int, most: int, pages: int = 1) -> None:
    if width * height * pages > most:
        raise BadSample(
            f"{f'{pages} pages of ' if pages > 1 else ''}{width}×{height} pixels, more than modality.max_pixels "
            f"{most}; raise that, or shrink the picture"
        )
