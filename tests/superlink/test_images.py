"""File bytes travel as they are; their kind is told by their first bytes."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from superlink.images import encode_image


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_file_bytes_are_not_re_encoded(kind: str, media_type: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format=kind)
    encoded = encode_image(buffer.getvalue())
    assert encoded.content == buffer.getvalue()
    assert encoded.media_type == media_type


def test_bytes_of_another_kind_are_left_for_the_gateway_to_judge() -> None:
    assert encode_image(b"hello").media_type == "application/octet-stream"


def test_a_missing_file_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        encode_image("no/such/file.png")
