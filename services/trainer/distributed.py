"""What the trainer needs of torch.distributed: one process, or many under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(device: torch.device) -> tuple[int, int]:
    """Join the process group that torchrun describes; returns (rank, world size), (0, 1) without torchrun."""
    if world_size() == 1:
        return 0, 1
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


def stop() -> None:
    """Leave the process group, if any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def mean_over_ranks(value: float, device: torch.device) -> float:
    """The mean of ``value`` over all ranks."""
    if not distributed.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    return float(tensor.item()) / distributed.get_world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over ranks.

    Every step runs the same sub-graph on all ranks, but a parameter may get no gradient on some of them (no image had a
    target): it counts as zero there, and stays without gradient where no rank has one.
    """
    if not distributed.is_initialized():
        return
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    distributed.all_reduce(present)
    for parameter, holders in zip(parameters, present.tolist(), strict=True):
        if holders == 0:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()


@torch.no_grad()
def copy_from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0."""
    if distributed.is_initialized():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)
