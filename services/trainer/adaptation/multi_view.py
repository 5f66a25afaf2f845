"""Six cameras of a car as one picture, and places in it: DriveLM's multi-view data (Mini-InternVL, section 3.3).

Every view becomes 896 x 448 with its camera's name, and all stand in three columns and two rows: 2688 x 896, which
dynamic tiling cuts into 6 x 2 tiles of 448. A place is a *c-tag*: ``<c1,CAM_FRONT,[500,250]>`` in a conversation, in
thousandths of the whole picture; ``<c1,CAM_FRONT,800.0,450.0>`` in the data, in pixels of that camera.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
COLUMNS = 3
ROWS = 2
VIEW_WIDTH, VIEW_HEIGHT = 896, 448
CANVAS_SIZE = (COLUMNS * VIEW_WIDTH, ROWS * VIEW_HEIGHT)
# Pixels of nuScenes' cameras.
CAMERA_WIDTH, CAMERA_HEIGHT = 1600, 900

# What the model is told about places before it is asked.
C_TAG_EXPLANATION = (
    "The picture shows six cameras of a car. Objects are written <c,CAM,[cx,cy]>: c is the object's number, CAM the "
    "camera that sees it, and cx and cy are its centre in thousandths of the whole picture's width and height."
)

_LABEL_SIZE = 50
_LABEL_COLOUR = (255, 0, 255)
_NUMBER = r"-?\d+(?:\.\d+)?"
_CAMERA_TAG = re.compile(rf"<(c\d+),\s*({'|'.join(CAMERAS)}),\s*({_NUMBER}),\s*({_NUMBER})>")
_CANVAS_TAG = re.compile(rf"<(c\d+),\s*({'|'.join(CAMERAS)}),\s*\[\s*({_NUMBER}),\s*({_NUMBER})\s*\]>")


def stitch(views: Mapping[str, Image.Image]) -> Image.Image:
    """One 2688 x 896 RGB picture of all six ``views`` by camera name. Raises ValueError naming what is missing."""
    missing = [camera for camera in CAMERAS if camera not in views]
    if missing:
        raise ValueError(f"No view of {', '.join(missing)}.")
    canvas = Image.new("RGB", CANVAS_SIZE)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LABEL_SIZE)
    for camera in CAMERAS:
        column, row = _place(camera)
        corner = (column * VIEW_WIDTH, row * VIEW_HEIGHT)
        canvas.paste(views[camera].convert("RGB").resize((VIEW_WIDTH, VIEW_HEIGHT), Image.Resampling.BICUBIC), corner)
        # Pillow's own font has one weight; the stroke stands in for the bold of the published pictures.
        draw.text(corner, camera, fill=_LABEL_COLOUR, font=font, stroke_width=1, stroke_fill=_LABEL_COLOUR)
    return canvas


def to_canvas(camera: str, x: float, y: float) -> tuple[int, int]:
    """A place in pixels of a camera, in thousandths of the picture."""
    column, row = _place(camera)
    canvas_x = column * VIEW_WIDTH + x / CAMERA_WIDTH * VIEW_WIDTH
    canvas_y = row * VIEW_HEIGHT + y / CAMERA_HEIGHT * VIEW_HEIGHT
    return round(canvas_x / CANVAS_SIZE[0] * 1000), round(canvas_y / CANVAS_SIZE[1] * 1000)


def to_camera(camera: str, x: float, y: float) -> tuple[float, float]:
    """A place in thousandths of the picture, in pixels of ``camera`` to one decimal, moved into its view."""
    column, row = _place(camera)
    camera_x = (x / 1000 * CANVAS_SIZE[0] - column * VIEW_WIDTH) / VIEW_WIDTH * CAMERA_WIDTH
    camera_y = (y / 1000 * CANVAS_SIZE[1] - row * VIEW_HEIGHT) / VIEW_HEIGHT * CAMERA_HEIGHT
    return round(min(max(0.0, camera_x), CAMERA_WIDTH), 1), round(min(max(0.0, camera_y), CAMERA_HEIGHT), 1)


def c_tags_to_canvas(text: str) -> str:
    """``text`` with every c-tag as a conversation has it."""

    def rewritten(found: re.Match[str]) -> str:
        x, y = to_canvas(found[2], float(found[3]), float(found[4]))
        return f"<{found[1]},{found[2]},[{x},{y}]>"

    return _CAMERA_TAG.sub(rewritten, text)


def c_tags_to_camera(text: str) -> str:
    """``text`` with every c-tag as the data and the leaderboard have it."""

    def rewritten(found: re.Match[str]) -> str:
        x, y = to_camera(found[2], float(found[3]), float(found[4]))
        return f"<{found[1]},{found[2]},{x},{y}>"

    return _CANVAS_TAG.sub(rewritten, text)


def _place(camera: str) -> tuple[int, int]:
    """Column and row of a camera. Raises ValueError for an unknown one."""
    if camera not in CAMERAS:
        raise ValueError(f"There is no camera {camera!r}. There are {', '.join(CAMERAS)}.")
    row, column = divmod(CAMERAS.index(camera), COLUMNS)
    return column, row
