"""Readers of public data sets, on small files in the layouts in which these are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.trainer.adaptation.layouts.catalogue import LAYOUTS
from services.trainer.adaptation.layouts.layout import LayoutError, Source
from services.trainer.adaptation.layouts.remote_sensing import geochat_text
from services.trainer.adaptation.multi_view import CAMERAS
from services.trainer.adaptation.rows import ConversationRow

pytestmark = pytest.mark.internvl


def draw(file: Path, width: int = 40, height: int = 20) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(file)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def read(layout: str, folder: Path, split: str = "train", **fields: Any) -> list[ConversationRow]:
    return list(LAYOUTS[layout].read(Source(folder, split, folder / "made", **fields)))


def said(row: ConversationRow) -> list[str]:
    return [message.value for message in row.conversations]


@pytest.mark.parametrize("inner", ["", "train/"])
def test_class_folders(tmp_path: Path, inner: str) -> None:
    draw(tmp_path / f"{inner}tennis_court" / "b.jpg")
    draw(tmp_path / f"{inner}airport" / "a.png", 30, 10)
    write(tmp_path / f"{inner}airport" / "readme.txt", "no image")
    first, second = read("class-folders", tmp_path)
    assert (first.image, first.width, first.height) == (f"{inner}airport/a.png", 30, 10)
    assert "airport, tennis court" in said(first)[0]
    assert said(second)[1] == "tennis court"
    assert [said(row)[1] for row in read("lettered-class-folders", tmp_path)] == ["A", "B"]


def coco(folder: Path) -> None:
    draw(folder / "train" / "1.jpg")
    draw(folder / "train" / "2.jpg")
    annotation = {"image_id": 1, "iscrowd": 0}
    square = [[4, 4, 14, 4, 14, 14, 4, 14]]
    write(
        folder / "annotations" / "instances_train.json",
        {
            "images": [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 20} for number in (1, 2)],
            "categories": [{"id": 5, "name": "ship"}, {"id": 6, "name": "harbour"}],
            "annotations": [
                annotation | {"id": 10, "category_id": 5, "bbox": [4, 4, 10, 10], "segmentation": square},
                annotation
                | {"id": 11, "category_id": 6, "bbox": [0, 0, 40, 20], "segmentation": [[0, 0, 40, 0, 40, 20]]},
                # Run lengths, column by column.
                annotation
                | {
                    "id": 12,
                    "category_id": 5,
                    "bbox": [20, 0, 20, 20],
                    "segmentation": {"counts": [400, 400], "size": [20, 40]},
                },
                annotation | {"id": 13, "category_id": 5, "iscrowd": 1, "bbox": [0, 0, 1, 1], "segmentation": square},
            ],
        },
    )


def test_coco_boxes(tmp_path: Path) -> None:
    coco(tmp_path)
    (row,) = read("coco", tmp_path)
    assert row.image == "train/1.jpg"
    assert said(row) == [
        "<image>\nDetect <ref>ship</ref>.",
        "<ref>ship</ref><box>[[100, 200, 350, 700], [500, 0, 1000, 1000]]</box>",
        "Detect <ref>harbour</ref>.",
        "<ref>harbour</ref><box>[[0, 0, 1000, 1000]]</box>",
    ]


def test_coco_regions_on_the_pixels(tmp_path: Path) -> None:
    coco(tmp_path)
    rows = read("coco-marked", tmp_path, mark="mask")
    assert [said(row)[1] for row in rows] == ["ship", "harbour", "ship"]
    assert rows[2].image == "1_12_mask.jpg"
    with Image.open(tmp_path / "made" / "1_12_mask.jpg") as image:
        red = np.asarray(image).astype(int)
    assert red[10, 30, 0] - red[10, 30, 1] > 60
    assert abs(red[10, 5, 0] - red[10, 5, 1]) < 20


def test_visual_genome_regions(tmp_path: Path) -> None:
    draw(tmp_path / "VG_100K_2" / "7.jpg")
    region = {"region_id": 70, "image_id": 7, "x": 20, "y": -3, "width": 30, "height": 13, "phrase": "a red kite"}
    write(tmp_path / "region_descriptions.json", [{"id": 7, "regions": [region]}])
    (row,) = read("visual-genome", tmp_path)
    assert (row.image, row.id) == ("VG_100K_2/7.jpg", "70")
    assert "<box>[[500, 0, 1000, 500]]</box>" in said(row)[0]
    assert said(row)[1] == "a red kite"


def drivelm(folder: Path) -> None:
    paths = {camera: f"../nuscenes/samples/{camera}/n.jpg" for camera in CAMERAS}
    for camera in CAMERAS:
        draw(folder / "nuscenes" / "samples" / camera / "n.jpg", 160, 90)
    tag = "<c1,CAM_FRONT,800.0,450.0>"
    frame = {
        "image_paths": paths,
        "key_object_infos": {tag: {"Category": "Vehicle"}},
        "QA": {
            "perception": [{"Q": "What is important?", "A": f"{tag} is."}, {"Q": "How many?", "A": "1"}],
            "planning": [{"Q": f"What about {tag}?", "A": "Keep going."}],
        },
    }
    write(folder / "v1_1_train_nus.json", {"scene": {"key_frames": {"f1": frame}}})


def test_drivelm_frames_are_stitched_once_and_every_question_is_a_row(tmp_path: Path) -> None:
    drivelm(tmp_path)
    rows = read("drivelm", tmp_path)
    assert [row.id for row in rows] == ["scene_f1_0_perception", "scene_f1_1_perception", "scene_f1_2_planning"]
    assert {row.image for row in rows} == {"scene_f1.jpg"}
    assert said(rows[0])[1] == "<c1,CAM_FRONT,[500,250]> is."
    assert said(rows[2])[0].endswith("What about <c1,CAM_FRONT,[500,250]>?")
    with Image.open(tmp_path / "made" / "scene_f1.jpg") as canvas:
        assert canvas.size == (2688, 896)
    # A second run goes on from what is there.
    before = (tmp_path / "made" / "scene_f1.jpg").stat().st_mtime_ns
    assert read("drivelm", tmp_path) == rows
    assert (tmp_path / "made" / "scene_f1.jpg").stat().st_mtime_ns == before


def test_drivelm_names_the_camera_that_is_missing(tmp_path: Path) -> None:
    drivelm(tmp_path)
    (tmp_path / "nuscenes" / "samples" / "CAM_BACK" / "n.jpg").unlink()
    with pytest.raises(LayoutError, match=r"samples/CAM_BACK/n.jpg.*scene scene, frame f1"):
        read("drivelm", tmp_path)


def bddx(folder: Path) -> None:
    parts = ("start", "end", "action", "justification")
    columns = ["Input.Video", *(f"Answer.{number}{part}" for number in range(1, 16) for part in parts)]
    first = [
        "https://host/videos/06d501fd-a9ffc960.mov",
        "0",
        "11",
        "The car accelerates",
        "because the light is green",
    ]
    second = ["https://host/videos/aa.mov", "3", "9", "It stops", "", "9", "12", "It turns", "since the road bends"]
    lines = [columns, *([*line, *[""] * (len(columns) - len(line))] for line in (first, second, [""]))]
    write(folder / "BDD-X-Annotations_v1.csv", "\n".join(",".join(line) for line in lines) + "\n")


def test_bddx_segments(tmp_path: Path) -> None:
    bddx(tmp_path)
    first, second = read("bdd-x", tmp_path)
    assert (first.video, first.clip) == ("videos/06d501fd-a9ffc960.mov", (0.0, 11.0))
    assert said(first)[1::2] == ["The car accelerates", "because the light is green"]
    # A segment that lacks its reason is left out, the next one counts.
    assert (second.id, second.clip) == ("aa_2", (9.0, 12.0))


def test_bddx_splits_are_lists_of_videos(tmp_path: Path) -> None:
    bddx(tmp_path)
    write(tmp_path / "val.txt", "12_aa\n")
    assert [row.id for row in read("bdd-x", tmp_path, "val")] == ["aa_2"]


def test_bddx_clips_with_signals(tmp_path: Path) -> None:
    entry = {
        "id": "c1",
        "video": "BDDX_Processed/videos/train/c1.mp4",
        "comment": [{"action": "The car stops"}, {"justification": "because of a light"}],
        "car_info": {"speed": [float(value) for value in range(8)], "course": [0.0, 0, 0, 0, -1.256, 0, 0, 0]},
    }
    write(tmp_path / "info" / "train" / "c1.json", entry)
    (row,) = read("bdd-x-signals", tmp_path)
    assert row.video == "videos/c1.mp4"
    assert "Speed so far: 0.00 m/s. Turning angle so far: 0.00 degrees." in said(row)[0]
    assert said(row)[5] == "Speed: 4.00, turning angle: -1.26"


@pytest.mark.parametrize(
    ("layout", "stem", "folder"), [("rsvqa-lr", "LR_split", "Images_LR"), ("rsvqa-hr", "USGS_split", "Data")]
)
def test_rsvqa(tmp_path: Path, layout: str, stem: str, folder: str) -> None:
    draw(tmp_path / folder / "3.tif", 25, 25)
    question = {
        "id": 1,
        "img_id": 3,
        "type": "presence",
        "question": "Is a road there?",
        "answers_ids": [1],
        "active": True,
    }
    inactive = {"id": 0, "active": False}
    write(tmp_path / f"{stem}_test_questions.json", {"questions": [inactive, question]})
    write(
        tmp_path / f"{stem}_test_answers.json",
        {"answers": [inactive, {"id": 1, "question_id": 1, "answer": "yes", "active": True}]},
    )
    (row,) = read(layout, tmp_path, "test")
    assert (row.id, row.image, row.width) == ("presence-1", f"{folder}/3.tif", 25)
    assert said(row) == [
        "<image>\nIs a road there?\nAnswer the question using a single word or phrase.",
        "yes",
    ]


def thing(name: str, *corners: int) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>x</name><bndbox>{box}</bndbox><description>{name}</description></object>"


def test_dior_rsvg_numbers_objects_over_all_files(tmp_path: Path) -> None:
    draw(tmp_path / "JPEGImages" / "00002.jpg")
    draw(tmp_path / "JPEGImages" / "00001.jpg")
    for name, things in (("00002", thing("The dam", 4, 4, 14, 14)), ("00001", thing("a", 0, 0, 1, 1) * 2)):
        write(
            tmp_path / "Annotations" / f"{name}.xml",
            f"<annotation><filename>{name}.jpg</filename>{things}</annotation>",
        )
    write(tmp_path / "test.txt", "2\n")
    (row,) = read("dior-rsvg", tmp_path, "test")
    assert row.image == "JPEGImages/00002.jpg"
    assert said(row) == [
        "<image>\nDetect <ref>The dam</ref>.",
        "<ref>The dam</ref><box>[[100, 200, 350, 700]]</box>",
    ]
    write(tmp_path / "val.txt", "9\n")
    with pytest.raises(LayoutError, match="names object 9, and Annotations hold only 3"):
        read("dior-rsvg", tmp_path, "val")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[refer] where is <p>the ship</p> ?", "where is <ref>the ship</ref> ?"),
        ("[identify] What is at {<10><20><30><40>|<0>}", "What is at <box>[[100, 200, 300, 400]]</box>"),
        (
            "<p> 2 cars </p> {<1><2><3><4>|<0>}<delim>{<5><6><7><8>|<0>} on a road",
            "<ref>2 cars</ref><box>[[10, 20, 30, 40], [50, 60, 70, 80]]</box> on a road",
        ),
        # Width and height change places at 90 degrees, and a square turned by 45 is wider by the root of 2.
        ("{<40><40><60><50>|<90>}", "<box>[[450, 350, 550, 550]]</box>"),
        ("{<40><40><60><60>|<45>}", "<box>[[359, 359, 641, 641]]</box>"),
        ("{<0><0><100><100>|<45>}", "<box>[[0, 0, 1000, 1000]]</box>"),
        ("No boxes {here}.", "No boxes {here}."),
    ],
)
def test_geochat_texts(text: str, expected: str) -> None:
    assert geochat_text(text) == expected


def test_geochat_and_llava_conversations(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png", 30, 10)
    talk = [
        {"from": "human", "value": "<image>\n[identify] What is {<0><0><50><50>|<0>}?"},
        {"from": "gpt", "value": "A ship."},
    ]
    write(tmp_path / "GeoChat_Instruct.json", [{"id": "g", "image": "a.png", "conversations": talk}])
    (row,) = read("geochat", tmp_path)
    assert (row.image, row.width, row.height) == ("images/a.png", 30, 10)
    assert said(row)[0] == "<image>\nWhat is <box>[[0, 0, 500, 500]]</box>?"

    unmarked = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ship."}]
    text = {"id": 2, "conversations": unmarked}
    rows = [{"id": 1, "image": "images/a.png", "conversations": unmarked}, text]
    write(tmp_path / "train.json", rows)
    from_list = read("llava", tmp_path)
    assert said(from_list[0])[0] == "<image>\nWhat?"
    assert from_list[1].image is None
    (tmp_path / "train.json").unlink()
    write(tmp_path / "train.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert read("llava", tmp_path) == from_list


def test_captions(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "PMC1_Fig1.jpg")
    # The empty line at the end is no row.
    write(tmp_path / "train.jsonl", json.dumps({"image": "PMC1_Fig1.jpg", "caption": " A lung. "}) + "\n\n")
    write(
        tmp_path / "quilt_1M_lookup.csv",
        'image_path,caption,split\nPMC1_Fig1.jpg,"Cells, stained",train\nPMC1_Fig1.jpg,x,val\n',
    )
    assert [said(row)[1] for row in read("pmc-oa", tmp_path)] == ["A lung."]
    assert [said(row)[1] for row in read("quilt-1m", tmp_path)] == ["Cells, stained"]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_empty_folder_is_named_with_what_it_lacks(tmp_path: Path, layout: str) -> None:
    with pytest.raises(LayoutError) as raised:
        read(layout, tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        ("geochat", "GeoChat_Instruct.json", "[{", "is not valid JSON"),
        ("geochat", "GeoChat_Instruct.json", "{}", "must hold a list"),
        ("geochat", "GeoChat_Instruct.json", [{"id": 1}], "entry 1: has no 'conversations'"),
        ("llava", "train.jsonl", '{"id": 1, "conversations": []}', "line 1: after at most one"),
        ("llava", "train.jsonl", '{"id": 1, "image": "no.png", "conversations": []}', "no.png: is missing"),
        ("visual-genome", "region_descriptions.json", [{"id": 7, "regions": []}], "has neither VG_100K/7.jpg nor"),
        ("drivelm", "v1_1_train_nus.json", {"s": {}}, "scene s: has no 'key_frames'"),
        ("dior-rsvg", "train.txt", "one", "must hold one number a line"),
        ("rsvqa-lr", "LR_split_train_answers.json", {}, "has no 'answers'"),
    ],
)
def test_broken_data_sets_say_where(tmp_path: Path, layout: str, file: str, content: Any, message: str) -> None:
    write(tmp_path / file, content)
    with pytest.raises(LayoutError, match=message):
        read(layout, tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "airport" / "a.jpg", "not an image")
    with pytest.raises(LayoutError, match="airport/a.jpg: is not an image"):
        read("class-folders", tmp_path)
