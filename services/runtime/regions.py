"""Visual prompts: what somebody marked on an image, as a mask, and as the points at which a network looks at it.

Every service and the trainer rasterise marks here, so that a mark means the same pixels to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from superlink.regions import check_region
from superlink.run_length import decode_mask
from superlink.v1 import types_pb2

# Of the image's longer side: the radius of the disc that stands for a point, and the width of a stroke that names none.
_POINT_RADIUS = 1 / 64
_STROKE_WIDTH = 1 / 50
# A region is looked at in the cells of a grid over its own bounding box: a small one as closely as a large one.
_GRID = 12
POINTS = _GRID * _GRID


@dataclass(frozen=True)
class GroupRegions:
    """The regions of a batch of requests, padded to the request with the most."""

    # [batch, regions, points, 2] float32: x and y in the frame that the network sees, 0..1.
    places: Tensor
    # [batch, regions, points] float32: a region's weights sum to 1; those of padding are 0.
    weights: Tensor
    # [batch, regions] int64: the group that each region belongs to; -1 for padding.
    groups: Tensor

    def to(self, device: torch.device) -> GroupRegions:
        """The same regions on ``device``."""
        return GroupRegions(self.places.to(device), self.weights.to(device), self.groups.to(device))

    def owners(self, groups: int) -> Tensor:
        """``[batch, regions, groups]`` float32: 1 where a region belongs to a group."""
        return (self.groups[..., None] == torch.arange(groups, device=self.groups.device)).float()


@dataclass(frozen=True)
class RegionPoints:
    """Where to look at one region."""

    # [points, 2] float32: x and y in pixels of the upright image.
    places: Tensor
    # [points] float32, sum 1: the share of the region that each point stands for; 0 for unused points.
    weights: Tensor

    def scaled(self, side: float) -> RegionPoints:
        """The same points in units of ``side`` pixels."""
        return RegionPoints(self.places / side, self.weights)


def region_mask(region: types_pb2.Region, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels ``[height, width]`` bool of the upright image that ``region`` marks; one at least.

    Raises what ``superlink.regions.check_region`` raises.
    """
    check_region(region, height, width)
    if region.HasField("mask"):
        return np.asarray(decode_mask((height, width), region.mask.counts.decode("ascii"))) > 0
    if region.HasField("box"):
        box = region.box
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[math.floor(box.y1) : math.ceil(box.y2), math.floor(box.x1) : math.ceil(box.x2)] = True
        return mask
    if region.HasField("points"):
        dots = [(point.x, point.y) for point in region.points.points]
        return _drawn(dots, [], _POINT_RADIUS * max(height, width), height, width)
    stroke = region.stroke
    line = [(point.x, point.y) for point in stroke.points]
    thickness = stroke.width if stroke.HasField("width") else _STROKE_WIDTH * max(height, width)
    return _drawn(line, line, thickness / 2, height, width)


def region_points(mask: NDArray[np.bool_]) -> RegionPoints:
    """Where to look at the region ``mask`` ``[height, width]``, which marks one pixel at least.

    The grid lies over the mask's bounding box; each of its cells is looked at in the centre of its marked pixels. The
    same mask always gives the same points, and a mask scaled with its image gives points scaled alike.
    """
    rows, columns = np.nonzero(mask)
    cells = _cell(rows) * _GRID + _cell(columns)
    counts = np.bincount(cells, minlength=POINTS)
    shares = np.maximum(counts, 1)
    centres = [np.bincount(cells, weights=side + 0.5, minlength=POINTS) / shares for side in (columns, rows)]
    return RegionPoints(
        places=torch.from_numpy(np.stack(centres, axis=-1).astype(np.float32)),
        weights=torch.from_numpy((counts / counts.sum()).astype(np.float32)),
    )


def pad_regions(regions: Sequence[Sequence[tuple[int, RegionPoints]]]) -> GroupRegions:
    """Stack the regions of several requests: for each the group it belongs to and where to look.

    Whoever calls has put the places into the network's frame; see ``GroupRegions``.
    """
    most = max(1, *(len(mine) for mine in regions))
    places, weights = torch.zeros(len(regions), most, POINTS, 2), torch.zeros(len(regions), most, POINTS)
    groups = torch.full((len(regions), most), -1)
    for row, mine in enumerate(regions):
        for column, (group, points) in enumerate(mine):
            places[row, column], weights[row, column], groups[row, column] = points.places, points.weights, group
    return GroupRegions(places, weights, groups)


def _cell(coordinates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the grid's rows or columns each coordinate falls into."""
    first, extent = coordinates.min(), coordinates.max() + 1 - coordinates.min()
    cells: NDArray[np.int64] = (2 * (coordinates - first) + 1) * _GRID // (2 * extent)
    return cells


def _drawn(
    dots: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]],
    radius: float,
    height: int,
    width: int,
) -> NDArray[np.bool_]:
    """Discs around ``dots``, joined along ``line``."""
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    for x, y in dots:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
        # A disc smaller than a pixel is one pixel; the image's far edges belong to its last pixels.
        pen.point([min(int(x), width - 1), min(int(y), height - 1)], fill=1)
    if len(line) > 1:
        pen.line(list(line), fill=1, width=max(1, round(2 * radius)))
    return np.array(canvas)
