from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.mllm.config import DEFAULT_ROUTES
from services.mllm.model import Mllm
from services.pose.configuration import PoseConfig
from services.segmentation.configuration import SegmenterConfig
from services.trainer import calibration
from services.trainer.alignment import alignment_term
from services.trainer.chat_stage import ChatStage, copy_stem, language_term
from services.trainer.coco_figures import coco_average_precision
from services.trainer.dense_supervision import GROUND, word_term
from services.trainer.joint_detection import JointDetection
from services.trainer.joint_stage import JointStage
from services.trainer.loop import freeze
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.referring import members
from services.trainer.vocabularies import Vocabulary, category_of
from services.trainer.words_stage import WordsStage
from superlink.configuration import ConfigurationError

SMALL = DetectorConfig(
    image_side=64,
    width=32,
    heads=2,
    feed_forward_width=32,
    encoder_layers=1,
    decoder_layers=1,
    sampling_points=1,
    queries=10,
    denoising_queries=8,
    link_width=128,
    adapter_version="tiny-1",
)


def recipe(stage: str, sprites: Path, **fields: Any) -> Recipe:
    sizes = SMALL.model_dump(exclude={"name", "route", "version"})
    return Recipe(
        name="small",
        stage=stage,
        threads=1,
        schedule=Schedule(steps=1, batch_size=3, learning_rate=1e-3),
        data=Data(sprites=sprites, workers=0, largest_side=160),
        calibration_scenes=4,
        detector=SMALL,
        segmenter=SegmenterConfig(**sizes, mask_width=8, mask_points=32),
        pose=PoseConfig(**sizes, instances=4, keypoint_layers=1),
        **fields,
    )


@pytest.fixture(scope="module")
def joint(sprite_file: Path) -> JointStage:
    torch.manual_seed(0)
    return JointStage(recipe("joint", sprite_file))


def detector_of(joint: JointStage) -> Detector:
    decoder = joint.decoders["detection"]
    assert isinstance(decoder, JointDetection)
    return decoder.detector


def test_detection_gradients_flow_through_the_link_into_the_language_model(
    joint: JointStage, composer: Composer
) -> None:
    joint.model.train()
    batch = joint.collate([joint.prepare(composer.compose(seed), seed) for seed in range(3)])

    terms = joint.losses(batch)
    detection = sum(terms[name] for name in ("class", "box", "iou"))
    joint.model.zero_grad()
    detection.backward()

    query_table = joint.mllm.link.tables["det"]
    first_layer = joint.mllm.internvl.model.language_model.layers[0].self_attn.q_proj.weight
    assert query_table.grad is not None
    assert float(query_table.grad.abs().sum()) > 0
    assert first_layer.grad is not None
    assert float(first_layer.grad.abs().sum()) > 0
    assert all(bool(torch.isfinite(term)) for term in terms.values())


def test_every_scene_keeps_its_own_links_when_conversations_are_sorted_by_length(
    joint: JointStage, composer: Composer
) -> None:
    joint.model.eval()
    samples = [joint.prepare(composer.compose(seed), seed) for seed in range(5)]
    with torch.no_grad():
        together = joint.collate(samples)
        tower = joint.mllm.tower(together.chat.tiles)
        _, states = language_term(joint.mllm, together.chat.language, tower)
        links = joint.links(together.chat.language, states, "detection", together.conversations)
        alone = []
        for sample in samples:
            batch = joint.collate([sample])
            tower = joint.mllm.tower(batch.chat.tiles)
            _, states = language_term(joint.mllm, batch.chat.language, tower)
            alone += joint.links(batch.chat.language, states, "detection", batch.conversations)

    for link, own in zip(links, alone, strict=True):
        torch.testing.assert_close(link, own, rtol=1e-3, atol=1e-4)


def test_the_detector_is_asked_for_nothing_twice(joint: JointStage, composer: Composer) -> None:
    for seed in range(40):
        scene = composer.compose(seed)
        sample = joint.prepare(scene, seed)
        named = [category_of(group.phrase) for group in sample.chat.conversations[0].rendered.groups]
        # Of one kind there may be several expressions, but none twice, and then not its name.
        assert len(set(sample.task.referring)) == len(sample.task.referring)
        referred = list({meaning.category for meaning in sample.task.referring})
        asked = [category for category in named if category >= 0] + sample.task.beside + referred
        assert len(asked) == len(set(asked))
        if -1 not in named:
            assert len(asked) == len(CATEGORIES)
        for place, category in enumerate(sample.task.beside, start=len(named)):
            boxes = sample.task.targets[1][:, place].sum() if len(sample.task.targets[1]) else 0
            assert boxes == len(members(scene, CATEGORIES[category]))


def test_exported_folders_load_as_the_services_load_them(joint: JointStage, tmp_path: Path) -> None:
    joint.export(tmp_path)

    mllm, tokenizer = Mllm.load(tmp_path / "mllm")

    assert mllm.config.adapter_version == "tiny-1"
    assert tokenizer.route_ids.keys() == {route.token for route in DEFAULT_ROUTES}
    assert (tmp_path / "detection" / "model.safetensors").is_file()


def test_a_later_run_goes_on_from_an_export(joint: JointStage, sprite_file: Path, tmp_path: Path) -> None:
    joint.export(tmp_path)
    start_from = {"mllm": tmp_path / "mllm", "detector": tmp_path / "detection"}

    later = JointStage(recipe("joint", sprite_file).model_copy(update={"start_from": start_from}))

    before, after = joint.model.state_dict(), later.model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # Half precision on disk.
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_stem_takes_over_the_detectors_backbone(joint: JointStage, sprite_file: Path) -> None:
    torch.manual_seed(1)
    chat = ChatStage(recipe("chat", sprite_file))
    copy_stem(detector_of(joint).state_dict(), chat.mllm)
    stem = chat.mllm.internvl.model.vision_tower.embeddings.patch_embeddings.stem.eval()
    detector_of(joint).eval()
    pixels = torch.randn(1, 3, 64, 64)

    with torch.no_grad():
        torch.testing.assert_close(stem(pixels), detector_of(joint).backbone(pixels)[1])


def test_words_are_learned_without_a_pixel(sprite_file: Path, composer: Composer) -> None:
    stage = WordsStage(recipe("words", sprite_file))
    layouts = [stage.compose(composer, seed) for seed in range(4)]
    batch = stage.collate([stage.prepare(layout, seed) for seed, layout in enumerate(layouts)])

    stage.losses(batch)["language"].backward()

    words = stage.mllm.internvl.get_input_embeddings().weight
    assert words.grad is not None
    assert float(words.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in stage.mllm.internvl.model.vision_tower.parameters())
    assert all(part.images == (-1,) * len(part.images) for part in batch)
    assert all(0 <= share <= 1 for share in stage.evaluate(layouts).values())


def test_image_tokens_are_told_the_names_of_what_their_own_cells_show() -> None:
    # Two rows of two tokens, each over two by two cells; words 0 and 1 name category 3.
    cells = torch.full((1, 4, 4), GROUND)
    cells[0, 2:, :2] = 3
    words = torch.zeros(GROUND, 2, dtype=torch.long)
    words[3] = torch.tensor([0, 1])
    right = torch.full((1, 4, 5), -20.0)
    right[0, 2, :2] = 0
    elsewhere = right.roll(1, dims=1)

    assert float(word_term(right, cells, words)) == pytest.approx(np.log(2), abs=1e-4)
    assert float(word_term(elsewhere, cells, words)) == pytest.approx(np.log(5), abs=1e-4)
    assert float(word_term(right, torch.full_like(cells, GROUND), words)) == 0


def test_a_logistic_fit_recovers_its_parameters() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2, 20_000).astype(np.float32)
    labels = rng.uniform(size=20_000) < 1 / (1 + np.exp(-(1.5 * values - 0.7)))

    scale, bias = calibration.fit_logistic(values, labels)

    assert scale == pytest.approx(1.5, abs=0.08)
    assert bias == pytest.approx(-0.7, abs=0.08)


def test_what_is_not_there_at_all_does_not_decide_how_boxes_are_counted(
    joint: JointStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Look-alikes of absent things reach 0 to 0.5. Of what is there the best box has 1 or more, the others -0.5 or more.
    rng = np.random.default_rng(0)
    answers = [calibration.Answer(rng.uniform(0, 0.5, 1), np.array([False]), 0) for _ in range(200)]
    for _ in range(200):
        logits = np.array([rng.uniform(1, 2), *rng.uniform(-0.5, 1, 2), *rng.uniform(-2, -1, 3)])
        answers.append(calibration.Answer(logits, logits > -0.75, 3))
    monkeypatch.setattr(calibration, "ask", lambda *_: answers)

    detector = detector_of(joint)
    calibration.calibrate(detector, lambda *_: torch.zeros(0), [])

    boxes, presence = detector.config.detection_calibration, detector.config.presence_calibration
    assert -1 <= -boxes.bias / boxes.scale <= -0.5
    assert 0.5 <= -presence.bias / presence.scale <= 1


def test_average_precision_has_its_known_values() -> None:
    boxes = [{"image_id": 0, "category_id": 0, "bbox": [x, x, 10, 10], "area": 100.0} for x in (0, 20)]
    found = [{"image_id": 0, "category_id": 0, "bbox": [x, x, 10, 10], "score": 0.9 - x / 200} for x in (0, 20)]

    both = coco_average_precision([(100, 100)], boxes, found, "bbox")
    half = coco_average_precision([(100, 100)], boxes, found[:1], "bbox")

    assert both == pytest.approx((1.0, 1.0))
    # Recall reaches 0.5 at precision 1: 51 of the 101 recall points.
    assert half == pytest.approx((51 / 101, 51 / 101))


def test_links_learn_the_rows_of_the_vocabulary(joint: JointStage, composer: Composer) -> None:
    torch.manual_seed(0)
    joint.model.train()
    batch = joint.collate([joint.prepare(composer.compose(seed), seed) for seed in range(4)])
    optimiser = torch.optim.Adam(joint.mllm.link.parameters(), lr=1e-2)
    with torch.no_grad():
        tower = joint.mllm.tower(batch.chat.tiles)
    vocabularies = {"detection": Vocabulary(detector_of(joint).vocabulary.weight, category_of)}
    losses = []

    for _ in range(8):
        _, states = language_term(joint.mllm, batch.chat.language, tower)
        loss = alignment_term(joint.mllm, batch.chat.language, states, vocabularies)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_names_in_both_languages_and_numbers_mean_their_category() -> None:
    assert category_of("dog") == category_of("Dogs") == category_of("狗") == CATEGORY_INDEX["dog"]
    assert category_of("the leftmost dog") == -1


def test_frozen_modules_neither_learn_nor_update_statistics(joint: JointStage) -> None:
    path = "mllm.internvl.model.vision_tower"

    freeze(joint.model, [path])
    tower = joint.model.get_submodule(path)

    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())
    assert detector_of(joint).neck.training
    with pytest.raises(ConfigurationError, match=r"mllm\.towr"):
        freeze(joint.model, ["mllm.towr"])
    tower.requires_grad_(True)
