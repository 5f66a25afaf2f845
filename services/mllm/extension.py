"""New routes, visual prompts or a new super link for an MLLM that was trained without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from services.mllm.config import MllmConfig
from services.mllm.model import Mllm
from services.mllm.super_link import QueryTables, Route
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.tokenizer_files import TOKENIZER_FILE
from services.runtime.weights import load_weights, read_config


def load_with_routes(folder: Path, routes: Sequence[Route]) -> tuple[Mllm, MllmTokenizer]:
    """The MLLM in ``folder`` with ``routes`` beside its own, and with visual prompts.

    A route that it lacks begins as a copy of its first route of the same shape, with that route's token, queries and
    head, so that it speaks the language of the decoders that are there; a route of a new shape begins at random, and so
    do visual prompts. Of a route that it has, its own description stays. Raises WeightsError when the folder does not
    hold an MLLM of ours.
    """
    config = read_config(folder, MllmConfig)
    known = {route.token for route in config.routes}
    added = [route for route in routes if route.token not in known]
    if not added and config.region_token_id is not None:
        return Mllm.load(folder)
    old = Mllm(config)
    load_weights(old, folder)
    everything = (*config.routes, *added)
    queries = {route.token: route.queries for route in everything}
    tokenizer = MllmTokenizer.extend(folder / TOKENIZER_FILE, queries, config.prompt, takes_regions=True)
    new = Mllm(
        config.model_copy(
            update={
                "routes": everything,
                "vocab_size": max(len(tokenizer), config.vocab_size),
                "route_token_ids": tokenizer.route_ids,
                "region_token_id": tokenizer.region_id,
            }
        )
    )
    _copy(old, new)
    for route in added:
        model = next((own for own in config.routes if _shape(own) == _shape(route)), None)
        if model is not None:
            _imitate(new, route, model)
    return new.eval(), tokenizer


def load_with_new_link(
    folder: Path, routes: Sequence[Route], adapter_version: str, query_tables: QueryTables
) -> tuple[Mllm, MllmTokenizer]:
    """The MLLM in ``folder`` with ``routes``, and with query tables and projection heads that have learned nothing.

    Its words, its sight and its routing tokens stay. Raises WeightsError when the folder does not hold an MLLM of ours.
    """
    old, _ = load_with_routes(folder, routes)
    queries = {route.token: route.queries for route in routes}
    tokenizer = MllmTokenizer.extend(folder / TOKENIZER_FILE, queries, old.config.prompt, takes_regions=True)
    link = {"routes": tuple(routes), "adapter_version": adapter_version, "query_tables": query_tables}
    new = Mllm(old.config.model_copy(update=link))
    kept = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("link.")}
    new.load_state_dict(kept, strict=False)
    return new.eval(), tokenizer


def _shape(route: Route) -> tuple[int, int, bool]:
    return route.queries, route.width, route.pooled


@torch.no_grad()
def _copy(old: Mllm, new: Mllm) -> None:
    """Every weight; the embeddings of the tokens that are new stay random."""
    wanted = new.state_dict()
    for name, tensor in old.state_dict().items():
        wanted[name][: tensor.shape[0]].copy_(tensor) if tensor.dim() else wanted[name].copy_(tensor)


@torch.no_grad()
def _imitate(mllm: Mllm, route: Route, model: Route) -> None:
    embeddings = mllm.internvl.get_input_embeddings().weight
    ids = mllm.config.route_token_ids
    for weight in {embeddings, mllm.internvl.lm_head.weight}:
        weight[ids[route.token]] = weight[ids[model.token]]
    mllm.link.queries(route.token).copy_(mllm.link.queries(model.token))
    mllm.link.heads[route.decoder].load_state_dict(mllm.link.heads[model.decoder].state_dict())
