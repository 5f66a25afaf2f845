"""The multimodal language model: vision tower, pixel shuffle, projector, causal LM, and the super link.

The networks are transformers' InternVL classes, so a public checkpoint loads as it is; around them stand the query
tables and projection heads of the super link. Knows nothing about text: ids in, states and logits out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.backbones.residual import ResidualStem
from services.mllm.config import DEFAULT_ROUTES, MllmConfig
from services.mllm.conversation import IGNORED, RenderedGroup
from services.mllm.prompt_format import PromptFormat
from services.mllm.public_checkpoint import is_public, read_public
from services.mllm.region_encoder import RegionBatch, RegionEncoder
from services.mllm.slots import SLOT_ATTENTION, SlotCache, Step
from services.mllm.super_link import Route, SuperLink
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.tokenizer_files import TOKENIZER_FILE
from services.mllm.towers import VisionSize
from services.runtime.weights import WeightsError, load_weights, read_config, save_weights


@dataclass(frozen=True)
class TowerOutput:
    """One pass of the vision tower."""

    # [tiles, vision width, tile / patch, tile / patch]: the transformer's output before the pixel shuffle.
    grid: Tensor
    # [tiles, tokens a tile, hidden]: what takes the places of the image tokens.
    features: Tensor
    # [tiles, 3, size, size]: what it looked at.
    pixels: Tensor


@dataclass(frozen=True)
class MllmOutput:
    """One pass of the language model."""

    # [batch, length, hidden], after the final norm. ``Mllm.logits`` turns any part of it into logits.
    hidden: Tensor


class ConvolutionalPatchEmbedding(nn.Module):
    """A residual stem and a 1x1 projection where the published tower has one strided convolution."""

    def __init__(self, stem_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.stem = ResidualStem(base_channels=stem_channels)
        self.projection = nn.Conv2d(self.stem.out_channels, hidden_size, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[tiles, 3, size, size]`` to ``[tiles, (size / 16)², hidden]``."""
        embedded: Tensor = self.projection(self.stem(pixels))
        return embedded.flatten(2).transpose(1, 2)


class Mllm(nn.Module):
    """An InternVL-shaped model with super links."""

    # Start of each route's rows in the stacked query tables by token id, -1 for tokens that are no route.
    query_start: Tensor
    query_count: Tensor

    def __init__(self, config: MllmConfig) -> None:
        super().__init__()
        self.config = config
        internvl = config.internvl()
        self.internvl = InternVLForConditionalGeneration(internvl)
        text: Any = internvl.text_config
        self.hidden_size: int = text.hidden_size
        self._layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
        if self._layer_types != {"full_attention"}:
            raise WeightsError(f"Layers with {self._layer_types} are not supported, only full attention.")
        # For attention that knows its own bounds. A mask of this form is taken as it is, unused, and none is built: by
        # layer type, where the model has such.
        self.no_mask: Any = dict.fromkeys(self._layer_types)
        if getattr(text, "layer_types", None) is None:
            self.no_mask = torch.empty(1, 1, 1, 1, device="meta")
        if config.public is None:
            self._fit_tower()
        self.internvl.model.language_model.set_attn_implementation(SLOT_ATTENTION)
        self.link = SuperLink(config.routes, self.hidden_size, config.adapter_version, config.query_tables)
        self.region_encoder: RegionEncoder | None = None
        if config.region_token_id is not None:
            tower: Any = internvl.vision_config
            self.region_encoder = RegionEncoder(tower.hidden_size, tower.patch_size[0], self.hidden_size)
        self._index_routes()

    def _fit_tower(self) -> None:
        vision = self.config.vision
        inner = self.internvl.model
        if not isinstance(vision, VisionSize):
            inner.vision_tower = vision.build()
            projector = vision.build_projector(round(1 / self.config.downsample_ratio) ** 2, self.hidden_size)
            if projector is not None:
                inner.multi_modal_projector = projector
            return
        begin_internvit(inner.vision_tower, vision)

    def _index_routes(self) -> None:
        start = torch.full((self.config.vocab_size,), -1, dtype=torch.long)
        count = torch.zeros(self.config.vocab_size, dtype=torch.long)
        for route in self.config.routes:
            start[self.config.route_token_ids[route.token]] = self.link.first_row[route.token]
            count[self.config.route_token_ids[route.token]] = route.queries
        self.register_buffer("query_start", start, persistent=False)
        self.register_buffer("query_count", count, persistent=False)

    @classmethod
    def from_public(
        cls,
        folder: Path,
        routes: Sequence[Route] = DEFAULT_ROUTES,
        name: str = "",
        adapter_version: str = "untrained",
    ) -> tuple[Mllm, MllmTokenizer]:
        """Load a public InternVL checkpoint (``public_checkpoint.py``): its weights as they are, the link newly
        initialised.

        Special tokens that its tokenizer lacks are appended, and the embeddings grow by as many rows.
        Raises WeightsError.
        """
        checkpoint = read_public(folder)
        queries = {route.token: route.queries for route in routes}
        tokenizer = MllmTokenizer.complete(checkpoint.tokenizer, queries, checkpoint.prompt)
        internvl = checkpoint.load()
        rows: int = internvl.lm_head.out_features
        if len(tokenizer) > rows:
            _add_words(internvl, len(tokenizer))
            rows = len(tokenizer)
        vision: Any = internvl.config.vision_config
        config = MllmConfig.for_tokenizer(
            tokenizer,
            name=name or folder.name,
            adapter_version=adapter_version,
            routes=tuple(routes),
            vocab_size=rows,
            region_token_id=None,
            tile_size=vision.image_size[0],
            downsample_ratio=internvl.config.downsample_ratio,
            pixel_unshuffle=checkpoint.pixel_unshuffle,
            max_tiles=checkpoint.max_tiles,
            public=internvl.config.to_dict(),
        )
        with torch.device("meta"):
            model = cls(config)
        model.internvl = internvl
        internvl.model.language_model.set_attn_implementation(SLOT_ATTENTION)
        model.link = SuperLink(config.routes, model.hidden_size, config.adapter_version)
        model._index_routes()
        return model, tokenizer

    @classmethod
    def load(cls, folder: Path) -> tuple[Mllm, MllmTokenizer]:
        """Read a folder that ``save`` wrote, or a public checkpoint. Raises WeightsError."""
        if is_public(folder):
            model, tokenizer = cls.from_public(folder)
            return model.eval(), tokenizer
        config = read_config(folder, MllmConfig)
        tokenizer = _read_tokenizer(folder, config.queries_by_route, config.prompt)
        model = cls(config)
        load_weights(model, folder)
        return model.eval(), tokenizer

    def save(self, folder: Path, tokenizer: MllmTokenizer) -> None:
        """Write config.json, model.safetensors and tokenizer.json into ``folder``."""
        save_weights(self, folder, self.config)
        tokenizer.save(folder / TOKENIZER_FILE)

    def tower(self, pixels: Tensor) -> TowerOutput:
        """Run the vision tower once on tiles ``[tiles, 3, size, size]``."""
        grid = self._grid(pixels)
        features = self.internvl.model.multi_modal_projector(self.unshuffle(grid.permute(0, 2, 3, 1).contiguous()))
        return TowerOutput(grid=grid, features=features, pixels=pixels)

    def _grid(self, pixels: Tensor) -> Tensor:
        """``[tiles, vision width, side, side]``: what the tower makes of tiles ``[tiles, 3, size, size]``."""
        inner = self.internvl.model
        if self.config.public is None and not isinstance(self.config.vision, VisionSize):
            grid: Tensor = inner.vision_tower(pixels)
            return grid
        layer = inner.config.vision_feature_layer
        vision = inner.vision_tower(pixel_values=pixels, output_hidden_states=layer != -1)
        sequence = vision.last_hidden_state if layer == -1 else vision.hidden_states[layer]
        patches = sequence[:, 1:]  # without CLS: (tiles, side², width)
        side = int(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (side, side))

    def unshuffle(self, grid: Tensor) -> Tensor:
        """Pixel unshuffle: ``[tiles, side, side, width]`` to ``[tiles, (side / 2)², 4·width]``.

        A token is four neighbours. Tokens run row by row, or column by column in the first version of it.
        """
        shuffled: Tensor = self.internvl.model.pixel_shuffle(grid, scale_factor=self.config.downsample_ratio)
        if self.config.pixel_unshuffle == "v1":
            shuffled = shuffled.transpose(1, 2)
        return shuffled.reshape(grid.shape[0], -1, shuffled.shape[-1])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features ``[tiles, tokens a tile, hidden]`` of tiles ``[tiles, 3, size, size]``."""
        return self.tower(pixels).features

    def encode_regions(self, tower: TowerOutput, regions: RegionBatch) -> Tensor:
        """Embeddings ``[regions, hidden]`` of regions on the tiles that ``tower`` saw.

        Raises ValueError where the model takes no regions.
        """
        if self.region_encoder is None:
            raise ValueError("This model takes no regions.")
        embedded: Tensor = self.region_encoder(tower.pixels, tower.grid, regions)
        return embedded

    def embed(self, input_ids: Tensor, image_features: Tensor | None, region_features: Tensor | None = None) -> Tensor:
        """Input embeddings ``[batch, length, hidden]`` of ids ``[batch, length]``.

        Image tokens take ``image_features`` ``[image tokens, hidden]`` in order, regions ``region_features``
        ``[regions, hidden]``; link placeholders take the rows of the query table that belongs to the routing token
        before them. Raises ValueError when counts do not match.
        """
        embeddings: Tensor = self.internvl.get_input_embeddings()(input_ids)
        embeddings = _fill(embeddings, input_ids == self.config.image_token_id, image_features, "image")
        if self.config.region_token_id is not None:
            embeddings = _fill(embeddings, input_ids == self.config.region_token_id, region_features, "region")
        is_link = input_ids == self.config.link_token_id
        if bool(is_link.any()):
            rows = self._query_rows(input_ids, is_link)
            embeddings = embeddings.masked_scatter(
                is_link.unsqueeze(-1), self.link.all_queries()[rows].to(embeddings.dtype)
            )
        return embeddings

    def _query_rows(self, input_ids: Tensor, is_link: Tensor) -> Tensor:
        """For every link position in reading order, its row in the stacked query tables."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        # The nearest position to the left that is no placeholder: the routing token.
        route_places = torch.where(is_link, -1, places).cummax(dim=1).values
        route_ids = input_ids.gather(1, route_places.clamp(min=0))[is_link]
        order = (places - route_places)[is_link] - 1
        if bool((self.query_start[route_ids] < 0).any()) or bool((order >= self.query_count[route_ids]).any()):
            raise ValueError("Link placeholders must follow a routing token, as many as it has queries.")
        return self.query_start[route_ids] + order

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_features: Tensor | None = None,
        region_features: Tensor | None = None,
    ) -> MllmOutput:
        """Run whole sequences.

        ``input_ids`` and ``attention_mask`` are ``[batch, length]``, padded on either side; ``image_features``
        ``[image tokens of the batch, hidden]`` and ``region_features`` ``[regions of the batch, hidden]`` come in
        reading order. States at padded positions mean nothing.
        """
        embeddings = self.embed(input_ids, image_features, region_features)
        return self.run(embeddings, attention_mask, positions(attention_mask))

    def run(self, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor) -> MllmOutput:
        """Run the language model on embeddings ``[batch, length, hidden]`` of whole sequences."""
        output = self.internvl.model.language_model(
            inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return MllmOutput(hidden=output.last_hidden_state)

    def run_step(self, embeddings: Tensor, step: Step, cache: SlotCache) -> Tensor:
        """Run the packed new tokens ``[tokens, hidden]`` of running sequences; returns their states."""
        cache.begin(step)
        output = self.internvl.model.language_model(
            inputs_embeds=embeddings.unsqueeze(0),
            attention_mask=self.no_mask,
            position_ids=step.positions.unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            step=step,
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def slot_cache(self, slots: int) -> SlotCache:
        """Key-value memory for ``slots`` running sequences."""
        text: Any = self.internvl.config.text_config
        weight = self.internvl.lm_head.weight
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return SlotCache(
            text.num_hidden_layers, text.num_key_value_heads, head_width, slots, weight.dtype, weight.device
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits ``[..., vocabulary]`` of any selection of states ``[..., hidden]``."""
        logits: Tensor = self.internvl.lm_head(hidden)
        return logits

    def links(self, hidden: Tensor, groups: Sequence[Sequence[RenderedGroup]], decoder: str) -> list[Tensor]:
        """Link embeddings for ``decoder``: one ``[groups_i, (queries,) width]`` a row of a right-padded batch.

        ``hidden`` is ``[batch, length, hidden]``; groups that lead to other decoders are left out. Positions count from
        a row's first real token, so a left-padded row must be passed without its padding.
        """
        mine = [[group for group in row if self.link.routes[group.route].decoder == decoder] for row in groups]
        counts = [len(row) for row in mine]
        queries = next(route.queries for route in self.config.routes if route.decoder == decoder)
        # All rows at once: one projection costs as much as one for each.
        positions = torch.tensor([group.positions for row in mine for group in row], dtype=torch.long)
        rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        places = positions.reshape(-1, queries) + rows[:, None] * hidden.shape[1]
        states = hidden.flatten(0, 1)[places.to(hidden.device)]
        links: Sequence[Tensor] = torch.split(self.link.project(states, decoder), counts)
        return list(links)


def begin_internvit(tower: InternVLVisionModel, vision: VisionSize) -> None:
    """Make the library's new ``tower`` what ``vision`` says, fit to be trained from scratch."""
    embeddings = tower.embeddings
    # The library starts them at zero, for checkpoints to fill; trained from scratch they must tell places apart.
    nn.init.normal_(embeddings.position_embeddings, std=0.02)
    nn.init.normal_(embeddings.cls_token, std=0.02)
    if vision.patch_embedding == "convolutional":
        embeddings.patch_embeddings = ConvolutionalPatchEmbedding(vision.stem_channels, vision.hidden_size)


@torch.no_grad()
def _add_words(internvl: InternVLForConditionalGeneration, rows: int) -> None:
    """Grow the vocabulary to ``rows``; new words are as likely as the old ones on average, as InternVL begins them."""
    before = internvl.lm_head.out_features
    internvl.resize_token_embeddings(rows, mean_resizing=False)
    written, read = internvl.lm_head.weight, internvl.get_input_embeddings().weight
    if written is not read:
        written[before:] = written[:before].mean(dim=0)


def _fill(embeddings: Tensor, wanted: Tensor, features: Tensor | None, what: str) -> Tensor:
    """``embeddings`` with ``features`` in the ``wanted`` places, in order."""
    expected, given = int(wanted.sum()), 0 if features is None else features.shape[0]
    if expected != given:
        raise ValueError(f"The sequence has {expected} {what} tokens, but {given} {what} features were given.")
    if features is None or not expected:
        return embeddings
    return embeddings.masked_scatter(wanted.unsqueeze(-1), features.to(embeddings.dtype))


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids ``[batch, length]``: real tokens count from 0, wherever the padding stands."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def language_loss(model: Mllm, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the next tokens, and how many there are (a tensor, to be summed over processes).

    ``hidden`` is ``[batch, length, hidden]`` and ``labels`` ``[batch, length]`` with -100 where nothing is predicted.
    The token after a group is predicted from the group's last query. Logits are computed at supervised positions only.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORED
    count = supervised.sum()
    logits = model.logits(hidden[:, :-1][supervised])
    return nn.functional.cross_entropy(logits.float(), targets[supervised], reduction="sum"), count


def _read_tokenizer(folder: Path, queries_by_route: Mapping[str, int], prompt: PromptFormat) -> MllmTokenizer:
    try:
        return MllmTokenizer.load(folder / TOKENIZER_FILE, queries_by_route, prompt)
    except (FileNotFoundError, ValueError) as error:
        raise WeightsError(f"{folder}: {error} `superlink train` writes it beside the weights.") from error
