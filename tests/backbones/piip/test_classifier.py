"""Classification: the readout is what it says, and sizes are the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from services.backbones.piip.classifier import MergedClassifier, PyramidClassifier
from services.backbones.piip.published import SBL, TSB, VitSize, from_scratch, pyramid
from tests.backbones.piip.small import config

pytestmark = pytest.mark.backbones


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("sizes", "resolutions", "parameters"),
    [
        (TSB, (368, 192, 128), 144_031_416),
        (SBL, (320, 160, 96), 488_870_456),
        (SBL, (384, 192, 128), 489_000_504),
    ],
)
def test_parameter_counts(sizes: tuple[VitSize, ...], resolutions: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        assert (
            count(PyramidClassifier(pyramid(sizes, resolutions, class_token=True), 1000, "class_token")) == parameters
        )


def test_the_model_from_scratch_has_the_published_parts() -> None:
    with torch.device("meta"):
        network = MergedClassifier(from_scratch(), 1000)
    branches = [count(branch) / 1e6 for branch in network.pyramid.branches]
    assert branches == pytest.approx([59.6, 15.1, 4.0], rel=0.004)
    assert count(network.pyramid.units) / 1e6 == pytest.approx(21.2, rel=0.004)
    assert count(network.merge) / 1e6 == pytest.approx(0.31, rel=0.02)
    assert count(network) / 1e6 == pytest.approx(100.3 + 0.64, rel=0.002)


def test_class_tokens_are_read_and_not_the_top_left_patch() -> None:
    torch.manual_seed(0)
    classifier = PyramidClassifier(config((64, 32), stages=1, class_token=True), 5, "class_token").eval()
    pixels = torch.randn(2, 3, 64, 64)
    seen = list(classifier.pyramid(pixels))
    heads = zip(classifier.heads, classifier.norms, seen, strict=True)
    expected = torch.stack([head(norm(state.class_token[:, 0])) for head, norm, state in heads]).mean(dim=0)
    torch.testing.assert_close(classifier(pixels), expected)

    by_mean = PyramidClassifier(config((64, 32), stages=1, class_token=True), 5, "mean").eval()
    by_mean.load_state_dict(classifier.state_dict())
    assert not torch.allclose(by_mean(pixels), classifier(pixels))


def test_class_tokens_that_do_not_exist_are_not_read() -> None:
    with pytest.raises(ValueError, match="class_token: true"):
        PyramidClassifier(config((64, 32)), 5, "class_token")


def test_merged_branches_have_one_head() -> None:
    logits = MergedClassifier(config((64, 32)), 7)(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7)
