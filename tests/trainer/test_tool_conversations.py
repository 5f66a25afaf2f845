"""Conversations about poses, pictures, edits, several tools at once and earlier results."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from services.mllm.conversation import ImagePart, Observation, RoutedPhrase, Text
from services.trainer.scenes.conversation import Conversation, TaskError, expected_phrases, parts_of, routed_phrases
from services.trainer.scenes.conversations import sample_conversation
from services.trainer.scenes.drawings import CONCEPTS
from services.trainer.scenes.layouts import random_layout
from services.trainer.scenes.skeletons import SKELETONS

LANGUAGES = ("en", "zh")


def samples(task: str, language: str, count: int = 80) -> list[Conversation]:
    rng = np.random.default_rng(5)
    made = []
    while len(made) < count:
        try:
            made.append(sample_conversation(random_layout(rng), rng, task, language))
        except TaskError:
            continue
    return made


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ["pose", "pose_places", "pose_fast"])
def test_poses_route_figures_first_and_then_keypoints_of_their_skeleton(task: str, language: str) -> None:
    keypoints = {
        name for skeleton in SKELETONS for point in skeleton.keypoints for name in (point.english, point.chinese)
    }
    for conversation in samples(task, language):
        routes = [phrase.route for phrase in routed_phrases(conversation)]
        assert routes[0] == "[POSE_OBJECT]"
        assert routes[-1] == "[POSE]"
        assert sum(first != second for first, second in pairwise(routes)) == 1
        named = [phrase.phrase for phrase in routed_phrases(conversation) if phrase.route == "[POSE]"]
        assert set(named) <= keypoints
        assert len(set(named)) == len(named)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_whole_pose_has_all_keypoints_in_the_order_of_the_skeleton(language: str) -> None:
    for conversation in samples("pose", language, 20):
        kind, *named = expected_phrases(conversation)
        skeleton = next(skeleton for skeleton in SKELETONS if kind in (skeleton.english, skeleton.chinese))
        assert named == [point.english if language == "en" else point.chinese for point in skeleton.keypoints]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("task", "route"), [("draw", "[GEN]"), ("draw_fast", "[GEN]"), ("edit", "[EDIT]"), ("edit_fast", "[EDIT]")]
)
def test_pictures_and_edits_say_their_concepts(task: str, route: str, language: str) -> None:
    for conversation in samples(task, language):
        [phrase] = routed_phrases(conversation)
        [rows] = conversation.drawings
        assert phrase.route == route
        assert len(rows) == 8
        assert (CONCEPTS[rows[0]] == "draw") == (route == "[GEN]")
        # What is drawn or edited is said; only the ground has no category.
        assert CONCEPTS[rows[2]] != "nothing" or CONCEPTS[rows[0]] == "ground"
        assert "{" not in phrase.phrase


def test_the_fast_path_of_pictures_shows_no_image() -> None:
    for conversation in samples("draw_fast", "en", 20):
        assert not any(isinstance(part, ImagePart) for part in parts_of(conversation))


def test_the_same_wish_has_the_same_phrase_however_it_is_put() -> None:
    phrases: dict[tuple[int, ...], set[str]] = {}
    for conversation in samples("draw", "en", 1500):
        phrases.setdefault(conversation.drawings[0], set()).add(expected_phrases(conversation)[0])
    assert all(len(worded) == 1 for worded in phrases.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_several_tools_are_asked_in_the_order_of_the_question(language: str) -> None:
    tools = []
    for conversation in samples("several_tools", language):
        decoders = [
            "[POSE]" if phrase.route == "[POSE_OBJECT]" else phrase.route for phrase in routed_phrases(conversation)
        ]
        calls = [decoders[0], *(second for first, second in pairwise(decoders) if first != second)]
        assert len(set(calls)) == len(calls) >= 2
        assert len(conversation.drawings) == sum(route in ("[GEN]", "[EDIT]") for route in decoders)
        tools.append(frozenset(calls))
    assert set.union(*map(set, tools)) == {"[DET]", "[SEG]", "[POSE]", "[GEN]", "[EDIT]"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_earlier_results_are_called_by_phrase_and_place(language: str) -> None:
    routes = set()
    for conversation in samples("refer_back", language, 200):
        observation = next(part for part in parts_of(conversation) if isinstance(part, Observation))
        [group] = observation.groups
        answer = conversation.turns[-1].parts
        [phrase] = [part for part in answer if isinstance(part, RoutedPhrase)] or [None]
        if phrase is None:
            assert str(len(group.objects)) in "".join(part.text for part in answer if isinstance(part, Text))
            continue
        routes.add(phrase.route)
        place = re.search(rf"{re.escape(group.phrase)} (\d+)", phrase.phrase)
        assert place
        assert 1 <= int(place.group(1)) <= len(group.objects)
    assert routes == {"[SEG]", "[EDIT]"}
