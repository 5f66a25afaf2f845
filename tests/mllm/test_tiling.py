"""The published matching rule of dynamic tiling, cell by cell, and what tiles look like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from services.mllm.tiling import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    choose_grid,
    cut_tiles,
    frame_indices,
    share_tiles,
    tile_budgets,
)

pytestmark = pytest.mark.internvl

# width, height, then (columns, rows, tiles with thumbnail, image tokens at 256 a tile) for at most 6, 12 and 40 tiles.
VECTORS = [
    (224, 224, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
    (448, 448, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
    (500, 500, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
    (633, 633, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
    (634, 634, (2, 2, 5, 1280), (2, 2, 5, 1280), (2, 2, 5, 1280)),
    (640, 640, (2, 2, 5, 1280), (2, 2, 5, 1280), (2, 2, 5, 1280)),
    (896, 896, (2, 2, 5, 1280), (2, 2, 5, 1280), (2, 2, 5, 1280)),
    (950, 950, (2, 2, 5, 1280), (2, 2, 5, 1280), (2, 2, 5, 1280)),
    (951, 951, (2, 2, 5, 1280), (3, 3, 10, 2560), (3, 3, 10, 2560)),
    (1024, 1024, (2, 2, 5, 1280), (3, 3, 10, 2560), (3, 3, 10, 2560)),
    (2048, 2048, (2, 2, 5, 1280), (3, 3, 10, 2560), (6, 6, 37, 9472)),
    (3000, 3000, (2, 2, 5, 1280), (3, 3, 10, 2560), (6, 6, 37, 9472)),
    (40, 30, (3, 2, 7, 1792), (4, 3, 13, 3328), (4, 3, 13, 3328)),
    (640, 480, (3, 2, 7, 1792), (4, 3, 13, 3328), (4, 3, 13, 3328)),
    (480, 640, (2, 3, 7, 1792), (3, 4, 13, 3328), (3, 4, 13, 3328)),
    (1024, 768, (3, 2, 7, 1792), (4, 3, 13, 3328), (4, 3, 13, 3328)),
    (3024, 4032, (2, 3, 7, 1792), (3, 4, 13, 3328), (3, 4, 13, 3328)),
    (800, 1300, (2, 3, 7, 1792), (2, 3, 7, 1792), (5, 8, 41, 10496)),
    (1280, 720, (2, 1, 3, 768), (4, 2, 9, 2304), (7, 4, 29, 7424)),
    (1920, 1080, (2, 1, 3, 768), (4, 2, 9, 2304), (7, 4, 29, 7424)),
    (1080, 1920, (1, 2, 3, 768), (2, 4, 9, 2304), (4, 7, 29, 7424)),
    (3840, 2160, (2, 1, 3, 768), (4, 2, 9, 2304), (7, 4, 29, 7424)),
    (4096, 2160, (2, 1, 3, 768), (4, 2, 9, 2304), (8, 4, 33, 8448)),
    (896, 448, (2, 1, 3, 768), (2, 1, 3, 768), (2, 1, 3, 768)),
    (1344, 896, (3, 2, 7, 1792), (3, 2, 7, 1792), (3, 2, 7, 1792)),
    (2688, 896, (3, 1, 4, 1024), (6, 2, 13, 3328), (6, 2, 13, 3328)),
    (1654, 2339, (2, 3, 7, 1792), (2, 3, 7, 1792), (5, 7, 36, 9216)),
    (2480, 3508, (2, 3, 7, 1792), (2, 3, 7, 1792), (5, 7, 36, 9216)),
    (1700, 2200, (2, 3, 7, 1792), (3, 4, 13, 3328), (3, 4, 13, 3328)),
    (1000, 300, (3, 1, 4, 1024), (3, 1, 4, 1024), (10, 3, 31, 7936)),
    (300, 1000, (1, 3, 4, 1024), (1, 3, 4, 1024), (3, 10, 31, 7936)),
    (1500, 500, (3, 1, 4, 1024), (3, 1, 4, 1024), (3, 1, 4, 1024)),
    (2000, 100, (6, 1, 7, 1792), (12, 1, 13, 3328), (20, 1, 21, 5376)),
    (100, 2000, (1, 6, 7, 1792), (1, 12, 13, 3328), (1, 20, 21, 5376)),
    (560, 448, (1, 1, 1, 256), (4, 3, 13, 3328), (5, 4, 21, 5376)),
    (427, 640, (2, 3, 7, 1792), (2, 3, 7, 1792), (2, 3, 7, 1792)),
    (1280, 960, (3, 2, 7, 1792), (4, 3, 13, 3328), (4, 3, 13, 3328)),
    (1600, 900, (2, 1, 3, 768), (4, 2, 9, 2304), (7, 4, 29, 7424)),
    (4000, 1000, (4, 1, 5, 1280), (4, 1, 5, 1280), (12, 3, 37, 9472)),
    (1600, 1200, (3, 2, 7, 1792), (4, 3, 13, 3328), (4, 3, 13, 3328)),
    (512, 512, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
    (336, 336, (1, 1, 1, 256), (1, 1, 1, 256), (1, 1, 1, 256)),
]


@pytest.mark.parametrize(("column", "max_tiles"), [(2, 6), (3, 12), (4, 40)])
def test_every_published_grid_is_chosen(column: int, max_tiles: int) -> None:
    for vector in VECTORS:
        columns, rows, tiles, tokens = vector[column]
        grid = choose_grid(vector[0], vector[1], max_tiles, 448)
        assert (grid.columns, grid.rows, grid.tiles, grid.tiles * 256) == (columns, rows, tiles, tokens), vector[:2]


@pytest.mark.parametrize(
    ("side", "cells"),
    [(633, 1), (634, 4), (950, 4), (951, 9), (1267, 9), (1268, 16), (1583, 16), (1584, 25), (1900, 25), (1901, 36)],
)
def test_a_square_takes_more_tiles_once_it_fills_half_of_them(side: int, cells: int) -> None:
    grid = choose_grid(side, side, 40, 448)
    assert grid.columns * grid.rows == cells


def test_one_tile_means_no_thumbnail() -> None:
    tiles = cut_tiles(Image.new("RGB", (640, 480)), max_tiles=1, tile_size=160)
    assert tiles.shape == (1, 3, 160, 160)


def test_tiles_run_row_by_row_and_the_thumbnail_is_last() -> None:
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            pixels[row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32] = 40 * (row * 3 + column)
    tiles = cut_tiles(Image.fromarray(pixels), max_tiles=6, tile_size=32)
    assert tiles.shape == (7, 3, 32, 32)
    centres = tiles[:6, 0, 16, 16] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    torch.testing.assert_close(centres * 255, torch.arange(6) * 40.0, atol=0.5, rtol=0)
    assert tiles[6].std() > tiles[0].std()


def test_pixels_are_normalised_by_imagenet() -> None:
    tiles = cut_tiles(Image.new("RGB", (32, 32), (255, 0, 128)), max_tiles=1, tile_size=32)
    colour = torch.tensor([255.0, 0.0, 128.0]) / 255
    expected = (colour - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(tiles[0, :, 5, 7], expected)


def test_images_share_one_budget_of_tiles() -> None:
    assert [share_tiles(12, images) for images in (1, 2, 5, 40)] == [12, 6, 2, 1]


@pytest.mark.parametrize(("max_tiles", "grids", "ratios"), [(6, 14, 13), (12, 35, 29), (24, 84, 67), (40, 158, 123)])
def test_every_grid_of_an_area_can_be_chosen(max_tiles: int, grids: int, ratios: int) -> None:
    shapes = [(columns, rows) for columns in range(1, 41) for rows in range(1, 41) if columns * rows <= max_tiles]
    chosen = {choose_grid(columns * 4480, rows * 4480, max_tiles, 448) for columns, rows in shapes}
    assert len(shapes) == grids
    # Of grids of one ratio a picture that fills them takes the largest.
    assert len(chosen) == ratios == len({columns / rows for columns, rows in shapes})


@pytest.mark.parametrize("max_tiles", [6, 12, 40])
def test_transformers_counts_the_same_tiles(max_tiles: int) -> None:
    processor = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    for width, height, *_ in VECTORS:
        theirs = processor.get_number_of_image_patches(height, width, {"min_patches": 1, "max_patches": max_tiles})
        assert choose_grid(width, height, max_tiles, 448).tiles == theirs, (width, height)


def test_a_4k_image_is_seen_in_its_own_resolution() -> None:
    pixels = np.zeros((2160, 3840, 3), dtype=np.uint8)
    # A white square of ten pixels: in the thumbnail it is little more than one.
    pixels[1000:1010, 2000:2010] = 255
    tiles = cut_tiles(Image.fromarray(pixels), max_tiles=40, tile_size=448)
    assert tiles.shape == (29, 3, 448, 448)
    bright = (tiles[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0] > 0.5).flatten(1).sum(dim=1)
    # Tile column 3 of 7, row 1 of 4.
    assert int(bright[:-1].argmax()) == 1 * 7 + 3
    assert int(bright[:-1].max()) > 50
    assert int(bright[-1]) < 5


def test_the_newest_images_share_the_budget_and_older_ones_keep_one_tile() -> None:
    assert tile_budgets(12, []) == []
    assert tile_budgets(12, [0]) == [12]
    assert tile_budgets(12, [0, 0, 0]) == [4, 4, 4]
    # The newest turn that shows images, whatever was said since.
    assert tile_budgets(12, [0, 0, 2, 4, 4]) == [1, 1, 1, 6, 6]
    assert tile_budgets(2, [1, 1, 1, 1, 1]) == [1, 1, 1, 1, 1]


def test_frames_are_the_middles_of_equal_stretches() -> None:
    assert frame_indices(100, 8) == [6, 18, 31, 43, 56, 68, 80, 93]
    assert frame_indices(3, 8) == [0, 1, 2]
    assert frame_indices(1, 1) == [0]
    for frames in range(1, 200):
        chosen = frame_indices(frames, 16)
        assert chosen == sorted(set(chosen))
        assert 0 <= chosen[0] <= chosen[-1] < frames
    with pytest.raises(ValueError, match="8 of 0 frames"):
        frame_indices(0, 8)


def test_the_frames_are_the_authors_and_not_those_of_transformers() -> None:
    # The library takes every 12.5th from 6.25 on. Published: one of eight frames differs.
    theirs = [int(100 / 16 + place * 100 / 8) for place in range(8)]
    assert theirs == [6, 18, 31, 43, 56, 68, 81, 93]
    assert [ours for ours, other in zip(frame_indices(100, 8), theirs, strict=True) if ours != other] == [80]


def grid_by_any_order(width: int, height: int, shapes: list[tuple[int, int]], tile_size: int) -> tuple[int, int]:
    """The published rule, walking ``shapes`` as they come."""
    ratio, best, best_difference = width / height, (1, 1), float("inf")
    for columns, rows in shapes:
        difference = abs(ratio - columns / rows)
        fills_half = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_half):
            best, best_difference = (columns, rows), difference
    return best


@pytest.mark.parametrize("max_tiles", [4, 6, 12, 24, 40])
def test_the_order_of_grids_of_one_area_never_matters(max_tiles: int) -> None:
    shapes = [(columns, rows) for columns in range(1, 41) for rows in range(1, 41) if columns * rows <= max_tiles]
    # Rows instead of columns first within an area.
    other = sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
    # Small tiles, so that these sizes lie on both sides of every threshold.
    for width in range(3, 260, 11):
        for height in range(3, 260, 7):
            grid = choose_grid(width, height, max_tiles, 32)
            assert (grid.columns, grid.rows) == grid_by_any_order(width, height, other, 32), (width, height)


def test_neighbouring_ratios_never_share_an_area() -> None:
    for max_tiles in range(1, 41):
        areas: dict[float, set[int]] = {}
        for columns in range(1, max_tiles + 1):
            for rows in range(1, max_tiles // columns + 1):
                areas.setdefault(columns / rows, set()).add(columns * rows)
        by_ratio = [areas[ratio] for ratio in sorted(areas)]
        assert all(not first & second for first, second in pairwise(by_ratio)), max_tiles


def test_a_picture_between_two_ratios_takes_the_larger_grid_once_it_fills_half_of_it() -> None:
    # 1.25 lies as near to 1 as to 1.5.
    assert [choose_grid(560, 448, 6, 448).tiles, choose_grid(1000, 800, 6, 448).tiles] == [1, 7]


@pytest.mark.parametrize(("max_tiles", "cells"), [(1, 1), (4, 2), (12, 8), (40, 28)])
def test_pictures_of_4k_have_room_in_every_budget(max_tiles: int, cells: int) -> None:
    grid = choose_grid(3840, 2160, max_tiles, 448)
    assert grid.columns * grid.rows == cells
