"""Visual prompts as they cross the wire: their limits, and whether they mean any pixel of their image."""

from __future__ import annotations

from collections.abc import Iterable

from superlink.errors import SuperlinkError, invalid_argument
from superlink.run_length import decode_mask
from superlink.v1 import types_pb2

# Of a conversation, and of a request to a tool.
MOST_REGIONS = 16
# Of one region.
MOST_POINTS = 1024


def check_region(region: types_pb2.Region, height: int, width: int) -> None:
    """Check a mark on an upright image of ``height`` and ``width`` pixels.

    Raises SuperlinkError (INVALID_ARGUMENT) with code ``empty_region``, ``region_outside_image`` or
    ``invalid_region``.
    """
    match region.WhichOneof("mark"):
        case "box":
            box = region.box
            _check_inside([(box.x1, box.y1), (box.x2, box.y2)], height, width)
            if box.x1 >= box.x2 or box.y1 >= box.y2:
                raise _empty("A box needs x1 < x2 and y1 < y2.")
        case "points":
            _check_points(region.points.points, height, width)
        case "stroke":
            _check_points(region.stroke.points, height, width)
            thickness = region.stroke.width
            if region.stroke.HasField("width") and not 0 < thickness <= max(height, width):
                raise invalid_argument(
                    "invalid_region",
                    f"A stroke's width is {thickness:g}; it must lie above 0 and within the image's longer side.",
                )
        case "mask":
            _check_mask(region.mask, height, width)
        case _:
            raise _empty("It needs a box, points, a stroke or a mask.")


def _check_points(points: Iterable[types_pb2.Point], height: int, width: int) -> None:
    places = [(point.x, point.y) for point in points]
    if not places:
        raise _empty("It has no points.")
    if len(places) > MOST_POINTS:
        raise invalid_argument(
            "invalid_region", f"A region has {len(places)} points; at most {MOST_POINTS} are allowed."
        )
    _check_inside(places, height, width)


def _check_inside(places: Iterable[tuple[float, float]], height: int, width: int) -> None:
    for x, y in places:
        # Written so that NaN is outside, too.
        if not (0 <= x <= width and 0 <= y <= height):
            raise invalid_argument(
                "region_outside_image",
                f"A region's point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels. Coordinates are "
                "pixels of the upright image.",
            )


def _check_mask(mask: types_pb2.Mask, height: int, width: int) -> None:
    if (mask.height, mask.width) != (height, width):
        raise invalid_argument(
            "invalid_region",
            f"A region's mask is of {mask.width} x {mask.height} pixels; the upright image has {width} x {height}.",
        )
    try:
        marked = decode_mask((height, width), mask.counts.decode("ascii")).getbbox()
    except ValueError as error:
        raise invalid_argument("invalid_region", f"A region's mask cannot be read: {error}") from error
    if marked is None:
        raise _empty("The mask has no pixel.")


def _empty(reason: str) -> SuperlinkError:
    return invalid_argument("empty_region", f"A region marks nothing. {reason}")
