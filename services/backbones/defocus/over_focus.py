"""How many tokens a layer attends to, and how many gradients reach (De-focus, sections 3.1 and B.1).

Everything is told by gradients, so that attention and state spaces are measured alike. Layers count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.backbones.defocus.encoder import Encoder


@dataclass(frozen=True)
class _Passed:
    """What entered and left every layer, both ``[batch, tokens, width]``."""

    entered: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)


@contextmanager
def _watch(encoder: Encoder) -> Iterator[_Passed]:
    passed = _Passed()

    def note(_: object, arguments: tuple[Tensor, ...], output: tuple[Tensor, object]) -> None:
        passed.entered.append(arguments[0])
        passed.left.append(output[0])

    handles = [block.register_forward_hook(note) for block in encoder.blocks]
    try:
        with torch.enable_grad():
            yield passed
    finally:
        for handle in handles:
            handle.remove()


def loss_gradients(encoder: Encoder, loss: Callable[[], Tensor]) -> Tensor:
    """Norms ``[layers, batch, tokens]`` of the gradients of ``loss`` at each layer's input tokens (the gradient map).

    ``loss`` runs the encoder once.
    """
    with _watch(encoder) as passed:
        gradients = torch.autograd.grad(loss(), passed.entered)
    return _norms(torch.stack(gradients))


def receptive_fields(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Norms ``[layers, batch, tokens]`` of the gradients of a layer's class token at the layer's input tokens."""
    with _watch(encoder) as passed:
        encoder(pixels)
        fields = [
            _norms(torch.autograd.grad(_norms(left[:, -1]).sum(), entered, retain_graph=True)[0])
            for entered, left in zip(passed.entered, passed.left, strict=True)
        ]
    return torch.stack(fields)


def attention_map(encoder: Encoder, pixels: Tensor, layer: int) -> Tensor:
    """``[batch, queries, keys]``: gradient norms of every output token of ``layer`` at each of its input tokens.

    The diagonal is 0, and the greatest value of an image is 1.
    """
    with _watch(encoder) as passed:
        encoder(pixels)
        entered, left = passed.entered[layer], passed.left[layer]
        rows = [
            _norms(torch.autograd.grad(_norms(left[:, query]).sum(), entered, retain_graph=True)[0])
            for query in range(left.shape[1])
        ]
    weights = torch.stack(rows, dim=1)
    weights.diagonal(dim1=1, dim2=2).zero_()
    return weights / weights.amax(dim=(1, 2), keepdim=True)


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms


def participation_ratio(norms: Tensor) -> Tensor:
    """(sum of w)² / sum of w² over the last dimension: 1 where one token has all, T where all T have the same."""
    return norms.sum(dim=-1).square() / norms.square().sum(dim=-1)


def top_key_share(attention: Tensor, keys: int = 5) -> Tensor:
    """``[batch]``: how much of the attention ``[batch, queries, keys]`` the ``keys`` most looked-at tokens get."""
    received = attention.sum(dim=1)
    return received.topk(keys, dim=-1).values.sum(dim=-1) / received.sum(dim=-1)


def mean_participation(norms: Tensor) -> list[float]:
    """Of every layer the mean participation ratio, for norms ``[layers, batch, tokens]``."""
    ratios: list[float] = participation_ratio(norms).mean(dim=1).tolist()
    return ratios
