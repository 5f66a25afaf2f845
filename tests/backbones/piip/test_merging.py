"""Merging: projected, enlarged, weighted, added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn import functional

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.dense import DensePyramid
from services.backbones.piip.merging import BranchMerge, convolutional_merge, light_merge
from services.backbones.piip.published import SBL, TSB, TSBL, VitSize, pyramid
from tests.backbones.piip.small import config

pytestmark = pytest.mark.backbones

WIDTHS = (96, 64, 32)


@pytest.mark.parametrize("make", [light_merge, convolutional_merge])
def test_with_one_weight_it_is_that_branch_projected_and_enlarged(make: Callable[[Sequence[int]], BranchMerge]) -> None:
    torch.manual_seed(0)
    merge = make(WIDTHS)
    maps = [torch.randn(2, width, side, side + 1) for width, side in zip(WIDTHS, (3, 5, 8), strict=True)]
    with torch.no_grad():
        merge.weights.copy_(torch.tensor([1.0, 0.0, 0.0]))
        expected = functional.interpolate(merge.projections[0](maps[0]), (8, 9), mode="bilinear", align_corners=False)
        torch.testing.assert_close(merge(maps), expected)


@pytest.mark.parametrize(
    ("sizes", "resolutions", "millions"),
    [(TSB, (1120, 896, 448), 25.2), (SBL, (1120, 672, 448), 48.4), (TSBL, (1344, 896, 672, 448), 59.6)]
    + [(("H", "6B"), (1024, 512), 313.4)],
)
def test_the_convolutional_merge_has_the_parameters_of_the_released_one(
    sizes: tuple[VitSize, ...], resolutions: tuple[int, ...], millions: float
) -> None:
    with torch.device("meta"):
        merge = convolutional_merge(pyramid(sizes, resolutions).widths)
    assert sum(parameter.numel() for parameter in merge.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_dense_pyramid_gives_four_strides() -> None:
    widths = (64, 32)
    maps = DensePyramid(config(widths), "light")(torch.randn(1, 3, 64, 128))
    assert [tuple(one.shape) for one in maps] == [(1, 64, 32, 64), (1, 64, 16, 32), (1, 64, 8, 16), (1, 64, 4, 8)]


def test_pyramids_with_convolutional_branches_are_merged_on_the_way() -> None:
    convnext = {"kind": "convnext", "depths": (1, 1, 9, 1)}
    settings = PiipConfig.model_validate(
        {
            "branches": [
                convnext | {"resolution": 32, "widths": (32, 64, 96, 128)},
                convnext | {"resolution": 64, "widths": (32, 32, 64, 64)},
            ],
            "interaction": {"stages": 12, "heads": 4},
        }
    )
    network = DensePyramid(settings, "staged")
    maps = network(torch.randn(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 16, 16), (64, 8, 8), (96, 4, 4), (128, 2, 2)]
    assert network.channels == (32, 64, 96, 128)
    with pytest.raises(ValueError, match="staged merging needs more than 11 stages"):
        DensePyramid(config((64, 32)), "staged")
