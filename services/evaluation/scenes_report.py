"""Figures of an evaluation on scenes, from the outcomes of all prompts; docs/evaluation.md defines each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel

from services.evaluation.average_precision import PromptBoxes, average_precision
from services.evaluation.drawing_figures import Editing, Generation, editing_figures, generation_figures
from services.evaluation.outcomes import (
    DETECTION_TASKS,
    FAST_TASKS,
    OPEN_TASK,
    REFER_TASK,
    TOOLS,
    Outcome,
    RoutedResult,
    answer_is_right,
    boxes_of,
    names_of_open,
    reference_is_right,
    routes_are_right,
)
from services.evaluation.pose_figures import Pose, pose_figures
from services.evaluation.scenes_set import SceneSet
from services.evaluation.segmentation_figures import Segmentation, segmentation_figures

# A share from 0 to 1; None where the set has no prompt of the kind.
Share = float | None


class Routing(BaseModel):
    """Whether exactly the right phrases went to the right tool; open requests are left out, see ``Open``."""

    accuracy: Share
    # Of prompts with two phrases or more, and of those whose answers need two tools or more.
    accuracy_several: Share
    accuracy_multi: Share
    by_task: dict[str, Share]
    by_language: dict[str, Share]


class Detection(BaseModel):
    """COCO average precision on prompted categories."""

    ap: Share
    ap50: Share
    ap_teacher_forced: Share
    ap50_teacher_forced: Share
    # Share of prompted categories that the tool rightly calls present or absent.
    presence_accuracy: Share


class Questions(BaseModel):
    """Questions answered in words, through tools and without."""

    accuracy: Share
    without_tools: Share


class Accuracy(BaseModel):
    """A share of right answers."""

    accuracy: Share


class Comparison(Accuracy):
    """Comparisons of numbers and of sizes."""

    by_kind: dict[str, Share]


class Open(BaseModel):
    """Categories named in answer to open requests."""

    precision: Share
    recall: Share
    f1: Share
    # Share of answers that name exactly what is there.
    exact: Share


class LanguageFigures(BaseModel):
    """The main figures of one language."""

    routing: Share
    ap: Share
    ap50: Share
    presence: Share
    counting: Share
    refer: Share
    compare: Share
    open_f1: Share
    routing_multi: Share
    segmentation: Segmentation
    pose: Pose
    generation: Generation
    editing: Editing


class StyleFigures(BaseModel):
    """Detection in one drawing style."""

    ap: Share
    ap50: Share
    scenes: int


class ScenesReport(BaseModel):
    """What ``superlink eval scenes --json`` writes."""

    routing: Routing
    detection: Detection
    presence: Questions
    counting: Questions
    refer: Accuracy
    compare: Comparison
    open: Open
    segmentation: Segmentation
    pose: Pose
    generation: Generation
    editing: Editing
    by_language: dict[str, LanguageFigures]
    by_style: dict[str, StyleFigures]
    scenes: int
    prompts: int
    # Prompts that got no answer, or whose tool failed; they count as wrong.
    failed_prompts: int
    # The seed of the first scene.
    seed: int | None
    seconds: float
    # What could not be asked, and why.
    notes: tuple[str, ...]


def report_of(
    scene_set: SceneSet, outcomes: Sequence[Outcome], seconds: float, notes: Sequence[str] = ()
) -> ScenesReport:
    """All figures. ``outcomes`` holds one entry a prompt that was asked, failed ones included."""
    languages = sorted({outcome.prompt.language for outcome in outcomes})
    free = _boxes(scene_set, outcomes, lambda outcome: outcome.routed)
    forced = _boxes(scene_set, outcomes, lambda outcome: outcome.teacher_forced or ())
    free_precision, forced_precision = average_precision(free), average_precision(forced)
    compared = _of_task(outcomes, "compare")
    shown = {outcome.prompt.image_id for outcome in outcomes if outcome.prompt.image_id is not None}
    return ScenesReport(
        routing=_routing(outcomes, languages),
        detection=Detection(
            ap=free_precision.ap,
            ap50=free_precision.ap50,
            ap_teacher_forced=forced_precision.ap,
            ap50_teacher_forced=forced_precision.ap50,
            presence_accuracy=_detected_presence(outcomes),
        ),
        presence=_questions(outcomes, "presence"),
        counting=_questions(outcomes, "count"),
        refer=Accuracy(accuracy=_references(scene_set, outcomes)),
        compare=Comparison(
            accuracy=_share(answer_is_right, compared),
            by_kind={
                kind: _share(answer_is_right, [outcome for outcome in compared if outcome.prompt.kind == kind])
                for kind in sorted({outcome.prompt.kind for outcome in compared})
            },
        ),
        open=_open(outcomes),
        segmentation=segmentation_figures(scene_set, outcomes),
        pose=pose_figures(scene_set, outcomes),
        generation=generation_figures(outcomes),
        editing=editing_figures(scene_set, outcomes),
        by_language={
            language: _language_figures(
                scene_set, [outcome for outcome in outcomes if outcome.prompt.language == language]
            )
            for language in languages
        },
        by_style=_by_style(scene_set, outcomes),
        scenes=len(shown),
        prompts=len(outcomes),
        failed_prompts=sum(bool(outcome.error) for outcome in outcomes),
        seed=scene_set.info.first_seed,
        seconds=round(seconds, 1),
        notes=tuple(notes),
    )


def _routing(outcomes: Sequence[Outcome], languages: Sequence[str]) -> Routing:
    judged = [outcome for outcome in outcomes if outcome.prompt.task not in (OPEN_TASK, *FAST_TASKS)]
    return Routing(
        accuracy=_share(routes_are_right, judged),
        accuracy_several=_share(routes_are_right, [outcome for outcome in judged if len(outcome.prompt.phrases) > 1]),
        accuracy_multi=_share(routes_are_right, _with_tools(judged)),
        by_task={
            task: _share(routes_are_right, _of_task(judged, task))
            for task in sorted({outcome.prompt.task for outcome in judged})
        },
        by_language={
            language: _share(routes_are_right, [outcome for outcome in judged if outcome.prompt.language == language])
            for language in languages
        },
    )


def _language_figures(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> LanguageFigures:
    precision = average_precision(_boxes(scene_set, outcomes, lambda outcome: outcome.routed))
    judged = [outcome for outcome in outcomes if outcome.prompt.task not in (OPEN_TASK, *FAST_TASKS)]
    return LanguageFigures(
        routing=_share(routes_are_right, judged),
        ap=precision.ap,
        ap50=precision.ap50,
        presence=_questions(outcomes, "presence").accuracy,
        counting=_questions(outcomes, "count").accuracy,
        refer=_references(scene_set, outcomes),
        compare=_share(answer_is_right, _of_task(outcomes, "compare")),
        open_f1=_open(outcomes).f1,
        routing_multi=_share(routes_are_right, _with_tools(judged)),
        segmentation=segmentation_figures(scene_set, outcomes),
        pose=pose_figures(scene_set, outcomes),
        generation=generation_figures(outcomes),
        editing=editing_figures(scene_set, outcomes),
    )


def _by_style(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> dict[str, StyleFigures]:
    def style_of(outcome: Outcome) -> str:
        return scene_set.images[outcome.prompt.image_id].style if outcome.prompt.image_id is not None else ""

    figures = {}
    for style in sorted({style_of(outcome) for outcome in outcomes} - {""}):
        chosen = [outcome for outcome in outcomes if style_of(outcome) == style]
        precision = average_precision(_boxes(scene_set, chosen, lambda outcome: outcome.routed))
        figures[style] = StyleFigures(
            ap=precision.ap, ap50=precision.ap50, scenes=len({outcome.prompt.image_id for outcome in chosen})
        )
    return figures


def _boxes(
    scene_set: SceneSet, outcomes: Iterable[Outcome], routed: Callable[[Outcome], Sequence[RoutedResult]]
) -> list[PromptBoxes]:
    return [
        boxes_of(scene_set, outcome.prompt, routed(outcome))
        for outcome in outcomes
        if outcome.prompt.task in DETECTION_TASKS
    ]


def _detected_presence(outcomes: Sequence[Outcome]) -> Share:
    right = []
    for outcome in outcomes:
        if outcome.prompt.task not in DETECTION_TASKS:
            continue
        said = {result.phrase: result.present for result in outcome.routed}
        right += [said.get(phrase.phrase) is bool(phrase.annotation_ids) for phrase in outcome.prompt.phrases]
    return sum(right) / len(right) if right else None


def _questions(outcomes: Sequence[Outcome], task: str) -> Questions:
    return Questions(
        accuracy=_share(answer_is_right, _of_task(outcomes, task)),
        without_tools=_share(answer_is_right, _of_task(outcomes, f"{task}_without_tools")),
    )


def _references(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> Share:
    return _share(lambda outcome: reference_is_right(scene_set, outcome), _of_task(outcomes, REFER_TASK))


def _open(outcomes: Sequence[Outcome]) -> Open:
    pairs = [names_of_open(outcome) for outcome in _of_task(outcomes, OPEN_TASK)]
    if not pairs:
        return Open(precision=None, recall=None, f1=None, exact=None)
    hits = sum(len(right & named) for right, named in pairs)
    named_total = sum(len(named) for _, named in pairs)
    right_total = sum(len(right) for right, _ in pairs)
    return Open(
        precision=hits / named_total if named_total else 0.0,
        recall=hits / right_total if right_total else None,
        f1=2 * hits / (named_total + right_total) if named_total + right_total else None,
        exact=sum(right == named for right, named in pairs) / len(pairs),
    )


def _with_tools(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those whose right answers need two tools or more."""
    return [
        outcome
        for outcome in outcomes
        if len({TOOLS.get(phrase.route, phrase.route) for phrase in outcome.prompt.phrases}) > 1
    ]


def _of_task(outcomes: Iterable[Outcome], task: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.prompt.task == task]


def _share(is_right: Callable[[Outcome], bool], outcomes: Sequence[Outcome]) -> Share:
    """Failed prompts are wrong, whatever they say."""
    if not outcomes:
        return None
    return sum(not outcome.error and is_right(outcome) for outcome in outcomes) / len(outcomes)
