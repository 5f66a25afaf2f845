"""The towers that an MLLM can have: chosen in its configuration, saved and loaded with it, asked like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_mllm import build_model
from torch import Tensor, nn

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.interaction import Injector
from services.backbones.piip.tower import BranchProjectors, PyramidTower
from services.mllm.config import MllmConfig
from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import PiipTower, VisionSize
from services.runtime.weights import WeightsError

SIDE = 64


def tower(stages: int = 2) -> PiipTower:
    branch = {"depth": 2, "heads": 2, "patch_size": 8}
    return PiipTower.model_validate(
        {
            "piip": {
                "branches": [branch | {"resolution": 32, "width": 64}, branch | {"resolution": SIDE, "width": 32}],
                "interaction": {"stages": stages, "heads": 4},
            }
        }
    )


def tiles(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("ratio", "tokens"), [(1.0, 64), (0.5, 16)])
def test_a_pyramid_sees_for_an_mllm(tokenizer: MllmTokenizer, ratio: float, tokens: int) -> None:
    model = build_model(tokenizer, vision=tower(), downsample_ratio=ratio)

    seen = model.tower(tiles())

    # One token for each cell of the finest branch, as in PIIP-LLaVA, or one for four.
    assert model.config.tokens_per_tile == tokens
    assert seen.features.shape == (2, tokens, model.hidden_size)
    assert seen.grid.shape == (2, 64 + 32, 8, 8)


def test_the_branches_projections_are_added_up() -> None:
    torch.manual_seed(0)
    projectors = BranchProjectors((64, 32), 1, 48)
    tokens = torch.randn(2, 10, 96)
    expected = projectors.projectors[0](tokens[..., :64]) + projectors.projectors[1](tokens[..., 64:])
    torch.testing.assert_close(projectors(tokens), expected)


def test_neighbours_of_an_unshuffled_token_stay_with_their_branch() -> None:
    projectors = BranchProjectors((4, 2), 3, 64)
    tokens = torch.arange(18.0).view(1, 1, 18)
    seen: list[Tensor] = []
    for projector in projectors.projectors:
        projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    projectors(tokens)
    assert [one[0, 0].tolist() for one in seen] == [
        [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15],
        [4, 5, 10, 11, 16, 17],
    ]


def test_at_first_a_pyramid_is_two_encoders_side_by_side() -> None:
    torch.manual_seed(0)
    met, apart = PyramidTower(tower().piip).eval(), PyramidTower(tower(stages=0).piip).eval()
    apart.pyramid.branches.load_state_dict(met.pyramid.branches.state_dict())
    with torch.no_grad():
        assert torch.equal(met(tiles()), apart(tiles()))
        for module in met.modules():
            if isinstance(module, Injector):
                nn.init.constant_(module.attention_gate, 1.0)
        assert not torch.allclose(met(tiles()), apart(tiles()))


def test_the_tower_is_saved_and_loaded_with_the_model(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    model = build_model(tokenizer, vision=tower())
    model.save(tmp_path, tokenizer)

    loaded, _ = Mllm.load(tmp_path)

    assert isinstance(loaded.config.vision, PiipTower)
    with torch.no_grad():
        torch.testing.assert_close(loaded.tower(tiles()).features, model.tower(tiles()).features)


def test_configurations_that_name_no_kind_mean_internvls_own_tower(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    model = build_model(tokenizer)
    model.save(tmp_path, tokenizer)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["vision"].pop("kind") == "vit"
    file.write_text(json.dumps(stored), encoding="utf-8")

    loaded, _ = Mllm.load(tmp_path)

    assert loaded.config.vision == model.config.vision
    assert isinstance(loaded.config.vision, VisionSize)


def test_a_tower_that_does_not_exist_is_refused(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    build_model(tokenizer).save(tmp_path, tokenizer)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["vision"]["kind"] = "pip"
    file.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"vision: .*'vit', 'piip'"):
        Mllm.load(tmp_path)


def test_piip_llava_has_as_many_tokens_as_published(tokenizer: MllmTokenizer) -> None:
    branches = [
        {"size": "L", "resolution": 336, "patch_size": 14, "class_token": True},
        {"kind": "convnext", "size": "L", "resolution": 1024},
    ]
    settings = PiipTower(piip=PiipConfig.model_validate({"branches": branches}))
    config = MllmConfig.for_tokenizer(tokenizer, vision=settings, tile_size=1024, downsample_ratio=1.0)
    assert config.tokens_per_tile == 1024
    assert config.vision.hidden_size == 1024 + 1536
