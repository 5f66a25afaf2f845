"""All forms of retention say the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.backbones.defocus.retention import retention
from services.backbones.defocus.rotary import RotaryPhase

pytestmark = pytest.mark.backbones

DECAY = -torch.tensor([-3.0, -1.5, -0.5], dtype=torch.float64).exp()


def draw() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 37, 8, dtype=torch.float64)
    return query, key, torch.randn(2, 3, 37, 5, dtype=torch.float64)


def written_out(query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])
    weights = torch.where(distance >= 0, torch.exp(decay[:, None, None] * distance), 0.0)
    return (query @ key.mT * weights) @ value


@pytest.mark.parametrize("chunk", [1, 8, 37, 64])
def test_chunks_give_what_the_sum_gives(chunk: int) -> None:
    query, key, value = draw()
    mixed, _ = retention(query, key, value, DECAY, chunk=chunk)
    torch.testing.assert_close(mixed, written_out(query, key, value, DECAY), atol=5e-14, rtol=0)


def test_token_by_token_gives_what_the_whole_sequence_gives() -> None:
    query, key, value = draw()
    state, mixed = None, []
    for token in range(37):
        part = slice(token, token + 1)
        out, state = retention(query[:, :, part], key[:, :, part], value[:, :, part], DECAY, state)
        mixed.append(out)
    whole, last = retention(query, key, value, DECAY, chunk=8)
    torch.testing.assert_close(torch.cat(mixed, dim=2), whole, atol=5e-14, rtol=0)
    torch.testing.assert_close(state, last, atol=5e-14, rtol=0)


def test_one_complex_state_gives_the_same_as_rotated_queries_and_keys() -> None:
    query, key, value = draw()
    phase = RotaryPhase(8, "fixed").double()
    mixed, _ = retention(phase(query), phase(key), value, DECAY)

    turning = torch.exp(torch.complex(DECAY[:, None].expand(3, 4), phase.frequencies.expand(3, 4)))[None, :, :, None]
    complex_query, complex_key = (torch.view_as_complex(each.reshape(2, 3, 37, 4, 2)) for each in (query, key))
    state = torch.zeros(2, 3, 4, 5, dtype=torch.complex128)
    for token in range(37):
        state = turning * state + complex_key[:, :, token, :, None].conj() * value[:, :, token, None]
        expected = (complex_query[:, :, token, :, None] * state).sum(dim=2).real
        torch.testing.assert_close(mixed[:, :, token], expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("frequency", "expected"), [(0.0, [1, 1.5, 1.75]), (math.pi / 2, [1, 1, 0.75])])
def test_three_tokens_by_hand(frequency: float, expected: list[float]) -> None:
    phase = RotaryPhase(2, "fixed").double()
    phase.frequencies.fill_(frequency)
    ones = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 3, 2)
    value = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    decay = torch.tensor([math.log(0.5)], dtype=torch.float64)
    mixed, _ = retention(phase(ones), phase(ones), value, decay)
    assert mixed.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_long_sequences_with_strong_decays_stay_finite() -> None:
    query, key, value = torch.randn(3, 1, 2, 3000, 4)
    mixed, state = retention(query, key, value, torch.tensor([-50.0, -1e-4]))
    assert bool(mixed.isfinite().all())
    assert bool(state.isfinite().all())
