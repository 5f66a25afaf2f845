"""Corpora of a few documents in the published layouts."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from services.trainer.latent_compression.plan import Mmc4, Pairs

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


def encode(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 18), COLOURS[colour]).save(buffer, kind)
    return buffer.getvalue()


def write_mmc4(folder: Path, ending: str = "jsonl") -> Mmc4:
    images = folder / "images"
    images.mkdir(parents=True)
    for colour in COLOURS:
        (images / f"{colour}.png").write_bytes(encode(colour))
    (images / "broken.png").write_bytes(b"no picture")

    def info(name: str, place: int, similarity: float) -> dict[str, object]:
        return {"image_name": name, "matched_text_index": place, "matched_sim": similarity, "raw_url": "…"}

    documents = [
        {
            "text_list": ["One.", "Two.", "Three."],
            "image_info": [
                info("green.png", 2, 0.3),
                info("red.png", 0, 0.25),
                info("blue.png", 1, 0.2399),
                info("missing.png", 1, 0.5),
            ],
        },
        {"text_list": ["Nothing to see."], "image_info": [info("broken.png", 0, 0.9)]},
    ]
    lines = "\n".join(json.dumps(document) for document in documents).encode()
    shards = folder / "shards"
    shards.mkdir()
    if ending == "jsonl":
        (shards / "docs_shard_0_v2.jsonl").write_bytes(lines)
    elif ending == "jsonl.gz":
        (shards / "docs_shard_0_v2.jsonl.gz").write_bytes(gzip.compress(lines))
    else:
        with zipfile.ZipFile(shards / "docs_shard_0_v2.jsonl.zip", "w") as archive:
            archive.writestr("docs_shard_0_v2.jsonl", lines)
    return Mmc4(shards=shards, images=images)


def write_pairs(folder: Path) -> Pairs:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, content in (
            ("000.jpg", encode("red")),
            ("000.txt", b" a red one \n"),
            ("000.json", b"{}"),
            ("001.png", encode("blue")),
            ("001.txt", b"a blue one"),
            ("002.txt", b"nothing"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Pairs(shards=folder)


def make_tokenizer(path: Path) -> Path:
    words = ["one", "two", "three", "a", "red", "blue", ".", "<unk>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.save(str(path))
    return path
