"""What every process accepts as an image, decided on the file's header: nothing is decoded here.

The gateway refuses with it before anything is sent on; workers hold to it as well, for whoever calls them directly.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP")

# EXIF tag of the orientation.
ORIENTATION_TAG = 0x0112
# Orientations that lie on their side: the upright image has width and height exchanged.
_SIDEWAYS = frozenset({5, 6, 7, 8})

# What Pillow raises for damaged files, depending on where the damage is.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, ArithmeticError)


def check_image_size(encoded: bytes, limits: ImageLimits) -> None:
    """Raise SuperlinkError ``image_missing`` or ``image_too_large`` by the number of bytes alone."""
    if not encoded:
        raise invalid_argument("image_missing", "The request has no image, or an empty file. Send JPEG, PNG or WebP.")
    if len(encoded) > limits.max_image_bytes:
        raise image_too_large(f"is {len(encoded):,} bytes long; the limit is {limits.max_image_bytes:,}")


def open_image(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """An image whose header keeps to ``limits`` and whose pixels are still encoded; close it after use.

    Raises SuperlinkError (INVALID_ARGUMENT) with code ``image_missing``, ``image_too_large``, ``unsupported_image``,
    ``image_animated`` or ``image_corrupt``.
    """
    check_image_size(encoded, limits)
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise image_too_large(f"has far more than the {limits.max_image_pixels:,} pixels that are allowed") from error
    except UnidentifiedImageError as error:
        raise invalid_argument(
            "unsupported_image", "These bytes are not an image that can be read. Send a JPEG, PNG or WebP file."
        ) from error
    except DAMAGED as error:
        raise invalid_argument("image_corrupt", "The header of the image file is damaged.") from error
    width, height = image.size
    if max(width, height) > limits.max_image_side:
        raise image_too_large(f"is {width} x {height} pixels; a side may have at most {limits.max_image_side:,}")
    if width * height > limits.max_image_pixels:
        raise image_too_large(f"is {width} x {height} pixels; the limit is {limits.max_image_pixels:,} in all")
    if image.format in {"PNG", "WEBP"} and getattr(image, "n_frames", 1) > 1:
        raise invalid_argument("image_animated", "Animated images are not supported. Send one frame as a still image.")
    return image


def image_too_large(what: str) -> SuperlinkError:
    """The image exceeds a limit; ``what`` says which: "is 20,000,000 bytes long"."""
    return invalid_argument("image_too_large", f"The image {what}. Send a smaller one.")


def upright_size(encoded: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Width and height of an image file when its EXIF orientation is applied. Raises what ``open_image`` raises."""
    with open_image(encoded, limits) as image:
        width, height = image.size
        return (height, width) if _is_sideways(image) else (width, height)


def _is_sideways(image: Image.Image) -> bool:
    # Not image.getexif(): for some PNG files it decodes the pixels to find the chunk.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(ORIENTATION_TAG) in _SIDEWAYS
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError):
        # Damaged EXIF data says nothing about the pixels; the workers treat it the same way.
        return False
