from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.detection.configuration import DetectorConfig
from services.mllm.model import Mllm
from services.trainer.calibration import fit_logistic
from services.trainer.chat_stage import ChatStage, copy_stem
from services.trainer.detection_evaluation import coco_average_precision
from services.trainer.joint_stage import JointStage
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.composer import Composer

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


def recipe(stage: str, sprites: Path) -> Recipe:
    return Recipe(
        name="small",
        stage=stage,
        threads=1,
        schedule=Schedule(steps=1, batch_size=3, learning_rate=1e-3),
        data=Data(sprites=sprites, workers=0, largest_side=160),
        detector=SMALL,
    )


@pytest.fixture(scope="module")
def joint(sprite_file: Path) -> JointStage:
    torch.manual_seed(0)
    return JointStage(recipe("joint", sprite_file))


def test_detection_gradients_flow_through_the_link_into_the_language_model(
    joint: JointStage, composer: Composer
) -> None:
    joint.model.train()
    batch = joint.collate([joint.prepare(composer.compose(seed), seed) for seed in range(3)])

    terms = joint.losses(batch)
    detection = sum(terms[name] for name in ("class", "box", "iou"))
    joint.model.zero_grad()
    detection.backward()

    query_table = joint.mllm.link.queries("[DET]")
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
        states = [
            joint.mllm(
                part.input_ids,
                part.attention_mask,
                tower.features[[image for image in part.images if image >= 0]].flatten(0, 1),
            ).hidden
            for part in together.chat.language
        ]
        links = joint._links(together, states)

    assert [link.shape[0] for link in links] == [len(sample.categories) for sample in samples]


def test_exported_folders_load_as_the_services_load_them(
    joint: JointStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.joint_stage._CALIBRATION_SCENES", 4)
    joint.export(tmp_path)

    mllm, tokenizer = Mllm.load(tmp_path / "mllm")

    assert mllm.config.adapter_version == "tiny-1"
    assert tokenizer.route_ids.keys() == {"[DET]"}
    assert (tmp_path / "detection" / "model.safetensors").is_file()


def test_the_stem_takes_over_the_detectors_backbone(joint: JointStage, sprite_file: Path) -> None:
    torch.manual_seed(1)
    chat = ChatStage(recipe("chat", sprite_file))
    copy_stem(joint.detector.state_dict(), chat.mllm)
    stem = chat.mllm.internvl.model.vision_tower.embeddings.patch_embeddings.stem.eval()
    joint.detector.eval()
    pixels = torch.randn(1, 3, 64, 64)

    with torch.no_grad():
        torch.testing.assert_close(stem(pixels), joint.detector.backbone(pixels)[1])


def test_a_logistic_fit_recovers_its_parameters() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2, 20_000).astype(np.float32)
    labels = rng.uniform(size=20_000) < 1 / (1 + np.exp(-(1.5 * values - 0.7)))

    scale, bias = fit_logistic(values, labels)

    assert scale == pytest.approx(1.5, abs=0.08)
    assert bias == pytest.approx(-0.7, abs=0.08)


def test_average_precision_has_its_known_values() -> None:
    truths = [(0, 0, (0, 0, 10, 10), 100.0), (0, 0, (20, 20, 30, 30), 100.0)]

    both = coco_average_precision(1, truths, [(0, 0, (0, 0, 10, 10), 0.9), (0, 0, (20, 20, 30, 30), 0.8)])
    half = coco_average_precision(1, truths, [(0, 0, (0, 0, 10, 10), 0.9)])

    assert both == pytest.approx((1.0, 1.0))
    # Recall reaches 0.5 at precision 1: 51 of the 101 recall points.
    assert half == pytest.approx((51 / 101, 51 / 101))
