"""The rows that stand in place of links, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.runtime.weights import WeightsError
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.drawings import CONCEPTS
from services.trainer.scenes.pose_names import POSE_NAMES
from services.trainer.segment_names import SEGMENT_NAMES
from services.trainer.vocabularies import draw_vocabularies, fill_vocabulary, load_vocabularies, read_vocabulary


def save_rows(folder: Path, rows: int) -> torch.Tensor:
    drawn = torch.randn(rows, 16)
    folder.mkdir()
    save_file({"vocabulary.weight": drawn}, str(folder / "model.safetensors"))
    return drawn


def test_the_same_seed_draws_the_same_rows_and_the_segmenter_shares_the_detectors(tmp_path: Path) -> None:
    known = save_rows(tmp_path / "detector", len(CATEGORIES))

    draw_vocabularies(tmp_path / "first", tmp_path / "detector", 7)
    draw_vocabularies(tmp_path / "again", tmp_path / "detector", 7)

    decoders = {"segmentation": len(SEGMENT_NAMES), "pose": len(POSE_NAMES), "diffusion": len(CONCEPTS)}
    loaded = load_vocabularies({decoder: tmp_path / "first" / decoder for decoder in decoders})
    assert {decoder: tuple(vocabulary.rows.shape) for decoder, vocabulary in loaded.items()} == {
        decoder: (rows, 16) for decoder, rows in decoders.items()
    }
    assert torch.equal(loaded["segmentation"].rows[: len(CATEGORIES)], known)
    for decoder, vocabulary in loaded.items():
        assert torch.equal(vocabulary.rows, read_vocabulary(tmp_path / "again" / decoder))


def test_all_rows_come_from_one_stream(tmp_path: Path) -> None:
    save_rows(tmp_path / "detector", len(CATEGORIES))
    generator = torch.Generator().manual_seed(7)
    segmentation, pose = (torch.randn(rows, 16, generator=generator) for rows in (len(SEGMENT_NAMES), len(POSE_NAMES)))

    drawn = draw_vocabularies(tmp_path / "out", tmp_path / "detector", 7)

    assert torch.equal(drawn["segmentation"][len(CATEGORIES) :], segmentation[len(CATEGORIES) :])
    assert torch.equal(drawn["pose"], pose)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_rows(tmp_path / "detector", 5)

    with pytest.raises(WeightsError, match="5 rows instead of"):
        draw_vocabularies(tmp_path / "out", tmp_path / "detector", 7)
    with pytest.raises(WeightsError, match=r"\(5, 16\) instead of \(6, 16\)"):
        fill_vocabulary(torch.nn.Embedding(6, 16), tmp_path / "detector")
    with pytest.raises(WeightsError, match="to read a vocabulary from"):
        read_vocabulary(tmp_path)
