"""Visual prompts at the edge: what a client marked on an image, checked against that image."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.images import ReceivedImage
from gateway.results import RunLengthMask
from gateway.schema_extras import exactly_one_of
from superlink.regions import MOST_POINTS, check_region
from superlink.v1 import types_pb2

Place = Annotated[list[float], Field(min_length=2, max_length=2)]


class Stroke(BaseModel):
    """A drawn line."""

    model_config = ConfigDict(extra="forbid")

    points: list[Place] = Field(min_length=1, max_length=MOST_POINTS, description="x and y of every point.")
    width: float | None = Field(
        default=None, gt=0, description="In pixels. Unset: a fiftieth of the image's longer side."
    )


class RegionMark(BaseModel):
    """One mark, in pixels of the upright image: exactly one of the fields."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=exactly_one_of("box", "points", "stroke", "mask"))

    box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = Field(
        default=None, description="x1, y1, x2, y2.", examples=[[10, 20, 60, 50]]
    )
    points: list[Place] | None = Field(
        default=None, min_length=1, max_length=MOST_POINTS, description="Points on the thing: x and y of each."
    )
    stroke: Stroke | None = Field(default=None, description="A line across the thing.")
    mask: RunLengthMask | None = Field(default=None, description="Of the size of the upright image.")

    @model_validator(mode="after")
    def _exactly_one(self) -> RegionMark:
        given = [name for name in ("box", "points", "stroke", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a region is exactly one of box, points, stroke and mask")
        return self


def region_message(mark: RegionMark, image: ReceivedImage) -> types_pb2.Region:
    """``mark`` on ``image``. Raises what ``superlink.regions.check_region`` raises."""
    region = types_pb2.Region()
    if mark.box is not None:
        x1, y1, x2, y2 = mark.box
        region.box.CopyFrom(types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))
    elif mark.points is not None:
        region.points.points.extend(_points(mark.points))
    elif mark.stroke is not None:
        region.stroke.CopyFrom(types_pb2.Stroke(points=_points(mark.stroke.points), width=mark.stroke.width))
    elif mark.mask is not None:
        height, width = mark.mask.size
        counts = mark.mask.counts.encode("ascii", errors="replace")
        region.mask.CopyFrom(types_pb2.Mask(height=height, width=width, counts=counts))
    check_region(region, image.height, image.width)
    return region


def _points(places: list[Place]) -> list[types_pb2.Point]:
    return [types_pb2.Point(x=x, y=y) for x, y in places]
