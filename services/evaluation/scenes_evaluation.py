"""Asks a running gateway every prompt of a scene set.

The model writes its own answers (free-running). Prompts that look for categories also go over ``/v1/detect`` with the
right phrases (teacher-forced), which shows what free writing costs. What tools draw is shown to the detector.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from services.evaluation.average_precision import BoundingBox
from services.evaluation.drawing_figures import baselines
from services.evaluation.outcomes import (
    DETECTION_TASKS,
    DRAW_TASK,
    EDIT_TASK,
    FAST_TASKS,
    REFER_TASK,
    SEGMENT_TASKS,
    SEMANTIC_TASK,
    TOOLS,
    Outcome,
    is_wrong,
    outcome_of,
    segmented,
)
from services.evaluation.scenes_report import ScenesReport, report_of
from services.evaluation.scenes_set import POSE_TASK, ChoiceAnswer, Prompt, SceneSet
from superlink.client import Client
from superlink.errors import SuperlinkError
from superlink.images import encode_image
from superlink.rest import ChatOptions, DetectOptions, SegmentOptions
from superlink.results import Answer

# Average precision needs the whole ranking, not only what counts as present.
_RANKING_THRESHOLD = 0.01
_RANKING_DETECTIONS = 300
# Semantic prompts ask for what is there, all of it: nothing is left out for being unlikely.
_SEMANTIC_THRESHOLD = 0.1


def evaluate_scenes(
    client: Client,
    scene_set: SceneSet,
    concurrency: int = 1,
    report: Callable[[int], None] | None = None,
) -> tuple[ScenesReport, list[Outcome]]:
    """Ask every prompt, ``concurrency`` at a time, and judge the answers.

    ``report`` hears how many prompts are answered. A request that fails counts as wrong; SuperlinkError only leaves
    here when the gateway cannot be reached at all.
    """
    asked, notes = _answerable(scene_set.prompts, {service.name for service in client.ready().services})
    compared = _compared(asked)
    start = time.perf_counter()
    outcomes: dict[int, Outcome] = {}
    pool = ThreadPoolExecutor(concurrency)
    try:
        waiting = [pool.submit(ask_prompt, client, scene_set, prompt, compared.get(prompt.id, ())) for prompt in asked]
        for done, answered in enumerate(as_completed(waiting), start=1):
            outcome = answered.result()
            outcomes[outcome.prompt.id] = outcome
            if report:
                report(done)
    finally:
        # Stopped half-way (Ctrl-C, SIGTERM), it asks nothing more; `with` would ask all the rest first.
        pool.shutdown(cancel_futures=True)
    ordered = [outcomes[prompt.id] for prompt in asked]
    return report_of(scene_set, ordered, time.perf_counter() - start, notes), ordered


def ask_prompt(client: Client, scene_set: SceneSet, prompt: Prompt, compared: Sequence[int] = ()) -> Outcome:
    """One prompt, and its teacher-forced twin where it looks for categories.

    The detector looks for the categories ``compared`` in an image that was made.
    """
    image = None if prompt.image_id is None else scene_set.image_file(prompt.image_id)
    start = time.perf_counter()
    try:
        if prompt.task in FAST_TASKS and image is not None:
            return _segment(client, prompt, image)
        answer = _chat(client, prompt, image)
        seconds = time.perf_counter() - start
        detected = None
        if image is not None and prompt.task in DETECTION_TASKS:
            detect_options: DetectOptions = {
                "score_threshold": _RANKING_THRESHOLD,
                "max_detections": _RANKING_DETECTIONS,
            }
            detected = client.detect(image, [phrase.phrase for phrase in prompt.phrases], **detect_options)
        outcome = outcome_of(prompt, answer, detected, seconds)
        if prompt.task in (DRAW_TASK, EDIT_TASK) and answer.images and compared:
            outcome = replace(outcome, shown=_look_at(client, scene_set, prompt, answer.images[0].content, compared))
    except SuperlinkError as error:
        return Outcome(prompt, error=str(error), seconds=time.perf_counter() - start)
    return outcome


def _answerable(prompts: Sequence[Prompt], services: set[str]) -> tuple[list[Prompt], list[str]]:
    """The prompts whose tools are deployed, and a note on every tool that is not.

    A gateway that names no services is taken to have all tools.
    """
    lacking: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        needed = {TOOLS[phrase.route] for phrase in prompt.phrases if phrase.route in TOOLS}
        away = sorted(needed - services) if services else []
        lacking.update(away)
        if not away:
            kept.append(prompt)
    return kept, [f"{tool} is not deployed: {count} prompts are left out" for tool, count in sorted(lacking.items())]


def _compared(prompts: Sequence[Prompt]) -> dict[int, tuple[int, ...]]:
    """Which categories the detector looks for in the image that is made for a prompt, by the prompt's id."""
    drawn = [prompt for prompt in prompts if prompt.drawing is not None]
    asked = [prompt.drawing.category_ids for prompt in drawn if prompt.drawing is not None]
    compared = {prompt.id: (*own, *others) for prompt, own, others in zip(drawn, asked, baselines(asked), strict=True)}
    for prompt in prompts:
        if prompt.edit is not None:
            ids = (prompt.edit.gone, prompt.edit.new, prompt.edit.recoloured)
            compared[prompt.id] = tuple(category for category in ids if category is not None)
    return compared


def _segment(client: Client, prompt: Prompt, image: Path) -> Outcome:
    """``/v1/segment`` alone: one mask a phrase, or the mask of a mark."""
    start = time.perf_counter()
    options: SegmentOptions
    if prompt.task == SEMANTIC_TASK:
        options = {"semantic": True, "score_threshold": _SEMANTIC_THRESHOLD}
        answer = client.segment(image, [phrase.phrase for phrase in prompt.phrases], **options)
    else:
        options = {"regions": prompt.marks}
        answer = client.segment(image, **options)
    return segmented(prompt, answer, time.perf_counter() - start)


def _chat(client: Client, prompt: Prompt, image: Path | None) -> Answer:
    """The answer to the prompt, after that to the earlier question where there is one."""
    options: ChatOptions = {}
    if prompt.task in (*DETECTION_TASKS, *SEGMENT_TASKS, REFER_TASK, POSE_TASK):
        options = {"score_threshold": _RANKING_THRESHOLD, "max_detections": _RANKING_DETECTIONS}
    if not prompt.earlier:
        return client.chat(image, prompt.text, **options)
    earlier = client.chat(image, prompt.earlier)
    return client.chat(None, prompt.text, history=_history(image, prompt.earlier, earlier))


def _history(image: Path | None, question: str, answer: Answer) -> list[Mapping[str, Any]]:
    """The first question and its answer as earlier messages."""
    content: list[Mapping[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": encode_image(image).data_url()}})
    told = {"image", "tool_calls", "observations"}
    known = answer.model_dump(mode="json", by_alias=True, exclude_none=True, include=told)
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer.text, "superlink": known},
    ]


def _look_at(
    client: Client, scene_set: SceneSet, prompt: Prompt, made: bytes, categories: Sequence[int]
) -> dict[int, tuple[BoundingBox, ...]]:
    """What the detector finds in an image that was made, in pixels of the source where there is one."""
    names = {scene_set.categories[category].name: category for category in categories}
    answer = client.detect(made, list(names))
    scale = 1.0
    if prompt.image_id is not None and answer.image is not None:
        scale = scene_set.images[prompt.image_id].width / answer.image.width
    found: dict[int, tuple[BoundingBox, ...]] = dict.fromkeys(categories, ())
    for item in answer.objects:
        x, y, width, height = (side * scale for side in item.bbox)
        found[names[item.category]] += ((x, y, width, height),)
    return found


def write_failures(scene_set: SceneSet, outcomes: list[Outcome], file: TextIO) -> int:
    """List what went wrong, a few lines a prompt; returns how many prompts that are."""
    wrong = [outcome for outcome in outcomes if is_wrong(scene_set, outcome)]
    for outcome in wrong:
        prompt = outcome.prompt
        picture = scene_set.image_file(prompt.image_id).name if prompt.image_id is not None else "no image"
        file.write(f"prompt {prompt.id} {prompt.task} {prompt.kind} {prompt.language} {picture}\n")
        file.write(f"  asked:    {prompt.text!r}\n")
        file.write(f"  said:     {outcome.text!r}\n")
        if outcome.error:
            file.write(f"  error:    {outcome.error}\n")
        file.write(f"  routed:   {[result.phrase for result in outcome.routed]}\n")
        file.write(f"  expected: {[phrase.phrase for phrase in prompt.phrases]}{_right_answer(prompt)}\n")
    return len(wrong)


def _right_answer(prompt: Prompt) -> str:
    if prompt.answer is None:
        return ""
    choices = f" of {sorted(prompt.answer.options)}" if isinstance(prompt.answer, ChoiceAnswer) else ""
    return f", answer {prompt.answer.value!r}{choices}"
