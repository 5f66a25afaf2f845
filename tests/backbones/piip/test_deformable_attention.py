"""Deformable attention in plain torch: against sums written out, and in cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.backbones.piip.configuration import InteractionConfig
from services.backbones.piip.deformable_attention import DeformableAttention, cell_centres
from services.backbones.piip.sampling import sample_by_bags, sample_by_grid

pytestmark = pytest.mark.backbones

GRID = (5, 7)


def four_corners(values: Tensor, grid: tuple[int, int], places: Tensor, weights: Tensor) -> Tensor:
    """The sum as the paper has it, one point and one corner after the other."""
    batch, queries, heads, points, _ = places.shape
    height, width = grid
    summed = torch.zeros(batch, queries, heads, values.shape[-1])
    for image in range(batch):
        for query in range(queries):
            for head in range(heads):
                for point in range(points):
                    x, y = places[image, query, head, point].tolist()
                    for row in (math.floor(y), math.floor(y) + 1):
                        for column in (math.floor(x), math.floor(x) + 1):
                            if 0 <= row < height and 0 <= column < width:
                                share = (1 - abs(x - column)) * (1 - abs(y - row))
                                cell = values[image, row * width + column, head]
                                summed[image, query, head] += weights[image, query, head, point] * share * cell
    return summed.flatten(2)


@pytest.mark.parametrize("form", [sample_by_grid, sample_by_bags])
def test_both_forms_are_the_bilinear_sum_with_zeros_outside(form: object) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, GRID[0] * GRID[1], 4, 3)
    # Well inside, across the rim and far outside.
    places = torch.randn(2, 9, 4, 3, 2) * 4 + 2.5
    weights = torch.rand(2, 9, 4, 3)

    assert callable(form)
    sampled = form(values, GRID, places, weights)

    torch.testing.assert_close(sampled, four_corners(values, GRID, places, weights), atol=1e-6, rtol=1e-5)


def attention(width: int = 64, heads: int = 16) -> DeformableAttention:
    torch.manual_seed(0)
    return DeformableAttention(width, width, InteractionConfig(heads=heads)).eval()


def test_gradients_and_values_of_training_are_those_of_inference() -> None:
    layer = attention()
    queries, keys = torch.randn(2, 12, 64), torch.randn(2, 35, 64)
    training = layer(queries, (3, 4), keys, GRID)
    with torch.no_grad():
        inference = layer(queries, (3, 4), keys, GRID)
    torch.testing.assert_close(training, inference, atol=1e-5, rtol=1e-5)
    training.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_heads_begin_by_looking_around_in_a_star() -> None:
    four = attention(heads=4).offsets.bias.view(4, 4, 2)
    torch.testing.assert_close(four[:, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6, rtol=0)
    sixteen = attention().offsets.bias.view(16, 4, 2)
    slope = math.tan(math.pi / 8)
    first = torch.tensor([[1, 0], [1, slope], [1, 1], [slope, 1], [0, 1]])
    torch.testing.assert_close(sixteen[:5, 0], first, atol=1e-6, rtol=0)
    for point in range(4):
        torch.testing.assert_close(sixteen[:, point], sixteen[:, 0] * (point + 1))


def test_the_star_survives_the_initialisation_of_a_whole_pyramid() -> None:
    from tests.backbones.piip.small import pyramid

    layer = pyramid().units[0][0].into_larger.attention
    torch.testing.assert_close(layer.offsets.bias, DeformableAttention(64, 64, InteractionConfig(heads=4)).offsets.bias)
    assert not layer.offsets.weight.any()


def test_a_constant_map_gives_its_value_inside_and_less_at_the_border() -> None:
    layer = attention()
    constant = torch.randn(64)
    keys = constant.expand(1, 15 * 15, 64)
    with torch.no_grad():
        seen = layer(torch.randn(1, 15 * 15, 64), (15, 15), keys, (15, 15)).view(15, 15, 64)
        expected = layer.output(layer.value(constant))
    torch.testing.assert_close(seen[7, 7], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen[0, 0], expected, atol=1e-3)


def test_without_offsets_a_query_on_an_equal_grid_sees_its_own_cell() -> None:
    layer = attention()
    with torch.no_grad():
        layer.offsets.bias.zero_()
        keys = torch.randn(2, 35, 64)
        seen = layer(torch.randn(2, 35, 64), GRID, keys, GRID)
        torch.testing.assert_close(seen, layer.output(layer.value(keys)), atol=1e-5, rtol=1e-5)


def test_centres_of_cells_lie_where_they_lie_in_the_picture() -> None:
    coarse_on_fine = cell_centres((2, 2), (4, 6), torch.device("cpu"))
    assert coarse_on_fine.tolist() == [[1.0, 0.5], [4.0, 0.5], [1.0, 2.5], [4.0, 2.5]]


def test_bfloat16_training_samples_in_float32() -> None:
    layer = attention()
    queries, keys = torch.randn(1, 35, 64), torch.randn(1, 35, 64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(queries.bfloat16(), GRID, keys.bfloat16(), GRID)
    assert mixed.dtype == torch.bfloat16
    exact = layer(queries.bfloat16().float(), GRID, keys.bfloat16().float(), GRID)
    torch.testing.assert_close(mixed, exact.bfloat16())
