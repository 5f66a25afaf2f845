"""The stage on small real rows: packing changes nothing, modes train what they say, and exports answer in service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from services.evaluation.adaptation.accuracy import accuracy
from services.evaluation.adaptation.answering import answer_sets
from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm
from services.runtime.weights import save_weights
from services.trainer.adaptation.loss_reduction import mean_loss
from services.trainer.adaptation.meta_file import MetaFileError, load_meta
from services.trainer.adaptation.packing import PackLimits
from services.trainer.adaptation.plan import Trains
from services.trainer.adaptation.replay import ReplayError
from services.trainer.adaptation.row_reader import LearnedRow
from services.trainer.adaptation.rows import RowError, write_rows
from services.trainer.adaptation_stage import AdaptationStage
from services.trainer.checkpoint import newest_checkpoint
from services.trainer.commands import train as train_command
from services.trainer.loop import train
from services.trainer.recipe import Recipe, load_recipe
from superlink.configuration import ConfigurationError
from tests.mllm.original_checkpoints import write_original
from tests.trainer.adaptation.small_rows import colour_rows, new_model, small_recipe, write_set

pytestmark = pytest.mark.internvl


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    return write_set(folder, colour_rows(folder))


def build(recipe: Recipe) -> AdaptationStage:
    torch.manual_seed(recipe.seed)
    return AdaptationStage(recipe)


def rows_of(stage: AdaptationStage) -> list[LearnedRow]:
    stream = stage.training_data()
    return [stream[number] for number in range(6)]


def alone(mllm: Mllm, row: LearnedRow) -> Tensor:
    """Losses of a row in a batch of its own, through the model's ordinary forward pass."""
    ids, labels = torch.tensor([row.sample.input_ids]), torch.tensor(row.sample.labels)[1:]
    features = mllm.encode_images(row.tiles).flatten(0, 1) if len(row.tiles) else None
    hidden = mllm(ids, torch.ones_like(ids), features).hidden[0, :-1][labels != IGNORED]
    return torch.nn.functional.cross_entropy(mllm.logits(hidden), labels[labels != IGNORED], reduction="none")


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
def test_the_loss_of_a_step_is_that_of_its_rows_alone_however_they_are_packed(meta: Path, reduction: Any) -> None:
    stage = build(small_recipe(meta, loss_reduction=reduction, drop_path=0.0))
    rows = rows_of(stage)
    each = [alone(stage.mllm, row) for row in rows]
    numbers = torch.arange(len(each)).repeat_interleave(torch.tensor([len(losses) for losses in each]))
    expected = mean_loss(torch.cat(each), numbers, reduction).item()
    longest = max(row.sample.tokens for row in rows)
    for limits, packs in ((stage.limits, 1), (PackLimits(tokens=2 * longest), None), (PackLimits(tiles=4), None)):
        stage.limits = limits
        batch = stage.collate(rows)
        assert len(batch) == packs if packs else len(batch) > 1
        assert sum(len(pack.tokens.lengths) for pack in batch) == len(rows)
        assert stage.losses(batch)["language"].item() == pytest.approx(expected, abs=1e-5)


def test_recomputed_layers_give_the_same_gradients(meta: Path) -> None:
    gradients = []
    for recomputes in (False, True):
        stage = build(small_recipe(meta, drop_path=0.5, gradient_checkpointing=recomputes))
        stage.model.train()
        batch = stage.collate(rows_of(stage))
        torch.manual_seed(5)
        stage.losses(batch)["language"].backward()
        gradients.append(
            {name: weight.grad for name, weight in stage.mllm.named_parameters() if weight.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


PARTS = ("vision_tower", "multi_modal_projector", "language_model")


@pytest.mark.parametrize(
    ("trains", "learning"),
    [
        ("full", PARTS),
        ("vit_frozen", PARTS[1:]),
        ("projector", PARTS[1:2]),
        ("vit_and_projector", PARTS[:2]),
        ("lora", PARTS[2:]),
    ],
)
def test_each_mode_trains_what_it_says_and_its_export_loads(
    meta: Path, tmp_path: Path, trains: Trains, learning: Sequence[str]
) -> None:
    rank: dict[str, Any] = {"lora_rank": 2} if trains == "lora" else {}
    stage = build(small_recipe(meta, trains=trains, drop_path=0.1, **rank))
    before = build(small_recipe(meta)).mllm.state_dict()
    train(stage.recipe, stage, tmp_path)
    exported, _ = Mllm.load(tmp_path / "export")
    after = exported.state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert after.keys() == before.keys()
    assert {part for part in PARTS if any(part in name for name in changed)} == set(learning)
    if trains == "lora":
        assert all("_proj" in name for name in changed)
        # Merged: the tower was in training mode for nothing, and the additions answer as before.
        row = rows_of(stage)[0]
        torch.testing.assert_close(alone(exported, row), alone(stage.mllm.eval(), row), atol=1e-5, rtol=1e-5)


def test_merging_lora_changes_no_answer(meta: Path, tmp_path: Path) -> None:
    stage = build(small_recipe(meta, trains="lora", lora_rank=4, steps=4))
    train(stage.recipe, stage, tmp_path, stop_after=3)
    stage.model.eval()
    rows = rows_of(stage)
    learned = [alone(stage.mllm, row).detach() for row in rows]
    stage.export(tmp_path / "export")
    served, _ = Mllm.load(tmp_path / "export")
    for row, losses in zip(rows, learned, strict=True):
        torch.testing.assert_close(alone(served, row), losses, atol=1e-5, rtol=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(meta: Path, tmp_path: Path) -> None:
    """Over the end of an epoch, with stochastic depth and LoRA's dropout."""
    recipe = small_recipe(meta, steps=4, trains="lora", drop_path=0.4, lora_rank=2)

    def run(folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
        train(recipe, build(recipe), folder, stop_after)
        newest = newest_checkpoint(folder / "checkpoints")
        assert newest is not None
        return load_file(newest / "model.safetensors")

    whole = run(tmp_path / "whole")
    run(tmp_path / "halves", stop_after=2)
    resumed = run(tmp_path / "halves")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_evaluation_counts_as_right_is_what_the_service_would_write(meta: Path, tmp_path: Path) -> None:
    """Halfway to knowing its rows by heart: right answers, teacher-forced, are those that greedy decoding writes."""
    recipe = small_recipe(meta, steps=28, held_out=meta, drop_path=0.0)
    figures = train(recipe, build(recipe), tmp_path)
    mllm, tokenizer = Mllm.load(tmp_path / "export")
    told: list[int] = []
    answered = answer_sets(mllm, tokenizer, load_meta(meta), 4, None, told.append)
    written = sum(each.answer == each.prediction for each in answered) / len(answered)
    assert figures["answers"] == figures["answers_colours"] == pytest.approx(written)
    assert 0 < written < 1
    assert accuracy(answered)["colours"] >= written
    assert sum(told) == len(answered) == 7
    assert {each.question for each in answered} >= {"Say the colours.", "Which colour is it?"}


def test_a_public_checkpoint_learns_and_serves(tmp_path: Path) -> None:
    write_original(tmp_path / "checkpoint", "internlm2-chat")
    meta = write_set(tmp_path / "rows", colour_rows(tmp_path / "rows"))
    recipe = small_recipe(meta, steps=2, start_from={"mllm": tmp_path / "checkpoint"})
    figures = train(recipe, build(recipe), tmp_path / "run")
    assert figures == {}
    served, tokenizer = Mllm.load(tmp_path / "run" / "export")
    assert tokenizer.prompt.template == "internlm2-chat"
    assert served.config.public is not None
    answered = answer_sets(served, tokenizer, load_meta(meta), 2, 1, lambda _: None)
    assert len(answered) == 1


def test_another_tower_takes_its_place(meta: Path, tmp_path: Path) -> None:
    other = build(small_recipe(meta).model_copy(update={"seed": 7}))
    save_weights(other.mllm.internvl.model.vision_tower, tmp_path, new_model(meta))
    stage = build(small_recipe(meta, start_from={"vision_tower": tmp_path}))
    given = other.mllm.internvl.model.vision_tower.state_dict()
    assert all(
        torch.equal(weight, given[name]) for name, weight in stage.mllm.internvl.model.vision_tower.state_dict().items()
    )


def test_general_rows_are_mixed_in_by_the_ratio(meta: Path, tmp_path: Path) -> None:
    general = write_set(tmp_path, colour_rows(tmp_path, 12), name="general")
    stage = build(small_recipe(meta, replay={"meta": general, "ratio": 0.5}))
    assert {name: found.used_rows for name, found in stage.rows.sets.items()} == {"colours": 6, "general": 3}
    with pytest.raises(ReplayError, match="needs 18 general rows, and there are 12"):
        build(small_recipe(meta, replay={"meta": general, "ratio": 3}))


def test_a_row_that_does_not_fit_gives_way_to_the_next(meta: Path) -> None:
    stage = build(small_recipe(meta, packing={"sample_tokens": 52}))
    rows = [stage.training_data()[number] for number in range(6)]
    assert all(row.sample.tokens <= 52 for row in rows)
    with pytest.raises(RowError, match=r"colours: row .* has \d+ tokens and \d+ tiles, more than fit"):
        _ = build(small_recipe(meta, packing={"sample_tokens": 10})).training_data()[0]


@pytest.mark.parametrize(
    ("text", "replaced", "message"),
    [
        ("trains:", "trian:", r"unknown key 'adaptation\.trian'\. Did you mean 'trains'"),
        ("trains: full", "trains: everything", r"'adaptation\.trains'.*'lora'.*everything"),
        ("trains: full", "lora_rank: 8", "lora_rank means nothing where trains is 'full'"),
        ("drop_path: 0.1", "drop_path: 1", r"adaptation\.drop_path"),
        ("open_packs: 20", "open_pack: 20", r"adaptation\.packing\.open_pack'\. Did you mean 'open_packs'"),
        ("ratio: 0.25", "ratio: -1", r"adaptation\.replay\.ratio"),
        ("  meta: data/driving/meta.json", "", r"missing key 'adaptation\.meta'"),
    ],
)
def test_a_wrong_recipe_is_named_by_its_key(tmp_path: Path, text: str, replaced: str, message: str) -> None:
    shipped = Path(__file__).parents[3] / "services" / "trainer" / "recipes" / "adaptation" / "driving.yaml"
    content = shipped.read_text(encoding="utf-8")
    assert text in content
    file = tmp_path / "wrong.yaml"
    file.write_text(content.replace(text, replaced), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(file)


def test_recipes_that_cannot_be_built_say_what_is_missing(meta: Path, tmp_path: Path) -> None:
    recipe = small_recipe(meta)
    with pytest.raises(ConfigurationError, match="adaptation: missing"):
        AdaptationStage(recipe.model_copy(update={"adaptation": None}))
    with pytest.raises(ConfigurationError, match=r"start_from\.detector: this stage knows mllm and vision_tower"):
        AdaptationStage(small_recipe(meta, start_from={"detector": tmp_path}))
    with pytest.raises(ConfigurationError, match=r"adaptation\.new_model: exactly one"):
        AdaptationStage(recipe.model_copy(update={"start_from": {"mllm": tmp_path}}))
    with pytest.raises(MetaFileError, match=r"nowhere\.json: cannot be read .*superlink adapt domains"):
        AdaptationStage(small_recipe(tmp_path / "nowhere.json", start_from={"mllm": _exported(meta, tmp_path)}))


def _exported(meta: Path, folder: Path) -> Path:
    build(small_recipe(meta)).export(folder / "export")
    return folder / "export"


def test_the_command_trains_and_tells_what_is_wrong_with_rows(tmp_path: Path) -> None:
    rows = colour_rows(tmp_path)
    meta = write_set(tmp_path, rows)
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(small_recipe(meta, steps=2).model_dump(mode="json", exclude_defaults=True)))
    app = typer.Typer()
    app.command()(train_command)

    def run() -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(file), "--runs", str(tmp_path / "runs")])
        return result.exit_code, result.output

    assert run()[0] == 0
    assert (tmp_path / "runs" / "small" / "export" / "model.safetensors").is_file()
    write_rows(tmp_path / "colours.jsonl", rows[1:])
    code, told = run()
    assert code == 1
    assert "colours.jsonl: has 5 rows, but the meta file says length 6" in told
    write_rows(tmp_path / "colours.jsonl", rows)
    Image.open(tmp_path / "0.png").close()
    (tmp_path / "0.png").unlink()
    code, told = run()
    assert code == 1
    assert "its first row names 0.png" in told
