"""Pixels to latents and back: diffusers' deep-compression autoencoder (Chen et al. 2024), small.

Of the autoencoders that diffusers has it learns most in a second on CPUs, since it unfolds pixels into channels and
computes nothing at full resolution.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from services.diffusion.configuration import AutoencoderConfig

# Pixels a side of one latent.
LATENT_STRIDE = 8


def make_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """An untrained autoencoder."""
    # The first entry is full resolution, at which there are no blocks.
    channels = (config.channels[0], *config.channels)
    autoencoder = AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0, *config.encoder_blocks),
        decoder_layers_per_block=(0, *config.decoder_blocks),
        encoder_qkv_multiscales=((),) * len(channels),
        decoder_qkv_multiscales=((),) * len(channels),
        scaling_factor=1.0,
    )
    # Convolutions on CPUs are a fifth faster in this layout.
    autoencoder.to(memory_format=torch.channels_last)
    return autoencoder


def encode_pixels(autoencoder: AutoencoderDC, pixels: Tensor) -> Tensor:
    """``[batch, 3, height, width]`` in -1..1 to latents ``[batch, channels, height / 8, width / 8]`` near unit size."""
    latents: Tensor = autoencoder.encode(pixels.contiguous(memory_format=torch.channels_last)).latent
    return latents * autoencoder.config.scaling_factor


def decode_latents(autoencoder: AutoencoderDC, latents: Tensor) -> Tensor:
    """The inverse of ``encode_pixels``; may leave -1..1 a little."""
    scaled = latents / autoencoder.config.scaling_factor
    pixels: Tensor = autoencoder.decode(scaled.contiguous(memory_format=torch.channels_last)).sample
    return pixels
