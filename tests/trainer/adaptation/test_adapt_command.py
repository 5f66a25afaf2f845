"""``superlink adapt``: from a public layout to a mixed meta file, and errors that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from services.trainer.adaptation.commands import adapt
from services.trainer.adaptation.layouts.catalogue import LAYOUTS
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.adaptation.row_stream import RowSets

pytestmark = pytest.mark.internvl


def run(*arguments: object) -> Result:
    return CliRunner().invoke(adapt, [str(argument) for argument in arguments], terminal_width=300)


@pytest.fixture
def aerial(tmp_path: Path) -> Path:
    for name in ("airport", "bridge"):
        (tmp_path / "aerial" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / "aerial" / name / f"{number}.png")
    return tmp_path / "aerial"


def test_data_are_converted_checked_and_mixed(aerial: Path, tmp_path: Path) -> None:
    domain, general = tmp_path / "domain", tmp_path / "general"
    converted = run("convert", "class-folders", aerial, "--out", domain, "--name", "aerial", "--limit", 4)
    assert converted.exit_code == 0, converted.output
    assert "4 conversations" in converted.output
    assert run("convert", "lettered-class-folders", aerial, "--out", general).exit_code == 0
    # A second set joins the first one's meta file.
    assert run("convert", "class-folders", aerial, "--out", general, "--split", "all").exit_code == 0
    assert list(load_meta(general / "meta.json")) == ["lettered-class-folders_train", "class-folders_all"]
    checked = run("check", domain / "meta.json")
    assert checked.exit_code == 0, checked.output

    mixed = run("mix", domain / "meta.json", general / "meta.json", "--ratio", 0.75, "--out", tmp_path / "mixed.json")
    assert mixed.exit_code == 0, mixed.output
    sets = load_meta(tmp_path / "mixed.json")
    assert sets["aerial"].used_rows == 4
    assert sum(found.used_rows for name, found in sets.items() if name != "aerial") == 3
    # The mixture is what a run reads.
    mixture = RowSets(sets)
    assert all(mixture.row(name, number).images for name, found in sets.items() for number in range(found.length))
    assert run("check", tmp_path / "mixed.json").exit_code == 0


def test_checking_lists_what_is_wrong_and_fails(aerial: Path, tmp_path: Path) -> None:
    run("convert", "class-folders", aerial, "--out", tmp_path / "domain")
    (aerial / "airport" / "2.png").unlink()
    result = run("check", tmp_path / "domain" / "meta.json")
    assert result.exit_code == 1
    assert "airport/2.png" in result.output
    assert "1 problems." in result.output


def test_a_conversion_that_fails_changes_nothing(aerial: Path, tmp_path: Path) -> None:
    out = tmp_path / "domain"
    run("convert", "class-folders", aerial, "--out", out)
    before = {file.name: file.read_text() for file in out.iterdir()}
    (aerial / "bridge" / "9.png").write_text("no image")
    result = run("convert", "class-folders", aerial, "--out", out)
    assert result.exit_code == 1
    assert "bridge/9.png: is not an image" in result.output
    assert {file.name: file.read_text() for file in out.iterdir()} == before


def test_data_that_make_no_valid_conversation_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.jpg")
    lines = [json.dumps({"image": "a.jpg", "caption": caption}) for caption in ("A lung.", " ")]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    result = run("convert", "pmc-oa", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "conversation 2 is wrong. value: String should have at least 1 character" in result.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("convert", "cocoo", ".", "--out", "x"), 2, "No layout 'cocoo'. There are: class-folders"),
        (("convert", "coco", "nowhere", "--out", "x"), 1, "nowhere: there is no such folder"),
        (("convert", "coco-marked", ".", "--out", "x", "--mark", "circle"), 2, "circle"),
        (("check", "nowhere.json"), 1, "nowhere.json: cannot be read"),
    ],
)
def test_wrong_calls_say_what_would_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_domain_larger_than_the_pool_is_explained(aerial: Path, tmp_path: Path) -> None:
    run("convert", "class-folders", aerial, "--out", tmp_path / "a")
    run("convert", "class-folders", aerial, "--out", tmp_path / "b", "--name", "general")
    result = run(
        "mix", tmp_path / "a" / "meta.json", tmp_path / "b" / "meta.json", "--ratio", 2, "--out", tmp_path / "m"
    )
    assert result.exit_code == 1
    assert "needs 16 general rows, and there are 8" in result.output


def test_all_layouts_are_listed_with_their_files() -> None:
    listed = run("layouts").output
    for name in LAYOUTS:
        assert name in listed


@pytest.mark.parametrize("command", ["layouts", "convert", "check", "mix", "domains"])
def test_every_help_teaches_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: superlink adapt {command}" in " ".join(result.output.split())


def test_the_command_is_part_of_superlink(aerial: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "superlink", "adapt", "convert", "class-folders", str(aerial)]
    done = subprocess.run([*program, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["class-folders_train"]["length"] == 8
