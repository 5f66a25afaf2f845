"""The one conversation format: JSONL rows of text, one image, several images or a video, checked when they are read.

A row is what Mini-InternVL trains on, whatever domain it comes from:

    {"id": 7, "image": "a.png", "width": 640, "height": 480, "conversations": [
        {"from": "human", "value": "<image>\nDetect <ref>dog</ref>."},
        {"from": "gpt", "value": "<ref>dog</ref><box>[[12, 33, 38, 67]]</box>"}]}

Paths start at the ``root`` that the meta file names; see ``meta_file``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"


class RowError(ValueError):
    """A file of conversations is missing or a row is wrong. The text names the file, the line and the key."""


class Message(BaseModel):
    """What one side says."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    speaker: Literal["system", "human", "gpt"] = Field(validation_alias="from", serialization_alias="from")
    value: str = Field(min_length=1)


class ConversationRow(BaseModel):
    """One conversation and what it is about. Public files carry further keys of their own; these are left out."""

    model_config = ConfigDict(frozen=True)

    id: int | str
    conversations: tuple[Message, ...]
    # A path, or several.
    image: str | tuple[str, ...] | None = None
    # Pixels, of one image and of several.
    width: PositiveInt | None = None
    height: PositiveInt | None = None
    width_list: tuple[PositiveInt, ...] | None = None
    height_list: tuple[PositiveInt, ...] | None = None
    # A file, or a folder of frames.
    video: str | None = None
    # Start and end in seconds, where only a part of the video is meant.
    clip: tuple[float, float] | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all images in reading order."""
        if self.image is None:
            return ()
        return (self.image,) if isinstance(self.image, str) else self.image

    @model_validator(mode="after")
    def _check(self) -> ConversationRow:
        self._check_speakers()
        self._check_marks()
        self._check_sizes()
        if self.clip is not None:
            if self.video is None:
                raise ValueError("clip belongs to a video")
            if not 0 <= self.clip[0] < self.clip[1]:
                raise ValueError(f"clip must be [start, end] in seconds with 0 <= start < end, not {list(self.clip)}")
        return self

    def _check_speakers(self) -> None:
        said = [message.speaker for message in self.conversations]
        if said[:1] == ["system"]:
            del said[0]
        if not said or said != ["human", "gpt"] * (len(said) // 2):
            raise ValueError("after at most one system message, conversations must alternate human and gpt, gpt last")

    def _check_marks(self) -> None:
        if isinstance(self.image, tuple) and not self.image:
            raise ValueError("image is an empty list; leave it out of a row without images")
        if self.image is not None and self.video is not None:
            raise ValueError("a row has images or a video, not both")
        asked = "".join(message.value for message in self.conversations if message.speaker == "human")
        told = "".join(message.value for message in self.conversations if message.speaker != "human")
        for mark, what, expected in (
            (IMAGE_MARK, "images", len(self.images)),
            (VIDEO_MARK, "videos", int(self.video is not None)),
        ):
            if told.count(mark):
                raise ValueError(f"only a human message may hold {mark}")
            if asked.count(mark) != expected:
                raise ValueError(f"{asked.count(mark)} {mark} marks for {expected} {what}: there must be one for each")

    def _check_sizes(self) -> None:
        single, several = (self.width, self.height), (self.width_list, self.height_list)
        if (single[0] is None) != (single[1] is None) or (several[0] is None) != (several[1] is None):
            raise ValueError("width and height, and width_list and height_list, come in pairs")
        if single[0] is not None and not isinstance(self.image, str):
            raise ValueError("width and height are those of a single image; use width_list and height_list")
        for sizes in several:
            if sizes is not None and not (isinstance(self.image, tuple) and len(sizes) == len(self.image)):
                raise ValueError("width_list and height_list have one entry for each path of a list of images")


def parse_row(line: str, place: str) -> ConversationRow:
    """Read one line. ``place`` says where it stands, for the RowError that a wrong one raises."""
    try:
        return ConversationRow.model_validate_json(line)
    except ValidationError as error:
        raise RowError(f"{place}: {explain(error)}") from error


def read_rows(file: Path) -> Iterator[ConversationRow]:
    """Rows of a JSONL file in order, one at a time; empty lines are left out. Raises RowError with file and line."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse_row(line, f"{file}, line {number}")
    except OSError as error:
        raise RowError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RowError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}).") from error


def write_rows(file: Path, rows: Iterable[ConversationRow]) -> int:
    """Write rows, one a line, and return how many. The file appears whole: a failure leaves what was there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as lines:
            for row in rows:
                content = row.model_dump(mode="json", by_alias=True, exclude_none=True)
                lines.write(json.dumps(content, ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return count


def explain(error: ValidationError) -> str:
    """Every problem with its key: "conversations.1.from: Input should be ..."."""
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{key}: {text}" if key else text)
    return "; ".join(problems) + "."
