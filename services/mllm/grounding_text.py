"""InternVL's grounding text, both ways: ``<ref>the dog</ref><box>[[244, 469, 557, 747]]</box>``.

Coordinates are thousandths of the original image's width and height, however it was cut into tiles. Public models write
this; Superlink's own route a phrase instead and leave boxes to the detector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# left, top, right, bottom
Corners = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_QUADRUPLE = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
# A box without its phrase is what a question about a region holds.
_GROUNDED = re.compile(
    r"(?:<ref>(?P<phrase>(?:(?!</?ref>|</?box>).)*)</ref>\s*)?"
    rf"<box>\s*\[\s*(?P<boxes>{_QUADRUPLE}(?:\s*,\s*{_QUADRUPLE})*)\s*\]\s*</box>",
    re.DOTALL,
)
_BOX = re.compile(_QUADRUPLE)
_VALUE = re.compile(_NUMBER)
# Old data, and models trained on it, hold fractions of the sides. Those of one box never sum to this much.
_LEAST_SUM_OF_THOUSANDTHS = 4.0


@dataclass(frozen=True)
class Grounded:
    """A phrase and its boxes, corners in thousandths of the image's sides."""

    # Empty where the text names none.
    phrase: str
    boxes: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class GroundedSpan:
    """What a text grounds, and where: half-open, in code points of that text."""

    grounded: Grounded
    start: int
    end: int


def thousandths(box: Corners, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in pixels of an image as integers 0 to 1000, halves rounded to even as in the published data.

    Corners outside the image are moved to its edge. Raises ValueError for an image without area.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"An image of {width}x{height} pixels has no boxes.")
    x1, y1, x2, y2 = (
        round(min(max(value / side, 0.0), 1.0) * 1000)
        for value, side in zip(box, (width, height, width, height), strict=True)
    )
    return x1, y1, x2, y2


def pixels(box: Corners, width: int, height: int) -> tuple[float, float, float, float]:
    """A box in thousandths in pixels of an image."""
    x1, y1, x2, y2 = box
    return x1 / 1000 * width, y1 / 1000 * height, x2 / 1000 * width, y2 / 1000 * height


def write_grounded(phrase: str, boxes: Sequence[tuple[int, int, int, int]]) -> str:
    """``phrase`` and its boxes in thousandths as InternVL reads and writes them; boxes alone where it is empty.

    Raises ValueError when there is no box, a coordinate lies outside 0..1000, or the phrase holds the format's tokens.
    """
    if not boxes:
        raise ValueError("A grounded phrase needs a box.")
    if any(token in phrase for token in ("<ref>", "</ref>", "<box>", "</box>")):
        raise ValueError(f"The phrase {phrase!r} holds tokens of the grounding format.")
    outside = [value for box in boxes for value in box if not 0 <= value <= 1000]
    if outside:
        raise ValueError(f"Coordinates are thousandths, 0 to 1000, not {outside[0]}.")
    listed = ", ".join(f"[{', '.join(str(value) for value in box)}]" for box in boxes)
    return f"{f'<ref>{phrase}</ref>' if phrase else ''}<box>[{listed}]</box>"


def parse_grounded(text: str) -> list[GroundedSpan]:
    """Everything that ``text`` grounds, in order; words around it, white space and unfinished pieces are no errors.

    Fractions of the sides become thousandths.
    """
    return [
        GroundedSpan(
            Grounded(
                (found["phrase"] or "").strip(),
                tuple(_box(quadruple) for quadruple in _BOX.findall(found["boxes"])),
            ),
            *found.span(),
        )
        for found in _GROUNDED.finditer(text)
    ]


def _box(quadruple: str) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in _VALUE.findall(quadruple))
    scale = 1.0 if x1 + y1 + x2 + y2 >= _LEAST_SUM_OF_THOUSANDTHS else 1000.0
    return x1 * scale, y1 * scale, x2 * scale, y2 * scale
