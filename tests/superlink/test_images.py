"""File bytes travel as they are; their kind is told by their first bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("content", [b"hello", b"RIFF\x24\x00\x00\x00WAVEfmt "], ids=["text", "sound"])
def test_bytes_of_another_kind_are_left_for_the_gateway_to_judge(content: bytes) -> None:
    assert encode_image(content).media_type == "application/octet-stream"


def test_a_missing_file_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        encode_image("no/such/file.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pixels_arrive_as_they_are(mode: str) -> None:
    original = Image.new(mode, (4, 3))
    with Image.open(io.BytesIO(encode_image(original).content)) as arrived:
        assert (arrived.mode, arrived.tobytes()) == (mode, original.tobytes())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_pictures_that_no_png_holds_arrive_in_rgb(mode: str) -> None:
    original = Image.new("RGB", (4, 3), (255, 0, 0)).convert(mode)
    with Image.open(io.BytesIO(encode_image(original).content)) as arrived:
        assert arrived.mode == "RGB"
        red, green, blue = arrived.getpixel((0, 0))  # type: ignore[misc]
        assert (red, max(green, blue)) > (250, 0)
        assert max(green, blue) < 5


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3), (3, 4, 4)])
def test_arrays_are_rows_of_pixels(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for given in (array, array[::-1, ::-1][::-1, ::-1]):
        with Image.open(io.BytesIO(encode_image(given).content)) as arrived:
            assert arrived.size == (4, 3)
            assert (np.asarray(arrived) == array).all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.zeros((3, 4, 3)), TypeError, "astype"),
        (np.zeros((3, 4), bool), TypeError, "uint8"),
        (np.zeros((3, 3, 4, 5), np.uint8), ValueError, r"\[height, width\]"),
        (np.zeros((3, 3, 2), np.uint8), ValueError, r"\[3, 3, 2\]"),
        (np.zeros((0, 3, 3), np.uint8), ValueError, r"\[0, 3, 3\]"),
        (Image.new("F", (2, 2)), ValueError, "Scale them"),
        ("https://pictures.example/scene.png", ValueError, "not fetched"),
        (3.5, TypeError, "numpy array"),
        (None, TypeError, "numpy array"),
    ],
)
def test_what_is_no_image_is_refused_with_what_would_be_one(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_image(given)
