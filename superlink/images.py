"""Images as the SDK takes them: a path, file bytes, a Pillow image or a numpy array."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image, ImageOps


@runtime_checkable
class Array(Protocol):
    """A numpy array ``[height, width]`` (grey), ``[height, width, 3]`` (RGB) or ``[height, width, 4]``, uint8."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The array interface protocol."""


ImageInput = str | os.PathLike[str] | bytes | Image.Image | Array

SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    # Sound and film begin with RIFF as well.
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
)
# What PNG files can hold; pictures of other modes (CMYK, YCbCr) are sent in RGB.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# Their values have no fixed range, and Pillow's conversion would clip them.
_UNBOUNDED_MODES = frozenset({"I", "F"})
# The file is sent once and thrown away. Measured on pictures of 2 megapixels: two to three times as fast as the
# default, for files that are 15 to 30 % larger.
_PNG_COMPRESSION = 1


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory."""

    content: bytes
    media_type: str

    def data_url(self) -> str:
        """``data:image/png;base64,…``, the form in which chat messages carry images."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode('ascii')}"


def encode_image(image: ImageInput) -> EncodedImage:
    """File bytes as they are; pixels as PNG, which loses nothing.

    Paths and bytes are not looked into: whether they hold an image is for the gateway to say. Pillow images and arrays
    are sent as their pixels lie, without an EXIF orientation, and coordinates come back in these pixels.

    Raises FileNotFoundError for a missing path, TypeError for anything else than the four kinds and for arrays of
    another type than uint8, and ValueError for arrays of another shape, pictures of 32-bit values and web addresses.
    """
    if isinstance(image, bytes):
        return EncodedImage(image, media_type(image))
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        raise ValueError(f"Images are not fetched from addresses ({image[:40]}…). Download it and give its bytes.")
    if isinstance(image, (str, os.PathLike)):
        content = Path(image).read_bytes()
        return EncodedImage(content, media_type(content))
    if isinstance(image, Image.Image):
        return EncodedImage(_png(image), "image/png")
    if isinstance(image, Array):
        return EncodedImage(_png(_picture(image)), "image/png")
    raise TypeError(f"An image is a path, bytes, a Pillow image or a numpy array, not {type(image).__name__}.")


def open_upright(content: bytes) -> Image.Image:
    """The picture of an image file as the services see it: with its EXIF orientation applied.

    Raises OSError (UnidentifiedImageError) where ``content`` is no image.
    """
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image)


def media_type(content: bytes) -> str:
    """What the first bytes say; ``application/octet-stream`` when they say nothing known."""
    return next((name for signature, name in SIGNATURES if signature.match(content)), "application/octet-stream")


def _png(image: Image.Image) -> bytes:
    if image.mode in _UNBOUNDED_MODES:
        raise ValueError(f"A picture of mode {image.mode!r} may hold any values. Scale them to 0..255 and convert it.")
    buffer = io.BytesIO()
    fitting = image if image.mode in _PNG_MODES else image.convert("RGB")
    fitting.save(buffer, format="PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()


def _picture(array: Array) -> Image.Image:
    interface = array.__array_interface__
    shape, kind = interface["shape"], interface["typestr"]
    if kind != "|u1":
        raise TypeError(
            f"An array of pixels has the type uint8 (0..255), not {kind!r}. From floats in 0..1: "
            "(array * 255).round().astype('uint8')."
        )
    if len(shape) not in (2, 3) or 0 in shape or len(shape) == 3 and shape[2] not in (3, 4):
        raise ValueError(
            f"An array of pixels has the shape [height, width], [height, width, 3] (RGB) or [height, width, 4], not "
            f"{list(shape)}."
        )
    return Image.fromarray(array)
