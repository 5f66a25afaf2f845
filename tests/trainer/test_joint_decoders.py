"""What holds for every decoder in joint training, and what each of them learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from services.detection.model import Detector
from services.diffusion.model import Diffuser
from services.pose.configuration import PoseConfig
from services.pose.model import PoseEstimator
from services.trainer.chat_stage import language_term
from services.trainer.dense_supervision import DenseHead
from services.trainer.joint_stage import JointStage
from services.trainer.loop import freeze, make_optimiser
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import routed_phrases
from services.trainer.scenes.drawings import CONCEPTS
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from services.trainer.scenes.pose_names import FIGURE_NAMES, POSE_NAMES
from services.trainer.scenes.referring import members
from services.trainer.stage import save_parts
from services.trainer.vocabularies import pose_row
from tests.trainer.test_diffusion_stages import DIFFUSION
from tests.trainer.test_joint import SMALL, recipe

DECODERS = ("detection", "segmentation", "pose", "diffusion")
# What learns of each, its loss terms that come through the links, and where an export of it goes in a later recipe.
MODULES = {"detection": "detector", "segmentation": "segmenter", "pose": "pose", "diffusion": "diffuser"}
LEARNED_BY = {
    "detection": ("class", "box", "iou"),
    "segmentation": ("class", "box", "iou", "mask"),
    "pose": ("class", "box", "keypoint", "oks"),
    "diffusion": ("velocity", "sketch", "verdict"),
}
EXPORTS = {
    "mllm": "mllm",
    "detector": "detection",
    "segmenter": "segmentation",
    "pose": "pose",
    "diffuser": "diffusion",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of a detector and of a diffusion tool."""
    torch.manual_seed(0)
    detector, diffuser = tmp_path_factory.mktemp("detector"), tmp_path_factory.mktemp("diffuser")
    Detector(SMALL.model_copy(update={"vocabulary": len(CATEGORIES)})).save(detector)
    save_parts(detector, dense=DenseHead(SMALL.width))
    sizes = {"link_width": SMALL.link_width, "vocabulary": len(CONCEPTS), "adapter_version": "tiny-1"}
    Diffuser(DIFFUSION.model_copy(update=sizes)).save(diffuser)
    return {"detector": detector, "diffuser": diffuser}


@pytest.fixture(scope="module")
def all_decoders(sprite_file: Path, parts: dict[str, Path]) -> JointStage:
    torch.manual_seed(0)
    return JointStage(recipe("joint", sprite_file, decoders=dict.fromkeys(DECODERS, 1.0), start_from=parts))


def seeds_for(stage: JointStage, decoder: str) -> range:
    """The seeds of the first step that belongs to ``decoder``."""
    size = stage.recipe.schedule.batch_size
    first = next(step * size for step in range(100) if stage.decoder_of(step * size).name == decoder)
    return range(first, first + size)


def batch_for(stage: JointStage, composer: Composer, decoder: str) -> Any:
    """The batch of the first step that belongs to ``decoder``."""
    return stage.collate([stage.prepare(stage.compose(composer, seed), seed) for seed in seeds_for(stage, decoder)])


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_all_samples_of_a_step_are_for_one_decoder_on_every_rank(
    all_decoders: JointStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    size = all_decoders.recipe.schedule.batch_size
    steps = [
        {all_decoders.decoder_of(seed).name for seed in range(step * 2 * size, (step + 1) * 2 * size)}
        for step in range(120)
    ]
    assert all(len(decoders) == 1 for decoders in steps)
    assert all(15 < sum(decoders == {decoder} for decoders in steps) < 45 for decoder in DECODERS)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_step_leaves_the_other_decoders_and_their_moments_alone(
    all_decoders: JointStage, composer: Composer, decoder: str
) -> None:
    stage = all_decoders
    freeze(stage.model, ())
    optimiser = make_optimiser(stage.model, stage.recipe.schedule)
    others = [other for other in DECODERS if other != decoder]
    for other in others:
        optimiser.zero_grad(set_to_none=True)
        total(stage.losses(batch_for(stage, composer, other))).backward()
        optimiser.step()
    bystanders = nn.ModuleDict({name: part for other in others for name, part in stage.decoders[other].parts.items()})
    before = {name: tensor.clone() for name, tensor in bystanders.state_dict().items()}
    moments = {
        name: optimiser.state[parameter]["exp_avg"].clone()
        for name, parameter in bystanders.named_parameters()
        if parameter in optimiser.state
    }
    assert {name.split(".")[0] for name in moments} == {MODULES[other] for other in others} | (
        {"detector_dense"} if "detection" in others else set()
    )

    optimiser.zero_grad(set_to_none=True)
    total(stage.losses(batch_for(stage, composer, decoder))).backward()
    optimiser.step()

    assert all(parameter.grad is None for parameter in bystanders.parameters())
    for name, tensor in bystanders.state_dict().items():
        assert torch.equal(tensor, before[name])
    parameters = dict(bystanders.named_parameters())
    for name, moment in moments.items():
        assert torch.equal(optimiser.state[parameters[name]]["exp_avg"], moment)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_step_teaches_its_decoder_and_the_language_model(
    all_decoders: JointStage, composer: Composer, decoder: str
) -> None:
    stage = all_decoders
    freeze(stage.model, ())
    rows = stage.decoders[decoder].vocabulary.rows.clone()
    terms = stage.losses(batch_for(stage, composer, decoder))
    stage.model.zero_grad()
    total({name: terms[name] for name in LEARNED_BY[decoder]}).backward()

    head = stage.mllm.link.heads[decoder].layers[0].weight
    first_layer = stage.mllm.internvl.model.language_model.layers[0].self_attn.q_proj.weight
    learned = next(
        parameter
        for parameter in stage.decoders[decoder].parts[MODULES[decoder]].parameters()
        if parameter.requires_grad
    )
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    for weight in (head, first_layer, learned):
        assert weight.grad is not None
        assert float(weight.grad.abs().sum()) > 0
    assert torch.equal(stage.decoders[decoder].vocabulary.rows, rows)


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_across_a_process_boundary_are_those_of_one_graph(
    all_decoders: JointStage, composer: Composer, decoder: str
) -> None:
    stage = all_decoders
    stage.model.eval()
    batch = batch_for(stage, composer, decoder)
    parameters = list(stage.mllm.parameters())

    def forward() -> list[torch.Tensor]:
        tower = stage.mllm.tower(batch.chat.tiles)
        _, states = language_term(stage.mllm, batch.chat.language, tower)
        return stage.links(batch.chat.language, states, decoder, batch.conversations)

    def decode(links: list[torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(3)
        return total(stage.decoders[decoder].losses(links, batch.task))

    whole = torch.autograd.grad(decode(forward()), parameters, allow_unused=True)
    links = forward()
    # What would cross the wire: the links there, their gradients back.
    received = [link.detach().requires_grad_() for link in links]
    returned = torch.autograd.grad(decode(received), received)
    split = torch.autograd.grad(links, parameters, grad_outputs=returned, allow_unused=True)

    assert any(gradient is not None and float(gradient.abs().max()) > 0 for gradient in whole)
    for one, other in zip(whole, split, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_figures_are_composed_for_pose_and_grounds_with_names_for_segmentation(
    all_decoders: JointStage, composer: Composer
) -> None:
    scenes = {
        decoder: [all_decoders.decoders[decoder].compose(composer, seed) for seed in range(8)]
        for decoder in ("detection", "segmentation", "pose")
    }
    shows_figures = {
        decoder: [any(thing.keypoints is not None for thing in scene.objects) for scene in composed]
        for decoder, composed in scenes.items()
    }
    assert all(shows_figures["pose"])
    assert not any(shows_figures["detection"] + shows_figures["segmentation"])
    assert any(scene.grounds for scene in scenes["segmentation"])


def test_the_pose_estimator_is_asked_for_every_kind_once_and_for_keypoints_in_the_order_of_the_words(
    all_decoders: JointStage, composer: Composer
) -> None:
    decoder = all_decoders.decoders["pose"]
    lengths = set()
    for seed in range(30):
        scene = decoder.compose(composer, seed)
        conversation = decoder.converse(scene, np.random.default_rng(seed))
        sample = decoder.prepare(scene, conversation)

        phrases = routed_phrases(conversation)
        kinds = [pose_row(phrase.phrase) for phrase in phrases if phrase.route == "[POSE_OBJECT]"] + sample.beside
        assert sorted(kinds) == list(range(FIGURE_NAMES))
        assert [phrase.route == "[POSE]" for phrase in phrases] == sample.names_keypoint.tolist()
        named = [phrase.phrase for phrase in phrases if phrase.route == "[POSE]"]
        assert [pose_row(name) for name in named] == sample.keypoints.rows.tolist()
        for place, row in enumerate(kinds):
            meant = members(scene, FIGURE_CATEGORIES[POSE_NAMES[row].english])
            assert int(sample.targets[1][:, place].sum()) == len(meant)
        lengths.add((len(kinds) - len(sample.beside), len(named)))
    assert {kinds for kinds, _ in lengths} == {1, 2}
    assert len({keypoints for _, keypoints in lengths}) > 4


def test_a_picture_is_not_shown_to_who_is_to_ask_for_it_and_the_source_of_an_edit_is(
    all_decoders: JointStage, composer: Composer
) -> None:
    decoder = all_decoders.decoders["diffusion"]
    tasks = set()
    for seed in range(16):
        subject = decoder.compose(composer, seed)
        conversation = decoder.converse(subject, np.random.default_rng(seed))
        shown, drawing = decoder.shown(subject), subject.drawing
        assert conversation.drawings == (drawing.slots.indices,)
        assert (drawing.source is None) == conversation.task.startswith("draw")
        if drawing.source is None:
            assert shown is not drawing.target
        else:
            assert shown is drawing.source
        tasks.add(conversation.task)
    assert tasks == {"draw", "draw_fast", "edit", "edit_fast"}


def test_all_decoders_are_judged_and_exported_as_the_services_load_them(
    all_decoders: JointStage,
    composer: Composer,
    sprite_file: Path,
    parts: dict[str, Path],
    tmp_path: Path,
) -> None:
    figures = all_decoders.evaluate([composer.compose(seed) for seed in range(4)])
    all_decoders.export(tmp_path)

    assert {"ap", "mask_ap50", "oks_ap50", "agreement", "untouched_psnr"} <= figures.keys()
    pose, diffuser = PoseEstimator.load(tmp_path / "pose"), Diffuser.load(tmp_path / "diffusion")
    assert pose.config.presence_calibration != PoseConfig().presence_calibration
    assert pose.spec.adapter_version == diffuser.spec.adapter_version == "tiny-1"
    for file in [*tmp_path.glob("pose/*.safetensors"), *tmp_path.glob("diffusion/*/*.safetensors")]:
        floats = [tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()]
        assert set(floats) == {torch.float16}
    start_from = {name: tmp_path / folder for name, folder in EXPORTS.items()}
    decoders = dict.fromkeys(DECODERS, 1.0)
    later = JointStage(recipe("joint", sprite_file, decoders=decoders, start_from=start_from))
    before, after = all_decoders.model.state_dict(), later.model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # The diffusion tool goes on from its average. Half precision on disk.
        if not name.startswith("diffuser"):
            torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        elif name.startswith("diffuser_average.module."):
            torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
