"""From rows to ids: the layout that the service reads, labels on answers alone, tiles by the published budgets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from services.mllm.config import MllmConfig
from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm
from services.mllm.prompt_format import SYSTEM_MESSAGE_1_5
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.converters import Picture, grounding
from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.new_model import make_model
from services.trainer.adaptation.row_reader import LearnedRow, RowReader
from services.trainer.adaptation.rows import ConversationRow, Message, RowError
from tests.mllm.original_checkpoints import write_original
from tests.trainer.adaptation.small_rows import colour_rows, new_model, write_set

pytestmark = pytest.mark.internvl

Reading = tuple[MllmConfig, MllmTokenizer]


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    folder = tmp_path_factory.mktemp("texts")
    mllm, tokenizer = make_model(new_model(write_set(folder, colour_rows(folder))), seed=0)
    return mllm.config, tokenizer


def reader(reading: Reading, max_tiles: int = 12, video_frames: int = 8) -> RowReader:
    return RowReader(*reading, max_tiles, video_frames)


def data_set(folder: Path, **fields: object) -> DataSet:
    return DataSet.model_validate({"root": str(folder), "annotation": "unread", "length": 1} | fields)


def conversation(*said: str, **shown: object) -> ConversationRow:
    messages = [Message(speaker="gpt" if place % 2 else "human", value=text) for place, text in enumerate(said)]
    return ConversationRow.model_validate({"id": 1, "conversations": messages} | shown)


def spelt(tokenizer: MllmTokenizer, ids: list[int]) -> str:
    """Ids as text, special tokens by name and repeated image tokens as a number."""
    marks = {tokenizer.image_context_id: "*"}
    special = b"".join(
        (marks.get(token) or tokenizer.name(token)).encode()
        if token in tokenizer.special_ids
        else tokenizer.token_bytes(token)
        for token in ids
        if token != IGNORED
    )
    return special.decode()


def learned_text(tokenizer: MllmTokenizer, learned: LearnedRow) -> str:
    return spelt(tokenizer, [label for label in learned.sample.labels if label != IGNORED])


def test_a_grounding_row_is_laid_out_as_the_service_asks_and_only_its_answer_is_learned(
    reading: Reading, tmp_path: Path
) -> None:
    """The published box: (10, 20, 30, 40) of 800 x 600. Marks of phrases and boxes are single tokens, both ways."""
    _, tokenizer = reading
    Image.new("RGB", (800, 600)).save(tmp_path / "a.png")
    row = grounding("7", Picture("a.png", 800, 600), {"red": [(10, 20, 30, 40)]})
    learned = reader(reading, max_tiles=1).learn(row, data_set(tmp_path))
    assert spelt(tokenizer, list(learned.sample.input_ids)) == (
        "<|im_start|>user\n<img>****</img>\nDetect <ref>red</ref>.<|im_end|>\n"
        "<|im_start|>assistant\n<ref>red</ref><box>[[12, 33, 38, 67]]</box><|im_end|>\n"
    )
    assert learned_text(tokenizer, learned) == "<ref>red</ref><box>[[12, 33, 38, 67]]</box><|im_end|>"
    names = [tokenizer.name(token) for token in learned.sample.input_ids]
    assert [names.count(mark) for mark in ("<ref>", "</ref>", "<box>", "</box>")] == [2, 2, 1, 1]


def test_every_answer_of_a_conversation_is_learned_and_no_question(reading: Reading, tmp_path: Path) -> None:
    said = (Message(speaker="system", value="Be brief."),)
    talk = conversation("Say red.", "red", "Say blue.", "blue")
    row = talk.model_copy(update={"conversations": (*said, *talk.conversations)})
    learned = reader(reading).learn(row, data_set(tmp_path))
    assert spelt(reading[1], list(learned.sample.input_ids)).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert learned_text(reading[1], learned) == "red<|im_end|>blue<|im_end|>"
    assert learned.sample.images == ()
    assert len(learned.tiles) == 0


def test_a_public_checkpoint_reads_its_own_template(tmp_path: Path) -> None:
    write_original(tmp_path / "checkpoint", "internlm2-chat")
    mllm, tokenizer = Mllm.load(tmp_path / "checkpoint")
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    row = grounding("7", Picture("a.png", 56, 56), {"dog": [(0, 0, 56, 56)]})
    learned = RowReader(mllm.config, tokenizer, 12, 8).learn(row, data_set(tmp_path))
    assert spelt(tokenizer, list(learned.sample.input_ids)) == (
        f"<s><|im_start|>system\n{SYSTEM_MESSAGE_1_5}<|im_end|><|im_start|>user\n<img>****</img>\n"
        "Detect <ref>dog</ref>.<|im_end|><|im_start|>assistant\n<ref>dog</ref><box>[[0, 0, 1000, 1000]]</box><|im_end|>"
    )
    assert learned_text(tokenizer, learned) == "<ref>dog</ref><box>[[0, 0, 1000, 1000]]</box><|im_end|>"


@pytest.mark.parametrize(
    ("size", "max_tiles", "own", "tiles"),
    [
        # The published grids: 3 x 2, 4 x 3 and a thumbnail each; a single tile has none.
        ((640, 480), 6, None, 7),
        ((640, 480), 12, None, 13),
        ((640, 480), 1, None, 1),
        # The data set's own limit comes first.
        ((640, 480), 12, 6, 7),
        ((2688, 896), 12, None, 13),
    ],
)
def test_images_are_tiled_by_the_run_and_the_data_set(
    reading: Reading, tmp_path: Path, size: tuple[int, int], max_tiles: int, own: int | None, tiles: int
) -> None:
    # At a tile of 28 pixels ties are broken as for one of 448 in images of the same shape and 16 times the size.
    Image.new("RGB", (size[0] // 16, size[1] // 16)).save(tmp_path / "a.png")
    row = conversation("<image>\nWhat?", "red", image="a.png")
    learned = reader(reading, max_tiles).learn(row, data_set(tmp_path, max_dynamic_patch=own))
    assert learned.sample.tiles == len(learned.tiles) == tiles
    assert learned.sample.input_ids.count(reading[1].image_context_id) == 4 * tiles


def test_several_images_share_the_tiles_keep_their_places_and_are_numbered_once(
    reading: Reading, tmp_path: Path
) -> None:
    for name in "abc":
        Image.new("RGB", (60, 30)).save(tmp_path / f"{name}.png")
    row = conversation(
        "Image-1: <image>\nImage-2: <image>\nWhich?",
        "red",
        "<image>\nAnd this?",
        "blue",
        image=["a.png", "b.png", "c.png"],
    )
    learned = reader(reading, max_tiles=6).learn(row, data_set(tmp_path))
    # A third of six tiles each: two and a thumbnail.
    assert [image.tiles for image in learned.sample.images] == [3, 3, 3]
    assert [image.first for image in learned.sample.images] == [0, 3, 6]
    assert spelt(reading[1], list(learned.sample.input_ids)).replace("*" * 12, "#") == (
        "<|im_start|>user\nImage-1: <img>#</img>\nImage-2: <img>#</img>\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nImage-3: <img>#</img>\nAnd this?<|im_end|>\n"
        "<|im_start|>assistant\nblue<|im_end|>\n"
    )
    starts = [learned.sample.input_ids[image.start] for image in learned.sample.images]
    assert starts == [reading[1].image_start_id] * 3


def shades(tiles: torch.Tensor) -> list[int]:
    """The grey of every tile, 0 to 255, from ImageNet's normalisation of red."""
    red = tiles[:, 0].mean(dim=(1, 2)) * 0.229 + 0.485
    return [round(255 * float(value)) for value in red]


def test_a_folder_of_frames_gives_the_published_frames(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8), (2 * number,) * 3).save(tmp_path / "clip" / f"{number:03}.png")
    row = conversation("<video>\nWhat happens?", "red", video="clip")
    learned = reader(reading).learn(row, data_set(tmp_path, data_augment=True), np.random.default_rng(0))
    assert shades(learned.tiles) == [2 * number for number in (6, 18, 31, 43, 56, 68, 80, 93)]
    text = spelt(reading[1], list(learned.sample.input_ids))
    assert "".join(f"Frame{number}: <img>****</img>\n" for number in range(1, 9)) + "What happens?<|im_end|>" in text


def test_a_clip_of_a_video_file_is_a_part_of_its_frames(reading: Reading, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 32))
    for number in range(40):
        writer.write(np.full((32, 32, 3), 6 * number, dtype=np.uint8))
    writer.release()
    row = conversation("<video>\nWhat happens?", "red", video="a.avi", clip=(1.0, 2.0))
    learned = reader(reading, video_frames=20).learn(row, data_set(tmp_path))
    # Ten frames a second: frames 10 to 20, all of them.
    assert shades(learned.tiles) == pytest.approx([6 * number for number in range(10, 21)], abs=2)


def test_images_are_recompressed_only_where_the_set_wants_it_and_only_in_training(
    reading: Reading, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    row = conversation("<image>\nWhat?", "red", image="a.png")
    plain, augmented = data_set(tmp_path), data_set(tmp_path, data_augment=True)

    def tiles(which: DataSet, seed: int | None) -> torch.Tensor:
        rng = None if seed is None else np.random.default_rng(seed)
        return reader(reading).learn(row, which, rng).tiles

    original = tiles(plain, None)
    assert torch.equal(tiles(plain, 3), original)
    assert torch.equal(tiles(augmented, None), original)
    assert not torch.equal(tiles(augmented, 3), original)
    assert torch.equal(tiles(augmented, 3), tiles(augmented, 3))


@pytest.mark.parametrize(
    ("shown", "mark", "message"),
    [
        ({"image": "broken.png"}, "<image>", "broken.png: is not an image"),
        ({"video": "broken.avi"}, "<video>", "broken.avi: is not a video"),
        ({"video": "empty"}, "<video>", "empty: holds no frames"),
        ({"video": "empty", "clip": (0, 1)}, "<video>", "clip is for video files"),
    ],
)
def test_what_cannot_be_seen_is_named(
    reading: Reading, tmp_path: Path, shown: dict[str, object], mark: str, message: str
) -> None:
    for name in ("broken.png", "broken.avi"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match=message):
        reader(reading).learn(conversation(f"{mark}\nWhat?", "red", **shown), data_set(tmp_path))
