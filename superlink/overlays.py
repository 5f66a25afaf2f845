"""An image with what was found drawn over it, as a file. The gateway and the tools for agents make it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from superlink.detections import Box, Detection
from superlink.drawing import annotate
from superlink.errors import invalid_argument
from superlink.image_header import DAMAGED
from superlink.images import open_upright

# Models see no more of a picture, and people who want more have the coordinates.
LONGEST_OVERLAY_SIDE = 1568
# Media types of overlays, by the names that Pillow has for them.
MEDIA_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


@dataclass(frozen=True)
class Overlay:
    """The file, and what it cannot say."""

    content: bytes
    # Which number stands for which phrase, for phrases that no font here can write; else empty.
    legend: Mapping[int, str]


def draw_over(content: bytes, detections: Sequence[Detection], media_type: str = "image/png") -> Overlay:
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
    annotation.image.save(buffer, format=MEDIA_TYPES[media_type])
    return Overlay(buffer.getvalue(), annotation.legend)


def _scaled(detection: Detection, across: float, down: float) -> Detection:
    """``detection`` on the same image in another size. Masks are fitted to the picture that they are drawn on."""
    box = detection.box
    keypoints = [point.model_copy(update={"x": point.x * across, "y": point.y * down}) for point in detection.keypoints]
    corners = Box(x1=box.x1 * across, y1=box.y1 * down, x2=box.x2 * across, y2=box.y2 * down)
    return detection.model_copy(update={"box": corners, "keypoints": tuple(keypoints)})
