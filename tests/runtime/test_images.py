import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.runtime.images import ImageExecutor, decode_image, image_digest
from superlink.errors import SuperlinkError
from superlink.image_header import open_image
from superlink.profile import ImageLimits
from superlink.v1 import types_pb2

LIMITS = ImageLimits()
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int, bit_depth: int = 8, colour_type: int = 2) -> bytes:
    """A PNG of any claimed size in well under a kilobyte: its pixel data is cut off."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def refusal(encoded: bytes, limits: ImageLimits = LIMITS) -> SuperlinkError:
    with pytest.raises(SuperlinkError) as caught:
        decode_image(encoded, limits)
    return caught.value


@pytest.mark.parametrize(
    ("format_name", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
def test_accepted_formats_decode_to_rgb(format_name: str, options: dict[str, Any]) -> None:
    picture = Image.new("RGB", (20, 10), (200, 100, 50))
    pixels = decode_image(saved(picture, format_name, **options), LIMITS)
    assert (pixels.shape, pixels.dtype) == ((10, 20, 3), np.uint8)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3
    assert pixels.flags.writeable


@pytest.mark.parametrize("format_name", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(format_name: str) -> None:
    error = refusal(saved(noise(), format_name))
    assert (error.code, error.http_status) == ("unsupported_image", 415)
    assert "JPEG, PNG or WebP" in error.message


@pytest.mark.parametrize(
    "encoded", [b"not an image", bytes(5000), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_image_is_refused(encoded: bytes) -> None:
    assert refusal(encoded).code in {"unsupported_image", "image_corrupt", "image_truncated"}


def test_missing_image_is_named() -> None:
    assert refusal(b"").code == "image_missing"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (100_000, 1), (1, 100_000)])
def test_huge_claims_are_refused_by_the_header_without_memory(size: tuple[int, int]) -> None:
    encoded = png_header(*size)
    assert len(encoded) < 1000
    tracemalloc.start()
    error = refusal(encoded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (error.code, error.http_status) == ("image_too_large", 413)
    assert peak < 1_000_000


def test_twenty_megabytes_of_zeros_are_refused_by_their_size() -> None:
    error = refusal(bytes(20_000_000))
    assert error.code == "image_too_large"
    assert "20,000,000 bytes" in error.message
    assert "10,485,760" in error.message


def test_limits_hold_exactly() -> None:
    encoded = saved(noise(40, 25), "PNG")
    limits = ImageLimits(max_image_pixels=1000, max_image_side=40, max_image_bytes=len(encoded))
    with open_image(encoded, limits) as image:
        assert image.size == (40, 25)
    assert refusal(encoded, ImageLimits(max_image_pixels=999)).code == "image_too_large"
    assert refusal(encoded, ImageLimits(max_image_side=39)).code == "image_too_large"
    assert refusal(encoded, ImageLimits(max_image_bytes=len(encoded) - 1)).code == "image_too_large"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused_and_say_so(format_name: str, kept: float) -> None:
    encoded = saved(noise(), format_name)
    error = refusal(encoded[: int(len(encoded) * kept)])
    assert error.code in {"image_truncated", "image_corrupt"}
    if format_name == "JPEG":
        assert error.code == "image_truncated"


def test_damaged_pixel_data_is_refused() -> None:
    encoded = bytearray(saved(noise(), "PNG"))
    encoded[len(encoded) // 2] ^= 0xFF
    assert refusal(bytes(encoded)).code in {"image_corrupt", "image_truncated"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (24, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    # What a camera stores: the inverse of what the orientation asks a viewer to do.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(saved(stored, "PNG", exif=exif), LIMITS)
    assert np.array_equal(pixels, np.asarray(upright))


def test_cmyk_jpeg_becomes_rgb() -> None:
    pixels = decode_image(saved(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95), LIMITS)
    assert np.abs(pixels.astype(int) - RED).max() <= 12


def test_sixteen_bit_grey_is_scaled_rather_than_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert decode_image(saved(grey, "PNG"), LIMITS)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    pixels = decode_image(saved(Image.new("RGB", (8, 8), WHITE).convert(mode), "PNG"), LIMITS)
    assert pixels.shape == (8, 8, 3)
    assert pixels.min() == 255


def test_transparent_places_become_white() -> None:
    picture = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (*BLUE, 255))
    pixels = decode_image(saved(picture, "PNG"), LIMITS)
    assert pixels[0, 0].tolist() == list(WHITE)
    assert pixels[0, 1].tolist() == list(BLUE)
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    pixels = decode_image(saved(palette, "PNG", transparency=0), LIMITS)
    assert pixels[0].tolist() == [list(WHITE), list(GREEN)]


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_animations_are_refused(format_name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    error = refusal(saved(frames[0], format_name, save_all=True, append_images=frames[1:], duration=100))
    assert error.code == "image_animated"


def test_jpeg_with_several_pictures_counts_as_its_first() -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    encoded = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(decode_image(encoded, LIMITS).astype(int) - RED).max() <= 3


def test_digest_is_checked() -> None:
    image = types_pb2.Image(encoded=b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert image_digest(image) == digest
    assert image_digest(types_pb2.Image(encoded=b"abc", sha256=digest)) == digest
    with pytest.raises(SuperlinkError, match="SHA-256"):
        image_digest(types_pb2.Image(encoded=b"abd", sha256=digest))


async def test_executor_decodes_and_reports_refusals() -> None:
    executor = ImageExecutor()
    pixels = await executor.run(decode_image, saved(noise(), "PNG"), LIMITS)
    assert np.array_equal(pixels, np.asarray(noise()))
    with pytest.raises(SuperlinkError, match="not an image"):
        await executor.run(decode_image, b"zzzz", LIMITS)
    executor.close()


def test_any_bytes_end_in_pixels_or_in_a_named_refusal(mutate: Callable[[bytes], list[bytes]]) -> None:
    codes = {"image_truncated", "image_corrupt", "unsupported_image", "image_too_large", "image_animated"}

    def outcome(encoded: bytes) -> str:
        try:
            decode_image(encoded, ImageLimits(max_image_pixels=1_000_000))
        except SuperlinkError as error:
            return error.code
        return "pixels"

    files = [file for name in ("JPEG", "PNG", "WEBP") for file in mutate(saved(noise(), name))]
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(outcome, files)) <= codes | {"pixels"}


@pytest.fixture
def mutate() -> Callable[[bytes], list[bytes]]:
    random = np.random.default_rng(1)

    def mutations(encoded: bytes) -> list[bytes]:
        results = []
        for _ in range(150):
            changed = bytearray(encoded)
            for position in random.integers(0, min(len(changed), int(random.choice([40, 400, 100_000]))), size=4):
                changed[position] = int(random.integers(256))
            results.append(bytes(changed))
        return results

    return mutations
