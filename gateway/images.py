"""Images at the edge: only the header of the file is looked at; the pixels stay encoded all the way to the workers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import ImageLimits
from superlink.v1 import types_pb2

FORMATS = ("JPEG", "PNG", "WEBP")

_ORIENTATION_TAG = 0x0112
# EXIF orientations that lie on their side: the upright image has width and height exchanged.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_DATA_URL = re.compile(r"data:(?P<media_type>[\w.+/-]*)(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class ReceivedImage:
    """An image that passed the limits."""

    message: types_pb2.Image
    # Pixels of the upright image.
    width: int
    height: int


def receive_image(encoded: bytes, limits: ImageLimits) -> ReceivedImage:
    """Check the bytes of an image file.

    Raises SuperlinkError ``image_missing``, ``image_too_large``, ``unsupported_image``, ``image_corrupt`` or
    ``image_animated``.
    """
    if not encoded:
        raise invalid_argument("image_missing", "The image is empty. Send the bytes of a JPEG, PNG or WebP file.")
    if len(encoded) > limits.max_image_bytes:
        raise _too_large(f"is {len(encoded):,} bytes long; the limit is {limits.max_image_bytes:,}")
    width, height = _upright_size(encoded, limits)
    digest = hashlib.sha256(encoded).hexdigest()
    return ReceivedImage(types_pb2.Image(encoded=encoded, sha256=digest), width, height)


def receive_data_url(url: str, limits: ImageLimits) -> ReceivedImage:
    """Check an image that came as ``data:image/png;base64,…``.

    Raises SuperlinkError ``remote_image_refused`` for any other address, ``invalid_data_url``, and what
    ``receive_image`` raises.
    """
    header = _DATA_URL.match(url)
    if header is None:
        if url[:5].lower() == "data:":
            raise invalid_argument("invalid_data_url", "The data URL must look like data:image/png;base64,….")
        raise invalid_argument(
            "remote_image_refused",
            "Images are not fetched from addresses. Send the image itself as a data URL: data:image/png;base64,….",
        )
    payload = url[header.end() :]
    if len(payload) // 4 * 3 > limits.max_image_bytes + 3:
        raise _too_large(f"is about {len(payload) // 4 * 3:,} bytes long; the limit is {limits.max_image_bytes:,}")
    try:
        encoded = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("invalid_data_url", f"The data URL is not valid base64: {error}.") from error
    return receive_image(encoded, limits)


def _upright_size(encoded: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Width and height in pixels after EXIF orientation, from the header alone."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"has far more than the {limits.max_image_pixels:,} pixels that are allowed") from error
    except UnidentifiedImageError as error:
        raise invalid_argument(
            "unsupported_image", "The file is not an image that can be read. Send a JPEG, PNG or WebP file."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, ArithmeticError) as error:
        raise invalid_argument("image_corrupt", "The header of the image file is damaged.") from error
    with image:
        width, height = image.size
        if max(width, height) > limits.max_image_side:
            raise _too_large(f"is {width} x {height} pixels; a side may have at most {limits.max_image_side:,}")
        if width * height > limits.max_image_pixels:
            raise _too_large(f"is {width} x {height} pixels; the limit is {limits.max_image_pixels:,} in all")
        if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
            raise invalid_argument("image_animated", "Animated images are not supported. Send one frame.")
        return (height, width) if _is_sideways(image) else (width, height)


def _is_sideways(image: Image.Image) -> bool:
    # Not image.getexif(): for some PNG files it decodes the pixels to find the chunk.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(_ORIENTATION_TAG) in _SIDEWAYS
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError):
        # Damaged EXIF data says nothing about the pixels; the workers treat it the same way.
        return False


def _too_large(what: str) -> SuperlinkError:
    return invalid_argument("image_too_large", f"The image {what}. Send a smaller one.")
