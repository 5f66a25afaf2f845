"""Conversations about what the user marked: naming, describing and comparing it, and asking for its mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.mllm.conversation import ImagePart, Part, RegionPart, Text, Turn, fast_path
from services.trainer.scenes import mark_templates, templates
from services.trainer.scenes.answers import masks_of, routed_answer
from services.trainer.scenes.choosing import absent
from services.trainer.scenes.conversation import Conversation, Mark
from services.trainer.scenes.marks import MARK_KINDS, draw_mark, markable
from services.trainer.scenes.referring import leftmost_first
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.scenes.templates import Templates
from services.trainer.scenes.wording import join_names, name, pick, pick_answer, vary, with_article

# Stand-ins for regions while a question is worded: private characters, which no variation of the wording touches.
_FIRST_STAND_IN = 0xE000
# A question about sizes is only asked where one thing covers clearly more pixels.
_CLEARLY_LARGER = 1.6
_MOST_SEGMENTED = 3
_FAST_PATH_SHARE = 0.15
# Share of the image that a thing covers, from which it is no longer called small, and from which it is called large.
_SIZE_LIMITS = (0.015, 0.1)


def region_name(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """What a marked thing is."""
    marks = _marks(scene, 1, rng)
    if marks is None:
        return None
    question = pick(rng, mark_templates.REGION_NAME[language]).format(region=_stand_in(1))
    thing = scene.objects[marks[0].thing]
    answer = _named(mark_templates.REGION_NAME_ANSWERS, thing, language, rng)
    return _conversation("region_name", question, [Text(answer)], marks, language, rng, truth=_name(thing, language))


def region_caption(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """What a marked thing is, how large, and where."""
    marks = _marks(scene, 1, rng)
    if marks is None:
        return None
    question = pick(rng, mark_templates.REGION_CAPTION[language]).format(region=_stand_in(1))
    thing = scene.objects[marks[0].thing]
    x1, y1, x2, y2 = thing.box
    column, row = int(1.5 * (x1 + x2) / scene.width), int(1.5 * (y1 + y2) / scene.height)
    share = thing.area / (scene.width * scene.height)
    size = mark_templates.SIZES[language][sum(share >= limit for limit in _SIZE_LIMITS)]
    size_name = with_article(size + thing.category.english)
    answer = mark_templates.REGION_CAPTION_ANSWERS[language][0].format(
        size_name=size_name[0].upper() + size_name[1:],
        size=size,
        name=_name(thing, language),
        measure=thing.category.measure_word,
        place=mark_templates.PLACES[language][min(row, 2)][min(column, 2)],
    )
    return _conversation("region_caption", question, [Text(answer)], marks, language, rng, truth=_name(thing, language))


def region_question(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """Whether a marked thing is what one thinks it is, or which of two is larger; without tools."""
    if rng.random() < 0.35:
        return _larger(scene, language, rng)
    marks = _marks(scene, 1, rng)
    if marks is None:
        return None
    thing = scene.objects[marks[0].thing]
    drawn = rng.random()
    # Half of the wrong guesses are things that are in the scene, elsewhere.
    others = [category for category in leftmost_first(scene) if category.key != thing.category.key]
    guess = thing.category if drawn < 0.5 else pick(rng, others) if others and drawn < 0.75 else absent(scene, rng)
    question = pick(rng, mark_templates.REGION_PRESENCE[language]).format(
        region=_stand_in(1), name=name(guess, language), a_name=with_article(guess.english)
    )
    is_right = guess.key == thing.category.key
    answer = _named(mark_templates.REGION_YES if is_right else mark_templates.REGION_NO, thing, language, rng)
    truth = "yes" if is_right else "no"
    return _conversation("region_question", question, [Text(answer)], marks, language, rng, kind="is", truth=truth)


def segment_region(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """Masks of marked things; also in the fast path's form, where only the segmenter sees the marks."""
    marks = _marks(scene, 1 + int(rng.random() ** 1.7 * _MOST_SEGMENTED), rng)
    if marks is None:
        return None
    numbers = range(1, len(marks) + 1)
    spoken = [_stand_in(number) for number in numbers]
    listed = "".join(spoken) if rng.random() < 0.15 else join_names(spoken, language, rng)
    question = pick(rng, mark_templates.SEGMENT_REGION[language]).format(regions=listed)
    phrases = masks_of([mark_templates.REGION_PHRASES[language].format(number=number) for number in numbers])
    targets = tuple((mark.thing,) for mark in marks)
    if rng.random() < _FAST_PATH_SHARE:
        return Conversation("segment_region", language, fast_path(phrases), targets)
    answer = routed_answer(phrases, templates.ROUTED_ANSWERS, language, rng)
    return _conversation("segment_region", question, answer, marks, language, rng, targets=targets)


def _larger(scene: Scene, language: str, rng: np.random.Generator) -> Conversation | None:
    marks = _marks(scene, 2, rng)
    if marks is None:
        return None
    first, second = (scene.objects[mark.thing].area for mark in marks)
    if max(first, second) < _CLEARLY_LARGER * min(first, second):
        return None
    question = pick(rng, mark_templates.REGION_LARGER[language]).format(a=_stand_in(1), b=_stand_in(2))
    number = 1 if first > second else 2
    answer = pick_answer(rng, mark_templates.REGION_LARGER_ANSWERS[language]).format(number=number)
    return _conversation(
        "region_question", question, [Text(answer)], marks, language, rng, kind="larger", truth=str(number)
    )


def _marks(scene: Scene, count: int, rng: np.random.Generator) -> tuple[Mark, ...] | None:
    """Different things, each marked somehow; None when the scene has too few."""
    things = markable(scene)
    if len(things) < count:
        return None
    rng.shuffle(things)
    return tuple(Mark(thing, draw_mark(scene.objects[thing], pick(rng, MARK_KINDS), rng)) for thing in things[:count])


def _name(thing: SceneObject, language: str) -> str:
    return name(thing.category, language)


def _named(answers: Templates, thing: SceneObject, language: str, rng: np.random.Generator) -> str:
    """An answer that names the thing, whether as what was asked for or instead of it."""
    words, article = _name(thing, language), with_article(thing.category.english)
    return pick_answer(rng, answers[language]).format(name=words, other=words, a_name=article, a_other=article)


def _stand_in(number: int) -> str:
    return chr(_FIRST_STAND_IN + number)


def _conversation(
    task: str,
    question: str,
    answer: Sequence[Part],
    marks: tuple[Mark, ...],
    language: str,
    rng: np.random.Generator,
    targets: tuple[tuple[int, ...], ...] = (),
    kind: str = "",
    truth: str = "",
) -> Conversation:
    """The question as somebody types it, with the regions where their stand-ins were."""
    parts: list[Part] = [ImagePart(0)]
    words = ""
    for character in _varied(question, language, rng):
        number = ord(character) - _FIRST_STAND_IN
        if 1 <= number <= len(marks):
            parts += [Text(words)] if words else []
            parts.append(RegionPart(number))
            words = ""
        else:
            words += character
    parts += [Text(words)] if words else []
    turns = Turn("user", tuple(parts)), Turn("assistant", tuple(answer))
    return Conversation(task, language, turns, targets, kind=kind, truth=truth, marks=marks)


def _varied(question: str, language: str, rng: np.random.Generator) -> str:
    """``vary``, but in what follows the regions that a question begins with: people mark first, then they speak."""
    spoken = question.lstrip("".join(chr(_FIRST_STAND_IN + number) for number in range(1, 17)))
    return question[: len(question) - len(spoken)] + vary(spoken, language, rng)
