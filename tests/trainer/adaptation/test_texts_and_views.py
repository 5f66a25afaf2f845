"""Places as text: boxes, c-tags of six cameras, and regions marked on pixels. The vectors are the fact sheet's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from services.trainer.adaptation.converters import (
    Picture,
    classification,
    grounding,
    lettered_classification,
    marked_region,
    multi_view,
    region,
    video,
)
from services.trainer.adaptation.multi_view import (
    CAMERAS,
    c_tags_to_camera,
    c_tags_to_canvas,
    stitch,
    to_camera,
    to_canvas,
)
from services.trainer.adaptation.region_marks import Mark, mark_region
from services.trainer.adaptation.rows import ConversationRow

pytestmark = pytest.mark.internvl

PHOTO = Picture("a.png", 427, 640)


@pytest.mark.parametrize(
    ("camera", "thousandths", "pixels"),
    [
        ("CAM_FRONT", (500, 250), (800, 450)),
        ("CAM_BACK_RIGHT", (900, 750), (1120, 450)),
        ("CAM_FRONT_LEFT", (100, 100), (480, 180)),
    ],
)
def test_c_tags_both_ways(camera: str, thousandths: tuple[int, int], pixels: tuple[float, float]) -> None:
    assert to_camera(camera, *thousandths) == pixels
    assert to_canvas(camera, *pixels) == thousandths


def test_places_outside_their_camera_are_clamped() -> None:
    assert to_camera("CAM_FRONT", 100, 900) == (0, 900)


def test_all_c_tags_of_a_text_are_rewritten_and_nothing_else() -> None:
    data = "Is <c1,CAM_FRONT,800.0,450.0> behind <c2,CAM_BACK_RIGHT,1120.0,450.0>? It weighs 3.5 t."
    said = c_tags_to_canvas(data)
    assert said == "Is <c1,CAM_FRONT,[500,250]> behind <c2,CAM_BACK_RIGHT,[900,750]>? It weighs 3.5 t."
    assert c_tags_to_camera(said) == data
    assert c_tags_to_camera("<c1,CAM_FRONT,[500, 250]>") == "<c1,CAM_FRONT,800.0,450.0>"


def test_every_place_of_a_camera_comes_back_within_the_rounding() -> None:
    for camera in CAMERAS:
        for x, y in ((0, 0), (123, 456), (1599, 899)):
            back = to_camera(camera, *to_canvas(camera, x, y))
            # Half a thousandth of the picture is 2.4 pixels of a camera across and 0.9 down.
            assert abs(back[0] - x) <= 2.41
            assert abs(back[1] - y) <= 0.91


def test_six_cameras_become_one_picture_in_order() -> None:
    colours = {camera: (20 * number, 255 - 20 * number, 90) for number, camera in enumerate(CAMERAS)}
    canvas = stitch({camera: Image.new("RGB", (160, 90), colours[camera]) for camera in reversed(CAMERAS)})
    assert canvas.size == (2688, 896)
    for number, camera in enumerate(CAMERAS):
        row, column = divmod(number, 3)
        corner = (column * 896, row * 448)
        assert canvas.getpixel((corner[0] + 800, corner[1] + 400)) == colours[camera]
        label = np.asarray(canvas.crop((corner[0], corner[1], corner[0] + 600, corner[1] + 80))).reshape(-1, 3)
        assert (label == (255, 0, 255)).all(axis=1).sum() > 500


def test_a_missing_camera_is_named() -> None:
    with pytest.raises(ValueError, match="No view of CAM_BACK"):
        stitch({camera: Image.new("RGB", (16, 9)) for camera in CAMERAS if camera != "CAM_BACK"})


def marked(mark: Mark) -> np.ndarray:
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:40, 30] = True
    mask[30, 20:50] = True
    mask[25:36, 25:36] = True
    pixels = np.asarray(mark_region(Image.new("RGB", (80, 60), "white"), mask, mark))
    return (pixels != 255).any(axis=2)


def test_regions_are_marked_by_box_mask_and_contour() -> None:
    box, mask, contour = marked("box"), marked("mask"), marked("contour")
    rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 39, 20, 49)
    # A frame, not a surface; the contour lies on the mask and leaves its middle open.
    assert not box[30, 35]
    assert mask[30, 30]
    assert contour[20, 30]
    assert not contour[30, 30]
    assert not (contour & ~mask).any()


@pytest.mark.parametrize(
    ("shape", "filled", "message"), [((60, 80), 0, "is empty"), ((80, 60), 1, "The mask is 60 x 80")]
)
def test_regions_that_cannot_be_marked_say_why(shape: tuple[int, int], filled: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mark_region(Image.new("RGB", (80, 60)), np.full(shape, filled, dtype=bool), "box")


def texts(row: ConversationRow) -> list[str]:
    return [message.value for message in row.conversations]


def test_classes_become_a_choice_of_words() -> None:
    question, answer = texts(classification("1", PHOTO, "bridge", ["airport", "bridge"]))
    assert question.startswith("<image>\n")
    assert "airport, bridge" in question
    assert question.endswith("Answer with one word or a short phrase.")
    assert answer == "bridge"


def test_classes_become_lettered_options() -> None:
    question, answer = texts(lettered_classification("1", PHOTO, "What does the car do?", "stop", ["go", "stop"]))
    assert "A. go\nB. stop\n" in question
    assert answer == "B"


@pytest.mark.parametrize("labels", [["airport"], []])
def test_a_class_that_is_no_candidate_is_an_error(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="'bridge' is none of the classes"):
        classification("1", PHOTO, "bridge", labels)


def test_things_are_asked_for_one_after_the_other_with_all_their_boxes() -> None:
    row = grounding("1", PHOTO, {"dog": [(104, 300, 238, 478)], "cat": [(0, 0, 427, 640), (0, 0, 0, 0)]})
    assert texts(row) == [
        "<image>\nDetect <ref>dog</ref>.",
        "<ref>dog</ref><box>[[244, 469, 557, 747]]</box>",
        "Detect <ref>cat</ref>.",
        "<ref>cat</ref><box>[[0, 0, 1000, 1000], [0, 0, 0, 0]]</box>",
    ]
    assert (row.width, row.height) == (427, 640)


def test_regions_stand_in_the_question_or_on_the_pixels() -> None:
    assert "<box>[[244, 469, 557, 747]]</box>" in texts(region("1", PHOTO, (104, 300, 238, 478), "a dog"))[0]
    assert "contour" in texts(marked_region("1", PHOTO, "contour", "a dog"))[0]


def test_six_cameras_are_explained_once_and_places_are_those_of_the_picture() -> None:
    asked = [
        ("What is <c1,CAM_FRONT,800.0,450.0>?", "A van."),
        ("Where is another?", "<c2,CAM_FRONT_LEFT,480.0,180.0>"),
    ]
    row = multi_view("1", "frame.jpg", asked)
    assert texts(row)[0].endswith("What is <c1,CAM_FRONT,[500,250]>?")
    assert texts(row)[0].count("six cameras") == 1
    assert texts(row)[2:] == ["Where is another?", "<c2,CAM_FRONT_LEFT,[100,100]>"]
    assert (row.width, row.height) == (2688, 896)


def test_videos_have_one_mark_and_a_clip() -> None:
    row = video("1", "v.mp4", [("What?", "It turns."), ("Why?", "A light.")], (2.0, 5.5))
    assert texts(row) == ["<video>\nWhat?", "It turns.", "Why?", "A light."]
    assert row.clip == (2.0, 5.5)
