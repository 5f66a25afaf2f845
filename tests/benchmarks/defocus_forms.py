"""Fast forms of De-focus mixers against slower exact ones: ``python tests/benchmarks/defocus_forms.py [--json FILE]``.

All forms of a mixer take turns, forward only, batch 1, on one thread, in the shapes of the published base models; the
clock is the thread's own CPU time. Ratios count; milliseconds depend on the machine. The selective scan's other forms,
which nothing else uses, are here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from services.backbones.defocus.decayed_attention import decayed_attention
from services.backbones.defocus.retention import retention
from services.backbones.defocus.selective_scan import selective_scan

# Pictures of 128, 224 and 448 pixels, with the class token.
LENGTHS = (65, 197, 785)

Forms = Mapping[str, Callable[[], Tensor]]


def token_by_token(inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
    """The recurrence as it is written."""
    state = inputs.new_zeros(*inputs.shape[:2], rates.shape[1])
    outputs = []
    for token in range(inputs.shape[2]):
        step = delta[:, :, token, None]
        state = torch.exp(step * rates) * state + step * inputs[:, :, token, None] * entering[:, None, token]
        outputs.append((state * leaving[:, None, token]).sum(dim=-1))
    return torch.stack(outputs, dim=2)


def chunks_of_states(
    inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor, chunk: int = 16
) -> Tensor:
    """Decays, what enters and what leaves of a chunk at once, and its states one after the other."""
    steps, fed = delta.permute(2, 0, 1), (delta * inputs).permute(2, 0, 1)
    enter, leave = entering.transpose(0, 1), leaving.transpose(0, 1)
    state = inputs.new_zeros(*inputs.shape[:2], rates.shape[1])
    outputs = []
    for first in range(0, len(steps), chunk):
        part = slice(first, first + chunk)
        decays = torch.exp(steps[part, :, :, None] * rates)  # (chunk, batch, channels, states)
        added = fed[part, :, :, None] * enter[part, :, None]
        states = []
        for decay, addend in zip(decays, added, strict=True):
            state = torch.addcmul(addend, decay, state)
            states.append(state)
        outputs.append((torch.stack(states) @ leave[part, :, :, None]).squeeze(-1))
    return torch.cat(outputs).permute(1, 2, 0)


def doubling(inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
    """An associative scan over all tokens (Hillis and Steele): as many passes as the length has binary digits."""
    decays = torch.exp(delta[..., None] * rates[:, None])
    states = (delta * inputs)[..., None] * entering[:, None]
    shift = 1
    while shift < inputs.shape[2]:
        before = torch.cat([torch.zeros_like(states[:, :, :shift]), states[:, :, :-shift]], dim=2)
        states = states + decays * before
        decays = decays * torch.cat([torch.ones_like(decays[:, :, :shift]), decays[:, :, :-shift]], dim=2)
        shift *= 2
    return (states * leaving[:, None]).sum(dim=-1)


def quadratic_chunks(
    inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor, chunk: int = 8
) -> Tensor:
    """Every pair of tokens within a chunk, a state between chunks."""
    state = inputs.new_zeros(*inputs.shape[:2], rates.shape[1])
    outputs = []
    for first in range(0, inputs.shape[2], chunk):
        part = slice(first, first + chunk)
        elapsed = delta[..., part].cumsum(dim=-1)[..., None] * rates[:, None]  # (batch, channels, chunk, states)
        earlier = torch.ones(elapsed.shape[2], elapsed.shape[2]).tril()[..., None]
        between = torch.exp((elapsed[:, :, :, None] - elapsed[:, :, None]).clamp(max=0)) * earlier
        fed = (delta[..., part] * inputs[..., part])[..., None] * entering[:, None, part]
        states = (between * fed[:, :, None]).sum(dim=3) + torch.exp(elapsed) * state[:, :, None]
        outputs.append((states * leaving[:, None, part]).sum(dim=-1))
        state = states[:, :, -1]
    return torch.cat(outputs, dim=2)


def scan_forms(tokens: int) -> Forms:
    """The selective scan of a base layer: 1536 channels of 16 states."""
    inputs, delta = torch.randn(1, 1536, tokens), torch.rand(1, 1536, tokens) * 0.1
    parts = (inputs, delta, -torch.arange(1.0, 17).repeat(1536, 1), *torch.randn(2, 1, tokens, 16))
    return {
        "as shipped": lambda: selective_scan(*parts)[0],
        "token by token": lambda: token_by_token(*parts),
        "chunks of 16 states": lambda: chunks_of_states(*parts),
        "quadratic chunks of 8": lambda: quadratic_chunks(*parts),
        "doubling": lambda: doubling(*parts),
    }


def retention_forms(tokens: int) -> Forms:
    """Retention of a base layer: 12 heads of 64 with values of 128."""
    query, key = torch.randn(2, 1, 12, tokens, 64)
    value, decay = torch.randn(1, 12, tokens, 128), -torch.logspace(-2.7, -0.3, 12)

    def in_chunks(chunk: int) -> Tensor:
        return retention(query, key, value, decay, chunk=chunk)[0]

    return {
        "as shipped": lambda: retention(query, key, value, decay)[0],
        **{f"chunks of {chunk}": partial(in_chunks, chunk) for chunk in (32, 64, 128)},
        "quadratic": partial(in_chunks, tokens),
    }


def attention_forms(tokens: int) -> Forms:
    """De-focus attention of a base layer: 12 heads of 64."""
    query, key, value = torch.randn(3, 1, 12, tokens, 64)
    decay = -torch.logspace(-2.7, -0.7, 12)

    def in_blocks(block: int) -> Tensor:
        return decayed_attention(query, key, value, decay, block=block)

    return {
        "as shipped": lambda: decayed_attention(query, key, value, decay),
        **{f"blocks of {block}": partial(in_blocks, block) for block in (64, 128, 256)},
        "one square": partial(in_blocks, tokens),
    }


def take_turns(forms: Forms, repeats: int) -> dict[str, float]:
    """The least milliseconds of every form, those that other processes disturbed least.

    Raises ValueError where two forms disagree.
    """
    first, *others = (form() for form in forms.values())
    size = float(first.abs().max())
    for name, other in zip(list(forms)[1:], others, strict=True):
        if not torch.allclose(first, other, atol=1e-4 * size, rtol=0):
            raise ValueError(f"{name} disagrees by {float((first - other).abs().max())}, values are up to {size}")
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            started = time.thread_time()
            form()
            spent[name].append(1000 * (time.thread_time() - started))
    return {name: round(min(each), 2) for name, each in spent.items()}


def main() -> None:
    """Measure and print all forms, and how many times faster than the quadratic one retention is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    milliseconds: dict[str, dict[int, dict[str, float]]] = {}
    with torch.inference_mode():
        for name, make in (("retention", retention_forms), ("scan", scan_forms), ("attention", attention_forms)):
            for tokens in LENGTHS:
                milliseconds.setdefault(name, {})[tokens] = take_turns(make(tokens), arguments.repeats)
                sys.stdout.write(f"{name}, {tokens} tokens: {json.dumps(milliseconds[name][tokens])}\n")
                sys.stdout.flush()
    ratios = {
        f"retention_{tokens}": round(figures["quadratic"] / figures["as shipped"], 2)
        for tokens, figures in milliseconds["retention"].items()
    } | {
        f"scan_{tokens}": round(figures["token by token"] / figures["as shipped"], 2)
        for tokens, figures in milliseconds["scan"].items()
    }
    text = json.dumps({"milliseconds": milliseconds, "times_faster": ratios}, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
