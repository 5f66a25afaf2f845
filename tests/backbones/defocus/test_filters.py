"""Decay and phase together are a bandpass filter along the sequence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.backbones.defocus.decay import ExponentialDecay
from services.backbones.defocus.decayed_attention import decayed_attention
from services.backbones.defocus.retention import retention
from services.backbones.defocus.rotary import RotaryPhase, initial_frequencies

pytestmark = pytest.mark.backbones


def phase_at(frequency: float, width: int = 2) -> RotaryPhase:
    phase = RotaryPhase(width, "fixed").double()
    phase.frequencies.fill_(frequency)
    return phase


def test_frequencies_begin_as_released() -> None:
    expected = [0.74737, 0.55792, 0.41586, 0.30932, 0.22943, 0.16952, 0.12460, 0.09091]
    expected += [0.06565, 0.04670, 0.03249, 0.02184, 0.01385, 0.00786, 0.00337, 0.0]
    assert initial_frequencies(16).tolist() == pytest.approx(expected, abs=5e-6)


def test_the_response_to_an_impulse_has_the_peak_and_the_width_of_the_theory() -> None:
    """lambda = -0.1, theta = 0.7 (eq. 7)."""
    tokens, phase = 600, phase_at(0.7)
    impulse = torch.zeros(1, 1, tokens, 1, dtype=torch.float64)
    impulse[0, 0, 0] = 1

    def part(first: float, second: float) -> Tensor:
        query = torch.tensor([first, second], dtype=torch.float64).expand(1, 1, tokens, 2)
        key = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, tokens, 2)
        decay = torch.tensor([-0.1], dtype=torch.float64)
        return retention(phase(query), phase(key), impulse, decay)[0].flatten()

    impulse_response = torch.complex(part(1, 0), -part(0, 1))
    frequency = torch.arange(0.4, 1.0, 0.0005, dtype=torch.float64)
    turns = torch.exp(-1j * frequency[:, None] * torch.arange(tokens))
    gain = (turns @ impulse_response).abs()

    assert float(gain.max()) == pytest.approx(10.508, abs=1e-3)
    assert float(frequency[gain.argmax()]) == pytest.approx(0.7, abs=1e-3)
    passed = frequency[gain >= gain.max() / math.sqrt(2)]
    # Half-power width: 2 |lambda|.
    assert float(passed[-1] - passed[0]) == pytest.approx(0.2, abs=2e-3)


def shifted_products(phase: RotaryPhase) -> list[float]:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 16, dtype=torch.float64)
    return [float((phase(query, t) @ phase(key, s).T).detach()) for t, s in ((5, 2), (8, 5), (105, 102))]


def test_with_paired_frequencies_only_the_distance_counts() -> None:
    first, *others = shifted_products(RotaryPhase(16, "learnable").double())
    assert others == pytest.approx([first] * 2, abs=1e-6)


def test_with_released_frequencies_the_place_counts_too() -> None:
    first, *others = shifted_products(RotaryPhase(16, "learnable", released=True).double())
    assert min(abs(other - first) for other in others) > 0.1


def test_a_scale_divides_the_index() -> None:
    vectors = torch.randn(3, 7, 16, dtype=torch.float64)
    scaled, plain = (RotaryPhase(16, "fixed", scale=scale).double() for scale in (4.0, 1.0))
    for place in range(7):
        token = vectors[:, place : place + 1]
        torch.testing.assert_close(scaled(token, 4 * place), plain(token, place))


def test_decays_are_negative_whatever_is_learned() -> None:
    decay = ExponentialDecay(4, 0.002, 0.2, learnable=True)
    assert decay().tolist() == pytest.approx([-0.002, -0.00928, -0.0431, -0.2], rel=1e-2)
    with torch.no_grad():
        decay.log_rate.copy_(torch.tensor([-9.0, 0.0, 3.0, 9.0]))
    assert bool((decay() < 0).all())


def test_gradients_of_extreme_decays_are_finite() -> None:
    decay = ExponentialDecay(4, 0.002, 0.2, learnable=True)
    with torch.no_grad():
        decay.log_rate.copy_(torch.tensor([-9.0, 0.0, 3.0, 9.0]))
    query, key, value = torch.randn(3, 2, 4, 300, 8)
    for mixed in (retention(query, key, value, decay())[0], decayed_attention(query, key, value, decay())):
        (gradient,) = torch.autograd.grad(mixed.square().sum(), decay.log_rate)
        assert bool(gradient.isfinite().all())
        assert bool((gradient[:2] != 0).all())


def test_fixed_filters_do_not_learn_and_are_saved() -> None:
    phase, decay = RotaryPhase(16, "fixed"), ExponentialDecay(2, 0.01, 0.5, learnable=False)
    assert not [*phase.parameters(), *decay.parameters()]
    assert "frequencies" in phase.state_dict()
    assert "log_rate" in decay.state_dict()
