"""Edits are laid over their source: what did not change stays as it was, in every size."""

from __future__ import annotations

import numpy as np
import torch

from services.diffusion.framing import frame
from services.diffusion.layers import difference_layer, lay_over

SIDE = 64


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def layer_of(made: torch.Tensor, seen: torch.Tensor) -> np.ndarray:
    pixels = torch.cat([made, difference_layer(made, seen, torch.ones(1, 1, 8, 8))], dim=1)
    return ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()


def test_what_equals_the_source_is_the_source_pixel_by_pixel() -> None:
    source = picture(150, 200)
    seen = torch.from_numpy(frame(source, SIDE)).permute(2, 0, 1)[None].float() / 127.5 - 1
    # Within what noise makes of it.
    made = (seen + 0.02 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert np.array_equal(lay_over(source, layer_of(made, seen)), source)


def test_what_changed_hides_the_source_and_the_rest_stays() -> None:
    source = np.full((128, 128, 3), 200, dtype=np.uint8)
    seen = torch.full((1, 3, SIDE, SIDE), 200 / 127.5 - 1)
    made = seen.clone()
    made[..., 16:32, 16:32] = -1.0
    result = lay_over(source, layer_of(made, seen))
    assert result[38:58, 38:58].max() < 8
    assert (result[:, 90:] == 200).all()
    assert (result[90:] == 200).all()


def test_a_layer_shows_nothing_beyond_its_reach() -> None:
    seen, made = torch.full((1, 3, SIDE, SIDE), -1.0), torch.full((1, 3, SIDE, SIDE), 1.0)
    reach = torch.ones(1, 1, 8, 8)
    reach[..., 4:] = 0
    opacity = difference_layer(made, seen, reach)
    assert float(opacity[..., :24].min()) == 1
    assert float(opacity[..., 40:].max()) == -1


def test_a_layer_fits_sources_that_are_no_squares() -> None:
    source = np.zeros((40, 100, 3), dtype=np.uint8)
    seen, made = torch.full((1, 3, SIDE, SIDE), -1.0), torch.full((1, 3, SIDE, SIDE), 1.0)
    result = lay_over(source, layer_of(made, seen))
    assert result.shape == source.shape
    assert result.min() == 255
