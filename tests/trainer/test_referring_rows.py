"""What stands for referring expressions where decoders and MLLM learn apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.trainer.referring_rows import Meaning, choose_referred, read_referring, referring_links, referring_row
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer, ComposerOptions
from services.trainer.scenes.referring import choose_referring, members
from services.trainer.scenes.templates import LANGUAGES
from tests.trainer.conftest import draw_sprites

DOG, BUS = CATEGORY_INDEX["dog"], CATEGORY_INDEX["bus"]
# The first numbers of the direction that means smallest, scaled; trained weights depend on them.
EXPECTED = [0.84124, 0.67131, -0.07693, -0.5806]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(draw_sprites(), ComposerOptions())


@pytest.mark.parametrize(
    ("phrase", "meaning"),
    [
        ("the leftmost dog", Meaning("leftmost", DOG, None)),
        ("The highest dog", Meaning("topmost", DOG, None)),
        ("最大的那只狗", Meaning("largest", DOG, None)),
        ("the dog left of the bus", Meaning("left", DOG, BUS)),
        ("公交车左边的狗", Meaning("left", DOG, BUS)),
        ("dog", None),
        ("the leftmost thing", None),
        ("the dog left of the moonbase", None),
        ("region 1", None),
    ],
)
def test_a_phrase_is_read_by_its_words(phrase: str, meaning: Meaning | None) -> None:
    assert read_referring(phrase) == meaning


def test_every_expression_that_conversations_use_is_read(composer: Composer) -> None:
    read = 0
    for seed in range(20):
        scene, rng = composer.compose(seed), np.random.default_rng(seed)
        for language in LANGUAGES:
            found = choose_referring(scene, language, rng)
            if found is None:
                continue
            for words in (found.spoken, found.phrase):
                meaning = read_referring(words)
                assert meaning is not None
                assert meaning.relation == found.relation
                assert CATEGORIES[meaning.category] == scene.objects[found.target].category
            read += 1
    assert read > 20


def test_expressions_differ_in_all_that_they_say() -> None:
    rows = torch.randn(len(CATEGORIES), 128, generator=torch.Generator().manual_seed(0))
    meanings = [
        Meaning("leftmost", DOG, None),
        Meaning("rightmost", DOG, None),
        Meaning("leftmost", BUS, None),
        Meaning("left", DOG, BUS),
        Meaning("left", BUS, DOG),
    ]
    links = referring_links(rows, meanings)
    apart = torch.cdist(links, links) + torch.eye(len(meanings)) * 100
    # Rows are about 16 apart.
    assert float(apart.min()) > 7
    # Each is nearest to the row of what it is about.
    assert torch.cdist(links, rows).argmin(dim=1).tolist() == [DOG, DOG, BUS, DOG, BUS]


def test_the_same_expression_has_the_same_row_in_every_process() -> None:
    row = referring_row(torch.zeros(len(CATEGORIES), 4), Meaning("smallest", DOG, None))
    torch.testing.assert_close(row, torch.tensor(EXPECTED), rtol=1e-4, atol=1e-4)


def test_what_is_referred_to_is_not_asked_for_otherwise(composer: Composer) -> None:
    chosen = 0
    for seed in range(20):
        scene = composer.compose(seed)
        spoken_of = {CATEGORY_INDEX[scene.objects[0].category.key]} if scene.objects else set()
        others = set(range(len(CATEGORIES))) - spoken_of
        referred = choose_referred(scene, others, np.random.default_rng(seed))
        assert not referred.categories & spoken_of
        assert len(set(referred.meanings)) == len(referred.meanings) == len(referred.targets) <= 8
        for meaning, (target,) in zip(referred.meanings, referred.targets, strict=True):
            assert target in members(scene, CATEGORIES[meaning.category])
        chosen += len(referred.meanings)
    assert chosen > 40
