"""Draw detections over an image, so that a person can judge them at a glance.

Labels in Latin script use the font that Pillow brings along. Other scripts need a font of the system (or the file named
by ``SUPERLINK_FONT``); where none has the characters, boxes carry numbers instead and ``Annotation.legend`` says what
they mean, so that nothing is ever drawn as empty squares.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from superlink.detections import Detection

FONT_VARIABLE = "SUPERLINK_FONT"
# File names under which systems carry fonts with Chinese characters; Pillow looks in the system's font folders.
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "simhei.ttf",
    "Arial Unicode.ttf",
)
# Distinct on light and dark grounds, in the order in which phrases get them.
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075")
# Smaller images are enlarged for drawing, or labels would cover them.
SHORTEST_SIDE = 640
LARGEST_ENLARGEMENT = 4

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """An annotated image."""

    image: Image.Image
    # Number drawn -> phrase, for phrases that no font could write; empty when all could.
    legend: dict[int, str] = field(default_factory=dict)


def annotate(image: Image.Image, detections: Sequence[Detection]) -> Annotation:
    """A copy of ``image`` with masks, boxes, skeletons and labels, one colour a phrase.

    Keypoints of little confidence are hidden or guessed; they are drawn hollow, and bones to them are left out.

    Boxes are in pixels of the upright image. Images whose longer side is under 640 px are enlarged by a whole factor.
    """
    longest = max(image.size)
    enlargement = max(1, min(LARGEST_ENLARGEMENT, -(-SHORTEST_SIDE // longest)))
    canvas = image.convert("RGB").resize(
        (image.width * enlargement, image.height * enlargement), Image.Resampling.BICUBIC
    )
    line_width = max(2, round(max(canvas.size) / 320))
    font_size = max(13, round(max(canvas.size) / 48))
    phrases = list(dict.fromkeys(detection.phrase for detection in detections))
    fonts = {phrase: font_for(phrase, font_size) for phrase in phrases}
    legend = {number: phrase for number, phrase in enumerate(phrases, 1) if fonts[phrase] is None}
    numbers = {phrase: number for number, phrase in legend.items()}
    scaled = [
        tuple(side * enlargement for side in (found.box.x1, found.box.y1, found.box.x2, found.box.y2))
        for found in detections
    ]
    for detection in detections:
        if detection.mask is not None:
            tint = Image.new("RGB", canvas.size, COLOURS[phrases.index(detection.phrase) % len(COLOURS)])
            canvas.paste(tint, mask=detection.mask.image().resize(canvas.size).point(_half))
    pen = ImageDraw.Draw(canvas)
    for detection, (x1, y1, x2, y2) in zip(detections, scaled, strict=True):
        colour = COLOURS[phrases.index(detection.phrase) % len(COLOURS)]
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line_width)
        _draw_skeleton(pen, detection, colour, enlargement, line_width)
    taken: list[Rectangle] = []
    for detection, (x1, y1, _, y2) in zip(detections, scaled, strict=True):
        colour = COLOURS[phrases.index(detection.phrase) % len(COLOURS)]
        name = detection.phrase if detection.phrase not in numbers else f"#{numbers[detection.phrase]}"
        font = fonts[detection.phrase] or _latin_font(font_size)
        _draw_label(pen, f"{name} {detection.score:.2f}", font, colour, (x1, y1, y2), canvas.size, taken)
    return Annotation(canvas, legend)


def font_for(text: str, size: int) -> Font | None:
    """The first font that has every character of ``text``, or None."""
    for font in (_latin_font(size), *_system_fonts(size)):
        if _covers(font, text):
            return font
    return None


def _draw_skeleton(
    pen: ImageDraw.ImageDraw, detection: Detection, colour: str, enlargement: int, line_width: int
) -> None:
    places = {point.name: (point.x * enlargement, point.y * enlargement) for point in detection.keypoints}
    sure = {point.name for point in detection.keypoints if point.is_sure}
    for first, second in detection.bones:
        if {first, second} <= sure:
            pen.line((*places[first], *places[second]), fill=colour, width=line_width)
    radius = 1.5 * line_width
    for name, (x, y) in places.items():
        corners = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(corners, fill=colour if name in sure else None, outline="white" if name in sure else colour)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: Font,
    colour: str,
    edges: tuple[float, float, float],
    canvas_size: tuple[int, int],
    taken: list[Rectangle],
) -> None:
    """Write ``text`` above the box, else inside at its top, else below: where no other label stands."""
    left, top, bottom = edges
    _, _, text_right, text_bottom = pen.textbbox((0, 0), text, font=font)
    width, height = text_right + 6, text_bottom + 4
    x = max(0.0, min(left, canvas_size[0] - width))
    places = [y for y in (top - height, top, bottom) if 0 <= y <= canvas_size[1] - height] or [0.0]
    y = next(
        (y for y in places if not any(_overlap((x, y, x + width, y + height), other) for other in taken)), places[0]
    )
    taken.append((x, y, x + width, y + height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + 3, y + 1), text, fill="white", font=font)


def _half(value: int) -> int:
    return value // 2


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


@lru_cache
def _latin_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache
def _system_fonts(size: int) -> tuple[Font, ...]:
    configured = os.environ.get(FONT_VARIABLE)
    fonts: list[Font] = []
    for name in (*((configured,) if configured else ()), *SYSTEM_FONTS):
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _covers(font: Font, text: str) -> bool:
    """Whether ``font`` draws every character of ``text`` as something else than its "missing" sign."""
    missing = bytes(font.getmask("\U0010ffff"))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in text)
