from __future__ import annotations

import re
import time
from itertools import pairwise

import numpy as np
import pytest

from services.mllm.conversation import ImagePart, Observation, RegionPart, RoutedPhrase, Text, Turn
from services.runtime.regions import region_mask
from services.trainer.scenes import templates
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.conversation import Conversation, TaskError, expected_phrases, routed_phrases
from services.trainer.scenes.conversations import TASKS, draw_conversation, sample_conversation
from services.trainer.scenes.layouts import all_texts
from services.trainer.scenes.referring import relation_target, superlative_target
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.segment_names import REGION_ROW
from services.trainer.vocabularies import segment_row

BY_KEY = {category.key: category for category in CATEGORIES}
LANGUAGES = ("en", "zh")
Placement = tuple[str, tuple[float, float, float, float]]


def scene_of(*placements: Placement) -> Scene:
    """A blank 200 x 100 scene with things of these categories and boxes."""
    objects = []
    for key, box in placements:
        x1, y1, x2, y2 = (int(value) for value in box)
        mask = np.zeros((100, 200), dtype=np.bool_)
        mask[y1:y2, x1:x2] = True
        objects.append(SceneObject(BY_KEY[key], box, mask, int(mask.sum())))
    return Scene(np.zeros((100, 200, 3), np.uint8), tuple(objects), "noto", 0)


# Two dogs left and right, one cat between them, a bus above the cat.
SCENE = scene_of(
    ("dog", (10, 40, 40, 70)),
    ("dog", (150, 40, 190, 80)),
    ("cat", (90, 60, 110, 80)),
    ("bus", (80, 5, 130, 35)),
)
EMPTY = scene_of()


def words_of(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


def observation_of(conversation: Conversation) -> Observation:
    return next(part for part in conversation.turns[1].parts if isinstance(part, Observation))


def final_words(conversation: Conversation) -> str:
    """What the assistant says after its last observation."""
    parts = conversation.turns[1].parts
    last = max((number for number, part in enumerate(parts) if isinstance(part, Observation)), default=-1)
    return "".join(part.text for part in parts[last + 1 :] if isinstance(part, Text))


def samples(task: str, language: str, count: int = 60, scene: Scene = SCENE, noisy: bool = True) -> list[Conversation]:
    rng = np.random.default_rng(7)
    made = []
    while len(made) < count:
        try:
            made.append(sample_conversation(scene, rng, task, language, noisy))
        except TaskError:
            continue
    return made


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_a_question_an_answer_and_one_target_a_phrase(task: str, language: str) -> None:
    for conversation in samples(task, language):
        *_, user, assistant = conversation.turns
        assert (user.role, assistant.role) == ("user", "assistant")
        assert words_of(user).strip()
        assert assistant.parts
        assert "{" not in words_of(user) + words_of(assistant)
        assert len(expected_phrases(conversation)) == len(conversation.targets)
        assert conversation.language == language


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ["detect", "detect_several", "detect_absent", "count", "presence", "open"])
def test_targets_are_exactly_the_things_that_the_phrase_names(task: str, language: str) -> None:
    for conversation in samples(task, language):
        for phrase, target in zip(expected_phrases(conversation), conversation.targets, strict=True):
            named = tuple(
                index
                for index, item in enumerate(SCENE.objects)
                if phrase in (item.category.english, item.category.chinese)
            )
            assert target == named


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ["segment", "segment_several"])
def test_requests_for_masks_route_to_the_segmenter(task: str, language: str) -> None:
    for conversation in samples(task, language):
        assert {part.route for part in routed_phrases(conversation)} == {"[SEG]"}
        for phrase, target in zip(expected_phrases(conversation), conversation.targets, strict=True):
            named = [
                item.category for item in SCENE.objects if phrase in (item.category.english, item.category.chinese)
            ]
            assert len(target) == len(named)


@pytest.mark.parametrize("language", LANGUAGES)
def test_boxes_and_masks_come_in_the_order_of_the_question(language: str) -> None:
    orders = set()
    for conversation in samples("boxes_and_masks", language):
        routes = [part.route for part in routed_phrases(conversation)]
        orders.add((routes[0], routes[-1]))
        # One call of each tool: no route comes back after another.
        assert sum(first != second for first, second in pairwise(routes)) == 1
        phrases = expected_phrases(conversation)
        assert len(set(phrases)) == len(phrases)
    assert orders == {("[DET]", "[SEG]"), ("[SEG]", "[DET]")}


def test_the_phrase_is_the_canonical_singular_however_the_question_puts_it() -> None:
    seen = {expected_phrases(conversation)[0] for conversation in samples("detect", "en", 200)}
    asked = " ".join(words_of(conversation.turns[0]) for conversation in samples("detect", "en", 200))
    assert seen == {"dog", "cat", "bus"}
    assert "dogs" in asked
    assert "buses" in asked


def test_several_categories_keep_the_order_of_the_question() -> None:
    for conversation in samples("detect_several", "zh"):
        question = words_of(conversation.turns[0])
        # The longest names first: one may be part of another.
        for name in sorted(expected_phrases(conversation), key=len, reverse=True):
            assert name in question
        places = [re.search(re.escape(name), question) for name in expected_phrases(conversation)]
        starts = [place.start() for place in places if place]
        assert len(starts) == len(expected_phrases(conversation))


def test_some_of_several_are_present_and_some_absent() -> None:
    targets = [target for conversation in samples("detect_several", "en", 100) for target in conversation.targets]
    assert 0.2 < np.mean([bool(target) for target in targets]) < 0.8


@pytest.mark.parametrize("language", LANGUAGES)
def test_absent_categories_have_no_targets(language: str) -> None:
    assert all(conversation.targets == ((),) for conversation in samples("detect_absent", language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_open_requests_name_each_category_once_from_left_to_right(language: str) -> None:
    expected = ("dog", "bus", "cat") if language == "en" else ("狗", "公交车", "猫")
    for conversation in samples("open", language, 10):
        assert expected_phrases(conversation) == expected
        assert conversation.targets == ((0, 1), (3,), (2,))


@pytest.mark.parametrize(
    ("phrase", "target"),
    [
        ("the leftmost dog", 0),
        ("the rightmost dog", 1),
        ("the largest dog", 1),
        ("the smallest dog", 0),
        ("the dog left of the cat", 0),
        ("the dog right of the cat", 1),
        ("the cat below the bus", 2),
        ("the bus above the cat", 3),
        ("最左边的狗", 0),
        ("猫右边的狗", 1),
    ],
)
def test_a_referring_expression_means_one_thing(phrase: str, target: int) -> None:
    language = "en" if phrase.isascii() else "zh"
    meant = {
        conversation.targets
        for conversation in samples("refer", language, 1500)
        if expected_phrases(conversation) == (phrase,)
    }
    assert meant == {((target,),)}


def test_what_is_not_clear_is_not_referred_to() -> None:
    close = scene_of(("dog", (10, 10, 40, 40)), ("dog", (12, 60, 42, 90)), ("cat", (11, 30, 41, 60)))
    assert superlative_target(close, (0, 1), "leftmost") is None
    assert superlative_target(close, (0, 1), "largest") is None
    assert superlative_target(close, (0, 1), "topmost") == 0
    assert relation_target(close, (0, 1), 2, "left") is None
    assert relation_target(close, (0, 1), 2, "above") == 0
    both_left = scene_of(("dog", (10, 10, 40, 40)), ("dog", (50, 10, 80, 40)), ("cat", (150, 10, 180, 40)))
    assert relation_target(both_left, (0, 1), 2, "left") is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_counts_follow_the_observation_and_not_the_scene(language: str) -> None:
    disagreements = 0
    for conversation in samples("count", language, 300):
        group = observation_of(conversation).groups[0]
        if group.failed:
            continue
        assert int(re.findall(r"\d+", final_words(conversation))[0]) == len(group.objects)
        disagreements += str(len(group.objects)) != conversation.truth
    assert disagreements > 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_presence_follows_the_observation(language: str) -> None:
    yes, no = (("Yes",), ("No",)) if language == "en" else (("有", "是"), ("没有",))
    for conversation in samples("presence", language, 300):
        group = observation_of(conversation).groups[0]
        if not group.failed:
            assert final_words(conversation).startswith(yes if group.objects else no)


@pytest.mark.parametrize("language", LANGUAGES)
def test_comparisons_of_numbers_follow_the_observation(language: str) -> None:
    yes = "Yes" if language == "en" else "是的"
    for conversation in samples("compare", language, 400):
        groups = observation_of(conversation).groups
        if conversation.kind == "more" and not groups[0].failed:
            more = len(groups[0].objects) > len(groups[1].objects)
            assert final_words(conversation).startswith(yes) == more


def test_comparisons_of_size_name_the_larger_of_the_observation() -> None:
    seen = 0
    for conversation in samples("compare", "en", 400):
        groups = observation_of(conversation).groups
        if conversation.kind != "larger" or any(group.failed or not group.objects for group in groups):
            continue
        areas = [max((item.x2 - item.x1) * (item.y2 - item.y1) for item in group.objects) for group in groups]
        larger = groups[int(np.argmax(areas))].phrase
        assert final_words(conversation).startswith(f"The {larger}")
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("task", ["count", "presence", "compare"])
def test_a_failed_tool_is_said_to_have_failed(task: str) -> None:
    failed = [
        conversation
        for conversation in samples(task, "en", 400)
        if any(group.failed for group in observation_of(conversation).groups)
    ]
    assert failed
    assert all("failed" in final_words(conversation) for conversation in failed)


def test_without_noise_observations_are_true() -> None:
    for conversation in samples("count", "en", 100, noisy=False):
        group = observation_of(conversation).groups[0]
        assert not group.failed
        assert len(group.objects) == int(conversation.truth)


def test_observed_objects_are_ordered_and_realistic() -> None:
    for conversation in samples("count", "en", 200):
        scores = [item.score for item in observation_of(conversation).groups[0].objects]
        assert scores == sorted(scores, reverse=True)
        assert all(0.5 <= score <= 0.99 for score in scores)


@pytest.mark.parametrize("task", ["count_without_tools", "presence_without_tools", "caption", "talk", "no_image"])
def test_text_only_tasks_route_nothing(task: str) -> None:
    for conversation in samples(task, "en"):
        assert all(isinstance(part, Text) for part in conversation.turns[1].parts)


def test_without_an_image_the_model_asks_for_one() -> None:
    for conversation in samples("no_image", "en"):
        assert not any(isinstance(part, ImagePart) for part in conversation.turns[0].parts)
        assert "image" in words_of(conversation.turns[1])


def test_the_fast_path_repeats_the_callers_own_words() -> None:
    for conversation in samples("fast_path", "en", 100):
        question = words_of(conversation.turns[0])
        assert question == "Detect: " + ", ".join(expected_phrases(conversation))


def test_a_second_question_shows_no_image_and_the_first_answer_is_only_remembered() -> None:
    conversations = samples("follow_up", "en")
    for conversation in conversations:
        first, remembered, second, answer = conversation.turns
        assert isinstance(first.parts[0], ImagePart)
        assert not remembered.learned
        assert all(isinstance(part, Text) for part in second.parts)
        assert answer.learned
        assert len(expected_phrases(conversation)) == len(conversation.targets) > 0
    # Some clients send back only the words, others the whole answer.
    plain = [[type(part) for part in conversation.turns[1].parts] == [Text] for conversation in conversations]
    assert 0 < sum(plain) < len(plain)


def test_typed_routing_tokens_stay_text() -> None:
    typed = [
        conversation for conversation in samples("detect", "en", 800) if "[DET]" in words_of(conversation.turns[0])
    ]
    assert typed
    assert all(isinstance(conversation.turns[1].parts[-2], RoutedPhrase) for conversation in typed)


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_many_phrasings(language: str) -> None:
    for questions in (
        templates.DETECT,
        templates.DETECT_SEVERAL,
        templates.REFER,
        templates.COUNT,
        templates.PRESENCE,
        templates.COMPARE_MORE,
        templates.COMPARE_WHICH,
        templates.COMPARE_LARGER,
        templates.OPEN,
        templates.CAPTION,
    ):
        assert len(set(questions[language])) >= 12
    for answers in (templates.ROUTED_ANSWERS, templates.OPEN_ANSWERS, templates.COUNT_ANSWERS, templates.NO_IMAGE):
        assert len(set(answers[language])) >= 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_name_everything_with_its_number(language: str) -> None:
    for conversation in samples("caption", language, 20):
        words = words_of(conversation.turns[1]).lower()
        assert ("2 dogs, a bus and a cat" if language == "en" else "2只狗、1辆公交车、1只猫") in words


def test_an_empty_scene_allows_what_needs_nothing() -> None:
    assert samples("open", "en", 1, EMPTY)[0].targets == ()
    assert samples("count", "en", 1, EMPTY)[0].truth == "0"
    with pytest.raises(TaskError):
        sample_conversation(EMPTY, np.random.default_rng(0), "detect")


def test_the_same_generator_gives_the_same_conversation() -> None:
    first, second = (draw_conversation(SCENE, np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_texts_for_the_tokenizer_are_reproducible_and_bilingual() -> None:
    texts = list(all_texts(3, 2000))
    assert texts == list(all_texts(3, 2000))
    assert len(texts) == 2000
    assert any("狗" in text for text in texts)
    assert any(re.match(r".+: \d+ \(\d+,\d+,\d+,\d+ 0\.\d\d\)", text) for text in texts)


def test_a_conversation_costs_less_than_half_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    best = min(_seconds_for(rng, 300) for _ in range(5))
    assert best / 300 < 0.0005


def _seconds_for(rng: np.random.Generator, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        draw_conversation(SCENE, rng)
    return time.process_time() - start


REGION_TASKS = [task for task in TASKS if "region" in task]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", REGION_TASKS)
def test_every_region_of_a_question_is_marked_on_its_thing(task: str, language: str) -> None:
    for conversation in samples(task, language):
        numbers = [part.number for part in conversation.turns[0].parts if isinstance(part, RegionPart)]
        assert numbers == list(range(1, len(conversation.marks) + 1))
        for mark in conversation.marks:
            marked = region_mask(mark.region, SCENE.height, SCENE.width)
            assert (marked & SCENE.objects[mark.thing].mask).any()
        if conversation.marks and conversation.targets:
            assert conversation.targets == tuple((mark.thing,) for mark in conversation.marks)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_marked_thing_is_called_by_its_name(language: str) -> None:
    for task in ("region_name", "region_caption"):
        for conversation in samples(task, language):
            category = SCENE.objects[conversation.marks[0].thing].category
            named = category.english if language == "en" else category.chinese
            assert named in final_words(conversation)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_about_marked_things_are_true(language: str) -> None:
    kinds = set()
    for conversation in samples("region_question", language, 120):
        kinds.add((conversation.kind, conversation.truth))
        things = [SCENE.objects[mark.thing] for mark in conversation.marks]
        said = final_words(conversation)
        if conversation.kind == "larger":
            assert things[int(conversation.truth) - 1] is max(things, key=lambda thing: thing.area)
            assert conversation.truth in said
        else:
            asked = words_of(conversation.turns[0]).lower()
            own = things[0].category.english if language == "en" else things[0].category.chinese
            assert (conversation.truth == "yes") == bool(re.search(rf"{own}(?!头鹰)", asked))
            assert own in said
    assert kinds == {("is", "yes"), ("is", "no"), ("larger", "1"), ("larger", "2")}


def test_marked_things_are_routed_by_their_numbers() -> None:
    for language, words in (("en", "region"), ("zh", "区域")):
        for conversation in samples("segment_region", language):
            expected = tuple(f"{words} {number + 1}" for number in range(len(conversation.targets)))
            assert expected_phrases(conversation) == expected
            assert {segment_row(phrase) for phrase in expected} == {REGION_ROW}
