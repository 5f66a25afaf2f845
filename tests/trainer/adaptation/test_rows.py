"""The conversation format: every kind of row reads and writes, and a wrong one is named by file, line and key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.adaptation.rows import ConversationRow, RowError, parse_row, read_rows, write_rows

pytestmark = pytest.mark.internvl


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


TEXT = {"id": 0, "conversations": said("Hello", "Hi")}
SYSTEM = {"id": "s", "conversations": [{"from": "system", "value": "Be brief."}, *said("Hello", "Hi")]}
IMAGE = {"id": 1, "image": "a.png", "width": 4, "height": 3, "conversations": said("<image>\nWhat?", "A dog.")}
IMAGES = {
    "id": 2,
    "image": ["a.png", "b.png"],
    "width_list": [4, 5],
    "height_list": [3, 2],
    "conversations": said("Image-1: <image>\nImage-2: <image>\nSame?", "No."),
}
VIDEO = {"id": 3, "video": "v.mp4", "clip": [1.5, 4.0], "conversations": said("<video>\nWhat happens?", "It turns.")}


def test_every_kind_of_row_survives_a_file(tmp_path: Path) -> None:
    rows = [parse_row(json.dumps(row), "here") for row in (TEXT, SYSTEM, IMAGE, IMAGES, VIDEO)]
    file = tmp_path / "new" / "rows.jsonl"
    assert write_rows(file, rows) == 5
    assert list(read_rows(file)) == rows
    # As the public tools read it: "from", and nothing that the row does not have.
    assert json.loads(file.read_text().splitlines()[2]) == IMAGE


def test_texts_in_any_script_stay_readable(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, [parse_row(json.dumps({"id": 1, "conversations": said("图中有什么？", "一只狗。")}), "here")])
    assert "一只狗" in file.read_text(encoding="utf-8")


def test_keys_of_public_files_that_are_not_ours_are_left_out() -> None:
    row = parse_row(json.dumps(IMAGE | {"source": "GeoChat"}), "here")
    assert row.images == ("a.png",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": []}, "conversations must alternate human and gpt"),
        ({"conversations": said("<image>\nWhat?")}, "conversations must alternate human and gpt"),
        ({"conversations": said("<image>\nWhat?", "A dog.")[::-1]}, "conversations must alternate human and gpt"),
        ({"conversations": said("<image>\nWhat?", "")}, "conversations.1.value"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "conversations.0.from"),
        ({"conversations": said("What?", "A dog.")}, "0 <image> marks for 1 images"),
        ({"conversations": said("<image><image>", "A dog.")}, "2 <image> marks for 1 images"),
        ({"conversations": said("<image>\nWhat?", "A <image> dog.")}, "only a human message"),
        ({"image": []}, "image is an empty list"),
        ({"image": None}, "1 <image> marks for 0 images"),
        ({"video": "v.mp4"}, "images or a video, not both"),
        ({"width": None}, "come in pairs"),
        ({"width": 0}, "width"),
        ({"image": ["a.png"]}, "those of a single image"),
        ({"width_list": [1, 2], "height_list": [1, 2]}, "one entry for each path"),
        ({"clip": [0, 1]}, "clip belongs to a video"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(TEXT)}\n\n{json.dumps(IMAGE | change)}\n", encoding="utf-8")
    with pytest.raises(RowError) as raised:
        list(read_rows(file))
    assert f"{file}, line 3: " in str(raised.value)
    assert message in str(raised.value)


def test_a_clip_must_have_a_length() -> None:
    with pytest.raises(RowError, match="0 <= start < end"):
        parse_row(json.dumps(VIDEO | {"clip": [4, 4]}), "here")


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"id": 1', encoding="utf-8")
    with pytest.raises(RowError, match="line 1"):
        list(read_rows(tmp_path / "broken.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(RowError, match="is not UTF-8"):
        list(read_rows(tmp_path / "latin.jsonl"))


def test_a_conversion_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = parse_row(json.dumps(TEXT), "here")
    write_rows(file, [row])

    def broken() -> Iterator[ConversationRow]:
        yield row
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(file, broken())
    assert list(read_rows(file)) == [row]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]
