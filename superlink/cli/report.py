"""What came of a question, for people: tables, sentences and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from superlink.cli.console import fail, notes
from superlink.cli.files import write_file
from superlink.composition import side_by_side
from superlink.detections import Detection
from superlink.drawing import FONT_VARIABLE, annotate
from superlink.images import open_upright
from superlink.results import Answer, DetectionAnswer, GeneratedImage, Timing


def print_detections(detections: Sequence[Detection], console: Console) -> None:
    """A table of boxes; nothing where there are none."""
    if not detections:
        return
    table = Table("what", "score", "x1", "y1", "x2", "y2")
    for found in detections:
        corners = (found.box.x1, found.box.y1, found.box.x2, found.box.y2)
        table.add_row(escape(found.phrase), f"{found.score:.2f}", *(f"{corner:.0f}" for corner in corners))
    console.print(table)


def print_absent(found: DetectionAnswer, console: Console) -> None:
    """What was asked for and is not there."""
    for presence in found.presence:
        if not presence.found:
            text = f"{escape(presence.phrase)}: not found (best candidate {presence.score:.2f})"
            console.print(text, highlight=False)


def print_findings(answer: Answer, console: Console) -> None:
    """What the tools found and made for an answer; what failed is for the caller to say."""
    print_detections(answer.detections, console)
    for phrase in answer.phrases:
        if phrase.found is False:
            console.print(f"{escape(phrase.phrase)}: not found", highlight=False)
        for image in phrase.images:
            what = f"{escape(phrase.phrase)}: an image of {image.width} x {image.height} pixels, seed {image.seed}"
            console.print(what, highlight=False)
    if answer.finish_reason == "length":
        notes.print("[yellow]The answer was cut off at the limit of its length or rounds.[/]")


def print_timings(timings: Sequence[Timing], console: Console) -> None:
    """Where the time of an answer went, hop by hop."""
    table = Table("service", "phase", "ms")
    for timing in timings:
        table.add_row(timing.service, timing.phase, f"{timing.milliseconds:.1f}")
    console.print(table)


def write_picture(
    content: bytes, detections: Sequence[Detection], out: Path | None, made: Sequence[GeneratedImage] = ()
) -> None:
    """What ``--out`` asks for: the image with what was found on it and, beside it, what was made."""
    if out is None:
        return
    try:
        annotation = annotate(open_upright(content), detections)
    except OSError as error:
        fail(f"The image cannot be drawn on: {error}")
    buffer = io.BytesIO()
    side_by_side([annotation.image, *(each.image for each in made)]).save(buffer, format="PNG")
    write_file(out, buffer.getvalue())
    if annotation.legend:
        meaning = ", ".join(f"#{number} {phrase}" for number, phrase in annotation.legend.items())
        notes.print(f"No font here has these characters, so the picture shows numbers: {escape(meaning)}.")
        notes.print(f"Install one (Debian: fonts-noto-cjk) or name a font file in {FONT_VARIABLE}.")
