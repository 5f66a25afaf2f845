"""Latent compression learning: a vision encoder from scratch on interleaved documents (Yang et al., NeurIPS 2024)."""
