from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.pose.configuration import PoseConfig
from services.pose.model import PoseEstimator
from services.trainer.keypoint_figures import oks_average_precision
from services.trainer.keypoint_maps import KeypointMapHead, keypoint_map_term, keypoint_maps
from services.trainer.pose_samples import choose_keypoints, image_keypoints
from services.trainer.pose_stage import PoseStage
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.pose_names import FIGURE_NAMES, POSE_NAMES, figure_row, keypoint_rows
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import DEER, PERSON, SKELETONS
from tests.trainer.conftest import draw_sprites
from tests.trainer.test_segmenter import SIZES


@pytest.fixture(scope="module")
def figure_composer(composer: Composer) -> Composer:
    return Composer(draw_sprites(), replace(composer.options, most_figures=3, largest_side=200))


@pytest.fixture(scope="module")
def stage(sprite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> PoseStage:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    Detector(DetectorConfig(**SIZES, vocabulary=7)).save(folder / "detector")
    (folder / "rows").mkdir()
    save_file({"vocabulary.weight": torch.full((len(POSE_NAMES), 16), 0.25)}, folder / "rows" / "model.safetensors")
    return PoseStage(
        Recipe(
            name="small",
            stage="pose",
            threads=1,
            schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
            frozen=("pose.vocabulary",),
            calibration_scenes=4,
            data=Data(sprites=sprite_file, workers=0, largest_side=160, most_figures=3),
            pose=PoseConfig(**SIZES, instances=6, keypoint_layers=2),
            start_from={"detector": folder / "detector", "vocabulary": folder / "rows"},
        )
    )


def test_a_name_is_one_row_whoever_has_it() -> None:
    assert len({name.english for name in POSE_NAMES}) == len({name.chinese for name in POSE_NAMES}) == len(POSE_NAMES)
    assert [POSE_NAMES[figure_row(skeleton.key)].english for skeleton in SKELETONS] == ["person", "deer"]
    for skeleton in SKELETONS:
        rows = keypoint_rows(skeleton)
        assert min(rows) >= FIGURE_NAMES
        assert [POSE_NAMES[row].chinese for row in rows] == [keypoint.chinese for keypoint in skeleton.keypoints]
        assert [POSE_NAMES[row].sigma for row in rows] == [keypoint.sigma for keypoint in skeleton.keypoints]
    assert keypoint_rows(PERSON)[1] == keypoint_rows(DEER)[0]


def test_the_keypoints_asked_for_vary_and_are_those_of_figures(figure_composer: Composer) -> None:
    scene = next(
        scene
        for scene in (figure_composer.compose(seed) for seed in range(20))
        if {thing.category.key for thing in scene.objects if thing.keypoints is not None} == {"deer"}
    )
    asked = [choose_keypoints(scene, np.random.default_rng(seed)) for seed in range(60)]

    own = set(keypoint_rows(DEER))
    assert all(0 < len(rows) == len(set(rows)) for rows in asked)
    assert sum(set(rows) == own for rows in asked) > 12
    assert sum(set(rows) < own for rows in asked) > 12
    # Now and then all names there are, of which a deer has not all.
    assert sum(not set(rows) <= own for rows in asked) > 2
    assert len({tuple(rows) for rows in asked if set(rows) == own}) > 10


def test_keypoints_of_the_targets_are_where_the_scene_has_them(figure_composer: Composer) -> None:
    scene = figure_composer.compose(4)
    figures = [index for index, thing in enumerate(scene.objects) if thing.keypoints is not None]
    rows = [keypoint_rows(PERSON)[0], keypoint_rows(DEER)[4], keypoint_rows(PERSON)[9]]

    keypoints = image_keypoints(scene, [figures], rows)

    names = [POSE_NAMES[row].english for row in rows]
    for place, index in enumerate(figures):
        thing = scene.objects[index]
        [skeleton] = [each for each in SKELETONS if each.key == thing.category.key]
        own = [keypoint.english for keypoint in skeleton.keypoints]
        for column, name in enumerate(names):
            if name in own:
                where = keypoints.places[place, column].numpy() * max(scene.height, scene.width)
                np.testing.assert_allclose(where, thing.keypoints[own.index(name)], rtol=1e-4)
                assert keypoints.visibility[place, column] == thing.visibility[own.index(name)]
            else:
                assert keypoints.visibility[place, column] == 0


def truth_of(scenes: list[Scene], key: str) -> list[dict[str, object]]:
    return [
        {
            "image_id": number,
            "bbox": [0, 0, 1, 1],
            "area": thing.area,
            "keypoints": np.column_stack([thing.keypoints, thing.visibility]).flatten().tolist(),
        }
        for number, scene in enumerate(scenes)
        for thing in scene.objects
        if thing.category.key == key
    ]


def test_a_perfect_prediction_has_full_average_precision_and_a_bad_one_none(figure_composer: Composer) -> None:
    scenes = [figure_composer.compose(seed) for seed in range(6)]
    sizes = [(scene.height, scene.width) for scene in scenes]
    sigmas = [keypoint.sigma for keypoint in PERSON.keypoints]
    truth = truth_of(scenes, "person")
    perfect = [{**each, "score": 0.9} for each in truth]
    shifted = [{**each, "keypoints": [value + 500 for value in each["keypoints"]]} for each in perfect]

    assert len(truth) > 2
    assert oks_average_precision(sizes, truth, perfect, sigmas) == (1.0, 1.0)
    assert oks_average_precision(sizes, truth, shifted, sigmas) == (0.0, 0.0)
    assert oks_average_precision(sizes, truth, [], sigmas) == (0.0, 0.0)


def test_a_step_teaches_keypoints_and_keeps_the_rows(
    stage: PoseStage, figure_composer: Composer, tmp_path: Path
) -> None:
    stage.model.train()
    stage.model.get_submodule("pose.vocabulary").requires_grad_(False)
    scenes = [figure_composer.compose(seed) for seed in range(3)]

    terms = stage.losses(stage.collate([stage.prepare(scene, seed) for seed, scene in enumerate(scenes)]))
    torch.stack(list(terms.values())).sum().backward()
    figures = stage.evaluate(scenes[:2])
    stage.export(tmp_path)

    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert {"keypoint", "oks", "confidence", "class", "box"} <= terms.keys()
    assert stage.pose.keypoint_decoder.start_head[0].weight.grad.abs().sum() > 0
    assert bool((stage.pose.vocabulary.weight == 0.25).all())
    assert {"oks_ap50", "oks_ap50_person", "oks_ap50_deer"} <= figures.keys()
    assert all(0 <= figure <= 1 for figure in figures.values())
    exported = PoseEstimator.load(tmp_path)
    assert exported.config.presence_calibration != PoseConfig().presence_calibration
    spec = exported.spec
    assert [skeleton.names for skeleton in spec.skeletons] == [("person", "people"), ("人",), ("deer",), ("鹿",)]
    assert all(len(skeleton.keypoints) == 17 for skeleton in spec.skeletons)


def test_keypoint_maps_peak_in_the_cells_that_show_a_keypoint(figure_composer: Composer) -> None:
    scene = figure_composer.compose(3)
    longer = max(scene.height, scene.width)

    fine, coarse = keypoint_maps(scene, 64).split([8 * 8, 4 * 4])

    assert float(fine.min()) >= 0
    assert float(fine.max()) == float(coarse.max()) == 1
    for thing in scene.objects:
        if thing.keypoints is None:
            continue
        rows = keypoint_rows({skeleton.key: skeleton for skeleton in SKELETONS}[thing.category.key])
        for row, place in zip(rows, thing.keypoints / longer, strict=True):
            if (place >= 0).all() and (place < 1).all():
                column, line = (int(value * 8) for value in place)
                assert fine[line * 8 + column, row - FIGURE_NAMES] == 1
    absent = [skeleton for skeleton in SKELETONS if all(thing.category.key != skeleton.key for thing in scene.objects)]
    for skeleton in absent:
        others = {row for other in SKELETONS if other is not skeleton for row in keypoint_rows(other)}
        own = [row - FIGURE_NAMES for row in keypoint_rows(skeleton) if row not in others]
        assert float(fine[:, own].max()) == 0


def test_cells_learn_what_keypoints_they_show() -> None:
    torch.manual_seed(0)
    head = KeypointMapHead(16)
    memory, shown = torch.randn(2, 100, 16), torch.zeros(2, 80, len(POSE_NAMES) - FIGURE_NAMES)
    shown[0, 7, 3] = 1
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)

    history = []
    for _ in range(60):
        loss = keypoint_map_term(head, memory, shown, 1.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())

    assert history[-1] < 0.1 * history[0]
    chances = head(memory[:, :80]).sigmoid().detach()
    assert float(chances[0, 7, 3]) > 0.5 > float(chances[shown < 1].max())
