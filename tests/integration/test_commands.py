"""Every command that asks, as a person types it, against the real stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from superlink.connection_settings import URL_VARIABLE
from superlink.stack import LocalStack

pytestmark = pytest.mark.surface

SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"
DOGS, TOUR = str(SAMPLES / "dogs.png"), str(SAMPLES / "tour.png")
# Of the ways to draw the one that is soon over.
FAST = ("--steps", "2", "--seed", "1")


@pytest.fixture
def superlink(stack: LocalStack, tmp_path: Path) -> Any:
    """Runs a command in an empty folder; gives what it printed, and what it wrote as JSON."""

    def run(*arguments: str) -> tuple[str, Any]:
        environment = {**os.environ, URL_VARIABLE: stack.url, "COLUMNS": "200"}
        command = [sys.executable, "-m", "superlink", *arguments, "--out", "out.png", "--json", "out.json"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))

    return run


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def test_ask_answers_and_draws_what_was_found(superlink: Any, tmp_path: Path) -> None:
    said, answer = superlink("ask", TOUR, "Find the butterflies and segment the cow.", "--timings")
    assert answer["text"] in said.splitlines()[0]
    assert {"butterfly", "cow", "mllm", "gateway"} <= set(said.replace("│", " ").split())
    phrases = {phrase["phrase"]: phrase for call in answer["tool_calls"] for phrase in call["phrases"]}
    assert len(phrases["butterfly"]["detections"]) == 2
    assert phrases["cow"]["detections"][0]["segmentation"]["size"] == [307, 259]
    assert min(size_of(tmp_path / "out.png")) > 259


def test_detect_lists_what_is_there_and_names_what_is_not(superlink: Any) -> None:
    said, found = superlink("detect", DOGS, "dog", "skull", "cat")
    assert sorted(each["category"] for each in found["detections"]) == ["dog", "dog", "skull"]
    assert said.count("dog") == 2
    assert "cat: not found" in said


def test_segment_cuts_out_names_and_marks(superlink: Any) -> None:
    _, found = superlink("segment", DOGS, "skull", "--point", "191,46")
    assert sorted(each["category"] for each in found["detections"]) == ["region 1", "skull"]
    assert all(each["segmentation"]["counts"] for each in found["detections"])


def test_pose_finds_the_keypoints_that_were_asked_for(superlink: Any) -> None:
    said, found = superlink("pose", TOUR, "person", "--keypoints", "nose,left wrist")
    assert [point["name"] for point in found["detections"][0]["keypoints"]] == ["nose", "left wrist"]
    assert "person 1: nose" in said


def test_generate_draws(superlink: Any, tmp_path: Path) -> None:
    said, drawn = superlink("generate", "a cat beside a pine tree", "-n", "2", *FAST)
    assert [image["file"] for image in drawn["images"]] == ["out-1.png", "out-2.png"]
    assert said.count("128 x 128 pixels") == 2
    assert {size_of(tmp_path / image["file"]) for image in drawn["images"]} == {(128, 128)}


def test_edit_changes_an_image_in_its_own_size(superlink: Any, tmp_path: Path) -> None:
    _, edited = superlink("edit", TOUR, "make the butterflies red", *FAST)
    assert edited["images"][0]["seed"] == 1
    assert size_of(tmp_path / "out.png") == size_of(Path(TOUR))
