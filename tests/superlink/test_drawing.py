"""Boxes are where they should be, labels are readable, and no label is drawn as empty squares."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont
from pycocotools import mask as run_length

from superlink import drawing
from superlink.detections import Box, Detection, Keypoint, RunLengthMask
from superlink.drawing import COLOURS, annotate, font_for

GREY = (128, 128, 128)


def detection(phrase: str, x1: float, y1: float, x2: float, y2: float) -> Detection:
    return Detection(phrase=phrase, box=Box(x1=x1, y1=y1, x2=x2, y2=y2), score=0.9)


def without_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_system_fonts", lambda size: ())


def test_a_box_is_drawn_on_its_edges_and_nowhere_else() -> None:
    image = Image.new("RGB", (640, 480), GREY)
    drawn = np.asarray(annotate(image, [detection("dog", 100, 200, 300, 400)]).image)
    colour = np.array([int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)])
    assert (drawn[300, 100] == colour).all()
    assert (drawn[400, 200] == colour).all()
    assert (drawn[300, 200] == GREY).all()
    assert (drawn[450, 500] == GREY).all()


def test_a_mask_tints_its_pixels_and_no_others() -> None:
    mask = Image.new("L", (640, 480))
    mask.paste(255, (300, 200, 400, 300))
    code = run_length.encode(np.asfortranarray(np.asarray(mask) // 255))
    found = detection("dog", 300, 200, 400, 300).model_copy(
        update={"mask": RunLengthMask(size=(480, 640), counts=code["counts"].decode())}
    )

    drawn = np.asarray(annotate(Image.new("RGB", (640, 480), GREY), [found]).image)

    assert not (drawn[250, 350] == GREY).any()
    assert (drawn[250, 290] == GREY).all()
    assert (drawn[310, 350] == GREY).all()


def test_bones_join_keypoints_that_are_seen_and_no_others() -> None:
    places = {"nose": (300, 200, 0.9), "left wrist": (300, 400, 0.9), "right wrist": (500, 200, 0.05)}
    found = detection("person", 250, 150, 550, 450).model_copy(
        update={
            "keypoints": tuple(Keypoint(name=name, x=x, y=y, score=score) for name, (x, y, score) in places.items()),
            "bones": (("nose", "left wrist"), ("nose", "right wrist")),
        }
    )

    drawn = np.asarray(annotate(Image.new("RGB", (640, 480), GREY), [found]).image)

    colour = np.array([int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)])
    assert (drawn[200, 300] == colour).all()
    assert (drawn[300, 300] == colour).all()
    assert (drawn[200, 400] == GREY).all()
    # Hollow: there is something around it, and nothing in it.
    assert (drawn[200, 500] == GREY).all()
    assert not (drawn[195:206, 495:506] == GREY).all()


def test_the_original_stays_as_it_is() -> None:
    image = Image.new("RGB", (640, 480), GREY)
    annotate(image, [detection("dog", 10, 10, 50, 50)])
    assert image.getcolors() == [(640 * 480, GREY)]


def test_small_images_are_enlarged_by_a_whole_factor_and_boxes_with_them() -> None:
    drawn = annotate(Image.new("RGB", (160, 120), GREY), [detection("dog", 40, 60, 80, 100)]).image
    assert drawn.size == (640, 480)
    assert drawn.getpixel((160, 300)) != GREY


def test_labels_do_not_cover_each_other() -> None:
    image = Image.new("RGB", (640, 480), GREY)
    placed: list[tuple[float, float, float, float]] = []
    original = drawing._draw_label

    def remember(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        placed.append(arguments[-1][-1])  # type: ignore[index]

    boxes = [detection("dog", 100, 100, 300, 300), detection("cat", 100, 100, 300, 300)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_draw_label", remember)
        annotate(image, boxes)
    first, second = placed
    assert not drawing._overlap(first, second)


def test_labels_stay_inside_the_image() -> None:
    image = Image.new("RGB", (640, 640), GREY)
    edges = [detection("a long phrase", 600, 0, 640, 20), detection("another", 0, 630, 20, 640)]
    assert annotate(image, edges).image.size == (640, 640)


def test_latin_labels_need_no_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    without_system_fonts(monkeypatch)
    annotation = annotate(Image.new("RGB", (640, 480), GREY), [detection("the leftmost dog", 10, 50, 200, 200)])
    assert annotation.legend == {}


def test_characters_that_no_font_has_become_numbers_with_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    without_system_fonts(monkeypatch)
    found = [detection("dog", 10, 50, 200, 200), detection("小狗", 300, 50, 400, 200)]
    assert annotate(Image.new("RGB", (640, 480), GREY), found).legend == {2: "小狗"}


def test_a_font_of_the_system_is_used_where_it_has_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    # The font that Pillow brings along stands in for one with more characters.
    chinese = ImageFont.load_default(20)
    monkeypatch.setattr(drawing, "_system_fonts", lambda size: (chinese,))
    monkeypatch.setattr(drawing, "_covers", lambda font, text: font is chinese)
    assert font_for("小狗", 20) is chinese


def test_a_grey_image_without_detections_is_returned_in_colour() -> None:
    assert annotate(Image.new("L", (640, 480)), []).image.mode == "RGB"
