"""InternViT in its published sizes, counted without memory, and stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from services.backbones.drop_path import DropPath
from services.backbones.internvit import InternVitSize, internvit_config, set_drop_path

pytestmark = pytest.mark.internvl


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "count"), [("300M-448px", 304_012_288), ("6B-448px", 5_536_496_000), ("6B-224px", 5_902_793_600)]
)
def test_parameter_counts_are_the_published_ones(size: InternVitSize, count: int) -> None:
    with torch.device("meta"):
        assert parameters(InternVLVisionModel(internvit_config(size))) == count


@pytest.mark.parametrize(("size", "width", "teraflop"), [("300M-448px", 1024, 0.72), ("6B-448px", 3200, 11.9)])
def test_a_tile_becomes_1025_states_at_the_published_cost(size: InternVitSize, width: int, teraflop: float) -> None:
    with torch.device("meta"):
        tower = InternVLVisionModel(internvit_config(size)).eval()
        pixels = torch.empty(1, 3, 448, 448)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = tower(pixels).last_hidden_state
    assert states.shape == (1, 1025, width)
    assert counter.get_total_flops() / 1e12 == pytest.approx(teraflop, rel=0.01)


@pytest.mark.parametrize(
    ("size", "text_width", "count"),
    [
        ("300M-448px", 896, 4_482_816),
        ("300M-448px", 2048, 12_595_200),
        ("300M-448px", 3072, 22_034_432),
        ("300M-448px", 4096, 33_570_816),
        ("6B-448px", 6144, 116_429_824),
    ],
    ids=["1B", "2B", "4B", "8B", "26B"],
)
def test_projectors_have_the_published_counts(size: InternVitSize, text_width: int, count: int) -> None:
    text = {"model_type": "qwen2", "hidden_size": text_width, "num_attention_heads": 16, "num_key_value_heads": 8}
    with torch.device("meta"):
        config = InternVLConfig(vision_config=internvit_config(size), text_config=text)
        assert parameters(InternVLMultiModalProjector(config)) == count


def small_tower(layers: int = 4) -> InternVLVisionModel:
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=56,
        layer_scale_init_value=1.0,
    )
    return InternVLVisionModel(config)


def test_drop_path_grows_with_depth_and_changes_neither_names_nor_answers() -> None:
    tower, pixels = small_tower().eval(), torch.randn(2, 3, 56, 56)
    names = list(tower.state_dict())
    with torch.no_grad():
        before = tower(pixels).last_hidden_state
        set_drop_path(tower, 0.3)
        torch.testing.assert_close(tower(pixels).last_hidden_state, before, atol=0, rtol=0)
    assert list(tower.state_dict()) == names
    rates = [module.rate for module in tower.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_in_training_whole_branches_are_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 3, 2))
    by_sample = dropped.flatten(1)
    assert sorted(set(by_sample.amin(dim=1).tolist())) == pytest.approx([0.0, 4 / 3])
    assert torch.equal(by_sample.amin(dim=1), by_sample.amax(dim=1))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    tower = small_tower().train()
    set_drop_path(tower, 0.5)
    pixels = torch.randn(1, 3, 56, 56).expand(8, -1, -1, -1)
    assert float(tower(pixels).last_hidden_state.detach().std(dim=0).max()) > 0


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="drop path rate"):
        set_drop_path(small_tower(1), rate)
