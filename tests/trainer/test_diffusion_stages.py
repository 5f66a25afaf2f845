"""The stages that train the diffusion tool: its autoencoder, then its networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.diffusion.configuration import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    MapperConfig,
    SourceEncoderConfig,
)
from services.diffusion.model import Diffuser
from services.diffusion.storage import load_autoencoder
from services.trainer.autoencoder_stage import AutoencoderStage, psnr
from services.trainer.diffusion_evaluation import untouched_psnr
from services.trainer.diffusion_stage import DiffusionStage
from services.trainer.loop import train
from services.trainer.recipe import Checkpoints, Data, Evaluation, Recipe, Schedule
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import CONCEPTS, DRAWING_OPTIONS, draw_edit_drawing
from services.trainer.vocabularies import read_vocabulary
from superlink.configuration import ConfigurationError
from tests.trainer.conftest import draw_sprites

LINK_WIDTH = 16
DETECTOR = DetectorConfig(
    vocabulary=111,
    image_side=64,
    width=32,
    heads=2,
    backbone_base_channels=16,
    feed_forward_width=32,
    encoder_layers=1,
    decoder_layers=1,
    sampling_points=2,
    queries=8,
    denoising_queries=4,
    link_width=LINK_WIDTH,
)
DIFFUSION = DiffusionConfig(
    queries_per_group=8,
    link_width=LINK_WIDTH,
    autoencoder=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), decoder_blocks=(1, 1, 1)),
    mapper=MapperConfig(width=16, heads=2, queries=2),
    source_encoder=SourceEncoderConfig(base_channels=16, channels=4),
    denoiser=DenoiserConfig(channels=(16, 16), attention=(False, True), heads_width=8),
    default_steps=1,
)


def recipe(stage: str, sprites: Path, **start_from: Path) -> Recipe:
    return Recipe(
        name="small",
        stage=stage,
        threads=1,
        schedule=Schedule(steps=2, batch_size=4, learning_rate=3e-3, warmup_steps=1),
        data=Data(sprites=sprites, workers=0, smallest_side=128, largest_side=128),
        evaluation=Evaluation(every_steps=2, scenes=2),
        checkpoints=Checkpoints(every_steps=1),
        diffusion=DIFFUSION,
        start_from=start_from,
    )


@pytest.fixture(scope="module")
def autoencoder_folder(sprite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    AutoencoderStage(recipe("autoencoder", sprite_file)).export(folder)
    return folder


@pytest.fixture(scope="module")
def starts(autoencoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    detector, vocabulary = tmp_path_factory.mktemp("detector"), tmp_path_factory.mktemp("vocabulary")
    Detector(DETECTOR).save(detector)
    save_file({"vocabulary.weight": torch.randn(len(CONCEPTS), LINK_WIDTH)}, str(vocabulary / "model.safetensors"))
    return {"detector": detector, "vocabulary": vocabulary, "autoencoder": autoencoder_folder}


def test_the_autoencoder_learns_a_batch_by_heart(sprite_file: Path) -> None:
    torch.manual_seed(0)
    stage = AutoencoderStage(recipe("autoencoder", sprite_file))
    batch = stage.collate([stage.prepare(stage.compose(stage.composer, seed), seed) for seed in range(3)])
    optimiser = torch.optim.AdamW(stage.model.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        terms = stage.losses(batch)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        errors.append(float(terms["pixels"].detach()))
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])


def test_exported_latents_have_unit_size(autoencoder_folder: Path, sprite_file: Path) -> None:
    stage = AutoencoderStage(recipe("autoencoder", sprite_file, autoencoder=autoencoder_folder))
    scenes = [stage.composer.compose(seed) for seed in range(8)]
    assert stage.evaluate(scenes)["deviation_scenes"] == pytest.approx(1, abs=0.3)


def test_latents_keep_their_size_where_a_run_goes_on(
    autoencoder_folder: Path, sprite_file: Path, tmp_path: Path
) -> None:
    stage = AutoencoderStage(recipe("autoencoder", sprite_file, autoencoder=autoencoder_folder))
    before = stage.autoencoder.config.scaling_factor
    stage.export(tmp_path)
    assert before != pytest.approx(1, abs=1e-3)
    assert load_autoencoder(tmp_path).config.scaling_factor == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_of_the_diffusion_stage_ends_with_weights_that_the_tool_loads(
    precision: Literal["float32", "bfloat16"], sprite_file: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    run = recipe("diffusion", sprite_file, **starts)
    run = run.model_copy(update={"schedule": run.schedule.model_copy(update={"precision": precision})})
    stage = DiffusionStage(run)
    rows = stage.diffuser.vocabulary.weight.clone()
    encoder = {name: value.clone() for name, value in stage.diffuser.autoencoder.state_dict().items()}
    weights = stage.diffuser.denoiser.conv_in.weight.detach().clone()

    figures = train(run, stage, tmp_path)

    assert set(figures) == {"agreement", "baseline", "changed", "untouched_psnr"}
    loaded = Diffuser.load(tmp_path / "export")
    assert torch.equal(loaded.vocabulary.weight, rows)
    assert all(torch.equal(value, encoder[name]) for name, value in loaded.autoencoder.state_dict().items())
    assert not torch.equal(loaded.denoiser.conv_in.weight, weights)
    assert loaded.config.vocabulary == len(CONCEPTS)


def test_a_run_that_goes_on_keeps_its_rows_and_its_autoencoder(
    sprite_file: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    DiffusionStage(recipe("diffusion", sprite_file, **starts)).export(tmp_path)

    later = DiffusionStage(recipe("diffusion", sprite_file, diffuser=tmp_path, detector=starts["detector"]))

    assert not later.diffuser.vocabulary.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in later.diffuser.autoencoder.parameters())
    assert torch.equal(read_vocabulary(tmp_path), later.diffuser.vocabulary.weight)


def test_a_recipe_without_a_detector_is_told_so(sprite_file: Path, starts: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="'detector'"):
        DiffusionStage(
            recipe("diffusion", sprite_file, vocabulary=starts["vocabulary"], autoencoder=starts["autoencoder"])
        )


def test_the_pool_comes_round_without_being_drawn_again(sprite_file: Path, starts: dict[str, Path]) -> None:
    stage = DiffusionStage(recipe("diffusion", sprite_file, **starts))
    first = [stage.compose(stage.composer, seed) for seed in range(4)]
    stage.losses(stage.collate(first))
    again = [stage.compose(stage.composer, seed + 16_000) for seed in range(4)]
    assert all(sample.drawing is not None for sample in first)
    assert all(sample.drawing is None for sample in again)
    assert torch.isfinite(stage.losses(stage.collate(again))["velocity"])


def test_untouched_pixels_are_judged_alone() -> None:
    edit = draw_edit_drawing(Composer(draw_sprites(), DRAWING_OPTIONS), 3, np.random.default_rng(3))
    assert edit.source is not None
    assert untouched_psnr(edit, edit.source.image) > 90
    assert untouched_psnr(edit, 255 - edit.source.image) < 20


def test_psnr_of_a_known_error() -> None:
    wanted = torch.zeros(1, 3, 4, 4)
    # An error of 0.2 in a range of 2 is 20 dB.
    assert psnr(wanted + 0.2, wanted) == pytest.approx(20, abs=1e-3)
