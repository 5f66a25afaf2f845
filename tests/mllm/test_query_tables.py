"""One query table for all routes, or one for each; and a new super link for an MLLM that had another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_mllm import ROUTES, build_model
from torch import Tensor

from services.mllm.conversation import ImagePart, Rendered, RoutedPhrase, Text, Turn, render
from services.mllm.extension import load_with_new_link, load_with_routes
from services.mllm.model import Mllm
from services.mllm.super_link import Route
from services.mllm.tokenizer import MllmTokenizer

FORMS = ("separate", "shared")
TWO_TOOLS = (RoutedPhrase("[DET]", "dog"), Text(", "), RoutedPhrase("[GEN]", "cat"), Text("."))


def said(tokenizer: MllmTokenizer, model: Mllm) -> Rendered:
    turns = [Turn("user", (ImagePart(0), Text("Find the dog."))), Turn("assistant", TWO_TOOLS)]
    return render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=False)


def hidden(tokenizer: MllmTokenizer, model: Mllm) -> Tensor:
    ids = torch.tensor([said(tokenizer, model).input_ids])
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    states: Tensor = model(ids, torch.ones_like(ids), model.encode_images(pixels)[0]).hidden
    return states


@pytest.mark.parametrize(("form", "rows"), [("separate", [4, 6]), ("shared", [6])])
def test_a_shared_table_is_the_only_one_and_as_long_as_the_largest_group(
    tokenizer: MllmTokenizer, form: str, rows: list[int]
) -> None:
    model = build_model(tokenizer, query_tables=form)
    tables = [tuple(parameter.shape) for name, parameter in model.named_parameters() if "tables" in name]
    assert tables == [(count, model.hidden_size) for count in rows]


def test_every_route_takes_the_first_rows_of_a_shared_table(tokenizer: MllmTokenizer) -> None:
    model = build_model(tokenizer, query_tables="shared")
    (table,) = model.link.tables.values()
    link, det, gen = tokenizer.link_id, tokenizer.route_ids["[DET]"], tokenizer.route_ids["[GEN]"]
    embedded = model.embed(torch.tensor([[det, *[link] * 4, gen, *[link] * 6]]), None)
    torch.testing.assert_close(embedded[0, 1:5], table[:4])
    torch.testing.assert_close(embedded[0, 6:], table)
    with pytest.raises(ValueError, match="must follow a routing token"):
        model.embed(torch.tensor([[det, *[link] * 5]]), None)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_two_decoders_meet_in_a_shared_table_only(tokenizer: MllmTokenizer, form: str) -> None:
    model = build_model(tokenizer, query_tables=form)
    reached = []
    for decoder in ("detection", "diffusion"):
        model.zero_grad()
        links = model.links(hidden(tokenizer, model), [said(tokenizer, model).groups], decoder)[0]
        links.square().sum().backward()
        # A later group also sees the queries of an earlier one; what counts is where the largest gradients are.
        sizes = {name: float(table.grad.norm()) for name, table in model.link.tables.items() if table.grad is not None}
        reached.append(max(sizes, key=sizes.__getitem__))
    assert len(set(reached)) == (1 if form == "shared" else 2)


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_are_saved_and_loaded(tokenizer: MllmTokenizer, tmp_path: Path, form: str) -> None:
    model = build_model(tokenizer, query_tables=form)
    model.save(tmp_path, tokenizer)
    loaded, loaded_tokenizer = Mllm.load(tmp_path)
    assert loaded.config == model.config
    assert loaded.link.tables.keys() == model.link.tables.keys()
    with torch.no_grad():
        torch.testing.assert_close(hidden(loaded_tokenizer, loaded), hidden(tokenizer, model))


@pytest.mark.parametrize("form", FORMS)
def test_a_larger_group_of_a_new_route_lengthens_a_shared_table(
    tokenizer: MllmTokenizer, tmp_path: Path, form: str
) -> None:
    old = build_model(tokenizer, query_tables=form)
    old.save(tmp_path, tokenizer)
    new, its_tokenizer = load_with_routes(tmp_path, [Route(token="[EDIT]", decoder="editing", queries=9)])  # noqa: S106
    assert new.config.query_tables == form
    assert new.link.queries("[EDIT]").shape == (9, new.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(hidden(its_tokenizer, new), hidden(tokenizer, old))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries", [1, 2, 4])
def test_a_new_link_keeps_words_and_sight_and_nothing_of_the_old_one(
    tokenizer: MllmTokenizer, tmp_path: Path, form: str, queries: int
) -> None:
    old = build_model(tokenizer)
    old.save(tmp_path / "old", tokenizer)
    routes = [route.model_copy(update={"queries": queries}) for route in ROUTES]

    new, its_tokenizer = load_with_new_link(tmp_path / "old", routes, "2", form)  # type: ignore[arg-type]

    assert its_tokenizer.routes == {"[DET]": queries, "[GEN]": queries}
    assert (new.config.adapter_version, new.config.query_tables) == ("2", form)
    assert len(new.link.tables) == (1 if form == "shared" else 2)
    before, after = old.state_dict(), new.state_dict()
    for name, tensor in after.items():
        if not name.startswith("link."):
            assert name not in before or torch.equal(
                tensor[: len(before[name])] if tensor.dim() else tensor, before[name]
            )
        elif tensor.dim() > 1 and name in before:
            assert not torch.equal(tensor, before[name][: len(tensor)])
    new.save(tmp_path / "new", its_tokenizer)
    again, its_tokenizer = Mllm.load(tmp_path / "new")
    groups = said(its_tokenizer, again).groups
    assert [len(group.positions) for group in groups] == [queries, queries]
    with torch.no_grad():
        states = hidden(its_tokenizer, again)
        assert again.links(states, [groups], "detection")[0].shape == (1, 24)
        assert again.links(states, [groups], "diffusion")[0].shape == (1, queries, 20)
