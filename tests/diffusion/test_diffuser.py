"""The diffusion tool, on tiny untrained networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel

from services.diffusion.configuration import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    FinderConfig,
    MapperConfig,
    SketcherConfig,
)
from services.diffusion.framing import frame, restore
from services.diffusion.model import Diffuser
from services.diffusion.source_encoder import join_scales
from services.diffusion.structures import DiffusionOptions, Request, Source
from services.runtime.weights import WeightsError

QUERIES = 4
SIDE = 32
OPTIONS = DiffusionOptions(steps=3, guidance=2.0, image_guidance=1.5, width=SIDE, height=SIDE)


def tiny_config() -> DiffusionConfig:
    return DiffusionConfig(
        queries_per_group=QUERIES,
        link_width=16,
        vocabulary=6,
        image_side=SIDE,
        autoencoder=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), decoder_blocks=(1, 1, 1)),
        mapper=MapperConfig(width=16, heads=2, queries=3),
        sketcher=SketcherConfig(things=(1, 3), hidden=8, width=8, channels=8, side=4),
        finder=FinderConfig(width=8),
        denoiser=DenoiserConfig(channels=(16, 32), attention=(False, True), heads_width=16),
    )


@pytest.fixture(scope="module")
def diffuser() -> Diffuser:
    torch.manual_seed(0)
    return Diffuser(tiny_config()).eval()


def links(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, QUERIES, 16, generator=torch.Generator().manual_seed(seed))


def pixels(rows: int) -> torch.Tensor:
    return torch.rand(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def ignore(_done: int, _total: int) -> None:
    """No one asks for progress."""


def test_the_mapper_makes_a_context_of_its_queries(diffuser: Diffuser) -> None:
    context = diffuser.mapper(links(2))
    assert context.shape == (2, 3, 16)
    swapped = diffuser.mapper(links(2).flip(1))
    # Links are an ordered sequence, as words are.
    assert not torch.allclose(context, swapped, atol=1e-3)


def test_conditions_are_dropped_as_often_as_configured() -> None:
    config = tiny_config().model_copy(update={"dropped_text": 0.1, "dropped_both": 0.05, "dropped_source": 0.2})
    torch.manual_seed(0)
    text, source = Diffuser(config).drop(200_000)
    assert float(text.float().mean()) == pytest.approx(0.15, abs=0.004)
    assert float((text & source).float().mean()) == pytest.approx(0.05, abs=0.003)
    assert float(source.float().mean()) == pytest.approx(0.25, abs=0.005)


def drawing(diffuser: Diffuser, asked: torch.Tensor) -> Request:
    """What asks for drawings of four by four latents."""
    return diffuser.request(asked, diffuser.sketcher(asked), [None] * len(asked), 4, 4)


def test_a_dropped_text_is_the_empty_request(diffuser: Diffuser) -> None:
    whole = drawing(diffuser, links(2))
    request = whole.without(diffuser.mapper.empty, torch.tensor([True, False]))
    assert torch.equal(request.context[0], diffuser.mapper.empty)
    assert not request.sketch[0].any()
    assert not request.cover[0].any()
    assert torch.equal(request.context[1], diffuser.mapper(links(2))[1])
    assert torch.equal(request.sketch[1], whole.sketch[1])


def predicted(diffuser: Diffuser, rows: int) -> torch.Tensor:
    """The velocity itself: 8 bits hide small differences."""
    made = []
    hook = diffuser.denoiser.register_forward_hook(lambda _module, _inputs, output: made.append(output.sample))
    diffuser.sample(links(4)[:rows], pixels(4)[:rows], None, [7, 8, 9, 10][:rows], OPTIONS, ignore)
    hook.remove()
    # States are stacked: neither, source alone, both.
    return torch.stack(made).unflatten(1, (3, rows))


def test_an_image_is_the_same_in_any_batch(diffuser: Diffuser) -> None:
    together, alone = predicted(diffuser, 4), predicted(diffuser, 1)
    assert float((together[:, :, :1] - alone).abs().max()) < 1e-4


def test_the_seed_decides_the_image(diffuser: Diffuser) -> None:
    first = diffuser.sample(links(1), None, None, [1], OPTIONS, ignore)
    again = diffuser.sample(links(1), None, None, [1], OPTIONS, ignore)
    other = diffuser.sample(links(1), None, None, [2], OPTIONS, ignore)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawings_have_the_size_that_was_asked_for(diffuser: Diffuser) -> None:
    wide = DiffusionOptions(steps=1, guidance=2.0, image_guidance=1.0, width=48, height=16)
    made = diffuser.sample(links(1), None, None, [0], wide, ignore)
    assert made.shape == (1, 3, 16, 48)
    assert made.dtype == torch.uint8


def test_work_ends_between_steps_when_it_is_no_longer_wanted(diffuser: Diffuser) -> None:
    steps = []

    def stop(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        diffuser.sample(links(1), None, None, [0], OPTIONS, stop)
    assert steps == [(1, 3), (2, 3)]


def test_an_edit_without_its_source_is_a_drawing(diffuser: Diffuser) -> None:
    noisy, levels = torch.randn(2, 4, 4, 4), torch.tensor([10, 900])
    request = drawing(diffuser, links(2))
    source, _ = diffuser.see(pixels(2), links(2))
    gone = source.masked(torch.tensor([False, False]))
    drawn = diffuser.predict(noisy, levels, request, diffuser.no_source(2, 4, 4))
    assert torch.equal(diffuser.predict(noisy, levels, request, gone), drawn)
    assert not torch.equal(diffuser.predict(noisy, levels, request, source), drawn)


def test_a_region_is_seen_where_it_is_marked(diffuser: Diffuser) -> None:
    marked = torch.zeros(1, 1, SIDE, SIDE)
    marked[..., :16, 8:16] = 1
    source, layout = diffuser.see(pixels(1), links(1), marked)
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., :2, 1] = 1
    assert torch.equal(source.region, expected)
    # What is marked may be the middle of something.
    assert layout.reach.all()


def test_the_source_encoder_does_not_learn() -> None:
    encoder = Diffuser(tiny_config()).train().source_encoder
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    encoder(join_scales(*encoder.extract(pixels(2)))).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert encoder.projection.weight.grad is not None


def test_weights_lie_in_diffusers_layout_and_load_again(diffuser: Diffuser, tmp_path: Path) -> None:
    diffuser.save(tmp_path)
    autoencoder = AutoencoderDC.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    latents = diffuser.autoencoder.encode(pixels(1)).latent
    assert torch.allclose(autoencoder.encode(pixels(1)).latent, latents, atol=1e-4)
    UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    loaded = Diffuser.load(tmp_path)
    for sources in (None, pixels(1)):
        made = diffuser.sample(links(1), sources, None, [3], OPTIONS, ignore)
        again = loaded.sample(links(1), sources, None, [3], OPTIONS, ignore)
        assert int((again.int() - made.int()).abs().max()) <= 1


def test_a_missing_part_is_named(diffuser: Diffuser, tmp_path: Path) -> None:
    diffuser.save(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="unet"):
        Diffuser.load(tmp_path)


def test_learning_lowers_the_error() -> None:
    torch.manual_seed(0)
    diffuser = Diffuser(tiny_config())
    wanted, asked = torch.randn(4, 4, 4, 4), links(4)
    parts = (diffuser.mapper, diffuser.sketcher, diffuser.denoiser)
    optimiser = torch.optim.AdamW([parameter for part in parts for parameter in part.parameters()], 2e-3)
    errors = []
    for _ in range(60):
        loss = diffuser.loss(wanted, drawing(diffuser, asked), diffuser.no_source(4, 4, 4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert np.mean(errors[-10:]) < 0.7 * np.mean(errors[:10])


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (64, 64), (7, 5)])
def test_what_is_framed_comes_back_in_its_own_shape(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    image = (np.dstack([rows, columns, 1 - rows]) * 255).astype(np.uint8)
    square = frame(image, 96)
    assert square.shape == (96, 96, 3)
    restored = restore(square, size)
    assert restored.shape == image.shape
    assert np.abs(restored.astype(int) - image).mean() < 6


@torch.no_grad()
def test_what_the_network_leaves_unsaid_is_the_source_and_the_sketch(
    diffuser: Diffuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_latents, sketch = torch.randn(2, 2, diffuser.config.autoencoder.latent_channels, 4, 4)
    cover = torch.zeros(2, 1, 4, 4)
    cover[1, :, :2] = 1
    request = Request(torch.zeros(2, 1, 1), sketch * cover, cover)
    wanted = torch.where(cover > 0, sketch, source_latents)
    nothing = diffuser.no_source(2, 4, 4)
    levels = torch.tensor([10, 900])
    noise = torch.randn_like(wanted)
    kept = diffuser.scheduler.alphas_cumprod[levels][:, None, None, None]
    noisy = diffuser.scheduler.add_noise(wanted, noise, levels)
    # A network that knows the noise and has nothing to say of the image.
    monkeypatch.setattr(diffuser.denoiser, "forward", lambda *_, **__: SimpleNamespace(sample=kept.sqrt() * noise))

    velocity = diffuser.predict(noisy, levels, request, Source(source_latents, nothing.features, nothing.region))

    torch.testing.assert_close(kept.sqrt() * noisy - (1 - kept).sqrt() * velocity, wanted, rtol=1e-4, atol=1e-4)
