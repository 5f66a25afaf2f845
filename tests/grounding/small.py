"""A detector small enough for any test."""

from __future__ import annotations

from services.detection.configuration import DetectorConfig

SMALL = DetectorConfig(
    image_side=64,
    width=32,
    heads=2,
    backbone_base_channels=16,
    feed_forward_width=32,
    encoder_layers=2,
    decoder_layers=2,
    sampling_points=2,
    queries=12,
    denoising_queries=8,
    link_width=16,
    vocabulary=6,
    vocabulary_radius=2.0,
)
