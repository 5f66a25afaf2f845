"""Images at the edge: only the header of the file is looked at; the pixels stay encoded all the way to the workers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from superlink.errors import invalid_argument
from superlink.image_header import image_too_large, upright_size
from superlink.profile import ImageLimits
from superlink.v1 import types_pb2

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
    width, height = upright_size(encoded, limits)
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
        raise image_too_large(f"is about {len(payload) // 4 * 3:,} bytes long; the limit is {limits.max_image_bytes:,}")
    try:
        encoded = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("invalid_data_url", f"The data URL is not valid base64: {error}.") from error
    return receive_image(encoded, limits)
