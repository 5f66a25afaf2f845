"""The encoder that lets image tokens and phrases read each other, over mmdet's Grounding DINO layers."""

from __future__ import annotations

import torch
from torch import Tensor

from services.grounding import compiled_operations  # noqa: F401  (must come before mmdet)

from mmdet.models.layers.transformer.grounding_dino_layers import GroundingDinoTransformerEncoder  # isort: skip


class LinkEncoder(GroundingDinoTransformerEncoder):
    """mmdet's layers with masks that hold for every row of a batch, and phrases without positions.

    mmdet's own forward pass repeats the phrase mask over heads in an order that mixes up rows, and its fusion layer
    ignores a boolean mask; either would let padding and other requests of a batch change a result.
    """

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        phrases: Tensor,
        link_mask: Tensor,
        shapes: Tensor,
        level_starts: Tensor,
        valid_ratios: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Image tokens ``[batch, tokens, width]`` and phrases ``[batch, groups, width]`` after all layers.

        ``link_mask`` ``[batch, groups]`` bool is True where a phrase is real.
        """
        references = self.get_encoder_reference_points(shapes, valid_ratios, device=tokens.device)
        heads = self.text_layers[0].self_attn_cfg.num_heads
        # A padded phrase may look at itself, or softmax over nothing would give NaN.
        itself = torch.eye(phrases.shape[1], dtype=torch.bool, device=phrases.device)
        blocked = ~(link_mask[:, None, :] | itself).repeat_interleave(heads, dim=0)
        keep = link_mask.to(tokens.dtype)
        no_positions = torch.zeros_like(phrases)
        for layer, text_layer, fusion_layer in zip(self.layers, self.text_layers, self.fusion_layers, strict=True):
            tokens, phrases = fusion_layer(visual_feature=tokens, lang_feature=phrases, attention_mask_l=keep)
            phrases = text_layer(query=phrases, query_pos=no_positions, attn_mask=blocked, key_padding_mask=None)
            tokens = layer(
                query=tokens,
                query_pos=positions,
                reference_points=references,
                spatial_shapes=shapes,
                level_start_index=level_starts,
                key_padding_mask=None,
            )
        return tokens, phrases
