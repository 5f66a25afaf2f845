"""The grounding network: an image and link embeddings in, candidates with boxes out.

Grounding DINO's structure (Liu et al. 2023; VisionLLM v2 section 3.2) over mmdet's layers. Link embeddings stand where
the text encoder's features stood. They carry no position encoding, so that the order of the phrases never matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Generic, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from services.grounding import compiled_operations  # noqa: F401  (must come before mmdet)
from services.grounding.boxes import suppress_duplicates, to_corners
from services.grounding.configuration import GroundingConfig
from services.grounding.denoising import DenoisingQueries
from services.grounding.encoder import LinkEncoder
from services.grounding.structures import (
    GroundingOptions,
    GroundingOutputs,
    GroundingResult,
    GroundingTargets,
    Selection,
)
from services.runtime.decoder import Decoder, DecoderSpec, Outputs, PreparedImage
from services.runtime.weights import load_weights, read_config, save_weights

from mmdet.models.backbones import ResNet  # isort: skip
from mmdet.models.layers import SinePositionalEncoding  # isort: skip
from mmdet.models.layers.transformer.grounding_dino_layers import (  # isort: skip
    GroundingDinoTransformerDecoder,
)
from mmdet.models.layers.transformer.utils import MLP  # isort: skip
from mmdet.models.necks import ChannelMapper  # isort: skip
from mmengine import ConfigDict  # isort: skip

# Images are prepared on the CPU, wherever the weights lie.
_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
_STANDARD_DEVIATION = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
STRIDES = (8, 16, 32)
# Keeps an unseen phrase's first logits near a 1 % probability, as focal loss wants at the start.
_PRIOR_LOGIT = -4.0
# Of finds that share out pixels: each goes to the likeliest phrase, so that unlikely finds of what is there do no harm.
_SEMANTIC_THRESHOLD = 0.1


class GroundingDecoder(Decoder[Outputs, GroundingTargets, GroundingOptions, GroundingResult], Generic[Outputs]):
    """A decoder that finds what phrases mean; what it says of each find is up to the class that builds on this one."""

    config_class: ClassVar[type[GroundingConfig]]
    # Stages of the residual network that ``encode`` reads, by their place; stage n has stride 2 ** (n + 2).
    backbone_stages: ClassVar[tuple[int, ...]] = (1, 2, 3)
    takes_regions: ClassVar[bool] = False

    def __init__(self, config: GroundingConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = DecoderSpec(
            name=config.name,
            version=config.version,
            routes=(config.route,),
            link_width=config.link_width,
            queries_per_group=config.queries_per_group,
            adapter_version=config.adapter_version,
            max_groups=config.max_groups,
            score_threshold=config.score_threshold,
            takes_regions=self.takes_regions,
        )
        width, base = config.width, config.backbone_base_channels
        self.backbone = ResNet(
            depth=config.backbone_depth,
            base_channels=base,
            out_indices=self.backbone_stages,
            norm_cfg={"type": "BN"},
            norm_eval=False,
        )
        self.neck = ChannelMapper(
            in_channels=[base * 2, base * 4, base * 8],
            out_channels=width,
            kernel_size=1,
            norm_cfg={"type": "GN", "num_groups": 16},
            act_cfg=None,
            num_outs=len(STRIDES),
        )
        self.position_encoding = SinePositionalEncoding(num_feats=width // 2, normalize=True)
        self.level_embedding = nn.Parameter(torch.randn(len(STRIDES), width) * 0.02)
        # One link embedding a category: what the detector learns to be asked in before any MLLM speaks to it.
        self.vocabulary = nn.Embedding(config.vocabulary, config.link_width)
        self.link_projection = nn.Sequential(nn.Linear(config.link_width, width), nn.LayerNorm(width))
        self.encoder = LinkEncoder(**_encoder_arguments(config))
        self.decoder = GroundingDinoTransformerDecoder(**_decoder_arguments(config))
        # mmdet 3.5 encodes each of the four box coordinates at full width, but its Grounding DINO decoder still builds
        # this head for half of it.
        self.decoder.ref_point_head = MLP(width * 4, width, width, 2)
        self.proposal_norm = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.proposal_box_head = _box_head(width)
        # One head for all layers, as VisionLLM v2 shares it; the decoder wants a list.
        box_head = _box_head(width)
        self.box_heads = nn.ModuleList([box_head] * config.decoder_layers)
        self.query_content = nn.Embedding(config.queries, width)
        self.logit_bias = nn.Parameter(torch.tensor(_PRIOR_LOGIT))
        self.denoising = DenoisingQueries(config.denoising_queries)
        # Convolutions on CPUs are a fifth faster in this layout.
        self.backbone.to(memory_format=torch.channels_last)

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Scale ``[height, width, 3]`` uint8 RGB so that the longer side fits; pad to a square, right and below."""
        height, width = image.shape[:2]
        side = self.config.image_side
        scale = side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels = torch.zeros(3, side, side)
        content = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        pixels[:, : size[1], : size[0]] = (content - _MEAN) / _STANDARD_DEVIATION
        return PreparedImage(pixels=pixels, original_size=(height, width))

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 3, side, side]`` to three levels ``[batch, width, side / stride, side / stride]``."""
        return tuple(self.neck(self.backbone(pixels.contiguous(memory_format=torch.channels_last))))

    def ground(
        self,
        features: tuple[Tensor, ...],
        links: Tensor,
        link_mask: Tensor,
        targets: GroundingTargets | None = None,
        prompts: Tensor | None = None,
    ) -> GroundingOutputs:
        """Candidates for ``links``, see ``Decoder.forward``; ``features`` end with the three levels of the neck.

        ``targets`` adds denoising queries, in training only. ``prompts`` ``[batch, groups, width]`` is added to the
        phrases; it is zero but for phrases that mean a place.

        In inference the vocabulary stands beside the links: alone, a link is easily taken for a look-alike, since
        nothing says what else the thing could be. Training stages put it there themselves, with targets of its own.
        """
        batch, groups = links.shape[:2]
        if not self.training:
            named = link_mask if prompts is None else link_mask & (prompts == 0).all(dim=-1)
            links, link_mask = self._beside_vocabulary(links, link_mask, named)
        tokens, positions, shapes, starts = self._flatten(features)
        valid_ratios = tokens.new_ones(batch, len(features), 2)
        phrases = self.link_projection(links)
        if prompts is not None:
            phrases = phrases + functional.pad(prompts, (0, 0, 0, links.shape[1] - groups))
        memory, phrase_memory = self.encoder(tokens, positions, phrases, link_mask, shapes, starts, valid_ratios)
        proposal_logits, proposal_boxes = self._propose(memory, phrase_memory, link_mask, shapes)
        chosen = proposal_logits.detach().amax(dim=-1).topk(min(self.config.queries, memory.shape[1]), dim=1).indices
        proposal_logits = proposal_logits.gather(1, chosen[..., None].expand(-1, -1, proposal_logits.shape[-1]))
        proposal_boxes = proposal_boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        content = self.query_content.weight[None, : chosen.shape[1]].expand(batch, -1, -1)
        references = proposal_boxes.detach()
        denoising_count, self_attention_mask = 0, None
        if targets is not None and self.training:
            noise = self.denoising(targets, phrases, link_mask, chosen.shape[1])
            if noise is not None:
                denoising_count, self_attention_mask = noise.content.shape[1], noise.attention_mask
                content = torch.cat([noise.content, content], dim=1)
                references = torch.cat([noise.boxes, references], dim=1)
        states, layer_references = self.decoder(
            query=content,
            value=memory,
            key_padding_mask=None,
            self_attn_mask=self_attention_mask,
            reference_points=references,
            spatial_shapes=shapes,
            level_start_index=starts,
            valid_ratios=valid_ratios,
            reg_branches=self.box_heads,
            memory_text=phrase_memory,
            text_attention_mask=~link_mask,
        )
        return GroundingOutputs(
            logits=self._classify(states, phrase_memory, link_mask)[..., :groups],
            boxes=layer_references[1:],
            proposal_logits=proposal_logits[..., :groups],
            proposal_boxes=proposal_boxes,
            link_mask=link_mask[:, :groups],
            states=states,
            memory=memory,
            denoising_count=denoising_count,
        )

    def select(self, outputs: GroundingOutputs, row: int, groups: int, options: GroundingOptions) -> Selection:
        """What image ``row`` of a batch shows of its first ``groups`` phrases."""
        calibrations = self.config.detection_calibration, self.config.presence_calibration
        logits = outputs.logits[-1, row, :, :groups].float()
        corners = to_corners(outputs.boxes[-1, row].float())
        scores = torch.sigmoid(calibrations[0].scale * logits + calibrations[0].bias)
        for group in range(groups):
            scores[~suppress_duplicates(corners, scores[:, group], self.config.duplicate_iou), group] = 0
        likeliest = logits.max(dim=0)
        presence = torch.sigmoid(calibrations[1].scale * likeliest.values + calibrations[1].bias)
        # What is there at all is at least the likeliest candidate; else a phrase could be found and have no box.
        scores[likeliest.indices, range(groups)] = torch.maximum(scores.amax(dim=0), presence)
        found = presence >= self.config.presence_threshold
        threshold = options.score_threshold
        if threshold is None:
            # Who leaves the decision to the model gets one: nothing of what is said not to be there.
            scores = scores * found
            threshold = _SEMANTIC_THRESHOLD if options.semantic else self.config.score_threshold
        best = scores.flatten().topk(min(options.most_finds, scores.numel()))
        kept = (best.values >= threshold) & (best.values > 0)
        queries = torch.div(best.indices[kept], groups, rounding_mode="floor")
        return Selection(
            queries=queries,
            corners=corners[queries],
            scores=best.values[kept],
            groups=best.indices[kept] % groups,
            presence_scores=presence,
            presence_found=found,
        )

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        save_weights(self, folder, self.config)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote, ready for inference. Raises WeightsError when it is missing or does not fit."""
        decoder = cls(read_config(folder, cls.config_class))
        load_weights(decoder, folder)
        return decoder.eval()

    def _beside_vocabulary(self, links: Tensor, link_mask: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
        """``links`` and ``link_mask``, followed by the vocabulary; rows that mean what a link means are masked.

        ``named`` ``[batch, groups]`` bool: links that mean all things of a name. Others keep no row away.
        """
        rows = self.vocabulary.weight[: self.config.rows_beside].expand(links.shape[0], -1, -1)
        distances = torch.cdist(rows, links).masked_fill(~named[:, None, :], torch.inf)
        others = (distances >= self.config.vocabulary_radius).all(dim=-1)
        return torch.cat([links, rows], dim=1), torch.cat([link_mask, others], dim=1)

    def _flatten(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Levels to ``[batch, tokens, width]`` with positions, the shapes ``[levels, 2]`` and the level starts."""
        tokens, positions, shapes = [], [], []
        for level, feature in enumerate(features):
            batch, _, height, width = feature.shape
            mask = feature.new_zeros(batch, height, width, dtype=torch.bool)
            encoding = self.position_encoding(mask).flatten(2).transpose(1, 2)
            tokens.append(feature.flatten(2).transpose(1, 2))
            positions.append(encoding + self.level_embedding[level])
            shapes.append((height, width))
        shape_tensor = torch.tensor(shapes, device=features[0].device)
        starts = torch.cat([shape_tensor.new_zeros(1), shape_tensor.prod(dim=1).cumsum(0)[:-1]])
        return torch.cat(tokens, dim=1), torch.cat(positions, dim=1), shape_tensor, starts

    def _propose(self, memory: Tensor, phrases: Tensor, link_mask: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[batch, tokens, groups]`` and boxes ``[batch, tokens, 4]`` of every encoder token."""
        anchors = []
        for level, (height, width) in enumerate(shapes.tolist()):
            rows = (torch.arange(height, device=memory.device) + 0.5) / height
            columns = (torch.arange(width, device=memory.device) + 0.5) / width
            grid_rows, grid_columns = torch.meshgrid(rows, columns, indexing="ij")
            side = torch.full_like(grid_rows, 0.1 * 2.0**level)
            anchors.append(torch.stack([grid_columns, grid_rows, side, side], dim=-1).flatten(0, 1))
        states = self.proposal_norm(memory)
        boxes = (self.proposal_box_head(states) + torch.logit(torch.cat(anchors), eps=1e-4)).sigmoid()
        return self._classify(states, phrases, link_mask), boxes

    def _classify(self, states: Tensor, phrases: Tensor, link_mask: Tensor) -> Tensor:
        """Dot products ``[..., batch, states, groups]`` of states and phrases; masked groups are pushed down."""
        logits = states @ phrases.transpose(-1, -2) / self.config.width**0.5 + self.logit_bias
        return logits.masked_fill(~link_mask[:, None, :], -30.0)


def _box_head(width: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    nn.init.zeros_(head[-1].weight)
    nn.init.zeros_(head[-1].bias)
    return head


def _attention(config: GroundingConfig) -> dict[str, object]:
    return {"embed_dims": config.width, "num_heads": config.heads, "dropout": 0.0, "batch_first": True}


def _deformable_attention(config: GroundingConfig) -> dict[str, object]:
    return {
        "embed_dims": config.width,
        "num_heads": config.heads,
        "num_levels": len(STRIDES),
        "num_points": config.sampling_points,
        "dropout": 0.0,
        "batch_first": True,
    }


def _feed_forward(config: GroundingConfig) -> dict[str, object]:
    return {"embed_dims": config.width, "feedforward_channels": config.feed_forward_width, "ffn_drop": 0.0}


def _encoder_arguments(config: GroundingConfig) -> ConfigDict:
    return ConfigDict(
        {
            "num_layers": config.encoder_layers,
            "num_cp": 0,
            "layer_cfg": {"self_attn_cfg": _deformable_attention(config), "ffn_cfg": _feed_forward(config)},
            "text_layer_cfg": {"self_attn_cfg": _attention(config), "ffn_cfg": _feed_forward(config)},
            "fusion_layer_cfg": {
                "v_dim": config.width,
                "l_dim": config.width,
                "embed_dim": config.width,
                "num_heads": config.heads,
                "dropout": 0.0,
                "drop_path": 0.0,
                "init_values": 0.1,
            },
        }
    )


def _decoder_arguments(config: GroundingConfig) -> ConfigDict:
    return ConfigDict(
        {
            "num_layers": config.decoder_layers,
            "return_intermediate": True,
            "post_norm_cfg": None,
            "layer_cfg": {
                "self_attn_cfg": _attention(config),
                "cross_attn_text_cfg": _attention(config),
                "cross_attn_cfg": _deformable_attention(config),
                "ffn_cfg": _feed_forward(config),
            },
        }
    )
