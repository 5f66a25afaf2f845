"""Masks in the manner of OpenAI's image edits: what is transparent in a picture is what the edit is about."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from gateway.images import ReceivedImage
from superlink.errors import invalid_argument
from superlink.image_header import DAMAGED
from superlink.run_length import encode_mask
from superlink.v1 import types_pb2

# Alpha below this counts as transparent.
_OPAQUE_FROM = 128


def transparent_region(mask: ReceivedImage, image: ReceivedImage) -> types_pb2.Region:
    """The transparent part of ``mask`` as a region of ``image``. Decodes the mask: not for the event loop.

    Raises SuperlinkError ``invalid_mask`` when their sizes differ or nothing is transparent, ``image_corrupt``.
    """
    if (mask.width, mask.height) != (image.width, image.height):
        raise invalid_argument(
            "invalid_mask",
            f"The mask has {mask.width} x {mask.height} pixels, the image {image.width} x {image.height}. "
            "Send a mask of the image's size.",
        )
    with Image.open(io.BytesIO(mask.message.encoded)) as opened:
        try:
            alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
        except DAMAGED as error:
            raise invalid_argument("image_corrupt", "The mask is damaged and cannot be decoded.") from error
    meant = alpha.point([255 if value < _OPAQUE_FROM else 0 for value in range(256)])
    if meant.getbbox() is None:
        raise invalid_argument("invalid_mask", "Nothing in the mask is transparent. Make transparent what you mean.")
    counts = encode_mask(meant).encode("ascii")
    return types_pb2.Region(mask=types_pb2.Mask(height=meant.height, width=meant.width, counts=counts))
