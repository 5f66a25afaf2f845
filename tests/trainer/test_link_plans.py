"""What a recipe says of the super link: queries a group, tables, and whether it begins anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.detection.model import Detector
from services.mllm.model import Mllm
from services.pose.model import PoseEstimator
from services.segmentation.model import Segmenter
from services.trainer.alignment import RowsRight
from services.trainer.chat_stage import language_term
from services.trainer.joint_stage import JointStage
from services.trainer.recipe import Link, Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.vocabularies import Vocabulary
from services.trainer.words_stage import WordsStage
from superlink.configuration import ConfigurationError
from tests.trainer.test_joint import recipe

FINDERS = ("detection", "segmentation", "pose")
SECTIONS = ("detector", "segmenter", "pose")


def plan(stage: str, sprites: Path, queries: int = 4, **fields: Any) -> Recipe:
    """A small recipe whose decoders take ``queries`` a group."""
    base = recipe(stage, sprites, **fields)
    sections = {name: getattr(base, name).model_copy(update={"queries_per_group": queries}) for name in SECTIONS}
    return base.model_copy(update=sections)


def first_batch(stage: JointStage, composer: Composer, decoder: str) -> Any:
    size = stage.recipe.schedule.batch_size
    first = next(step * size for step in range(100) if stage.decoder_of(step * size).name == decoder)
    return stage.collate([stage.prepare(stage.compose(composer, seed), seed) for seed in range(first, first + size)])


def links_of(stage: JointStage, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Links to the batch's decoder, and the states that they were read from."""
    tower = stage.mllm.tower(batch.chat.tiles)
    _, states = language_term(stage.mllm, batch.chat.language, tower)
    return stage.links(batch.chat.language, states, batch.decoder, batch.conversations), states


@pytest.mark.parametrize("queries", [1, 2, 4])
def test_the_number_of_queries_holds_from_the_recipe_to_the_exports(
    sprite_file: Path, composer: Composer, tmp_path: Path, queries: int
) -> None:
    torch.manual_seed(0)
    stage = JointStage(plan("joint", sprite_file, queries, decoders=dict.fromkeys(FINDERS, 1.0)))

    for decoder in FINDERS:
        terms = stage.losses(first_batch(stage, composer, decoder))
        stage.model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        assert all(bool(torch.isfinite(term)) for term in terms.values())
    figures = stage.evaluate([composer.compose(seed) for seed in range(4)])
    stage.export(tmp_path)

    assert {"ap50", "mask_ap50", "oks_ap50", "links_detection", "phrases"} <= figures.keys()
    mllm, tokenizer = Mllm.load(tmp_path / "mllm")
    of_decoder = {route.decoder: route.queries for route in mllm.config.routes}
    assert {of_decoder[decoder] for decoder in FINDERS} == {queries}
    assert of_decoder["diffusion"] == 8
    assert {tokenizer.queries(route) for route in ("[DET]", "[SEG]", "[POSE_OBJECT]", "[POSE]")} == {queries}
    decoders = (
        Detector.load(tmp_path / "detection"),
        Segmenter.load(tmp_path / "segmentation"),
        PoseEstimator.load(tmp_path / "pose"),
    )
    assert {decoder.spec.queries_per_group for decoder in decoders} == {queries}


def test_two_decoders_teach_the_one_shared_table(sprite_file: Path, composer: Composer) -> None:
    torch.manual_seed(0)
    shared = Link(query_tables="shared")
    stage = JointStage(plan("joint", sprite_file, decoders=dict.fromkeys(FINDERS, 1.0), link=shared))
    tables = [parameter for name, parameter in stage.model.named_parameters() if "link.tables" in name]

    assert len(tables) == 1
    for decoder in ("detection", "segmentation"):
        batch = first_batch(stage, composer, decoder)
        links, _ = links_of(stage, batch)
        stage.model.zero_grad()
        torch.stack(list(stage.decoders[decoder].losses(links, batch.task).values())).sum().backward()
        assert tables[0].grad is not None
        assert float(tables[0].grad[:4].abs().sum()) > 0
        # Rows that only larger groups have.
        assert float(tables[0].grad[4:].abs().sum()) == 0


def test_a_link_of_another_kind_than_the_recipes_is_refused_or_begins_anew(sprite_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = WordsStage(plan("words", sprite_file))
    old.export(tmp_path)
    start = {"start_from": {"mllm": tmp_path}}

    with pytest.raises(ConfigurationError, match=r"\[DET\] has 4 queries there and 2 here.*link.begins_anew"):
        WordsStage(plan("words", sprite_file, queries=2, **start))
    with pytest.raises(ConfigurationError, match="tables are separate there and shared here"):
        WordsStage(plan("words", sprite_file, link=Link(query_tables="shared"), **start))
    kept = WordsStage(plan("words", sprite_file, **start)).mllm
    new = WordsStage(plan("words", sprite_file, 2, link=Link(query_tables="shared", begins_anew=True), **start)).mllm

    words = "internvl.model.language_model.embed_tokens.weight"
    assert torch.equal(kept.state_dict()["link.tables.det"], old.mllm.state_dict()["link.tables.det"])
    assert torch.equal(new.state_dict()[words], old.mllm.state_dict()[words])
    assert set(new.link.tables) == {"shared"}
    assert new.link.queries("[SEG]").shape == (2, new.hidden_size)
    head = "link.heads.detection.layers.0.weight"
    assert not torch.equal(new.state_dict()[head], old.mllm.state_dict()[head])


def test_links_are_right_where_their_own_row_is_the_nearest(sprite_file: Path, composer: Composer) -> None:
    torch.manual_seed(0)
    stage = JointStage(plan("joint", sprite_file))
    batch = first_batch(stage, composer, "detection")
    parts = batch.chat.language
    with torch.no_grad():
        _, states = links_of(stage, batch)
        phrases = [group.phrase for part in parts for row in part.groups for group in row if group.route == "[DET]"]
        links = torch.cat(
            [
                link
                for part, hidden in zip(parts, states, strict=True)
                for link in stage.mllm.links(hidden, part.groups, "detection")
            ]
        )
        own = {phrase: row for row, phrase in enumerate(phrases)}

        def share(rows: Tensor) -> float:
            score = RowsRight({"detection": Vocabulary(rows, lambda phrase: own.get(phrase, -1))})
            score.add(stage.mllm, parts, states)
            return score.figures()["links_detection"]

        assert share(links) >= len(own) / len(phrases) > 0
        assert share(links[torch.arange(-1, len(links) - 1)]) < share(links)
