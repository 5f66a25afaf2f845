"""The meta file and the mixing of general data into a domain's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.trainer.adaptation.meta_file import (
    DataSet,
    MetaFileError,
    check,
    load_meta,
    save_meta,
)
from services.trainer.adaptation.replay import ReplayError, draw_order, mix
from services.trainer.adaptation.row_file import RowFile
from services.trainer.adaptation.rows import ConversationRow, Message, RowError, write_rows

pytestmark = pytest.mark.internvl


def text_rows(count: int) -> list[ConversationRow]:
    said = (Message(speaker="human", value="Hello"), Message(speaker="gpt", value="Hi"))
    return [ConversationRow(id=number, conversations=said) for number in range(count)]


def data_set(folder: Path, count: int, **fields: Any) -> DataSet:
    write_rows(folder / "rows.jsonl", text_rows(count))
    return DataSet(root=str(folder), annotation=str(folder / "rows.jsonl"), **({"length": count} | fields))


@pytest.mark.parametrize(
    ("repeat_time", "rows"),
    [(1, [0, 1, 2, 3, 4]), (0.5, [0, 1]), (0.1, []), (2, [0, 1, 2, 3, 4] * 2)],
)
def test_repeat_factors_keep_the_first_rows_or_repeat_all(tmp_path: Path, repeat_time: float, rows: list[int]) -> None:
    found = data_set(tmp_path, 5, repeat_time=repeat_time)
    assert found.used_rows == len(rows)
    assert [found.row_of(place) for place in range(found.used_rows)] == rows
    assert sorted(draw_order({"a": found}, seed=0)) == sorted(("a", row) for row in rows)


@pytest.mark.parametrize("there", [0, 3])
def test_a_file_of_fewer_rows_than_promised_is_an_error(tmp_path: Path, there: int) -> None:
    with pytest.raises(RowError, match=f"has {there} rows, but the meta file says length 5"):
        RowFile(data_set(tmp_path, there, length=5))


def test_rows_are_read_by_their_number_past_empty_lines(tmp_path: Path) -> None:
    found = data_set(tmp_path, 3)
    file = Path(found.annotation)
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([first, "", *rest, "", ""]), encoding="utf-8")
    rows = RowFile(found)
    assert [rows[number].id for number in (2, 0, 1)] == [2, 0, 1]
    file.write_text("\n".join([first, "", "{}", rest[1]]), encoding="utf-8")
    with pytest.raises(RowError, match="line 3: id"):
        RowFile(found)[1]


def test_a_meta_file_survives_and_moves_with_its_folder(tmp_path: Path) -> None:
    sets = {
        "inside": data_set(tmp_path / "here" / "data", 3, repeat_time=0.5, max_dynamic_patch=6, data_augment=True),
        "outside": data_set(tmp_path / "elsewhere", 2),
    }
    save_meta(tmp_path / "here" / "meta.json", sets)
    (tmp_path / "here").rename(tmp_path / "moved")
    loaded = load_meta(tmp_path / "moved" / "meta.json")
    assert loaded["outside"] == sets["outside"]
    assert loaded["inside"].annotation == str(tmp_path / "moved" / "data" / "rows.jsonl")
    assert loaded["inside"].model_dump(exclude={"root", "annotation"}) == sets["inside"].model_dump(
        exclude={"root", "annotation"}
    )
    assert RowFile(loaded["inside"])[2].id == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must be an object"),
        ("{", "is not valid JSON"),
        ({"a": {"annotation": "a.jsonl", "length": 1}}, "a.root: Field required"),
        ({"a": {"root": ".", "annotation": "a.jsonl", "length": 1, "repeat_tim": 2}}, "a.repeat_tim: Extra inputs"),
        ({"a": {"root": ".", "annotation": "a.jsonl", "length": 1, "repeat_time": 1.5}}, "a whole number"),
        ({"a": {"root": ".", "annotation": "a.jsonl", "length": 1, "repeat_time": 0}}, "a.repeat_time"),
    ],
)
def test_a_wrong_meta_file_is_named_by_file_and_key(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "meta.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(MetaFileError) as raised:
        load_meta(file)
    assert str(file) in str(raised.value)
    assert message in str(raised.value)


def test_checking_finds_wrong_lengths_wrong_rows_and_missing_images(tmp_path: Path) -> None:
    right = data_set(tmp_path / "right", 3)
    short = data_set(tmp_path / "short", 3, length=4)
    broken = data_set(tmp_path / "broken", 2)
    with Path(broken.annotation).open("a") as lines:
        lines.write("{}\n")
    seen = data_set(tmp_path / "seen", 0, length=1)
    said = (Message(speaker="human", value="<image>"), Message(speaker="gpt", value="Hi"))
    write_rows(Path(seen.annotation), [ConversationRow(id=7, image="gone.png", conversations=said)])
    looked_at = []
    problems = list(check({"right": right, "short": short, "broken": broken, "seen": seen}, looked_at.append))
    assert sum(looked_at) == 9
    assert [problem.split(":")[0] for problem in problems] == ["short", "broken", "seen"]
    assert "has 3 rows, the meta file says length 4" in problems[0]
    assert "line 3" in problems[1]
    assert "row 7 names gone.png" in problems[2]


def of_length(length: int, repeat_time: float = 1.0) -> DataSet:
    return DataSet(root=".", annotation="rows.jsonl", length=length, repeat_time=repeat_time)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.25, 0.5, 1.0, 1.37])
def test_the_ratio_of_general_to_domain_rows_is_exact(ratio: float) -> None:
    domain = {"driving": of_length(317), "repeated": of_length(20, 3)}
    general = {"a": of_length(333), "b": of_length(101), "c": of_length(97)}
    mixed = mix(domain, general, ratio)
    replayed = {name: found.used_rows for name, found in mixed.items() if name in general}
    assert sum(replayed.values()) == round(ratio * 377)
    assert all(mixed[name] == found for name, found in domain.items())
    for name, used in replayed.items():
        assert abs(used - ratio * 377 * general[name].length / 531) <= 1


def test_the_published_mixture_comes_out() -> None:
    """BDD-X, 1:1 with a general pool of 1 394 000 rows (26 000 clips, several questions each): about 0.03 of each."""
    pool = {"sharegpt4v": 767, "allseeing": 127, "zh": 158, "dvqa": 200, "geoqa": 72, "synthdog": 30}
    general = {name: of_length(1000 * thousands) for name, thousands in pool.items()}
    mixed = mix({"bddx": of_length(40_620)}, general, 1.0)
    assert {round(mixed[name].repeat_time, 3) for name in pool} == {0.03}


@pytest.mark.parametrize(
    ("general", "ratio", "message"),
    [
        ({"a": of_length(10)}, 0.25, "needs 25 general rows, and there are 10.*at most 0.1"),
        ({"a": of_length(10, 5)}, 0.25, "there are 10"),
        ({"driving": of_length(100)}, 0.25, "sets of one name: driving"),
        ({"a": of_length(100)}, -1, "not -1"),
    ],
)
def test_impossible_mixtures_say_what_is_missing(general: dict[str, DataSet], ratio: float, message: str) -> None:
    with pytest.raises(ReplayError, match=message):
        mix({"driving": of_length(100)}, general, ratio)


def test_an_epoch_draws_every_used_row_once_in_an_order_of_the_seed() -> None:
    sets = {"a": of_length(50), "b": of_length(20, 0.5), "c": of_length(5, 2)}
    order = draw_order(sets, seed=3)
    assert order == draw_order(sets, seed=3)
    assert order != draw_order(sets, seed=4)
    expected = (
        [("a", row) for row in range(50)] + [("b", row) for row in range(10)] + 2 * [("c", row) for row in range(5)]
    )
    assert Counter(order) == Counter(expected)
    # Mixed, not one set after the other.
    assert {name for name, _ in order[:30]} == {"a", "b", "c"}
