"""The De-focus encoder: causal, streaming, in the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn.functional import softplus

from services.backbones.defocus.classifier import Classifier
from services.backbones.defocus.configuration import (
    Attention,
    ClassifierConfig,
    EncoderConfig,
    EncoderSize,
    Mamba,
)
from services.backbones.defocus.encoder import Encoder, StreamState
from services.backbones.defocus.mamba import MambaMixer
from tests.backbones.defocus.small import MIXERS, random_pixels, small_config, small_encoder

pytestmark = pytest.mark.backbones

KINDS = list(MIXERS)


def count(size: EncoderSize, **encoder: Any) -> int:
    """Parameters of a published size with two heads for the 1000 classes of ImageNet-1k."""
    # The largest keeps the deeper heads of its pre-training.
    head = "tanh" if size == "mamba_large" else "linear"
    config = {"encoder": {"size": size} | encoder, "classes": 1000, "head": head}
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Classifier(ClassifierConfig.model_validate(config)).parameters())


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("mamba_small", 25_092_944), ("mamba_base", 92_650_832), ("mamba_large", 330_117_840)],
)
def test_mamba_sizes_have_the_released_number_of_parameters(size: EncoderSize, parameters: int) -> None:
    assert count(size, mixer=Mamba(released_phase=True)) == parameters
    # Pairs share a frequency: 8 fewer a layer.
    assert count(size) == parameters - 8 * EncoderConfig.model_validate({"size": size}).depth


@pytest.mark.parametrize(
    ("size", "deit_with_two_heads", "heads", "published"),
    [("vit_small", 22_435_664, 6, 22.4e6), ("vit_base", 87_336_656, 12, 87.4e6)],
)
def test_vit_sizes_are_deit_with_a_second_head_and_filters(
    size: EncoderSize, deit_with_two_heads: int, heads: int, published: float
) -> None:
    filters = 12 * (heads + 32)
    assert count(size) == deit_with_two_heads + filters
    assert count(size) == pytest.approx(published, rel=2e-3)


def test_the_retention_size_is_near_the_published_one() -> None:
    assert count("retnet_base") == 94_213_088
    assert count("retnet_base") == pytest.approx(94.1e6, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_changes_nothing_before_it(kind: str) -> None:
    encoder = small_encoder(kind)
    tokens = torch.randn(2, 17, 32, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 9] = torch.randn(2, 32, dtype=torch.float64)
    with torch.no_grad():
        before, after = encoder.run(tokens)[0], encoder.run(changed)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert bool(((before - after)[:, 9:].abs().amax(dim=-1) > 1e-9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_image_tokens_know_nothing_of_the_class_token(kind: str) -> None:
    encoder = small_encoder(kind)
    with torch.no_grad():
        before = encoder(random_pixels(2))
        encoder.class_token.copy_(torch.randn(32))
        after = encoder(random_pixels(2))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 6])
def test_a_stream_gives_what_the_whole_sequence_gives(kind: str, piece: int) -> None:
    encoder = small_encoder(kind, rope_scale=1.5, delta_scale=2.0)
    tokens = torch.randn(2, 17, 32, dtype=torch.float64)
    past: StreamState | None = None
    features = []
    with torch.no_grad():
        for part in torch.split(tokens, piece, dim=1):
            out, past = encoder.run(part, past)
            features.append(out)
        torch.testing.assert_close(torch.cat(features, dim=1), encoder.run(tokens)[0], atol=1e-12, rtol=1e-12)
    assert past is not None
    assert past.tokens == 17


def test_states_of_retention_and_mamba_do_not_grow() -> None:
    sizes = {}
    for kind in ("retention", "mamba"):
        encoder = small_encoder(kind)
        with torch.no_grad():
            _, past = encoder.run(torch.randn(1, 5, 32, dtype=torch.float64))
            _, later = encoder.run(torch.randn(1, 50, 32, dtype=torch.float64), past)
        sizes[kind] = [sum(part.numel() for part in state.layers[0]) for state in (past, later)]
    # One matrix of 16 x 32 a head; 3 inputs and 4 states a channel.
    assert sizes == {"retention": [2 * 16 * 32] * 2, "mamba": [64 * (3 + 4)] * 2}


def test_attention_both_ways_is_not_causal_and_cannot_stream() -> None:
    torch.manual_seed(0)
    mixer = Attention(heads=2, causal=False, decay="none", phase="none")
    config = EncoderConfig(mixer=mixer, width=32, depth=2, image_size=8, patch_size=2, initial_deviation=0.2)
    encoder = Encoder(config).eval()
    tokens = torch.randn(1, 17, 32)
    changed = tokens.clone()
    changed[:, -1] = torch.randn(32)
    with torch.no_grad():
        features, past = encoder.run(tokens)
        assert not torch.allclose(features[:, 0], encoder.run(changed)[0][:, 0])
        with pytest.raises(ValueError, match="whole sequence"):
            encoder.run(tokens, past)


def test_a_longer_time_scale_is_a_shorter_time_step() -> None:
    scaled, plain = (MambaMixer(small_config("mamba", delta_scale=scale), Mamba()).double() for scale in (4.0, 1.0))
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for mixer in (scaled, plain):
            mixer.time_step.weight.zero_()
        step = softplus(scaled.time_step.bias) / 4.0
        plain.time_step.bias.copy_(step + torch.log(-torch.expm1(-step)))
        hidden = torch.randn(2, 9, 32, dtype=torch.float64)
        torch.testing.assert_close(scaled(hidden, 0, None)[0], plain(hidden, 0, None)[0])


def test_mamba_begins_as_released() -> None:
    mixer = Encoder(small_config("mamba")).blocks[0].mixer
    assert isinstance(mixer, MambaMixer)
    steps = softplus(mixer.time_step.bias.detach())
    assert float(steps.min()) == pytest.approx(0.001, rel=1e-4)
    assert float(steps.max()) == pytest.approx(0.1, rel=1e-4)
    assert float(mixer.time_step.weight.detach().abs().max()) <= 3**-0.5
    assert mixer.log_rates.exp()[7].tolist() == pytest.approx([1, 2, 3, 4])
    assert bool((mixer.skip == 1).all())


def test_learned_positions_fit_one_size() -> None:
    encoder = small_encoder("attention", positions="learned")
    with pytest.raises(ValueError, match="25 patches, but positions were learned for 16"):
        encoder(random_pixels(1, side=10))


def test_weights_are_saved_with_fixed_filters(tmp_path: Path) -> None:
    mixer = Attention(heads=2, decay="fixed", phase="fixed", fastest_decay=0.7)
    first = Encoder(EncoderConfig(mixer=mixer, width=32, depth=1, image_size=8, patch_size=2)).eval()
    other = Encoder(EncoderConfig(mixer=Attention(heads=2), width=32, depth=1, image_size=8, patch_size=2)).eval()
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    pixels = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(first(pixels), other(pixels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixer": {"kind": "attention", "heads": 3}}, "32 does not give 3 heads"),
        ({"mixer": {"kind": "attention", "heads": 2, "causal": False}}, "decay is defined for causal attention"),
        ({"mixer": {"kind": "mamba"}, "width": 24}, "no multiple of 32"),
        ({"mixer": {"kind": "mamba"}, "image_size": 9}, "no multiple of patch_size"),
        ({"mixer": {"kind": "mamba", "heads": 2}}, "heads"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderConfig.model_validate({"width": 32, "depth": 1, "image_size": 8, "patch_size": 2} | fields)
