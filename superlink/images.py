"""Images as the SDK takes them: a path, file bytes, a Pillow image or a numpy array."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Array(Protocol):
    """A numpy array ``[height, width]`` (grey), ``[height, width, 3]`` (RGB) or ``[height, width, 4]``, uint8."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The array interface protocol."""


ImageInput = str | os.PathLike[str] | bytes | Image.Image | Array

SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"RIFF", "image/webp"),
)


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

    Paths and bytes are not looked into: whether they hold an image is for the gateway to say.
    Raises FileNotFoundError for a missing path and TypeError for anything else than the four kinds.
    """
    if isinstance(image, bytes):
        return EncodedImage(image, media_type(image))
    if isinstance(image, (str, os.PathLike)):
        content = Path(image).read_bytes()
        return EncodedImage(content, media_type(content))
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return EncodedImage(buffer.getvalue(), "image/png")
    if isinstance(image, Array):
        return encode_image(Image.fromarray(image))
    raise TypeError(f"An image is a path, bytes, a Pillow image or a numpy array, not {type(image).__name__}.")


def media_type(content: bytes) -> str:
    """What the first bytes say; ``application/octet-stream`` when they say nothing known."""
    return next((name for signature, name in SIGNATURES if content.startswith(signature)), "application/octet-stream")
