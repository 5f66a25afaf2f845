"""Public weights in the branches of an MLLM's image pyramid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from services.backbones.piip.configuration import ConvNextBranchConfig, PiipConfig
from services.backbones.piip.convnext import ConvNextBranch
from services.backbones.piip.tower import PyramidTower
from services.trainer.adaptation.pyramid_branches import load_branches
from superlink.configuration import ConfigurationError

pytestmark = pytest.mark.backbones

CONVNEXT = ConvNextBranchConfig(resolution=64, widths=(16, 16, 16, 16), depths=(1, 1, 1, 1))


def tower() -> PyramidTower:
    transformer = {"resolution": 32, "width": 32, "depth": 1, "heads": 2, "patch_size": 8}
    settings = {"branches": [transformer, CONVNEXT.model_dump()], "interaction": {"stages": 0}}
    return PyramidTower(PiipConfig.model_validate(settings))


def stored(file: Path) -> ConvNextBranch:
    """A ConvNeXt written as its authors write it."""
    branch = ConvNextBranch(CONVNEXT, 1)
    state = {}
    names = {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "contract": "pwconv2"}
    for name, value in branch.state_dict().items():
        part, *rest = name.split(".")
        if part == "stem":
            state[f"downsample_layers.0.{'.'.join(rest)}"] = value
            continue
        level, is_block = (int(rest[0]) + 1) // 2, int(rest[0]) % 2 == 0
        if not is_block:
            state[f"downsample_layers.{level}.{'.'.join(rest[1:])}"] = value
        elif rest[1] == "scale":
            state[f"stages.{level}.0.gamma"] = value
        else:
            state[f"stages.{level}.0.{names[rest[1]]}.{rest[2]}"] = value
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return branch


def test_a_branch_gets_the_file_that_is_named_for_it(tmp_path: Path) -> None:
    wanted = stored(tmp_path / "convnext.safetensors")
    network = tower()
    before = network.pyramid.branches[0].patch_embedding.weight.clone()

    load_branches(network, {"branch_2": tmp_path / "convnext.safetensors", "mllm": tmp_path})

    for name, value in wanted.state_dict().items():
        assert torch.equal(network.pyramid.branches[1].state_dict()[name], value), name
    assert torch.equal(network.pyramid.branches[0].patch_embedding.weight, before)


def test_what_does_not_fit_names_the_key(tmp_path: Path) -> None:
    stored(tmp_path / "convnext.safetensors")
    with pytest.raises(ConfigurationError, match=r"start_from.branch_1: .*no layout"):
        load_branches(tower(), {"branch_1": tmp_path / "convnext.safetensors"})
    with pytest.raises(ConfigurationError, match="start_from.branch_3: the pyramid has branches 1 to 2"):
        load_branches(tower(), {"branch_3": tmp_path})
    with pytest.raises(ConfigurationError, match="start_from.branch_1: the vision tower is no image pyramid"):
        load_branches(nn.Identity(), {"branch_1": tmp_path})
