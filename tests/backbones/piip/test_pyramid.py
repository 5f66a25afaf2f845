"""The pyramid: what interactions say, to whom and when."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from services.backbones.piip.configuration import ConvNextBranchConfig, PiipConfig, VitBranchConfig
from services.backbones.piip.interaction import InteractionUnit
from services.backbones.piip.published import SBL, TSB, TSBL, VitSize
from services.backbones.piip.published import pyramid as published
from services.backbones.piip.pyramid import ImagePyramid
from services.backbones.piip.state import BranchState
from tests.backbones.piip.small import config, open_gates, pyramid

pytestmark = pytest.mark.backbones


def pixels(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def last_tokens(network: ImagePyramid, picture: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [state.tokens for state in network(picture)]


@pytest.mark.parametrize("widths", [(64, 32), (64, 32, 16)])
def test_a_new_pyramid_is_its_branches_without_interactions(widths: tuple[int, ...]) -> None:
    met, apart = pyramid(config(widths)), pyramid(config(widths, stages=0))
    apart.branches.load_state_dict(met.branches.state_dict())

    for own, alone in zip(last_tokens(met, pixels()), last_tokens(apart, pixels()), strict=True):
        assert torch.equal(own, alone)


def test_at_first_only_the_gates_of_interactions_learn() -> None:
    network = pyramid().train()
    for unit in network.units.modules():
        if hasattr(unit, "rate"):
            unit.rate = 0.0

    torch.stack([state.tokens.square().sum() for state in network(pixels())]).sum().backward()

    for name, parameter in network.units.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) is name.endswith("_gate"), name


def test_both_directions_of_a_unit_read_what_was_before_it() -> None:
    torch.manual_seed(0)
    unit = InteractionUnit(64, 32, config().interaction).eval()
    open_gates(unit, 1.0)
    larger = BranchState(torch.randn(1, 16, 64), (4, 4))
    smaller = BranchState(torch.randn(1, 64, 32), (8, 8))

    with torch.no_grad():
        both = unit(larger, smaller)
        into_smaller_first = unit.into_smaller(smaller, larger), unit.into_larger(larger, smaller)
        one_after_the_other = unit.into_smaller(smaller, both[0])

    assert torch.equal(both[0].tokens, into_smaller_first[1].tokens)
    assert torch.equal(both[1].tokens, into_smaller_first[0].tokens)
    assert not torch.allclose(both[1].tokens, one_after_the_other.tokens)


def test_the_finest_pair_meets_first_so_that_its_news_reach_the_coarsest_branch_in_one_stage() -> None:
    network = pyramid(config(stages=1), gates=1.0)
    finest = network.branches[-1]
    before = last_tokens(network, pixels())
    with torch.no_grad():
        finest.patch_embedding.weight.mul_(2)
    after = last_tokens(network, pixels())

    assert not torch.allclose(before[0], after[0])
    # The other way round one stage is not enough: units run in order.
    other = pyramid(config(stages=1), gates=1.0)
    before = last_tokens(other, pixels())
    with torch.no_grad():
        other.branches[0].patch_embedding.weight.mul_(2)
    assert torch.equal(before[2], last_tokens(other, pixels())[2])


def test_parameters_do_not_depend_on_resolution_but_for_position_tables() -> None:
    small, large = (ImagePyramid(_at(scale)) for scale in (1, 2))
    sizes = [{name: value.shape for name, value in one.state_dict().items()} for one in (small, large)]

    different = {name for name in sizes[0] if sizes[0][name] != sizes[1][name]}

    assert sizes[0].keys() == sizes[1].keys()
    assert different == {f"branches.{number}.position_embedding" for number in range(3)}


def _at(scale: int) -> PiipConfig:
    settings = config()
    branches = [branch.model_copy(update={"resolution": branch.resolution * scale}) for branch in settings.branches]
    return settings.model_copy(update={"branches": tuple(branches)})


@pytest.mark.parametrize("window", [None, 3])
def test_what_a_picture_gives_does_not_depend_on_its_company(window: int | None) -> None:
    network = pyramid(config(window=window), gates=0.5)

    together = last_tokens(network, pixels(3))
    alone = last_tokens(network, pixels(3)[1:2])

    for several, one in zip(together, alone, strict=True):
        torch.testing.assert_close(several[1:2], one, atol=1e-5, rtol=1e-5)


def test_class_tokens_change_only_through_the_attention_of_their_own_branch() -> None:
    settings = config(class_token=True, stages=1)
    shut, wide_open = pyramid(settings), pyramid(settings, gates=1.0)

    with torch.no_grad():
        quiet, talking = shut(pixels()), wide_open(pixels())

    for without, with_interaction in zip(quiet, talking, strict=True):
        assert without.class_token is not None
        assert with_interaction.class_token is not None
        assert torch.equal(without.class_token, with_interaction.class_token)
        assert not torch.equal(without.tokens, with_interaction.tokens)


def test_every_branch_sees_a_whole_number_of_cells_at_any_size() -> None:
    network = pyramid(published(("T", "S"), (1344, 448)).model_copy(update={"interaction": config().interaction}))
    # 896 / 3 is no multiple of 16, where the released code drops what is left over.
    sizes = [tuple(picture.shape[2:]) for picture in network.pictures(torch.zeros(1, 3, 896, 1344))]

    assert sizes == [(304, 448), (896, 1344)]
    with pytest.raises(ValueError, match="cells of 16 pixels"):
        network.pictures(torch.zeros(1, 3, 900, 1344))


@pytest.mark.parametrize(
    ("sizes", "resolutions", "branches", "interactions"),
    [
        (TSB, (1120, 896, 448), (86_265_600, 22_802_304, 6_431_424), 29_722_176),
        (SBL, (1120, 672, 448), (303_948_800, 87_018_240, 23_479_680), 76_010_112),
        (TSBL, (1344, 896, 672, 448), (303_948_800, 87_018_240, 22_802_304, 6_845_376), 82_527_552),
        (("H", "6B"), (1024, 512), (5_905_820_800, 635_987_200), 323_207_808),
    ],
)
def test_parameter_counts(
    sizes: tuple[VitSize, ...], resolutions: tuple[int, ...], branches: tuple[int, ...], interactions: int
) -> None:
    with torch.device("meta"):
        network = ImagePyramid(published(sizes, resolutions))
    assert tuple(count(branch) for branch in network.branches) == branches
    assert count(network.units) == interactions


@pytest.mark.parametrize(
    ("sizes", "resolutions", "millions"),
    # Published, of the whole backbone: branches, interactions, light merge, norm and a head of 1000 classes.
    [
        (TSB, (1568, 1120, 672), 149),
        (SBL, (1568, 1120, 672), 498),
        (TSBL, (1792, 1568, 1120, 448), 512),
        (("H", "6B"), (1024, 512), 6872),
    ],
)
def test_published_parameter_counts(sizes: tuple[VitSize, ...], resolutions: tuple[int, ...], millions: float) -> None:
    settings = published(sizes, resolutions)
    with torch.device("meta"):
        total = count(ImagePyramid(settings))
    widest, *others = settings.widths
    head = 1000 * widest + 1000 + 2 * widest
    merge = sum(2 * width + width * widest + widest + 2 * widest for width in others) + 2 * widest
    assert (total + head + merge) / 1e6 == pytest.approx(millions, rel=0.004)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_layers_and_blocks_are_shared_out_over_stages_as_published() -> None:
    huge = VitBranchConfig.model_validate({"size": "H", "resolution": 1024})
    assert huge.slices(12) == (2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)
    base = ConvNextBranchConfig.model_validate({"size": "B", "resolution": 1024})
    assert base.slices(12) == (3, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 4)
    assert base.widths_after(12) == (128, 256, *(512,) * 9, 1024)
    tiny = ConvNextBranchConfig.model_validate({"size": "T", "resolution": 1024})
    assert tiny.slices(12) == (3, 4, 2, *(1,) * 8, 4)


def test_convolutional_and_attending_branches_mix() -> None:
    settings = PiipConfig.model_validate(
        {
            "branches": [
                {"resolution": 32, "width": 64, "depth": 4, "heads": 2, "patch_size": 8},
                {"kind": "convnext", "resolution": 64, "widths": (32, 64, 64, 128), "depths": (1, 1, 1, 1)},
            ],
            "interaction": {"stages": 4, "heads": 4},
        }
    )
    shut, wide_open = pyramid(settings), pyramid(settings, gates=1.0)

    grids = [[state.grid for state in stage] for stage in wide_open.every_stage(pixels())]

    assert grids == [[(4, 4), (side, side)] for side in (16, 8, 4, 2)]
    for quiet, talking in zip(last_tokens(shut, pixels()), last_tokens(wide_open, pixels()), strict=True):
        assert not torch.allclose(quiet, talking)


@pytest.mark.parametrize("projects_and_norms", [True, False])
def test_the_released_setting_for_speed_has_fewer_parts(projects_and_norms: bool) -> None:
    settings = config()
    interaction = settings.interaction.model_copy(update={"projects_and_norms": projects_and_norms})
    network = pyramid(settings.model_copy(update={"interaction": interaction}), gates=1.0)
    names = {name.split(".")[3] for name, _ in network.units.named_parameters()}
    assert {"projection", "query_norm", "key_norm", "feed_forward_norm"}.isdisjoint(names) is not projects_and_norms
    assert all(tokens.isfinite().all() for tokens in last_tokens(network, pixels()))


def test_neighbours_are_told_apart_from_far_branches() -> None:
    network = pyramid()
    pairs = list(pairwise(network.config.widths))
    for stage in network.units:
        assert [
            (unit.into_larger.attention_gate.numel(), unit.into_smaller.attention_gate.numel()) for unit in stage
        ] == pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interaction": {"stages": 3}}, "shortest branch has only 2 blocks"),
        ({"interaction": {"stages": 2, "heads": 3}}, "3 heads of the interaction"),
        ({"interaction": {"stage": 2}}, "stage"),
        ({"branches": []}, "branches"),
        ({"branches": [{"size": "T", "resolution": 224, "window": 7, "class_token": True}]}, "window must be unset"),
        ({"branches": [{"size": "T", "resolution": 224, "global_layers": [12]}]}, "12 layers, from 0 to 11"),
        ({"branches": [{"size": "T", "resolution": 224, "heads": 5}]}, "5 heads cannot share a width of 192"),
    ],
)
def test_impossible_pyramids_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PiipConfig.model_validate(config().model_dump() | change)
