"""Masks as the REST API sends them: COCO's compressed run-length encoding, without numpy or pycocotools."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

# Characters of an encoded number start here and hold six bits: five of the number, and whether more follow.
_FIRST_CHARACTER = 48
_MORE = 0x20
_NEGATIVE = 0x10
_RUN = re.compile(b"\x00+|\xff+")


def decode_mask(size: Sequence[int], counts: str) -> Image.Image:
    """The mask as an image of mode "L", 255 where it is set. ``size`` is height and width.

    Raises ValueError when the counts do not fill the size.
    """
    height, width = size
    runs = _runs(counts)
    if sum(runs) != height * width:
        raise ValueError(f"The mask's runs cover {sum(runs)} pixels; {height} x {width} are {height * width}.")
    columns = b"".join((b"\xff" if number % 2 else b"\x00") * run for number, run in enumerate(runs))
    # The runs go down the columns, so that they read as an image that lies on its side.
    return Image.frombytes("L", (height, width), columns).transpose(Image.Transpose.TRANSPOSE)


def mask_area(counts: str) -> int:
    """How many pixels are set. Raises ValueError when the counts are broken."""
    return sum(_runs(counts)[1::2])


def encode_mask(mask: Image.Image) -> str:
    """The counts of ``mask``, an image of mode "L" that holds nothing but 0 and 255; the inverse of ``decode_mask``."""
    columns = mask.transpose(Image.Transpose.TRANSPOSE).tobytes()
    runs = [len(run) for run in _RUN.findall(columns)]
    if columns.startswith(b"\xff"):
        runs.insert(0, 0)
    numbers = [run - runs[place - 2] if place > 2 else run for place, run in enumerate(runs)]
    return "".join(_characters(number) for number in numbers)


def _characters(number: int) -> str:
    """A number in as many characters as it takes, the lowest five bits first."""
    characters = ""
    while True:
        bits = number & (_MORE - 1)
        number >>= 5
        # What is left repeats the sign that the last bits show.
        if number == (-1 if bits & _NEGATIVE else 0):
            return characters + chr(bits + _FIRST_CHARACTER)
        characters += chr((bits | _MORE) + _FIRST_CHARACTER)


def _runs(counts: str) -> list[int]:
    """Lengths of the runs, those of unset pixels first. From the third on a number is relative to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts.encode("ascii"):
        bits = character - _FIRST_CHARACTER
        if not 0 <= bits < 2 * _MORE:
            raise ValueError(f"{chr(character)!r} is no part of an encoded mask.")
        value |= (bits & (_MORE - 1)) << shift
        shift += 5
        if bits & _MORE:
            continue
        if bits & _NEGATIVE:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift or any(run < 0 for run in runs):
        raise ValueError("The encoded mask is cut off or broken.")
    return runs
