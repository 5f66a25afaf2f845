"""Asks a running gateway every prompt of a scene set.

The model writes its own answers (free-running). Prompts that look for categories also go over ``/v1/detect`` with the
right phrases (teacher-forced), which shows what free writing costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TextIO

from services.evaluation.outcomes import DETECTION_TASKS, REFER_TASK, Outcome, is_wrong, outcome_of
from services.evaluation.scenes_report import ScenesReport, report_of
from services.evaluation.scenes_set import ChoiceAnswer, Prompt, SceneSet
from superlink.client import Client
from superlink.errors import SuperlinkError
from superlink.rest import ChatOptions, DetectOptions

# Average precision needs the whole ranking, not only what counts as present.
_RANKING_THRESHOLD = 0.01
_RANKING_DETECTIONS = 300


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
    client.ready()
    start = time.perf_counter()
    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        waiting = [pool.submit(ask_prompt, client, scene_set, prompt) for prompt in scene_set.prompts]
        for done, answered in enumerate(as_completed(waiting), start=1):
            outcome = answered.result()
            outcomes[outcome.prompt.id] = outcome
            if report:
                report(done)
    ordered = [outcomes[prompt.id] for prompt in scene_set.prompts]
    return report_of(scene_set, ordered, time.perf_counter() - start), ordered


def ask_prompt(client: Client, scene_set: SceneSet, prompt: Prompt) -> Outcome:
    """One prompt, and its teacher-forced twin where it looks for categories."""
    image = None if prompt.image_id is None else scene_set.image_file(prompt.image_id)
    chat_options: ChatOptions = {}
    if prompt.task in (*DETECTION_TASKS, REFER_TASK):
        chat_options = {"score_threshold": _RANKING_THRESHOLD, "max_detections": _RANKING_DETECTIONS}
    start = time.perf_counter()
    try:
        answer = client.chat(image, prompt.text, **chat_options)
        seconds = time.perf_counter() - start
        detected = None
        if image is not None and prompt.task in DETECTION_TASKS:
            detect_options: DetectOptions = {
                "score_threshold": _RANKING_THRESHOLD,
                "max_detections": _RANKING_DETECTIONS,
            }
            detected = client.detect(image, [phrase.phrase for phrase in prompt.phrases], **detect_options)
    except SuperlinkError as error:
        return Outcome(prompt, error=str(error), seconds=time.perf_counter() - start)
    return outcome_of(prompt, answer, detected, seconds)


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
