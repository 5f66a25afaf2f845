"""Conversations about scenes, with the objects that every routed phrase means.

A routed phrase is the canonical singular name in the question's language ("find all dogs" routes "dog"), the canonical
referring expression ("the leftmost dog"), or, in the fast path's own form "Detect: dogs", the words as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.mllm.conversation import (
    ImagePart,
    ObservedGroup,
    RoutedPhrase,
    Text,
    Turn,
    fast_path,
)
from services.trainer.scenes import templates
from services.trainer.scenes.answers import (
    BOXES,
    MASKS,
    boxes_of,
    count_answer,
    numbers_answer,
    observed_answer,
    presence_answer,
    routed_answer,
)
from services.trainer.scenes.choosing import absent, maybe_present, several
from services.trainer.scenes.conversation import Conversation, TaskError, exchange
from services.trainer.scenes.drawing_requests import draw, draw_fast, edit, edit_fast
from services.trainer.scenes.grounds import GROUND_CATEGORIES, with_grounds
from services.trainer.scenes.marking import region_caption, region_name, region_question, segment_region
from services.trainer.scenes.mixing import several_tools
from services.trainer.scenes.posing import pose, pose_fast, pose_places
from services.trainer.scenes.referring import choose_referring, leftmost_first, members
from services.trainer.scenes.referring_back import refer_back
from services.trainer.scenes.requests import request_one, request_referred, request_several
from services.trainer.scenes.scene import Category, Scene, SceneObject
from services.trainer.scenes.segmenting import boxes_and_masks, segment, segment_referred, segment_several
from services.trainer.scenes.templates import ENGLISH, LANGUAGES, Templates
from services.trainer.scenes.wording import (
    category_words,
    name,
    pick,
    pick_answer,
    plural,
    things,
)

# How often each task is drawn where no other weights are given.
TASK_WEIGHTS: Mapping[str, float] = {
    "fast_path": 0.14,
    "detect": 0.10,
    "detect_several": 0.16,
    "detect_absent": 0.06,
    "refer": 0.14,
    "count": 0.09,
    "presence": 0.07,
    "compare": 0.06,
    "segment": 0.08,
    "segment_several": 0.08,
    "segment_referred": 0.06,
    "boxes_and_masks": 0.12,
    "region_name": 0.08,
    "region_caption": 0.06,
    "region_question": 0.07,
    "segment_region": 0.08,
    "pose": 0.03,
    "pose_places": 0.04,
    "pose_fast": 0.03,
    "draw": 0.06,
    "draw_fast": 0.05,
    "edit": 0.06,
    "edit_fast": 0.05,
    "several_tools": 0.1,
    "refer_back": 0.06,
    "open": 0.08,
    "caption": 0.03,
    "follow_up": 0.06,
    "count_without_tools": 0.02,
    "presence_without_tools": 0.02,
    "talk": 0.015,
    "no_image": 0.015,
}
TASKS = tuple(TASK_WEIGHTS)
# What a conversation of two questions is made of.
_FOLLOWED_TASKS = (
    "detect",
    "detect_several",
    "detect_absent",
    "refer",
    "count",
    "presence",
    "compare",
    "segment",
    "boxes_and_masks",
)

# A comparison of sizes is only asked where one thing is clearly larger.
_CLEARLY_LARGER = 1.6


def sample_conversation(
    scene: Scene, rng: np.random.Generator, task: str, language: str | None = None, noisy: bool = True
) -> Conversation:
    """One conversation of ``task`` about ``scene``; without ``language`` that is drawn.

    ``noisy`` disturbs half of the observations; answers always follow what the observation says. Raises TaskError when
    the scene does not allow the task, KeyError when it is unknown.
    """
    conversation = _MAKERS[task](scene, language or pick(rng, LANGUAGES), rng, noisy)
    if conversation is None:
        raise TaskError(f"This scene allows no conversation of task {task!r}.")
    return conversation


def draw_conversation(
    scene: Scene, rng: np.random.Generator, weights: Mapping[str, float] = TASK_WEIGHTS
) -> Conversation:
    """One conversation of a task drawn by ``weights``; what the scene does not allow is drawn again."""
    tasks, cumulative = tuple(weights), np.cumsum(list(weights.values()))
    while True:
        drawn = tasks[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]
        try:
            return sample_conversation(scene, rng, drawn)
        except TaskError:
            continue


def _fast_path(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """The form of ``/v1/detect`` and ``/v1/segment``, whose phrases are the caller's own words."""
    route = BOXES if rng.random() < 0.75 else MASKS
    if rng.random() < 0.2:
        found = choose_referring(scene, language, rng)
        if found is None:
            return None
        return Conversation(
            "fast_path",
            language,
            fast_path([RoutedPhrase(route, found.spoken)]),
            ((found.target,),),
            kind=found.relation,
        )
    chosen = several(scene, rng, 1 + int(rng.random() ** 1.5 * 8))
    if route == MASKS and rng.random() < 0.3:
        chosen[-1] = pick(rng, tuple(GROUND_CATEGORIES.values()))
    everything = with_grounds(scene)
    words = plural if rng.random() < 0.25 else name
    phrases = [words(category, language) for category in chosen]
    if rng.random() < 0.05:
        phrases = [phrase.capitalize() for phrase in phrases]
    return Conversation(
        "fast_path",
        language,
        fast_path([RoutedPhrase(route, phrase) for phrase in phrases]),
        tuple(members(everything, category) for category in chosen),
    )


def _detect(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    if not scene.objects:
        return None
    category = pick(rng, leftmost_first(scene))
    return request_one("detect", templates.DETECT, boxes_of, scene, category, language, rng)


def _detect_absent(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    return request_one("detect_absent", templates.DETECT, boxes_of, scene, absent(scene, rng), language, rng)


def _detect_several(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    chosen = several(scene, rng, 2 + int(rng.random() * 5))
    return request_several("detect_several", templates.DETECT_SEVERAL, boxes_of, scene, chosen, language, rng)


def _refer(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    return request_referred("refer", templates.REFER, boxes_of, scene, language, rng)


def _open(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    present = leftmost_first(scene)
    question = pick(rng, templates.OPEN[language])
    if present:
        names = [name(category, language) for category in present]
        answer = routed_answer(boxes_of(names), templates.OPEN_ANSWERS, language, rng)
    else:
        answer = (Text(pick_answer(rng, templates.NOTHING[language])),)
    targets = tuple(members(scene, category) for category in present)
    return Conversation("open", language, exchange(question, answer, language, rng), targets)


def _caption(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    question = pick(rng, templates.CAPTION[language])
    counts = [(category, len(members(scene, category))) for category in leftmost_first(scene)]
    if counts:
        answer = pick_answer(rng, templates.CAPTION_ANSWERS[language]).format(things=things(counts, language))
        answer = answer[0].upper() + answer[1:]
    else:
        answer = pick_answer(rng, templates.NOTHING[language])
    return Conversation("caption", language, exchange(question, (Text(answer),), language, rng), ())


def _count(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation:
    category = maybe_present(scene, rng, 0.85)
    meant = members(scene, category)
    question = pick(rng, templates.COUNT[language]).format(**category_words(category, language))

    def answer(groups: Sequence[ObservedGroup]) -> str:
        return count_answer(category, len(groups[0].objects), language, rng)

    observed = observed_answer([name(category, language)], [meant], answer, scene, language, rng, noisy)
    turns = exchange(question, observed, language, rng)
    return Conversation("count", language, turns, (meant,), truth=str(len(meant)))


def _presence(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation:
    category = maybe_present(scene, rng, 0.5)
    meant = members(scene, category)
    question = pick(rng, templates.PRESENCE[language]).format(**category_words(category, language))

    def answer(groups: Sequence[ObservedGroup]) -> str:
        return presence_answer(category, len(groups[0].objects), language, rng)

    observed = observed_answer([name(category, language)], [meant], answer, scene, language, rng, noisy)
    turns = exchange(question, observed, language, rng)
    return Conversation("presence", language, turns, (meant,), truth="yes" if meant else "no")


def _count_without_tools(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    category = maybe_present(scene, rng, 0.85)
    number = len(members(scene, category))
    question = _without_tools(templates.COUNT, category, language, rng)
    answer = (Text(count_answer(category, number, language, rng)),)
    turns = exchange(question, answer, language, rng)
    return Conversation("count_without_tools", language, turns, (), truth=str(number))


def _presence_without_tools(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    category = maybe_present(scene, rng, 0.5)
    number = len(members(scene, category))
    question = _without_tools(templates.PRESENCE, category, language, rng)
    answer = (Text(presence_answer(category, number, language, rng)),)
    turns = exchange(question, answer, language, rng)
    return Conversation("presence_without_tools", language, turns, (), truth="yes" if number else "no")


def _compare(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation | None:
    if rng.random() < 0.3:
        return _compare_sizes(scene, language, rng, noisy)
    first = maybe_present(scene, rng, 0.85)
    second = maybe_present(scene, rng, 0.75)
    if first.key == second.key:
        return None
    meant = members(scene, first), members(scene, second)
    yes_or_no = rng.random() < 0.5
    asked = templates.COMPARE_MORE if yes_or_no else templates.COMPARE_WHICH
    question = pick(rng, asked[language]).format(a=plural(first, language), b=plural(second, language))

    def answer(groups: Sequence[ObservedGroup]) -> str:
        numbers = len(groups[0].objects), len(groups[1].objects)
        return numbers_answer((first, second), numbers, yes_or_no, language, rng)

    phrases = [name(first, language), name(second, language)]
    turns = exchange(question, observed_answer(phrases, meant, answer, scene, language, rng, noisy), language, rng)
    more, fewer = len(meant[0]) > len(meant[1]), len(meant[0]) < len(meant[1])
    if yes_or_no:
        return Conversation("compare", language, turns, meant, kind="more", truth="yes" if more else "no")
    truth = phrases[0] if more else phrases[1] if fewer else "equal"
    return Conversation("compare", language, turns, meant, kind="which_more", truth=truth)


def _compare_sizes(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation | None:
    single = [category for category in leftmost_first(scene) if len(members(scene, category)) == 1]
    if len(single) < 2:
        return None
    first = pick(rng, single)
    second = pick(rng, [category for category in single if category.key != first.key])
    pair = (first, second)
    meant = members(scene, first), members(scene, second)
    areas = [_box_area(scene.objects[indices[0]]) for indices in meant]
    if max(areas) < _CLEARLY_LARGER * min(areas):
        return None
    phrases = [name(category, language) for category in pair]
    question = pick(rng, templates.COMPARE_LARGER[language]).format(a=phrases[0], b=phrases[1])

    def answer(groups: Sequence[ObservedGroup]) -> str:
        for phrase, group in zip(phrases, groups, strict=True):
            if not group.objects:
                return pick_answer(rng, templates.NOT_FOUND[language]).format(a=phrase)
        seen = [max((item.x2 - item.x1) * (item.y2 - item.y1) for item in group.objects) for group in groups]
        larger = 0 if seen[0] >= seen[1] else 1
        template = pick_answer(rng, templates.WHICH_LARGER[language])
        return template.format(a=phrases[larger], b=phrases[1 - larger])

    turns = exchange(question, observed_answer(phrases, meant, answer, scene, language, rng, noisy), language, rng)
    truth = phrases[0] if areas[0] > areas[1] else phrases[1]
    return Conversation("compare", language, turns, meant, kind="larger", truth=truth)


def _follow_up(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation | None:
    """A second question about the image.

    The first answer is only remembered: as it was, or as the words that clients of plain OpenAI shape send back.
    """
    earlier = pick(rng, LANGUAGES) if rng.random() < 0.1 else language
    first = _MAKERS[pick(rng, _FOLLOWED_TASKS)](scene, earlier, rng, noisy)
    second = _MAKERS[pick(rng, _FOLLOWED_TASKS)](scene, language, rng, noisy)
    if first is None or second is None:
        return None
    said = first.turns[1]
    whole = rng.random() < 0.4
    question, answer = second.turns
    turns = (
        first.turns[0],
        Turn("assistant", said.parts if whole else (Text(_visible(said)),), learned=False),
        Turn("user", tuple(part for part in question.parts if isinstance(part, Text))),
        answer,
    )
    targets = (first.targets if whole else ()) + second.targets
    return Conversation("follow_up", language, turns, targets, kind=second.task, truth=second.truth)


def _visible(turn: Turn) -> str:
    """What a person sees of an assistant's turn; each round of an answer stands on its own line."""
    words: list[str] = []
    for part in turn.parts:
        if isinstance(part, Text):
            words.append(part.text)
        elif isinstance(part, RoutedPhrase):
            words.append(part.phrase)
        else:
            words.append("\n")
    return "".join(words)


def _talk(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    said, answers = pick(rng, templates.SMALL_TALK[language])
    question = pick(rng, said)
    if rng.random() < 0.2:
        question = question.rstrip("。.!！")
    shown = (ImagePart(0),) if rng.random() < 0.4 else ()
    turns = Turn("user", (*shown, Text(question))), Turn("assistant", (Text(pick_answer(rng, answers)),))
    return Conversation("talk", language, turns, ())


def _no_image(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation:
    """Something is asked that needs an image, and none is there."""
    task = pick(rng, ("detect_absent", "detect_several", "segment", "count", "presence", "open", "caption"))
    asked = _MAKERS[task](scene, language, rng, noisy)
    question = asked.turns[0] if asked else None
    words = tuple(part for part in question.parts if isinstance(part, Text)) if question else ()
    answer = Text(pick_answer(rng, templates.NO_IMAGE[language]))
    return Conversation("no_image", language, (Turn("user", words), Turn("assistant", (answer,))), ())


_Maker = Callable[[Scene, str, np.random.Generator, bool], Conversation | None]
_MAKERS: dict[str, _Maker] = {
    "fast_path": _fast_path,
    "detect": _detect,
    "detect_several": _detect_several,
    "detect_absent": _detect_absent,
    "refer": _refer,
    "count": _count,
    "presence": _presence,
    "compare": _compare,
    "pose": pose,
    "pose_places": pose_places,
    "pose_fast": pose_fast,
    "draw": draw,
    "draw_fast": draw_fast,
    "edit": edit,
    "edit_fast": edit_fast,
    "several_tools": several_tools,
    "refer_back": refer_back,
    "segment": segment,
    "segment_several": segment_several,
    "segment_referred": segment_referred,
    "boxes_and_masks": boxes_and_masks,
    "region_name": region_name,
    "region_caption": region_caption,
    "region_question": region_question,
    "segment_region": segment_region,
    "open": _open,
    "caption": _caption,
    "follow_up": _follow_up,
    "count_without_tools": _count_without_tools,
    "presence_without_tools": _presence_without_tools,
    "talk": _talk,
    "no_image": _no_image,
}


def _without_tools(questions: Templates, category: Category, language: str, rng: np.random.Generator) -> str:
    question = pick(rng, questions[language]).format(**category_words(category, language))
    request = pick(rng, templates.WITHOUT_TOOLS[language])
    if rng.random() < 0.4:
        return f"{request.strip()} {question}" if language == ENGLISH else request + question
    return question + request


def _box_area(item: SceneObject) -> float:
    x1, y1, x2, y2 = item.box
    return (x2 - x1) * (y2 - y1)
