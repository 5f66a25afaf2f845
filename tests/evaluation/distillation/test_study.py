"""The distillation study: what its set holds, what it concludes, and that it goes on where it was stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from services.evaluation.distillation.report import conclusions, draw_study, study_table
from services.evaluation.distillation.set_making import make_quarters_set
from services.evaluation.distillation.study import LABELLED, SMALL_RUNS, RunName, RunResult, StudyRecipes, run_study
from services.mllm.config import DEFAULT_ROUTES, MllmConfig
from services.mllm.model import Mllm
from services.runtime.weights import WeightsError, read_config
from services.trainer.adaptation.domains.making import DOMAINS
from services.trainer.adaptation.meta_file import DataSet, load_meta, save_meta
from services.trainer.adaptation.rows import ConversationRow, read_rows
from services.trainer.commands import find_recipe
from services.trainer.recipe import load_recipe
from services.trainer.scenes.composer import Composer
from tests.trainer.conftest import draw_sprites

pytestmark = pytest.mark.internvl

REPOSITORY = Path(__file__).resolve().parents[3]
MOST = max(LABELLED)


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(draw_sprites())


def recipes() -> StudyRecipes:
    small = {
        name: load_recipe(find_recipe(f"distillation/tiny_{name}")) for name in ("large", "tower", "align", "tune")
    }
    return StudyRecipes(
        **small,
        domains=dict.fromkeys(DOMAINS, load_recipe(find_recipe("distillation/tiny_domain"))),
        small_domain=load_recipe(find_recipe("distillation/tiny_domain_small")),
    )


def result(run: RunName, labelled: int, seed: int, share: float, parameters: int = 1000) -> RunResult:
    figures = {"naming": share, "colour": share}
    return RunResult(run=run, labelled=labelled, seed=seed, parameters=parameters, seconds=1.0, figures=figures)


def adapted(run: RunName, domain: str, seed: int, share: float, parameters: int = 1000) -> RunResult:
    """Of an MLLM that was adapted to a domain, and judged on it."""
    return RunResult(
        run=run,
        labelled=MOST,
        domain=domain,
        seed=seed,
        parameters=parameters,
        seconds=1.0,
        figures={domain: share},
    )


def everything(seed: int) -> list[RunResult]:
    small = [result(run, labelled, seed, 0.72, 90) for labelled in LABELLED for run in SMALL_RUNS]
    tower = RunResult(
        run="tower", labelled=MOST, seed=seed, parameters=50, seconds=1.0, figures={"cosine": 0.9, "cosine_last": 0.8}
    )
    domains = [
        each
        for number, domain in enumerate(DOMAINS)
        for each in (
            adapted("large", domain, seed, 0.5),
            adapted("taught", domain, seed, 0.6 - number / 10, 90),
        )
    ]
    return [result("large", MOST, seed, 0.8), tower, *small, *domains]


def rows_of(data_set: DataSet) -> list[ConversationRow]:
    rows = [*read_rows(Path(data_set.annotation))]
    assert len(rows) == data_set.length
    return rows


def test_few_labels_are_the_first_of_many_and_test_pictures_are_others(composer: Composer, tmp_path: Path) -> None:
    told: list[int] = []
    make_quarters_set(tmp_path, composer, 1, (2, 5), 3, told.append)

    few, many = (load_meta(tmp_path / f"train_{count}" / "meta.json")["quarters"] for count in (2, 5))
    rows = rows_of(many)
    assert rows_of(few) == rows[:2]
    assert len(rows) == 5
    assert all(len(row.conversations) == 4 for row in rows)
    test = load_meta(tmp_path / "test" / "meta.json")
    assert test.keys() == {"naming", "colour"}
    asked = list(itertools.chain.from_iterable(map(rows_of, test.values())))
    assert len(asked) == 6
    learned, held_out = (
        {(tmp_path / path).read_bytes() for row in part for path in row.images} for part in (rows, asked)
    )
    assert len(learned) == 5
    assert len(held_out) == 3
    assert not learned & held_out
    assert sum(told) == 8


def test_another_seed_has_other_pictures(composer: Composer, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_quarters_set(tmp_path / str(seed), composer, seed, (1,), 1, lambda _: None)

    first, other = ((tmp_path / seed / "pictures" / "000000.png").read_bytes() for seed in "01")
    assert first != other


def test_a_finished_study_is_read_and_not_made_again(composer: Composer, tmp_path: Path) -> None:
    known = [*everything(0), *everything(1)]
    (tmp_path / "results.jsonl").write_text("".join(f"{each.model_dump_json()}\n" for each in known))

    found = list(run_study(recipes(), (0, 1), tmp_path, composer, lambda _: None))

    assert found == known
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_the_share_that_is_kept_is_the_mean_of_the_seeds_own_shares() -> None:
    sentences = conclusions([*everything(0), result("large", MOST, 1, 0.9), result("taught", MOST, 1, 0.9, 90)])

    assert any("9.0% of the large model's parameters" in each and "0.950 ± 0.071" in each for each in sentences)
    assert any("at least 0.900" in each for each in sentences)


def test_what_is_kept_is_said_of_every_domain() -> None:
    sentences = conclusions([*everything(0), adapted("large", "driving", 1, 1.0), adapted("taught", "driving", 1, 0.8)])

    for domain, kept in {"aerial": "1.200", "driving": "0.900 ± 0.141", "handwriting": "0.800"}.items():
        assert any(f"keeps {kept} of its score on {domain}" in each for each in sentences)


def test_the_table_has_a_row_for_every_model_and_domain() -> None:
    table = study_table(everything(0))

    places = [*table.columns[2].cells]
    assert {place: places.count(place) for place in set(places)} == {"": 5} | dict.fromkeys(DOMAINS, 2)


def test_what_one_domain_lacks_is_not_taken_from_another(composer: Composer, tmp_path: Path) -> None:
    """A study that was stopped goes on with what is missing, which here starts from a model that is not there."""
    known = [each for each in everything(0) if (each.run, each.domain) != ("taught", "driving")]
    (tmp_path / "results.jsonl").write_text("".join(f"{each.model_dump_json()}\n" for each in known))
    for folder in (tmp_path / "domains" / DOMAINS[-1], tmp_path / "seed0" / "set"):
        save_meta(folder / "test" / "meta.json", {})
    told: list[str] = []

    with pytest.raises(WeightsError, match="taught_2000"):
        list(run_study(recipes(), (0,), tmp_path, composer, told.append))

    assert not told


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    draw_study([*everything(0), *everything(1)], tmp_path / "chart.svg")

    drawn = (tmp_path / "chart.svg").read_text()
    assert all(text in drawn for text in ("small, distilled tower", *DOMAINS))


def test_the_small_recipes_are_of_one_student() -> None:
    """What is distilled fits the MLLM that takes it, layer by layer."""
    own = recipes()
    assert own.tower.distillation is not None
    assert own.align.adaptation is not None
    assert own.align.adaptation.new_model is not None
    student = own.align.adaptation.new_model
    assert student.vision == own.tower.distillation.student
    assert student.tile_size == own.tower.distillation.tile_size


def test_the_small_model_has_at_most_a_tenth_of_the_large_ones_parameters() -> None:
    own = recipes()
    assert own.align.adaptation is not None
    small = own.align.adaptation.new_model
    assert small is not None
    large = read_config(REPOSITORY / own.large.start_from["mllm"], MllmConfig)
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in Mllm(config).parameters())
            for config in (
                # Its tokenizer may be smaller than what it may grow to.
                MllmConfig(
                    vocab_size=small.vocabulary,
                    pad_token_id=0,
                    image_token_id=1,
                    link_token_id=2,
                    route_token_ids={route.token: 3 + number for number, route in enumerate(DEFAULT_ROUTES)},
                    tile_size=small.tile_size,
                    vision=small.vision,
                    language=small.language,
                ),
                large,
            )
        ]
    assert counts[0] <= 0.1 * counts[1]
