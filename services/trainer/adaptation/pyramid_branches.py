"""Public weights for the branches of an MLLM's image pyramid: ``start_from: {branch_1: FILE, branch_2: FILE}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from services.backbones.piip.pretrained import CheckpointError, load_branch
from services.backbones.piip.tower import PyramidTower
from superlink.configuration import ConfigurationError

_KEY = re.compile(r"branch_(\d)")


def is_branch(key: str) -> bool:
    """Whether ``key`` of ``start_from`` names a branch."""
    return _KEY.fullmatch(key) is not None


def load_branches(tower: nn.Module, start_from: Mapping[str, Path]) -> None:
    """Fill the branches that ``start_from`` names, the largest being number 1, from safetensors files.

    Raises ConfigurationError for towers that are no pyramid, branches that there are not, and files that do not fit.
    """
    for key in sorted(filter(is_branch, start_from)):
        if not isinstance(tower, PyramidTower):
            raise ConfigurationError(f"start_from.{key}: the vision tower is no image pyramid (vision.kind: piip).")
        branches: Any = tower.pyramid.branches
        number = int(key.removeprefix("branch_"))
        if not 1 <= number <= len(branches):
            raise ConfigurationError(f"start_from.{key}: the pyramid has branches 1 to {len(branches)}.")
        try:
            load_branch(branches[number - 1], start_from[key])
        except CheckpointError as error:
            raise ConfigurationError(f"start_from.{key}: {error}") from error
