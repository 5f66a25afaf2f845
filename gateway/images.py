"""Images at the edge: only the header of the file is looked at; the pixels stay encoded all the way to the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from superlink.data_urls import base64_of, decode_base64
from superlink.image_header import image_too_large, upright_size
from superlink.profile import ImageLimits
from superlink.v1 import types_pb2

# How clients give an image in a text.
ImageAddress = Annotated[
    str,
    Field(
        description="A data URL, the id of an image in `/v1/files` or, where the deployment fetches images, an http or "
        "https address.",
        json_schema_extra={"format": "image-address"},
    ),
]


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


def receive_address(address: str, limits: ImageLimits, fetched: Mapping[str, ReceivedImage]) -> ReceivedImage:
    """The image at ``address``: one of ``fetched``, else what ``receive_data_url`` makes of it."""
    return fetched[address] if address in fetched else receive_data_url(address, limits)


def receive_data_url(url: str, limits: ImageLimits) -> ReceivedImage:
    """Check an image that came as ``data:image/png;base64,…``.

    Raises SuperlinkError ``remote_image_refused`` for any other address, ``invalid_data_url``, and what
    ``receive_image`` raises.
    """
    payload = base64_of(url)
    if len(payload) // 4 * 3 > limits.max_image_bytes + 3:
        raise image_too_large(f"is about {len(payload) // 4 * 3:,} bytes long; the limit is {limits.max_image_bytes:,}")
    return receive_image(decode_base64(payload), limits)
