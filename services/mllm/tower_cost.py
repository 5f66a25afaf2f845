"""What it costs to turn a tile into image tokens: parameters, multiply-accumulates, time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from services.mllm.model import Mllm

_TILES, _ROUNDS = 16, 12
# torch counts a multiplication and an addition as two operations.
_OPERATIONS_A_MAC = 2


class TowerCost(BaseModel):
    """Of vision tower and projector together."""

    parameters: int
    # Of a tile. Convolutions and matrix products; what deformable attention samples is not among them.
    mega_macs: float
    # Of a tile.
    tokens: int
    # Of a tile in a batch of 16, in one thread's own time: least of all rounds.
    milliseconds: float


def measure_costs(folders: Mapping[str, Path]) -> dict[str, TowerCost]:
    """The cost of each MLLM's tower, by the name that its folder has in ``folders``.

    Towers take turns, so that none meets a busier machine than the others. Raises WeightsError.
    """
    models = {name: Mllm.load(folder)[0] for name, folder in folders.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {name: min(rounds) for name, rounds in _take_turns(models).items()}
    finally:
        torch.set_num_threads(threads)
    return {
        name: TowerCost(
            parameters=_parameters(mllm),
            mega_macs=_macs(mllm) / 1e6,
            tokens=mllm.config.tokens_per_tile,
            milliseconds=times[name] / _TILES * 1e3,
        )
        for name, mllm in models.items()
    }


@torch.no_grad()
def _take_turns(models: Mapping[str, Mllm]) -> dict[str, list[float]]:
    """Seconds of each pass, the first ones, which reserve memory, left out."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(_ROUNDS + 1):
        for name, mllm in models.items():
            tiles = torch.zeros(_TILES, 3, mllm.config.tile_size, mllm.config.tile_size)
            started = time.thread_time()
            mllm.encode_images(tiles)
            if number:
                times[name].append(time.thread_time() - started)
    return times


@torch.no_grad()
def _macs(mllm: Mllm) -> float:
    tile = torch.zeros(1, 3, mllm.config.tile_size, mllm.config.tile_size)
    # Fused attention on CPUs is not counted; written out it is matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mllm.encode_images(tile)
    return float(counter.get_total_flops()) / _OPERATIONS_A_MAC


def _parameters(mllm: Mllm) -> int:
    parts = mllm.internvl.model.vision_tower, mllm.internvl.model.multi_modal_projector
    return sum(weight.numel() for part in parts for weight in part.parameters())
