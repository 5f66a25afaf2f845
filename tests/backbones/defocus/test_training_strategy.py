"""Scheduled drop path and the auxiliary loss."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn.functional import cross_entropy

from services.backbones.defocus.blocks import TransformerBlock
from services.backbones.defocus.classifier import Classifier
from services.backbones.defocus.configuration import ClassifierConfig
from services.backbones.defocus.drop_path import drop_path_rates
from tests.backbones.defocus.small import MIXERS, random_pixels, small_config, small_encoder

pytestmark = pytest.mark.backbones

Auxiliary = Literal["none", "pooled", "tokens"]


def small_classifier(auxiliary: Auxiliary, kind: str = "retention") -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(encoder=small_config(kind), classes=5, auxiliary=auxiliary)).double()


def test_the_drop_path_schedule_has_the_published_values() -> None:
    rates = [drop_path_rates(epoch, 300, 24, 0.1, 0.7) for epoch in range(300)]
    assert all(by_layer[0] == 0 for by_layer in rates)
    assert rates[0][-1] == pytest.approx(0.1)
    assert rates[150][-1] == pytest.approx(0.40100, abs=5e-6)
    assert rates[299][-1] == pytest.approx(0.7)
    assert rates[299][12] == pytest.approx(0.7 * 12 / 23)


@pytest.mark.parametrize("kind", list(MIXERS))
def test_dropping_paths_keeps_the_mean_and_the_first_layer(kind: str) -> None:
    """The mean over many masks is the output without dropping, within 3 standard errors."""
    encoder = small_encoder(kind, depth=1)
    block = encoder.blocks[0]
    hidden = torch.randn(1, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        # Of the two branches of a transformer's block the first only: the second is no linear function of it.
        if isinstance(block, TransformerBlock):
            for parameter in block.mlp.parameters():
                parameter.zero_()
        whole = block(hidden, 0, None)[0] - hidden
        encoder.set_drop_path([0.4])
        encoder.train()
        torch.manual_seed(0)
        added = block(hidden.expand(4000, -1, -1), 0, None)[0] - hidden
    share = (added / whole).flatten(1)[:, 0]
    assert sorted({round(float(value), 6) for value in share}) == pytest.approx([0.0, 1 / 0.6], abs=1e-5)
    assert float(share.mean()) == pytest.approx(1.0, abs=3 * float(share.std()) / 4000**0.5)

    encoder.set_drop_path(drop_path_rates(9, 10, 1, 0.1, 0.7))
    with torch.no_grad():
        torch.testing.assert_close(block(hidden, 0, None)[0] - hidden, whole)


def test_dropped_samples_are_not_computed() -> None:
    encoder = small_encoder("retention", depth=1).train()
    encoder.set_drop_path([0.5])
    seen: list[int] = []
    encoder.blocks[0].mixer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    torch.manual_seed(0)
    encoder.run(torch.randn(200, 3, 32, dtype=torch.float64))
    assert 70 < seen[0] < 130


def test_a_batch_that_is_dropped_whole_passes_unchanged() -> None:
    encoder = small_encoder("mamba", depth=1).train()
    encoder.set_drop_path([1 - 1e-12])
    tokens = torch.randn(2, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(encoder.run(tokens)[0], encoder.norm(tokens))


@pytest.mark.parametrize("auxiliary", ["none", "pooled", "tokens"])
def test_what_the_losses_are(auxiliary: Auxiliary) -> None:
    classifier = small_classifier(auxiliary)
    features, labels = torch.randn(3, 17, 32, dtype=torch.float64), torch.tensor([0, 4, 2])
    total = classifier.loss(features, labels)
    on_class = cross_entropy(classifier.head(features[:, -1]), labels)
    expected = on_class
    if classifier.auxiliary_head is not None:
        logits = classifier.auxiliary_head(features[:, :-1])
        if auxiliary == "pooled":
            # A linear head of the mean is the mean of the head.
            expected = on_class + cross_entropy(logits.mean(dim=1), labels)
        else:
            each = torch.stack([cross_entropy(logits[:, token], labels) for token in range(16)])
            expected = (on_class + each.mean()) / 2
    torch.testing.assert_close(total, expected)


def gradients_of_final_features(auxiliary: Auxiliary) -> torch.Tensor:
    classifier = small_classifier(auxiliary)
    features = classifier.encoder(random_pixels(3))
    total = classifier.loss(features, torch.tensor([0, 4, 2]))
    gradient: torch.Tensor = torch.autograd.grad(total, features)[0]
    return gradient


def test_the_pooled_loss_reaches_all_image_tokens_alike() -> None:
    gradient = gradients_of_final_features("pooled")[:, :-1]
    torch.testing.assert_close(gradient, gradient[:, :1].expand_as(gradient))
    assert float(gradient.abs().sum()) > 0


def test_without_it_nothing_reaches_them() -> None:
    gradient = gradients_of_final_features("none")
    assert bool((gradient[:, :-1] == 0).all())
    assert bool((gradient[:, -1] != 0).any())


def test_inference_asks_the_class_token_alone() -> None:
    classifier = small_classifier("pooled").eval()
    with torch.no_grad():
        before = classifier(random_pixels(2))
        assert classifier.auxiliary_head is not None
        for parameter in classifier.auxiliary_head.parameters():
            parameter.add_(1.0)
        assert torch.equal(classifier(random_pixels(2)), before)
    assert before.shape == (2, 5)
