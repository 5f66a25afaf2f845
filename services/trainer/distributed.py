"""What the trainer needs of torch.distributed: one process, or many under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


def mean_count(count: Tensor) -> Tensor:
    """The mean of ``count`` over ranks: what a rank's sum is divided by where gradients are averaged over ranks."""
    if not distributed.is_initialized():
        return count
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


@dataclass(frozen=True)
class GatheredRows:
    """Rows of all ranks, those of each padded to one number of them."""

    # [ranks · capacity, width], or this process' own alone.
    rows: Tensor
    # [rows] bool: what is no padding.
    is_real: Tensor
    # Where this rank's rows begin.
    first: int
    ranks: int


def gather_rows(rows: Tensor, capacity: int) -> GatheredRows:
    """Rows ``[n, width]`` of all ranks, which may hold different numbers of them, ``capacity`` at most.

    Gradients flow back to the rank that a row comes from. ``capacity`` is known beforehand, so that no step waits for
    the device to learn how many there are.
    """
    if not distributed.is_initialized():
        return GatheredRows(rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device), 0, 1)
    ranks = distributed.get_world_size()
    padded = nn.functional.pad(rows, (0, 0, 0, capacity - len(rows)))
    count = torch.tensor([len(rows)], device=rows.device)
    counts = torch.empty(ranks, dtype=count.dtype, device=rows.device)
    distributed.all_gather_single(counts, count)
    is_real = torch.arange(capacity, device=rows.device) < counts[:, None]
    gathered: Tensor = _GatherWithGradient.apply(padded)  # type: ignore[no-untyped-call]
    return GatheredRows(gathered, is_real.flatten(), distributed.get_rank() * capacity, ranks)


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates the ranks' tensors; a rank's gradient is the sum of what all ranks want of it."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(distributed.get_world_size() * len(tensor), *tensor.shape[1:])
        distributed.all_gather_single(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        own = gradient.new_empty(len(gradient) // distributed.get_world_size(), *gradient.shape[1:])
        distributed.reduce_scatter_single(own, gradient.contiguous())
        return own
