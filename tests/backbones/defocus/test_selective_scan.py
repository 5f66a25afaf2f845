"""The selective scan and the norm after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.backbones.defocus.group_norm import group_rms_norm
from services.backbones.defocus.selective_scan import selective_scan
from tests.benchmarks.defocus_forms import chunks_of_states, doubling, quadratic_chunks, token_by_token

pytestmark = pytest.mark.backbones


def draw(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(2, 6, tokens, dtype=torch.float64)
    delta = torch.rand(2, 6, tokens, dtype=torch.float64) * 0.2 + 0.01
    rates = -torch.rand(6, 4, dtype=torch.float64) * 5 - 0.1
    entering, leaving = torch.randn(2, 2, tokens, 4, dtype=torch.float64)
    return inputs, delta, rates, entering, leaving


def written_out(inputs: Tensor, delta: Tensor, rates: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
    """Every pair of tokens, with the decay between them."""
    elapsed = delta.cumsum(dim=-1)
    between = elapsed[..., :, None] - elapsed[..., None, :]
    decays = torch.exp(rates[:, None, None] * between[..., None])  # (batch, channels, tokens, tokens, states)
    earlier = torch.ones(inputs.shape[-1], inputs.shape[-1]).tril()[..., None]
    return torch.einsum("betsn,btn,bsn,bes->bet", decays * earlier, leaving, entering, delta * inputs)


@pytest.mark.parametrize("tokens", [1, 16, 19, 50])
def test_it_gives_what_the_sum_over_all_pairs_gives(tokens: int) -> None:
    parts = draw(tokens)
    torch.testing.assert_close(selective_scan(*parts)[0], written_out(*parts), atol=2e-14, rtol=1e-12)


@pytest.mark.parametrize("form", [token_by_token, chunks_of_states, quadratic_chunks, doubling])
def test_the_forms_that_it_is_measured_against_give_the_same(form: Callable[..., Tensor]) -> None:
    parts = draw(37)
    torch.testing.assert_close(form(*parts), selective_scan(*parts)[0], atol=1e-13, rtol=1e-12)


def test_token_by_token_gives_what_the_whole_sequence_gives() -> None:
    inputs, delta, rates, entering, leaving = draw(41)
    whole, last = selective_scan(inputs, delta, rates, entering, leaving)
    state, outputs = None, []
    for token in range(41):
        part = slice(token, token + 1)
        out, state = selective_scan(
            inputs[..., part], delta[..., part], rates, entering[:, part], leaving[:, part], state
        )
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, dim=-1), whole, atol=1e-15, rtol=1e-13)
    torch.testing.assert_close(state, last, atol=1e-15, rtol=1e-13)


def test_what_decays_is_apart_from_what_enters() -> None:
    """Longer steps at slower rates change nothing where what enters stays."""
    inputs, delta, rates, entering, leaving = draw(30)
    same, _ = selective_scan(inputs / 3, delta * 3, rates / 3, entering, leaving)
    torch.testing.assert_close(same, selective_scan(inputs, delta, rates, entering, leaving)[0])


def test_gradients_are_those_of_the_sum() -> None:
    parts = draw(21)
    for part in parts:
        part.requires_grad_()
    mine = torch.autograd.grad(selective_scan(*parts)[0].square().sum(), parts)
    theirs = torch.autograd.grad(written_out(*parts).square().sum(), parts)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_long_sequences_stay_finite() -> None:
    inputs = torch.randn(1, 4, 2000)
    entering, leaving = torch.randn(2, 1, 2000, 2)
    outputs, _ = selective_scan(inputs, torch.full_like(inputs, 3.0), torch.full((4, 2), -9.0), entering, leaving)
    assert bool(outputs.isfinite().all())


def test_the_group_norm_forgets_the_size_of_every_group() -> None:
    features = torch.randn(2, 5, 192, dtype=torch.float64)
    sizes = torch.tensor([3.0, 0.5, 40.0]).repeat_interleave(64)
    normed = group_rms_norm(features, 64)
    torch.testing.assert_close(group_rms_norm(features * sizes, 64), normed, atol=1e-5, rtol=1e-5)
    assert normed.reshape(2, 5, 3, 64).square().mean(dim=-1).flatten().tolist() == pytest.approx([1.0] * 30, rel=1e-4)
