"""The sketcher, small: what it promises of pictures that training never showed."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from services.diffusion.configuration import DiffusionConfig, SketcherConfig
from services.diffusion.sketcher import Sketcher

KINDS, WIDTH, SIDE = 12, 16, 8
# What is asked: a layout and the names of two things, a link each.
CONFIG = SketcherConfig(things=(1, 2), hidden=32, width=24, channels=12, side=SIDE)


def vocabulary() -> tuple[Tensor, Tensor]:
    """The rows of ``KINDS`` things, and a 4 x 4 picture of each."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(KINDS, WIDTH, generator=generator)
    pictures = torch.randn(KINDS, 1, SIDE // 2, SIDE // 2, generator=generator)
    return rows, pictures


def ask(rows: Tensor, pairs: Tensor) -> Tensor:
    """Links ``[pairs, 3, WIDTH]`` that ask for two things side by side."""
    layout = torch.ones(len(pairs), WIDTH)
    return torch.stack([layout, rows[pairs[:, 0]], rows[pairs[:, 1]]], dim=1)


def draw(pictures: Tensor, pairs: Tensor) -> Tensor:
    """The first thing on the left, the second on the right, ``[pairs, 1, SIDE, SIDE]``."""
    both = torch.cat([pictures[pairs[:, 0]], pictures[pairs[:, 1]]], dim=3)
    return functional.pad(both, (0, 0, SIDE // 4, SIDE // 4))


def test_a_thing_is_drawn_where_training_never_showed_it() -> None:
    rows, pictures = vocabulary()
    pairs = torch.cartesian_prod(torch.arange(KINDS), torch.arange(KINDS))
    # One thing is shown on the left alone.
    new = pairs[:, 1] == 0
    shown, unseen = pairs[~new], pairs[new]
    torch.manual_seed(0)
    sketcher = Sketcher(CONFIG, WIDTH, links=3, latent_channels=1)
    optimiser = torch.optim.Adam(sketcher.parameters(), lr=3e-3)
    for _ in range(300):
        loss = functional.mse_loss(sketcher(ask(rows, shown)), draw(pictures, shown))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        error = functional.mse_loss(sketcher(ask(rows, unseen)), draw(pictures, unseen))
    blank = draw(pictures, unseen).square().mean()
    assert float(error) < 0.5 * float(blank)


def test_a_link_that_names_a_thing_must_be_among_those_of_a_group() -> None:
    with pytest.raises(ValidationError, match=r"link 4 names a thing, but a group has 4 links"):
        DiffusionConfig(queries_per_group=4)
