"""What was found, as a picture, as COCO annotations and as supervision's types."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools.coco import COCO

from gateway.chat_schema import AnswerExtension, Delta
from superlink import AsyncClient, Client
from superlink.detections import RunLengthMask
from superlink.results import Answer, DetectionAnswer, Finished
from superlink.run_length import encode_mask
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import COMPLETED, chunk, completion, event_stream, png

WIDTH, HEIGHT = 64, 48


def picture(colour: str = "white", size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG", exif=exif)
    return buffer.getvalue()


def mask_of(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
    image = Image.new("L", (WIDTH, HEIGHT))
    image.paste(255, (x1, y1, x2, y2))
    return {"size": [HEIGHT, WIDTH], "counts": encode_mask(image)}


def found(*detections: dict[str, Any], categories: tuple[str, ...] = ("cat", "dog", "cow")) -> Reply:
    document = {
        "image": {"width": WIDTH, "height": HEIGHT},
        "categories": [{"phrase": name, "found": True, "score": 0.9} for name in categories],
        "detections": list(detections),
    }
    return Reply(200, json.dumps(document).encode())


DOG = {"category": "dog", "category_index": 1, "bbox": [10, 8, 20, 30], "score": 0.9}
CAT = {"category": "cat", "category_index": 0, "bbox": [40, 4, 8.5, 6], "score": 0.6}


def asked(gateway: ScriptedGateway, answer: Reply) -> DetectionAnswer:
    gateway.answer(answer)
    with Client(gateway.url) as client:
        return client.detect(picture(), ["cat", "dog", "cow"])


def test_the_image_that_was_sent_is_drawn_on(gateway: ScriptedGateway) -> None:
    drawn = asked(gateway, found(DOG)).draw()
    # Enlarged four times.
    assert drawn.size == (WIDTH * 4, HEIGHT * 4)
    assert drawn.getpixel((40, 80)) != (255, 255, 255)
    assert drawn.getpixel((200, 170)) == (255, 255, 255)


async def test_answers_of_every_kind_can_be_drawn(gateway: ScriptedGateway, tmp_path: Path) -> None:
    extension = AnswerExtension.model_validate({"tool_calls": [COMPLETED], "image": {"width": WIDTH, "height": HEIGHT}})
    file = tmp_path / "scene.png"
    file.write_bytes(picture())
    answers: list[Answer] = []
    with Client(gateway.url) as client:
        gateway.answer(completion("Here.", extension))
        answers.append(client.chat([png(), file], "Where is the dog?"))
        gateway.answer(event_stream(chunk(Delta(superlink=extension)), chunk(Delta(), "stop")))
        last = list(client.chat(Image.open(file), "Where is the dog?", stream=True))[-1]
        assert isinstance(last, Finished)
        answers.append(last.answer)
    async with AsyncClient(gateway.url) as asynchronous:
        gateway.answer(completion("Here.", extension))
        answers.append(await asynchronous.chat(np.asarray(Image.open(file)), "Where is the dog?"))
    for answer in answers:
        assert answer.draw().size == (WIDTH * 4, HEIGHT * 4)
        assert "source" not in answer.model_dump()
        assert "source" not in json.loads(answer.model_dump_json())
        assert len(repr(answer)) < 2000


def test_another_image_may_be_drawn_on(gateway: ScriptedGateway) -> None:
    assert asked(gateway, found(DOG)).draw(picture("black")).getpixel((200, 170)) == (0, 0, 0)


def test_an_image_that_lies_on_its_side_is_drawn_on_upright(gateway: ScriptedGateway) -> None:
    lying = picture(size=(HEIGHT, WIDTH), orientation=6)
    assert asked(gateway, found(DOG)).draw(lying).size == (WIDTH * 4, HEIGHT * 4)


def test_without_an_image_there_is_nothing_to_draw_on(gateway: ScriptedGateway) -> None:
    gateway.answer(completion("Hello.", AnswerExtension()))
    with Client(gateway.url) as client:
        answer = client.chat(None, "hello")
    with pytest.raises(ValueError, match="Say which to draw on"):
        answer.draw()


def test_an_image_of_another_size_is_refused(gateway: ScriptedGateway) -> None:
    with pytest.raises(ValueError, match="8 x 8 pixels; the answer is about one of 64 x 48"):
        asked(gateway, found(DOG)).draw(png(8))


def loaded(document: dict[str, Any], folder: Path) -> COCO:
    file = folder / "annotations.json"
    file.write_text(json.dumps(document))
    return COCO(str(file))


def test_boxes_and_masks_are_what_pycocotools_reads(gateway: ScriptedGateway, tmp_path: Path) -> None:
    answer = asked(gateway, found({**DOG, "segmentation": mask_of(10, 8, 30, 38)}, CAT))

    coco = loaded(answer.to_coco(image_id=7, file_name="scene.png"), tmp_path)

    assert coco.loadImgs(7)[0] == {"id": 7, "file_name": "scene.png", "width": WIDTH, "height": HEIGHT}
    # What was asked for and is not there has an id as well, so that answers to one question agree.
    assert {entry["name"]: entry["id"] for entry in coco.loadCats(coco.getCatIds())} == {"cat": 1, "dog": 2, "cow": 3}
    dog, cat = coco.loadAnns(coco.getAnnIds(imgIds=7))
    assert (dog["bbox"], dog["category_id"], dog["score"], dog["area"]) == ([10, 8, 20, 30], 2, 0.9, 600)
    assert (cat["bbox"], cat["category_id"], cat["area"]) == ([40, 4, 8.5, 6], 1, 51)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[8:38, 10:30] = 1
    assert (coco.annToMask(dog) == expected).all()
    assert coco.loadRes([dog]).loadAnns(1)[0]["score"] == 0.9


def test_keypoints_are_listed_by_name_and_flagged_where_they_are_hidden(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    seen = [("nose", 12.0, 9.0, 0.9), ("left wrist", 20.0, 30.0, 0.1)]
    gateway.answer(reply_of_poses(seen, [("nose", 50, 10, 0.8), ("tail", 55, 12, 0.7)]))
    with Client(gateway.url) as client:
        answer = client.pose(picture(), ["person"])

    coco = loaded(answer.to_coco(), tmp_path)

    (category,) = coco.loadCats(coco.getCatIds())
    assert category["keypoints"] == ["nose", "left wrist", "tail"]
    assert category["skeleton"] == [[1, 2]]
    first, second = coco.loadAnns(coco.getAnnIds())
    assert first["keypoints"] == [12, 9, 2, 20, 30, 1, 0, 0, 0]
    assert second["keypoints"] == [50, 10, 2, 0, 0, 0, 55, 12, 2]
    assert (first["num_keypoints"], second["num_keypoints"]) == (2, 2)


def reply_of_poses(*objects: list[tuple[str, float, float, float]]) -> Reply:
    document = {
        "image": {"width": WIDTH, "height": HEIGHT},
        "categories": [{"phrase": "person", "found": True, "score": 0.9, "bones": [["nose", "left wrist"]]}],
        "detections": [
            {
                "category": "person",
                "bbox": [0, 0, 9, 9],
                "score": 0.9,
                "keypoints": [{"name": name, "x": x, "y": y, "score": score} for name, x, y, score in keypoints],
            }
            for keypoints in objects
        ],
    }
    return Reply(200, json.dumps(document).encode())


def test_many_images_go_into_one_file(gateway: ScriptedGateway, tmp_path: Path) -> None:
    ids = {"cat": 17, "dog": 18, "cow": 21}
    merged: dict[str, Any] = {"images": [], "annotations": []}
    for image_id, answer in enumerate([found(DOG, CAT), found(CAT)], 1):
        part = asked(gateway, answer).to_coco(
            image_id=image_id, category_ids=ids, first_annotation_id=len(merged["annotations"]) + 1
        )
        merged["images"] += part["images"]
        merged["annotations"] += part["annotations"]
        merged["categories"] = part["categories"]
    coco = loaded(merged, tmp_path)
    assert sorted(coco.getAnnIds()) == [1, 2, 3]
    assert len(coco.getAnnIds(imgIds=2, catIds=17)) == 1
    with pytest.raises(ValueError, match="'cow'"):
        asked(gateway, found(DOG)).to_coco(category_ids={"cat": 1, "dog": 2})


def test_supervision_gets_boxes_scores_and_names(gateway: ScriptedGateway) -> None:
    detections = asked(gateway, found(DOG, CAT)).to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 8, 30, 38], [40, 4, 48.5, 10]]
    assert detections.confidence is not None
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.6])
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [1, 0]
    assert detections["class_name"].tolist() == ["dog", "cat"]
    assert detections.mask is None
    # The library's own work on them.
    assert detections[detections["class_name"] == "cat"].xyxy.shape == (1, 4)
    scene = np.asarray(Image.open(io.BytesIO(picture())))
    assert (supervision.BoxAnnotator().annotate(scene.copy(), detections) != scene).any()


def test_supervision_gets_masks(gateway: ScriptedGateway) -> None:
    detections = asked(gateway, found({**DOG, "segmentation": mask_of(10, 8, 30, 38)}, CAT)).to_supervision()
    mask = np.asarray(detections.mask)
    assert mask.shape == (2, HEIGHT, WIDTH)
    assert mask[0, 8:38, 10:30].all()
    assert mask.sum() == 20 * 30


def test_supervision_gets_keypoints(gateway: ScriptedGateway) -> None:
    gateway.answer(reply_of_poses([("nose", 12, 9, 0.9), ("left wrist", 20, 30, 0.1)], [("tail", 55, 12, 0.7)]))
    with Client(gateway.url) as client:
        poses = client.pose(picture(), ["person"]).to_supervision_keypoints()
    assert poses.xy.tolist() == [[[12, 9], [20, 30], [0, 0]], [[0, 0], [0, 0], [55, 12]]]
    assert np.asarray(poses.visible).tolist() == [[True, False, False], [False, False, True]]
    assert np.asarray(poses.data["keypoint_name"])[0].tolist() == ["nose", "left wrist", "tail"]
    assert np.asarray(poses.data["class_name"]).tolist() == ["person", "person"]


def test_nothing_found_is_an_empty_result_everywhere(gateway: ScriptedGateway, tmp_path: Path) -> None:
    answer = asked(gateway, found())
    assert len(answer.to_supervision()) == 0
    assert len(answer.to_supervision_keypoints()) == 0
    assert loaded(answer.to_coco(), tmp_path).getAnnIds() == []
    assert answer.draw().getcolors() == [(WIDTH * 4 * HEIGHT * 4, (255, 255, 255))]


def test_without_supervision_the_error_says_what_to_install(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asked(gateway, found(DOG))
    monkeypatch.setitem(sys.modules, "supervision", None)
    for convert in (answer.to_supervision, answer.to_supervision_keypoints):
        with pytest.raises(ModuleNotFoundError, match=r"pip install .*'\.\[supervision\]'"):
            convert()
    assert len(answer.to_coco()["annotations"]) == 1


def test_the_sdk_loads_neither_numpy_nor_supervision_by_itself() -> None:
    code = """
import sys, superlink
superlink.Client, superlink.AsyncClient
print([name for name in ("numpy", "supervision", "cv2") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_area_of_a_mask_is_the_number_of_its_pixels() -> None:
    assert RunLengthMask.model_validate(mask_of(3, 4, 10, 14)).area() == 70
