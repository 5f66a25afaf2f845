"""The selective scan of a state space model (Gu and Dao, 2023), as De-focus Mamba uses it."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(
    inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t rates) h_(t-1) + delta_t entering_t inputs_t and y_t = leaving_t . h_t; also the last h.

    ``inputs`` and the time steps ``delta``, above 0, are ``[batch, channels, tokens]``; ``rates``, below 0,
    ``[channels, states]``; ``entering`` (B) and ``leaving`` (C) ``[batch, tokens, states]``; ``state``
    ``[batch, channels, states]`` is what earlier tokens left behind.

    On a CPU nothing is faster than one fused step a token: every other form writes ``channels x states`` numbers for
    many tokens at once, which leaves the cache (docs/defocus.md has the figures).
    """
    if state is None:
        state = inputs.new_zeros(*inputs.shape[:2], rates.shape[1])
    by_token = (2, 0, 1)
    steps = delta.permute(by_token).contiguous()[..., None]  # (tokens, batch, channels, 1)
    fed = (delta * inputs).permute(by_token).contiguous()[..., None]
    entering = entering.transpose(0, 1).contiguous()[:, :, None]  # (tokens, batch, 1, states)
    leaving = leaving.transpose(0, 1).contiguous()[..., None]  # (tokens, batch, states, 1)
    outputs = []
    for step, feed, enter, leave in zip(steps, fed, entering, leaving, strict=True):
        state = torch.addcmul(feed * enter, torch.exp(step * rates), state)
        outputs.append(state @ leave)
    return torch.stack(outputs).squeeze(-1).permute(1, 2, 0), state
