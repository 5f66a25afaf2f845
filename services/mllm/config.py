"""What an MLLM folder's ``config.json`` says."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt
from transformers import InternVLConfig, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from services.mllm.prompt_format import PromptFormat
from services.mllm.super_link import QueryTables, Route
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import Tower, VisionSize
from superlink.configuration import Section


class LanguageSize(Section):
    """The causal language model."""

    hidden_size: PositiveInt = 160
    layers: PositiveInt = 4
    heads: PositiveInt = 5
    key_value_heads: PositiveInt = 5
    intermediate_size: PositiveInt = 448
    max_positions: PositiveInt = 2048
    # One matrix for reading and writing words: a small model then learns to copy a word once, not word by word.
    tied_embeddings: bool = True


# Routing tokens are no passwords.
DEFAULT_ROUTES = (
    Route(token="[DET]", decoder="detection"),  # noqa: S106
    Route(token="[SEG]", decoder="segmentation"),  # noqa: S106
    Route(token="[POSE_OBJECT]", decoder="pose"),  # noqa: S106
    Route(token="[POSE]", decoder="pose"),  # noqa: S106
    # As many as the tiny world's pictures have things to say; the published models have 64.
    Route(token="[GEN]", decoder="diffusion", queries=8, pooled=False),  # noqa: S106
    Route(token="[EDIT]", decoder="diffusion", queries=8, pooled=False),  # noqa: S106
)


class MllmConfig(Section):
    """Everything needed to build an MLLM and to know which decoders its links fit."""

    name: str = "superlink-tiny"
    version: str = "1"
    # Links are understood only by decoders that declare the same version.
    adapter_version: str = "tiny-1"
    routes: tuple[Route, ...] = DEFAULT_ROUTES
    # VisionLLM v2 has separate ones and compares both; docs/ablations.md does so at this size.
    query_tables: QueryTables = "separate"
    vocab_size: PositiveInt
    pad_token_id: int
    image_token_id: int
    link_token_id: int
    route_token_ids: dict[str, int]
    # Of models that take visual prompts.
    region_token_id: int | None = None
    # Read what users write in capitals only as if they had not: to a small model these would be words of their own.
    fold_capitals: bool = False
    # Side of a tile in pixels.
    tile_size: PositiveInt = 160
    downsample_ratio: PositiveFloat = 0.5
    # "v1" of the oldest public weights has rows and columns of the image tokens swapped.
    pixel_unshuffle: Literal["v1", "v2"] = "v2"
    # Of models that never saw an image in several tiles; None: as many as the profile allows.
    max_tiles: PositiveInt | None = None
    prompt: PromptFormat = PromptFormat()
    vision: Tower = VisionSize()
    language: LanguageSize = LanguageSize()
    # The transformers configuration of a public checkpoint; it then takes the place of ``vision`` and ``language``.
    public: dict[str, Any] | None = None

    @classmethod
    def for_tokenizer(cls, tokenizer: MllmTokenizer, **fields: Any) -> MllmConfig:
        """A configuration whose ids and vocabulary are ``tokenizer``'s; ``fields`` override the defaults."""
        ids: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_id,
            "image_token_id": tokenizer.image_context_id,
            "link_token_id": tokenizer.link_id,
            "route_token_ids": tokenizer.route_ids,
            "region_token_id": tokenizer.region_id,
            "prompt": tokenizer.prompt,
        }
        return cls(**(ids | fields))

    @property
    def queries_by_route(self) -> dict[str, int]:
        """Super-link queries behind each routing token, as the tokenizer wants them."""
        return {route.token: route.queries for route in self.routes}

    @cached_property
    def max_tokens(self) -> int:
        """Context length in tokens."""
        text: Any = self.internvl().text_config
        return int(text.max_position_embeddings)

    @cached_property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        vision: Any = self.internvl().vision_config
        return int((self.tile_size // vision.patch_size[0] * self.downsample_ratio) ** 2)

    def internvl(self) -> InternVLConfig:
        """The configuration of the transformers classes that carry the weights, made anew: that takes milliseconds."""
        if self.public is not None:
            return InternVLConfig.from_dict(self.public)
        text = Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.language.hidden_size,
            num_hidden_layers=self.language.layers,
            num_attention_heads=self.language.heads,
            num_key_value_heads=self.language.key_value_heads,
            intermediate_size=self.language.intermediate_size,
            max_position_embeddings=self.language.max_positions,
            pad_token_id=self.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=self.language.tied_embeddings,
        )
        return InternVLConfig(
            vision_config=self._vision_config(),
            text_config=text,
            image_token_id=self.image_token_id,
            image_seq_length=int((self.tile_size // self.vision.patch_size * self.downsample_ratio) ** 2),
            downsample_ratio=self.downsample_ratio,
            vision_feature_layer=-1,
            tie_word_embeddings=self.language.tied_embeddings,
        )

    def _vision_config(self) -> InternVLVisionConfig:
        """The library's description of the tower; of towers that it does not build, only the sizes that count."""
        if isinstance(self.vision, VisionSize):
            return self.vision.library_config(self.tile_size)
        return InternVLVisionConfig(
            hidden_size=self.vision.hidden_size,
            num_hidden_layers=0,
            num_attention_heads=1,
            intermediate_size=1,
            image_size=(self.tile_size, self.tile_size),
            patch_size=(self.vision.patch_size, self.vision.patch_size),
            use_mean_pooling=True,
        )
