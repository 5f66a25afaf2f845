"""Windowed attention: cells see their own window and nothing else, whatever the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from services.backbones.piip.configuration import VitBranchConfig
from services.backbones.piip.vit import Attention

pytestmark = pytest.mark.backbones


def branch(**keys: object) -> VitBranchConfig:
    return VitBranchConfig.model_validate(
        {"resolution": 64, "width": 16, "depth": 1, "heads": 2, "patch_size": 8} | keys
    )


def masked(layer: Attention, tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Attention among all cells, with a mask that hides those of other windows."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    window = (rows // side * 1000 + columns // side).flatten()
    query, key, value = layer.query_key_value(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    visible = window[:, None] == window[None, :]
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return layer.projection(attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("grid", [(6, 6), (6, 9), (7, 8), (2, 7), (8, 3), (2, 2)])
def test_windows_equal_a_mask_even_where_the_grid_is_no_multiple(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Attention(branch(window=3), window=3)
    tokens = torch.randn(2, grid[0] * grid[1], 16)
    torch.testing.assert_close(layer(tokens, grid, 0), masked(layer, tokens, grid, 3), atol=1e-6, rtol=1e-5)


def test_the_window_of_the_edge_does_not_feel_what_padding_would_have_added() -> None:
    torch.manual_seed(0)
    layer = Attention(branch(window=4), window=4)
    tokens = torch.randn(1, 4 * 6, 16)
    # The last two columns are a window of their own: alone they give the same.
    edge = tokens.unflatten(1, (4, 6))[:, :, 4:].flatten(1, 2)
    whole = layer(tokens, (4, 6), 0).unflatten(1, (4, 6))[:, :, 4:].flatten(1, 2)
    torch.testing.assert_close(whole, layer(edge, (4, 2), 0), atol=1e-6, rtol=1e-5)


def test_relative_positions_depend_on_the_distance_alone() -> None:
    layer = Attention(branch(relative_positions=True), window=None)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias.table)
    bias = layer.bias((8, 8)).unflatten(1, (8, 8)).unflatten(3, (8, 8))
    assert torch.equal(bias[:, 0, 0, 1, 2], bias[:, 5, 4, 6, 6])
    assert torch.equal(bias[:, 3, 3, 3, 3], layer.bias.table[:, 7, 7])
    assert not torch.equal(bias[:, 0, 0, 1, 2], bias[:, 1, 2, 0, 0])
    # In smaller windows the table is resized, as position tables are.
    assert layer.bias((3, 5)).shape == (2, 15, 15)
