"""The De-focus Mamba mixer: a selective scan with rotary phases (eq. 9), as the released models have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, silu, softplus

from services.backbones.defocus.configuration import SCAN_GROUP, EncoderConfig, Mamba
from services.backbones.defocus.group_norm import group_rms_norm
from services.backbones.defocus.mixers import LayerState
from services.backbones.defocus.rotary import make_phase
from services.backbones.defocus.selective_scan import selective_scan

_KERNEL = 4
# Time steps that the channels begin with.
_SHORTEST_STEP, _LONGEST_STEP, _STEP_FLOOR = 0.001, 0.1, 1e-4


class MambaMixer(nn.Module):
    """Keeps the last inputs of the convolution and the states of the scan, however long the sequence."""

    def __init__(self, config: EncoderConfig, settings: Mamba) -> None:
        super().__init__()
        inner, states = 2 * config.width, settings.state_size
        self.delta_scale = config.delta_scale
        self.sizes = [settings.time_step_rank, states, states]
        self.enter = nn.Linear(config.width, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, _KERNEL, groups=inner)
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.time_step = nn.Linear(settings.time_step_rank, inner)
        self.log_rates = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.phase = make_phase(states, settings.phase, config.rope_scale, settings.released_phase)
        self.out = nn.Linear(inner, config.width, bias=False)

    @torch.no_grad()
    def begin_time_steps(self) -> None:
        """Spread the channels' first time steps evenly on a logarithmic scale; softplus gives exactly these."""
        channels, rank = self.time_step.weight.shape
        nn.init.uniform_(self.time_step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.linspace(math.log(_SHORTEST_STEP), math.log(_LONGEST_STEP), channels).exp().clamp(min=_STEP_FLOOR)
        self.time_step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, hidden: Tensor, start: int, past: LayerState | None) -> tuple[Tensor, LayerState]:
        """``hidden`` ``[batch, tokens, width]``, whose first token has the index ``start``, and what it leaves."""
        inputs, gate = self.enter(hidden).transpose(1, 2).chunk(2, dim=1)  # each (batch, inner, tokens)
        before = inputs.new_zeros(*inputs.shape[:2], _KERNEL - 1) if past is None else past[0]
        padded = torch.cat([before, inputs], dim=2)
        inputs = silu(conv1d(padded, self.convolution.weight, self.convolution.bias, groups=inputs.shape[1]))
        rank, entering, leaving = self.select(inputs.transpose(1, 2)).split(self.sizes, dim=-1)
        if self.phase is not None:
            entering, leaving = self.phase(entering, start), self.phase(leaving, start)
        delta = softplus(self.time_step(rank)).transpose(1, 2) / self.delta_scale
        rates = -self.log_rates.exp()
        state = None if past is None else past[1]
        scanned, state = selective_scan(inputs, delta, rates, entering, leaving, state)
        scanned = group_rms_norm(scanned.transpose(1, 2), SCAN_GROUP) + self.skip * inputs.transpose(1, 2)
        return self.out(scanned * silu(gate.transpose(1, 2))), (padded[:, :, -(_KERNEL - 1) :], state)
