"""How far attention and gradients spread."""

from __future__ import annotations

import pytest
import torch

from services.backbones.defocus.configuration import Attention, EncoderConfig
from services.backbones.defocus.encoder import Encoder
from services.backbones.defocus.over_focus import (
    attention_map,
    loss_gradients,
    participation_ratio,
    receptive_fields,
    top_key_share,
)
from tests.backbones.defocus.small import MIXERS, random_pixels, small_encoder

pytestmark = pytest.mark.backbones


def test_the_participation_ratio_counts_tokens() -> None:
    one, all_alike, two = torch.zeros(8), torch.full((8,), 0.3), torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0])
    one[3] = 5.0
    assert participation_ratio(torch.stack([one, all_alike, two])).tolist() == pytest.approx([1.0, 8.0, 2.0])


def test_the_share_of_the_most_looked_at_tokens() -> None:
    attention = torch.zeros(2, 10, 10)
    attention[0, :, :5] = 1.0
    attention[1] = 1.0
    assert top_key_share(attention).tolist() == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("kind", list(MIXERS))
def test_an_attention_map_looks_back_only(kind: str) -> None:
    weights = attention_map(small_encoder(kind), random_pixels(2), layer=1)
    assert weights.shape == (2, 17, 17)
    assert float(weights.triu().abs().max()) == 0.0
    assert weights.amax(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0])
    assert bool((weights.tril(-1).sum(dim=2)[:, 1:] > 0).all())


def test_a_receptive_field_is_the_gradient_of_the_class_token() -> None:
    """Against finite differences at the input of the last layer."""
    encoder = small_encoder("retention")
    pixels = random_pixels(1)
    fields = receptive_fields(encoder, pixels)
    assert fields.shape == (2, 1, 17)
    with torch.no_grad():
        tokens = torch.cat([encoder.embed(pixels), encoder.class_tokens(1)], dim=1)
        entering = encoder.blocks[0](tokens, 0, None)[0]

        def size(hidden: torch.Tensor) -> float:
            return float(encoder.blocks[1](hidden, 0, None)[0][0, -1].norm())

        for token in (0, 7, 16):
            slopes = []
            for channel in range(32):
                nudge = torch.zeros_like(entering)
                nudge[0, token, channel] = 1e-5
                slopes.append((size(entering + nudge) - size(entering - nudge)) / 2e-5)
            assert float(fields[1, 0, token]) == pytest.approx(float(torch.tensor(slopes).norm()), rel=1e-5)


def test_gradients_stop_at_the_layer_that_the_loss_cannot_pass() -> None:
    """Without attention to others only the class token's own gradient is left."""
    mixer = Attention(heads=2, decay="none", phase="none")
    encoder = Encoder(EncoderConfig(mixer=mixer, width=32, depth=2, image_size=8, patch_size=2))
    with torch.no_grad():
        encoder.blocks[1].mixer.out.weight.zero_()
    norms = loss_gradients(encoder, lambda: encoder(random_pixels(2).float())[:, -1].square().sum())
    assert norms.shape == (2, 2, 17)
    assert participation_ratio(norms[1]).tolist() == pytest.approx([1.0, 1.0])
    assert bool((participation_ratio(norms[0]) > 1.0).all())
