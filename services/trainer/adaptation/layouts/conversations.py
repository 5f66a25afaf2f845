"""Data that are conversations already, in LLaVA's layout: FIT-RS, ShareGPT4V, the published adaptation files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from services.trainer.adaptation.layouts.layout import LayoutError, Source, field, picture, read_json, read_json_lines
from services.trainer.adaptation.rows import IMAGE_MARK, ConversationRow, RowError, parse_row


def read_llava(source: Source) -> Iterator[ConversationRow]:
    """``SPLIT.json`` (a list) or ``SPLIT.jsonl``, with paths of images from the folder on."""
    file = source.folder / f"{source.split}.jsonl"
    if not file.is_file():
        file = source.folder / f"{source.split}.json"
    for place, entry in read_entries(file):
        yield from conversation_rows(entry, source.folder, "", place, str)


def read_entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Entries of a list in a JSON file, or of a JSONL file, each with the words for where it stands."""
    if file.suffix == ".json":
        content = read_json(file)
        if not isinstance(content, list):
            raise LayoutError(f"{file}: must hold a list of conversations.")
        yield from ((f"{file}, entry {number}", entry) for number, entry in enumerate(content, 1))
    else:
        yield from read_json_lines(file)


def conversation_rows(
    entry: Any, root: Path, folder: str, place: str, rewrite: Callable[[str], str]
) -> Iterator[ConversationRow]:
    """The row of one entry: texts rewritten, sizes looked up, and the mark of an image put first where it is missing.

    ``folder`` stands before the paths of images. Raises LayoutError.
    """
    said = [
        {"from": field(message, "from", place), "value": rewrite(str(field(message, "value", place)))}
        for message in field(entry, "conversations", place)
    ]
    row = {"id": field(entry, "id", place), "conversations": said}
    if "image" in entry:
        paths = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        shown = [picture(root, f"{folder}/{path}" if folder else path) for path in paths]
        if isinstance(entry["image"], list):
            row |= {"image": [image.path for image in shown]}
            row |= {"width_list": [image.width for image in shown], "height_list": [image.height for image in shown]}
        else:
            row |= {"image": shown[0].path, "width": shown[0].width, "height": shown[0].height}
            asked = [message for message in said if message["from"] == "human"]
            if asked and not any(IMAGE_MARK in message["value"] for message in asked):
                asked[0]["value"] = f"{IMAGE_MARK}\n{asked[0]['value']}"
    row |= {key: entry[key] for key in ("video", "clip") if key in entry}
    try:
        yield parse_row(json.dumps(row), place)
    except RowError as error:
        raise LayoutError(str(error)) from error
