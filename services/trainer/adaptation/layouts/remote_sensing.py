"""Remote sensing: RSVQA, DIOR-RSVG and GeoChat."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from services.mllm.grounding_text import write_grounded
from services.trainer.adaptation.converters import SHORT_ANSWER, grounding, visual_question
from services.trainer.adaptation.layouts.conversations import conversation_rows, read_entries
from services.trainer.adaptation.layouts.layout import (
    IMAGE_SUFFIXES,
    LayoutError,
    Source,
    field,
    picture,
    read_json,
)
from services.trainer.adaptation.rows import ConversationRow

# Tasks that GeoChat names at the head of a question; the question itself says what is wanted.
_TASK = re.compile(r"\[(?:refer|grounding|identify)\]\s*")
_GEOCHAT_BOX = r"\{(?:<-?\d+>){4}(?:\|<-?\d+>)?\}"
_GEOCHAT_SINGLE = re.compile(_GEOCHAT_BOX)
_GEOCHAT_GROUNDED = re.compile(
    rf"(?:<p>\s*(?P<phrase>[^<]*?)\s*</p>)?\s*(?P<boxes>{_GEOCHAT_BOX}(?:\s*(?:<delim>)?\s*{_GEOCHAT_BOX})*)"
)
_GEOCHAT_PHRASE = re.compile(r"<p>\s*(.*?)\s*</p>")


def read_rsvqa_lr(source: Source) -> Iterator[ConversationRow]:
    """RSVQA at low resolution: ``LR_split_SPLIT_*.json``, ``Images_LR/ID.tif``."""
    yield from _rsvqa(source, f"LR_split_{source.split}", "Images_LR")


def read_rsvqa_hr(source: Source) -> Iterator[ConversationRow]:
    """RSVQA at high resolution: ``USGS_split_SPLIT_*.json``, ``Data/ID.tif``."""
    yield from _rsvqa(source, f"USGS_split_{source.split}", "Data")


def read_dior_rsvg(source: Source) -> Iterator[ConversationRow]:
    """DIOR-RSVG: one expression and one box a row.

    ``SPLIT.txt`` holds numbers of objects, counted over all files of ``Annotations`` in the order of their names.
    """
    split = source.folder / f"{source.split}.txt"
    try:
        wanted = {int(line) for line in split.read_text(encoding="utf-8").split()}
    except OSError as error:
        raise LayoutError(f"{split}: cannot be read ({error.strerror}). This layout needs it.") from error
    except ValueError as error:
        raise LayoutError(f"{split}: must hold one number a line: {error}") from error
    number = -1
    for file in sorted((source.folder / "Annotations").glob("*.xml")):
        try:
            # Files of a data set that the user unpacked, not of strangers on the network.
            root = ElementTree.parse(file).getroot()  # noqa: S314
        except ElementTree.ParseError as error:
            raise LayoutError(f"{file}: is not valid XML: {error}") from error
        for thing in root.iter("object"):
            number += 1
            if number in wanted:
                shown = picture(source.folder, f"JPEGImages/{_text(root, 'filename', file.name)}")
                left, top, right, bottom = (
                    float(_text(thing, f"bndbox/{side}", file.name)) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                phrase = _text(thing, "description", file.name)
                yield grounding(str(number), shown, {phrase: [(left, top, right, bottom)]})
    if wanted and number < max(wanted):
        raise LayoutError(f"{split}: names object {max(wanted)}, and Annotations hold only {number + 1}.")


def read_geochat(source: Source) -> Iterator[ConversationRow]:
    """GeoChat: ``GeoChat_Instruct.json`` and ``images/``; its boxes become upright ones in our text format."""
    for place, entry in read_entries(source.folder / "GeoChat_Instruct.json"):
        yield from conversation_rows(entry, source.folder, "images", place, geochat_text)


def geochat_text(text: str) -> str:
    """GeoChat's ``<p>phrase</p>{<x1><y1><x2><y2>|<angle>}``, in hundredths, in our text format.

    A turned box becomes the upright one around it. Tags of tasks are left out.
    """

    def rewritten(found: re.Match[str]) -> str:
        boxes = [_upright(single) for single in _GEOCHAT_SINGLE.findall(found["boxes"])]
        return " " * found[0].startswith(" ") + write_grounded(found["phrase"] or "", boxes)

    grounded = _GEOCHAT_GROUNDED.sub(rewritten, _TASK.sub("", text))
    return _GEOCHAT_PHRASE.sub(r"<ref>\1</ref>", grounded)


def _upright(text: str) -> tuple[int, int, int, int]:
    """The upright box, in thousandths, around ``{<x1><y1><x2><y2>|<angle>}``, turned about its centre by degrees."""
    left, top, right, bottom, *turned = (int(number) for number in re.findall(r"-?\d+", text))
    x1, y1, x2, y2 = (10 * value for value in (left, top, right, bottom))
    width, height = abs(x2 - x1), abs(y2 - y1)
    angle = math.radians(turned[0] if turned else 0)
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    corners = (middle_x - half_width, middle_y - half_height, middle_x + half_width, middle_y + half_height)
    x1, y1, x2, y2 = (min(1000, max(0, round(value))) for value in corners)
    return x1, y1, x2, y2


def _rsvqa(source: Source, stem: str, folder: str) -> Iterator[ConversationRow]:
    """Every active question; the row's id begins with the question's type, by which answers are judged."""
    questions_file = source.folder / f"{stem}_questions.json"
    answers_file = source.folder / f"{stem}_answers.json"
    answers = {
        answer["id"]: answer
        for answer in field(read_json(answers_file), "answers", str(answers_file))
        if answer.get("active")
    }
    for question in field(read_json(questions_file), "questions", str(questions_file)):
        # Entries that belong to other splits are only numbers.
        if not question.get("active"):
            continue
        place = f"{questions_file}, question {question.get('id')}"
        number = field(question, "answers_ids", place)[0]
        if number not in answers:
            raise LayoutError(f"{answers_file}: has no answer {number}, which question {question['id']} names.")
        path = _image_path(source, folder, str(field(question, "img_id", place)))
        asked = f"{field(question, 'question', place)}\n{SHORT_ANSWER}"
        key = f"{field(question, 'type', place)}-{question['id']}"
        yield visual_question(key, picture(source.folder, path), [(asked, str(answers[number]["answer"]))])


def _image_path(source: Source, folder: str, stem: str) -> str:
    for suffix in (".tif", *IMAGE_SUFFIXES):
        if (source.folder / folder / f"{stem}{suffix}").is_file():
            return f"{folder}/{stem}{suffix}"
    raise LayoutError(f"{source.folder / folder}: has no image {stem}.")


def _text(element: ElementTree.Element, path: str, place: str) -> str:
    found = element.findtext(path)
    if not found:
        raise LayoutError(f"{place}: has no {path}.")
    return found.strip()
