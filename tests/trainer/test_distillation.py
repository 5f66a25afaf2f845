"""A small vision tower learns from a large one: the objective, where towers are read from, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.mllm.model import Mllm
from services.mllm.towers import VisionSize
from services.runtime.weights import WeightsError, save_weights
from services.trainer.checkpoint import newest_checkpoint
from services.trainer.distillation.objective import HiddenStateDistillation, last_hidden_states
from services.trainer.distillation.pictures import Pictures, hold_out
from services.trainer.distillation.plan import Distillation, TowerConfig
from services.trainer.distillation.student import make_student, start_from
from services.trainer.distillation.tower_folder import read_tower
from services.trainer.distillation_stage import DistillationStage
from services.trainer.loop import train
from services.trainer.recipe import Checkpoints, Data, Evaluation, Recipe, Schedule, load_recipe
from superlink.configuration import ConfigurationError
from tests.mllm.original_checkpoints import write_original

pytestmark = pytest.mark.internvl

TEACHER = VisionSize(
    patch_embedding="linear", hidden_size=32, layers=3, heads=2, intermediate_size=48, patch_size=8, layer_scale=1.0
)
STUDENT = TEACHER.model_copy(update={"hidden_size": 16, "layers": 2})
SIDE = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_weights(make_student(TEACHER, SIDE), tmp_path / "teacher", TowerConfig(vision=TEACHER, tile_size=SIDE))
    return tmp_path / "teacher"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images" / "deeper"
    folder.mkdir(parents=True)
    for number in range(12):
        colour = rng.integers(0, 256, 3, dtype=np.uint8)
        half = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (20, 9, 3))
        whole = np.concatenate([np.broadcast_to(colour, (20, 21, 3)), half], axis=1)
        Image.fromarray(whole).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def recipe(teacher: Path, images: Path | None, steps: int = 4, **changes: Any) -> Recipe:
    plan = {"student": STUDENT, "tile_size": SIDE, "layers": 2, "images": images} | changes.pop("plan", {})
    start = {"teacher": teacher} | changes.pop("start", {})
    return Recipe(
        name="small",
        stage="distillation",
        threads=1,
        schedule=Schedule(steps=steps, batch_size=4, learning_rate=5e-3, warmup_steps=1),
        data=Data(workers=0, **changes.pop("data", {})),
        evaluation=Evaluation(every_steps=100, scenes=4),
        checkpoints=Checkpoints(every_steps=2),
        distillation=Distillation(**plan),
        start_from=start,
        **changes,
    )


def run(plan: Recipe, folder: Path, stop_after: int | None = None) -> tuple[DistillationStage, dict[str, float]]:
    torch.manual_seed(0)
    stage = DistillationStage(plan)
    return stage, train(plan, stage, folder, stop_after)


def states(width: int, layers: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, width, generator=generator) for _ in range(layers)]


def test_the_loss_is_the_negative_mean_cosine_of_projected_and_taught_states() -> None:
    torch.manual_seed(0)
    objective = HiddenStateDistillation(3, student_width=6, teacher_width=4, projection="linear")
    own, taught = states(6, 3, seed=1), states(4, 3, seed=2)

    cosines = []
    for number, projection in enumerate(objective.projections):
        parameters = dict(projection.named_parameters())
        mapped = own[number] @ parameters["weight"].T + parameters["bias"]
        products = (mapped * taught[number]).sum(dim=-1)
        cosines.append((products / mapped.norm(dim=-1) / taught[number].norm(dim=-1)).mean())

    torch.testing.assert_close(objective(own, taught), torch.stack(cosines))
    torch.testing.assert_close(objective.loss(own, taught), -torch.stack(cosines).mean())


def test_a_student_that_agrees_has_minus_one_whatever_the_lengths_of_its_states() -> None:
    objective = HiddenStateDistillation(2, student_width=4, teacher_width=4, projection="none")
    own = states(4, 2, seed=1)

    assert float(objective.loss(own, own)) == pytest.approx(-1.0)
    assert float(objective.loss([3 * each for each in own], own)) == pytest.approx(-1.0)
    assert float(objective.loss([-each for each in own], own)) == pytest.approx(1.0)


def test_a_student_that_begins_as_its_teacher_has_nothing_to_learn(teacher: Path, images: Path) -> None:
    plan = recipe(teacher, images, plan={"student": TEACHER, "projection": "none"}, start={"student": teacher})
    stage = DistillationStage(plan)

    assert float(stage.losses(torch.stack([*stage.held_out()]))["cosine"].detach()) == pytest.approx(-1.0, abs=1e-6)


def test_the_last_layers_are_compared_and_no_earlier_one(teacher: Path, images: Path) -> None:
    tower, pixels = read_tower(teacher), torch.randn(2, 3, SIDE, SIDE)
    embedded = tower.embeddings(pixels)
    expected = []
    for layer in tower.encoder.layer:
        embedded = layer(embedded)
        expected.append(embedded)

    for layers in (1, 2, 3):
        found = last_hidden_states(tower, pixels, layers)
        assert len(found) == layers
        for one, other in zip(found, expected[-layers:], strict=True):
            torch.testing.assert_close(one, other)


def test_the_student_learns_and_the_teacher_stays_what_it_is(teacher: Path, images: Path, tmp_path: Path) -> None:
    before = load_file(teacher / "model.safetensors")
    plan = recipe(teacher, images, steps=30)
    torch.manual_seed(0)
    stage = DistillationStage(plan)
    start = {name: tensor.clone() for name, tensor in stage.student.state_dict().items()}
    first = stage.evaluate(stage.held_out())

    figures = train(plan, stage, tmp_path / "run")

    assert figures["cosine"] > first["cosine"] + 0.2
    after = stage.teacher.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not stage.teacher.training
    assert not any(parameter.requires_grad for parameter in stage.teacher.parameters())
    assert any(not torch.equal(start[name], tensor) for name, tensor in stage.student.state_dict().items())


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(teacher: Path, images: Path, tmp_path: Path) -> None:
    plan = recipe(teacher, images)
    run(plan, tmp_path / "whole")
    run(plan, tmp_path / "halves", stop_after=2)
    run(plan, tmp_path / "halves")

    newest = [newest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "halves")]
    whole, resumed = (load_file(folder / "model.safetensors") for folder in newest if folder is not None)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # A teacher of 22 GB is not written again with every checkpoint.
    assert not any("teacher" in name for name in whole)


def test_what_is_exported_is_the_vision_tower_of_an_mllm(teacher: Path, images: Path, tmp_path: Path) -> None:
    stage, _ = run(recipe(teacher, images, plan={"layers": 1, "projection": "linear"}), tmp_path / "run")
    exported = read_tower(tmp_path / "run" / "export")
    pixels = torch.randn(2, 3, SIDE, SIDE)

    torch.testing.assert_close(
        exported(pixels).last_hidden_state, stage.student(pixels).last_hidden_state, atol=0, rtol=0
    )
    names = set(load_file(tmp_path / "run" / "export" / "model.safetensors"))
    assert names == set(InternVLVisionModel(STUDENT.library_config(SIDE)).state_dict())


def test_scenes_do_where_there_is_no_folder_of_images(teacher: Path, sprite_file: Path, tmp_path: Path) -> None:
    plan = recipe(teacher, None, steps=2, data={"sprites": sprite_file})

    _, figures = run(plan, tmp_path)

    assert -1 <= figures["cosine"] <= 1


@pytest.mark.parametrize("is_6b", [False, True])
def test_a_teacher_is_read_alone_or_out_of_an_mllm(tmp_path: Path, is_6b: bool) -> None:
    """The tower by itself, as InternViT-6B is published, gives what the same tower gives in a whole checkpoint."""
    state = write_original(tmp_path / "whole", "internvl2_5", is_6b)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["vision_config"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text(json.dumps(config | {"model_type": "intern_vit_6b"}))
    prefix = "vision_model."
    alone = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
    save_file(alone, tmp_path / "alone" / "model.safetensors")
    mllm, tokenizer = Mllm.load(tmp_path / "whole")
    mllm.save(tmp_path / "ours", tokenizer)
    mllm.internvl.save_pretrained(tmp_path / "native")
    mllm.internvl.model.vision_tower.save_pretrained(tmp_path / "native_alone")
    pixels = torch.randn(2, 3, 56, 56)
    expected = mllm.internvl.model.vision_tower(pixels).last_hidden_state

    for folder in ("whole", "alone", "ours", "native", "native_alone"):
        torch.testing.assert_close(read_tower(tmp_path / folder)(pixels).last_hidden_state, expected, atol=0, rtol=0)


def test_a_tensor_that_a_teacher_lacks_is_named(teacher: Path) -> None:
    state = load_file(teacher / "model.safetensors")
    del state["encoder.layer.1.lambda_2"]
    save_file(state, teacher / "model.safetensors")

    with pytest.raises(WeightsError, match=r"encoder\.layer\.1\.lambda_2"):
        read_tower(teacher)


def clip(folder: Path, image_size: int, layers: int = 2) -> CLIPVisionModel:
    torch.manual_seed(2)
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=8,
            hidden_act="gelu",
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    # The hub's files have the whole CLIP's prefix.
    state = load_file(folder / "model.safetensors")
    renamed = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": each for name, each in state.items()
    }
    renamed["logit_scale"] = torch.zeros(())
    save_file(renamed, folder / "model.safetensors")
    return model


def test_a_student_begins_with_clips_embeddings_and_blocks(tmp_path: Path) -> None:
    model = clip(tmp_path / "clip", SIDE)
    tower = make_student(STUDENT, SIDE)
    start_from(tower, tmp_path / "clip")
    library: Any = getattr(model, "vision_model", model)
    pixels, embedded = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 5, 16)

    torch.testing.assert_close(tower.embeddings(pixels), library.embeddings(pixels))
    torch.testing.assert_close(
        tower.encoder(embedded).last_hidden_state, library.encoder(inputs_embeds=embedded).last_hidden_state
    )


def test_clips_positions_are_stretched_over_more_patches_and_the_class_token_keeps_its_own(tmp_path: Path) -> None:
    model = clip(tmp_path / "clip", SIDE)
    tower = make_student(STUDENT, 32)
    start_from(tower, tmp_path / "clip")
    library: Any = getattr(model, "vision_model", model)
    pixels = torch.randn(1, 3, 32, 32)

    torch.testing.assert_close(tower.embeddings(pixels), library.embeddings(pixels, interpolate_pos_encoding=True))


def test_a_clip_of_another_depth_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "clip", SIDE, layers=3)

    with pytest.raises(WeightsError, match=r"encoder\.layer\.2"):
        start_from(make_student(STUDENT, SIDE), tmp_path / "clip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": {"layers": 3}}, r"distillation\.layers: 3 cannot be compared, the student has 2"),
        ({"plan": {"projection": "none"}}, r"distillation\.projection: the student is 16 wide and the teacher 32"),
        ({"plan": {"student": STUDENT.model_copy(update={"patch_size": 4})}}, r"student\.patch_size: of 16 pixels"),
        ({"evaluation": Evaluation(scenes=12)}, r"evaluation\.scenes: 12 pictures cannot be held out of 12"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(
    teacher: Path, images: Path, changes: dict[str, Any], message: str
) -> None:
    plan = recipe(teacher, images, plan=changes.get("plan", {})).model_copy(
        update={key: value for key, value in changes.items() if key != "plan"}
    )
    with pytest.raises(ConfigurationError, match=message):
        DistillationStage(plan)


@pytest.mark.parametrize(
    ("gone", "message"), [("distillation", "distillation: the stage needs"), ("start_from", r"start_from\.teacher")]
)
def test_what_is_missing_is_named_by_its_key(teacher: Path, images: Path, gone: str, message: str) -> None:
    plan = recipe(teacher, images).model_copy(update={gone: {"distillation": None, "start_from": {}}[gone]})
    with pytest.raises(ConfigurationError, match=message):
        DistillationStage(plan)


def test_what_it_does_not_start_from_is_named(teacher: Path, images: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"start_from\.techer: this stage knows student and teacher"):
        DistillationStage(recipe(teacher, images, start={"techer": teacher}))


def test_a_misspelt_key_is_answered_with_the_nearest(teacher: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(teacher, images).model_dump_json().replace('"projection"', '"projektion"'))

    with pytest.raises(ConfigurationError, match=r"distillation\.projektion.*'projection'"):
        load_recipe(file)


def test_a_folder_without_images_and_a_broken_image_are_named(teacher: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"distillation\.images: there is no image in .*empty"):
        DistillationStage(recipe(teacher, tmp_path / "empty"))
    (images / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigurationError, match=r"broken\.png: is not a readable image"):
        Pictures([images / "broken.png"], SIDE, seed=0)[0]


def test_held_out_pictures_are_never_learned_from_and_a_pass_shows_each_of_the_others_once(images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    learned, held_out = hold_out(files, 4, seed=3)

    assert sorted(learned + held_out) == files
    assert len(held_out) == 4
    stream = Pictures(learned, SIDE, seed=3)
    shown = [[stream[start + place].sum().item() for place in range(len(learned))] for start in (0, len(learned))]
    assert sorted(shown[0]) == sorted(shown[1])
    assert shown[0] != shown[1]
    assert len(set(shown[0])) == len(learned)
