"""The vision transformer of CLIP (Radford et al. 2021) whose patch tokens, not its class token, are what is used.

Patches without bias, a class token, learned positions, a norm before the blocks and one after them: the layers are
transformers' own, and names of parameters are those of its ``CLIPVisionModel``. LCL trains it in this form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, CLIPVisionModel


def clip_vit_config(image_size: int, patch_size: int, hidden_size: int, layers: int, heads: int) -> CLIPVisionConfig:
    """A configuration as OpenCLIP trains it: exact GELU, and an inner width of four times the outer."""
    return CLIPVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act="gelu",
    )


class ClipVit(nn.Module):
    """See the module's docstring. Images of another size than the configuration's get interpolated positions."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        library: Any = CLIPVisionModel(config)
        self.embeddings = library.embeddings
        # The library's spelling, by which public weights know it.
        self.pre_layrnorm = library.pre_layrnorm
        self.encoder = library.encoder
        self.post_layernorm = library.post_layernorm

    def forward(self, pixels: Tensor) -> Tensor:
        """Images ``[images, 3, side, side]`` to a grid ``[images, width, side / patch, side / patch]``."""
        images, _, height, width = pixels.shape
        patch: int = self.embeddings.patch_size
        tokens = self.patch_tokens(pixels)
        return tokens.transpose(1, 2).reshape(images, -1, height // patch, width // patch)

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Normed tokens ``[images, patches, width]`` of images ``[images, 3, side, side]``, row by row."""
        embedded = self.embeddings(pixels, interpolate_pos_encoding=True)
        states = self.encoder(inputs_embeds=self.pre_layrnorm(embedded)).last_hidden_state
        tokens: Tensor = self.post_layernorm(states)
        return tokens[:, 1:]  # without the class token

    def use_gradient_checkpointing(self) -> None:
        """Make states inside the blocks again for the gradients: less memory for a third more time."""
        for layer in self.encoder.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
