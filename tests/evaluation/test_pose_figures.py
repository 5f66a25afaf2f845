"""Figures of poses, and how a set says what they are judged by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from typer.testing import CliRunner

from services.evaluation.commands import evaluate
from services.evaluation.outcomes import Outcome, RoutedResult
from services.evaluation.pose_figures import Pose, pose_figures
from services.evaluation.scenes_evaluation import evaluate_scenes
from services.evaluation.scenes_set import (
    ANNOTATIONS_FILE,
    PROMPTS_FILE,
    Prompt,
    PromptPhrase,
    SceneSet,
    SceneSetError,
    SetAnnotation,
    SetCategory,
    SetImage,
    SetInfo,
    load_scene_set,
)
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from superlink.client import Client
from superlink.results import Keypoint
from tests.evaluation.oracle_gateway import Oracle, serve

BOX = (10.0, 10.0, 40.0, 40.0)
HEAD, TAIL = Keypoint(name="头", x=15, y=15, score=0.9), Keypoint(name="尾巴", x=45, y=45, score=0.8)
PHRASES = (
    PromptPhrase(phrase="狗", route="[POSE_OBJECT]", category_id=7, annotation_ids=(1,)),
    PromptPhrase(phrase="尾巴", route="[POSE]", category_id=7, keypoint="tail"),
    PromptPhrase(phrase="头", route="[POSE]", category_id=7, keypoint="head"),
)


@pytest.fixture
def dogs() -> SceneSet:
    """Two prompts, each about the one dog of an image; keypoints are asked for in another order than the set's."""
    dog = SetCategory(id=7, name="dog", keypoints=("head", "tail"), skeleton=((1, 2),), sigmas=(0.05, 0.05))
    images = {number: SetImage(id=number, file_name=f"{number}.png", width=100, height=80) for number in (1, 2)}
    annotations = {
        number: SetAnnotation(
            id=number, image_id=number, category_id=7, bbox=BOX, area=900, keypoints=(15, 15, 2, 45, 45, 1)
        )
        for number in (1, 2)
    }
    prompts = tuple(
        Prompt(
            id=number,
            image_id=number,
            language="zh",
            task="pose",
            text="狗的姿态",
            phrases=(PHRASES[0].model_copy(update={"annotation_ids": (number,)}), *PHRASES[1:]),
        )
        for number in (1, 2)
    )
    return SceneSet(Path(), SetInfo(), images, annotations, {7: dog}, prompts)


RIGHT = RoutedResult("[POSE_OBJECT]", "狗", ((BOX, 0.9),), True, (None,), ((TAIL, HEAD),))


def figures(dogs: SceneSet, *answers: tuple[RoutedResult, ...]) -> Pose:
    outcomes = [Outcome(prompt, routed=routed) for prompt, routed in zip(dogs.prompts, answers, strict=False)]
    return pose_figures(dogs, outcomes)


def test_keypoints_are_told_by_the_words_that_asked_for_them(dogs: SceneSet) -> None:
    swapped = replace(RIGHT, keypoints=((TAIL.model_copy(update={"name": "头"}),),))
    assert figures(dogs, (RIGHT,), (RIGHT,)).by_kind == {"dog": pytest.approx(1.0)}
    # Of two figures the better scored one is all wrong: precision is a half at every recall up to a half.
    better = replace(swapped, found=((BOX, 0.95),))
    assert figures(dogs, (RIGHT,), (better,)).oks_ap50 == pytest.approx(0.5 * 51 / 101)


def test_half_of_the_keypoints_make_half_of_a_figure(dogs: SceneSet) -> None:
    """Its similarity is 0.5 then, and counts; of neither it is 0."""
    assert figures(dogs, (replace(RIGHT, keypoints=((HEAD,),)),)).oks_ap50 == pytest.approx(1.0)
    assert figures(dogs, (replace(RIGHT, keypoints=((),)),)).oks_ap50 == 0.0


@pytest.mark.parametrize(("field", "value"), [("phrase", "dog"), ("route", "[DET]")])
def test_other_words_and_other_tools_find_nothing(dogs: SceneSet, field: str, value: str) -> None:
    astray = replace(RIGHT, **{field: value})
    assert figures(dogs, (astray,), ()) == Pose(oks_ap50=0.0, by_kind={"dog": 0.0})


def test_nothing_asked_is_no_figure(dogs: SceneSet) -> None:
    assert pose_figures(dogs, []) == Pose(oks_ap50=None, by_kind={})


def evaluated(oracle: Oracle):
    with serve(oracle) as url, Client(url, max_retries=0) as client:
        report, _ = evaluate_scenes(client, oracle.scene_set, 4)
        return report


def test_right_poses_score_one_in_both_kinds_and_languages(tool_set: SceneSet) -> None:
    report = evaluated(Oracle(tool_set))
    assert report.pose.by_kind == {"person": pytest.approx(1.0), "deer": pytest.approx(1.0)}
    assert report.pose.oks_ap50 == pytest.approx(1.0)
    assert {language: figures.pose.oks_ap50 for language, figures in report.by_language.items()} == {
        "en": pytest.approx(1.0),
        "zh": pytest.approx(1.0),
    }
    assert report.routing.by_task["pose"] == report.routing.by_task["pose_places"] == 1.0


def test_wrong_phrases_cost_poses_and_their_routing(tool_set: SceneSet) -> None:
    oracle = Oracle(tool_set)
    oracle.wrong_tasks = {"pose"}
    report = evaluated(oracle)
    assert report.pose == Pose(oks_ap50=0.0, by_kind={"person": 0.0, "deer": 0.0})
    assert report.routing.by_task["pose"] == 0.0
    assert report.routing.by_task["pose_places"] == 1.0
    assert 0 < report.routing.accuracy < 1


def test_failed_requests_find_no_poses(tool_set: SceneSet) -> None:
    oracle = Oracle(tool_set)
    oracle.failing_tasks = {"pose"}
    assert evaluated(oracle).pose.oks_ap50 == 0.0


def test_poses_are_ranked_by_low_scores_too(tool_set: SceneSet, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(tool_set)
    options = {}

    def watched(request: dict) -> tuple[int, dict]:
        status, document = Oracle.chat(oracle, request)
        question = request["messages"][-1]["content"]
        options[next(part["text"] for part in question if part["type"] == "text")] = request.get("superlink", {})
        return status, document

    monkeypatch.setattr(oracle, "chat", watched)
    poses = [prompt for prompt in tool_set.prompts if prompt.task == "pose"]
    oracle.scene_set = SceneSet(
        tool_set.folder, tool_set.info, tool_set.images, tool_set.annotations, tool_set.categories, tuple(poses)
    )
    evaluated(oracle)
    assert {entry["score_threshold"] for entry in options.values()} == {0.01}


def test_without_a_pose_worker_poses_are_left_out_and_noted(tool_set: SceneSet) -> None:
    oracle = Oracle(tool_set)
    oracle.services = ["orchestrator", "mllm", "detection", "segmentation", "diffusion"]
    report = evaluated(oracle)
    assert report.pose == Pose(oks_ap50=None, by_kind={})
    assert "pose" not in report.routing.by_task
    assert any("pose is not deployed" in note for note in report.notes)


def test_the_command_shows_and_writes_poses(tool_set: SceneSet, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with serve(Oracle(tool_set)) as url:
        options = ["--scenes", str(tool_set.folder), "--url", url, "--json", str(file)]
        result = CliRunner().invoke(evaluate, ["scenes", *options])
    assert result.exit_code == 0, result.output
    for row in ("poses AP50 by OKS", "poses AP50 by OKS, person", "poses AP50 by OKS, deer"):
        assert row in result.output
    written = json.loads(file.read_text(encoding="utf-8"))
    assert set(written["pose"]) == {"oks_ap50", "by_kind"}
    assert set(written["pose"]["by_kind"]) == {"person", "deer"}


def test_the_set_says_what_coco_says(tool_set: SceneSet) -> None:
    coco = COCO(str(tool_set.folder / ANNOTATIONS_FILE))
    kinds = coco.loadCats(coco.getCatIds(supNms=["figures"]))
    assert [kind["name"] for kind in kinds] == [category.english for category in FIGURE_CATEGORIES.values()]
    figures = coco.loadAnns(coco.getAnnIds(catIds=[kind["id"] for kind in kinds]))
    assert figures
    for figure in figures:
        kind = coco.cats[figure["category_id"]]
        flags = figure["keypoints"][2::3]
        assert len(flags) == len(kind["keypoints"]) == len(kind["sigmas"])
        assert figure["num_keypoints"] == sum(flag > 0 for flag in flags)
        x, y, width, height = figure["bbox"]
        for place, flag in enumerate(flags):
            if flag == 2:
                assert x <= figure["keypoints"][3 * place] <= x + width
                assert y <= figure["keypoints"][3 * place + 1] <= y + height
    for first, second in kinds[0]["skeleton"]:
        assert 1 <= min(first, second) < max(first, second) <= 17
    others = [entry for entry in coco.anns.values() if entry not in figures]
    assert others
    assert not any("keypoints" in entry or "num_keypoints" in entry for entry in others)


def _category(content: dict) -> dict:
    return next(entry for entry in content["categories"] if "keypoints" in entry)


def _prompt(content: dict) -> dict:
    return next(entry for entry in content["prompts"] if entry["task"] == "pose")


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        (ANNOTATIONS_FILE, lambda content: _category(content)["sigmas"].pop(), "16 sigmas for 17 keypoints"),
        (ANNOTATIONS_FILE, lambda content: _category(content).pop("sigmas"), "no sigmas"),
        (ANNOTATIONS_FILE, lambda content: _category(content)["skeleton"].append([0, 1]), "bone"),
        (
            ANNOTATIONS_FILE,
            lambda content: next(entry for entry in content["annotations"] if "keypoints" in entry)["keypoints"].pop(),
            "50 numbers as keypoints, not 51",
        ),
        (PROMPTS_FILE, lambda content: _prompt(content)["phrases"].pop(), "each keypoint"),
        (PROMPTS_FILE, lambda content: _prompt(content)["phrases"][1].update(keypoint="antler"), "'antler'"),
        (PROMPTS_FILE, lambda content: _prompt(content)["phrases"].pop(0), "one kind of figure"),
    ],
)
def test_what_poses_cannot_be_judged_by_is_named(
    tool_set: SceneSet, tmp_path: Path, file: str, change: Callable[[dict], object], complaint: str
) -> None:
    shutil.copytree(tool_set.folder, tmp_path / "broken")
    content = json.loads((tmp_path / "broken" / file).read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "broken" / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SceneSetError, match=complaint):
        load_scene_set(tmp_path / "broken")
