"""What came back for one prompt, and whether it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.evaluation.average_precision import BoundingBox, FoundBox, PromptBoxes, TrueBox, intersection_over_union
from services.evaluation.judging import is_right
from services.evaluation.scenes_set import Prompt, SceneSet
from superlink.results import Answer, DetectionAnswer, FoundObject, Keypoint, RunLengthMask

# Boxes of these tasks count for average precision.
DETECTION_TASKS = ("detect", "detect_several", "detect_absent")
# The phrases of these are up to the model's own sight, so they are judged by what it names.
OPEN_TASK = "open"
REFER_TASK = "refer"
# The mask of one thing that is described, and of things that are named.
SEGMENT_REFERRED_TASK = "segment_referred"
SEGMENT_TASKS = ("segment", "segment_several")
# These go over /v1/segment alone: one mask a phrase, and the mask of what is marked.
SEMANTIC_TASK = "semantic"
INTERACTIVE_TASK = "interactive"
FAST_TASKS = (SEMANTIC_TASK, INTERACTIVE_TASK)
DRAW_TASK = "draw"
EDIT_TASK = "edit"
# Which tool answers a route.
TOOLS = {
    "[DET]": "detection",
    "[SEG]": "segmentation",
    "[POSE_OBJECT]": "pose",
    "[POSE]": "pose",
    "[GEN]": "diffusion",
    "[EDIT]": "diffusion",
}
_REFER_IOU = 0.5


@dataclass(frozen=True)
class RoutedResult:
    """One phrase that the model routed, and what the tool found for it, best first."""

    route: str
    phrase: str
    # (box as x, y, width, height in pixels, score).
    found: tuple[tuple[BoundingBox, float], ...]
    # Whether the tool says that it is in the image at all; None when it failed.
    present: bool | None
    # The mask of each of ``found``, from tools that segment.
    masks: tuple[RunLengthMask | None, ...] = ()
    # The keypoints of each of ``found``, from tools that find poses.
    keypoints: tuple[tuple[Keypoint, ...], ...] = ()
    # PNG files, from tools that make images.
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came back for one prompt."""

    prompt: Prompt
    text: str = ""
    # What the model wrote after the last results that it read or asked for: the part that answers.
    conclusion: str = ""
    routed: tuple[RoutedResult, ...] = ()
    # The same phrases on the fast path; None where it was not asked.
    teacher_forced: tuple[RoutedResult, ...] | None = None
    # What the detector finds in the image that a tool made, by category id: boxes as x, y, width, height in pixels.
    shown: Mapping[int, tuple[BoundingBox, ...]] | None = None
    # Why the request failed; empty when it did not.
    error: str = ""
    seconds: float = 0.0


def outcome_of(prompt: Prompt, answer: Answer, teacher_forced: DetectionAnswer | None, seconds: float) -> Outcome:
    """Take the gateway's answers apart."""
    routed = tuple(
        _routed(
            result.route, result.phrase, result.objects, result.found, tuple(image.content for image in result.images)
        )
        for result in answer.phrases
    )
    ends = [observation.position for observation in answer.observations]
    ends += [result.span.end for result in answer.phrases if result.span is not None]
    problems = "; ".join(f"{problem.code}: {problem.detail}" for problem in answer.errors)
    return Outcome(
        prompt=prompt,
        text=answer.text,
        conclusion=answer.text[max(ends, default=0) :],
        routed=routed,
        teacher_forced=None if teacher_forced is None else _fast_path_results(prompt, teacher_forced),
        error=problems,
        seconds=seconds,
    )


def routes_are_right(outcome: Outcome) -> bool:
    """Whether exactly the expected phrases were routed, in order, each to the right tool."""
    expected = [(phrase.route, phrase.phrase) for phrase in outcome.prompt.phrases]
    return [(result.route, result.phrase) for result in outcome.routed] == expected


def answer_is_right(outcome: Outcome) -> bool:
    """Whether the words state the expected answer; True for prompts that expect none."""
    return outcome.prompt.answer is None or is_right(outcome.prompt.answer, outcome.conclusion)


def reference_is_right(scene_set: SceneSet, outcome: Outcome) -> bool:
    """Whether the best box overlaps the one thing that was meant by at least half (IoU)."""
    candidates = [found for result in outcome.routed for found in result.found]
    if not candidates:
        return False
    box, _ = max(candidates, key=lambda candidate: candidate[1])
    meant = scene_set.annotations[outcome.prompt.phrases[0].annotation_ids[0]]
    return intersection_over_union(box, meant.bbox) >= _REFER_IOU


def names_of_open(outcome: Outcome) -> tuple[set[str], set[str]]:
    """The phrases that are right for an open request, and those that the model named."""
    return {phrase.phrase for phrase in outcome.prompt.phrases}, {result.phrase for result in outcome.routed}


def is_wrong(scene_set: SceneSet, outcome: Outcome) -> bool:
    """Whether anything about the outcome is worth a look."""
    if outcome.error:
        return True
    if outcome.prompt.task == REFER_TASK and not reference_is_right(scene_set, outcome):
        return True
    if outcome.prompt.task in FAST_TASKS:
        return False
    return not (routes_are_right(outcome) and answer_is_right(outcome))


def boxes_of(scene_set: SceneSet, prompt: Prompt, routed: Sequence[RoutedResult]) -> PromptBoxes:
    """Truth and detections of one prompt, restricted to the phrases that it asks for."""
    category_of = {phrase.phrase: phrase.category_id for phrase in prompt.phrases}
    truths = []
    for phrase in prompt.phrases:
        for annotation_id in phrase.annotation_ids:
            annotation = scene_set.annotations[annotation_id]
            truths.append(TrueBox(phrase.category_id, annotation.bbox, annotation.area))
    found = [
        FoundBox(category_of[result.phrase], box, score)
        for result in routed
        if result.phrase in category_of
        for box, score in result.found
    ]
    return PromptBoxes(tuple(truths), tuple(found))


def segmented(prompt: Prompt, answer: DetectionAnswer, seconds: float) -> Outcome:
    """The outcome of a prompt of ``FAST_TASKS``: what was found for its phrases, or for its one mark."""
    if prompt.task == INTERACTIVE_TASK:
        [phrase] = prompt.phrases
        routed: tuple[RoutedResult, ...] = (_routed(phrase.route, phrase.phrase, answer.objects, bool(answer.objects)),)
    else:
        routed = _fast_path_results(prompt, answer)
    return Outcome(prompt, routed=routed, seconds=seconds)


def _routed(
    route: str, phrase: str, objects: Sequence[FoundObject], present: bool | None, images: tuple[bytes, ...] = ()
) -> RoutedResult:
    ranked = sorted(objects, key=lambda found: -found.score)
    return RoutedResult(
        route,
        phrase,
        tuple((found.bbox, found.score) for found in ranked),
        present,
        tuple(found.segmentation for found in ranked),
        tuple(found.keypoints for found in ranked),
        images,
    )


def _fast_path_results(prompt: Prompt, detected: DetectionAnswer) -> tuple[RoutedResult, ...]:
    present = {presence.phrase: presence.found for presence in detected.presence}
    return tuple(
        _routed(
            phrase.route,
            phrase.phrase,
            [found for found in detected.objects if found.category == phrase.phrase],
            present.get(phrase.phrase),
        )
        for phrase in prompt.phrases
    )
