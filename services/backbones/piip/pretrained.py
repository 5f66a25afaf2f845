"""Public weights for the branches of a pyramid: DeiT, DeiT III, MAE, BEiT, DINOv2, CLIP, InternViT and ConvNeXt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.piip.convnext import ConvNextBranch
from services.backbones.piip.key_layouts import LAYOUTS, State, StoredBranch, find_layout
from services.backbones.piip.vit import VitBranch

# How many names an error lists before it only counts.
_LISTED = 5


class CheckpointError(ValueError):
    """A file of weights cannot be read or does not fit the branch. The text names what is missing or unknown."""


def load_branch(branch: VitBranch | ConvNextBranch, file: Path) -> None:
    """Fill ``branch`` from a safetensors file of a public model in one of its published layouts.

    Position tables, BEiT's bias tables and patches of another size are resized bicubically. The final norm, heads and
    what only pre-training needs are left out, as is the class token of a branch that has none.
    Raises CheckpointError.
    """
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: is not a readable safetensors file ({error}).") from error
    if isinstance(branch, ConvNextBranch):
        state, unknown = _read_convnext(branch, stored)
    else:
        state, unknown = _read_vit(branch, stored, file)
    _check(branch, state, unknown, file)
    branch.load_state_dict(state)


def _read_vit(branch: VitBranch, stored: Mapping[str, Tensor], file: Path) -> tuple[State, list[str]]:
    layout = find_layout(stored)
    if layout is None:
        known = ", ".join(f"{layout.sign} ({layout.name})" for layout in LAYOUTS)
        raise CheckpointError(f"{file}: is in no layout that is known here; one of these names is expected: {known}.")
    read = layout.read(stored)
    state, unknown = dict(read.state), list(read.unknown)
    if branch.class_token is None:
        state.pop("class_token", None)
    if not any(name.endswith(".scale1") for name in state):
        # DeiT, MAE and CLIP have no factors on their residuals, which is the same as factors of one.
        ones = {name: torch.ones_like(value) for name, value in branch.state_dict().items() if ".scale" in name}
        state.update(ones)
    _fit_positions(branch, read, state, unknown)
    patches, wanted = state.get("patch_embedding.weight"), branch.patch_embedding.weight
    if patches is not None and patches.shape[2:] != wanted.shape[2:]:
        state["patch_embedding.weight"] = functional.interpolate(
            patches.float(), wanted.shape[2:], mode="bicubic", align_corners=False
        )
    return state, unknown


def _fit_positions(branch: VitBranch, read: StoredBranch, state: State, unknown: list[str]) -> None:
    if read.positions is not None:
        if branch.position_embedding is None:
            unknown.append("the position table")
        else:
            side = round(len(read.positions) ** 0.5)
            table = read.positions.float().T.reshape(1, -1, side, side)
            state["position_embedding"] = _resized(table, branch.position_embedding)
    own = branch.state_dict()
    for name in [name for name in state if name.endswith(".bias.table") and name in own]:
        state[name] = _resized(state[name].float()[None], own[name][None])[0]


def _resized(table: Tensor, like: Tensor) -> Tensor:
    if table.shape[2:] == like.shape[2:]:
        return table
    return functional.interpolate(table, like.shape[2:], mode="bicubic", align_corners=False)


_CONVNEXT_BLOCK = {"dwconv": "depthwise", "norm": "norm", "pwconv1": "expand", "pwconv2": "contract"}


def _read_convnext(branch: ConvNextBranch, stored: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """ConvNeXt as its authors store it."""
    state: State = {}
    unknown = []
    # Place in our list of the first block of every level; the block before it is its down-sampling.
    starts = [sum(branch.config.depths[:level]) + level for level in range(4)]
    for name, value in stored.items():
        block = re.fullmatch(r"stages\.(\d)\.(\d+)\.(\w+)(\.\w+)?", name)
        between = re.fullmatch(r"downsample_layers\.(\d)\.([01]\.\w+)", name)
        if block:
            place = f"blocks.{starts[int(block[1])] + int(block[2])}"
            state[f"{place}.scale" if block[3] == "gamma" else f"{place}.{_CONVNEXT_BLOCK[block[3]]}{block[4]}"] = value
        elif between:
            level = int(between[1])
            state[f"stem.{between[2]}" if level == 0 else f"blocks.{starts[level] - 1}.{between[2]}"] = value
        elif not name.startswith(("norm.", "head.")):
            unknown.append(name)
    return state, unknown


def _check(branch: nn.Module, state: State, unknown: list[str], file: Path) -> None:
    wanted = branch.state_dict()
    problems = [
        *_problem("missing", wanted.keys() - state.keys()),
        *_problem("unknown", [*unknown, *(state.keys() - wanted.keys())]),
        *_problem(
            "of another shape",
            (
                f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in state.keys() & wanted.keys()
                if state[name].shape != wanted[name].shape
            ),
        ),
    ]
    if problems:
        raise CheckpointError(f"{file}: the weights do not fit the branch: {'; '.join(problems)}.")


def _problem(what: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{len(names)} {what} ({', '.join(names[:_LISTED])}{more})"]
