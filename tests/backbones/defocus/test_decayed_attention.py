"""Attention whose logits, not weights, decay with the distance."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.backbones.defocus.decayed_attention import decayed_attention

pytestmark = pytest.mark.backbones


@pytest.mark.parametrize("decay", [None, torch.zeros(3, dtype=torch.float64), torch.full((3,), -1e-30)])
def test_without_decay_it_is_causal_attention(decay: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 300, 8, dtype=torch.float64)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(decayed_attention(query, key, value, decay), expected)


def test_blocks_give_what_the_written_out_formula_gives() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 300, 8, dtype=torch.float64)
    decay = torch.tensor([-0.001, -0.05, -0.7], dtype=torch.float64)
    distance = torch.arange(300)[:, None] - torch.arange(300)
    logits = query @ key.mT / math.sqrt(8) * torch.exp(decay[:, None, None] * distance.clamp(min=0))
    weights = logits.masked_fill(distance < 0, -math.inf).softmax(dim=-1)
    torch.testing.assert_close(decayed_attention(query, key, value, decay), weights @ value)


def test_two_tokens_by_hand() -> None:
    """Logits (0.5, 1.0): a bias of the same decay would give weights (1/3, 2/3)."""
    ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    value = torch.tensor([1.0, 0.0], dtype=torch.float64)[None, None, :, None]
    mixed = decayed_attention(ones, ones, value, torch.tensor([math.log(0.5)], dtype=torch.float64))
    assert float(mixed[0, 0, 1]) == pytest.approx(0.37754, abs=5e-6)


@pytest.mark.parametrize(("rate", "attended"), [(0.001, 194.7), (0.01, 145.3), (0.05, 122.6), (0.2, 147.9)])
def test_far_tokens_keep_weight(rate: float, attended: float) -> None:
    """Logits of 3 everywhere, 197 tokens: how many of them the last one effectively attends to."""
    query = torch.full((1, 1, 197, 1), 3.0, dtype=torch.float64)
    key, value = torch.ones(1, 1, 197, 1, dtype=torch.float64), torch.eye(197, dtype=torch.float64)[None, None]
    weights = decayed_attention(query, key, value, torch.tensor([-rate], dtype=torch.float64))[0, 0, -1]
    assert float(torch.exp(-(weights * weights.log()).sum())) == pytest.approx(attended, abs=0.1)


def test_queries_belong_to_the_last_keys() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 50, 4, dtype=torch.float64)
    for decay in (None, torch.tensor([-0.1, -0.4], dtype=torch.float64)):
        whole = decayed_attention(query, key, value, decay)
        torch.testing.assert_close(decayed_attention(query[:, :, 40:], key, value, decay), whole[:, :, 40:])
