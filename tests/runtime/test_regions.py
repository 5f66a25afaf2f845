from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from services.runtime.regions import POINTS, pad_regions, region_mask, region_points
from superlink.errors import SuperlinkError
from superlink.v1 import types_pb2

HEIGHT, WIDTH = 60, 100


def points(*places: tuple[float, float]) -> types_pb2.Points:
    return types_pb2.Points(points=[types_pb2.Point(x=x, y=y) for x, y in places])


def box(x1: float, y1: float, x2: float, y2: float) -> types_pb2.Region:
    return types_pb2.Region(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))


def stroke(*places: tuple[float, float], **width: float) -> types_pb2.Region:
    return types_pb2.Region(stroke=types_pb2.Stroke(points=points(*places).points, **width))


def test_every_kind_of_mark_covers_what_was_drawn() -> None:
    boxed = region_mask(box(10, 20, 30, 25), HEIGHT, WIDTH)
    dotted = region_mask(types_pb2.Region(points=points((5, 5), (WIDTH, HEIGHT))), HEIGHT, WIDTH)
    drawn = region_mask(stroke((10.5, 10.5), (90.5, 10.5), width=4), HEIGHT, WIDTH)
    # Column-major runs: two unset pixels, three set ones, the rest unset.
    coded = region_mask(types_pb2.Region(mask=types_pb2.Mask(height=3, width=2, counts=b"231")), 3, 2)

    assert boxed[20:25, 10:30].all()
    assert boxed.sum() == 100
    assert dotted[5, 5]
    assert dotted[HEIGHT - 1, WIDTH - 1]
    assert dotted.sum() < 40
    assert drawn[10, 10:90].all()
    assert drawn.any(axis=1).sum() <= 6
    assert coded.tolist() == [[False, True], [False, True], [True, False]]


@pytest.mark.parametrize(
    ("region", "code"),
    [
        (types_pb2.Region(), "empty_region"),
        (types_pb2.Region(points=types_pb2.Points()), "empty_region"),
        (box(10, 10, 10, 20), "empty_region"),
        (box(0, 0, 101, 20), "region_outside_image"),
        (types_pb2.Region(points=points((-1, 5))), "region_outside_image"),
        (types_pb2.Region(points=points((math.nan, 5))), "region_outside_image"),
        (types_pb2.Region(points=points(*[(1, 1)] * 2000)), "invalid_region"),
        (stroke((5, 5), width=0), "invalid_region"),
        (types_pb2.Region(mask=types_pb2.Mask(height=3, width=2, counts=b"231")), "invalid_region"),
        (types_pb2.Region(mask=types_pb2.Mask(height=HEIGHT, width=WIDTH, counts=b"231")), "invalid_region"),
    ],
)
def test_marks_that_mean_no_pixels_are_refused(region: types_pb2.Region, code: str) -> None:
    with pytest.raises(SuperlinkError) as refused:
        region_mask(region, HEIGHT, WIDTH)

    assert refused.value.code == code


def test_the_smallest_region_is_looked_at_and_the_largest_everywhere() -> None:
    pixel, whole = np.zeros((HEIGHT, WIDTH), dtype=bool), np.ones((HEIGHT, WIDTH), dtype=bool)
    pixel[7, 9] = True

    small, large = region_points(pixel), region_points(whole)

    assert int((small.weights > 0).sum()) == 1
    assert small.places[small.weights > 0].tolist() == [[9.5, 7.5]]
    assert int((large.weights > 0).sum()) == POINTS
    assert large.places.min() < 6
    assert (large.places.amax(dim=0) > torch.tensor([WIDTH, HEIGHT]) * 0.95).all()


def test_a_region_scaled_with_its_image_is_looked_at_in_the_same_places() -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask[(rows - 30) ** 2 + (columns - 40) ** 2 < 400] = True

    plain, large = region_points(mask), region_points(mask.repeat(3, axis=0).repeat(3, axis=1))

    for first, second in zip(_moments(plain.scaled(WIDTH)), _moments(large.scaled(3 * WIDTH)), strict=True):
        torch.testing.assert_close(first, second, atol=2e-3, rtol=0)


def _moments(looked: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square of the places."""
    weights, places = looked.weights[:, None], looked.places  # type: ignore[attr-defined]
    return (places * weights).sum(dim=0), (places.square() * weights).sum(dim=0)


def test_requests_with_few_regions_are_padded() -> None:
    mask = np.ones((4, 4), dtype=bool)
    looked = region_points(mask)

    padded = pad_regions([[(2, looked)], [], [(0, looked), (1, looked)]])

    assert padded.groups.tolist() == [[2, -1], [-1, -1], [0, 1]]
    torch.testing.assert_close(padded.weights.sum(dim=-1), torch.tensor([[1.0, 0], [0, 0], [1, 1]]))
    assert padded.owners(3)[0].tolist() == [[0, 0, 1], [0, 0, 0]]
