"""From the bytes of a JPEG, PNG or WebP file to upright RGB pixels, with every limit checked before decoding.

Rules, the same in every worker:

- Bytes, sides and pixels are checked on the file's header (``superlink.image_header``); a 0.5 MB PNG can unfold to a
  gigabyte.
- The EXIF orientation is applied, so that boxes are in the coordinates that a viewer shows.
- Transparent places become white. 16-bit greyscale is scaled to 8 bits, CMYK converted.
- Animated PNG and WebP are refused. A JPEG with several pictures (phones store a depth map or a second exposure that
  way) counts as its first one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from services.runtime.model_thread import limit_torch_threads
from superlink.errors import SuperlinkError, invalid_argument
from superlink.image_header import DAMAGED, ORIENTATION_TAG, open_image
from superlink.profile import ImageLimits
from superlink.v1 import types_pb2

Value = TypeVar("Value")


def image_digest(image: types_pb2.Image) -> str:
    """The SHA-256 of the file, as lower-case hex.

    It is computed here even if the sender gave one: features are shared between requests under this key, and a wrong
    one would answer a request from another image. Raises SuperlinkError when the sender's digest differs.
    """
    digest = hashlib.sha256(image.encoded).hexdigest()
    if image.sha256 and image.sha256 != digest:
        raise invalid_argument(
            "image_digest_mismatch",
            "The image's SHA-256 does not match its bytes; send the digest of `encoded` or none.",
        )
    return digest


def decode_image(encoded: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
    """Upright RGB pixels ``[height, width, 3]`` of an image file.

    Raises SuperlinkError (INVALID_ARGUMENT) with code ``image_missing``, ``image_too_large``, ``unsupported_image``,
    ``image_animated``, ``image_truncated`` or ``image_corrupt``.
    """
    with open_image(encoded, limits) as image:
        try:
            image.load()
        except DAMAGED as error:
            if "truncated" in str(error).lower() or isinstance(error, EOFError):
                raise invalid_argument(
                    "image_truncated", "The image file ends before its last pixel. Was the upload cut off?"
                ) from error
            raise invalid_argument("image_corrupt", "The image file is damaged and cannot be decoded.") from error
        return np.array(_to_rgb(_upright(image)), dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, IndexError, KeyError):
        # Damaged EXIF data says nothing about the pixels.
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit greyscale; Pillow's own conversion would clip everything above 255 to white.
        grey = (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


class ImageExecutor:
    """A few threads that decode and prepare images, so that the event loop never waits for pixels."""

    def __init__(self, workers: int = 2) -> None:
        self._executor = ThreadPoolExecutor(
            max_workers=workers, thread_name_prefix="images", initializer=limit_torch_threads, initargs=(1,)
        )
        # What waits here has not met the batcher's bounded queue yet, so it is bounded too.
        self._free = asyncio.Semaphore(workers)

    async def run(self, function: Callable[..., Value], *args: object) -> Value:
        """Call ``function`` in one of the threads. A cancelled caller that has not begun never takes a thread."""
        async with self._free:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
            except MemoryError as error:
                raise SuperlinkError(
                    "out_of_memory",
                    "There is not enough memory for this image now.",
                    status=grpc.StatusCode.RESOURCE_EXHAUSTED,
                ) from error

    def close(self) -> None:
        """Wait for what is running; what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)
