"""Figures are drawn where their keypoints say, and keypoints are called visible where they can be seen."""

from __future__ import annotations

import time

import numpy as np
import pytest

from services.trainer.scenes.figures import HIDDEN, VISIBLE, Figure, draw_figure
from services.trainer.scenes.skeletons import DEER, PERSON, SKELETONS, Skeleton

SIZE = 120


def figures(skeleton: Skeleton, count: int = 150) -> list[Figure]:
    rng = np.random.default_rng(3)
    return [draw_figure(skeleton, SIZE, rng) for _ in range(count)]


def place(figure: Figure, key: str) -> tuple[float, float]:
    x, y = figure.keypoints[figure.skeleton.index(key)].tolist()
    return x, y


def is_visible(figure: Figure, key: str) -> bool:
    return bool(figure.visibility[figure.skeleton.index(key)] == VISIBLE)


def test_both_kinds_have_the_seventeen_keypoints_of_their_data_sets_in_order() -> None:
    assert [point.key for point in PERSON.keypoints] == [
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ]  # fmt: skip
    assert [point.key for point in DEER.keypoints] == [
        "left_eye", "right_eye", "nose", "neck", "root_of_tail", "left_shoulder", "left_elbow", "left_front_paw",
        "right_shoulder", "right_elbow", "right_front_paw", "left_hip", "left_knee", "left_back_paw", "right_hip",
        "right_knee", "right_back_paw",
    ]  # fmt: skip
    assert [point.sigma for point in PERSON.keypoints[:6]] == [0.026, 0.025, 0.025, 0.035, 0.035, 0.079]


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.key)
class TestEveryKind:
    def test_names_are_unique_in_both_languages_and_sides_mirror_each_other(self, skeleton: Skeleton) -> None:
        assert len({point.english for point in skeleton.keypoints}) == len(skeleton.keypoints)
        assert len({point.chinese for point in skeleton.keypoints}) == len(skeleton.keypoints)
        mirrored = skeleton.mirrored
        assert [mirrored[mirrored[number]] for number in range(len(mirrored))] == list(range(len(mirrored)))
        assert mirrored[skeleton.index("left_eye")] == skeleton.index("right_eye")
        assert mirrored[skeleton.index("nose")] == skeleton.index("nose")
        for bone in skeleton.bones:
            assert all(skeleton.index(end) >= 0 for end in bone)

    def test_the_longer_side_has_the_size_that_was_asked_for_and_no_margin(self, skeleton: Skeleton) -> None:
        for figure in figures(skeleton, 40):
            alpha = figure.pixels[..., 3] > 0
            assert max(alpha.shape) == pytest.approx(SIZE, abs=1)
            assert alpha.any(axis=0).mean() > 0.97
            assert alpha.any(axis=1).mean() > 0.97

    def test_visible_keypoints_lie_on_the_figure(self, skeleton: Skeleton) -> None:
        for figure in figures(skeleton):
            height, width = figure.pixels.shape[:2]
            assert (figure.keypoints >= 0).all()
            assert (figure.keypoints <= (width, height)).all()
            for (x, y), visibility in zip(figure.keypoints.tolist(), figure.visibility, strict=True):
                if visibility == VISIBLE:
                    assert figure.pixels[min(int(y), height - 1), min(int(x), width - 1), 3] > 0

    def test_every_keypoint_is_seen_on_some_figures_and_many_are_hidden_on_others(self, skeleton: Skeleton) -> None:
        seen = np.stack([figure.visibility for figure in figures(skeleton)])
        assert set(np.unique(seen)) == {HIDDEN, VISIBLE}
        assert ((seen == VISIBLE).mean(axis=0) > 0.2).all()
        assert 0.5 < (seen == VISIBLE).mean() < 0.95

    def test_poses_differ_and_the_same_generator_gives_the_same_figure(self, skeleton: Skeleton) -> None:
        first, second = (draw_figure(skeleton, SIZE, np.random.default_rng(8)) for _ in range(2))
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.keypoints, second.keypoints)
        relative = np.stack([figure.keypoints / SIZE for figure in figures(skeleton)])
        assert (relative.std(axis=0).max(axis=1) > 0.03).all()

    def test_a_figure_costs_a_few_milliseconds(self, skeleton: Skeleton) -> None:
        rng = np.random.default_rng(0)
        best = np.inf
        for _ in range(10):
            start = time.perf_counter()
            draw_figure(skeleton, SIZE, rng)
            best = min(best, time.perf_counter() - start)
        assert best < 0.03


def test_the_left_side_of_a_person_who_faces_the_viewer_is_on_the_right_of_the_picture() -> None:
    sides = {True: [], False: []}
    for figure in figures(PERSON):
        if is_visible(figure, "left_shoulder") and is_visible(figure, "right_shoulder"):
            from_the_front = is_visible(figure, "nose")
            sides[from_the_front].append(place(figure, "left_shoulder")[0] > place(figure, "right_shoulder")[0])
    assert len(sides[True]) > 20
    assert all(sides[True])
    assert len(sides[False]) > 5
    assert not any(sides[False])


def test_a_deer_shows_the_side_that_it_turns_to_the_viewer() -> None:
    for figure in figures(DEER, 60):
        faces_right = place(figure, "neck")[0] > place(figure, "root_of_tail")[0]
        assert is_visible(figure, "right_eye") == faces_right
        assert is_visible(figure, "left_eye") != faces_right
