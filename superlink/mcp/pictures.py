"""Images in and out: as agents give them, and what was found drawn over them."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from superlink.data_urls import base64_of, decode_base64
from superlink.detections import Box, Detection
from superlink.drawing import annotate
from superlink.errors import invalid_argument
from superlink.image_header import DAMAGED
from superlink.images import media_type, open_upright

# Models see no more of a picture; larger ones only fill their context.
LONGEST_OVERLAY_SIDE = 1568
# By so many bytes image files are known.
_HEAD = 12
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True)
class Overlay:
    """An image with what was found drawn over it."""

    # PNG file bytes in base64.
    png: str
    # Which number stands for which phrase, for phrases that no font here can write; else empty.
    legend: str


def inline_image(given: str) -> bytes:
    """The file bytes of an image that came as a data URL or in base64.

    Raises SuperlinkError ``invalid_data_url``, ``remote_image_refused`` for addresses, and ``image_missing``.
    """
    if is_base64_image(given):
        return decode_base64("".join(given.split()))
    if is_address(given):
        return decode_base64(base64_of(given))
    raise invalid_argument(
        "image_missing",
        "An image is a data URL (data:image/png;base64,…) or the base64 of a JPEG, PNG or WebP file. Paths are of no "
        "use here: this server does not see your files.",
    )


def local_image(given: str) -> bytes:
    """The bytes of an image file on this machine, by its path.

    Nothing but images is read, whatever a model asks for. Raises SuperlinkError ``image_missing`` and
    ``unsupported_image``.
    """
    path = Path(os.path.expanduser(given))
    try:
        if not path.is_file():
            raise invalid_argument(
                "image_missing",
                f"There is no file {given!r} on the machine that `superlink mcp` runs on. Give an absolute path, a "
                "data URL or base64.",
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if not _is_image(head):
                raise invalid_argument("unsupported_image", f"{given!r} is not a JPEG, PNG or WebP file.")
            return head + file.read()
    except OSError as error:
        raise invalid_argument("image_missing", f"{given!r} cannot be read: {error.strerror}.") from error


def is_address(given: str) -> bool:
    """Whether a text is an address of some kind, rather than a path; one letter and a colon are a drive."""
    return _ADDRESS.match(given) is not None


def is_base64_image(given: str) -> bool:
    """Whether a text is the base64 of an image file; judged by its beginning, which no path has."""
    try:
        return _is_image(base64.b64decode(given[: _HEAD // 3 * 4], validate=True))
    except ValueError:
        return False


def draw_over(content: bytes, detections: Sequence[Detection]) -> Overlay:
    """The image file ``content`` with masks, boxes, skeletons and labels. Takes its time: not for the event loop.

    Raises SuperlinkError ``image_corrupt``.
    """
    try:
        picture = open_upright(content)
    except DAMAGED as error:
        raise invalid_argument("image_corrupt", "The image is damaged and cannot be drawn on.") from error
    width, height = picture.size
    # Before anything is drawn: a photograph of forty megapixels would take seconds, and several copies of it.
    picture.thumbnail((LONGEST_OVERLAY_SIDE, LONGEST_OVERLAY_SIDE))
    fitting = [_scaled(detection, picture.width / width, picture.height / height) for detection in detections]
    annotation = annotate(picture, fitting)
    buffer = io.BytesIO()
    annotation.image.save(buffer, format="PNG")
    legend = ", ".join(f"#{number} is {phrase}" for number, phrase in annotation.legend.items())
    return Overlay(base64.b64encode(buffer.getvalue()).decode("ascii"), legend)


def _scaled(detection: Detection, across: float, down: float) -> Detection:
    """``detection`` on the same image in another size. Masks are fitted to the picture that they are drawn on."""
    box = detection.box
    keypoints = [point.model_copy(update={"x": point.x * across, "y": point.y * down}) for point in detection.keypoints]
    corners = Box(x1=box.x1 * across, y1=box.y1 * down, x2=box.x2 * across, y2=box.y2 * down)
    return detection.model_copy(update={"box": corners, "keypoints": tuple(keypoints)})


def _is_image(head: bytes) -> bool:
    return media_type(head).startswith("image/")
